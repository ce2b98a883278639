"""Prompts, slots and generation: nothing asked twice, nothing kept that is not in its page."""
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings, strategies as st

from distillery.core.config import load_config
from distillery.core.errors import DistilleryError
from distillery.pairs import limits
from distillery.pairs.asking import make_request
from distillery.pairs.chunk import chunk_documents
from distillery.pairs.documents import read_documents
from distillery.pairs.generate import generate_pairs
from distillery.pairs.prompts import KINDS, load_pack, pack_names
from distillery.pairs.slots import plan_slots
from distillery.teachers.journal import Journal
from distillery.teachers.protocol import ChatResult, Task, failed

from pairs_oracle import Oracle, write_handbook

CONFIG = load_config(preset="handbook")


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    folder = tmp_path_factory.mktemp("book")
    facts = write_handbook(folder, 6)
    return facts, chunk_documents(read_documents(folder).documents)


def test_every_pair_stands_on_its_characters(book, tmp_path):
    facts, chunks = book
    made = generate_pairs(chunks, Oracle(facts, wrong=0.2), Journal(tmp_path / "j.sqlite"), CONFIG)
    texts = {c.chunk_id: c for c in chunks}
    answers = [p for p in made.pairs if p.kind == "answer"]
    assert all(texts[p.chunk_id].text[p.evidence.start - texts[p.chunk_id].start :].startswith(p.answer) for p in answers)
    assert {p.answer for p in made.pairs if p.kind == "refusal"} == {limits.REFUSAL}
    assert not any("made up" in p.answer for p in made.pairs)
    assert made.counts["answer: the answer is not in the passage"] > 0
    assert sum(f.sentence in texts[c].text for c in texts for f in facts) == len(facts)
    taught = {f.sentence for f in facts for p in answers if f.sentence in texts[p.chunk_id].text and p.answer in f.sentence}
    assert len(taught) >= 0.9 * len(facts)


def test_shares_and_families(book, tmp_path):
    facts, chunks = book
    made = generate_pairs(chunks, Oracle(facts), Journal(tmp_path / "j.sqlite"), CONFIG)
    kinds, families = Counter(p.kind for p in made.pairs), Counter(p.family_id for p in made.pairs)
    assert kinds["refusal"] / kinds.total() == pytest.approx(CONFIG.dataset.refusal_share, abs=0.04)
    assert max(families.values()) == CONFIG.dataset.variations_per_question
    assert len({p.question.lower() for p in made.pairs if p.kind == "answer"}) == kinds["answer"]
    answers = {}
    for p in made.pairs: assert limits.same_answer(answers.setdefault(p.family_id, p.answer), p.answer)
    assert len({p.id for p in made.pairs}) == len(made.pairs)


def test_a_rerun_asks_nothing_and_a_kill_loses_nothing(book, tmp_path):
    facts, chunks = book
    whole = Oracle(facts)
    expected = generate_pairs(chunks, whole, Journal(tmp_path / "a.sqlite"), CONFIG)
    asked, total = 0, whole.seen
    knows = Oracle(facts)
    for stop in (50, 120, 200, None):
        knows.die_after = None if stop is None else knows.seen + stop
        try: made = generate_pairs(chunks, knows, Journal(tmp_path / "b.sqlite"), CONFIG)
        except KeyboardInterrupt: continue
        asked = knows.seen
    assert asked == total
    assert made == expected


def test_it_does_not_matter_which_answer_comes_first(book, tmp_path):
    facts, chunks = book

    class Forwards(Oracle):
        "Rewords all questions of a difficulty alike, so that slots compete for a wording."
        async def stream(self, requests):
            for r in self.ordered(requests):
                same = ChatResult(r.key, f"Which of the {int(r.seed) % 40} is meant?", "stop", 1, 1, 0.0)
                if r.task.kind == "rephrase": yield same
                else:
                    async for result in super().stream([r]): yield result

        def ordered(self, requests): return list(requests)

    class Backwards(Forwards):
        def ordered(self, requests): return list(requests)[::-1]
    one, other = (generate_pairs(chunks, kind(facts), Journal(tmp_path / f"{kind.__name__}.sqlite"), CONFIG)
                  for kind in (Forwards, Backwards))
    assert one.rejected
    assert other.rejected == one.rejected
    assert [p.id for p in other.pairs] == [p.id for p in one.pairs]


def test_one_failing_request_is_one_reply_less(book, tmp_path):
    facts, chunks = book

    class Flaky(Oracle):
        async def stream(self, requests):
            for i, r in enumerate(requests):
                if i % 7 == 3: yield failed(r, TimeoutError("no answer within 600 s"))
                elif i % 7 == 5: yield replace(ChatResult(r.key, self.reply(r), "stop"), finish_reason="length")
                else: yield ChatResult(r.key, self.reply(r), "stop")

    made = generate_pairs(chunks, Flaky(facts), Journal(tmp_path / "j.sqlite"), CONFIG)
    assert made.counts["question: the request failed"] > 0
    assert made.counts["question: cut off at the most tokens allowed"] > 0
    assert made.pairs


