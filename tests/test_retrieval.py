"Retrieval: metrics against ranx, searchers on real questions, query sets, exports, answering with passages, tuning."
import gzip
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
from first_layer import first_layer
from hypothesis import given, settings
from hypothesis import strategies as st

from distillery.core.config import load_config
from distillery.core.errors import DistilleryError
from distillery.core.records import Chunk, Document, Evidence, Pair
from distillery.retrieval import embed, export
from distillery.retrieval.embed import Embedder, has_sides, load_model, model_digest
from distillery.retrieval.encoder import OnnxEncoder, length_batches
from distillery.retrieval.export import export_embedder
from distillery.retrieval.queries import (
    Query, QuerySet, beir_queries, description_queries, heading_queries, join_sets, pair_queries, without_headings, words,
)
from distillery.retrieval.rag import answer_with_passages, level_scores, outcome_shares, rag_cases, rag_improvement, refusal_threshold
from distillery.retrieval.ranking import choose_level, score_ranking
from distillery.retrieval.search import Bm25Searcher, DenseSearcher, Hits, HybridSearcher, Searcher, time_queries, top_k
from distillery.retrieval.tune import TuneSettings, split_queries, training_pairs, tune_embedder
from distillery.teachers.protocol import ChatResult
from distillery.questions.decide import compare

os.environ["NUMBA_DISABLE_JIT"] = "1"  # ranx would compile for a minute, to save milliseconds

DATA = Path(__file__).resolve().parents[2] / "shared/data"
SQUAD, AUDIO = DATA / "squad_retrieval", DATA / "audio_docs/audio_docs.tar.gz"
needs_squad = pytest.mark.skipif(not SQUAD.is_dir(), reason="needs ../shared/data/squad_retrieval, which is not part of the project")
needs_audio = pytest.mark.skipif(not AUDIO.is_file(), reason="needs ../shared/data/audio_docs, which is not part of the project")
METRICS = ["recall@1", "recall@3", "recall@10", "hit@3", "mrr", "ndcg@3", "ndcg@10"]
RANX = {"hit@3": "hit_rate@3"}


def ranx_scores(qrels: list[dict[str, int]], run, metrics: list[str]) -> dict[str, list[float]]:
    ranx = pytest.importorskip("ranx", reason="needs ranx, a development tool")
    judged = ranx.Qrels({f"q{i:03}": {d: max(g, 0) for d, g in row.items()} for i, row in enumerate(qrels)})
    found = ranx.evaluate(judged, run, [RANX.get(m, m) for m in metrics], return_mean=False)
    return {m: found[RANX.get(m, m)].tolist() for m in metrics}


@st.composite
def runs(draw, most: int):
    n, asked = draw(st.integers(1, most)), draw(st.integers(1, 4))
    scores = [[draw(st.integers(0, 4)) for _ in range(n)] for _ in range(asked)]  # few values: many ties
    grade = st.sampled_from([0, 0, 0, 1, 1, 2, 3])
    qrels = [{f"d{i}": draw(grade) for i in range(n) if draw(st.booleans())} | {"not in the corpus": draw(grade)} for _ in range(asked)]
    return n, scores, qrels


@settings(max_examples=60)
@given(runs(60))
def test_metrics_equal_ranx_on_runs_with_ties(made):
    "ranx's sort leaves ties in an order of its own, so that order is read back from it; the same order must give the same scores."
    ranx = pytest.importorskip("ranx", reason="needs ranx, a development tool")
    n, scores, qrels = made
    ids = tuple(f"d{i}" for i in range(n))
    run = ranx.Run({f"q{i:03}": dict(zip(ids, map(float, row), strict=True)) for i, row in enumerate(scores)})
    order = np.array([[int(d[1:]) for d in run.run[f"q{i:03}"]] for i in range(len(scores))])
    hits = Hits(ids, order, np.take_along_axis(np.array(scores, float), order, 1))
    assert (np.diff(hits.scores, axis=1) <= 0).all()
    ours = score_ranking(hits, [f"q{i:03}" for i in range(len(scores))], qrels, METRICS)
    for metric, theirs in ranx_scores(qrels, run, METRICS).items():
        assert list(ours[metric].values()) == pytest.approx(theirs, abs=1e-6), metric


