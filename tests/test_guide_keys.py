"Every key of the guide's generation tables, one by one: what changes when it changes, as somebody outside can see it."
import contextlib
import logging
import re
from pathlib import Path

import pytest

from distillery.core.config import flatten, load_config
from distillery.core.errors import DistilleryError
from distillery.core.records import Chunk
from distillery.pairs.chunk import chunk_documents
from distillery.pairs.dataset import build_dataset
from distillery.pairs.documents import read_documents
from distillery.pairs.generate import generate_pairs
from distillery.pairs.slots import plan_slots
from distillery.teachers.journal import Journal
from distillery.teachers.protocol import ChatResult

from pairs_oracle import Oracle, write_handbook
from warm import run_code

TABLES = ("dataset", "llm_defaults", "generation_limits", "validation")
KEYS = """
dataset.samples_per_category dataset.variations_per_question dataset.temperatures.question dataset.temperatures.answer
dataset.temperatures.variation dataset.train_split dataset.seed dataset.include_military dataset.has_recommendations
llm_defaults.temperature llm_defaults.max_tokens llm_defaults.variation_max_tokens llm_defaults.long_question_skip_prob
llm_defaults.stop_sequences generation_limits.question_max_tokens generation_limits.answer_max_tokens generation_limits.min_question_length
generation_limits.min_answer_length generation_limits.min_variation_length generation_limits.max_question_words
generation_limits.max_answer_sentences generation_limits.max_answer_words validation.context_token_warn person_name
""".split()
GUIDE = Path(__file__).resolve().parents[2] / "shared/seeds"
SEEN: set[str] = set()  # keys whose effect a test below has looked at
BY = {"person_name": "prompts.person_name"}  # what the guide calls otherwise; `person_full_name` is another person_name


def guide(name):
    "Names the key a test is about."
    def mark(test):
        SEEN.add(name)
        return test
    return mark


def test_the_list_is_the_guides():
    found = sorted(GUIDE.glob("002_*.txt")) if GUIDE.is_dir() else []
    if not found: pytest.skip("the guide is not here: ../shared/seeds is no part of the project")
    text = found[0].read_text("utf-8")
    tables = text[text.index("## Dataset Generation Knobs") : text.index("## LoRA Knobs")]
    told = set(re.findall(r"^\|\s*`([a-z_.]+)`", tables, re.M))
    assert {name.split(".")[0] for name in told} == set(TABLES)
    assert told == set(KEYS) - {"person_name"}
    assert "`person_name`" in text


def test_every_key_is_a_knob_with_a_test_below():
    assert {BY.get(k, k) for k in KEYS} <= set(flatten(load_config()))
    assert set(KEYS) == SEEN


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    folder = tmp_path_factory.mktemp("book")
    facts = write_handbook(folder, 3)
    return facts, chunk_documents(read_documents(folder).documents)


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    "Pairs and passages of ten pages."
    folder = tmp_path_factory.mktemp("many")
    facts, config = write_handbook(folder, 10), load_config(preset="handbook", overrides={"dataset.questions_per_chunk": 4})
    chunks = chunk_documents(read_documents(folder).documents)
    return generate_pairs(chunks, Oracle(facts), Journal(folder / "j.sqlite"), config).pairs, chunks


class Recorder(Oracle):
    "Remembers what it was asked; `say` rewrites what it answers."

    def __init__(self, facts, say=lambda request, text: text):
        super().__init__(facts)
        self.say, self.requests = say, []

    async def stream(self, requests):
        for r in requests:
            self.requests.append(r)
            yield ChatResult(r.key, self.say(r, self.reply(r)), "stop")

    def of(self, kind): return [r for r in self.requests if r.task.kind == kind]


@pytest.fixture
def generate(book, tmp_path):
    def run(say=lambda request, text: text, chunks=None, **changed):
        config = load_config(preset="handbook", overrides={name.replace("__", "."): value for name, value in changed.items()})
        teacher = Recorder(book[0], say)
        journal = Journal(tmp_path / f"{len(list(tmp_path.iterdir()))}.sqlite")
        return generate_pairs(chunks or book[1], teacher, journal, config), teacher, config
    return run


def rejections(made, reason): return sum(r.reason.startswith(reason) or reason in r.reason for r in made.rejected)


# How many, and how they are sampled

