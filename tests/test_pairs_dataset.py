"""Scores, selection, splits, leaks and imports."""
import gzip
import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from distillery.core.config import load_config
from distillery.core.errors import DistilleryError
from distillery.core.metrics import normalize_answer
from distillery.core.records import Chunk, Evidence, Pair
from distillery.pairs.dataset import build_dataset, check_leaks, sizes, split_documents
from distillery.pairs.imports import read_pairs
from distillery.pairs.judge import bert_scores, evidence_score, score_pairs
from distillery.pairs.select import near_duplicates, select_pairs

SHARED = Path(__file__).parents[2] / "shared" / "data"
CONFIG = load_config()


def make(doc, family, wording, kind="answer", level="easy"):
    answer = f"Hall {doc}{family}" if kind == "answer" else "The passage does not tell."
    text = f"## Rooms\n\nMachine {doc}{family} stands in Hall {doc}{family}."
    at = text.index("Hall ")
    evidence = Evidence(start=at, end=len(text) - 1, text=text[at:-1]) if kind == "answer" else None
    return Pair(id=f"{doc}-{family}-{wording}-{kind}", doc_id=doc, chunk_id=f"{doc}-{family}", family_id=f"{doc}-{family}-{kind}",
                category="rooms", difficulty=level, question=f"Wording {wording}: where does machine {doc}{family} stand?", answer=answer,
                kind=kind, evidence=evidence, teacher="t")


def corpus(docs, families=3, wordings=3):
    levels = ("easy", "medium", "hard")
    pairs = [make(f"d{d}", f, w, level=levels[(d + f) % 3]) for d in range(docs) for f in range(families) for w in range(wordings)]
    texts = {p.chunk_id: f"## Rooms\n\nMachine {p.doc_id}{p.chunk_id.split('-')[1]} stands in {p.answer}." for p in pairs}
    chunks = [Chunk(chunk_id=k, doc_id=k.split("-")[0], heading="Rooms", text=t, start=0, end=len(t), category="rooms")
              for k, t in texts.items()]
    return pairs, chunks


@settings(max_examples=25)
@given(st.integers(1, 14), st.integers(1, 4), st.integers(1, 4), st.integers(0, 9), st.floats(0, 0.6), st.floats(0.3, 1))
def test_no_split_leaks(docs, families, wordings, seed, test_share, train_split):
    pairs, chunks = corpus(docs, families, wordings)
    pairs += [make(f"d{d}", 0, 9, "refusal").model_copy(update={"question": pairs[-1].question}) for d in range(docs)]
    config = load_config(overrides={"dataset.seed": seed, "dataset.test_share": test_share, "dataset.train_split": train_split})
    splits = build_dataset(pairs, chunks, config)
    assert check_leaks(splits) == []
    assert build_dataset(pairs, chunks, config) == splits
    assert len({e.id for rows in splits.values() for e in rows}) == sum(map(len, splits.values()))
    assert all(e.passage is None for e in splits["recall"])
    assert all(e.passage and e.messages[0].content.startswith(e.passage) for e in splits["test"])
    assert splits["train"]


def test_leaks_are_seen():
    pairs, chunks = corpus(10)
    splits = build_dataset(pairs, chunks, CONFIG)
    row, asked = splits["train"][0], splits["recall"][0]
    assert any("is in train and in test" in x for x in check_leaks({**splits, "test": [row]}))
    again = asked.model_copy(update={"question": row.question.upper()})
    assert any("recall asks what train asks" in x for x in check_leaks({**splits, "recall": [again]}))
    assert any("never saw" in x for x in check_leaks({**splits, "recall": [asked.model_copy(update={"family_id": "new"})]}))


def test_splits_have_their_sizes_and_are_balanced():
    pairs, _ = corpus(48)
    sides = split_documents(pairs, CONFIG)
    assert Counter(sides.values()) == sizes(48, CONFIG) == {"train": 36, "validation": 4, "test": 8}
    for level in ("easy", "medium", "hard"):
        share = sum(sides[p.doc_id] == "test" for p in pairs if p.difficulty == level) / sum(p.difficulty == level for p in pairs)
        assert abs(share - 8 / 48) < 0.03


