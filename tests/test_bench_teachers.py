"The teachers' benchmark can be believed: its server counts right, its clients lose nothing, its tables tell what happened."
import asyncio
import json
import statistics
import sys
from pathlib import Path

import aiohttp
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import teachers as bench

N = 60


@pytest.fixture(scope="module")
def server():
    with bench.Server(slots=4, mean_s=0.004) as running: yield running


def test_service_times_have_the_mean_and_the_spread_they_claim():
    times = bench.service_times(5000, 0.2, 0.8)
    assert statistics.fmean(times) == pytest.approx(0.2)
    assert statistics.stdev(times) / 0.2 == pytest.approx(0.947, rel=0.1)  # sqrt(exp(.8 ** 2) - 1)
    assert times == bench.service_times(5000, 0.2, 0.8)
    assert min(times) > 0


@pytest.mark.parametrize("client", [pytest.param("ours", marks=pytest.mark.slow), "bare"])
def test_nothing_is_lost_and_nothing_is_sent_twice(server, tmp_path, client):
    run = bench.run_client(client, server, bench.make_prompts(N), tmp_path, concurrency=4)
    assert run.error == ""
    assert run.answered == N
    assert [run.server[name] for name in ("requests", "completed", "distinct", "in_flight", "refused")] == [N, N, N, 0, 0]
    assert 2 <= run.server["most_in_flight"] <= 4
    assert 0 < run.server["seconds"] < run.wall_s
    assert 0 < run.rate <= 1.05 * 4 / 0.004
    assert run.cpu_s > 0


@pytest.mark.slow
@pytest.mark.slow
def test_what_a_client_sends_again_is_counted(server, tmp_path):
    counts = bench.count_requests("ours", server, bench.make_prompts(N + 1), tmp_path)
    assert counts.error == ""
    assert [(r.server["requests"], r.answered) for r in (counts.again, counts.added)] == [(0, N), (1, N + 1)]
    assert counts.killed.answered == N
    assert N <= counts.killed.server["requests"] <= N + bench.SLOTS
    assert counts.broken.answered == 0


@pytest.mark.slow
def test_a_client_that_keeps_nothing_is_seen_to_ask_again(server, tmp_path):
    counts = bench.count_requests("bare", server, bench.make_prompts(N + 1), tmp_path)
    assert [r.server["requests"] for r in (counts.again, counts.added)] == [N, N + 1]
    assert counts.killed.server["requests"] >= N + N // 2


def test_a_client_that_fails_has_a_reason_and_no_rate(server, tmp_path):
    (tmp_path / "calls.sqlite").mkdir()
    run = bench.run_client("ours", server, bench.make_prompts(3), tmp_path, concurrency=4)
    assert run.error.startswith("failed (1)")
    assert run.rate == run.answered == 0


def test_a_client_that_hangs_is_ended(tmp_path):
    with bench.Server(slots=1, mean_s=60) as slow:
        run = bench.run_client("bare", slow, bench.make_prompts(1), tmp_path, limit_s=1.5)
    assert run.error == "no end in 2 s"
    assert (run.server["requests"], run.server["completed"], run.in_flight) == (1, 0, 0)


@pytest.mark.slow
def test_a_peer_that_cannot_be_installed_says_so(server, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "HERE", tmp_path / "teachers.py")
    monkeypatch.setattr(bench, "BUILD", bench.ROOT / "build/bench-test")
    (tmp_path / "peers").mkdir()
    (tmp_path / "peers/curator.txt").write_text("./no-such-folder-anywhere\n")
    run = bench.run_client("curator", server, bench.make_prompts(1), tmp_path / "work")
    assert run.error.startswith("cannot be installed: ")
    assert run.server == {}


@pytest.mark.slow
def test_slots_are_what_holds_work_back_and_the_others_wait(tmp_path):
    async def all_at_once(url):
        async with aiohttp.ClientSession() as session:
            async def ask(k):
                body = {"messages": [{"role": "user", "content": str(k)}]}
                async with session.post(f"{url}/chat/completions", json=body) as reply: return reply.status
            return await asyncio.gather(*map(ask, range(20)))

    with bench.Server(slots=2, mean_s=0.01) as free:
        free.reset(20)
        assert asyncio.run(all_at_once(free.url)) == [200] * 20
        seen = free.stats()
        assert seen["most_in_flight"] > 2
        assert seen["seconds"] >= 0.9 * 20 * 0.01 / 2
    with bench.Server(slots=2, mean_s=0.05, most_waiting=3) as strict:
        strict.reset(20)
        said = asyncio.run(all_at_once(strict.url))
        seen = strict.stats()
    assert set(said) == {200, 429}
    assert (said.count(200), said.count(429)) == (seen["requests"], seen["refused"])
    assert seen["most_in_flight"] <= 5


def test_a_request_without_messages_is_a_probe(server):
    async def probe(body):
        async with aiohttp.ClientSession() as session, session.post(f"{server.url}/chat/completions", json=body) as reply:
            return reply.status, await reply.text()

    server.reset(1)
    assert asyncio.run(probe({"messages": []}))[0] == 400
    assert (server.stats()["probes"], server.stats()["requests"]) == (1, 0)
    streamed = asyncio.run(probe({"messages": [{"role": "user", "content": "p"}], "stream": True}))[1]
    events = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: {")]
    assert "".join(e["choices"][0]["delta"].get("content", "") for e in events if e["choices"]) == "Answer to p"
    assert streamed.rstrip().endswith("data: [DONE]")


def test_goals_are_judged_from_the_numbers(capsys):
    def rates(client, per_s, cpu_s):
        return bench.Rates([bench.Run(client, 101, 101, cpu_s, server={"completed": 100, "seconds": 100 / r, "most_in_flight": 32})
                            for r in per_s], 0.1)

    made = {"bare": rates("bare", [150], 0.2), "ours": rates("ours", [146, 148, 140], 0.3), "curator": rates("curator", [147, 147, 147], 1),
            "distilabel": rates("distilabel", [30], 1), "distilabel, batch 500": bench.Rates([bench.Run("x", 9, error="took too long")])}
    assert [g.split(": ")[-1] for g in bench.show_rates(made, 160)] == ["met", "MISSED", "met", "met"]
    assert "took too long" in capsys.readouterr().out
    fixed = bench.Run("ours", 100, server={"completed": 100, "seconds": 1, "most_in_flight": 32, "refused": 0})
    slow = bench.Run("ours", 100, server={"completed": 100, "seconds": 1.2, "most_in_flight": 9, "refused": 0})
    assert bench.show_sweep({"found": slow, "fixed 32": fixed}, 160)[0].endswith("MISSED")
    assert bench.show_sweep({"found": fixed, "fixed 32": slow}, 160)[0].endswith("met")
    assert "not measured" in bench.show_sweep({"found": bench.Run("ours", 9, error="failed (1)"), "fixed 32": fixed}, 160)[0]
    run = lambda requests, answered: bench.Run("ours", 100, answered, server={"requests": requests})
    judged = lambda added, killed: [g.split(": ")[-1] for g in bench.show_counts([bench.Counts("ours", 100, added=added, killed=killed)])]
    assert judged(run(1, 101), run(120, 100)) == ["met", "met"]
    assert judged(run(2, 101), run(150, 100)) == ["MISSED", "MISSED"]
    assert judged(run(1, 100), run(120, 99)) == ["MISSED", "MISSED"]