@guide("dataset.samples_per_category")
def test_samples_per_category_bounds_the_pairs_of_a_category(generate):
    made, _, _ = generate(dataset__samples_per_category=6, dataset__refusal_share=0.0)
    by_category = {c: sum(p.category == c for p in made.pairs) for c in {p.category for p in made.pairs}}
    assert max(by_category.values()) == 6
    assert sum(by_category.values()) < len(generate(dataset__refusal_share=0.0)[0].pairs)


@guide("dataset.variations_per_question")
@pytest.mark.parametrize("n", [1, 2, 3])
def test_variations_per_question_is_the_size_of_a_family(generate, n):
    made, teacher, _ = generate(dataset__variations_per_question=n)
    families = [p.family_id for p in made.pairs if p.kind == "answer"]
    assert max(families.count(f) for f in set(families)) == n
    assert bool(teacher.of("rephrase")) == (n > 1)


@guide("dataset.temperatures.question")
@guide("dataset.temperatures.answer")
@guide("dataset.temperatures.variation")
@guide("llm_defaults.temperature")
def test_temperatures_are_those_of_their_requests(generate):
    _, teacher, _ = generate(dataset__temperatures__question=0.31, dataset__temperatures__answer=0.32,
                             dataset__temperatures__variation=0.33, llm_defaults__temperature=0.34)
    assert {r.task.kind: r.temperature for r in teacher.requests} == {"ask": 0.31, "answer": 0.32, "rephrase": 0.33, "refuse": 0.34}


@guide("generation_limits.question_max_tokens")
@guide("generation_limits.answer_max_tokens")
@guide("llm_defaults.variation_max_tokens")
@guide("llm_defaults.max_tokens")
def test_token_limits_are_those_of_their_requests(generate):
    _, teacher, _ = generate(generation_limits__question_max_tokens=31, generation_limits__answer_max_tokens=32,
                             llm_defaults__variation_max_tokens=33, llm_defaults__max_tokens=34)
    assert {r.task.kind: r.max_tokens for r in teacher.requests} == {"ask": 31, "answer": 32, "rephrase": 33, "refuse": 34}


@guide("llm_defaults.stop_sequences")
def test_stop_sequences_go_with_every_request(generate):
    _, teacher, _ = generate(llm_defaults__stop_sequences=["END", "\n\n"])
    assert {r.stop for r in teacher.requests} == {("END", "\n\n")}


@guide("dataset.seed")
def test_the_seed_draws_slots_requests_and_splits(book, generate):
    (one, asked, config), (other, asked_too, config_too) = generate(dataset__seed=1), generate(dataset__seed=2)
    assert not {r.seed for r in asked.requests} & {r.seed for r in asked_too.requests}
    assert [s.slot_id for s in plan_slots(book[1], config)] != [s.slot_id for s in plan_slots(book[1], config_too)]
    assert {p.id for p in one.pairs} != {p.id for p in other.pairs}
    assert generate(dataset__seed=1)[0] == one


@guide("dataset.seed")
def test_the_seed_draws_the_splits(many):
    split = lambda seed: build_dataset(*many, load_config(preset="handbook", overrides={"dataset.seed": seed}))
    sides = [{name: {e.doc_id for e in rows} for name, rows in split(seed).items()} for seed in (1, 2, 1)]
    assert sides[0] == sides[2] != sides[1]


@guide("dataset.train_split")
def test_the_train_split_moves_documents_to_validation(many):
    documents = {}
    for share in (0.5, 0.9):
        splits = build_dataset(*many, load_config(preset="handbook", overrides={"dataset.train_split": share, "dataset.gold": None}))
        documents[share] = [len({e.doc_id for e in splits[name]}) for name in ("train", "validation")]
    assert documents == {0.5: [4, 4], 0.9: [7, 1]}


# What is asked of a resume

RESUME = {"Work": "Ada Example led the press room of Northmill from 2011 to 2019.",
          "Military service": "Ada Example served as a sergeant in the signal corps from 2003 to 2007.",
          "Recommendations": "Jo Miller, head of Northmill, calls Ada Example the calmest engineer in the house."}
PARTS = [Chunk(chunk_id=f"r{i}", doc_id="resume", heading=heading, text=text, start=0, end=len(text), category=heading.split()[0].lower())
         for i, (heading, text) in enumerate(RESUME.items())]


