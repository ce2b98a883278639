"What a budget counts, how many calls it lets through at once, and what it says when it is spent; with a clock of our own."
from dataclasses import replace
from math import ceil
from types import SimpleNamespace

import pytest
from hypothesis import given, strategies as st

from distillery.core.config import load_config
from distillery.core.errors import DistilleryError
from distillery.teachers import budget, call_file, journal as journal_module
from distillery.teachers.budget import FIRST, Budget, BudgetSpent, Limits, estimate_tokens, open_journal, price_of, call_tokens
from distillery.teachers.call_file import read_calls
from distillery.teachers.calls import Usage, usage
from distillery.teachers.journal import Journal
from distillery.teachers.protocol import ChatResult, Message, failed, user_request

REQUEST = user_request("k", "How many halls are there?")
PRICES = {"qwen": [2.0, 10.0]}  # for a million prompt and answer tokens


class Teacher:
    name, identity = "qwen at http://h/v1", {"model": "qwen"}

    def __init__(self, **traits):
        self.batches = []
        for name, value in traits.items(): setattr(self, name, value)

    async def stream(self, requests):
        some = list(requests)
        self.batches.append(len(some))
        for r in some: yield ChatResult(r.key, "yes", "stop", 30, 20)

    async def close(self): pass


def spending(limits, used=None, **more): return Budget(limits, PRICES, used=used or Usage(), **more)


def used(calls=0, tokens=0, cost=0.0, seconds=0.0): return Usage(calls=calls, tokens=tokens, cost=cost, seconds=seconds)


# Counting

@given(st.text(alphabet="ab ,", max_size=60))
def test_a_text_has_a_token_for_each_word_and_mark_or_for_four_characters_whichever_is_more(text):
    pieces = len(text.replace(",", " , ").split())
    assert estimate_tokens(text) == max(pieces, ceil(len(text) / 4))


@pytest.mark.parametrize(("name", "price"), [
    ("qwen at http://h/v1", (1.0, 2.0)), ("http://h/v1#qwen", (1.0, 2.0)), ("local:tiny", (3.0, 4.0)), ("builtin:tiny", (3.0, 4.0)),
    ("hosted:tiny", None), ("llama at http://h/v1", None)])
def test_a_price_is_that_of_the_model_or_of_what_is_built_in(name, price):
    assert price_of(name, {"qwen": [1.0, 2.0], "builtin:tiny": [3.0, 4.0]}) == price


def test_a_limit_on_money_without_a_price_names_the_model(tmp_path):
    config = load_config(overrides={"budget.cost": 1.0, "teacher.model": "http://h/v1#qwen"})
    with pytest.raises(DistilleryError, match=r"no price for qwen\n") as error: open_journal(tmp_path, config)
    assert "{qwen: [A, B]}" in error.value.fix

@given(st.one_of(st.none(), st.integers(1, 99)), st.one_of(st.none(), st.integers(1, 99)))
def test_what_the_server_counted_counts_and_the_rest_is_estimated(prompt, answer):
    request = replace(REQUEST, messages=(Message("system", "Be brief."), Message("user", "How many?")))
    told = ChatResult("k", "Three halls.", "stop", prompt, answer, reasoning="Let me see.")
    ours = (4 + estimate_tokens("Be brief.")) + (4 + estimate_tokens("How many?")), estimate_tokens("Three halls.Let me see.")
    assert call_tokens(request, told) == (prompt or ours[0], answer or ours[1])


@pytest.mark.parametrize(("prompt", "answer"), [(30, 7), (30, None), (None, 7), (None, None)])
def test_a_failure_counts_what_was_told(prompt, answer):
    lost = replace(failed(REQUEST, TimeoutError("late")), prompt_tokens=prompt, completion_tokens=answer)
    assert call_tokens(REQUEST, lost) == (prompt or 0, answer or 0)


@given(st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 5000), st.booleans(), st.booleans()), max_size=8),
       st.sampled_from((None, 0.5)))
def test_calls_tokens_and_money_add_up_and_what_has_no_price_costs_nothing(calls, discount):
    counted, cost = spending(Limits(), used(3, 100, 0.25), **({"discount": discount} if discount else {})), 0.25
    for prompt, answer, priced, discounted in calls:
        teacher = Teacher(name="qwen" if priced else "other", discounted=discounted)
        bill = counted.bill(teacher, REQUEST, ChatResult("k", "yes", "stop", prompt, answer))
        price = (2 * prompt + 10 * answer) / 1e6 * ((discount or 1.0) if discounted else 1.0)
        cost += price if priced else 0.0
        assert (bill.tokens, bill.cost) == (prompt + answer, pytest.approx(price) if priced else None)
    assert counted.calls == 3 + len(calls)
    assert counted.tokens == 100 + sum(prompt + answer for prompt, answer, _, _ in calls)
    assert counted.cost == pytest.approx(cost)


def test_seconds_run_while_asking_only(monkeypatch):
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(budget, "time", SimpleNamespace(monotonic=lambda: clock.now))
    counted, seen = spending(Limits(minutes=10.0), used(seconds=90.0)), []
    for asking in (None, True, False, True, True, False):
        if asking is not None: counted.tick(asking)
        clock.now += 15.0
        seen.append(counted.seconds)
    assert seen == [90.0, 105.0, 105.0, 120.0, 135.0, 135.0]
    assert counted.shares() == {"minutes": (135.0 / 60, 10.0)}


