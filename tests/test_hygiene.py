"Hygiene of questions: what needs its passage is left out, duplicates count, strata are thirds of what is asked; hard negatives."
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from distillery.core.config import load_config
from distillery.core.files import read_jsonl, write_jsonl
from distillery.core.records import Chunk, Pair
from distillery.questions.embedder import stages
from distillery.questions.embedder.queries import run_questions
from distillery.questions.embedder.stages import EmbedderRow, Found
from distillery.retrieval.hygiene import ambiguous, clean_questions, duplicates_of, stands_alone, with_duplicates
from distillery.retrieval.queries import Query, QuerySet, beir_queries
from distillery.retrieval.tune import hard_pairs

KEPT, SQUAD = Path(__file__).parent / "data/run", Path(__file__).parents[2] / "shared/data/squad_retrieval"


@pytest.mark.parametrize(("question", "alone"), [
    ("What does it do?", False), ("When was this edict declared?", False), ("What is said in the passage above?", False),
    ("What are they?", False), ("Why?", False), ("When did it retract?", False), ("Who is mentioned in the following table?", False),
    ("What does the option -v mean?", True), ("How long did it take Johnson to respond to Kennedy?", True),
    ("According to the text, what is the Green Flame?", True), ("What are those with lower incomes unable to do?", True),
    ("Where did Tesla live when he moved?", True), ("Why is it difficult to date rocks?", True)])
def test_a_question_stands_alone_or_does_not(question, alone): assert stands_alone(question) is alone


def shelf(texts: dict[str, str], asked: dict[str, str]) -> QuerySet:
    "Passages, and questions with the passage of each."
    queries = tuple(Query(query_id=q, text=q, relevant={p: 1.0}, cluster=p) for q, p in asked.items())
    return QuerySet("shelf", tuple(texts), tuple(texts.values()), queries)


def test_a_question_that_fits_several_documents_is_ambiguous_and_one_document_may_hold_it_often():
    ports = {f"{x}{i}": f"The default port of the {x} server is {i}." for i, x in enumerate(("mail", "web", "print", "name", "file"))}
    asked = shelf(ports, {"What is the default port?": "mail0", "What is the default port of the mail server?": "mail0"})
    assert ambiguous(asked, list(ports)) == {"What is the default port?"}
    assert ambiguous(asked, ["one manual"] * 5) == set()


def test_duplicates_are_found_among_many_and_boilerplate_is_none():
    rng, words = np.random.default_rng(88), [f"word{i}" for i in range(400)]
    texts = [" ".join(rng.choice(words, 40)) for _ in range(300)]
    copies = {7: f"Of May. {texts[7]} Done.", 9: texts[9].upper(), 11: texts[11].replace(" ", "\n")}
    found = duplicates_of(range(300), [*texts, *copies.values()])
    assert {p: more for p, more in found.items() if p < 300} == {7: [300], 9: [301], 11: [302]}
    letters = ["To whom it may concern at the office of the firm in the city of York: " + t for t in texts]
    assert duplicates_of(range(300), letters) == {}


def test_strata_are_thirds_of_what_is_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "_more", lambda job: ({}, {}))
    found = {"base": Found(recall_1=1, recall_5=1, mrr=1, ndcg=1)}
    cost = stages.EmbedderCost(level="base", what="x", ms_per_query=1, ms_p95=1, corpus_s=1, passages_timed=1, bytes=1)
    each = lambda asked, *a: ({level: dict.fromkeys(asked.query_ids, by) for level, by in found.items()}, [cost])
    monkeypatch.setattr(stages, "compare_embedders", each)
    for name, kind in (("chunks", Chunk), ("selected", Pair)):
        write_jsonl(tmp_path / f"{name}.jsonl", read_jsonl(KEPT / f"{name}.jsonl", kind)[:600])
    config = load_config(overrides={"embedder.queries": 60})
    needs = {"documents": tmp_path, "select": tmp_path, "embedder-tuned": tmp_path}
    job = SimpleNamespace(config=config, needs=needs, out=tmp_path, say=None)
    stages._embedder(job, SimpleNamespace(kind="documents"), tmp_path)
    rows = read_jsonl(tmp_path / "rows.jsonl", EmbedderRow)
    low, high = np.quantile([r.overlap for r in rows], [1 / 3, 2 / 3])
    assert {r.id for r in rows if r.stratum == "low"} == {r.id for r in rows if r.overlap <= low}
    assert {r.id for r in rows if r.stratum == "high"} == {r.id for r in rows if r.overlap > high}
    assert set(json.loads((tmp_path / "facts.json").read_text())["left_out"]) == {"not self-contained", "ambiguous", "with a duplicate"}
    assert run_questions(job, None)[2]["not self-contained"] == 0  # the built-in handbook asks whole questions


