"What is asked, of which sentence and how hard: shares are kept, first questions come first, and quotas hold."
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, strategies as st

from distillery.core.config import load_config
from distillery.core.records import Chunk
from distillery.pairs import slots
from distillery.pairs.slots import answer_slots, carries_fact, chance, difficulties, plan_slots, refusal_quota, slot_windows

CONFIG = load_config()


def chunk(name, sentences=4, category="rooms"):
    text = " ".join(f"Machine {name}{i} stands in the hall of the mill." for i in range(sentences))
    return Chunk(chunk_id=name, doc_id="d", heading="Rooms", text=text, start=0, end=len(text), category=category)


def with_dataset(**changes):
    return CONFIG.model_copy(update={"dataset": CONFIG.dataset.model_copy(update=changes)})


@given(st.integers(1, 100))
def test_a_sentence_of_4_to_80_words_can_carry_a_fact(n):
    assert carries_fact(" ".join(["word"] * n) + ".") == (4 <= n <= 80)


def test_three_words_of_another_script_say_as_much_as_four():
    assert [carries_fact(s) for s in ("Пресс стоит дорого.", "Пресс стоит.", "The press costs.")] == [True, False, False]


@pytest.mark.parametrize("line", ["Who runs the old machine?", "The machines are these:", "RAVEN 74 HALL 3"])
def test_questions_announcements_and_scraps_carry_none(line): assert not carries_fact(line)


@given(st.integers(0, 10_000))
def test_the_first_question_of_a_sentence_is_a_plain_one_and_the_next_a_hard_one(name):
    drawn = difficulties({"easy": 0.3, "medium": 0.4, "hard": 0.3}, name)
    assert "medium" in drawn, "the most frequent one is always asked"
    assert drawn[0] != "hard"
    assert "hard" not in drawn[2:]
    assert len(drawn) == len(set(drawn))


def test_a_difficulty_as_frequent_as_the_most_frequent_is_always_drawn_and_one_of_no_share_never(monkeypatch):
    assert all(set(difficulties({"easy": 0.5, "medium": 0.5, "hard": 0.0}, n)) == {"easy", "medium"} for n in range(50))
    monkeypatch.setattr(slots, "chance", lambda *names: 0.5)
    assert difficulties({"easy": 0.4, "medium": 0.8}) == ["medium"], "drawn below its share, not at it"


def test_a_window_ends_with_the_passage_that_fills_it():
    passages, config = [chunk(name) for name in "abc"], with_dataset(questions_per_chunk=4)
    sizes = lambda least: [(len(some), len(plan)) for some, plan in slot_windows(passages, config, least)]
    assert sizes(10) == sizes(6) == [(2, 10), (1, 6)]
    assert sizes(11) == sizes(None) == [(3, 16)]


def test_every_sentence_is_asked_before_any_is_asked_twice_and_again_in_a_second_round():
    passage = chunk("a", 5)
    many = answer_slots(passage, with_dataset(questions_per_chunk=99))
    by_replica = Counter(s.replica for s in many)
    assert by_replica[0] == by_replica[10] == 5, "each sentence once in each of two rounds"
    assert set(by_replica) <= {0, 1, 2, 10, 11, 12}
    assert [s.replica for s in many] == sorted(s.replica for s in many)
    assert len({s.slot_id for s in many}) == len(many)
    assert all(s.slot_id.isalnum() and len(s.slot_id) == 12 for s in many)
    for n in (1, 4, 7): assert answer_slots(passage, with_dataset(questions_per_chunk=n)) == many[:n]


def test_a_sentence_that_stands_twice_in_a_passage_is_no_fault():
    text = "Machine 7 stands in the hall. " * 2
    twice = Chunk(chunk_id="a", doc_id="d", heading="", text=text, start=0, end=len(text), category="rooms")
    assert len({s.focus.start for s in answer_slots(twice, with_dataset(questions_per_chunk=99))}) == 2


def test_the_two_rounds_are_drawn_apart():
    passage, config = chunk("a", 40), with_dataset(questions_per_chunk=999)
    first, second = ({s.focus.text: s.difficulty for s in answer_slots(passage, config) if s.replica == replica} for replica in (0, 10))
    assert first.keys() == second.keys()
    assert first != second
    orders = [[s.focus.start for s in answer_slots(passage, config) if s.replica == replica] for replica in (0, 10)]
    assert orders[0] != orders[1]


def test_the_first_round_is_drawn_as_it_always_was():
    "Names of slots are in journals: neither round may come to be drawn otherwise."
    passage, d = chunk("a", 6), CONFIG.dataset
    for slot in answer_slots(passage, with_dataset(questions_per_chunk=99)):
        turn, rank = divmod(slot.replica, 10)
        names = (d.difficulty_mix, d.seed, passage.text, slot.focus.text)
        assert slot.difficulty == (difficulties(*names, 1) if turn else difficulties(*names))[rank]
    first = [s for s in answer_slots(passage, with_dataset(questions_per_chunk=99)) if s.replica == 0]
    draws = [chance(d.seed, s.focus.text, 0) for s in first]
    assert all(a < b for a, b in pairwise(draws))


@given(st.integers(0, 200), st.floats(0, 0.9), st.integers(0, 50))
def test_unanswerable_questions_are_the_share_wanted_of_all(n, share, name):
    quota = refusal_quota(chunk(str(name)), n, with_dataset(refusal_share=share))
    exact = n * share / (1 - share)
    assert exact - 1 < quota < exact + 1
    whole = refusal_quota(chunk(str(name)), n, with_dataset(refusal_share=0.5))
    assert whole == n


@given(st.lists(st.tuples(st.integers(0, 6), st.sampled_from(("rooms", "staff"))), max_size=8), st.integers(1, 30), st.integers(1, 6))
def test_a_category_keeps_to_its_families_and_refusals_go_with_their_wordings(pages, samples, variations):
    chunks = [chunk(f"c{i}-", n, category) for i, (n, category) in enumerate(pages)]
    config = with_dataset(samples_per_category=samples, variations_per_question=variations, refusal_share=0.5)
    plan, left = plan_slots(chunks, config), Counter(rooms=max(1, samples // variations), staff=max(1, samples // variations))
    kinds = Counter((s.chunk_id, s.kind) for s in plan)
    for c in chunks:
        families = min(len(answer_slots(c, config)), left[c.category])
        left[c.category] -= families
        assert kinds[c.chunk_id, "answer"] == families
        assert kinds[c.chunk_id, "refusal"] == families * variations
