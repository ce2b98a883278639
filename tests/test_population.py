"One document is answered for itself in every question, and no source is asked for what it does not bring."
import json
from pathlib import Path

import numpy as np
import pytest
from pydantic import BaseModel

from distillery.core.config import load_config
from distillery.core.files import write_jsonl
from distillery.core.records import Pair, Slot
from distillery.engine.source import Source, open_source
from distillery.evaluation.evaluate import EvalRow
from distillery.pairs.account import GroupedRow
from distillery.questions.all import questions_of
from distillery.questions.context_length.decision import context_decisions
from distillery.questions.context_length.quality import MEASURES, resampled
from distillery.questions.distillation.stages import ArmRow
from distillery.questions.embedder.stages import EmbedderCost, EmbedderRow, Found
from distillery.questions.chunks.stages import ChunkRow, CutFacts
from distillery.questions.vector_index.stages import IndexQuery
from distillery.questions.kernels.stages import FlipRow, KernelCost
from distillery.questions.load.trials import Trial
from distillery.questions.prompts.stages import PromptRow
from distillery.questions.rag.stages import RagAnswer
from distillery.questions.question import NO_DOCUMENTS, NOT_WRITTEN
from distillery.questions.results import Results, TeacherRow, open_results
from distillery.questions.subsets import SubsetRow
from distillery.questions.temperature.stages import TemperatureRow
from distillery.workbook.experiment import _stages
from distillery.retrieval.frontier import IndexPoint

ITEMS = range(40)


def filled(model: type[BaseModel], **given):
    "A record with what is given, and something of the right kind everywhere else."
    plain = {str: "x", float: 1.0, int: 1, bool: False}
    needed = {name: f.annotation for name, f in model.model_fields.items() if f.is_required() and name not in given}
    return model(**{name: next((v for kind, v in plain.items() if kind is a or kind in getattr(a, "__args__", ())), None)
                    for name, a in needed.items()}, **given)


