"""The second exporter, and checkpoints of the other major version of transformers.
`make test-optimum` runs this in an environment with Optimum and transformers 4; what needs no Optimum runs in the main set too."""
import json
import os
import subprocess
import sys
from importlib import resources
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from distillery.core.config import load_config
from distillery.core.records import ChatTurn, Example
from distillery.core.stats import paired_contrast, tost
from distillery.exporting.check import check_variants
from distillery.exporting.export import ExportError, variant_bytes
from distillery.exporting.optimum import build_optimum, float_matrices
from distillery.training.toy import toy_base, toy_examples
from distillery.teachers import checkpoint
from distillery.teachers.checkpoint import CheckpointError, loadable, older_tokenizer
from distillery.teachers.local import TransformersTeacher
from distillery.teachers.onnx import OnnxTeacher
from distillery.teachers.protocol import ask_all, user_request

transformers = pytest.importorskip("transformers")
MAJOR = int(transformers.__version__.split(".")[0])
needs_optimum = pytest.mark.skipif(find_spec("optimum") is None, reason="Optimum is not installed: make test-optimum has it")
THETA = 1e6
SPELLINGS = {4: {"rope_theta": THETA}, 5: {"rope_parameters": {"rope_theta": THETA, "rope_type": "default"}}}
QUICK = ["--set", "sft.epochs=1", "--set", "export.check_positions=200"]


def far_turning(folder: Path) -> Path:
    "A toy whose rotary base is 1,000,000, with weights large enough for that to matter."
    torch = pytest.importorskip("torch")
    toy_base(folder)
    torch.manual_seed(1)
    shape = transformers.AutoConfig.from_pretrained(folder)
    for name, value in {**SPELLINGS[MAJOR], "initializer_range": 0.3}.items(): setattr(shape, name, value)
    transformers.Qwen2ForCausalLM(shape).save_pretrained(folder)
    return folder


def respelled(folder: Path, major: int) -> None:
    "Write configuration and tokenizer the way that major does."
    config = {k: v for k, v in json.loads((folder / "config.json").read_text()).items() if not k.startswith("rope_")}
    (folder / "config.json").write_text(json.dumps({**config, **SPELLINGS[major], "transformers_version": f"{major}.0.0"}))
    told = json.loads((folder / "tokenizer_config.json").read_text())
    for name in ("backend", "extra_special_tokens"): told.pop(name, None)
    mine = {4: {"tokenizer_class": "PreTrainedTokenizerFast", "extra_special_tokens": {}},
            5: {"tokenizer_class": "TokenizersBackend", "backend": "tokenizers", "extra_special_tokens": ["<|endoftext|>"]}}[major]
    (folder / "tokenizer_config.json").write_text(json.dumps({**told, **mine}))


@pytest.mark.parametrize("major", [4, 5])
def test_either_spelling_gives_the_logits_it_was_saved_with(tmp_path, major):
    ids = list(range(3, 60))
    truth = TransformersTeacher(far_turning(tmp_path / "m"), device="cpu").logits(ids)
    respelled(tmp_path / "m", major)
    found = TransformersTeacher(tmp_path / "m", device="cpu").logits(ids)
    assert np.abs(found - truth).max() < 1e-6
    from distillery.training.bases import load_base
    model, tokenizer = load_base(tmp_path / "m")
    assert abs(float(model.model.rotary_emb.inv_freq.double()[1] ** -16) / THETA - 1) < 1e-3
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer("<|im_start|>").input_ids == [1]


def test_the_wrong_base_would_have_been_noticed(tmp_path):
    ids = list(range(3, 60))
    truth = TransformersTeacher(far_turning(tmp_path / "m"), device="cpu").logits(ids)
    config = json.loads((tmp_path / "m/config.json").read_text())
    for name in [k for k in config if k.startswith("rope_")]: del config[name]
    (tmp_path / "m/config.json").write_text(json.dumps(config))
    assert np.abs(TransformersTeacher(tmp_path / "m", device="cpu").logits(ids) - truth).max() > 1


def test_a_version_that_drops_the_base_is_refused(tmp_path, monkeypatch):
    far_turning(tmp_path / "m")
    respelled(tmp_path / "m", 5)
    blind = type("Blind", (), {"to_dict": lambda self: {"rope_theta": 10000.0}})()
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", lambda *_, **__: blind)
    with pytest.raises(CheckpointError, match="misreads the rotary positions"): loadable(tmp_path / "m")


def test_positions_that_differ_by_layer_are_refused_by_the_older_version(tmp_path, monkeypatch):
    toy_base(tmp_path / "m")
    config = json.loads((tmp_path / "m/config.json").read_text())
    config["rope_parameters"] = {"full_attention": {"rope_theta": THETA}, "sliding_attention": {"rope_theta": 1e4}}
    (tmp_path / "m/config.json").write_text(json.dumps(config))
    older = type("Older", (), {"__version__": "4.57.6"})
    monkeypatch.setattr(checkpoint, "need", lambda *_, **__: older)
    with pytest.raises(CheckpointError, match="different layers"): loadable(tmp_path / "m")


def test_special_tokens_of_version_five_are_not_lost():
    assert older_tokenizer({"extra_special_tokens": ["<|tool|>"], "backend": "tokenizers"})["additional_special_tokens"] == ["<|tool|>"]


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    return toy_base(tmp_path_factory.mktemp("optimum") / "merged", hidden=128)


CHECKED = load_config(overrides={"export.check_positions": 100})


