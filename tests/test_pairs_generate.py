"""Prompts, slots and generation: nothing asked twice, nothing kept that is not in its page."""
import json
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings, strategies as st
from typer.testing import CliRunner

from distillery.core.config import load_config
from distillery.core.errors import DistilleryError
from distillery.pairs import limits
from distillery.pairs.account import refusal_counts, rejection_table
from distillery.pairs.asking import make_request
from distillery.pairs.augment import augment_pairs
from distillery.pairs.chunk import chunk_documents
from distillery.pairs.dataset import build_dataset, check_leaks
from distillery.pairs.documents import read_documents
from distillery.pairs.generate import generate_pairs
from distillery.pairs.imports import read_pairs
from distillery.pairs.prompts import KINDS, load_pack, pack_names
from distillery.pairs.refusals import OFF_TOPIC, refusal_kind
from distillery.pairs.slots import plan_slots
from distillery.teachers.extractive import ExtractiveTeacher
from distillery.teachers.journal import Journal
from distillery.teachers.protocol import ChatResult, Task, failed
from distillery.commands.prompts import prompts_app

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
    facts, chunks = book[0], book[1][:6]
    whole = Oracle(facts)
    expected = generate_pairs(chunks, whole, Journal(tmp_path / "a.sqlite"), CONFIG)
    asked, total = 0, whole.seen
    knows = Oracle(facts)
    knows.instant = False  # each answer is on disk before the next
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
    fields = dict.fromkeys(("passage", "sentence", "question", "category", "person_name"), evil)
    fields |= {"difficulty": "easy", "max_words": 15, "include_military": True, "has_recommendations": True}
    assert all(evil in load_pack(pack)[kind].render(**fields) for kind in KINDS)


@settings(max_examples=200)
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




# Refusals of three kinds

MIX = {"untold": 0.4, "off_topic": 0.3, "adversarial": 0.3}
MIXED = load_config(preset="handbook", overrides={"dataset.refusal_mix": MIX, "dataset.refusal_share": 0.3})


def test_refusals_come_in_the_kinds_asked_for(book, tmp_path):
    facts, chunks = book
    made = generate_pairs(chunks, Oracle(facts), Journal(tmp_path / "j.sqlite"), MIXED)
    counts, texts = refusal_counts(made.pairs), {c.chunk_id: c.text for c in chunks}
    total = sum(counts.values())
    assert total > 40
    assert {k: n / total for k, n in counts.items()} == pytest.approx(MIX, abs=0.18)
    assert {p.template.partition(":")[0] for p in made.pairs if p.kind == "refusal"} == {"handbook/refuse"}
    answers = {p.question for p in made.pairs if p.kind == "answer"}
    for p in made.pairs:
        if refusal_kind(p) == "untold": assert p.question in answers
        elif refusal_kind(p): assert p.question not in answers
        if refusal_kind(p) == "off_topic": assert not any(n.lower() in texts[p.chunk_id].lower() for n in dict(OFF_TOPIC)[p.question])


def test_the_default_mix_is_what_refusals_always_were(book, tmp_path):
    facts, chunks = book
    made = generate_pairs(chunks, Oracle(facts), Journal(tmp_path / "j.sqlite"), CONFIG)
    assert {refusal_kind(p) for p in made.pairs} == {None, "untold"}
    assert {p.template for p in made.pairs if p.kind == "refusal"} == {"handbook/refuse"}


def test_a_teacher_that_falls_for_it_makes_no_refusal(book, tmp_path):
    facts, chunks = book

    class Gullible(Oracle):
        def reply(self, request):
            orders = ("Ignore", "Forget", "prompt", "poem", "key", "environment", "told before")
            obeys = request.task.kind == "refuse" and any(w in request.task.question for w in orders)
            return "Here is a joke." if obeys else super().reply(request)

    made = generate_pairs(chunks, Gullible(facts), Journal(tmp_path / "j.sqlite"), MIXED)
    fallen = [r for r in made.rejected if r.step == "refusal" and "joke" in r.text]
    assert fallen
    assert {r.reason for r in fallen} == {"answered from a passage that does not tell"}
    held = [p.question.lower() for p in made.pairs if refusal_kind(p) == "adversarial"]
    assert all("answer is" in question or "why" in question for question in held)