COMPILED = """
import sys, numpy as np, ranx
from distillery.retrieval.ranking import score_ranking
from distillery.retrieval.search import Hits, top_k
metrics, rng = sys.argv[1:], np.random.default_rng(88)
for _ in range(40):
    n, asked = int(rng.integers(1, 16)), 12
    ids, names = tuple(f"d{i}" for i in range(n)), [f"q{i:03}" for i in range(asked)]
    scores = rng.integers(0, 4, (asked, n)).astype(float)
    qrels = [{d: int(g) for d, g in zip(ids, rng.choice([0, 0, 1, 2], n))} for _ in names]
    ours = score_ranking(Hits(ids, *top_k(scores, n)), names, qrels, metrics)
    run = ranx.Run({q: dict(zip(ids, map(float, row))) for q, row in zip(names, scores)})
    theirs = ranx.evaluate(ranx.Qrels(dict(zip(names, qrels))), run, metrics, return_mean=False)
    for m in metrics: np.testing.assert_allclose(list(ours[m].values()), theirs[m], atol=1e-6)
"""


@pytest.mark.slow
def test_ties_stand_in_the_order_of_the_corpus_as_in_compiled_ranx():
    "Up to 15 passages its compiled sort is stable like ours, and not even the order need be told."
    pytest.importorskip("ranx", reason="needs ranx, a development tool")
    env = {**os.environ, "NUMBA_DISABLE_JIT": "0"}
    subprocess.run([sys.executable, "-c", COMPILED, "recall@1", "recall@3", "mrr", "ndcg@3", "ndcg@10"], env=env, check=True)


@given(st.lists(st.lists(st.integers(-3, 3), min_size=7, max_size=7), min_size=1, max_size=4), st.integers(1, 9))
def test_top_k_is_a_stable_sort(scores, k):
    places, best = top_k(np.array(scores, float), k, floor=-2)
    for row, got, value in zip(scores, places, best, strict=True):
        wanted = [i for i in sorted(range(7), key=lambda i: -row[i]) if row[i] > -2][:k]
        assert got[got >= 0].tolist() == wanted
        assert value[got >= 0].tolist() == [row[i] for i in wanted]


def test_metrics_refuse_what_they_cannot_know():
    hits = Hits(tuple("abcdef"), np.array([[0, 1]]), np.array([[2.0, 1]]))
    with pytest.raises(DistilleryError, match="only 2 were asked"): score_ranking(hits, ["q"], [{"a": 1}], ["ndcg@10"])
    with pytest.raises(DistilleryError, match="no metric 'map'"): score_ranking(hits, ["q"], [{"a": 1}], ["map"])
    with pytest.raises(DistilleryError, match="1 rankings for 2"): score_ranking(hits, ["q"], [{"a": 1}, {}], ["mrr"])
    assert score_ranking(hits, ["q"], [{}], ["recall@1", "mrr", "ndcg@2"]) == {m: {"q": 0.0} for m in ("recall@1", "mrr", "ndcg@2")}


# Searchers


TEXTS = {"press": "The press prints 7,200 sheets an hour.", "lunch": "Lunch is at noon in the canteen.", "soup": "The canteen sells soup.",
         "twin": "The canteen sells soup."}


@pytest.fixture(scope="module")
def small() -> list[Searcher]:
    ids, texts = list(TEXTS), list(TEXTS.values())
    bm25, dense = Bm25Searcher(ids, texts), DenseSearcher(ids, texts, Embedder())
    return [bm25, dense, HybridSearcher((bm25, dense))]


