"""The server teacher against a server with bad days, and the journal against kill -9."""

import random
import signal
import socket
import sys
import time
from pathlib import Path

import pytest

from distillery.core.config import load_config
from distillery.core.errors import DistilleryError
from distillery.teachers.journal import Journal, read_calls
from distillery.teachers.open import open_teacher
from distillery.teachers.openai import OpenAITeacher
from distillery.teachers.protocol import ask_all, user_request

sys.path.insert(0, str(Path(__file__).parent))
import warm
from teachers_server import Server


def teacher(server, **settings):
    return OpenAITeacher(server.url, "m", **({"max_retries": 2, "timeout_s": 10} | settings))


def ask(server, n=1, **settings):
    return ask_all(teacher(server, **settings), [user_request(str(i), f"p{i}") for i in range(n)])


@pytest.mark.parametrize("scheme", ["HTTP", "hTTp"])
def test_a_scheme_in_capitals_is_a_server_like_any_other(scheme):
    with Server([]) as server:
        spec = scheme + server.url.removeprefix("http") + "#m"
        config = load_config(overrides={"teacher.model": spec, "budget.prices": {spec: [1, 2]}})
        assert config.teacher.model == f"{server.url}#m" == next(iter(config.budget.prices))
        results = ask_all(open_teacher(spec, config), [user_request("0", "p0")])
    assert [r.text for r in results] == ["answer to p0"]


@pytest.mark.parametrize("fault", ["busy", "error", "malformed", "cut", "short"])
def test_passing_fault_is_tried_again(fault):
    with Server([fault]) as server: results = ask(server)
    assert [r.text for r in results] == ["answer to p0"]
    assert server.seen["p0"] == 2


@pytest.mark.parametrize("fault", ["malformed", "cut", "short", "error"])
def test_lasting_fault_fails_one_request_only(fault):
    with Server([fault] * 9) as server:
        server.seen["good"] = 9
        results = ask_all(teacher(server, max_retries=1), [user_request("a", "bad"), user_request("b", "good")])
    assert [r.ok for r in results] == [False, True]
    assert results[0].error
    assert results[0].text == ""
    assert server.seen["bad"] == 2


def test_retry_after_is_kept():
    began = time.monotonic()
    with Server(["busy", "busy"]) as server: assert ask(server)[0].ok
    assert time.monotonic() - began >= 0.4


def test_server_that_always_streams_and_counts_nothing():
    with Server(always_stream=True) as server: result = ask(server)[0]
    assert (result.text, result.finish_reason, result.completion_tokens) == ("answer to p0", "stop", None)


def test_bad_request_is_not_repeated():
    with Server(["refused"]) as server: result = ask(server)[0]
    assert "context too long" in result.error
    assert server.seen["p0"] == 1


@pytest.mark.parametrize(("fault", "word"), [("key", "OPENAI_API_KEY"), ("model", "knows no model 'm'")])
def test_hopeless_answers_stop_the_run(fault, word):
    with Server([fault] * 9) as server, pytest.raises(DistilleryError, match=word): ask(server, 3)


def test_time_limit_is_a_failure():
    with Server(["slow"]) as server: result = ask(server, timeout_s=0.3, max_retries=0)[0]
    assert "TimeoutError" in result.error


def test_concurrency_is_bounded_and_used():
    with Server(delay=0.02) as server: assert all(r.ok for r in ask(server, 40, concurrency=5))
    assert server.most_in_flight == 5


def test_key_is_sent_and_never_written(monkeypatch, tmp_path):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    with Server(["refused"]) as server:
        journal = Journal(tmp_path / "calls.sqlite")
        journal.ask(teacher(server), [user_request("a", "p")])
        journal.close()
    assert server.headers[0]["Authorization"] == "Bearer sk-very-secret"
    assert all(b"sk-very-secret" not in f.read_bytes() for f in tmp_path.rglob("*") if f.is_file())


def test_stop_texts_are_cut_here():
    with Server() as server: result = ask_all(teacher(server), [user_request("a", "p", stop=(" to",))])[0]
    assert result.text == "answer"
    assert "stop" not in server.bodies[0]


def test_server_that_goes_away_in_the_middle(tmp_path):
    journal = Journal(tmp_path / "calls.sqlite")
    with Server() as server:
        asker = teacher(server, max_retries=1)
        assert journal.ask(asker, [user_request("a", "first")])["a"].ok
    with pytest.raises(DistilleryError, match="Cannot connect: no server at"): journal.ask(asker, [user_request("b", "second")])
    assert journal.ask(asker, [user_request("a", "first")])["a"].text == "answer to first"


def test_a_missing_server_is_said_at_once():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    began = time.monotonic()
    with pytest.raises(DistilleryError, match=f"127.0.0.1:{port}"):
        ask_all(OpenAITeacher(f"http://127.0.0.1:{port}/v1", "m"), [user_request("a", "p")])
    assert time.monotonic() - began < 3


WORKER = """
import sys
from pathlib import Path
from distillery.teachers.journal import Journal
from distillery.teachers.open import open_teacher
from distillery.teachers.openai import OpenAITeacher
from distillery.teachers.protocol import user_request
journal = Journal(Path(sys.argv[2]))
results = journal.ask(OpenAITeacher(sys.argv[1], "m", concurrency=4), [user_request(str(i), f"p{i}") for i in range(60)])
sys.exit(0 if all(r.text == f"answer to p{k}" for k, r in results.items()) else 3)
"""


@pytest.mark.parametrize("seed", [1, 2])
def test_kill_9_costs_only_what_was_in_flight(tmp_path, seed):
    kills, chance = 3, random.Random(seed)
    file, killed = tmp_path / "calls.sqlite", 0
    with Server(delay=0.03) as server:
        run = lambda: warm.start(WORKER, [server.url, file])
        for _ in range(kills):
            start, worker = len(server.bodies), run()
            wanted = start + chance.randint(4, 14)
            while len(server.bodies) < wanted and worker.poll() is None: time.sleep(0.002)
            if worker.poll() is None: killed += 1
            worker.send_signal(signal.SIGKILL)
            worker.wait()
        assert run().wait() == 0
        assert killed == kills
        assert len(server.bodies) <= 60 + 4 * kills
        before = len(server.bodies)
        assert run().wait() == 0
        assert len(server.bodies) == before
    calls = list(read_calls(Journal(file)))
    assert len({c.key for c in calls}) == len(calls) == 60
