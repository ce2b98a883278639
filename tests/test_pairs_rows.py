"Which rows a dataset holds: sizes of the sides, the first wording of every family, passages, reference questions."
from collections import Counter

import pytest
from hypothesis import given, settings, strategies as st

from distillery.core.config import load_config
from distillery.core.metrics import normalize_answer
from distillery.core.records import Chunk, Evidence, Pair
from distillery.pairs import dataset
from distillery.pairs.linked import LinkedPairs
from distillery.pairs.dataset import (
    build_dataset, check_leaks, first_wordings, gold_examples, gold_pair, held_out, imbalance, make_example, sizes, split_documents,
    teaching_family, train_rows,
)

CONFIG = load_config()


def with_dataset(**changes):
    return CONFIG.model_copy(update={"dataset": CONFIG.dataset.model_copy(update=changes)})


def pair(doc, family, wording, kind="answer", level="easy", **more):
    answer = f"Hall {doc}{family}" if kind == "answer" else "The passage does not tell."
    fields = {"chunk_id": doc, "category": "rooms", "difficulty": level, "kind": kind, "teacher": "t", "answer": answer,
              "question": f"Wording {wording}: where does {kind} {doc}{family} stand?"} | more
    return Pair(id=f"{doc}-{family}-{wording}-{kind}", doc_id=doc, family_id=f"{doc}-{family}-{kind}", **fields)


def chunk(doc, text="Machine 7 stands in Hall 7. Machine 8 stands in Hall 8.", start=0):
    return Chunk(chunk_id=doc, doc_id=doc, heading="Rooms", text=text, start=start, end=start + len(text), category="rooms")


corpora = st.lists(st.lists(st.tuples(st.integers(1, 4), st.sampled_from(("answer", "answer", "refusal"))), min_size=1, max_size=4),
                   min_size=1, max_size=9)


def pairs_of(corpus):
    "Documents of families of wordings."
    return [pair(f"d{d}", f, w, kind) for d, families in enumerate(corpus) for f, (n, kind) in enumerate(families) for w in range(n)]


# Sides

@given(st.integers(1, 60), st.floats(0, 0.9), st.floats(0.1, 1))
def test_every_side_that_is_wanted_has_a_document_where_there_are_enough_and_training_always_has(n, test_share, train_split):
    found = sizes(n, with_dataset(test_share=test_share, train_split=train_split))
    assert sum(found.values()) == n
    assert found["train"] >= 1
    rest = n - found["test"]
    for side, of, share in (("test", n, test_share), ("validation", rest, 1 - train_split)):
        assert (found[side] >= 1) == (of > 1 and share > 0)
        assert found[side] in (0, 1, of - 1) or abs(found[side] - of * share) <= 0.5


def test_two_and_three_documents_are_shared_out():
    both, no_test, no_validation = with_dataset(), with_dataset(test_share=0.0), with_dataset(train_split=1.0)
    assert [tuple(sizes(n, both).values()) for n in (1, 2, 3)] == [(1, 0, 0), (1, 0, 1), (1, 1, 1)]
    assert [tuple(sizes(n, no_test).values()) for n in (1, 2, 3)] == [(1, 0, 0), (1, 1, 0), (2, 1, 0)]
    assert [tuple(sizes(n, no_validation).values()) for n in (1, 2, 3)] == [(1, 0, 0), (1, 0, 1), (2, 0, 1)]
    assert sizes(5, with_dataset(test_share=0.95)) == {"train": 1, "validation": 0, "test": 4}
    assert sizes(5, with_dataset(test_share=0.0, train_split=0.05)) == {"train": 1, "validation": 4, "test": 0}


def test_a_split_is_balanced_where_each_side_has_its_share_of_every_difficulty():
    sides = {"a": "train", "b": "train", "c": "test", "d": "test"}
    even = {name: Counter(easy=2, hard=4) for name in sides}
    assert imbalance(sides, even) == pytest.approx(0)
    assert imbalance(sides, even | {"a": Counter(easy=2, hard=4), "c": Counter(easy=2)}) == pytest.approx(2 * abs(8 / 12 - 1 / 2))
    assert imbalance({"a": "train", "b": "train", "c": "test"}, {n: Counter(easy=1) for n in "abc"}) == pytest.approx(0)


