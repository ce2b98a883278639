"""Attacks on what lies on the disk: two processes at once, flipped bytes, torn files, and a store that only grows.
Each is shown to have been a danger: the comment says what it did before there were locks and digests."""
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import warm
from attack_runs import Counted, folder_of, plan_of

from distillery.core.config import load_config
from distillery.core.errors import DistilleryError
from distillery.core.files import StoreError
from distillery.core.store import Artifacts, RunFolder, latest_run, list_runs, open_run
from distillery.engine.plan import Plan, Stage
from distillery.engine.shelf import Shelf, read_seconds
from distillery.engine.sources import Sources, read_sealed
from distillery.questions.results import Results, open_results
from distillery.retrieval.vectors import VectorStore
from distillery.teachers.calls import damaged_calls
from distillery.teachers.journal import Journal
from distillery.teachers.protocol import user_request
from distillery.wire import locks
from distillery.wire.claims import Claims
from distillery.wire.intact import require_intact
from distillery.wire.locks import living, owned
from distillery.workbook.runs import list_finished
from distillery.workbook.sharing import locked, refuse_strangers
from distillery.workbook.storekeeping import find_waste, remove_waste, verify_store

HERE = str(Path(__file__).parent)
OLDEN = "import attack_olden; " if "attack_olden" in sys.modules else ""
WORK = (f"import sys, json; sys.path.insert(0, {HERE!r}); {OLDEN}import attack_runs; "
        "a = json.loads(sys.argv[1]); print(attack_runs.work(**a))")


def start(tmp_path: Path, name: str, **how) -> tuple[warm.Warm, Path]:
    "A run in a process of its own, and where it says its digest."
    out = tmp_path / f"out-{name}"
    told = {"cache": str(tmp_path / "cache"), "log": str(tmp_path / "asked"), "run": name, **how}
    loaded = ("attack_runs", "filelock", "asyncio")
    return warm.start(WORK, [json.dumps(told)], out=str(out), err=str(tmp_path / f"err-{name}"), load=loaded), out


def asked(tmp_path: Path) -> list[str]:
    log = tmp_path / "asked"
    return [line.split(" ", 1)[1] for line in log.read_text().splitlines()] if log.exists() else []


