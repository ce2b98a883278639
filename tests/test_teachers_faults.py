"""Two thousand requests through every bad day at once; servers that die and come back; what a server is found to bear."""

import asyncio
import signal
import sys
import time
from pathlib import Path

import pytest

import distillery.teachers.open as teachers_open
from distillery.core.config import load_config
from distillery.core.errors import DistilleryError
from distillery.teachers.extractive import ExtractiveTeacher
from distillery.teachers.fallback import FallbackTeacher
from distillery.teachers.journal import Journal, read_calls
from distillery.teachers.open import open_teacher
from distillery.teachers.openai import OpenAITeacher
from distillery.teachers.protocol import Task, ask_all, user_request
from distillery.teachers.open import teacher_digest

sys.path.insert(0, str(Path(__file__).parent))
from teachers_server import CHAOS, Server
from warm import start

QUICK = {"timeout_s": 1.5, "idle_s": 0.5, "max_retries": 5, "breaker_wait_s": 0.3}


@pytest.mark.parametrize(("n", "stream"), [(500, False), *(pytest.param(2000, s, marks=pytest.mark.slow) for s in (False, True))])
def test_many_requests_on_a_bad_day(tmp_path, n, stream):
    requests = [user_request(str(i), f"p{i}") for i in range(n)]
    with Server(chaos=40 / n, outage=(int(0.35 * n), 1.0), delay=0.005) as server:  # forty pieces of bad luck in each
        teacher = OpenAITeacher(server.url, "m", stream=stream, **QUICK)
        results = Journal(tmp_path / "calls.sqlite").ask(teacher, requests)
    assert 3 <= server.met["outage"] <= 100, "the outage was met, and the breaker kept most of it away"
    assert len(set(server.met) & set(CHAOS)) >= 8, f"too few kinds of bad luck: {server.met}"
    assert sorted(results, key=int) == [r.key for r in requests], "every item is there"
    assert all(r.ok != bool(r.error) for r in results.values()), "answered, or listed with a reason"
    assert sum(r.ok for r in results.values()) >= n - n // 400
    assert all(r.text == f"answer to p{k}" for k, r in results.items() if r.ok)
    assert max(server.answered.values()) == 1, "nothing was answered twice"
    kept = [c for c in read_calls(Journal(tmp_path / "calls.sqlite")) if c.response is not None]
    assert len(kept) == len({c.key for c in kept}) == sum(r.ok for r in results.values())


def test_a_broken_server_is_left_alone_and_comes_back():
    "Ten errors in a row: three are met, then single trials; the rest of the requests never see one."
    with Server(burst=range(1, 9)) as server:
        teacher = OpenAITeacher(server.url, "m", concurrency=3, breaker_wait_s=0.2)
        results = ask_all(teacher, [user_request(str(i), f"p{i}") for i in range(30)])
    assert all(r.ok for r in results)
    assert server.met["error"] == 8
    assert len(server.bodies) == 38


def test_a_server_that_stays_down_stops_the_run_and_loses_nothing(tmp_path):
    journal, requests = Journal(tmp_path / "calls.sqlite"), [user_request(str(i), f"p{i}") for i in range(200)]
    with Server(burst=range(21, 10**6)) as server:
        teacher = OpenAITeacher(server.url, "m", concurrency=4, breaker_wait_s=0.05, max_retries=2)
        with pytest.raises(DistilleryError, match="times in a row"): journal.ask(teacher, requests)
        sent = len(server.bodies)
    assert sent < 60, "it was not beaten by all that waited"
    assert sum(c.response is not None for c in read_calls(journal)) == 20
    with Server() as server:
        assert all(r.ok for r in journal.ask(OpenAITeacher(server.url, "m"), requests).values())
        assert len(server.bodies) == 180


def test_the_fallback_answers_while_the_server_is_down(tmp_path):
    task = Task("answer", passage="The Raven 74 stands in Hall 3.", question="Where does the Raven 74 stand?")
    requests = [user_request(str(i), f"p{i}", task=task) for i in range(40)]
    with Server(burst=range(11, 10**6)) as server:
        teacher = FallbackTeacher(server.url, "m", ExtractiveTeacher(), concurrency=2, breaker_wait_s=30)
        journal = Journal(tmp_path / "calls.sqlite")
        results = journal.ask(teacher, requests)
    assert all(r.ok for r in results.values())
    assert sum(not r.by for r in results.values()) == 10
    assert {r.by for r in results.values()} == {"", "builtin:extractive"}
    with Server() as server:
        again = journal.ask(FallbackTeacher(server.url, "m", ExtractiveTeacher()), requests)
        assert len(server.bodies) == 0, "answers of either are never asked for again"
    assert {k: r.text for k, r in again.items()} == {k: r.text for k, r in results.items()}
    with Server() as server:
        alone = journal.ask(OpenAITeacher(server.url, "m"), requests)
        assert len(server.bodies) == 30, "an answer of the fallback is not one of the first teacher"
    assert all(r.ok for r in alone.values())