class Recruiter(Recorder):
    "Asks who it is about, and answers with the first three words of the sentence."

    def reply(self, request):
        task = request.task
        if task.kind == "ask": return f"What does the line tell about {len(task.sentence)} things?"
        if task.kind == "rephrase": return task.question.replace("What does", "Now what does")
        return "Ada Example" if "Ada" in task.passage else "The passage does not tell."


def resume(tmp_path, **changed):
    overrides = {"prompts.pack": "resume", "dataset.refusal_share": 0.0, "generation_limits.min_answer_length": 1,
                 **{k.replace("__", "."): v for k, v in changed.items()}}
    teacher = Recruiter([])
    made = generate_pairs(PARTS, teacher, Journal(tmp_path / f"{len(list(tmp_path.iterdir()))}.sqlite"), load_config(overrides=overrides))
    return made, [r.messages[0].content for r in teacher.requests if r.task.kind == "ask"]


@guide("dataset.include_military")
def test_military_service_is_asked_about_or_not(tmp_path):
    with_it, asked = resume(tmp_path)
    assert "military" in {p.category for p in with_it.pairs}
    assert all("Military service is a subject like any other" in prompt for prompt in asked)
    without, asked = resume(tmp_path, dataset__include_military=False)
    assert "military" not in {p.category for p in without.pairs}
    assert {p.category for p in without.pairs} == {p.category for p in with_it.pairs} - {"military"}
    assert all("Do not ask about military service" in prompt for prompt in asked)
    assert not any("sergeant" in prompt for prompt in asked)


@guide("dataset.has_recommendations")
def test_recommendations_are_asked_about_or_not(tmp_path):
    with_it, asked = resume(tmp_path)
    assert "recommendations" in {p.category for p in with_it.pairs}
    assert all("ask what its author says" in prompt for prompt in asked)
    without, asked = resume(tmp_path, dataset__has_recommendations=False)
    assert "recommendations" not in {p.category for p in without.pairs}
    assert all("never about a recommendation" in prompt for prompt in asked)
    assert not any("calmest" in prompt for prompt in asked)


@guide("person_name")
def test_the_person_is_called_by_name(tmp_path):
    _, anonymous = resume(tmp_path)
    _, named = resume(tmp_path, prompts__person_name="Ada Example")
    assert all("Call the person the person" in prompt for prompt in anonymous)
    assert all("Call the person Ada Example" in prompt and "might ask about Ada Example" in prompt for prompt in named)


# What is rejected

@guide("generation_limits.min_question_length")
def test_short_questions_are_rejected(generate):
    made, _, _ = generate(generation_limits__min_question_length=38)
    assert rejections(made, "shorter than generation_limits.min_question_length") > 0
    assert min(len(p.question) for p in made.pairs if p.template.endswith("/ask")) >= 38
    assert rejections(generate()[0], "min_question_length") == 0


@guide("generation_limits.min_variation_length")
def test_short_rewordings_are_rejected(generate):
    made, _, _ = generate(generation_limits__min_variation_length=38)
    assert rejections(made, "shorter than generation_limits.min_variation_length") > 0
    assert {r.step for r in made.rejected if "min_variation_length" in r.reason} == {"rewording"}
    assert min(len(p.question) for p in made.pairs if p.template.endswith("/rephrase")) >= 38
    assert min(len(p.question) for p in made.pairs if p.template.endswith("/ask")) < 38


@guide("generation_limits.min_answer_length")
def test_short_answers_are_rejected(generate):
    made, _, _ = generate(generation_limits__min_answer_length=9)
    assert rejections(made, "shorter than generation_limits.min_answer_length") > 0
    assert min(len(p.answer) for p in made.pairs if p.kind == "answer") >= 9
    assert min(len(p.answer) for p in generate()[0].pairs if p.kind == "answer") < 9


@guide("generation_limits.max_question_words")
def test_long_questions_are_rejected_and_the_prompt_says_so(generate):
    made, _, _ = generate(generation_limits__max_question_words=8, llm_defaults__long_question_skip_prob=0.0)
    assert rejections(made, "longer than generation_limits.max_question_words") > 0
    assert max(len(p.question.split()) for p in made.pairs if p.kind == "answer") <= 8
    _, teacher, _ = generate(generation_limits__max_question_words=19, prompts__pack="technical-docs")
    assert all("At most 19 words" in r.messages[0].content for r in teacher.of("ask"))