def wait_for(ready, seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < until
        time.sleep(0.01)


def ended(tmp_path: Path, runs: list[tuple[warm.Warm, Path]]) -> list[str]:
    for process, out in runs: assert process.wait(60) == 0, Path(str(out).replace("out-", "err-")).read_text()
    return [out.read_text().strip() for _, out in runs]


# Row 2: two processes, no lock


@pytest.mark.attack(row=2)
def test_two_runs_ask_every_question_once(tmp_path):
    "It was paid for twice: 24 for 12."
    digests = ended(tmp_path, [start(tmp_path, "one", pause=0.1), start(tmp_path, "two", pause=0.1)])
    assert (len(asked(tmp_path)), len(set(digests))) == (12, 1)


@pytest.mark.attack(row=2)
def test_four_runs_killed_at_random_ask_what_was_in_flight_again_and_no_more(tmp_path):
    chance, killed = random.Random(5), 0
    runs = {name: start(tmp_path, name, n=30) for name in ("a", "b", "c", "d")}
    for moment in (6, 14, 22):
        wait_for(lambda m=moment: len(asked(tmp_path)) >= m)
        victim = int(next(line.split()[0] for line in reversed((tmp_path / "asked").read_text().splitlines())))  # who asks now
        name = next(n for n, (p, _) in runs.items() if p.pid == victim)
        os.kill(victim, signal.SIGKILL)
        runs[name][0].wait()
        killed += 1
        if chance.random() < 0.5: time.sleep(0.05)
        runs[name] = start(tmp_path, name, n=30)
    digests = ended(tmp_path, list(runs.values()))
    assert len(set(digests)) == 1
    assert len(asked(tmp_path)) <= 30 + killed * Counted.in_flight
    assert len(set(asked(tmp_path))) == 30


@pytest.mark.attack(row=2)
def test_runs_of_other_settings_share_the_questions_they_have_in_common(tmp_path):
    "Other stages, other keys, one journal: 0-19 and 10-29 overlap in ten."
    ended(tmp_path, [start(tmp_path, "one", n=20, pause=0.1), start(tmp_path, "two", n=20, pause=0.1, offset=10)])
    assert sorted(asked(tmp_path), key=lambda q: int(q.split()[1])) == [f"question {i}" for i in range(30)]


@pytest.mark.attack(row=2)
def test_who_waits_says_for_whom_and_how_far_that_one_is(tmp_path):
    one = start(tmp_path, "first", n=40, pause=0.06)
    wait_for(lambda: len(asked(tmp_path)) > 3)
    two = start(tmp_path, "second", n=40, pause=0.06)
    ended(tmp_path, [one, two])
    said = (tmp_path / f"said-{two[0].pid}").read_text()
    assert f"waiting for run first (process {one[0].pid} on " in said
    assert ": ask answers" in said


@pytest.mark.attack(row=2)
def test_a_killed_owner_frees_its_stage(tmp_path):
    first = start(tmp_path, "first", n=40)
    wait_for(lambda: len(asked(tmp_path)) > 3)
    second = start(tmp_path, "second", n=40)
    time.sleep(0.1)
    first[0].kill()
    first[0].wait()
    ended(tmp_path, [second])
    assert len(asked(tmp_path)) <= 40 + Counted.in_flight
    assert list((tmp_path / "cache/locks").glob("*.lock")) == []


@pytest.mark.attack(row=2)
@pytest.mark.parametrize("left", ["", "[]", '{"pid": "x", "since": {}}', "\x1b[31mrun", '{"since": 1e300, "pid": -1}'])
def test_lock_files_that_somebody_left_lock_nobody_out(tmp_path, left):
    cache = tmp_path / "cache"
    (cache / "locks").mkdir(parents=True)
    plan = plan_of(cache, Counted())
    key = plan.shelf.artifacts.place("ask", "x" * 32)
    for name in ("ask-0000000000000000", "run-4f2a", key.name[:16]):
        (cache / f"locks/{name}.lock").touch()
        (cache / f"locks/{name}.json").write_text(left)
    assert living(cache / "locks/run-4f2a.lock") is None
    assert not plan.run()["model"].cached


@pytest.mark.attack(row=2)
def test_a_claim_of_a_dead_process_is_free_and_that_of_a_living_one_is_not(tmp_path):
    alive, mine = Claims(tmp_path, "alive"), Claims(tmp_path, "mine")
    assert (alive.take("a"), mine.take("b")) == (None, None)
    with sqlite3.connect(tmp_path / "asking.sqlite") as db:
        db.execute("insert into claims values ('c', 'asking-0123456789abcdef')")
        db.execute("insert into claims values ('d', '../../etc/passwd')")
    assert mine.take("a").run == "alive"
    assert (mine.take("c"), mine.take("d")) == (None, None)
    alive.close()
    assert mine.take("a") is None
    mine.close()


@pytest.mark.attack(row=2)
def test_a_damaged_file_of_claims_stops_nobody(tmp_path):
    cache = tmp_path / "cache"
    (cache / "locks").mkdir(parents=True)
    (cache / "locks/asking.sqlite").write_bytes(b"SQLite format 3\0" + os.urandom(5000))
    teacher = Counted()
    plan_of(cache, teacher).run()
    assert teacher.asked == 12


@pytest.mark.attack(row=2)
def test_pages_are_not_written_by_two_at_once(tmp_path):
    class Enough(Exception): pass

    def hear(event): raise Enough(event.text)
    with locked(tmp_path, "pages", "4f2a"), pytest.raises(Enough, match="for run 4f2a"), locked(tmp_path, "pages", "4f2a", hear): pass


@pytest.mark.attack(row=2)
def test_another_machine_on_a_network_disk_is_refused_by_name(tmp_path):
    mounts = lambda all: [SimpleNamespace(mountpoint="/", fstype="ext4"), SimpleNamespace(mountpoint=str(tmp_path), fstype="nfs4")]
    with locked(tmp_path, "run", "4f2a") as lock:
        refuse_strangers(tmp_path, mounts)
        lock.beside.write_text(json.dumps({"pid": 7, "host": "elsewhere", "run": "4f2a"}))
        with pytest.raises(DistilleryError, match=r"process 7 on elsewhere.*nfs4"): refuse_strangers(tmp_path, mounts)
    refuse_strangers(tmp_path, mounts)


@pytest.mark.attack(row=2)
def test_a_file_system_without_locks_is_named_and_the_work_goes_on(tmp_path, monkeypatch, caplog):
    def none(self, *_args, **_how): raise OSError(37, "No locks available")
    import filelock
    monkeypatch.setattr(filelock.FileLock, "acquire", none)
    monkeypatch.setattr(filelock.FileLock, "release", lambda self, force=False: None)
    assert locks.NO_LOCKS[0] == 37
    with owned(tmp_path / "a.lock"): pass
    assert "do not start two runs on this folder" in caplog.text


# Row 9: damage is not noticed


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    "A finished run of a tiny plan; tests work on copies."
    place = tmp_path_factory.mktemp("finished")
    teacher = Counted()
    run = folder_of(place / "runs", plan_of(place / "cache", teacher).run())
    run.make_latest()
    return place


@pytest.fixture
def store(finished, tmp_path):
    place = tmp_path / "copy"
    copy_store(finished, place)
    return place


def copy_store(finished: Path, place: Path) -> None:
    "A copy with its times and its hard links."
    shutil.copytree(finished, place, symlinks=True)
    shelf = Artifacts(place / "cache")
    for part in (p for p in (place / "runs").rglob("*") if p.is_file() and not p.is_symlink()):
        for made in shelf.root.glob(f"*/*/{part.relative_to(place / 'runs/4f2a4f2a4f')}"):
            part.unlink()
            os.link(made, part)


def flip(path: Path, at: int, bit: int = 0, keep_time: bool = True) -> None:
    "Change one bit, as a disk does: the time of writing stays."
    before, raw = path.stat(), bytearray(path.read_bytes())
    raw[at % len(raw)] ^= 1 << bit
    path.chmod(0o644)
    with path.open("r+b") as f: f.write(raw)
    if keep_time: os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def again(place: Path, offset: int = 0, change=None) -> tuple[Plan, Counted]:
    "The same plan; with `change` another last stage, which reads what the others made."
    plan = plan_of(place / "cache", teacher := Counted(), offset=offset)
    if change: plan.stages[-1] = Stage("model", change, needs=("embed",), place="")
    return plan, teacher


def copied(job): (job.out / "sums.txt").write_bytes((job.needs["embed"] / "sums.txt").read_bytes())


def one(place: Path, stage: str, name: str) -> Path:
    return next((place / "cache/artifacts" / stage).glob(f"*/{name}"))


@pytest.mark.attack(row=9)
@pytest.mark.parametrize("keep_time", [True, False])
def test_a_stage_reads_no_damaged_output(store, keep_time):
    "It read the flipped byte and handed it on."
    good = one(store, "embed", "sums.txt").read_bytes()
    flip(one(store, "embed", "sums.txt"), 1, keep_time=keep_time)
    plan, teacher = again(store, change=copied)
    said = []
    done = plan.run(said.append)
    assert (done["model"].path / "sums.txt").read_bytes() == good
    assert teacher.asked == 0
    assert ("damaged" in [e.kind for e in said]) == keep_time  # one that was written to is not even found


@pytest.mark.attack(row=9)
def test_an_unchanged_run_mends_what_was_written_to(store):
    "It said that everything was cached."
    flip(one(store, "ask", "answers.txt"), 3, keep_time=False)
    assert [n for n, d in again(store)[0].run().items() if not d.cached] == ["ask"]


@pytest.mark.attack(row=9)
def test_a_list_of_digests_that_is_damaged_itself_is_not_believed(store):
    listing = one(store, "embed", "artifact.json")
    good = json.loads(listing.read_text())["files"]["sums.txt"]["digest"]
    text = listing.read_text()
    listing.write_text(text.replace(good, good[::-1]))
    assert [n for n, d in again(store)[0].run().items() if not d.cached] == ["embed"]
    assert json.loads(one(store, "embed", "artifact.json").read_text())["files"]["sums.txt"]["digest"] == good


@pytest.mark.attack(row=9)
def test_damage_that_comes_back_is_named(store, monkeypatch):
    monkeypatch.setattr(Artifacts, "verify", lambda self, stage, digest: ["sums.txt"] if stage == "embed" else [])
    plan, _ = again(store, change=copied)
    plan.shelf.read.clear()
    monkeypatch.setattr(Shelf, "require", Shelf.require)
    done = plan.run()
    assert done["model"].path.is_dir()  # made again in this process: its digests are those that were just written


@pytest.mark.attack(row=9)
@pytest.mark.parametrize("keep_time", [True, False])
def test_damaged_weights_answer_nobody(store, keep_time):
    "`ask` answered nonsense, `package` packed it with a matching checksum."
    from distillery.shipping.package import package_variant
    from distillery.teachers.onnx import OnnxTeacher

    folder = store / "runs/4f2a4f2a4f/onnx/q4"
    flip(folder / "model.onnx", 100, keep_time=keep_time)
    for attempt in (lambda: OnnxTeacher(folder), lambda: package_variant(folder, folder, store / "out", None, ""),
                    lambda: require_intact(store / "runs/latest/onnx/q4")):
        with pytest.raises(StoreError, match=r"onnx/q4/model.onnx of 4f2a4f2a4f is not what was written"): attempt()
    assert not (store / "out").exists()


@pytest.mark.attack(row=9)
@pytest.mark.parametrize("name", ["tiny", "mini"])
def test_damaged_weights_of_the_package_teach_nobody(tmp_path, monkeypatch, name):
    from distillery.teachers import open as opening

    shutil.copytree(opening.builtin_dir(name), tmp_path / "weights" / name)
    flip(tmp_path / "weights" / name / "model.safetensors", 200_000)
    monkeypatch.setattr(opening, "builtin_dir", lambda name: tmp_path / "weights" / name)
    for named in (lambda: opening.teacher_digest(f"builtin:{name}", tmp_path), lambda: opening.base_digest(f"builtin:{name}")):
        with pytest.raises(DistilleryError, match=f"weights of builtin:{name} are not those"): named()


@pytest.mark.attack(row=9)
def test_no_page_is_made_of_damaged_rows(store):
    flip(store / "runs/4f2a4f2a4f/sums.txt", 0)
    with pytest.raises(StoreError, match=r"sums.txt of 4f2a4f2a4f"): open_results(store / "runs/4f2a4f2a4f")


@pytest.mark.attack(row=9)
@pytest.mark.parametrize("column", ["response", "request", "finish_reason", "teacher", "reasoning", "run"])
def test_a_damaged_answer_is_asked_again_once_and_never_served(tmp_path, column):
    journal, teacher = Journal(tmp_path / "calls.sqlite"), Counted()
    ask = lambda: journal.ask(teacher, [user_request("k", "where?")])["k"].text
    assert ask() == "WHERE?"
    journal.db.execute(f"update calls set {column} = cast(x'ff00' as text) || {column}")
    assert [ask(), ask(), teacher.asked, damaged_calls(journal)] == ["WHERE?", "WHERE?", 2, [1]]


@pytest.mark.attack(row=9)
def test_an_index_that_leads_to_another_row_serves_nothing(tmp_path):
    journal, teacher = Journal(tmp_path / "calls.sqlite"), Counted()
    journal.ask(teacher, [user_request("a", "one"), user_request("b", "two")])
    rows = journal.db.execute("select digest from calls order by id").fetchall()
    journal.db.execute("drop index calls_by_digest")
    journal.db.execute("update calls set digest = ? where id = 2", rows[0])  # found under the first's digest
    journal.db.execute("delete from calls where id = 1")
    assert journal.ask(teacher, [user_request("a", "one")])["a"].text == "ONE"
    assert teacher.asked == 3


@pytest.mark.attack(row=9)
@pytest.mark.parametrize("change", ["zeroblob(length(vector))", "substr(vector, 1, 8)", "'text'",
                                    "x'0000c07f0000c07f0000c07f0000c07f0011223344556677'"])
def test_a_damaged_vector_is_computed_again(tmp_path, change):
    "NaN passed."
    store = VectorStore(tmp_path / "vectors.sqlite")
    store.put({"a": np.ones(4, np.float32), "b": np.ones(4, np.float32)})
    with sqlite3.connect(store.path) as db: db.execute(f"update sealed set vector = {change} where key = 'a'")
    assert list(store.get(["a", "b"])) == ["b"]
    assert store.damaged() == ["a"]


@pytest.mark.attack(row=9)
def test_a_vector_is_not_taken_for_that_of_another_text(tmp_path):
    store = VectorStore(tmp_path / "vectors.sqlite")
    store.put({"a": np.ones(4, np.float32), "b": np.zeros(4, np.float32)})
    swap = "update sealed set vector = (select vector from sealed where key = 'b') where key = 'a'"
    with sqlite3.connect(store.path) as db: db.execute(swap)
    assert list(store.get(["a", "b"])) == ["b"]


@pytest.mark.attack(row=9)
def test_a_remembered_call_graph_that_lost_a_name_is_not_believed(tmp_path):
    plan_of(tmp_path, Counted())
    sources = Sources(memory=tmp_path, tables=tmp_path)
    sources.table("distillery.core.files")
    sources.save()
    assert read_sealed(tmp_path / "code.json")
    text = (tmp_path / "code.json").read_text()
    (tmp_path / "code.json").write_text(text.replace("digest_file", "digest_filf", 1))
    assert read_sealed(tmp_path / "code.json") == {}


def harmless(place: Path, good: dict[str, bytes]) -> str:
    """What becomes of a damaged store: a word for the proof, or an AssertionError where something damaged was served.
    Same: a run gives every output in the same bytes. Named: it is refused by name."""
    said = []
    try:
        plan, _ = again(place)
        done = plan.run(said.append)
        for d in done.values(): plan.shelf.require(d.path)
        for d in done.values():
            for name in ("answers.txt", "sums.txt", "onnx/q4/model.onnx"):
                if (d.path / name).is_file(): assert (d.path / name).read_bytes() == good[name]
    except DistilleryError as e: said.append(e)
    for run in list_runs(place / "runs"):
        try:
            require_intact(run.path / "onnx/q4")
            results = open_results(run.path)
            assert (results.path / "onnx/q4/model.onnx").read_bytes() == good["onnx/q4/model.onnx"]
            assert (results.path / "sums.txt").read_bytes() == good["sums.txt"]
        except DistilleryError as e: said.append(e)
    list_finished(load_config(overrides={"workbook.runs_dir": str(place / "runs")}))
    return "named" if any(isinstance(s, Exception) for s in said) else "the same bytes"


def flips(finished: Path, place: Path, seed: int, n: int) -> list[str]:
    "Flip n bytes of the whole store, one at a time; every answer, output, vector and weight that comes out must be what was put in."
    chance = random.Random(seed)
    names = ("answers.txt", "sums.txt", "onnx/q4/model.onnx")
    good = {name: next((finished / "cache/artifacts").glob(f"*/*/{name}")).read_bytes() for name in names}
    found = []
    for _ in range(n):
        shutil.rmtree(place, ignore_errors=True)
        copy_store(finished, place)
        files = sorted(p for p in place.rglob("*") if p.is_file() and not p.is_symlink() and p.stat().st_size)
        file = chance.choice(files)
        flip(file, chance.randrange(file.stat().st_size), chance.randrange(8), keep_time=chance.random() < 0.5)
        if chance.random() < 0.5: shutil.rmtree(place / "cache/artifacts/embed", ignore_errors=True)  # then what it rests on is read
        if chance.random() < 0.5: shutil.rmtree(place / "cache/artifacts/ask", ignore_errors=True)
        try: found.append(f"{file.relative_to(place).parts[:2]}: {harmless(place, good)}")
        except Exception as e: raise AssertionError(f"{file.relative_to(place)}: {type(e).__name__}: {e}") from e
    return found


@pytest.mark.attack(row=9)
def test_ten_flips_over_the_store_serve_nothing_damaged(finished, tmp_path):
    assert len(flips(finished, tmp_path / "copy", 1, 10)) == 10


@pytest.mark.slow
@pytest.mark.attack(row=9)
def test_two_hundred_flips_over_the_store_serve_nothing_damaged(finished, tmp_path):
    assert len(flips(finished, tmp_path / "copy", random.SystemRandom().randrange(10**9), 200)) == 200


# Row 10: torn small files

TORN = ["", "{", "[]", "null", '"text"', "[" * 200_000, "\xff\xfe", '{"files": [], "stages": 3, "ended": "noon", "name": {}}', "folder"]


def tear(path: Path, how: str) -> None:
    if path.is_symlink() or path.is_file(): path.unlink()
    elif path.is_dir(): shutil.rmtree(path)
    if how == "folder": path.mkdir()
    else: path.write_bytes(how.encode("latin-1"))


@pytest.mark.attack(row=10)
@pytest.mark.parametrize("how", TORN)
@pytest.mark.parametrize("name", ["manifest.json", "provenance.json", "config.json", "kpis.jsonl"])
def test_a_torn_file_of_a_run_stops_neither_the_list_nor_the_other_runs(store, name, how):
    "`runs list` was a traceback for all."
    shutil.copytree(store / "runs/4f2a4f2a4f", store / "runs/aaaaaaaaaa")
    tear(store / "runs/aaaaaaaaaa" / name, how)
    config = load_config(overrides={"workbook.runs_dir": str(store / "runs")})
    assert {row["run"] for row in list_finished(config)} >= {"4f2a4f2a4f", "aaaaaaaaaa"}
    assert open_run(store / "runs", "4f2a4f2a4f").manifest["stages"]
    with suppress(DistilleryError): open_results(store / "runs/aaaaaaaaaa").json("config.json")


@pytest.mark.attack(row=10)
@pytest.mark.parametrize("how", TORN)
def test_torn_state_of_the_cache_heals(store, how):
    cache = store / "cache"
    states = [p for kind in ("times/*/*", "last/*", "keys/*/*", "files") for p in cache.glob(f"{kind}.json")] + [cache / "work/.DS_Store"]
    for file in states:
        file.parent.mkdir(exist_ok=True)
        if how != "folder" or file.name == ".DS_Store": tear(file, how)
    plan, _ = again(store, change=copied)
    assert [n for n, d in plan.run().items() if not d.cached] == ["model"]
    assert plan.why("model") == []


@pytest.mark.attack(row=10)
@pytest.mark.parametrize("how", [*TORN, "9999999999", "../../../etc", "gone"])
def test_latest_heals(store, how):
    pointer = store / "runs/latest"
    tear(pointer, how)
    if how == "gone":
        pointer.unlink()
        pointer.symlink_to("nowhere")
    assert (latest_run(store / "runs"), open_run(store / "runs").path.name) == ("4f2a4f2a4f", "4f2a4f2a4f")
    RunFolder(store / "runs/4f2a4f2a4f").make_latest()
    assert open_run(store / "runs").path.name == "4f2a4f2a4f"


@pytest.mark.attack(row=10)
def test_runs_may_be_a_file_and_files_may_stand_among_runs(tmp_path):
    (tmp_path / "runs").write_text("")
    assert list_runs(tmp_path / "runs") == []
    with pytest.raises(StoreError, match="is a file"): open_run(tmp_path / "runs")
    with pytest.raises(StoreError, match="cannot write"): RunFolder(tmp_path / "runs" / "4f2a")
    (tmp_path / "there").mkdir()
    (tmp_path / "there/.DS_Store").write_text("")
    assert list_runs(tmp_path / "there") == []


@pytest.mark.attack(row=10)
@pytest.mark.parametrize("stray", [".DS_Store", "Thumbs.db", "a", "a@b@c@d", "@@@", "x@y@99999999999999@z"])
def test_strays_in_the_store_change_nothing(store, stray):
    for folder in ("cache/work", "cache/artifacts", "cache/artifacts/embed", "cache/locks", "cache/last", "cache/scratch"):
        (store / folder).mkdir(exist_ok=True)
        (store / folder / stray).write_text("")
    plan, _ = again(store, change=copied)
    assert [n for n, d in plan.run().items() if not d.cached] == ["model"]
    assert list(verify_store(store / "cache", store / "runs")) == []


@pytest.mark.attack(row=10)
def test_what_a_file_manager_left_in_an_output_does_not_make_it_again(store):
    for place in (store / "cache/artifacts").glob("*/*"): (place / ".DS_Store").write_text("")
    assert [n for n, d in again(store, change=copied)[0].run().items() if not d.cached] == ["model"]


@pytest.mark.attack(row=10)
@pytest.mark.parametrize("place", ["cache/work", "cache/locks", "cache/scratch", "cache/artifacts/model"])
def test_a_file_where_a_folder_should_be_is_named(store, place):
    tear(store / place, "")
    with pytest.raises(StoreError, match="cannot write") as e: again(store, change=copied)[0].run()
    assert "move away" in e.value.fix


@pytest.mark.attack(row=10)
@pytest.mark.parametrize("content", [b"", b"no database " * 500, b"SQLite format 3\0" + bytes(4080)])
def test_a_torn_file_of_vectors_is_begun_anew(tmp_path, content):
    (tmp_path / "vectors.sqlite").write_bytes(content)
    store = VectorStore(tmp_path / "vectors.sqlite")
    store.put({"a": np.ones(3, np.float32)})
    assert store.get(["a"])["a"].tolist() == [1, 1, 1]


@pytest.mark.attack(row=10)
@pytest.mark.parametrize("torn", ["", "{", "[1, 2]", "null", "7"])
def test_a_servers_parameters_that_are_torn_are_learned_again(tmp_path, torn):
    journal, teacher = Journal(tmp_path / "calls.sqlite"), Counted()
    teacher.learned = {}
    journal.recall(teacher)
    journal.db.execute("insert into servers values ('counted', ?)", (torn,))
    journal.recall(teacher)
    assert teacher.learned == {}


@pytest.mark.attack(row=10)
@pytest.mark.parametrize("text", ["", "{", "[]", "-3", "1e999", '"x"', "[" * 200_000, "true"])
def test_a_torn_time_is_no_time(tmp_path, text):
    (tmp_path / "t.json").write_text(text)
    assert read_seconds(tmp_path / "t.json") in (None, 1.0)


# Row 17: the store only grows


def dropped(store: Path, **how) -> list[str]:
    return [w.what for w in find_waste(store / "cache", store / "runs", **how)]


@pytest.fixture
def grown(store):
    "The finished run, and the output of an older last stage that no run was made of."
    again(store, change=copied)[0].run()
    for output in (store / "cache/artifacts/model").iterdir(): os.utime(output, (1, 1))
    again(store)[0].run()  # the last plan is that of the run
    return store


@pytest.mark.attack(row=17)
def test_what_no_run_was_made_of_goes_and_all_else_stays(grown):
    assert dropped(grown) == ["output of model"]
    remove_waste(grown / "cache", find_waste(grown / "cache", grown / "runs"))
    assert all(d.cached for d in again(grown)[0].run().values())
    assert list(verify_store(grown / "cache", grown / "runs")) == []


@pytest.mark.attack(row=17)
def test_a_preview_removes_nothing(grown):
    before = sorted(p.relative_to(grown) for p in grown.rglob("*"))
    dropped(grown, keep=1)
    assert sorted(p.relative_to(grown) for p in grown.rglob("*")) == before


@pytest.mark.attack(row=17)
def test_an_output_that_another_folder_shows_stays(grown):
    old = next(p for p in (grown / "cache/artifacts/model").iterdir() if (p / "sums.txt").is_file())
    os.link(old / "sums.txt", grown / "shown elsewhere")
    assert dropped(grown) == []


@pytest.mark.attack(row=17)
def test_nothing_goes_while_somebody_is_at_work(grown):
    waste = find_waste(grown / "cache", grown / "runs")
    with locked(grown / "cache", "run", "4f2a"), pytest.raises(DistilleryError, match=r"run 4f2a .* is at work"):
        remove_waste(grown / "cache", waste)
    assert all(w.path.is_dir() for w in waste)


@pytest.mark.attack(row=17)
@pytest.mark.parametrize("how", ["{", "{}", '{"stages": []}'])
def test_a_run_that_cannot_say_what_it_needs_keeps_everything(grown, how):
    tear(grown / "runs/4f2a4f2a4f/manifest.json", how)
    with pytest.raises(StoreError, match="what it needs is not known"): dropped(grown)


@pytest.mark.attack(row=17)
def test_named_and_newest_runs_stay(store):
    for i, name in enumerate(("aaaa", "bbbb", "cccc")):
        run = RunFolder(store / f"runs/{name}")
        run.write_json("manifest.json", {"stages": {}, "name": "mine" if name == "aaaa" else None})
        os.utime(run.path / "manifest.json", (10 + i, 10 + i))
    assert dropped(store, keep=1) == ["run bbbb", "run cccc"]
    assert dropped(store, keep=3) == []
    assert dropped(store) == []


@pytest.mark.attack(row=17)
def test_the_outputs_of_a_run_that_was_stopped_stay(store):
    for name in ("manifest.json",): os.utime(store / "runs/4f2a4f2a4f" / name, (1, 1))
    again(store, offset=50)[0].run()
    shutil.rmtree(store / "cache/last")
    assert dropped(store) == []  # younger than the newest run


@pytest.mark.attack(row=17)
def test_answers_and_vectors_stay(grown):
    before = {name: (grown / "cache" / name).read_bytes() for name in ("calls.sqlite", "vectors.sqlite")}
    remove_waste(grown / "cache", find_waste(grown / "cache", grown / "runs", keep=1))
    assert {name: (grown / "cache" / name).read_bytes() for name in before} == before


@pytest.mark.attack(row=17)
def test_a_run_reads_nothing_of_a_folder_that_went(grown):
    "A copy of the only run, dropped: its bytes stay where the kept run shows them."
    shutil.copytree(grown / "runs/4f2a4f2a4f", grown / "runs/aaaaaaaaaa", copy_function=os.link)
    os.utime(grown / "runs/aaaaaaaaaa", (5, 5))
    remove_waste(grown / "cache", find_waste(grown / "cache", grown / "runs", keep=1))
    left = list_runs(grown / "runs")
    assert len(left) == 1
    require_intact(left[0].path)
    assert Results(left[0].path).json("config.json") == {"docs": None}


# Positive controls


@pytest.mark.slow
def test_yesterday_these_attacks_succeeded():
    "Without locks, digests and a collector, eight attacks of each row at least are lost: a test that cannot be lost proves nothing."
    how = ["-q", "-p", "attack_olden", "-p", "no:cacheprovider", "--tb=no", "-m", "attack and not slow", "--capture=no"]
    command = [sys.executable, "-m", "pytest", *how, __file__]
    paths = os.pathsep.join([HERE, os.environ.get("PYTHONPATH", "")])
    said = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths})
    lost = {int(row): int(n) for row, n in re.findall(r"^row +(\d+):.*?(\d+) lost", said.stdout, re.M)}
    assert {row: n for row, n in lost.items() if n >= 8}.keys() == {2, 9, 10, 17}, said.stdout
