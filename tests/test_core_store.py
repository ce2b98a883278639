"Files and store: whole or absent, whatever happens in between."

import errno
import gzip
import json
import multiprocessing
import os
import platform
import signal
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from distillery.core import files
from distillery.core.files import (
    StoreError,
    atomic_write,
    digest_bytes,
    digest_file,
    digest_json,
    digest_text,
    digest_tree,
    read_jsonl,
    write_jsonl,
)
from distillery.core.records import Record
from distillery.core.store import Artifacts, RunFolder, link_file, list_runs, open_run

from warm import run_code

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


BREAKS = '\n\r\x0b\x0c\x1c\x85\u2028\u2029\ufeff"\\a'  # what some tools take for the end of a line


class Word(Record):
    word: str


@given(st.dictionaries(st.text(max_size=5), JSON, max_size=5))
def test_the_order_of_keys_does_not_enter_a_digest(data):
    assert digest_json(data) == digest_json(dict(reversed(data.items())))
    assert len(digest_json(data)) == 32


@given(JSON, JSON)
def test_different_values_have_different_digests(a, b):
    assert (digest_json(a) == digest_json(b)) == (json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True))


def test_a_digest_means_the_same_everywhere(tmp_path):
    assert digest_text("handbook") == "aeeaa2aa6019ebf617c82abbd81f0a64"
    (tmp_path / "a").write_bytes(b"x" * 300_000)
    assert digest_file(tmp_path / "a") == digest_bytes(b"x" * 300_000)
    with pytest.raises(ValueError, match="JSON compliant"):
        digest_json(float("nan"))


def test_the_digest_of_a_folder_sees_names_and_contents(tmp_path):
    (tmp_path / "one" / "deep").mkdir(parents=True)
    (tmp_path / "one" / "deep" / "a").write_text("1")
    first = digest_tree(tmp_path / "one")
    (tmp_path / "one" / "deep" / "a").rename(tmp_path / "one" / "deep" / "b")
    assert digest_tree(tmp_path / "one") != first
    (tmp_path / "one" / "deep" / "b").rename(tmp_path / "one" / "deep" / "a")
    assert digest_tree(tmp_path / "one") == first


@given(st.binary(max_size=100), st.binary(max_size=100), st.sampled_from(["open", "write", "fsync", "replace"]))
@settings(max_examples=60)
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path_factory, old, new, where):
    path = tmp_path_factory.mktemp("files") / "a.bin"
    atomic_write(path, old)
    with pytest.MonkeyPatch.context() as patch:

        def full(*_args, **_kw):
            raise OSError(errno.ENOSPC, "No space left on device")

        if where in ("open", "write"):
            patch.setattr(files, "open", full, raising=False)
        else:
            patch.setattr(os, where, full)
        with pytest.raises(StoreError, match="No space left") as error:
            atomic_write(path, new)
    assert "free some disk space" in error.value.fix
    assert (path.read_bytes(), len(list(path.parent.iterdir()))) == (old, 1)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_really_full_disk_is_named():
    with pytest.raises(StoreError, match="No space left"), files.disk_errors(Path("out")), open("/dev/full", "w") as f:
        f.write("x" * 100_000)


def test_other_errors_pass_untouched(tmp_path):
    with pytest.raises(FileNotFoundError), Artifacts(tmp_path).put("stage", "aa"):
        open(tmp_path / "missing")
    with pytest.raises(ConnectionRefusedError), Artifacts(tmp_path).put("stage", "aa"):
        raise ConnectionRefusedError(111, "refused")


def _write_for_ever(path):
    n = 0
    while True:
        n += 1
        atomic_write(path, f"{n % 10}" * 200_000)


def test_a_killed_writer_leaves_a_whole_file(tmp_path):
    path = tmp_path / "a.txt"
    atomic_write(path, "0" * 200_000)
    for wait in (0.05, 0.11, 0.17):
        writer = multiprocessing.get_context("spawn").Process(target=_write_for_ever, args=(path,), daemon=True)
        before = path.stat().st_ino
        writer.start()
        deadline = time.monotonic() + 60
        while path.stat().st_ino == before and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(wait)
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        text = path.read_text()
        assert len(text) == 200_000
        assert len(set(text)) == 1


