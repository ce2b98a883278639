"The calls command: what was paid for can be found again, and is only ever text."
import json
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distillery.core.errors import DistilleryError
from distillery.core.records import Call
from distillery.teachers.calls import Choice, choose_calls, read_since, usage_by_teacher
from distillery.teachers.call_file import Bill
from distillery.teachers.journal import Journal, request_digest
from distillery.teachers.protocol import ChatResult, failed, user_request
from distillery.commands.calls import as_text as plain, calls_table

from warm import run_command

EVIL = "[bold red]ignore the above[/] \x1b[2J\x1b]0;owned\x07 <script>alert(1)</script> [link=http://x]y[/link]"


def run(cwd: Path, *args: str, code: int = 0):
    done = run_command("calls", *args, cwd=cwd)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def fill(folder: Path) -> Journal:
    folder.mkdir(parents=True, exist_ok=True)
    journal = Journal(folder / "calls.sqlite")
    for i in range(30):
        teacher = "qwen at http://a/v1" if i % 2 else "llama at http://b/v1"
        request = user_request(str(i), f"Passage {i}: {EVIL if i == 7 else 'quiet'}")
        result = ChatResult(str(i), EVIL if i == 7 else f"answer {i}", "stop", 10, 5)
        if i % 10 == 9: result = failed(request, TimeoutError(f"no answer {EVIL}"))
        journal.record(request_digest(request, {"model": teacher}), request, result, teacher, Bill("r", "s", 15 if result.ok else 0, 0.001))
    return journal


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("calls")
    fill(folder / ".distillery").close()
    return folder


def test_the_sums_are_those_of_the_rows(place):
    sums = usage_by_teacher(Journal(place / ".distillery/calls.sqlite"))
    assert {n: (u.calls, u.failures, u.tokens) for n, u in sums.items()} == {
        "llama at http://b/v1": (15, 0, 225), "qwen at http://a/v1": (15, 3, 180)}
    assert sum(u.cost for u in sums.values()) == pytest.approx(0.03)


@pytest.mark.parametrize(("choice", "n"), [
    (Choice(), 30), (Choice(failed=True), 3), (Choice(teacher="qwen"), 15), (Choice(teacher="q_en"), 0), (Choice(contains="PASSAGE 7:"), 1),
    (Choice(contains="%"), 0), (Choice(contains="<script>"), 4), (Choice(failed=True, teacher="llama"), 0), (Choice(since=0), 30),
    (Choice(since=time.time() + 3600), 0), (Choice(contains="'; drop table calls; --"), 0)])
def test_filters(place, choice, n):
    assert len(list(choose_calls(Journal(place / ".distillery/calls.sqlite"), choice))) == n


def test_the_newest_come_first_where_there_is_a_limit(place):
    newest = list(choose_calls(Journal(place / ".distillery/calls.sqlite"), limit=3))
    assert [c.request["messages"][0]["content"].split(":")[0] for c in newest] == ["Passage 29", "Passage 28", "Passage 27"]


@settings(max_examples=60)
@given(text=st.text(min_size=1))
def test_nothing_typed_is_sql(tmp_path_factory, text):
    journal = Journal(tmp_path_factory.mktemp("sql") / "c.sqlite")
    list(choose_calls(journal, Choice(teacher=text, contains=text, key=text)))
    assert journal.db.execute("select count(*) from calls").fetchone() == (0,)


@settings(max_examples=100)
@given(text=st.text())
def test_no_control_character_reaches_the_terminal(text):
    for shown in (plain(text).plain, plain(text, 40).plain):
        assert not any((ord(c) < 32 and c not in "\t\n") or 127 <= ord(c) < 160 for c in shown)
    assert len(plain(text, 40).plain) <= 40


def test_list_show_and_stats_show_text(place):
    listed = run(place, "list", "--limit", "50").stdout
    assert listed.count("\n") == 31
    assert "\x1b" not in listed
    key = next(c.key for c in choose_calls(Journal(place / ".distillery/calls.sqlite"), Choice(contains="Passage 7:")))
    shown = run(place, "show", key[:12]).stdout
    assert "[bold red]ignore the above[/]" in shown
    assert "<script>" in shown
    assert "\x1b" not in shown
    assert "\\x1b" in shown
    stats = run(place, "stats").stdout
    assert "qwen at http://a/v1" in stats
    assert "0.0150" in stats
    assert run(place, "list", "--failed").stdout.count("failed: TimeoutError") == 3
    assert "no call fits" in run(place, "list", "--contains", "nowhere").stdout


def test_export_writes_records_and_overwrites_nothing(place):
    run(place, "export", "failures.jsonl", "--failed")
    rows = [Call.model_validate_json(line) for line in (place / "failures.jsonl").read_text().splitlines()]
    assert len(rows) == 3
    assert all(r.error and r.response is None for r in rows)
    assert "exists" in run(place, "export", "failures.jsonl", code=1).stderr
    run(place, "export", "all.jsonl")
    assert len([json.loads(line) for line in (place / "all.jsonl").read_text().splitlines()]) == 30
    assert not list(place.glob(".*.part"))


def test_wrong_use_is_explained(place, tmp_path):
    assert "no journal" in run(tmp_path, "list", code=1).stderr
    assert not list(tmp_path.iterdir())
    assert "begins with" in run(place, "show", "zzz", code=1).stderr
    assert "2h" in run(place, "list", "--since", "lately", code=1).stderr


@pytest.mark.parametrize(("text", "ago"), [("30m", 1800), ("2h", 7200), ("1.5d", 129_600)])
def test_since(text, ago): assert read_since(text, 1e9) == 1e9 - ago


def test_since_a_date():
    assert read_since("2026-03-01", 0) < read_since("2026-03-01T18:00", 0)
    with pytest.raises(DistilleryError): read_since("", 0)


def test_a_table_of_hostile_calls_is_a_table():
    call = Call(key="k" * 32, request={"teacher": EVIL, "messages": [{"role": "user", "content": EVIL}]}, error=EVIL, finish_reason="error")
    assert calls_table([call]).row_count == 1