def test_every_searcher_keeps_the_protocol_and_the_order_of_equals(small):
    for s in small:
        assert isinstance(s, Searcher)
        hits = s.rank(["Who sells soup in the canteen?"], k=10)
        assert hits.names(0)[:2] == ["soup", "twin"], s.name
        assert hits.places.shape == (1, 10)
        assert len(hits.names(0)) <= 4
        assert (np.diff(hits.scores[0][hits.places[0] >= 0]) <= 0).all()
        assert s.rank([], k=3).places.shape == (0, 3)
        assert time_queries(s, ["When is lunch?"] * 3, warm_up=1).shape == (3,)


def test_no_shared_word_is_no_hit(small):
    bm25, dense, hybrid = small
    assert bm25.rank(["xylophone"]).names(0) == []
    assert hybrid.rank(["xylophone"], k=4).names(0) == dense.rank(["xylophone"], k=4).names(0)


def test_fusion_is_the_sum_of_reciprocal_ranks(small):
    bm25, dense, hybrid = small
    question = ["When is lunch, and who sells soup?"]
    lists = [s.rank(question, k=4).names(0) for s in (bm25, dense)]
    wanted = Counter()
    for names in lists:
        for rank, name in enumerate(names, 1): wanted[name] += 1 / (60 + rank)
    found = hybrid.rank(question, k=4)
    assert dict(zip(found.names(0), found.scores[0], strict=True)) == pytest.approx(dict(wanted))


def test_searchers_refuse_a_corpus_with_two_passages_of_one_name():
    with pytest.raises(DistilleryError, match="2 passages under 1 names"): Bm25Searcher(["a", "a"], ["x", "y"])
    with pytest.raises(DistilleryError, match="0 passages"): Bm25Searcher([], [])


# Embedders


def test_lengths_share_a_batch_and_nothing_is_lost():
    lengths = np.random.default_rng(0).integers(1, 300, 500).tolist()
    batches = length_batches(lengths, 1024)
    assert sorted(i for b in batches for i in b) == list(range(500))
    assert all(len(b) * max(lengths[i] for i in b) <= 1024 or len(b) == 1 for b in batches)
    padding = sum(len(b) * max(lengths[i] for i in b) for b in batches) / sum(lengths)
    assert padding < 1.03


def test_a_model_with_prompts_has_two_vectors_for_one_text(tmp_path):
    folder = tmp_path / "asymmetric"
    load_model("builtin:minilm").save_pretrained(str(folder), create_model_card=False)
    config = folder / "config_sentence_transformers.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "prompts": {"query": "query: ", "document": ""}}))
    assert has_sides(folder)
    model, text = Embedder(str(folder), tmp_path / "v.sqlite"), ["When is lunch?"]
    query, document = model.encode(text, "query"), model.encode(text, "document")
    assert not np.allclose(query, document, atol=1e-3)
    assert np.allclose(query, Embedder().encode(["query: When is lunch?"]), atol=1e-5)
    assert np.array_equal(model.encode(text, "query"), query)
    assert np.array_equal(model.encode(text, "document"), document)


def test_the_second_time_no_model_is_loaded(tmp_path, monkeypatch):
    cache = tmp_path / "v.sqlite"
    first = Embedder(cache=cache).encode(list(TEXTS.values()))
    monkeypatch.setattr(embed, "packed_model", None)
    assert np.array_equal(Embedder(cache=cache).encode(list(TEXTS.values())), first)
    with pytest.raises(TypeError): Embedder(cache=cache).encode(list(TEXTS.values()), fresh=True)


def test_a_name_that_cannot_be_fetched_is_refused_with_a_way_out():
    with pytest.raises(DistilleryError, match="no-such-owner/none") as refused: Embedder("no-such-owner/none").encode(["x"])
    assert "builtin:minilm" in refused.value.fix