def test_gold_asks_only_what_training_saw_in_other_words():
    pairs, chunks = corpus(12)
    gold = [{"id": c.chunk_id, "page": "", "category": "rooms", "difficulty": "easy", "answer": c.text[c.text.index("Hall") : -1],
             "sentence": c.text.split("\n\n")[1],
             "wordings": [p.question for p in pairs if p.chunk_id == c.chunk_id] + [f"Which hall has {c.chunk_id}?"]}
            for c in chunks]
    gold.append({**gold[0], "id": "unseen", "answer": "machine", "wordings": ["What stands there?"]})
    splits = build_dataset(pairs, chunks, CONFIG, gold)
    said = {normalize_answer(e.question) for e in splits["train"]}
    assert check_leaks(splits) == []
    assert not any(normalize_answer(e.question) in said for e in splits["recall"])
    assert len(splits["recall"]) == 3 * sizes(12, CONFIG)["train"]
    assert len(splits["test"]) >= 3 * sizes(12, CONFIG)["test"]
    assert not any(e.pair_id.startswith("gold-") for e in splits["train"])
    assert "gold-unseen" not in {e.pair_id for e in splits["recall"]}


def test_refusals_train_only_with_their_passage():
    pairs, chunks = corpus(12)
    pairs += [make(f"d{d}", 1, 7, "refusal") for d in range(12)]
    rows = build_dataset(pairs, chunks, CONFIG)["train"]
    assert all(e.passage for e in rows if e.kind == "refusal")
    assert any(e.kind == "refusal" for e in rows)


def test_scores_and_reasons():
    pairs, chunks = corpus(2, 1, 1)

    class Flat:
        def encode(self, texts): return __import__("numpy").ones((len(texts), 1), "float32")

    lying = pairs[0].model_copy(update={"id": "lie", "answer": "Hall 99"})
    moved = pairs[0].model_copy(update={"id": "moved", "evidence": Evidence(start=0, end=8, text="## Rooms")})
    scored = score_pairs([pairs[1], lying, moved], chunks, Flat())
    assert [p.scores["evidence"] for p in scored] == [1.0, 0.0, 0.5]
    assert {d.pair_id for d in select_pairs(scored, CONFIG).dropped} == {"lie", "moved"}
    assert evidence_score(pairs[0], None) is None


def test_bert_score_is_used_where_there_is_a_reference():
    pairs, _ = corpus(2, 1, 1)

    class Scorer:
        def score(self, cands, refs): return [0.0], [0.0], [float(cands == refs)]

    assert bert_scores(pairs, Scorer(), {pairs[0].id: pairs[0].answer}) == {pairs[0].id: 1.0}
    assert bert_scores(pairs, None, {pairs[0].id: "x"}) == {}


def test_near_duplicates_keep_what_differs_in_a_number():
    base = make("d1", 1, 1)
    long = "When the first shift of the week has ended, in which of the halls does the old machine {} stand?"
    ask = lambda i, q, a="Hall 1": base.model_copy(update={"id": i, "question": q, "answer": a})
    pairs = [ask("a", long.format("Raven 74")), ask("b", long.format("Raven 75")), ask("c", long.format("Raven 74") + "?"),
             ask("d", long.format("Raven 74").replace("old", "cold"), "Hall 2")]
    assert near_duplicates(pairs, 0.9) == {"c": "a"}
    [told] = [d for d in select_pairs(pairs, CONFIG).dropped if d.pair_id == "c"]
    assert told.reason == "repeats a, similarity 1.00"  # its keeper, and how alike they are


def test_a_question_with_two_answers_teaches_neither():
    base = make("d1", 1, 1)
    other = base.model_copy(update={"id": "x", "answer": "Hall 2", "question": base.question.upper()})
    refused = base.model_copy(update={"id": "r", "kind": "refusal", "answer": "The passage does not tell."})
    selection = select_pairs([base, other, refused], CONFIG)
    assert [p.id for p in selection.kept] == ["r"]
    assert {d.reason for d in selection.dropped} == {"the same question has another answer"}


