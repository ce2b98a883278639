"A budget holds to within what is in flight, and a raised one ends where an unlimited run ends."
import asyncio
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from aiohttp import web

from distillery.core.config import load_config
from distillery.core.errors import DistilleryError
from distillery.pairs.chunk import chunk_documents
from distillery.pairs.documents import read_documents
from distillery.pairs.generate import generate_pairs
from distillery.teachers.budget import Budget, BudgetSpent, Limits, charged_to, estimate_tokens, open_journal, price_of, call_tokens
from distillery.teachers.calls import usage
from distillery.teachers.journal import Journal
from distillery.teachers.protocol import ChatResult, failed, user_request
from distillery.workbook.experiment import prepare
from distillery.workbook.costs import ledger, rows_of
from distillery.engine.plan import Done

sys.path.insert(0, str(Path(__file__).parent))
from pairs_oracle import Oracle, write_handbook
from teachers_server import Server, answer_of, whole
from warm import run_command

PROMPT, ANSWER = 30, 20


class Counts:
    "Fifty tokens a call; a `lazy` one has eight places."
    def __init__(self, lazy=False, told=True):
        self.name, self.identity, self.lazy, self.told, self.asked = "qwen at http://h/v1", {"model": "qwen"}, lazy, told, []

    def result(self, r):
        self.asked.append(r.key)
        return ChatResult(r.key, "word " * ANSWER, "stop", PROMPT if self.told else None, ANSWER if self.told else None, 20.0)

    async def stream(self, requests):
        if not self.lazy:
            for r in requests: yield self.result(r)
            return
        source, running = iter(requests), set()

        async def one(r):
            await asyncio.sleep(0.002)
            return self.result(r)

        while True:
            while len(running) < 8 and (r := next(source, None)): running.add(asyncio.create_task(one(r)))
            if not running: return
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in done: yield task.result()

    async def close(self): pass


def many(n=400): return [user_request(str(i), f"prompt {i}") for i in range(n)]


def journal_with(path, limits, prices=None, **more):
    journal = Journal(path)
    journal.budget = Budget(limits, prices or {}, **more)
    return journal


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize(("limits", "calls"), [
    (Limits(tokens=5000), 100), (Limits(cost=0.001), 100), (Limits(tokens=5000, cost=0.0005), 50), (Limits(tokens=1), 1)])
def test_overspend_is_at_most_what_is_in_flight(tmp_path, lazy, limits, calls):
    prices = {"qwen": [0.0, 0.5]}  # a call costs 10 millionths
    teacher, journal = Counts(lazy), journal_with(tmp_path / "c.sqlite", limits, prices)
    with pytest.raises(BudgetSpent) as said: journal.ask(teacher, many())
    assert calls <= len(teacher.asked) <= calls + 8
    assert usage(journal).calls == len(teacher.asked) == journal.asked  # all that was in flight is kept
    assert f"raise budget.{'cost' if limits.cost else 'tokens'}" in said.value.fix
    assert said.value.exit_code == 1
    with pytest.raises(BudgetSpent): journal.ask(teacher, many())
    assert len(teacher.asked) == journal.asked


@pytest.mark.parametrize("lazy", [False, True])
def test_minutes_are_those_spent_on_asking(tmp_path, lazy, monkeypatch):
    "By a clock that requests alone move: how long a busy machine takes decides nothing."
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("distillery.teachers.budget.time", SimpleNamespace(monotonic=lambda: clock.now))

    class Slow(Counts):
        async def stream(self, requests):
            for r in requests:
                clock.now += 0.01
                yield self.result(r)
    teacher, journal = Slow(lazy), journal_with(tmp_path / "c.sqlite", Limits(minutes=0.3 / 60), run="r", stage="s/1")
    with pytest.raises(BudgetSpent, match="minutes"): journal.ask(teacher, many())
    assert 5 <= len(teacher.asked) <= 60
    kept = usage(journal, run="r")
    assert kept.seconds == pytest.approx(journal.budget.seconds, rel=0.2)
    assert 0.3 - 2 * kept.seconds / kept.calls <= kept.seconds <= 1.5  # no request begins that would end after it