def exported(spec: str, place: Path) -> dict[str, Path]:
    "An embedder in both variants; its graph, which takes most of the time, is traced once."
    trace, found = export.trace_graph, {"fp32": export_embedder(spec, place / "fp32", "fp32")}
    export.trace_graph = lambda model, file: shutil.copy(found["fp32"] / "model.onnx", file)
    try: return found | {"int8": export_embedder(spec, place / "int8")}
    finally: export.trace_graph = trace


@pytest.fixture(scope="module")
def one_layer(tmp_path_factory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("export")
    return exported(str(first_layer(place / "model")), place)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, Path]: return exported("builtin:minilm", tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def int8(one_layer) -> Path: return one_layer["int8"]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["one_layer", pytest.param("whole", marks=pytest.mark.slow)])
def test_the_export_is_the_model_in_a_quarter_of_the_bytes(model, request):
    exports = request.getfixturevalue(model)
    fp32, facts = (OnnxEncoder(exports[v]).facts for v in ("fp32", "int8"))
    assert fp32["least_cosine"] >= 0.9999
    assert 0.97 <= facts["least_cosine"] < 0.9999
    assert facts["bytes"] < 0.3 * fp32["bytes"]
    assert (facts["max_length"], facts["dimension"]) == (256, 384)
    assert not [p for p in exports["int8"].iterdir() if p.suffix in (".bin", ".pt", ".pkl")]


@pytest.mark.slow
def test_a_vector_does_not_depend_on_the_texts_beside_it(int8):
    texts = ["Lunch is at noon.", "The press prints 7,200 sheets an hour. " * 20, ""]
    encoder, mixed = OnnxEncoder(int8, threads=2), OnnxEncoder(int8, budget=10_000)
    alone = np.concatenate([encoder.encode([t]) for t in texts])
    assert np.array_equal(encoder.encode(texts), alone)  # bit for bit, on two threads
    assert not np.array_equal(mixed.encode(texts), alone)  # what it would be otherwise: one scale for a whole batch
    assert np.isfinite(alone).all()


@pytest.mark.slow
def test_an_export_is_an_embedder_with_its_own_vectors(int8, tmp_path):
    spec = f"onnx:{int8}"
    assert model_digest(spec) != model_digest("builtin:minilm")
    assert np.allclose(np.linalg.norm(Embedder(spec).encode(["x", "y"]), axis=1), 1, atol=1e-5)
    with pytest.raises(DistilleryError, match="no exported embedder"): Embedder(f"onnx:{tmp_path}").encode(["x"])


# Query sets


def page(name: str, text: str) -> tuple[Document, list[Chunk]]:
    document = Document(doc_id=name, path=f"{name}.md", title=name.title(), text=text, mime="text/markdown", digest="0")
    starts = [0, *(i for i in range(1, len(text)) if text[i] == "#" and text[i - 1] == "\n"), len(text)]
    chunks = [Chunk(chunk_id=f"{name}-{a}", doc_id=name, heading="", text=text[a:b].rstrip(), start=a,
                    end=a + len(text[a:b].rstrip()), category="x") for a, b in pairwise(starts)]
    return document, chunks


def test_headings_become_queries_and_leave_the_text():
    one, a = page("press", "# Press\n## Speed\nIt is fast.\n## Changes\nNone yet.")
    two, b = page("ink", "# Ink\nBlack only.\n## Changes\nNow in blue.\n## Empty")
    made = heading_queries([one, two], a + b)
    assert {q.text: set(q.relevant) for q in made.queries} == {
        "Speed": {a[1].chunk_id}, "Press: Changes": {a[2].chunk_id}, "Ink": {b[0].chunk_id}, "Ink: Changes": {b[1].chunk_id}}
    assert not any("#" in t or "Changes" in t for t in made.texts)
    assert {q.cluster for q in made.queries} == {"press", "ink"}
    assert len({q.query_id for q in made.queries}) == 4


