"Files made to stall, swell or crash their reader: each is named with the limit it passed, and the run goes on."
import json
import os
import random
import signal
import time
from pathlib import Path

import psutil
import pytest
from odd_documents import odd_document, para, pdf, word

from distillery.engine.limited import Limited, Limits, OverLimit
from distillery.pairs.documents import LIMITS, Skipped, read_documents, stream_documents
from distillery.reading.files import answer


def spin(question: dict) -> str:
    while question: pass
    return "done"


def swell(question: dict) -> int: return len(bytearray(int(question["mib"]) * 2**20))


def die(question: dict) -> int:
    if question: os.kill(os.getpid(), getattr(signal, question["how"]))
    return os.getpid()


def fail(question: dict) -> int: return 1 // len(question)


def loud(question: dict) -> str:
    print("noise on the way")
    return "x" * question["n"]


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))


SMALL = Limits(seconds=0.3, memory_mb=256, output_mb=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(("work", "bad", "good", "limit"), [
    (spin, {"a": 1}, {}, "time"), (swell, {"mib": 400}, {"mib": 1}, "memory"),
    (die, {"how": "SIGSEGV"}, {}, "crash"), (die, {"how": "SIGKILL"}, {}, "memory"),
    (fail, {}, {"a": 1}, "crash"), (loud, {"n": 20_000}, {"n": 3}, "output")])
@pytest.mark.attack(row=4)
def test_a_limit_is_named_and_the_next_question_answered(work, bad, good, limit):
    with Limited(work, SMALL) as ask:
        for _ in range(2):
            with pytest.raises(OverLimit) as e: ask(bad)
            assert e.value.limit == limit
            assert ask(good)


def test_one_child_answers_everything_and_none_is_left():
    with Limited(die, SMALL) as ask:
        assert ask.running is None
        pids = {ask({}) for _ in range(20)}
        assert len(pids) == 1
    assert not psutil.pid_exists(pids.pop())


def test_a_larger_file_may_take_longer():
    "Twice the weight gives twice the seconds: the child's own clock does not end it earlier."
    with Limited(spin, Limits(0.2, 256, 1)) as ask:
        began = time.process_time(), time.monotonic()
        with pytest.raises(OverLimit): ask({"a": 1}, 4)
        assert time.monotonic() - began[1] >= 0.8


def folder_of(tmp_path: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items(): (tmp_path / name).write_bytes(data)
    return tmp_path


@pytest.mark.attack(row=4)
def test_bombs_among_good_files(tmp_path):
    nine = lambda i: b",".join([b"*%c" % (97 + i) if i else b"x"] * 9)
    rows = b"---\n" + b"".join(b"%c: &%c [%s]\n" % (98 + i, 98 + i, nine(i)) for i in range(9))
    good = {"zz.md": b"# Lid\n\nThe lid is closed.", "date.md": b"---\ndate: 0000-00-00\n---\nThe drum is cleaned.",
            "alias.md": rows + b"title: *k\n---\nThe hall is warm.",
            "span.docx": word('<w:tbl><w:tr><w:tc><w:tcPr><w:gridSpan w:val="100000"/></w:tcPr>' + para("Wide") + "</w:tc></w:tr></w:tbl>"),
            "blank.txt": b"The roller turns." + b"\n" * 40_000, "pages.pdf": pdf(*[[(72, 700, 12, "The feeder stops.")]] * 30)}
    bad = {"tags.html": b"<a " * 20_000, "nested.html": b"<div>" * 100_000 + b"x", "empty.docx": word("<w:p/>" * 100_000),
           "deep.docx": word("<w:sdt>" * 3000 + "</w:sdt>" * 3000)}
    corpus = read_documents(folder_of(tmp_path, good | bad), limits=Limits(1, 512, 1))
    assert {d.path for d in corpus.documents} == set(good)
    assert {s.path for s in corpus.skipped} == set(bad)
    reasons = {s.path: s.reason for s in corpus.skipped}
    assert "documents.max_seconds = 1" in reasons["empty.docx"]
    assert "nested" in reasons["nested.html"]


def test_each_limit_has_its_setting(tmp_path):
    files = folder_of(tmp_path, {"a.txt": b"word " * 50_000, "b.txt": b"The lid is closed.", "z.docx": word("0" * (150 * 2**20))})
    corpus = read_documents(files, limits=Limits(5, 256, 0.1))
    assert [d.path for d in corpus.documents] == ["b.txt"]
    assert "documents.max_text_mb = 0.1" in corpus.skipped[0].reason
    assert "documents.max_memory_mb = 256" in corpus.skipped[1].reason


def fuzz(tmp_path: Path, seed: int, n: int) -> None:
    "Every odd file becomes a document or a line with its reason; nothing hangs, and no reader grows past its limit."
    rng, peak = random.Random(seed), 0.0
    with Limited(answer, LIMITS) as ask:
        for i in range(n):
            name, data = odd_document(rng)
            path = tmp_path / f"{i}{name[-1:]}"
            path.write_bytes(data)
            try: said = ask({"path": str(path), "name": name})
            except OverLimit as over: said = {"reason": "" if over.limit == "crash" else over.limit}
            path.unlink()
            kept = said.get("reason") or (said["text"].strip() and said["title"] and json.dumps(said, ensure_ascii=False).encode())
            assert kept, (seed, i, name)
            if ask.running: peak = max(peak, psutil.Process(ask.running[0].pid).memory_info().rss / 2**20)
    assert 0 < peak < 1024


def test_two_hundred_odd_documents(tmp_path): fuzz(tmp_path, 14, 200)


@pytest.mark.slow
def test_two_thousand_odd_documents(tmp_path): fuzz(tmp_path, random.randrange(10**6), 2000)


def test_odd_files_of_a_folder_are_accounted_for(tmp_path):
    rng = random.Random(15)
    for _ in range(40):
        name, data = odd_document(rng)
        (tmp_path / name.replace("/", "_")).write_bytes(data)
    (tmp_path / "good.md").write_text("The lid is closed.")
    seen = [x.path for x in stream_documents(tmp_path)]
    assert sorted(seen) == sorted(p.name for p in tmp_path.iterdir())
    assert any(isinstance(x, Skipped) for x in stream_documents(tmp_path))