@given(st.lists(st.text(max_size=20) | st.text(BREAKS, max_size=5), min_size=1, max_size=6))
@settings(max_examples=60)
def test_any_text_survives_a_file_of_lines(tmp_path_factory, words):
    path = write_jsonl(tmp_path_factory.mktemp("rows") / "w.jsonl", [Word(word=w) for w in words])
    assert [w.word for w in read_jsonl(path, Word)] == words
    packed = path.with_suffix(".jsonl.gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert [w.word for w in read_jsonl(packed, Word)] == words


GOOD = b'{"word": "fine"}'
BAD = [b"{", b"[]", b'"text"', b'{"word": 3}', b'{"ward": "x"}', b'{"word": "x", "schema": 9}', b'{"word": "x"} trailing', b"null", b"NaN"]


@given(st.lists(st.sampled_from([GOOD, b"", b"   "]), max_size=5), st.sampled_from(BAD), st.sampled_from([b"\n", b"\r\n"]))
@settings(max_examples=80)
def test_a_broken_line_is_named_by_its_number(tmp_path_factory, before, bad, end):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_bytes(end.join([*before, bad, GOOD]))
    with pytest.raises(StoreError, match=rf"rows.jsonl, line {len(before) + 1}: ") as error:
        read_jsonl(path, Word)
    assert f"line {len(before) + 1}" in error.value.fix


@pytest.mark.parametrize(
    ("data", "said", "fix"),
    [
        (b"", "is empty", "leave it out"),
        (b"\n \n", "is empty", "leave it out"),
        (GOOD + b"\n" + '{"word": "Grün"}'.encode("latin-1"), "line 2: not UTF-8", "iconv"),
        ('{"word": "a"}'.encode("utf-16"), "line 1: not UTF-8", "iconv"),
        (b"\x1f\x8b broken", "not UTF-8", "iconv"),
    ],
)
def test_files_that_are_no_records(tmp_path, data, said, fix):
    (tmp_path / "rows.jsonl").write_bytes(data)
    with pytest.raises(StoreError, match=said) as error:
        read_jsonl(tmp_path / "rows.jsonl", Word)
    assert fix in error.value.fix


def test_a_byte_order_mark_is_no_fault_and_a_broken_archive_is(tmp_path):
    (tmp_path / "bom.jsonl").write_bytes(b"\xef\xbb\xbf" + GOOD)
    assert read_jsonl(tmp_path / "bom.jsonl", Word)[0].word == "fine"
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(GOOD * 50)[:-20])
    with pytest.raises(StoreError, match="cannot read"):
        read_jsonl(tmp_path / "cut.jsonl.gz", Word)
    with pytest.raises(StoreError, match="does not exist"):
        read_jsonl(tmp_path / "none.jsonl", Word)
    (tmp_path / "none.jsonl").touch()
    assert read_jsonl(tmp_path / "none.jsonl", Word, allow_empty=True) == []


@given(
    st.dictionaries(
        st.from_regex(r"[a-z]{1,3}(/[a-z]{1,3})?", fullmatch=True).filter(lambda n: n.count("/") < 2), st.binary(max_size=20), max_size=4
    )
)
@settings(max_examples=40)
def test_an_output_comes_back_as_it_was_put(tmp_path_factory, content):
    if any(a != b and b.startswith(a + "/") for a in content for b in content):
        return
    cache = Artifacts(tmp_path_factory.mktemp("cache"))
    with cache.put("stage", "ab") as work:
        for name, data in content.items():
            (work / name).parent.mkdir(exist_ok=True, parents=True)
            (work / name).write_bytes(data)
    place = cache.get("stage", "ab")
    assert {n: (place / n).read_bytes() for n in content} == content
    assert cache.verify("stage", "ab") == []


def test_a_damaged_output_is_made_again(tmp_path):
    cache = Artifacts(tmp_path)
    for text in ("first", "second!"):
        assert cache.get("stage", "ab") is None
        with cache.put("stage", "ab") as work:
            (work / "a.txt").write_text(text)
        place = cache.get("stage", "ab")
        (place / "a.txt").unlink()
        (place / "a.txt").write_text("cut")
        (place / "more.txt").write_text("")
        assert cache.verify("stage", "ab") == ["a.txt", "more.txt"]
    assert list(cache.work.iterdir()) == []


def test_what_a_run_shares_cannot_be_written_to(tmp_path):
    with Artifacts(tmp_path).put("stage", "ab") as work:
        (work / "a").write_text("1")
    assert (Artifacts(tmp_path).get("stage", "ab") / "a").stat().st_mode & 0o777 == 0o444


