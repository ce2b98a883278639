"Hundreds of odd replies through the whole client: each is accounted for, in time, in memory, and none is paid for again for being odd."
import json
import subprocess
import sys
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from distillery.teachers.journal import Journal
from distillery.teachers.openai import OpenAITeacher
from distillery.teachers.protocol import user_request

from odd_replies import odd_reply
from peak import peak_mib
from teachers_server import Scripted

QUICK = {"breaker_wait_s": 0.05, "breaker_failures": 10, "timeout_s": 9, "concurrency": 64}


def fuzz(place: Path, first: int, n: int) -> dict:
    "Ask for `n` items whose replies are odd, twice over; say what came of it."
    requests = [user_request(str(i), f"p{i}") for i in range(first, first + n)]
    with Scripted(lambda body, turn: odd_reply(int(body["messages"][-1]["content"][1:]))) as server:
        journal, times = Journal(place / "calls.sqlite"), [time.monotonic()]
        results = journal.ask(OpenAITeacher(server.url, "m", **QUICK), requests, lambda done, total: times.append(time.monotonic()))
        once = Counter(server.seen)
        again = journal.ask(OpenAITeacher(server.url, "m", **QUICK), requests)
        answers = [json.loads(r)["messages"][0]["content"] for (r,) in journal.db.execute("select request from calls where error is null")]
        reasons = [e for (e,) in journal.db.execute("select error from calls where error is not null")]
    good = {r.key for r in results.values() if r.ok}
    return {"items": len(results), "good": len(good), "longest pause": max(b - a for a, b in pairwise(times)), "wall": times[-1] - times[0],
            "same": all(again[k].text == results[k].text for k in good), "most": max(once.values()),
            "twice": len(answers) - len(set(answers)),
            "paid again": sum(server.seen[f"p{k}"] > once[f"p{k}"] for k in good), "asked for good": max(once[f"p{k}"] for k in good),
            "unnamed": sum(not e or "Traceback" in e for e in reasons), "gib": peak_mib() / 1024}


def checked(place: Path, first: int, n: int) -> dict:
    "The same in a process of its own, whose memory is its own."
    code = (
        f"import json, sys; sys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}; from pathlib import Path; "
        "import test_odd_fuzz as t; "
        f"print('FOUND ' + json.dumps(t.fuzz(Path({str(place)!r}), {first}, {n})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Traceback" not in done.stderr, done.stderr[-2000:]
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("FOUND "))[6:])
    assert found["items"] == n
    assert n / 6 < found["good"] < n, "some are answers with something odd beside them, some are none"
    assert (found["paid again"], found["twice"], found["unnamed"], found["same"]) == (0, 0, 0, True)
    assert found["longest pause"] < 10
    assert found["gib"] <= 1
    return found


def test_two_hundred_odd_replies(tmp_path):
    found = checked(tmp_path, 0, 200)
    assert found["most"] <= 12, "refused parameters are tried one by one; a reply is asked for twice at most"


@pytest.mark.slow
def test_five_thousand_odd_replies(tmp_path):
    checked(tmp_path, 1000, 5000)
