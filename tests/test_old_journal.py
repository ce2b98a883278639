"Nothing paid is lost: a journal that an earlier version wrote (tests/keep_journal.py) serves the same stages without one request."
import json
import shutil
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

import pytest
from keep_journal import KEPT, made, run_stages
from teachers_server import Server
from typed import distillery

from distillery.core.errors import DistilleryError

NAMES = ("plain", "grouped")


def copied(place: Path) -> Path:
    "A folder with a copy of the old journal, which is never opened itself."
    place.mkdir(exist_ok=True)
    shutil.copyfile(KEPT / "calls.sqlite", place / "calls.sqlite")
    return place


def query(place: Path, sql: str) -> list[tuple]:
    "What a journal says."
    with closing(sqlite3.connect(place / "calls.sqlite")) as db, db: return db.execute(sql).fetchall()


def rows_of(place: Path) -> list[tuple]:
    "All calls of a journal, the oldest first."
    return query(place, "select digest, max_tokens, response, error, logprobs, attempt from calls order by id")


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    return copied(tmp_path_factory.mktemp("old"))


@pytest.fixture(scope="module")
def again(tmp_path_factory):
    "Both runs once more, on a copy of the old journal: what their stages made, the server's requests, and the folder."
    place, found = copied(tmp_path_factory.mktemp("again")), {}
    with Server() as server:
        for name in NAMES:
            with suppress(DistilleryError): found[name] = made(run_stages(server.url, place, name))  # fails where this server had to answer
    return found, server.bodies, place


def test_the_server_is_asked_nothing(again, old):
    _, bodies, place = again
    assert [body["messages"][-1]["content"][-80:] for body in bodies] == []
    assert rows_of(place) == rows_of(old)  # nor is any model on this machine


@pytest.mark.parametrize("name", NAMES)
def test_the_same_is_made_of_the_answers(again, name):
    before, now = json.loads((KEPT / f"{name}.json").read_text("utf-8")), again[0].get(name, {})
    assert now.keys() == before.keys()
    assert {k: len(v) for k, v in now.items()} == {k: len(v) for k, v in before.items()}
    assert now == before


def test_every_kind_of_request_is_kept(old):
    "Plain and by schema, with log probabilities and without, cool and warm, of every stage that asks."
    rows = query(old, "select request, stage, logprobs from calls where teacher like 'm at %'")
    asked = [(json.loads(request), stage.partition("/")[0], logprobs) for request, stage, logprobs in rows]
    assert len(asked) > 150
    assert {stage.partition("-")[0] for _, stage, _ in asked} == {"generate", "teach", "temperature", "prompts", "grouping"}
    assert {bool(request["schema"]) for request, *_ in asked} == {bool(logprobs) for *_, logprobs in asked} == {True, False}
    assert {0.3, 0.9} < {request["temperature"] for request, *_ in asked}


def test_a_call_that_the_journal_lacks_is_asked_for(tmp_path):
    query(copied(tmp_path), "delete from calls where id = (select min(id) from calls where stage like 'grouping/%')")
    with Server() as server: run_stages(server.url, tmp_path, "grouped")
    assert len(server.bodies) >= 1


def test_the_commands_read_it(tmp_path):
    calls = rows_of(copied(tmp_path / ".distillery"))
    listed, stats = distillery("calls", "list", "--limit", "500", cwd=tmp_path), distillery("calls", "stats", cwd=tmp_path)
    assert (listed.returncode, stats.returncode) == (0, 0), listed.stderr + stats.stderr
    assert listed.stdout.count("\n") >= len(calls)
    assert "m at http://127.0.0.1" in stats.stdout
    assert distillery("calls", "export", "all.jsonl", cwd=tmp_path).returncode == 0
    exported = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text("utf-8").splitlines()]
    assert [row["response"] for row in exported] == [row[2] for row in calls]