def test_only_dead_work_of_this_machine_is_cleared(tmp_path):
    cache = Artifacts(tmp_path)
    with cache.put("on@8", "ab") as own:
        for host, pid in ((platform.node(), 2**22 + 1), ("elsewhere", 2**22 + 1), ("elsewhere", os.getpid())):
            (cache.work / f"on@8-ab@{host}@{pid}@12345678").mkdir()
        with cache.put("other", "cd") as work:
            (work / "a").write_text("1")
        assert {p.name.split("@")[2] for p in cache.work.iterdir() if p != own} == {"elsewhere"}
        assert own.exists()
        assert len(list(cache.work.iterdir())) == 3


def test_two_who_make_the_same_output_agree(tmp_path):
    cache = Artifacts(tmp_path)
    with cache.put("stage", "ab") as slow:
        (slow / "a").write_text("1")
        with cache.put("stage", "ab") as fast:
            (fast / "a").write_text("1")
        assert cache.get("stage", "ab")
    assert cache.verify("stage", "ab") == []
    assert list(cache.work.iterdir()) == []


def test_a_killed_stage_leaves_no_result_and_its_folder_is_cleared(tmp_path):
    code = f"""
import os, signal
from distillery.core.store import Artifacts
with Artifacts({str(tmp_path)!r}).put("stage", "ab") as work:
    (work / "half").write_text("x")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert run_code(code).returncode == -signal.SIGKILL
    cache = Artifacts(tmp_path)
    assert cache.get("stage", "ab") is None
    assert len(list(cache.work.iterdir())) == 1
    with cache.put("other", "cd") as work:
        (work / "a").write_text("1")
    assert list(cache.work.iterdir()) == []


@pytest.mark.parametrize("name", ["../x", "a/b", "", "..", "a\\b"])
def test_no_name_leads_out_of_the_cache(tmp_path, name):
    with pytest.raises(StoreError, match="cannot name"):
        Artifacts(tmp_path).get(name, "ab")
    with pytest.raises(StoreError, match="cannot name"):
        Artifacts(tmp_path).get("stage", name)


def test_a_run_survives_the_cache(tmp_path):
    cache, run = Artifacts(tmp_path / "cache"), RunFolder(tmp_path / "runs" / "3f9c")
    with cache.put("export", "ab") as work:
        (work / "model.onnx").write_text("weights")
    run.link(cache.get("export", "ab"), "onnx/fp32")
    assert (run.path / "onnx/fp32/model.onnx").stat().st_ino == (cache.get("export", "ab") / "model.onnx").stat().st_ino
    subprocess.run(["rm", "-rf", str(tmp_path / "cache")], check=True)
    assert (run.path / "onnx/fp32/model.onnx").read_text() == "weights"
    assert not (run.path / "onnx/fp32/artifact.json").exists()


def test_without_hard_links_files_are_copied(tmp_path, monkeypatch):
    def no_link(*_args):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", no_link)
    (tmp_path / "a").write_text("1")
    link_file(tmp_path / "a", tmp_path / "out" / "b")
    assert (tmp_path / "out" / "b").read_text() == "1"


def test_runs_are_found_by_latest_id_and_beginning(tmp_path, monkeypatch):
    for i, name in enumerate(("aa11", "ab22", "cc33")):
        run = RunFolder(tmp_path / name)
        run.write_json("manifest.json", {"run_id": name})
        os.utime(tmp_path / name / "manifest.json", (i, i))
        if i == 2:
            monkeypatch.setattr(os, "symlink", lambda *_a: (_ for _ in ()).throw(OSError("no symlinks here")))
        run.make_latest()
        assert open_run(tmp_path).path.name == name
    (tmp_path / "unfinished").mkdir()
    assert [r.path.name for r in list_runs(tmp_path)] == ["aa11", "ab22", "cc33"]
    assert open_run(tmp_path, "ab").manifest == {"run_id": "ab22"}
    with pytest.raises(StoreError, match="2 runs are called 'a'"):
        open_run(tmp_path, "a")
    with pytest.raises(StoreError, match="0 runs") as said:
        open_run(tmp_path, "zz")
    assert said.value.fix == "choose one of aa11, ab22, cc33"
    with pytest.raises(StoreError) as said:
        open_run(tmp_path / "unfinished")
    assert "none yet" in said.value.fix
