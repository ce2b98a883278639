"The circuit breaker against a plain model of it, over made-up histories of calls that overlap, and against a wall clock that is set back."
import contextlib
import time

import pytest
from hypothesis import given, strategies as st

from distillery.core.errors import DistilleryError
from distillery.wire.breaker import Breaker, CircuitOpen, guarded
from distillery.wire.completion import BadReply
from distillery.wire.http import Busy, Refused
from distillery.wire.options import server_failed

WAIT = 10.0
FAILS, IS_WELL, IS_CANCELLED = OSError("no reply"), ValueError("a bad request"), KeyboardInterrupt()
ENDS = {"answer": None, "failure": FAILS, "refusal": IS_WELL, "cancelled": IS_CANCELLED}
EVENTS = st.lists(st.one_of(
    st.tuples(st.just("begin"), st.integers(0, 0)),
    st.tuples(st.sampled_from(sorted(ENDS)), st.integers(0, 9)),
    st.tuples(st.just("pass"), st.integers(1, 15))), max_size=60)


class Call:
    "A call under way, ended when the history says so."

    def __init__(self, breaker):
        self.opening, self.context = breaker.opened_at, guarded(breaker)
        self.context.__enter__()

    def end(self, how):
        error = ENDS[how]
        with contextlib.suppress(OSError, ValueError, KeyboardInterrupt):
            self.context.__exit__(type(error) if error else None, error, None)


@given(EVENTS, st.integers(1, 4))
def test_it_lets_through_and_learns_as_the_model_says(events, failures):
    now, running, row, opened = 0.0, [], 0, None
    breaker = Breaker(failures, WAIT, lambda error: error is FAILS, clock=lambda: now)
    for kind, amount in events:
        if kind == "pass": now += amount
        elif kind == "begin":
            if opened is not None and now < opened + WAIT:
                with pytest.raises(CircuitOpen): Call(breaker)
            else: running.append(Call(breaker))
        elif running:
            call = running.pop(amount % len(running))
            call.end(kind)
            if kind == "cancelled" or call.opening != opened: continue
            row = row + 1 if kind == "failure" else 0
            if row == 0: opened = None
            elif row >= failures or opened is not None: opened = now
        assert breaker.opened_at == opened
        assert breaker.wait() == (0.0 if opened is None else max(0.0, opened + WAIT - now))


@given(st.floats(-1e9, 1e9))
def test_a_wall_clock_that_is_set_changes_no_wait(jump):
    breaker, wall = Breaker(1, WAIT, lambda error: True), time.time
    with pytest.raises(OSError, match="no reply"), guarded(breaker): raise FAILS
    before = breaker.wait()
    try:
        time.time = lambda: wall() + jump
        assert before - 1 < breaker.wait() <= before
    finally: time.time = wall


def test_what_counts_as_a_failure_of_a_server():
    well = [Refused("status 400"), DistilleryError("no key", "set it"), Busy(429, None), Busy(503, 2.0)]
    assert [server_failed(error) for error in well] == [False] * 4
    assert all(server_failed(error) for error in (Busy(500, None), Busy(503, None), BadReply("half"), TimeoutError(), OSError()))