def test_hard_negatives_are_near_and_of_training_documents_only():
    rng = np.random.default_rng(88)
    names = [f"p{i}" for i in range(40)]
    marks = {n: (v := rng.normal(size=16)) / np.linalg.norm(v) for n in names}
    train = shelf({n: n for n in names}, {n: n for n in names[:20]})
    rows = hard_pairs(train, lambda texts, side: np.array([marks[t] for t in texts]))
    assert len(rows) == 20
    assert {r["negative"] for r in rows} <= set(names[:20])
    for r in rows:
        cosines = {n: marks[r["anchor"]] @ marks[n] for n in names[:20] if n != r["anchor"]}
        assert r["negative"] == max((n for n in cosines if cosines[n] <= 0.95), key=cosines.get)


@pytest.mark.slow
@pytest.mark.skipif(not SQUAD.is_dir(), reason="needs ../shared/data")
def test_few_of_people_s_questions_are_left_out():
    asked = beir_queries(SQUAD)
    left, counts = clean_questions(asked, [text.split(" ", 1)[0] for text in asked.texts])
    assert counts["not self-contained"] < 0.03 * len(asked.queries)
    assert len(left.queries) > 0.95 * len(asked.queries)
    assert with_duplicates(asked).ids == asked.ids


@pytest.mark.slow
@pytest.mark.skipif(not SQUAD.is_dir(), reason="needs ../shared/data")
def test_an_embedder_tuned_with_hard_negatives_is_held_against_its_base_on_other_articles(tmp_path):
    from dataclasses import replace

    from distillery.questions.decide import compare
    from distillery.retrieval.embed import Embedder
    from distillery.retrieval.ranking import score_ranking
    from distillery.retrieval.search import DenseSearcher
    from distillery.retrieval.tune import TuneSettings, split_queries, training_pairs, tune_embedder

    whole = beir_queries(SQUAD)
    kept = {p for q in whole.queries[::9] for p in q.relevant}
    some = [i for i, p in enumerate(whole.ids) if p in kept]
    part = replace(whole, ids=tuple(whole.ids[i] for i in some), texts=tuple(whole.texts[i] for i in some), queries=whole.queries[::9])
    train, held = split_queries(part)
    assert {q.cluster for q in train.queries}.isdisjoint(q.cluster for q in held.queries)
    base, settings = Embedder(), TuneSettings(max_steps=8, learning_rate=5e-5)
    specs = {"base": "builtin:minilm", **{name: str(tune_embedder(pairs, tmp_path / name, settings=settings)) for name, pairs in (
        ("tuned", training_pairs(train)), ("hard", hard_pairs(train, base.encode)))}}
    scores = {}
    for name, spec in specs.items():
        search = DenseSearcher(held.ids, held.texts, Embedder(spec))
        scores[name] = score_ranking(search.rank(held.asked, 10), held.query_ids, held.qrels, ["ndcg@10"])["ndcg@10"]
    estimates, contrasts = compare(scores, held.clusters, "base", load_config(), "ndcg")
    assert all(c.ci_high > -0.02 for c in contrasts), contrasts  # none is shown to be worse than its base
    assert len({e.mean for e in estimates}) == 3