def test_a_page_without_a_heading_asks_nothing_and_is_searched():
    (one, a), (plain, b) = page("press", "# Press\nIt is fast."), page("licence", "Anyone may copy this.")
    made = heading_queries([one, plain], a + b)
    assert [q.text for q in made.queries] == ["Press"]
    assert "Anyone may copy this." in made.texts


def test_a_description_is_not_found_by_its_own_string():
    _, chunks = page("press", "# Press\nHow the press works.\nIt has two rollers.")
    made = description_queries({"press": "How the press works", "gone": "Nothing", "empty": " "}, chunks)
    assert [q.text for q in made.queries] == ["How the press works"]
    assert "How the press works" not in " ".join(made.texts)
    assert without_headings("# A\n\n\n\nb") == "b"


def test_pairs_follow_their_evidence_to_new_chunks():
    _, chunks = page("press", "# Press\nIt prints.\n## Speed\nIt makes 7,200 sheets.")
    at = chunks[0].text.index("prints")
    row = {"doc_id": "press", "chunk_id": "gone", "family_id": "f", "category": "x", "difficulty": "easy", "teacher": "t"}
    pairs = [Pair(id="1", question="What does it do?", answer="prints", evidence=Evidence(start=at, end=at + 6, text="prints"), **row),
             Pair(id="2", question="what does it do", answer="7,200", **{**row, "chunk_id": chunks[1].chunk_id}),
             Pair(id="3", question="Who?", answer="", kind="refusal", **row),
             Pair(id="4", question="Lost?", answer="x", **row)]
    made = pair_queries(pairs, chunks)
    assert [(q.query_id, set(q.relevant)) for q in made.queries] == [("1", {c.chunk_id for c in chunks})]
    with pytest.raises(DistilleryError, match="no query came out of pairs"): pair_queries(pairs[2:], chunks)


def test_judged_sets_are_read_in_all_their_layouts_and_refused_with_the_line(tmp_path):
    corpus = [{"_id": "a", "title": "T", "text": "x y"}, {"_id": "b", "text": "z", "metadata": {}}]
    with gzip.open(tmp_path / "corpus.jsonl.gz", "wt", encoding="utf-8") as f: f.writelines(json.dumps(c) + "\n" for c in corpus)
    asked = {"1": "x?", "2": "not judged", "3": "grade 0"}
    (tmp_path / "queries.jsonl").write_text("".join(json.dumps({"_id": i, "text": t}) + "\n" for i, t in asked.items()))
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\n1\ta\t2\n3\tb\t0\n")
    made = beir_queries(tmp_path)
    assert [(q.query_id, q.relevant, q.cluster) for q in made.queries] == [("1", {"a": 2.0}, "T")]
    assert made.texts == ("T x y", "z")
    (tmp_path / "qrels/test.tsv").write_text("1\ta\t1\n1 a 1\n")
    with pytest.raises(DistilleryError, match="line 2"): beir_queries(tmp_path)
    (tmp_path / "qrels/test.tsv").unlink()
    with pytest.raises(DistilleryError, match=r"no qrels\.tsv"): beir_queries(tmp_path)


@pytest.mark.parametrize("file", ["corpus", "queries"])
@settings(max_examples=12)
@given(st.lists(st.sampled_from(["a", "b", "c", "d"]), min_size=1, max_size=6))
def test_an_id_that_stands_twice_in_a_judged_set_is_refused_by_name(tmp_path_factory, file, ids):
    folder = tmp_path_factory.mktemp("beir")
    lines = {"corpus": ["a"], "queries": ["a"], file: [*ids, "a"] if "a" not in ids else ids}
    for name, some in lines.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"_id": i, "text": f"{name} {i} of many"}) + "\n" for i in some))
    (folder / "qrels.tsv").write_text("a\ta\t1\n")
    twice = [i for i in dict.fromkeys(lines[file]) if lines[file].count(i) > 1]
    if not twice: assert len(beir_queries(folder).queries) == 1
    else:
        with pytest.raises(DistilleryError) as e: beir_queries(folder)
        assert f"two {'passages' if file == 'corpus' else 'queries'} share the id" in str(e.value)
        assert any(repr(i) in str(e.value) for i in twice)