@settings(max_examples=30)
@given(corpora, st.integers(0, 20))
def test_no_other_candidate_is_more_balanced(corpus, seed):
    config, pairs = with_dataset(seed=seed), pairs_of(corpus)
    mixes = {p.doc_id: Counter(q.difficulty for q in pairs if q.doc_id == p.doc_id) for p in pairs}
    sides = split_documents(pairs, config)
    assert Counter(sides.values()) == Counter({side: n for side, n in sizes(len(mixes), config).items() if n})
    seen = []
    original, dataset.imbalance = dataset.imbalance, lambda s, m: seen.append((original(s, m), m)) or seen[-1][0]
    try: assert split_documents(pairs, config) == sides
    finally: dataset.imbalance = original
    assert all(m == mixes for _, m in seen)
    assert imbalance(sides, mixes) == pytest.approx(min(value for value, _ in seen), rel=1e-12)  # sums in another order
    assert len(seen) == dataset.DRAWS


# Families

@settings(max_examples=30)
@given(corpora)
def test_every_family_has_its_first_wording_in_validation_and_test(corpus):
    pairs = pairs_of(corpus)
    firsts = {}
    for p in pairs: firsts.setdefault(p.family_id, p)
    found = first_wordings(pairs)
    assert {p.family_id: p for p in found} == firsts
    assert len(found) == len(firsts)
    splits, sides = build_dataset(pairs, [], CONFIG), split_documents(pairs, CONFIG)
    for name in ("validation", "test"):
        assert Counter(e.pair_id for e in splits[name]) == Counter(p.id for p in firsts.values() if sides[p.doc_id] == name)


@settings(max_examples=30)
@given(corpora, st.sampled_from((0.0, 0.5, 1.0)))
def test_recall_takes_a_later_wording_of_a_family_and_training_has_the_others(corpus, share):
    pairs, config = pairs_of(corpus), with_dataset(recall_share=share)
    held = held_out(pairs, config)
    wordings = Counter(p.family_id for p in pairs if p.kind == "answer")
    if share == 1.0: assert set(held) == {f for f, n in wordings.items() if n > 1}
    if share == 0.0: assert not held
    assert all(p.family_id == f and p not in first_wordings(pairs) for f, p in held.items())
    splits, sides = build_dataset(pairs, [], config), split_documents(pairs, config)
    on = [p for p in pairs if sides[p.doc_id] == "train"]
    assert {e.pair_id for e in splits["recall"]} == {p.id for p in held_out(on, config).values()}
    assert {e.pair_id for e in splits["train"]} == {p.id for p in on if p.kind == "answer"} - {e.pair_id for e in splits["recall"]}


def test_a_family_of_two_wordings_holds_the_second_out():
    assert [p.id for p in held_out([pair("d", 0, 0), pair("d", 0, 1)], with_dataset(recall_share=1.0)).values()] == ["d-0-1-answer"]


def test_a_wording_that_another_row_has_is_not_held_out():
    same = pair("d", 1, 0).model_copy(update={"question": pair("d", 0, 1).question.upper()})
    assert held_out([pair("d", 0, 0), pair("d", 0, 1), same], with_dataset(recall_share=1.0)) == {}


def test_draws_at_the_border_of_a_share_are_outside_of_it(monkeypatch):
    monkeypatch.setattr(dataset, "chance", lambda *names: 0.5)
    pairs = [pair("d", 0, 0), pair("d", 0, 1)]
    assert (len(held_out(pairs, with_dataset(recall_share=0.5))), len(held_out(pairs, with_dataset(recall_share=0.51)))) == (0, 1)
    rows = [len(train_rows(pairs, {"d": "text"}, with_dataset(passage_share=share))) for share in (0.5, 0.51)]
    assert rows == [2, 4]


# Rows

@settings(max_examples=30)
@given(corpora, st.sampled_from((0.0, 0.4, 1.0)))
def test_answers_are_trained_from_memory_and_a_share_of_them_and_all_refusals_with_the_passage(corpus, share):
    pairs, config = pairs_of(corpus), with_dataset(passage_share=share)
    passages = {f"d{i}": f"Text {i}" for i in range(0, len(corpus), 2)}  # some chunks are gone
    rows = train_rows(pairs, passages, config)
    bare, beside = ([e.pair_id for e in rows if bool(e.passage) == full] for full in (False, True))
    assert bare == [p.id for p in pairs if p.kind == "answer"]
    can = [p for p in pairs if p.chunk_id in passages]
    assert [i for i in beside if i.endswith("refusal")] == [p.id for p in can if p.kind == "refusal"]
    drawn = [p.id for p in can if p.kind == "answer" and dataset.chance(CONFIG.dataset.seed, "passage", p.id) < share]
    assert [i for i in beside if i.endswith("answer")] == drawn
    assert all(e.passage == passages[e.chunk_id] and e.messages[0].content.startswith(e.passage) for e in rows if e.passage)


