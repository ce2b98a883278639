"""The journal: what counts as the same request, what is served, what a full or damaged file does."""

import asyncio
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distillery.core.errors import DistilleryError
from distillery.teachers.call_file import LAYOUT, CallFile
from distillery.teachers.calls import Choice, choose_calls
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


def test_of_requests_that_do_equally_well_the_answered_one_is_taken_and_else_the_last(tmp_path):
    journal, teacher = Journal(tmp_path / "c.sqlite"), Teacher()
    alike = [replace(BASE, seed=n) for n in range(3)]
    assert journal.first_known(teacher, alike) == alike[2]
    journal.ask(teacher, alike[1:2])
    assert journal.first_known(teacher, alike) == alike[1]


def test_failures_are_recorded_and_asked_again(tmp_path):
    journal = Journal(tmp_path / "c.sqlite")
    assert not journal.ask(Teacher(fail=True), [BASE])["k"].ok
    assert journal.ask(Teacher(), [BASE])["k"].ok
    assert [(c.attempt, c.error) for c in read_calls(journal)] == [(1, "OSError: no"), (2, None)]
    assert len(list(read_calls(journal, failures=True))) == 1


@settings(max_examples=30)
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
    pages = journal.db.execute("pragma page_count").fetchone()[0]
    journal.db.execute(f"pragma max_page_count = {pages}")
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


@pytest.mark.parametrize(("teacher", "word"), [(Forgets(), "lost 1 of 2"), (Invents(), "was not asked")])
def test_broken_teachers_are_named(teacher, word):
    with pytest.raises(DistilleryError, match=word): ask_all(teacher, [user_request("a", "1"), user_request("b", "2")])


def test_inside_a_running_event_loop():
    async def main(): return ask_all(Teacher(), [BASE])
    assert asyncio.run(main())[0].ok


class Cuts(Teacher):
    "Every third answer is longer than 100 tokens."
    async def stream(self, requests):
        for r in requests:
            self.asked.append(r.key)
            long = int(r.key) % 3 == 0 and r.max_tokens < 100
            yield ChatResult(r.key, f"{r.max_tokens}", "length" if long else "stop", completion_tokens=r.max_tokens if long else 20)


def test_from_80_to_128_tokens_asks_again_only_for_the_answers_that_were_cut(tmp_path):
    journal, teacher = Journal(tmp_path / "c.sqlite"), Cuts()
    ask = lambda most: journal.ask(teacher, [user_request(str(i), str(i), max_tokens=most) for i in range(30)])
    assert sum(r.finish_reason == "length" for r in ask(80).values()) == 10
    teacher.asked.clear()
    assert {r.finish_reason for r in ask(128).values()} == {"stop"}
    assert teacher.asked == [str(i) for i in range(0, 30, 3)]
    teacher.asked.clear()
    ask(128)
    ask(500)
    assert teacher.asked == []


def test_a_schema_is_part_of_the_question_and_no_schema_keeps_the_old_digest():
    assert request_digest(replace(BASE, schema="{}"), IDENTITY) != request_digest(BASE, IDENTITY)
    assert request_digest(user_request("k", "prompt", temperature=0.5, seed=1), {"model": "m", "digest": "1"}) == OLD_DIGEST


OLD_DIGEST = "139133e50a17708ce2c796c8582d0727"  # of the first version


OLD = """create table calls (
    id integer primary key, digest text not null, max_tokens integer not null, teacher text not null, request text not null,
    response text, error text, finish_reason text not null, prompt_tokens integer, completion_tokens integer,
    latency_ms real not null, logprobs text, attempt integer not null, asked_at real not null);
    create index calls_by_digest on calls (digest, max_tokens)"""


def old_journal(path, n=5):
    db = sqlite3.connect(path)
    db.executescript(OLD)
    for i in range(n):
        request = user_request(str(i), f"old {i}")
        db.execute("insert into calls values (null, ?, 64, 't', '{}', ?, null, 'stop', 3, 4, 1.5, null, 1, 7.0)",
                   (request_digest(request, IDENTITY), f"said {i}"))
    db.commit()
    db.close()


def test_a_journal_of_the_first_layout_is_migrated_and_loses_nothing(tmp_path):
    old_journal(tmp_path / "c.sqlite")
    teacher = Teacher()
    for _ in range(2):
        journal = Journal(tmp_path / "c.sqlite")
        said = journal.ask(teacher, [user_request(str(i), f"old {i}") for i in range(5)])
        assert [r.text for r in said.values()] == [f"said {i}" for i in range(5)]
        assert journal.db.execute("pragma user_version").fetchone() == (LAYOUT,)
        journal.close()
    assert teacher.asked == []