@guide("llm_defaults.long_question_skip_prob")
def test_some_long_questions_are_kept(generate):
    over = {}
    for share in (0.0, 0.5, 1.0):
        made, _, _ = generate(generation_limits__max_question_words=8, llm_defaults__long_question_skip_prob=share)
        over[share] = sum(len(p.question.split()) > 8 for p in made.pairs if p.kind == "answer")
    assert over[0.0] == 0 < over[0.5] < over[1.0]
    assert rejections(made, "max_question_words") == 0, "at 1 all are kept"


WORDY = "The vault of the old mill stands behind the third gate on the left of the yard"


@guide("generation_limits.max_answer_words")
def test_long_answers_are_rejected(generate):
    made, _, _ = generate(generation_limits__max_answer_words=2)
    assert rejections(made, "longer than generation_limits.max_answer_words") > 0
    assert max(len(p.answer.split()) for p in made.pairs if p.kind == "answer") <= 2
    assert max(len(p.answer.split()) for p in generate()[0].pairs if p.kind == "answer") > 2


@guide("generation_limits.max_answer_sentences")
def test_answers_of_many_sentences_are_rejected(tmp_path):
    text = "The vault is old. It is dry. It stands behind the mill. The keeper sleeps in the tower above it."
    chunk = Chunk(chunk_id="c", doc_id="d", heading="Vault", text=text, start=0, end=len(text), category="vault")

    class Quoting(Recorder):
        def reply(self, request):
            task = request.task
            if task.kind == "ask": return f"What is told in the line of {len(task.sentence)} letters?"
            return "It is dry. It stands behind the mill. The keeper sleeps in the tower above it."

    def run(most):
        config = load_config(overrides={"generation_limits.max_answer_sentences": most, "dataset.difficulty_mix": {"hard": 1.0},
                                        "dataset.variations_per_question": 1, "dataset.refusal_share": 0.0})
        return generate_pairs([chunk], Quoting([]), Journal(tmp_path / f"{most}.sqlite"), config)

    with pytest.raises(DistilleryError, match="max_answer_sentences"): run(2)
    assert len(run(3).pairs) > 0


# What deserves a warning

@guide("validation.context_token_warn")
def test_a_long_passage_is_warned_of_and_counted(generate, caplog):
    made, _, _ = generate()
    assert made.counts["prompts over validation.context_token_warn"] == 0
    assert not caplog.records
    with caplog.at_level(logging.WARNING): warned, _, _ = generate(validation__context_token_warn=20)
    said, = (r for r in caplog.records if r.name.startswith("distillery"))
    assert said.levelno == logging.WARNING
    assert re.search(r"^\d+ of \d+ prompts are longer than validation.context_token_warn \(20 tokens\)", said.getMessage())
    assert warned.counts["prompts over validation.context_token_warn"] > 0
    assert warned.pairs == made.pairs, "a warning changes no pair"


def test_many_long_passages_in_one_request_are_warned_of_at_the_default(tmp_path, caplog):
    class Silent(Oracle):
        def reply(self, request): return "?"
    told = "The Gull {} stands in Hall {} beside the pump. "
    texts = ["".join(told.format(100 * c + i, i) for i in range(26)) for c in range(12)]
    chunks = [Chunk(chunk_id=f"c{i}", doc_id=f"d{i}", heading="", text=t, start=0, end=len(t), category="x") for i, t in enumerate(texts)]
    config = load_config(overrides={"dataset.questions_per_call": 12, "dataset.questions_per_chunk": 1, "dataset.refusal_share": 0.0})
    with caplog.at_level(logging.WARNING), contextlib.suppress(DistilleryError):
        generate_pairs(chunks, Silent([]), Journal(tmp_path / "calls.sqlite"), config)
    assert any("prompts are longer than validation.context_token_warn (2000 tokens)" in r.getMessage() for r in caplog.records)


def test_a_warning_reaches_the_terminal(tmp_path):
    code = ("from distillery.core.config import load_config; from distillery.pairs.counts import LongPrompts; "
            "long = LongPrompts(load_config(overrides={'validation.context_token_warn': 10})); long.look('c', 'word ' * 50); long.warn()")
    done = run_code(code)
    assert "1 of 1 prompts are longer than validation.context_token_warn (10 tokens), the longest (c) has 50" in done.stderr