def test_names_of_rows_are_short_and_tell_sets_questions_and_passages_apart():
    p = pair("d", 0, 0)
    rows = [make_example("train", p, None), make_example("test", p, None), make_example("train", p, "text"),
            make_example("train", p, None, question="Where?")]
    assert len({e.id for e in rows}) == 4
    assert {len(e.id) for e in rows} == {16}


# Reference questions

TEXT = "Machine 7 stands in Hall 7. Machine 8 stands in Hall 8."
ROW = {"id": 1, "page": "d", "category": "rooms", "difficulty": "hard", "answer": "the Hall 8", "sentence": "Machine 8 stands in Hall 8.",
       "wordings": ["Where is machine 8?", "Which hall has machine 8?"]}


def at(a, b, answer="Hall 8"):
    return pair("d", 0, 0, answer=answer, evidence=Evidence(start=100 + a, end=100 + b, text="x" * (b - a)))


@pytest.mark.parametrize(("found", "teaches"), [
    (at(28, 55), True), (at(28, 34), True), (at(48, 55), True), (at(27, 55), False), (at(28, 56), False), (at(0, 7), False),
    (at(28, 55, "Hall 9"), False), (pair("d", 0, 0, answer="Hall 8"), False)])
def test_a_family_teaches_a_fact_with_the_same_answer_from_within_the_same_sentence(found, teaches):
    assert TEXT.index(ROW["sentence"]) == 28
    assert teaching_family(ROW, chunk("d", TEXT, 100), [found]) == (found.family_id if teaches else None)


def test_reference_questions_are_asked_from_memory_in_training_and_beside_the_passage_in_test():
    chunks = [chunk(doc, TEXT, 100) for doc in ("d", "e", "f", "g")]
    rows = [{**ROW, "id": 1}]
    sides = {"d": "train", "e": "test", "f": "validation"}
    found = {doc: gold_examples(rows, [c], sides, [at(28, 55)], 1) for doc, c in zip("defg", chunks, strict=True)}
    assert [(len(sets["recall"]), len(sets["test"])) for sets in found.values()] == [(1, 0), (0, 1), (0, 0), (0, 0)]
    recall, test = found["d"]["recall"][0], found["e"]["test"][0]
    assert (recall.passage, recall.family_id, test.passage, test.family_id) == (None, at(28, 55).family_id, TEXT, "1")
    assert {recall.question, test.question} <= set(ROW["wordings"])
    assert (test.answer, test.difficulty) == ("the Hall 8", "hard")


def test_a_reference_row_as_a_pair_asks_its_first_wording():
    assert gold_pair(ROW, chunk("d"), "f").question == ROW["wordings"][0]


def test_refusals_of_the_test_side_stay_beside_reference_questions():
    corpus = [[(2, "answer"), (2, "refusal")]] * 9
    pairs = pairs_of(corpus)
    sides = split_documents(pairs, CONFIG)
    gold = [{**ROW, "id": doc, "sentence": f"{doc} stands in Hall {doc}0."} for doc in sides]
    chunks = [chunk(doc, f"{doc} stands in Hall {doc}0.") for doc in sides]
    splits = build_dataset(pairs, chunks, CONFIG, gold)
    tested = [doc for doc, side in sides.items() if side == "test"]
    assert [e.kind for e in splits["test"]] == ["answer"] * len(tested) + ["refusal"] * len(tested)
    assert all(e.passage for e in splits["test"])
    said = {normalize_answer(e.question) for e in splits["train"]}
    assert not any(normalize_answer(e.question) in said for e in splits["test"])


@pytest.mark.parametrize("chunk_id", ["a passage", ""])
def test_a_passage_that_the_other_side_repeats_is_a_leak_whether_it_is_a_chunk_or_a_pair(chunk_id):
    sides = {"x": "train", "y": "test"}
    rows = [make_example(side, pair(d, 0, 0, chunk_id=chunk_id and f"{chunk_id} of {d}"), None) for d, side in sides.items()]
    ids = [r.chunk_id or r.pair_id for r in rows]
    linked = LinkedPairs(shared=[(ids[0], ids[1])], apart=True)
    assert check_leaks({"train": rows[:1], "test": rows[1:]}, linked) == [f"passage {ids[0]} in train repeats {ids[1]} in test"]
    assert check_leaks({"train": rows}, linked) == []