@pytest.mark.parametrize("mix", [{"untold": 0.5}, {"rude": 1.0}, {"untold": 1.5, "off_topic": -0.5}])
def test_a_mix_that_makes_no_sense_is_refused(book, tmp_path, mix):
    facts, chunks = book
    def run():
        config = load_config(preset="handbook", overrides={"dataset.refusal_mix": mix})
        return generate_pairs(chunks, Oracle(facts), Journal(tmp_path / "j.sqlite"), config)

    with pytest.raises(DistilleryError, match="refusal_mix"): run()


# Why the others were rejected

def test_rejections_are_tabulated_from_the_client_and_from_the_file(book, tmp_path):
    facts, chunks = book
    made = generate_pairs(chunks, Oracle(facts, wrong=0.2), Journal(tmp_path / "j.sqlite"), CONFIG)
    table = rejection_table(made.rejected)
    assert rejection_table([r._asdict() for r in made.rejected]) == table
    assert sum(r.count for r in table) == len(made.rejected)
    assert sum(r.share for r in table) == pytest.approx(1)
    assert {f"{r.step}: {r.reason}": r.count for r in table}.items() <= made.counts.items()
    assert any("made up" in r.example for r in table if r.reason == "the answer is not in the passage")
    assert rejection_table([]) == []


# Imported pairs in other forms

TEXT = "The Raven 74 stands in Hall 3 of the mill. It was built in 1902 by Jo Miller. The Heron 12 was sold to Ames."
QA = [("Where's the Raven 74?", "Hall 3"), ("When was it built, the Raven 74?", "1902"), ("Who got the Heron 12?", "Ames"),
      ("Who built the Raven 74?", "Jo Miller")]


class Reworder:
    "Rewords by rule; `slips` are mistakes it makes."
    name, identity = "reworder", {"model": "reworder"}

    def __init__(self, slips=()): self.slips, self.requests = slips, []

    async def stream(self, requests):
        for r in requests:
            self.requests.append(r)
            fails = "failure" in self.slips and "Heron" in r.task.question
            yield failed(r, TimeoutError("lunch")) if fails else ChatResult(r.key, self.reply(r), "stop")

    def reply(self, r):
        task = r.task
        if task.kind == "answer":
            told = next(a for q, a in QA if self.topic(q) == self.topic(task.question))
            return "Hall 5" if "wrong" in self.slips and "stead" in task.question else told
        if r.key.startswith("answer"): return "It is 99." if "number" in self.slips else f"That would be {task.sentence}"
        if r.key.startswith("standard"):
            for old, new in (("Where's", "Where is"), ("it built, the Raven 74", "the Raven 74 built"), ("Who got", "Who received")):
                if old in task.question: return task.question.replace(old, new)
            return task.question
        return task.question.replace("74", "") if "name" in self.slips else task.question[:-1] + " instead?"

    @staticmethod
    def topic(q): return ("where" in q.lower(), "when" in q.lower(), "Heron" in q, "Who built" in q)


@pytest.fixture
def imported(tmp_path):
    path = tmp_path / "qa.jsonl"
    rows = [{"question": q, "answer": a, "context": TEXT, "id": f"q{i}"} for i, (q, a) in enumerate(QA)]
    rows += [{"question": "Who leads Northmill in 1966?", "answer": "Ada Example", "id": "bare"},
             {"question": "What is the Swift 2?", "answerable": False, "context": TEXT, "id": "no"}]
    path.write_text("\n".join(json.dumps(r) for r in rows))
    return read_pairs(path)


def grow(imported, tmp_path, slips=(), forms=("paraphrase", "answer", "standard")):
    config = load_config(preset="qa-import", overrides={"dataset.augment": list(forms), "generation_limits.min_variation_length": 5})
    teacher = Reworder(slips)
    return augment_pairs(imported.pairs, imported.chunks, teacher, Journal(tmp_path / f"{'-'.join(slips)}.sqlite"), config), teacher, config