def test_the_limit_takes_whole_families():
    pairs, _ = corpus(6)
    kept = select_pairs(pairs, load_config(overrides={"selection.max_pairs": 20})).kept
    assert len(kept) == 18
    assert set(Counter(p.family_id for p in kept).values()) == {3}


@pytest.mark.parametrize(("name", "data", "says"), [
    ("a.jsonl", b"", "empty"), ("a.jsonl", b"\n \n", "empty"), ("a.csv", b"", "empty"), ("a.csv", b"question,answer\n", "no rows"),
    ("a.jsonl", b'{"question": "Where is it?", "answer": "Here"}\n' * 16 + b'{"question": \n', "line 17: not JSON"),
    ("a.jsonl", b'{"question": "Where is it?", "answer": "Here"}\n' * 16 + b'{"question": "x", "answer"\n', "line 17: not JSON"),
    ("a.jsonl", b'{"answer": "Here"}\n', "line 1: no question"), ("a.jsonl", b'{"question": "Where?"}\n', "line 1: no answer"),
    ("a.jsonl", b'[{"question": "a"}]', "item 1: no answer"), ("a.jsonl", b'"words"\n', "not an object"),
    ("a.jsonl", "Größe".encode("latin-1"), "not UTF-8"),
    ("a.csv", b"j,k\nx,y\n", "no column `question`"), ("a.csv", b'question,answer\n"Where,here\n', "line 2"),
    ("a.jsonl.gz", b"no gzip", "cannot read")])
def test_bad_pair_files_say_what_and_where(tmp_path, name, data, says):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DistilleryError, match=says) as e: read_pairs(tmp_path / name)
    assert e.value.fix
    assert name in str(e.value)


def test_our_own_records_come_back(tmp_path):
    pairs, _ = corpus(2, 1, 3)
    refusal = make("d1", 0, 5, "refusal")
    (tmp_path / "p.jsonl").write_text("\n".join(p.to_line() for p in [*pairs, refusal]))
    got = read_pairs(tmp_path / "p.jsonl").pairs
    assert [(p.id, p.family_id, p.question, p.answer, p.kind, p.difficulty) for p in got] == [
        (p.id, p.family_id, p.question, p.answer, p.kind, p.difficulty) for p in [*pairs, refusal]]


def test_bare_pairs_in_three_shapes(tmp_path):
    rows = [{"question": "Where is it?", "answer": "in Hall 3", "context": "It is in Hall 3 today."},
            {"question": "Why?", "answers": ["b", "a", "a"], "passage": "a b"},
            {"question": "Who?", "answerable": False, "passage": "a b", "id": "seven"}]
    with gzip.open(tmp_path / "a.jsonl.gz", "wt", encoding="utf-8") as f: f.writelines(json.dumps(r) + "\n" for r in rows)
    got = read_pairs(tmp_path / "a.jsonl.gz")
    texts = {d.doc_id: d.text for d in got.documents}
    assert [p.answer for p in got.pairs] == ["in Hall 3", "a", "The passage does not tell."]
    assert all(texts[p.doc_id][p.evidence.start : p.evidence.end] == p.evidence.text for p in got.pairs if p.evidence)
    (tmp_path / "b.csv").write_bytes("\ufeffquestion;answer\n\"Was; wo?\";Größe\n".encode())
    assert read_pairs(tmp_path / "b.csv").pairs[0].answer == "Größe"


@pytest.mark.skipif(not (SHARED / "squad").is_dir(), reason="../shared/data is not here")
@pytest.mark.slow
def test_squad_is_imported_whole():
    got = read_pairs(SHARED / "squad" / "squad2_dev_qa.jsonl.gz")
    assert (len(got.pairs), len(got.chunks), len(got.documents)) == (5978, 591, 17)
    assert sum(p.kind == "refusal" for p in got.pairs) == 3044
    texts = {d.doc_id: d.text for d in got.documents}
    assert all(texts[c.doc_id][c.start : c.end] == c.text for c in got.chunks)
    assert sum(p.evidence is not None for p in got.pairs) >= 0.99 * 2934
    assert check_leaks(build_dataset(got.pairs, got.chunks, load_config(preset="qa-import"))) == []
