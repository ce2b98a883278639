"The exporter of a base is known before its training, writes what PyTorch computes, and gives way to the next where it does not."
import json
import os
import shutil
import stat
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from twins import TWINS, write_twin

from distillery.core.config import load_config
from distillery.core.errors import DistilleryError
from distillery.core.student_knobs import QuantizationSection
from distillery.exporting import graph, trace
from distillery.exporting.check import check_variants
from distillery.exporting.export import build_onnx
from distillery.exporting.graph import EXPORTERS, ExportError, build_graph, run_builder, torch_difference
from distillery.teachers.local import TransformersTeacher
from distillery.teachers.onnx import OnnxTeacher
from distillery.teachers.protocol import ask_all, user_request
from distillery.training import exporters
from distillery.training.exporters import GENAI, TRACED, exporters_of, model_facts
from distillery.training.preflight import preflight, require, training_findings
from distillery.training.toy import toy_base, toy_examples, toy_tokenizer

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime_genai")
BUILT = ("qwen2.5", "qwen3", "smollm2", "llama3.2", "tinyllama", "granite")  # all others PyTorch's exporter traces
QUICK = ("gemma2", "mistral")


@pytest.fixture(scope="module")
def toy(tmp_path_factory): return toy_base(tmp_path_factory.mktemp("toy") / "toy")


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in TWINS])
def test_every_family_is_exported_as_pytorch_computes_it(tmp_path, name):
    "Beyond its sliding window, with and without a cache; and greedy text is PyTorch's to the last character."
    base = write_twin(name, tmp_path / "base")
    by = "genai" if name in BUILT else "torch"
    assert next(exporters_of(model_facts(base))) == by
    folder = build_onnx(base, tmp_path / "fp32", "fp32")
    assert json.loads((folder / "export.json").read_text())["backend"] == by
    assert torch_difference(base, folder) < 1e-4
    asked = [user_request(e.id, e.question, max_tokens=16) for e in toy_examples(4)]
    said, truth = ([r.text for r in ask_all(t, asked)] for t in (OnnxTeacher(folder), TransformersTeacher(base, device="cpu")))
    assert said == truth
    small = build_onnx(base, tmp_path / "int8", "int8", QuantizationSection(block_size=16))
    tensors = onnx.load(small / "model.onnx").graph
    assert [t.name for t in tensors.initializer if len(t.dims) == 2 and t.data_type == 1 and t.name.endswith("MatMul.weight")] == []
    assert sum(n.op_type == "GatherBlockQuantized" for n in tensors.node) == bool(model_facts(base)["tie_word_embeddings"])
    loose = load_config(overrides={"export.check_positions": 60, "export.same_top1_min": {"int8": 0.3}})
    assert check_variants(base, {"int8": small}, toy_examples(6), loose)["int8"].max_abs_diff < 5


SLIDES = {"sliding_window": 24, "layer_types": ["sliding_attention", "full_attention"]}
ROPE = {"rope_theta": 1e4, "factor": 4.0}
SHAPES = {  # what sets an architecture's configuration apart, and further ones of architectures that a person may bring
    "Exaone4": SLIDES, "Gemma": {"head_dim": 32}, "Gemma2": {"head_dim": 32, **SLIDES}, "Gemma3": {"head_dim": 32, **SLIDES},
    "HunYuanDenseV1": {"head_dim": 16}, "Olmo3": SLIDES, "Phi3": {"original_max_position_embeddings": 256}}
MORE = [("Llama", {"attention_bias": True, "mlp_bias": True}), ("Llama", {"rope_parameters": {"rope_type": "linear", **ROPE}}),
        ("Mistral", {"sliding_window": 24}), ("Qwen2", {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1}),
        ("Gemma2", {"head_dim": 32, **SLIDES, "attn_logit_softcapping": None, "final_logit_softcapping": None}),
        ("StableLm", {"qk_layernorm": True, "use_parallel_residual": True}),
        ("Phi3", {"original_max_position_embeddings": 64, "rope_parameters": {
            "rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 64,
            "short_factor": [1.1] * 8, "long_factor": [4.0] * 8}})]