def write_json(path: Path, value) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def one_document(path: Path, population: str) -> Results:
    "A run that asked every question it can of forty cases in one document."
    one = [{"id": f"q{i}", "doc_id": "resume"} for i in ITEMS]
    put = lambda name, rows: ((path / name).parent.mkdir(parents=True, exist_ok=True), write_jsonl(path / name, rows))
    answers = lambda variant: [filled(EvalRow, **x, set="test", kind="answer", variant=variant) for x in one]
    write_json(path / "config.json", {"decisions.population": population})
    write_json(path / "provenance.json", {"source": "documents", "teacher": "builtin:mini"})
    for v in ("fp32", "q4"):
        put(f"eval/{v}/rows.jsonl", answers(v))
        write_json(path / f"eval/{v}/metrics.json", {"cost": {"bytes": 9}})
        put(f"teacher/{ {'fp32': 'fp32', 'q4': 'int8'}[v] }/rows.jsonl", [filled(TeacherRow, **x) for x in one])
    for t in ("0.3", "0.9"): put(f"temperature/{t}/rows.jsonl", [filled(TemperatureRow, **x, error=None, replicate=0) for x in one])
    found = dict.fromkeys(("base", "bm25"), filled(Found))
    put("embedder/rows.jsonl", [filled(EmbedderRow, **x, found=found) for x in one])
    put("embedder/costs.jsonl", [filled(EmbedderCost, level=level) for level in found])
    for pack in ("handbook", "technical-docs"): put(f"prompts/{pack}/rows.jsonl", [filled(PromptRow, **x) for x in one])
    said = {x["id"]: [["q", "a"]] for x in one}
    trial = lambda n, r: filled(Trial, level=n, repeat=r, seconds=1.0, requests=3, tokens=9, peak_gib=1.0, outputs=said)
    slot = lambda x: filled(Slot, slot_id=x["id"], doc_id="resume", category="facts", difficulty="easy", kind="answer")
    for name in ("parallel", "memory"):
        put(f"{name}/trials.jsonl", [trial(n, r) for n in ("1", "4") for r in range(2)])
        put(f"{name}/slots.jsonl", map(slot, one))
    write_json(path / "memory/facts.json", {"ram_gib": 8.0, "levels": {n: {"gib": None} for n in ("1", "4")}})
    grouped = lambda n, x: GroupedRow(level=n, slot_id=x["id"], doc_id="resume", kept=1.0, requests=40 // n)
    put("grouping/rows.jsonl", [grouped(n, x) for n in (1, 4) for x in one])
    kept = {"effort": None, "n": 99, "k": 10, "overlap": [1.0] * len(one), "ms_each": [1.0], "ms_batch": 1, "build_s": 0, "bytes": 9}
    put("index/points.jsonl", [IndexPoint(kind=kind, **kept) for kind in ("flat", "ivf")])
    put("index/queries.jsonl", [IndexQuery(**x) for x in one])
    needed = {"220 tokens": 9, "60 tokens": 9}
    put("chunks/rows.jsonl", [filled(ChunkRow, **x, needed=needed) for x in one])
    put("chunks/cuts.jsonl", [filled(CutFacts, level=level) for level in needed])
    put("kernels/rows.jsonl", [filled(FlipRow, **x, same={"level 1": 1.0, "level 4": 1.0}) for x in one])
    put("kernels/costs.jsonl", [filled(KernelCost, level=level, ms_each=[1.0, 2.0]) for level in ("level 1", "level 4")])
    given = {"golds": ["x"], "retrieved": ["p"], "outcome": "right", "set": "test"}
    one_rag = lambda x, k, taken: filled(RagAnswer, id=x["id"], cluster=x["doc_id"], k=k, taken=taken, **given)
    put("rag/rows.jsonl", [one_rag(x, k, taken) for x in one for k in (0, 1, 3) for taken in (False, True) if k or not taken])
    for level in ("mini", "tiny"):
        put(f"sizes/{level}/rows.jsonl", answers("fp32"))
        facts = {"order": len(level), "kind": "generative", "bytes": 9, "train_seconds": 1, "parameters": 9}
        write_json(path / f"sizes/{level}/facts.json", facts)
    put("curve/0.5/rows.jsonl", answers("fp32"))
    subsets = {m: {"method": m.split()[0], "share": s, "pairs": 9, "documents": 1, "least quality": None}
               for m, s in (("all", 1.0), ("random 50%", 0.5), ("top-k 50%", 0.5))}
    for m in subsets.values():
        put(f"selected/reader/{m['method']}-{m['share']:g}.jsonl",
            [filled(SubsetRow, **x, set=s, seed="1", token_f1=1.0, exact_match=1.0) for s in ("validation", "test") for x in one])
    write_json(path / "selected/reader/facts.json", {"why_not": None, "subsets": subsets})
    pair = lambda x: filled(Pair, **x, schema_version=1, question=f"What of {x['id']}?", answer="a part", kind="answer", evidence=None)
    put("selected.jsonl", map(pair, one))
    write_json(path / "measures/pairs.json", {"length": [1.0] * len(one)})
    for arm in ("base", "sft"):
        put(f"arms/{arm}-1/rows.jsonl", [filled(ArmRow, **x, set="test", kind="answer") for x in one])
        write_json(path / f"arms/{arm}-1/arm.json", {"arm": arm, "seed": 1, "tokens": 9, "seconds": 1.0})
    return Results(path)


OTHER = ("context_length", "student", "domain")  # articles have topics; gates have bounds of their own; training sets are drawn
ASKED = [q for q in questions_of("pairs") if q.name not in OTHER]


@pytest.mark.parametrize("question", ASKED, ids=lambda q: q.name)
def test_one_document_is_answered_for_itself_and_for_no_other(question, tmp_path):
    alike, alone = one_document(tmp_path / "alike", "like these"), one_document(tmp_path / "alone", "these")
    assert "about one document" in question.reason(alike)
    assert "decisions.population=these" in question.reason(alike)
    assert question.reason(alone) is None
    made = question.decisions(alone, load_config(overrides={"decisions.population": "these"}))
    assert made
    assert all(d.n_clusters == 1 and d.n_items == len(ITEMS) for d in made)
    assert not any("fewer than" in d.verdict for d in made)


EVERYTHING = {"decisions.index_sizes": [99], "decisions.chunk_sizes": [60], "decisions.rag_passages": [1, 3],
              "decisions.kernel_levels": [1, 4],
              "decisions.prompt_packs": ["handbook", "technical-docs"], "decisions.parallel": [1, 4],
              "decisions.questions_per_call": [1, 4],
              "decisions.memory_batches": [1, 4], "decisions.train_shares": [0.5], "decisions.bases": ["builtin:mini", "builtin:tiny"],
              "decisions.distill_arms": ["base", "sft", "sequence", "rag"], "decisions.selectors": ["top-k"], "decisions.training_sets": 8,
              "teacher.model": "builtin:mini"}


@pytest.mark.parametrize("settings", [{}, EVERYTHING], ids=["as it is", "everything asked"])
@pytest.mark.parametrize("kind", ["handbook", "documents", "pairs", "articles"])
def test_every_stage_of_a_run_has_what_it_needs(kind, settings, tmp_path):
    "A question whose source does not bring what it works on has no stage and sends nothing."
    (tmp_path / "articles.jsonl").write_text('{"id": "a", "text": "One.", "scores": {"reach": 1}, "cluster": "t"}\n')
    write_json(tmp_path / "docs/one.md", "One page.")
    (tmp_path / "pairs.jsonl").write_text('{"question": "Who?", "answer": "Ann", "context": "Ann did."}\n')
    files = {"articles": {"articles.file": str(tmp_path / "articles.jsonl")}}
    config = load_config(preset="handbook" if kind == "handbook" else None, overrides={**settings, **files.get(kind, {})})
    places = {"documents": "docs", "pairs": "pairs.jsonl", "articles": "articles.jsonl"}
    source = open_source(None, None, None) if kind == "handbook" else Source(kind, tmp_path / places[kind])
    stages, names = _stages(source, config, tmp_path / "cache"), set[str]()
    assert stages
    for s in stages:
        assert set(s.needs) <= names, f"{s.name} needs {set(s.needs) - names}"
        names.add(s.name)
    if kind == "articles": assert sum(q.sends(source, config) for q in questions_of("pairs")) == 0


@pytest.mark.parametrize(("kind", "why"), [("articles", NO_DOCUMENTS), ("pairs", NOT_WRITTEN)])
def test_a_question_that_was_not_put_for_its_source_says_so(kind, why, tmp_path):
    write_json(tmp_path / "provenance.json", {"source": kind, "teacher": "builtin:mini"})
    said = {q.name: q.no_result(Results(tmp_path)) for q in questions_of("pairs") if kind not in q.asked_of}
    assert {"temperature", "prompts", "parallel", "memory", "grouping"} <= said.keys()
    assert set(said.values()) == {f"This run cannot tell: {why}."}


@pytest.mark.slow
def test_the_context_card_follows_confidence_and_population():
    run, at = open_results(Path(__file__).parent / "data/run"), lambda **changed: load_config(preset="handbook", overrides=changed)
    usual, = context_decisions(run, at())
    bold, = context_decisions(run, at(**{"decisions.confidence": 0.6}))
    alone, = context_decisions(run, at(**{"decisions.population": "these"}))
    width = lambda card: [e.ci_high - e.ci_low for e in (*card.estimates, *card.contrasts)]
    assert all(b < 0.7 * u for b, u in zip(width(bold), width(usual), strict=True))
    assert {c.confidence for c in bold.contrasts} == {0.6}
    assert (usual.n_clusters < usual.n_items, alone.n_clusters) == (True, alone.n_items)


@pytest.mark.parametrize("measure", ["Spearman", "slope", "SD ratio"])
def test_a_measure_of_six_clusters_has_an_interval_that_covers(measure):
    "A percentile bootstrap of six clusters held .84 to .89 of the truths."
    rng, hits, clusters = np.random.default_rng(11), 0, np.repeat([f"topic {i}" for i in range(6)], 15)
    many = rng.normal(size=(2, 50_000))
    truth = MEASURES[measure](many[0], 0.6 * many[0] + 0.8 * many[1])
    for _ in range(200):
        x, noise = rng.normal(size=(2, 90))
        e = resampled(measure, x, 0.6 * x + 0.8 * noise, clusters)
        hits += e.ci_low <= truth <= e.ci_high
    assert 0.915 <= hits / 200 <= 0.99