def test_the_case_of_a_repeated_query():
    path = Path(__file__).parents[2] / "shared/cases/45_judged_set_with_a_repeated_query/beir"
    if not path.is_dir(): pytest.skip("../shared/cases is not here")
    with pytest.raises(DistilleryError, match="two queries share the id 'q1'"): beir_queries(path)


# Answering with passages


class Reader:
    "Says what stands after `is` in the first passage it is shown that shares the question's last word; else refuses."
    name, identity = "reader", {"model": "reader"}

    async def stream(self, requests):
        for r in requests:
            *passages, question = r.messages[0].content.split("\n\n")
            last = words(question)[-1]
            found = [p.split(" is ")[1].rstrip(".") for p in passages if last in words(p) and "smudged" not in p]
            yield ChatResult(r.key, found[0] if found else "The passage does not tell.", "stop")

    async def close(self): ...


def rag_rows(min_score: float = -np.inf):
    texts = {"ink": "The ink is black.", "paper": "The paper is white.", "glue": "smudged: the glue is yellow.",
             "noon": "Lunch is at noon."}
    chunks = [Chunk(chunk_id=i, doc_id=i, heading=i, text=t, start=0, end=len(t), category="x") for i, t in texts.items()]
    row = {"family_id": "f", "category": "x", "difficulty": "easy", "teacher": "t"}
    asked = [("1", "ink", "Which colour is the ink?", "black"), ("2", "glue", "Which colour is the glue?", "yellow"),
             ("3", "noon", "When do we eat?", "noon")]
    pairs = [Pair(id=i, doc_id=d, chunk_id=d, question=q, answer=a, **row) for i, d, q, a in asked]
    pairs.append(Pair(id="4", doc_id="ink", chunk_id="ink", question="Which moon?", answer="", kind="refusal", **row))
    made = pair_queries(pairs, chunks)
    return answer_with_passages(Reader(), rag_cases(pairs, made), Bm25Searcher(made.ids, made.texts), texts, ks=(1, 3), min_score=min_score)


def test_every_case_says_where_it_failed():
    rows = rag_rows()
    assert {(r.id, r.k): r.outcome for r in rows if r.k < 3} == {
        ("1", 0): "not remembered", ("1", 1): "right", ("2", 0): "not remembered", ("2", 1): "reading failed",
        ("3", 0): "not remembered", ("3", 1): "retrieval failed", ("4", 0): "refused rightly", ("4", 1): "refused rightly"}
    assert rag_improvement(rows, 1) == {"1": 1.0, "2": 0.0, "3": 0.0}
    assert set(level_scores(rows)) == {"no passages", "1 passage", "3 passages"}
    thirds = dict.fromkeys(("right", "reading failed", "retrieval failed"), 1 / 3)
    assert outcome_shares(rows)[1] == pytest.approx({**thirds, "refused rightly": 1.0})


def test_where_nothing_fits_the_answer_is_a_refusal():
    rows = rag_rows(min_score=100.0)
    shown = [r for r in rows if r.k]
    assert all(r.refused and not r.retrieved for r in shown)
    assert {r.outcome for r in shown if r.golds} == {"retrieval failed"}
    threshold, rate = refusal_threshold([3, 4, 5], [1, 2])
    assert (threshold, rate) == (2.5, 1.0)
    with pytest.raises(DistilleryError, match="both kinds"): refusal_threshold([1], [])


# Real questions


@pytest.fixture(scope="module")
def squad() -> QuerySet:
    return beir_queries(SQUAD)


