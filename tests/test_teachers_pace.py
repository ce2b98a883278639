"The limit grows while that helps, settles on the lowest level that is as fast as any, falls on refusals, and lets waiting requests in."
import asyncio
from itertools import islice

import pytest
from hypothesis import given, settings, strategies as st

from distillery.teachers.pace import FADE, LEVELS, Level, Pace, Places


class Clock:
    now = 0.0

    def __call__(self): return self.now


def stretches(pace, speed):
    "Level and length of each stretch, at a server that gives `speed(level)` answers a second."
    while True:
        level, answers, began = pace.limit, 0, pace.began
        while pace.began == began:
            pace.clock.now += 1 / speed(level)
            pace.answered()
            answers += 1
        yield level, answers


def levels(pace, speed, n): return [level for level, _ in islice(stretches(pace, speed), n)]


def knee(slots, each=5.0): return lambda level: each * min(level, slots)


def test_it_doubles_while_that_helps_doubts_once_and_then_looks_to_both_sides_in_turn():
    found = levels(Pace(clock=Clock()), knee(32), 15)
    assert found == [4, 8, 16, 32, 64, 64, 32, 40, 32, 25, 32, 40, 32, 25, 32]


@pytest.mark.parametrize(("failed", "refused"), [(32, False), (33, True)])
def test_more_than_a_fifth_of_failures_is_a_refusal_and_a_fifth_is_none(failed, refused):
    pace = Pace(clock=Clock())
    pace.begin(40, 4)
    for n in range(160): pace.answered(ok=n >= failed)
    assert pace.ceiling == refused


@pytest.mark.parametrize("each", [1e-3, 1.0, 1e3])
def test_the_unit_of_time_does_not_matter(each):
    assert levels(Pace(clock=Clock()), knee(20, each), 20) == levels(Pace(clock=Clock()), knee(20), 20)


@settings(max_examples=40)
@given(st.integers(1, 200))
def test_it_settles_beside_the_number_of_slots(slots):
    pace = Pace(clock=Clock())
    last = levels(pace, knee(slots), 40)[-8:]
    base = min(n for n in LEVELS if n >= min(slots, 0.95 * slots))
    assert set(last) == {pace.beside(base, -1), base, pace.beside(base, 1)}
    assert last.count(base) == (8 if base == 1 else 4) or base == 1


@settings(max_examples=25)
@given(st.integers(1, 100))
def test_a_stretch_has_answers_enough_to_tell(slots):
    "Two for each request in flight while growing, four when settled, and never less than a dozen; the first has four."
    pace = Pace(clock=Clock())
    played, per_request = stretches(pace, knee(slots)), 4
    for _ in range(25):
        level, answers = next(played)
        assert answers == max(12, per_request * level)
        per_request = 2 if pace.growing else 4


def test_a_server_that_becomes_larger_is_found_out():
    pace = Pace(clock=Clock())
    assert max(levels(pace, knee(8), 30)[-4:]) == 10
    grown = levels(pace, knee(64), 60)
    assert [n for n in grown if n > 16][:3] == [32, 64, 128], "once the highest level known is the best, it doubles again"
    assert set(grown[-8:]) == {51, 64, 81}


@pytest.mark.parametrize(("level", "speed", "after"), [(5, 30, 10), (4, 10, 5)])
def test_it_grows_again_only_from_the_highest_level_known(level, speed, after):
    pace = Pace(clock=Clock())
    pace.growing, pace.seen = False, {4: (10.0, 1.0), 5: (30.0, 1.0)}
    pace.begin(level)
    next(stretches(pace, lambda _: speed))
    assert (pace.limit, pace.growing) == (after, level == 5)


def test_what_was_known_of_a_level_fades():
    level = Level(clock=Clock())
    for answers, seconds in ((12, 3.0), (20, 2.0)):
        level.begin(4)
        level.answers, level.clock.now = answers, level.clock.now + seconds
        level.learn()
        if seconds == 3.0: assert level.speed(4) == 12 / 3
    assert level.speed(4) == pytest.approx((20 + FADE * 12) / (2 + FADE * 3))


@given(st.sampled_from(LEVELS), st.integers(-40, 40))
def test_steps_end_at_the_lowest_and_highest_level(level, steps):
    place = min(max(LEVELS.index(level) + steps, 0), len(LEVELS) - 1)
    assert Level().beside(level, steps) == LEVELS[place]