def test_raised_it_goes_on_and_asks_nothing_twice(tmp_path):
    teacher = Counts(True)
    for limit in (2000, 6000, 11_000, None):
        journal = journal_with(tmp_path / "c.sqlite", Limits(tokens=limit), used=usage(Journal(tmp_path / "c.sqlite")))
        try: results = journal.ask(teacher, many())
        except BudgetSpent: assert limit
    assert len(results) == len(teacher.asked) == len(set(teacher.asked)) == 400


def test_served_answers_cost_nothing(tmp_path):
    teacher = Counts()
    Journal(tmp_path / "c.sqlite").ask(teacher, many(50))
    journal = journal_with(tmp_path / "c.sqlite", Limits(tokens=100))
    assert len(journal.ask(teacher, many(50))) == 50
    assert journal.budget.tokens == 0


def test_a_raised_budget_ends_with_the_dataset_of_an_unlimited_run(tmp_path):
    facts = write_handbook(tmp_path, 6)
    chunks, config = chunk_documents(read_documents(tmp_path).documents), load_config(preset="handbook")

    class Told(Oracle):
        async def stream(self, requests):
            async for result in super().stream(requests): yield replace(result, prompt_tokens=PROMPT, completion_tokens=ANSWER)

    free, bound, stops = Told(facts, wrong=0.2), Told(facts, wrong=0.2), 0
    expected = generate_pairs(chunks, free, Journal(tmp_path / "free.sqlite"), config)
    for limit in (1500, 4000, 9000, 15_000, None):
        journal = journal_with(tmp_path / "bound.sqlite", Limits(tokens=limit), used=usage(Journal(tmp_path / "bound.sqlite")))
        try: made = generate_pairs(chunks, bound, journal, config)
        except BudgetSpent: stops += 1
    assert stops >= 2
    assert made == expected
    assert bound.seen == free.seen


def test_tokens_are_counted_where_nobody_tells_them(tmp_path):
    journal = journal_with(tmp_path / "c.sqlite", Limits(tokens=2000))
    with pytest.raises(BudgetSpent): journal.ask(Counts(told=False), many())
    per_call = sum(call_tokens(many()[0], ChatResult("0", "word " * ANSWER, "stop")))
    assert usage(journal).tokens == journal.budget.tokens <= 2000 + 10 * per_call
    assert journal.db.execute("select count(prompt_tokens) from calls").fetchone() == (0,)  # an estimate is never taken for a count


@pytest.mark.parametrize("text", ["The Raven 74 stands in Hall 3.", "a" * 400, "東京" * 50, "", "x=1;y=[2,3]"])
def test_our_own_count_is_at_least_a_quarter_of_the_characters(text):
    assert estimate_tokens(text) >= len(text) / 4


def test_thinking_is_paid_for_and_failures_count_what_was_told():
    request = user_request("k", "prompt")
    assert call_tokens(request, ChatResult("k", "yes", "stop", reasoning="hm " * 50))[1] >= 50
    assert call_tokens(request, failed(request, OSError("no"))) == (0, 0)


@pytest.mark.parametrize(("name", "price"), [
    ("qwen at http://h/v1", (1, 2)), ("http://h/v1#qwen", (1, 2)), ("qwen at http://other/v1", (3, 4)), ("qwen in batch files", (3, 4)),
    ("local:tiny", (5, 6)), ("llama at http://h/v1", None)])
def test_a_price_belongs_to_an_address_or_a_model(name, price):
    assert price_of(name, {"http://h/v1#qwen": [1, 2], "qwen": [3, 4], "builtin:tiny": [5, 6]}) == price


def test_batch_files_cost_their_share(tmp_path):
    class Batch(Counts): discounted = True
    for share, teacher in ((0.5, Batch()), (1.0, Counts())):
        journal = journal_with(tmp_path / f"{share}.sqlite", Limits(), {"qwen": [1.0, 1.0]}, discount=0.5)
        journal.ask(teacher, many(10))
        assert usage(journal).cost == pytest.approx(share * 10 * 50 / 1e6)


def test_a_batch_file_is_never_cut(tmp_path):
    class Batch(Counts):
        discounted, sizes = True, []

        async def stream(self, requests):
            self.sizes.append(len(requests))
            async for result in super().stream(requests): yield result
    teacher = Batch()
    journal_with(tmp_path / "c.sqlite", Limits(tokens=100)).ask(teacher, many(300))
    assert teacher.sizes == [300]


