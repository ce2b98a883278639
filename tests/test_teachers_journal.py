"""The journal: what counts as the same request, what is served, what a full or damaged file does."""

import sqlite3
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distillery.core.errors import DistilleryError
from distillery.teachers.journal import Journal, read_calls, request_digest
from distillery.teachers.protocol import ChatResult, Message, Task, ask_all, failed, user_request

BASE = user_request("k", "prompt", temperature=0.5, seed=1)
IDENTITY = {"model": "m", "digest": "1"}


class Teacher:
    name, identity = "t", IDENTITY

    def __init__(self, finish="stop", fail=False):
        self.finish, self.fail, self.asked = finish, fail, []

    async def stream(self, requests):
        for r in requests:
            self.asked.append(r.key)
            yield failed(r, OSError("no")) if self.fail else ChatResult(r.key, f"{r.max_tokens}", self.finish, completion_tokens=1)

    async def close(self): pass


@pytest.mark.parametrize("change", [
    {"messages": (Message("user", "other"),)}, {"messages": (Message("system", "prompt"),)}, {"temperature": 0.6},
    {"top_p": 0.9}, {"top_k": 3}, {"seed": 2}, {"stop": ("x",)}, {"repetition_penalty": 1.1}, {"logprobs": 2}])
def test_all_that_changes_an_answer_changes_the_digest(change):
    assert request_digest(replace(BASE, **change), IDENTITY) != request_digest(BASE, IDENTITY)


@pytest.mark.parametrize("change", [{"key": "other"}, {"task": Task("ask", "p")}, {"max_tokens": 7}])
def test_what_changes_no_answer_leaves_the_digest(change):
    assert request_digest(replace(BASE, **change), IDENTITY) == request_digest(BASE, IDENTITY)


def test_another_model_is_asked_anew():
    assert request_digest(BASE, IDENTITY) != request_digest(BASE, IDENTITY | {"digest": "2"})


@pytest.mark.parametrize(("finish", "limits", "asked"), [
    ("stop", (10, 20), 1), ("stop", (20, 10), 2), ("length", (10, 20), 2), ("length", (10, 10), 1)])
def test_a_finished_answer_survives_a_larger_limit_only(tmp_path, finish, limits, asked):
    journal, teacher = Journal(tmp_path / "c.sqlite"), Teacher(finish)
    for limit in limits: journal.ask(teacher, [replace(BASE, max_tokens=limit)])
    assert len(teacher.asked) == asked


def test_failures_are_recorded_and_asked_again(tmp_path):
    journal = Journal(tmp_path / "c.sqlite")
    assert not journal.ask(Teacher(fail=True), [BASE])["k"].ok
    assert journal.ask(Teacher(), [BASE])["k"].ok
    assert [(c.attempt, c.error) for c in read_calls(journal)] == [(1, "OSError: no"), (2, None)]
    assert len(list(read_calls(journal, failures=True))) == 1


@settings(max_examples=30, deadline=None)
@given(text=st.text(), prompt=st.text(min_size=1))
def test_any_text_comes_back(tmp_path_factory, text, prompt):
    journal = Journal(tmp_path_factory.mktemp("j") / "c.sqlite")
    request, result = user_request("k", prompt), ChatResult("k", text, "stop", 1, 2, 3.5)
    try: digest = request_digest(request, IDENTITY)
    except UnicodeEncodeError: return
    journal.record(digest, request, result, "t")
    assert journal.lookup(digest, request) == result


def test_what_was_committed_before_an_error_is_kept(tmp_path):
    class Dies(Teacher):
        async def stream(self, requests):
            yield ChatResult(requests[0].key, "first", "stop")
            raise DistilleryError("gone")
    journal, two = Journal(tmp_path / "c.sqlite"), [BASE, replace(BASE, key="l", seed=5)]
    with pytest.raises(DistilleryError): journal.ask(Dies(), two)
    rest = Teacher()
    assert journal.ask(rest, two)["k"].text == "first"
    assert rest.asked == ["l"]


def test_full_disk_is_named_and_loses_nothing(tmp_path):
    journal = Journal(tmp_path / "c.sqlite")
    journal.ask(Teacher(), [BASE])
    pages = journal._db.execute("pragma page_count").fetchone()[0]
    journal._db.execute(f"pragma max_page_count = {pages}")
    many = [user_request(str(i), "long " * 200 + str(i)) for i in range(500)]
    with pytest.raises(DistilleryError, match="free some space"): journal.ask(Teacher(), many)
    journal.close()
    again = Teacher()
    assert Journal(tmp_path / "c.sqlite").ask(again, [BASE])["k"].ok
    assert not again.asked


def test_two_journals_share_one_file(tmp_path):
    a, b = Journal(tmp_path / "c.sqlite"), Journal(tmp_path / "c.sqlite")
    for i in range(20): (a, b)[i % 2].ask(Teacher(), [user_request(str(i), str(i))])
    assert sqlite3.connect(tmp_path / "c.sqlite").execute("select count(*) from calls").fetchone() == (20,)
    assert a.lookup(request_digest(user_request("x", "19"), IDENTITY), user_request("x", "19")).text == "64"


class Forgets(Teacher):
    async def stream(self, requests):
        for r in requests[1:]: yield ChatResult(r.key, "", "stop")


class Invents(Teacher):
    async def stream(self, requests):
        for r in [*requests, *requests]: yield ChatResult(r.key, "", "stop")


@pytest.mark.parametrize(("teacher", "word"), [(Forgets(), "lost 1 of 2"), (Invents(), "nobody waits for")])
def test_broken_teachers_are_named(teacher, word):
    with pytest.raises(DistilleryError, match=word): ask_all(teacher, [user_request("a", "1"), user_request("b", "2")])


def test_inside_a_running_event_loop():
    import asyncio
    async def main(): return ask_all(Teacher(), [BASE])
    assert asyncio.run(main())[0].ok
