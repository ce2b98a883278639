"The index card: what is planted is found, what is wrong is named, an index pays only where it is asked often."
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

from distillery.core.config import load_config
from distillery.core.records import Decision
from distillery.questions.vector_index.decision import (
    INDEX, device_notes, index_decision, index_decisions, index_points, levels_at, pick_index, winners,
)
from distillery.questions.vector_index import stages
from distillery.questions.vector_index.stages import IndexQuery, index_stages
from distillery.questions.question import NOT_RUN
from distillery.questions.results import Results
from distillery.retrieval.frontier import IndexPoint

KEPT = Path(__file__).parent / "data/run"
CONFIG = load_config(preset="handbook")
QUERIES = [IndexQuery(id=f"q{i}", doc_id=f"d{i // 5}") for i in range(400)]


def point(kind, overlap, ms, build=0.0, effort=None, n=10_000, alarm=None):
    "A kind that keeps so much: of every so many questions one loses two of ten passages."
    lost = round(0.2 / (1 - overlap)) if overlap < 1 else 10**9
    each = [0.8 if i % lost == 0 else 1.0 for i in range(len(QUERIES))] if lost > 1 else [overlap] * len(QUERIES)
    return IndexPoint(kind=kind, effort=effort, n=n, k=10, overlap=each, ms_each=[ms], ms_batch=ms, build_s=build, bytes=1, alarm=alarm)


def test_what_is_lost_is_found_and_what_is_kept_is_equivalent():
    points = [point("flat", 1.0, 5.0), point("hnsw", 0.995, 0.5, 1.0, 64), point("ivf", 0.7, 0.1, 0.1, 1)]
    made = index_decision(points, QUERIES, 10_000, CONFIG)
    assert made.sentence.startswith("Use hnsw 64 for 10,000 passages")
    assert made.verdict == "equivalent (±0.05)"
    assert {c.a: c.diff < -0.25 for c in made.contrasts} == {"hnsw 64": False, "ivf 1": True}
    assert index_decision(points[::2], QUERIES, 10_000, CONFIG).verdict == "flat better"
    assert "Keep the exact search" in index_decision(points[::2], QUERIES, 10_000, CONFIG).sentence


def test_a_graph_pays_only_where_it_is_asked_often():
    points = [point("flat", 1.0, 1.0), point("hnsw", 1.0, 0.5, 10.0, 64)]  # 10 s of building against half a millisecond a question
    rare, often = (load_config(overrides={"decisions.index_questions": n}) for n in (1_000, 100_000))
    assert index_decision(points, QUERIES, 10_000, rare).sentence.startswith("Keep the exact search")
    assert index_decision(points, QUERIES, 10_000, often).sentence.startswith("Use hnsw 64")
    assert "after 20,000 questions" in index_decision(points, QUERIES, 10_000, often).sentence


def test_the_sizes_of_the_settings_are_built(tmp_path, monkeypatch):
    built = []
    monkeypatch.setattr(stages, "compare_indexes", lambda asked, embedder, sizes, *rest: built.append(sizes) or ([], {}))
    for sizes in ([50], [50, 100]):
        config = load_config(overrides={"decisions.index_sizes": sizes})
        stage = index_stages(None, config, tmp_path)[0]
        stage.run(SimpleNamespace(config=config, needs={"documents": KEPT, "select": KEPT}, out=tmp_path, say=None))
    assert built == [[50], [50, 100]]


def test_an_index_of_another_metric_is_no_level():
    points = [point("flat", 1.0, 1.0), point("hnsw", 1.0, 0.1, 0.1, 16, alarm="its scores are not inner products: off by up to 2")]
    assert list(levels_at(points, 10_000)) == ["flat"]


def test_the_size_of_the_corpus_may_change_the_winner():
    points = [point("flat", 1.0, 0.1, n=1000), point("hnsw", 1.0, 0.09, 0.5, 16, n=1000),
              point("flat", 1.0, 9.0), point("hnsw", 1.0, 0.2, 5.0, 16)]
    cards = [index_decision(points, QUERIES, n, CONFIG) for n in (10_000, 1000)]
    assert winners(cards, points, CONFIG) == {1000: "flat", 10_000: "hnsw 16"}


def test_the_kept_run_answers_and_says_that_no_gpu_was_there(tmp_path):
    results = Results(KEPT)
    points, queries = index_points(results)
    cards = index_decisions(results, CONFIG)
    assert [d.name for d in cards] == ["vector_index", "vector_index-1000"]
    assert {d.n_items for d in cards} == {len(queries)}
    assert all(pick_index(d, levels_at(points, n), 10_000) for d, n in zip(cards, (10_000, 1000), strict=True))
    stored = Decision.model_validate(json.loads((KEPT / "decisions/vector_index.json").read_text("utf-8")))
    assert stored.sentence == cards[0].sentence
    assert all("not measured: no GPU is here" in text and "100 %" in text for text in device_notes(results))
    shutil.copytree(KEPT, tmp_path / "run", ignore=shutil.ignore_patterns("index"))
    assert INDEX.why_not(Results(tmp_path / "run")) == NOT_RUN
    assert "decisions.index_sizes=[1000, 10000]" in INDEX.command()
    assert index_stages(None, load_config(), tmp_path) == []