def test_a_run_has_one_budget_for_its_stages_and_processes(tmp_path):
    config = load_config(overrides={"budget.tokens": 1000})
    with charged_to("run-1"):
        with pytest.raises(BudgetSpent): open_journal(tmp_path, config, tmp_path / "scratch/generate/aa").ask(Counts(), many())
        second = open_journal(tmp_path, config, tmp_path / "scratch/temperature-0.3/bb")
        with pytest.raises(BudgetSpent): second.ask(Counts(), [user_request("new", "another")])
    with charged_to("run-2"): assert open_journal(tmp_path, config).ask(Counts(), [user_request("new", "another")])["new"].ok
    assert usage(second, stage="generate/aa").tokens >= 1000
    assert usage(second, stage="temperature-0.3/bb").calls == 0


def test_a_limit_on_money_needs_a_price(tmp_path):
    paid = load_config(overrides={"teacher.model": "http://127.0.0.1:1/v1#qwen", "budget.cost": 5.0})
    with pytest.raises(DistilleryError, match="no price for qwen"): open_journal(tmp_path, paid)
    open_journal(tmp_path, load_config(overrides={"teacher.model": "http://127.0.0.1:1/v1#qwen", "budget.cost": 5.0,
                                                  "budget.prices": {"qwen": [0.0, 0.0]}}))
    open_journal(tmp_path, load_config(overrides={"budget.cost": 5.0}))  # a built-in teacher costs nothing


def test_the_ledger_charges_calls_to_the_stage_that_made_them(tmp_path):
    config = load_config(overrides={"workbook.cache_dir": str(tmp_path), "budget.hour_price": 2.0, "budget.prices": {"qwen": [1.0, 2.0]}})
    open_journal(tmp_path, config, tmp_path / "scratch/generate/aa").ask(Counts(), many(10))
    open_journal(tmp_path, config, tmp_path / "scratch/generate/older").ask(Counts(), many(20))
    done = {n: Done(n, tmp_path / "artifacts" / n / key, "", False, s) for n, key, s in (("generate", "aa", 1800), ("sft", "x", 3600))}
    rows = {r["stage"]: r for r in rows_of(ledger(done, config))}
    assert (rows["generate"]["requests"], rows["generate"]["tokens"]) == (10, 500)
    assert rows["generate"]["spend, USD"] == pytest.approx(10 * (30 + 40) / 1e6)
    assert (rows["sft"]["requests"], rows["sft"]["machine, USD"]) == (0, 2.0)
    assert rows["altogether"]["machine, USD"] == 3.0


def test_budget_settings_change_no_key(tmp_path):
    (tmp_path / "a.md").write_text("# A\n\nThe cutter stands in room 12 of the main hall.\n")
    ids = {prepare(tmp_path, None, load_config(overrides={"teacher.model": "builtin:extractive", "budget.tokens": n})).run_id
           for n in (None, 5, 5000)}
    assert len(ids) == 1


class Paid(Server):
    "Tells two hundred prompt tokens and three of the answer."
    async def good(self, request, body):
        return web.json_response(whole(answer_of(body)) | {"usage": {"prompt_tokens": 200, "completion_tokens": 3}})


def command(cwd, *args):
    return run_command(*args, cwd=cwd)


def test_the_command_stops_with_1_says_what_to_raise_and_lists_what_it_paid_for(tmp_path):
    (tmp_path / "docs").mkdir()
    for i in range(4):
        text = f"The cutter {i} stands in room 12 of the main hall. The cutter {i} costs 40 euros a day."
        (tmp_path / f"docs/p{i}.md").write_text(f"# Page {i}\n\n{text}\n")
    with Paid() as server:
        args = ("run", "--docs", "docs", "--teacher", f"{server.url}#qwen", "--set", "budget.prices={qwen: [1000, 2000]}")
        done = command(tmp_path, *args, "--set", "budget.tokens=700", "--set", "teacher.concurrency=2")
        asked = len(server.bodies)
        assert done.returncode == 1, done.stdout + done.stderr
        assert "raise budget.tokens and run the same command" in done.stderr
        assert 4 <= asked <= 6
        again = command(tmp_path, *args, "--set", "budget.tokens=700", "--set", "teacher.concurrency=2")
        assert (again.returncode, len(server.bodies)) == (1, asked)
    stats = command(tmp_path, "calls", "stats")
    assert f"{203 * asked:,}" in stats.stdout
    assert f"{asked * (200 * 1000 + 3 * 2000) / 1e6:.4f}" in stats.stdout