@needs_optimum
@pytest.mark.parametrize("variant", ["fp32", "int8", "uint8", "q4"])
def test_every_variant_is_the_student(toy, tmp_path, variant):
    folder = build_optimum(toy, tmp_path / variant, variant)
    check = check_variants(toy, {variant: folder}, toy_examples(12), CHECKED)[variant]
    assert check.max_abs_diff < (1e-4 if variant == "fp32" else 5)
    assert json.loads((folder / "export.json").read_text())["backend"] == "optimum"
    assert variant == "fp32" or float_matrices(folder / "model.onnx") == []
    assert OnnxTeacher(folder).context == 256


@needs_optimum
def test_a_shared_vocabulary_is_shrunk_too(toy, tmp_path):
    sizes = {v: variant_bytes(build_optimum(toy, tmp_path / v, v)) for v in ("fp32", "q4")}
    assert sizes["q4"] < 0.45 * sizes["fp32"]


@needs_optimum
@pytest.mark.parametrize("major", [4, 5])
def test_an_export_of_either_spelling_keeps_the_rotary_base(tmp_path, major):
    ids = list(range(3, 60))
    truth = TransformersTeacher(far_turning(tmp_path / "m"), device="cpu").logits(ids)
    respelled(tmp_path / "m", major)
    assert np.abs(OnnxTeacher(build_optimum(tmp_path / "m", tmp_path / "out", "fp32"), threads=1).logits(ids) - truth).max() < 1e-3


@needs_optimum
def test_a_wrong_export_is_refused(toy, tmp_path):
    other = far_turning(tmp_path / "other")
    with pytest.raises((ExportError, ValueError)):
        check_variants(toy, {"fp32": build_optimum(other, tmp_path / "fp32", "fp32")}, toy_examples(12), CHECKED)


def facts(n: int, last: bool) -> list[Example]:
    "Gold facts of the handbook, each in four wordings to learn and a fifth to ask."
    lines = resources.files("distillery").joinpath("data/gold.jsonl").read_text("utf-8").splitlines()[:n]
    rows = []
    for g in map(json.loads, lines):
        for i, wording in enumerate(g["wordings"][-1:] if last else g["wordings"][:-1]):
            chat = [ChatTurn(role="user", content=wording), ChatTurn(role="assistant", content=g["answer"])]
            rows.append(Example.model_validate({
                "id": f"{g['id']}-{i}", "set": "recall" if last else "train", "pair_id": g["id"], "family_id": g["id"], "doc_id": g["page"],
                "chunk_id": g["page"], "category": g["category"], "difficulty": g["difficulty"], "kind": "answer", "question": wording,
                "answer": g["answer"], "messages": chat}))
    return rows


@needs_optimum
@pytest.mark.slow
def test_every_variant_is_as_accurate_as_the_student(tmp_path):
    "The model builder does not run on transformers 4, so the reference is what both exporters start from: the merged model in PyTorch."
    from distillery.exporting.merge import merge_adapter
    from distillery.training.sft import train_adapter

    cfg = load_config(preset="handbook", overrides={"sft.epochs": 20, "export.check_positions": 300, "sft.save_strategy": "no"})
    train_adapter(facts(80, last=False), [], "builtin:mini", cfg, tmp_path / "adapter", tmp_path / "checkpoints")
    merge_adapter("builtin:mini", tmp_path / "adapter", tmp_path / "merged")
    asked, margin = [*facts(80, last=True), *facts(80, last=False)], cfg.decisions.margins["exact_match"]
    requests = [user_request(str(i), e.question, max_tokens=48) for i, e in enumerate(asked)]

    def right(teacher: TransformersTeacher | OnnxTeacher) -> np.ndarray:
        return np.array([r.text == e.answer for r, e in zip(ask_all(teacher, requests), asked, strict=True)], float)

    truth, found = right(TransformersTeacher(tmp_path / "merged", device="cpu")), {}
    for variant in ("fp32", "int8", "uint8", "q4"):
        folder = build_optimum(tmp_path / "merged", tmp_path / variant, variant)
        check = check_variants(tmp_path / "merged", {variant: folder}, asked, CHECKED)[variant]
        share = right(OnnxTeacher(folder, threads=1))
        c = found[variant] = paired_contrast(share, truth, [e.pair_id for e in asked], levels=("optimum", "merged"))
        print(f"{variant}: optimum {share.mean():.3f}, merged {truth.mean():.3f}, difference {c.diff:+.3f} "
              f"[{c.ci_low:+.3f}, {c.ci_high:+.3f}], n = {c.n_items}, same top-1 {check.same_top1:.3f}")
    assert truth.mean() > 0.5, "the student must know something for this to say anything"
    assert {v for v, c in found.items() if tost(c, margin) < 0.05} >= {"fp32", "int8", "uint8"}, "not shown to be equivalent"
    assert found["q4"].ci_high > -margin, "q4 is worse than the margin allows"


@needs_optimum
@pytest.mark.slow
def test_the_whole_job_runs_with_optimum(tmp_path):
    from test_run import write_pages

    write_pages(tmp_path / "docs")
    call = "from distillery.commands.cli import main; main()"
    command = [sys.executable, "-c", call, "run", "--docs", "docs", *QUICK, "--set", "export.backend=optimum"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=1800, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "runs/latest"
    for variant in ("fp32", "int8", "uint8", "q4"):
        assert json.loads((run / f"onnx/{variant}/export.json").read_text())["backend"] == "optimum"
        assert json.loads((run / f"onnx/{variant}/check.json").read_text())["ok"] or variant != "fp32"
        assert (run / f"eval/{variant}/metrics.json").is_file()
    assert (run / "reports/quantization.html").is_file()