@needs_squad
def test_bm25_has_its_known_figures_on_squad(squad):
    assert (len(squad.ids), len(squad.queries), len(set(squad.clusters.values()))) == (1068, 5249, 24)
    scores = score_ranking(Bm25Searcher(squad.ids, squad.texts).rank(squad.asked), squad.query_ids, squad.qrels)
    mean = {m: np.mean(list(v.values())) for m, v in scores.items()}
    assert mean["recall@1"] == pytest.approx(0.766, abs=0.002)
    assert mean["ndcg@10"] == pytest.approx(0.859, abs=0.005)
    assert mean["recall@5"] == pytest.approx(0.915, abs=0.002)
    by_stratum = {s: np.mean([scores["recall@1"][q.query_id] for q in squad.queries if q.stratum == s]) for s in ("low", "middle", "high")}
    assert by_stratum["low"] < by_stratum["middle"] < by_stratum["high"]  # counting words works where words are shared


@needs_squad
def test_our_metrics_are_those_of_ranx_on_real_rankings(squad):
    ranx = pytest.importorskip("ranx", reason="needs ranx, a development tool")
    some = list(range(0, len(squad.queries), 10))
    hits = Bm25Searcher(squad.ids, squad.texts).rank([squad.asked[i] for i in some])
    assert (hits.places >= 0).any(1).all()
    run = ranx.Run({f"q{i:03}": {squad.ids[p]: float(s) for p, s in zip(hits.places[i], hits.scores[i], strict=True) if p >= 0}
                    for i in range(len(some))})
    qrels = [{p: int(g) for p, g in squad.qrels[i].items()} for i in some]
    ours = score_ranking(hits, [squad.query_ids[i] for i in some], qrels, METRICS)
    for metric, theirs in ranx_scores(qrels, run, METRICS).items():
        assert list(ours[metric].values()) == pytest.approx(theirs, abs=1e-6), metric


@pytest.mark.slow
@needs_squad
def test_embedders_beside_bm25_on_squad(squad, whole, tmp_path):
    ids, texts = squad.ids, squad.texts
    bm25, minilm = Bm25Searcher(ids, texts), DenseSearcher(ids, texts, Embedder(cache=tmp_path / "v.sqlite"), "minilm")
    small = DenseSearcher(ids, texts, Embedder(f"onnx:{whole['int8']}", tmp_path / "v.sqlite"), "int8")
    scores = {s.name: score_ranking(s.rank(squad.asked), squad.query_ids, squad.qrels)["ndcg@10"]
              for s in (bm25, minilm, small, HybridSearcher((bm25, minilm)))}
    estimates, contrasts = compare(scores, squad.clusters, "bm25", load_config())
    assert all(e.n == 5249 and e.n_clusters == 24 for e in estimates)
    against = {c.a: c for c in contrasts}
    assert against["minilm"].ci_high < 0  # the questions were written looking at the passage: counting words is hard to beat
    assert against["hybrid"].ci_low > -0.03
    assert all(c.ci_high - c.ci_low > c.ci_naive_high - c.ci_naive_low for c in contrasts)  # questions about one article are alike
    quantized = compare({k: scores[k] for k in ("minilm", "int8")}, squad.clusters, "minilm", load_config())[1][0]
    assert quantized.ci_low > -0.005
    best, confirmed = choose_level(scores, squad.clusters, "minilm")
    assert best in ("bm25", "hybrid")
    assert {c.a: c.ci_low > 0 for c in compare(confirmed, squad.clusters, "minilm", load_config())[1]}[best]


@pytest.fixture(scope="module")
def audio(tmp_path_factory):
    from distillery.pairs.chunk import chunk_documents
    from distillery.pairs.documents import read_documents
    from distillery.reading.markdown import front_matter
    folder = tmp_path_factory.mktemp("audio")
    with tarfile.open(AUDIO) as tar: tar.extractall(folder, filter="data")
    documents = read_documents(folder, ["**/*.md"]).documents
    fields = {d.doc_id: front_matter((folder / d.path).read_text("utf-8"))[0] for d in documents}
    return documents, chunk_documents(documents), {d: str(f["description"]) for d, f in fields.items() if f.get("description")}