def test_a_changed_tag_is_stale(tmp_path):
    "The same name with other weights behind it is another teacher."
    journal, asked = Journal(tmp_path / "calls.sqlite"), []
    for digest in ("sha256:aa", "sha256:aa", "sha256:bb", None):
        with Server(digest=digest) as server:
            journal.ask(OpenAITeacher(server.url, "m"), [user_request("a", "p")])
            asked.append(len(server.bodies))
    assert asked == [1, 0, 1, 1]


def test_a_finished_run_knows_its_server_when_it_is_off(tmp_path):
    "What the server told of its weights is remembered: with the server off no stage key changes, with other weights all do."
    seen = []
    for digest in ("sha256:aa", "sha256:bb"):
        with Server(digest=digest) as server: spec = f"{server.url}#m"; on = teacher_digest(spec, tmp_path)
        teachers_open._reported.cache_clear()
        assert teacher_digest(spec, tmp_path) == on
        seen.append(on)
    assert seen[0] != seen[1]


def test_a_prompt_that_the_server_cut_is_refused(tmp_path):
    "Ollama reads the end of a long prompt and says nothing; its own count gives it away."
    long = user_request("a", "The Raven 74 stands in Hall 3. " * 40)
    with Server() as server: result = ask_all(OpenAITeacher(server.url, "m"), [long])[0]
    assert "its context window cut the prompt" in result.error


def test_ctrl_c_keeps_what_is_done(tmp_path):
    worker = """
import sys
from pathlib import Path
from distillery.teachers.journal import Journal
from distillery.teachers.openai import OpenAITeacher
from distillery.teachers.protocol import user_request
Journal(Path(sys.argv[2])).ask(OpenAITeacher(sys.argv[1], "m", concurrency=4), [user_request(str(i), f"p{i}") for i in range(100)])
"""
    with Server(delay=0.1) as server:
        run = lambda: start(worker, [server.url, tmp_path / "calls.sqlite"], err=str(tmp_path / "err"))
        first = run()
        while len(server.bodies) < 30 and first.poll() is None: time.sleep(0.01)
        first.send_signal(signal.SIGINT)
        first.wait(20)
        assert "KeyboardInterrupt" in (tmp_path / "err").read_text()
        assert run().wait(60) == 0
        assert len(server.bodies) <= 104


class Slots(Server):
    "A server with a secret number of slots: what finds none waits."

    def __init__(self, slots, service_s):
        super().__init__()
        self.slots, self.service_s = slots, service_s

    async def good(self, request, body):
        if not hasattr(self, "free"): self.free = asyncio.Semaphore(self.slots)
        async with self.free: await asyncio.sleep(self.service_s)
        return await super().good(request, body)


def test_the_pace_finds_the_slots_of_a_server():
    "Sixteen slots are found by a client that begins with four."
    with Slots(16, 0.1) as server:  # 160 answers a second, a fraction of what this process can do: its pauses do not look like the server's
        teacher = OpenAITeacher(server.url, "m")
        assert all(r.ok for r in ask_all(teacher, [user_request(str(i), f"p{i}") for i in range(700)]))
    settled = [n for n, (answers, _) in teacher.pace.seen.items() if answers >= 60]
    assert max(settled) >= 12
    assert server.most_in_flight <= 130


def test_the_pace_stays_below_a_limit_that_the_server_defends():
    class Defended(Server):
        async def good(self, request, body):
            if self.in_flight > 10: return await self.fault_full(request, body)
            await asyncio.sleep(0.02)
            return await super().good(request, body)

    with Defended() as server:
        teacher = OpenAITeacher(server.url, "m")
        assert all(r.ok for r in ask_all(teacher, [user_request(str(i), f"p{i}") for i in range(600)]))
    refused = len(server.bodies) - 600
    assert refused < 60
    assert teacher.pace.limit <= 13


def test_settings_reach_the_server_teacher():
    config = load_config(overrides={"teacher.concurrency": 7, "teacher.idle_s": 9, "teacher.stream": True, "teacher.timeout_s": 11,
                                    "teacher.breaker_failures": 2, "teacher.breaker_wait_s": 4, "teacher.api_key_env": "MY_KEY",
                                    "prompts.json_mode": "schema", "teacher.max_retries": 1})
    options = open_teacher("http://127.0.0.1:1/v1#m", config).options
    assert (options.concurrency, options.stream, options.idle_s, options.timeout_s, options.max_retries) == (7, True, 9, 11, 1)
    assert (options.breaker_failures, options.breaker_wait_s, options.api_key_env, options.json_mode) == (2, 4, "MY_KEY", "schema")
    assert options.limits().sock_read == 9