@pytest.mark.parametrize("more", [-2, -1, 0, 1, 2])
@pytest.mark.parametrize("level", [n for n in LEVELS if n <= 128])
def test_more_than_a_fifth_of_failures_in_a_stretch_is_a_refusal_in_other_words(level, more):
    pace = Pace(clock=Clock())
    pace.begin(level)
    failures = pace.wanted // 5 + more
    for failed in [True] * failures + [False] * (pace.wanted - failures):
        assert not pace.ceiling
        pace.clock.now += 0.1
        pace.answered(not failed)
    assert pace.ceiling == (5 * failures > pace.wanted)
    assert not pace.ceiling or pace.limit == pace.beside(level, -1)


def test_a_refusal_lowers_the_level_at_once_and_for_good():
    pace = Pace(clock=Clock())
    levels(pace, knee(100), 3)
    assert pace.limit == 32
    pace.clock.now += 1
    pace.refused(pace.clock.now)
    assert (pace.limit, pace.levels[-1], pace.growing) == (25, 25, False)
    assert max(levels(pace, knee(100), 30)) == 25


def test_what_was_learnt_above_a_refusal_is_forgotten_and_below_it_kept():
    pace = Pace(clock=Clock())
    pace.seen = dict.fromkeys((4, 5, 6, 8, 10), (10.0, 1.0))
    pace.begin(8)
    pace.refused(0.0)
    assert (pace.limit, sorted(pace.seen)) == (6, [4, 5, 6])


def test_only_requests_sent_since_the_last_cut_can_lower_the_level_again():
    pace = Pace(clock=Clock())
    pace.begin(32)
    pace.clock.now = 10.0
    pace.refused(3.0)
    assert pace.limit == 25
    pace.refused(9.9)
    assert pace.limit == 25, "sent before the cut, so at the old level"
    pace.refused(10.0)
    assert pace.limit == 20


def test_a_fixed_level_stays():
    pace = Pace(7, Clock())
    for _ in range(200): pace.answered(False)
    pace.refused(5.0)
    assert (pace.limit, pace.levels) == (7, LEVELS)


def test_a_stretch_without_work_enough_teaches_nothing():
    pace = Pace(clock=Clock())
    pace.starved = True
    assert levels(pace, knee(32), 3) == [4, 4, 8]


# Places

async def until(true):
    for _ in range(100):
        if true(): return
        await asyncio.sleep(0)


async def hold(places, leave):
    async with places.one(): await leave.wait()


def test_room_counts_who_holds_a_place_and_who_waits_for_one():
    async def main():
        places, leave = Places(Level(2)), asyncio.Event()
        seen, tasks = [places.room], []
        for n in (1, 2, 3):
            tasks.append(asyncio.create_task(hold(places, leave)))
            await until(lambda n=n: places.taken + places.waiting == n)
            seen.append((places.room, places.taken, places.waiting))
        leave.set()
        await asyncio.gather(*tasks)
        return [*seen, (places.room, places.taken, places.waiting)]

    assert asyncio.run(main()) == [True, (True, 1, 0), (False, 2, 0), (False, 2, 1), (True, 0, 0)]


def test_a_level_that_rose_lets_in_all_who_fit():
    async def main():
        level, first, rest = Level(1), asyncio.Event(), asyncio.Event()
        places = Places(level)
        tasks = [asyncio.create_task(hold(places, first))]
        await until(lambda: places.taken == 1)
        tasks += [asyncio.create_task(hold(places, rest)) for _ in range(6)]
        await until(lambda: places.waiting == 6)
        level.limit = 4
        first.set()
        await until(lambda: places.taken == 4)
        seen = places.taken, places.waiting
        rest.set()
        await asyncio.gather(*tasks)
        return seen, places.taken, places.waiting

    assert asyncio.run(main()) == ((4, 2), 0, 0)


def test_a_level_that_fell_lets_nobody_in_before_there_is_room():
    async def main():
        level, events = Level(3), [asyncio.Event() for _ in range(4)]
        places = Places(level)
        tasks = [asyncio.create_task(hold(places, e)) for e in events]
        await until(lambda: places.taken == 3 and places.waiting == 1)
        level.limit, seen = 1, []
        for e in events[:3]:
            e.set()
            await asyncio.sleep(0.01)
            seen.append((places.taken, places.waiting))
        events[3].set()
        await asyncio.gather(*tasks)
        return seen

    assert asyncio.run(main()) == [(2, 1), (1, 1), (1, 0)]