@needs_audio
def test_documents_ask_about_themselves(audio):
    documents, chunks, descriptions = audio
    headings, described = heading_queries(documents, chunks), description_queries(descriptions, chunks)
    assert len(described.queries) >= 25
    assert len(headings.queries) > 200
    both = join_sets(headings, described)
    assert len(both.queries) == len(headings.queries) + len(described.queries)
    hidden = {q.text for q in described.queries}
    assert not any(line.strip() in hidden for t in both.texts for line in t.split("\n"))
    scores = score_ranking(Bm25Searcher(both.ids, both.texts).rank(both.asked), both.query_ids, both.qrels, ["hit@10", "ndcg@10"])
    assert 0.3 < np.mean(list(scores["hit@10"].values())) < 0.99


# Tuning


def toy_set(n: int = 24) -> QuerySet:
    names = [a + b for a, b in product(("Vo", "Ka", "Zi", "Mu", "Te", "Ro"), ("rm", "lt", "nk", "sp"))][:n]
    ids = [f"d{i}" for i in range(n)]
    return QuerySet("toy", tuple(ids), tuple(f"The {name} makes {7 * i} sheets." for i, name in enumerate(names)),
                    tuple(Query(query_id=f"q{i}", text=f"How many sheets does the {name} make?", relevant={f"d{i}": 1.0}, cluster=f"d{i}")
                          for i, name in enumerate(names)))


def test_a_document_trains_or_measures_never_both():
    train, held = split_queries(toy_set())
    assert {q.cluster for q in train.queries}.isdisjoint(q.cluster for q in held.queries)
    assert len(train.queries) + len(held.queries) == 24
    assert train.texts == held.texts
    with pytest.raises(DistilleryError, match="nothing to split"): split_queries(toy_set(1))


@pytest.mark.slow
def test_tuning_is_the_same_twice_and_leaves_safetensors(tmp_path):
    pairs = training_pairs(toy_set())
    made = [tune_embedder(pairs, tmp_path / name, settings=TuneSettings(batch_size=8, max_steps=3)) for name in ("one", "two")]
    weights = [(m / "model.safetensors").read_bytes() for m in made]
    assert weights[0] == weights[1]
    other = tune_embedder(pairs, tmp_path / "one", settings=TuneSettings(batch_size=8, max_steps=3, seed=89))
    assert (other / "model.safetensors").read_bytes() != weights[0]
    left = {p.suffix for m in made for p in m.rglob("*") if p.is_file()}
    assert left <= {".json", ".safetensors", ".txt"}
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    facts = json.loads((made[1] / "tuned.json").read_text())
    assert (facts["steps"], facts["pairs"]) == (3, 24)


def test_a_cut_training_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("distillery.retrieval.tune._train", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt): tune_embedder(training_pairs(toy_set()), tmp_path / "cut")
    assert list(tmp_path.iterdir()) == []


def test_vectors_on_a_full_disk_are_a_clear_error(tmp_path, monkeypatch):
    "SQLite has an error of its own for a disk without room."
    import sqlite3

    from distillery.core.files import StoreError
    from distillery.retrieval.vectors import VectorStore

    store, opened = VectorStore(tmp_path / "vectors.sqlite"), VectorStore._open

    def small(self):
        db = opened(self)
        db.execute("pragma max_page_count = 4")
        return db

    monkeypatch.setattr(VectorStore, "_open", small)
    with pytest.raises(StoreError, match="cannot write") as error: store.put({str(i): np.ones(384, np.float32) for i in range(50)})
    assert "free some disk space" in error.value.fix
    assert isinstance(error.value.__cause__, sqlite3.OperationalError)
    assert store.get(["0"]) == {}
