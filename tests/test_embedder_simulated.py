"The embedder card on planted truths: twenty equal embedders are not told apart, a better one is found, and what an argmax promises."
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from distillery.core.config import load_config
from distillery.questions.decide import compare_values, level_verdicts
from distillery.questions.embedder.decision import argmax_optimism
from distillery.questions.embedder.stages import EmbedderRow, Found
from distillery.retrieval.embed import Embedder
from distillery.retrieval.frontier import grown
from distillery.retrieval.queries import beir_queries
from distillery.retrieval.ranking import gains_at_ranks, ideal_gains, ndcg
from distillery.retrieval.search import Hits, top_k
from distillery.questions.embedder.queries import draw_queries

SQUAD = Path(__file__).resolve().parents[2] / "shared/data/squad_retrieval"
CONFIG, LEVELS, DRAWS = load_config(overrides={"decisions.resamples": 999}), 20, 60
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not SQUAD.is_dir(), reason="needs ../shared/data/squad_retrieval")]


@pytest.fixture(scope="module")
def equal(tmp_path_factory):
    "nDCG@10 of sixty embedders that are equally good: MiniLM's vectors, turned at random by one angle; and the articles of the questions."
    made = draw_queries(beir_queries(SQUAD), 600)
    wanted = {p for q in made.queries for p in q.relevant}
    kept = [i for i, name in enumerate(made.ids) if name in wanted]
    made = replace(made, ids=tuple(made.ids[i] for i in kept), texts=tuple(made.texts[i] for i in kept))
    embedder = Embedder(cache=tmp_path_factory.mktemp("vectors") / "v.sqlite")
    passages, queries = embedder.encode(made.texts, "document"), embedder.encode(made.asked, "query")
    found = []
    for seed in range(60):
        x, y = (grown(v, 2 * len(v), cosine=0.9, seed=7919 * seed + side)[len(v):] for side, v in enumerate((passages, queries)))
        places, scores = top_k((y @ x.T).astype(float), 10)
        found.append(ndcg(gains_at_ranks(Hits(made.ids, places, scores), made.qrels), ideal_gains(made.qrels), 10))
    return np.array(found), [q.cluster for q in made.queries]


def drawn(equal, rng):
    scores, articles = equal
    some = rng.choice(len(scores), LEVELS, replace=False)
    return {f"e{i:02}": scores[s].copy() for i, s in enumerate(some)}, articles


def judged(levels, articles):
    contrasts = compare_values(levels, articles, "e00", CONFIG.decisions, (0.0, 1.0))[1]
    return contrasts, {v: word for v, (word, _) in level_verdicts(contrasts, 0.02, "ndcg", "articles").items()}


def test_twenty_equal_embedders_tie(equal):
    rng, told = np.random.default_rng(11), 0
    for _ in range(DRAWS):
        words = judged(*drawn(equal, rng))[1].values()
        told += any(word.endswith("better") for word in words)
    assert told <= 0.05 * DRAWS, f"told apart in {told} of {DRAWS}"


def test_one_better_by_twice_the_detectable_effect_is_found(equal):
    rng, found = np.random.default_rng(12), 0
    for _ in range(DRAWS):
        levels, articles = drawn(equal, rng)
        gain = 2 * next(c.mde for c in judged(levels, articles)[0] if c.a == "e07")
        room = 1 - levels["e07"]
        levels["e07"] = np.clip(levels["e07"] + gain * room / room.mean(), 0, 1)  # where there is something to gain
        found += judged(levels, articles)[1]["e07"] == "e07 better"
    assert found >= 0.8 * DRAWS, f"found in {found} of {DRAWS}"


def test_an_argmax_promises_more_than_it_keeps(equal):
    "Among equals the best of one half is only lucky: on the other half nothing is left of it."
    levels, articles = drawn(equal, np.random.default_rng(13))
    found = lambda i: {("base" if v == "e00" else v): Found(recall_1=0, recall_5=0, mrr=0, ndcg=s[i]) for v, s in levels.items()}
    rows = [EmbedderRow(id=f"q{i}", doc_id=a, question="?", difficulty=None, overlap=0.5, stratum="low", found=found(i))
            for i, a in enumerate(articles)]
    promised, kept, picks = argmax_optimism(rows, CONFIG)
    assert promised > 0.005
    assert kept < 0.005  # below 0 is to be expected: halves of one set make up for each other
    assert len(picks) > 1, "another half, another winner"
