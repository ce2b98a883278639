"One unit: passages, rows and refusals are held against the student's row in its own tokens, before a teacher is asked and after."
import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from distillery.core.config import load_config
from distillery.core.records import Document, Pair
from distillery.engine.plan import Plan
from distillery.engine.source import open_source
from distillery.pairs.chunk import chunk_documents
from distillery.pairs.dataset import make_example, student_prompt
from distillery.pairs.documents import read_documents
from distillery.pairs.fit import fit_example, fit_rows, fit_sentence
from distillery.pairs.room import Room, StudentTokens
from distillery.pairs.stages import pairs_stages
from distillery.workbook.checks import check_row

MINI = StudentTokens("builtin:mini")
CASE = Path(__file__).resolve().parents[2] / "shared/cases/43_passages_longer_than_a_training_row/docs"
PARTS = ("lid", "drum", "feeder", "lamp", "fan", "belt", "tray")
PROSE = "The {} of the Raven {} press is cleaned every {} days with lukewarm water by the {}."

PAIR = Pair(id="p", doc_id="d", chunk_id="c", family_id="f", category="m", difficulty="easy", teacher="t",
            question="Who cleans the Raven 12?", answer="Raven 12")


def prose(first: int, sentences: int = 36) -> str:
    return " ".join(PROSE.format(PARTS[i % 7], first + i, 11 + i % 60, ("operator", "supervisor")[i % 2]) for i in range(sentences))


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    "The case's six plain pages, or the same kind of pages where it is not here."
    folder = tmp_path_factory.mktemp("pages")
    for i in range(6):
        text = (CASE / f"m{i}.md").read_text("utf-8") if CASE.is_dir() else f"# Model {i}\n\n{prose(50 * i)}\n"
        (folder / f"m{i}.md").write_text(text, encoding="utf-8")
    return folder


def ran(docs: Path, cache: Path, **changed: object) -> dict[str, Path]:
    "The stages from documents to dataset, without judging."
    config = load_config(preset="technical-docs", overrides={k.replace("__", "."): v for k, v in changed.items()})
    stages = pairs_stages(open_source(docs, None, None), config, cache)
    judge = next(s for s in stages if s.name == "judge")

    def unjudged(job): (job.out / "pairs.jsonl").write_bytes((job.needs["generate"] / "pairs.jsonl").read_bytes())

    stages[stages.index(judge)] = type(judge)("judge", unjudged, (), judge.needs)
    return {name: done.path for name, done in Plan(stages, config, cache).run().items()}


def rows_of(folder: Path, name: str = "train") -> list[dict]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text("utf-8").splitlines()]


@pytest.mark.slow
def test_rows_of_plain_prose_fit_with_question_and_answer(case, tmp_path):
    made = ran(case, tmp_path)
    rows = [*rows_of(made["dataset"]), *rows_of(made["dataset"], "validation")]
    assert any(r["passage"] for r in rows)
    assert any(r["kind"] == "refusal" for r in rows)
    assert max(MINI.row(r["messages"][0]["content"], r["answer"]) for r in rows) <= 384
    fit = json.loads((made["dataset"] / "fit.json").read_text("utf-8"))
    assert fit["rows"] == len(rows)
    assert fit["rows_left_out"] == fit["refusals_left_out"] == 0


@pytest.mark.slow
def test_a_narrow_row_says_what_it_left_out_and_writes_nothing_longer(case, tmp_path):
    made = ran(case, tmp_path, sft__max_length=60)
    fit = json.loads((made["dataset"] / "fit.json").read_text("utf-8"))
    rows = [*rows_of(made["dataset"]), *rows_of(made["dataset"], "validation")]
    assert max(MINI.row(r["messages"][0]["content"], r["answer"]) for r in rows) <= 60
    assert fit["rows"] + fit["rows_cut"] + fit["refusals_cut"] == len(rows)
    assert fit["rows_left_out"] + fit["refusals_left_out"] > 0
    assert "left out" in fit_sentence(fit)


def test_the_count_is_the_trainers(case):
    transformers = pytest.importorskip("transformers")
    from distillery.teachers.chat import ChatTokenizer
    from distillery.teachers.open import builtin_dir
    from distillery.training.arguments import chat_lengths

    theirs = transformers.AutoTokenizer.from_pretrained(builtin_dir("mini"))
    pair = PAIR.model_copy(update={"question": "Où? 何？", "answer": " Hall 3 "})
    rows = [make_example("train", pair, passage) for passage in (None, prose(3, 4), "日本語の文章です。" * 9, "x" * 300)]
    chats = [[{"role": m.role, "content": m.content} for m in r.messages] for r in rows]
    counted = [MINI.row(r.messages[0].content, r.answer) for r in rows]
    assert counted == chat_lengths(rows, ChatTokenizer(builtin_dir("mini")))
    assert counted == [len(theirs.apply_chat_template(chat, return_dict=True)["input_ids"]) for chat in chats]