def test_two_processes_may_migrate_at_once(tmp_path):
    old_journal(tmp_path / "c.sqlite")
    found, errors = [], []

    def open_it():
        try: found.append(len(list(read_calls(Journal(tmp_path / "c.sqlite")))))
        except Exception as error: errors.append(error)

    threads = [threading.Thread(target=open_it) for _ in range(8)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert errors == []
    assert found == [5] * 8


def test_a_journal_of_a_newer_version_is_refused_and_left_alone(tmp_path):
    Journal(tmp_path / "c.sqlite").close()
    db = sqlite3.connect(tmp_path / "c.sqlite")
    db.execute(f"pragma user_version = {LAYOUT + 1}")
    db.close()
    before = (tmp_path / "c.sqlite").read_bytes()
    with pytest.raises(DistilleryError, match="written by a newer version") as said: Journal(tmp_path / "c.sqlite")
    assert "upgrade" in said.value.fix
    assert (tmp_path / "c.sqlite").read_bytes() == before


def test_reasoning_is_kept_apart_and_failures_stand_beside_answers(tmp_path):
    class Thinks(Teacher):
        async def stream(self, requests):
            for r in requests:
                yield failed(r, ValueError("bad")) if r.key == "1" else ChatResult(r.key, "text", "stop", reasoning="hm, <b>well</b>")
    journal = Journal(tmp_path / "c.sqlite")
    journal.ask(Thinks(), [user_request(str(i), str(i)) for i in range(3)])
    served = journal.ask(Teacher(), [user_request("9", "0")])["9"]
    assert (served.text, served.reasoning) == ("text", "hm, <b>well</b>")
    assert [c.error for c in choose_calls(journal)] == [None, "ValueError: bad", None]
    assert [c.error for c in choose_calls(journal, Choice(failed=True))] == ["ValueError: bad"]


WRITER = """
import sys
from distillery.teachers.journal import Journal
from distillery.teachers.protocol import ChatResult, user_request
class Teacher:
    name, identity = "t", {"model": "m", "digest": "1"}
    async def stream(self, requests):
        for r in requests: yield ChatResult(r.key, "word " * 40 + r.key, "stop")
    async def close(self): pass
def said(pair): sys.stdout.write(pair[0].key + "\\n"); sys.stdout.flush()
for pair in Journal(sys.argv[1]).stream(Teacher(), (user_request(str(i), f"prompt {i}") for i in range(100_000)), window=1): said(pair)
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    "A journal whose writer was killed with -9, its log still beside it, and the keys that were committed before."
    path = tmp_path_factory.mktemp("killed") / "c.sqlite"
    child = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    keys = [child.stdout.readline().strip() for _ in range(1500)]
    child.send_signal(signal.SIGKILL)
    child.wait()
    return path, keys


def answered(path):
    journal = Journal(path)
    try: return {c.request["messages"][0]["content"].split()[1] for c in read_calls(journal)}
    finally: journal.close()


def copy_of(path, folder):
    for part in path.parent.glob("c.sqlite*"):
        if not part.name.endswith("-shm"): shutil.copy(part, folder / part.name)
    return folder / path.name


def test_kill_9_loses_no_committed_answer(killed, tmp_path):
    path, keys = killed
    assert set(keys) <= answered(copy_of(path, tmp_path))


@pytest.mark.parametrize("seed", range(12))
def test_a_torn_log_loses_only_what_was_torn_off(killed, tmp_path, seed):
    path, keys = killed
    file = copy_of(path, tmp_path)
    log, chance = tmp_path / "c.sqlite-wal", random.Random(seed)
    whole = log.stat().st_size
    assert whole > 100_000
    cut = chance.randrange(32, whole)
    os.truncate(log, cut)
    left = answered(file)
    order = [k for k in keys if k in left]
    assert order == keys[: len(order)]  # a beginning of what was committed: nothing from the middle is missing
    again = Teacher()
    Journal(file).ask(again, [user_request(k, f"prompt {k}") for k in keys[:50]])
    assert len(again.asked) == 50 - len([k for k in keys[:50] if k in left])


@pytest.mark.parametrize("seed", range(12))
def test_a_cut_file_says_what_to_do_or_loses_nothing(killed, tmp_path, seed):
    path, keys = killed
    file = copy_of(path, tmp_path)
    Journal(file).close()  # the log is folded in
    os.truncate(file, random.Random(seed).randrange(1, file.stat().st_size))
    try: left = answered(file)
    except DistilleryError as error: said = error.fix
    else: said = "move" if set(keys) <= left else "committed answers are missing"
    assert "move" in said


def test_a_stream_asks_serves_and_joins(tmp_path):
    journal, teacher = Journal(tmp_path / "c.sqlite"), Teacher()
    many = [user_request(str(i), f"prompt {i // 2}") for i in range(1000)]
    first = {r.key: result.text for r, result in journal.stream(teacher, iter(many), window=64)}
    assert (len(first), len(teacher.asked), journal.asked, journal.served) == (1000, 500, 500, 500)
    again = {r.key: result.text for r, result in journal.stream(teacher, many)}
    assert again == first
    assert len(teacher.asked) == 500


class Slots(Teacher):
    "A server with eight slots: pulls a request as one falls free."
    lazy = True

    async def stream(self, requests):
        source, running, self.loads = iter(requests), set(), []
        try:
            while True:
                while len(running) < 8 and (r := next(source, None)):
                    self.asked.append(r.key)
                    running.add(asyncio.create_task(self.answer(r)))
                self.loads.append(len(running))
                if not running: return
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done: yield task.result()
        finally:
            for task in running: task.cancel()

    async def answer(self, r):
        await asyncio.sleep(0.001 * (hash(r.key) % 4))
        return ChatResult(r.key, "yes", "stop", 10, 10)


def test_a_lazy_teacher_is_kept_busy_and_fed_no_more_than_it_takes(tmp_path):
    journal, teacher, read = Journal(tmp_path / "c.sqlite"), Slots(), []

    def source():
        for i in range(600):
            read.append(i)
            yield user_request(str(i), str(i))

    answers = journal.stream(teacher, source(), window=32)
    next(answers)
    time.sleep(0.3)
    assert len(read) <= 4 * 32  # nobody listens: asking waits
    assert len(list(answers)) == 599
    assert max(teacher.loads) == 8


def test_who_stops_listening_stops_the_asking(tmp_path):
    journal, teacher = Journal(tmp_path / "c.sqlite"), Slots()
    answers = journal.stream(teacher, (user_request(str(i), str(i)) for i in range(10_000)), window=16)
    for _ in range(5): next(answers)
    answers.close()
    asked = len(teacher.asked)
    assert asked < 100
    assert not any(t.name == "journal" for t in threading.enumerate())
    journal.ask(Teacher(), [user_request("x", "x")])


def test_an_error_in_the_source_or_the_teacher_is_heard_and_the_rest_kept(tmp_path):
    def source():
        yield user_request("0", "0")
        raise DistilleryError("the source broke")

    class Breaks(Teacher):
        async def stream(self, requests):
            yield ChatResult(requests[0].key, "first", "stop")
            raise DistilleryError("the server is gone")
    journal = Journal(tmp_path / "c.sqlite")
    with pytest.raises(DistilleryError, match="source broke"): list(journal.stream(Teacher(), source(), window=1))
    two = [user_request("a", "a"), user_request("b", "b")]
    with pytest.raises(DistilleryError, match="server is gone"): list(journal.stream(Breaks(), two))
    rest = Teacher()
    list(journal.stream(rest, two))
    assert rest.asked == ["b"]


@pytest.mark.parametrize(("teacher", "word"), [(Forgets(), "lost 1 request"), (Invents(), "was not asked")])
def test_the_journal_names_broken_teachers(tmp_path, teacher, word):
    with pytest.raises(DistilleryError, match=word):
        Journal(tmp_path / "c.sqlite").ask(teacher, [user_request("a", "1"), user_request("b", "2")])


def test_one_key_for_two_questions_is_refused(tmp_path):
    with pytest.raises(DistilleryError, match="share the key"):
        Journal(tmp_path / "c.sqlite").ask(Teacher(), [user_request("a", "1"), user_request("a", "2")])


def test_a_stand_in_is_never_taken_for_the_first_and_is_not_paid_twice(tmp_path):
    class Second(Teacher):
        name, identity = "second", {"model": "other"}

    class StoodIn(Teacher):
        second = Second()

        async def stream(self, requests):
            for r in requests: yield ChatResult(r.key, "from the second", "stop", by="second")

    journal, rest = Journal(tmp_path / "c.sqlite"), Teacher()
    assert journal.ask(StoodIn(), [BASE])["k"].by == "second"
    assert [c.request["teacher"] for c in read_calls(journal)] == ["second"]
    assert journal.ask(StoodIn(), [BASE])["k"].by == "second"
    assert journal.asked == 1
    assert journal.ask(rest, [BASE])["k"].text == "64"
    assert journal.ask(Second(), [BASE])["k"].text == "from the second"
    assert rest.asked == ["k"]


def test_answers_of_one_moment_share_a_commit_that_comes_before_anything_else_is_sent(tmp_path):
    "What the loop does next finds the rows on disk, seen by another process's connection."
    path, seen = tmp_path / "calls.sqlite", []
    file, other = CallFile(path), sqlite3.connect(path)
    rows = lambda: other.execute("select count(*) from calls").fetchone()[0]

    async def turn():
        with file.by_turn():
            for i in range(3): file.record(f"d{i}", user_request(f"q{i}", "Q"), ChatResult(f"q{i}", "A", "stop"), "t")
            seen.append(rows())
            await asyncio.create_task(later())

    async def later(): seen.append(rows())

    asyncio.run(turn())
    assert seen == [0, 3]


def test_a_shared_commit_that_fails_stops_the_asking(tmp_path):
    class Full:
        in_transaction = True

        def __init__(self, db): self.db = db

        def execute(self, statement, *values):
            if statement == "commit": raise sqlite3.OperationalError("database or disk is full")
            return self.db.execute(statement, *values)

    file = CallFile(tmp_path / "calls.sqlite")

    async def turn():
        with file.by_turn():
            file.record("d", user_request("q", "Q"), ChatResult("q", "A", "stop"), "t")
            file.db = Full(file.db)
            await asyncio.sleep(0)
            file.record("e", user_request("r", "Q"), ChatResult("r", "A", "stop"), "t")
            raise AssertionError("the next result is not taken")

    with pytest.raises(DistilleryError, match="disk is full"): asyncio.run(turn())


# How a teacher is fed, and when its answers are on disk

def test_a_lazy_teacher_gets_the_next_block_before_the_last_is_done(tmp_path):
    journal, teacher = Journal(tmp_path / "c.sqlite"), Slots()
    for _ in journal.stream(teacher, (user_request(str(i), str(i)) for i in range(200)), window=16): pass
    assert set(teacher.loads[:-9]) == {8}, "it never runs dry between two blocks"


def test_any_other_teacher_is_handed_a_block_at_a_time(tmp_path):
    class Lists(Teacher):
        async def stream(self, requests):
            some = list(requests)
            self.asked.append(len(some))
            for r in some: yield ChatResult(r.key, "yes", "stop")

    journal, teacher = Journal(tmp_path / "c.sqlite"), Lists()
    assert len(list(journal.stream(teacher, (user_request(str(i), str(i)) for i in range(100)), window=16))) == 100
    assert teacher.asked == [16] * 6 + [4]


def test_a_stream_holds_no_more_results_than_its_window(tmp_path):
    journal, teacher = Journal(tmp_path / "c.sqlite"), Teacher()
    answers = journal.stream(teacher, (user_request(str(i), str(i)) for i in range(100)), window=5)
    next(answers)
    time.sleep(0.3)
    assert journal.asked == 1 + 5
    assert len(list(answers)) == 99


@pytest.mark.parametrize(("traits", "shared"), [({}, 0), ({"instant": True}, 1), ({"lazy": True}, 1)])
def test_a_slow_teachers_answers_are_committed_one_by_one_and_those_of_one_moment_together(tmp_path, traits, shared):
    class Reads(Teacher):
        async def stream(self, requests):
            for r in requests:
                self.asked.append(other.execute("select count(*) from calls").fetchone()[0])
                yield ChatResult(r.key, "yes", "stop")

    journal, teacher, said = Journal(tmp_path / "c.sqlite"), Reads(), []
    other = sqlite3.connect(tmp_path / "c.sqlite")
    for name, value in traits.items(): setattr(teacher, name, value)
    journal.db.set_trace_callback(said.append)
    journal.ask(teacher, [user_request(str(i), str(i)) for i in range(20)])
    assert sum(s == "begin" for s in said) == sum(s == "commit" for s in said) == shared
    assert teacher.asked == ([0] * 20 if shared else list(range(20)))
    assert other.execute("select count(*) from calls").fetchone() == (20,)


def test_requests_that_are_the_same_get_one_answer_under_a_key_each(tmp_path):
    journal, teacher = Journal(tmp_path / "c.sqlite"), Teacher()
    found = journal.ask(teacher, [user_request(k, "prompt") for k in "abc"])
    assert {k: r.key for k, r in found.items()} == {"a": "a", "b": "b", "c": "c"}
    assert teacher.asked == ["a"]


def test_a_group_whose_transaction_has_ended_already_ends_quietly(tmp_path):
    file = CallFile(tmp_path / "c.sqlite")
    with file.together(True): file.db.execute("rollback")
    assert not file.db.in_transaction