def bare(folder: Path, family: str, **more) -> Path:
    "A model of an architecture at random weights, norms and biases too."
    import torch
    import transformers

    name = {"Gemma3": "Gemma3Text"}.get(family, family)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, f"{name}Config")(**{
        "vocab_size": 320, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 128, "max_position_embeddings": 256, "initializer_range": 0.08,
        "bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0, **more}))
    with torch.no_grad():
        for key, weights in model.named_parameters():
            if key.endswith("bias"): weights.normal_(0, 0.1)
            elif "norm" in key: weights.add_(torch.randn_like(weights) * 0.1)
    model.save_pretrained(folder)
    toy_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("architecture", sorted(GENAI | TRACED))
def test_the_tables_hold_what_was_verified(tmp_path, architecture):
    "Each exporter in whose table an architecture stands, not only the first."
    family = architecture.removesuffix("ForCausalLM")
    base = bare(tmp_path / "base", family, **SHAPES.get(family, {}))
    assert model_facts(base)["architectures"] == [architecture]
    for by, table in (("genai", GENAI), ("torch", TRACED)):
        if architecture not in table or (by == "genai" and "genai" not in exporters_of(model_facts(base))): continue
        (out := tmp_path / by).mkdir()
        EXPORTERS[by](base, out, True)
        assert torch_difference(base, out) < 1e-4, by


@pytest.mark.slow
@pytest.mark.parametrize(("family", "more"), MORE)
def test_a_configuration_may_move_a_base_to_another_exporter(tmp_path, family, more):
    base = bare(tmp_path / "base", family, **more)
    build_graph(base, tmp_path / "out")
    assert torch_difference(base, tmp_path / "out") < 1e-4


def test_what_cannot_be_exported_is_refused_before_anything_is_paid(tmp_path, toy):
    base = Path(shutil.copytree(toy, tmp_path / "base"))
    cfg = load_config(overrides={"sft.max_length": 256})
    assert [f.name for f in preflight(base, cfg, "genai") if not f.ok] == []
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "architectures": ["Qwen2MoeForCausalLM"]}))
    found = next(f for f in preflight(base, cfg, "genai") if f.name == "export")
    assert (found.ok, "Qwen2MoeForCausalLM" in found.found, "another base" in found.fix) == (False, True, True)
    with pytest.raises(DistilleryError, match="export"): require([found])
    assert all(f.name != "export" for f in training_findings(base, cfg))


def test_a_plan_asks_about_exports_before_it_is_run(tmp_path, toy):
    from distillery.workbook.checks import check_base

    base = Path(shutil.copytree(toy, tmp_path / "base"))
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "hidden_act": "relu", "architectures": ["Qwen2MoeForCausalLM"]}))
    cfg = load_config(overrides={"export.gguf": ["f16"], "sft.max_length": 256})
    said = {c.name.split(": ")[-1]: c.ok for c in check_base(str(base), cfg)}
    assert said == {"export": False, "GGUF": False}


ERRORS = (StopIteration(), KeyError("rope_type"), ValueError("conv"), AttributeError("rotary"), RuntimeError("shape"))


@pytest.mark.parametrize("error", ERRORS)
def test_a_builder_may_fail_in_any_way(toy, tmp_path, monkeypatch, error):
    builder = pytest.importorskip("onnxruntime_genai.models.builder")

    def fail(*_, **__): raise error

    monkeypatch.setattr(builder, "create_model", fail)
    with pytest.raises(ExportError, match=type(error).__name__): run_builder(toy, tmp_path / "out")


def test_a_wrong_graph_gives_way_to_the_next(toy, tmp_path, monkeypatch):
    other = toy_base(tmp_path / "other", layers=3)
    wrong = lambda merged, out, untied: run_builder(other, out)
    monkeypatch.setitem(graph.EXPORTERS, "genai", wrong)
    assert build_graph(toy, tmp_path / "out") == "torch"
    monkeypatch.setitem(graph.EXPORTERS, "torch", wrong)
    with pytest.raises(ExportError, match=r"genai: a logit differs .* torch: a logit differs"): build_graph(toy, tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.skipif(find_spec("optimum") is not None, reason="Optimum is installed here and needs no other environment")
def test_optimum_is_asked_in_its_own_environment(toy, tmp_path, monkeypatch):
    "The environment beside ours is found, asked what it knows, and called with three arguments; a failure is named."
    python = tmp_path / "envs/.venv-optimum/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\n[ "$1" = -P ] && shift\n[ $# = 3 ] && { [ "$3" = bloom ] && echo True || echo False; exit; }\n'
                      '[ -f "$4/graph.onnx" ] && cp "$4/graph.onnx" "$5/model.onnx" || { echo no such model >&2; exit 1; }\n')
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("DISTILLERY_ENVIRONMENTS", str(tmp_path / "envs"))
    exporters.optimum_exports.cache_clear()
    bloom = {"architectures": ["BloomForCausalLM"], "model_type": "bloom"}
    assert list(exporters_of(bloom)) == ["optimum"]
    assert list(exporters_of({**bloom, "model_type": "mamba"})) == []
    (out := tmp_path / "out").mkdir()
    with pytest.raises(DistilleryError, match="no such model"): trace.trace_optimum(toy, out, True)
    merged = Path(shutil.copytree(toy, tmp_path / "merged"))
    shutil.copy(trace.trace_torch(merged, out, True), merged / "graph.onnx")
    config = json.loads((merged / "config.json").read_text())
    (merged / "config.json").write_text(json.dumps({**config, "architectures": ["BloomForCausalLM"]}))
    monkeypatch.setattr(graph, "exporters_of", lambda facts, backend: iter(["optimum"]))
    assert build_graph(merged, tmp_path / "graph", untied=True) == "optimum"
    assert np.abs(OnnxTeacher(tmp_path / "graph").logits([5, 6, 7])).max() > 0
    exporters.optimum_exports.cache_clear()


def test_an_environment_in_the_folder_of_the_call_is_not_run(tmp_path, monkeypatch):
    "It may be anybody's."
    python = tmp_path / ".venv-optimum/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\ntouch ran\n")
    python.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DISTILLERY_ENVIRONMENTS", raising=False)
    exporters.optimum_exports.cache_clear()
    list(exporters_of({"architectures": ["BloomForCausalLM"], "model_type": "bloom"}))
    assert exporters.sibling_python("optimum") != python
    assert not os.path.exists("ran")