def document(text: str) -> Document:
    return Document(doc_id="d", path="d.md", title="D", text=text, mime="text/markdown", digest="0")


KINDS = {"japanese": "紙は乾いた所に置き、湿気を避けて保管する。" * 260, "one word": "0123456789abcdef" * 200,
         "prose": prose(0, 80), "russian": "Пресс чистят тёплой водой каждые одиннадцать дней. " * 60,
         "hard-wrapped": prose(9, 40).replace(" with", "\nwith"),
         "a list": "\n".join(f"- {PROSE.format('lid', i, 11, 'operator')}" for i in range(60))}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("base", ["builtin:mini", "nobody/never-fetched"])
def test_no_passage_is_longer_than_the_row_has_room_for(kind, base):
    room = Room(load_config(preset="technical-docs", overrides={"student.base": base}))
    text = KINDS[kind]
    chunks = chunk_documents([document(text)], 220, 20, room)
    assert len(chunks) > 1
    assert max(len(room.tokens.starts(c.text)) for c in chunks) <= room.passage + 1  # a word cut in two may have a token more
    assert all(text[c.start : c.end] == c.text for c in chunks)
    ink = lambda s: "".join(s.split()).replace("-", "")
    assert ink("".join(c.text for c in chunks)) == ink(text), "nothing is lost"


def test_pages_that_fit_are_cut_as_ever():
    from distillery.engine.source import open_source

    config = load_config(preset="handbook")
    documents = read_documents(open_source(None, None, None).path).documents
    assert chunk_documents(documents, 220, 20, Room(config)) == chunk_documents(documents, 220, 20)


SCRAPS = ["The lid is red. ", "紙は乾く。", "Ünïcode! ", "x" * 50, "\n", "1.5 mm, ", "ไทย", "🙂"]


@settings(max_examples=60)
@given(st.lists(st.sampled_from(SCRAPS), max_size=40), st.integers(40, 200))
def test_pieces_cover_a_text_in_order_and_fit(parts, length):
    room = Room(load_config(overrides={"sft.max_length": length}))
    text = "".join(parts).strip()
    if not text: return
    spans = room.cut(text)
    assert all(a < b for a, b in spans)
    assert all(b <= c for (_, b), (c, _) in pairwise(spans))
    if any(c.isalnum() for c in text): assert "".join(text[a:b] for a, b in spans).split() == text.split() or len(spans) > 1
    assert all(len(room.tokens.starts(text[a:b])) <= room.passage + 3 for a, b in spans)


@settings(max_examples=40)
@given(st.integers(1, 30), st.integers(0, 29), st.integers(30, 260), st.booleans())
def test_a_row_is_whole_shorter_or_left_out(sentences, at, most, refuses):
    passage = " ".join(PROSE.format("lid", "12" if i == at else f"{i + 40}", 11, "operator") for i in range(sentences))
    pair = PAIR.model_copy(update={"kind": "refusal", "answer": "The passage does not tell."}) if refuses else PAIR
    row = make_example("train", pair, passage)
    fitted = fit_example(row, MINI, most)
    whole = MINI.row(student_prompt(row.question, passage), row.answer)
    if whole <= most: assert fitted is row
    if fitted is None: return
    assert fitted.passage in passage
    assert MINI.row(fitted.messages[0].content, fitted.answer) <= most
    if not refuses and at < sentences: assert "Raven 12 " in fitted.passage
    if refuses: assert passage.startswith(fitted.passage)


def test_what_is_left_out_is_counted_and_not_asked_for():
    long = PAIR.model_copy(update={"id": "q", "family_id": "g", "answer": "lukewarm water " * 90})
    rows = [make_example("train", PAIR, None), make_example("train", long, None)]
    recall = [make_example("recall", p, None) for p in (PAIR, long)]
    fitted, fit = fit_rows({"train": rows, "recall": recall}, MINI, 200)
    assert (fitted["train"], fitted["recall"]) == (rows[:1], recall[:1])
    assert (fit["rows"], fit["rows_left_out"], fit["recall_left_out"]) == (1, 1, 1)
    assert fit_sentence({**fit, "rows_left_out": 0}) == ""


def test_limits_that_cannot_hold_together_are_said_before_anything_is_paid():
    assert not list(check_row(load_config()))
    for changed in ({"sft.max_length": 128}, {"generation_limits.answer_max_tokens": 400}, {"sft.max_length": 60}):
        said, = check_row(load_config(overrides=changed))
        assert said.ok
        assert said.warns
        assert "sft.max_length" in said.found