def test_a_teacher_that_never_answers_is_an_error(book, tmp_path):
    facts, chunks = book

    class Dead(Oracle):
        async def stream(self, requests):
            for r in requests: yield failed(r, ConnectionError("refused"))

    with pytest.raises(DistilleryError, match=r"answered none of .* refused"):
        generate_pairs(chunks, Dead(facts), Journal(tmp_path / "j.sqlite"), CONFIG)


def test_more_pages_change_no_old_slot(book):
    _, chunks = book
    names = lambda some: {s.slot_id for s in plan_slots(some, CONFIG)}
    assert names(chunks[:6]) <= names(chunks)


def test_the_mix_and_the_cap_are_kept(book):
    _, chunks = book
    capped = load_config(preset="handbook", overrides={"dataset.questions_per_chunk": 3, "dataset.refusal_share": 0.0})
    assert max(Counter(s.chunk_id for s in plan_slots(chunks, capped)).values()) == 3
    quota = load_config(preset="handbook", overrides={"dataset.samples_per_category": 6, "dataset.variations_per_question": 3})
    per = Counter(s.category for s in plan_slots(chunks, quota) if s.kind == "answer")
    assert set(per.values()) == {2}
    easy = load_config(overrides={"dataset.difficulty_mix": {"easy": 1.0}})
    assert {s.difficulty for s in plan_slots(chunks, easy) if s.kind == "answer"} == {"easy"}


@pytest.mark.parametrize(("knob", "value", "reason"), [
    ("generation_limits.max_question_words", 2, "max_question_words"),
    ("generation_limits.min_question_length", 500, "min_question_length"),
    ("generation_limits.min_answer_length", 500, "min_answer_length")])
def test_limits_reject_and_are_named(book, tmp_path, knob, value, reason):
    facts, chunks = book
    strict = load_config(preset="handbook", overrides={knob: value, "llm_defaults.long_question_skip_prob": 0.0})
    with pytest.raises(DistilleryError, match=reason): generate_pairs(chunks, Oracle(facts), Journal(tmp_path / "j.sqlite"), strict)


@pytest.mark.parametrize("changed", [{"dataset.seed": 1}, {"dataset.temperatures.question": 0.1},
                                     {"generation_limits.question_max_tokens": 9},
                                     {"llm_defaults.stop_sequences": ["!"]}, {"prompts.pack": "technical-docs"}])
def test_result_knobs_change_the_request(changed):
    task = Task("ask", passage="## A\n\nThe press is red.", sentence="The press is red.", difficulty="easy")
    plain, other = CONFIG, load_config(preset="handbook", overrides=changed)
    assert make_request("k", task, load_pack(plain.prompts.pack), plain) != make_request("k", task, load_pack(other.prompts.pack), other)


def test_the_handbook_pack_is_the_contract_of_the_tiny_model():
    pack, passage, line = load_pack("handbook"), "## A\n\nThe press is red.", "The press is red."
    assert pack["answer"].render(passage=passage, question="Is it?") == f"{passage}\n\nQuestion: Is it?"
    assert pack["ask"].render(passage=passage, difficulty="hard", sentence=line) == f"{passage}\n\nAsk one hard question about: {line}"
    assert pack["rephrase"].render(question="Is it?") == "Rephrase: Is it?"


@pytest.mark.parametrize("pack", pack_names())
def test_a_document_cannot_write_its_own_prompt(pack):
    evil = "{{ 7 * 7 }} {% raw %} {{ ''.__class__ }} <script>"
    fields = {"passage": evil, "sentence": evil, "question": evil, "difficulty": "easy", "category": evil, "max_words": 15}
    assert all(evil in load_pack(pack)[kind].render(**fields) for kind in KINDS)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="aB3.,: $(", min_size=1, max_size=30), st.integers(0, 29), st.integers(1, 12))
def test_a_span_is_found_where_it_says(text, start, length):
    answer = " ".join(text[start : start + length].split())
    span = limits.find_span(text, answer)
    if span: assert " ".join(text[span[0] : span[1]].split()).lower() == answer.lower()
    if answer and text.strip() == answer: assert span


def test_resume_knobs_leave_subjects_out(book):
    _, chunks = book
    army = [chunks[0].model_copy(update={"heading": "Military service"}), chunks[1].model_copy(update={"heading": "References"})]
    assert len({s.chunk_id for s in plan_slots(army, load_config())}) == 2
    assert not plan_slots(army, load_config(overrides={"dataset.include_military": False, "dataset.has_recommendations": False}))