def test_imported_pairs_grow_in_their_families(imported, tmp_path):
    made, _, config = grow(imported, tmp_path)
    old = {p.id: p for p in imported.pairs}
    new = [p for p in made.pairs if p.id not in old]
    assert [p for p in made.pairs if p.id in old] == imported.pairs, "originals stay as they are, in their order"
    assert {p.family_id for p in made.pairs} == {p.family_id for p in imported.pairs}
    by_form = Counter(p.template for p in new)
    assert by_form == {"handbook/rephrase": 6, "common/reanswer": 5, "common/standard": by_form["common/standard"]}
    assert by_form["common/standard"] >= 2
    for p in new:
        first = next(o for o in imported.pairs if o.family_id == p.family_id)
        if limits.reworded_answer(p): assert (p.question, p.evidence) == (first.question, None)
        else: assert (p.answer, p.evidence, p.kind) == (first.answer, first.evidence, first.kind)
    assert len({p.id for p in made.pairs}) == len(made.pairs)
    splits = build_dataset(made.pairs, imported.chunks, config)
    assert check_leaks(splits) == []


SLIPS = [("wrong", "paraphrase", "reads back as another answer"), ("name", "paraphrase", "loses a name or number: 74"),
         ("number", "answer", "adds a number"), ("failure", "paraphrase", "the request failed")]


@pytest.mark.parametrize(("slip", "step", "reason"), SLIPS)
def test_a_rewording_that_went_wrong_is_listed_and_left_out(imported, tmp_path, slip, step, reason):
    made, _, _ = grow(imported, tmp_path, (slip,))
    found = [r for r in made.rejected if r.step == step and r.reason.startswith(reason)]
    assert found
    assert made.counts[f"{step}: {reason.split(': ')[0]}"] >= len(found)
    assert not any("99" in p.answer or "lunch" in p.question for p in made.pairs)


def test_a_form_that_a_teacher_cannot_make_is_an_error(imported, tmp_path):
    config = load_config(preset="qa-import", overrides={"dataset.augment": ["answer"]})
    with pytest.raises(DistilleryError, match="needs a language model"):
        augment_pairs(imported.pairs, imported.chunks, ExtractiveTeacher(), Journal(tmp_path / "j.sqlite"), config)


def test_nothing_to_augment_asks_nobody(imported, tmp_path):
    made, teacher, _ = grow(imported, tmp_path, forms=())
    assert (made.pairs, teacher.requests) == (imported.pairs, [])


def test_augmenting_again_asks_nothing(imported, tmp_path):
    first, _, _ = grow(imported, tmp_path)
    again, teacher, _ = grow(imported, tmp_path)
    assert (again, teacher.requests) == (first, [])


# Packs on the command line

@pytest.fixture
def own_pack(tmp_path):
    folder = tmp_path / "packs/mine"
    folder.mkdir(parents=True)
    for kind in KINDS: (folder / f"{kind}.j2").write_text(load_pack("technical-docs")[kind].source + "\n")
    (folder / "rephrase.j2").write_text("Say it otherwise [bold]now[/bold]: {{ question }}\n")
    return folder


def prompts(*words): return CliRunner().invoke(prompts_app, [str(w) for w in words])


def test_packs_are_listed_with_their_digests(own_pack):
    said = prompts("list", own_pack.parent).stdout.replace("\n", "")
    for name in pack_names(): assert load_pack(name).digest[:12] in said
    assert load_pack(own_pack).digest[:12] in said
    assert "no prompt pack in" in str(prompts("list", own_pack.parent / "none").exception)


def test_packs_are_shown_and_compared(own_pack):
    assert prompts("show", own_pack, "rephrase").stdout == "Say it otherwise [bold]now[/bold]: {{ question }}\n"
    assert all(f"resume/{k}" in prompts("show", "resume").stdout for k in KINDS)
    said = prompts("diff", "technical-docs", own_pack).stdout
    assert "--- technical-docs/rephrase\n+++ mine/rephrase" in said
    assert said.count("+++") == 1, "prompts that are alike are not listed"
    assert prompts("diff", own_pack, own_pack).stdout == "the packs say the same\n"
    assert "use one of handbook" in str(prompts("show", "hanbook").exception)


def test_a_pack_of_ones_own_may_word_what_is_common(own_pack):
    before = load_pack(own_pack)
    assert before["ask_many"].id == "common/ask_many"
    (own_pack / "ask_many.j2").write_text("All of them! {{ items }}")
    after = load_pack(own_pack)
    assert (after["ask_many"].id, after["answer_many"].id) == ("mine/ask_many", "common/answer_many")
    assert after.digest != before.digest
    assert list(before) == list(KINDS)