# How many more calls

def test_without_limits_any_number_may_follow(): assert (spending(Limits()).room(), spending(Limits()).shares()) == (None, {})


@given(st.integers(1, 100), st.integers(1, 100), st.integers(1, 20_000))
def test_all_that_fit_by_the_average_may_follow_but_half_of_many(calls, each, most):
    room = spending(Limits(tokens=most), used(calls, calls * each)).room()
    fit = (most - calls * each) / (calls * each) * calls
    if fit <= 0: assert room == 0
    elif fit <= 2 * FIRST: assert room == max(1, int(fit))
    else: assert 2 * room <= fit < 2 * (room + 1)


@pytest.mark.parametrize(("left", "room"), [(1, 1), (99, 1), (100, 1), (299, 2), (800, 8), (801, 4), (999, 4), (1000, 5), (4000, 20)])
def test_a_few_calls_that_fit_may_all_follow(left, room):
    assert spending(Limits(tokens=1000 + left), used(10, 1000)).room() == room


def test_the_tightest_limit_counts_and_a_limit_that_is_reached_stops():
    assert spending(Limits(tokens=10_000, cost=0.5), used(10, 1000, 0.4)).room() == 2
    assert spending(Limits(tokens=10_000, cost=0.4), used(10, 1000, 0.4)).room() == 0
    assert spending(Limits(tokens=1000, cost=9.0), used(10, 1000, 0.4)).room() == 0
    assert spending(Limits(tokens=0)).room() == 0


def test_a_few_calls_are_made_first_and_twice_as_many_while_they_cost_nothing():
    assert spending(Limits(tokens=10**9)).room() == FIRST
    assert spending(Limits(cost=1.0), used(10)).room() == 2 * FIRST


@pytest.mark.parametrize(("limits", "says"), [
    (Limits(tokens=1_000), "1,200 of 1,000 tokens"), (Limits(cost=0.25, currency="EUR"), "0.3125 of 0.25 EUR"),
    (Limits(minutes=0.5), "0.75 of 0.5 minutes"), (Limits(tokens=1_100, cost=0.25), "0.3125 of 0.25 USD"),
    (Limits(tokens=800, cost=0.25), "1,200 of 800 tokens")])
def test_the_limit_that_is_farthest_exceeded_is_named(limits, says):
    error = spending(limits, used(12, 1200, 0.3125, 45.0)).refusal()
    assert says in str(error)
    assert "in 12 calls" in str(error)
    assert f"raise budget.{'cost' if says[-3:] in ('USD', 'EUR') else says.split()[-1]} " in error.fix


# Asking

def journal_with(path, limits):
    journal = Journal(path)
    journal.budget = spending(limits)
    return journal


def many(n): return [user_request(str(i), f"prompt {i}") for i in range(n)]


def test_batches_are_as_large_as_the_room_and_nothing_is_lost_between_them(tmp_path):
    journal, teacher = journal_with(tmp_path / "c.sqlite", Limits(tokens=100_000)), Teacher()
    assert len(journal.ask(teacher, many(50))) == 50
    assert teacher.batches == [4, 46]
    journal, teacher = journal_with(tmp_path / "d.sqlite", Limits(tokens=1000)), Teacher()
    with pytest.raises(BudgetSpent): journal.ask(teacher, many(50))
    assert teacher.batches == [4, 8, 8]
    assert len(list(read_calls(journal))) == 20


def test_a_teacher_with_a_discount_is_asked_everything_at_once(tmp_path):
    journal, teacher = journal_with(tmp_path / "c.sqlite", Limits(tokens=1000)), Teacher(discounted=True)
    journal.ask(teacher, many(50))
    assert teacher.batches == [50]


def test_a_lazy_teacher_may_pull_while_there_is_room(tmp_path):
    class OneByOne(Teacher):
        async def stream(self, requests):
            for r in requests:
                self.batches.append(r.key)
                yield ChatResult(r.key, "yes", "stop", 30, 20)

    journal, teacher = journal_with(tmp_path / "c.sqlite", Limits(tokens=1000)), OneByOne(lazy=True)
    with pytest.raises(BudgetSpent): journal.ask(teacher, many(50))
    assert len(teacher.batches) == 20


def test_the_time_spent_is_written_down_once_in_a_second_and_at_the_end(tmp_path, monkeypatch):
    clock = SimpleNamespace(now=1000.0)
    ours = SimpleNamespace(monotonic=lambda: clock.now, time=lambda: 1.7e9)
    for module in (budget, journal_module, call_file): monkeypatch.setattr(module, "time", ours)

    class HalfASecond(Teacher):
        async def stream(self, requests):
            for r in requests:
                clock.now += 0.5
                yield ChatResult(r.key, "yes", "stop", 30, 20)

    journal, said = Journal(tmp_path / "c.sqlite"), []
    journal.budget = spending(Limits(), used(seconds=100.0), run="r", stage="s/1")
    journal.db.set_trace_callback(said.append)
    journal.ask(HalfASecond(), many(10))
    clock.now += 60.0
    journal.ask(HalfASecond(), many(14)[10:])
    written = [s for s in said if s.startswith("update asking")]
    assert len(written) == (10 // 3 + 1) + (4 // 3 + 1)
    assert usage(journal, run="r").seconds == pytest.approx(5.0 + 2.0)
    assert journal.budget.seconds == pytest.approx(107.0)
