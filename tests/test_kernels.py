"The kernels card: planted flips are seen, the fastest form that keeps the tokens is chosen, a massive channel flips at level 4 only."
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from distillery.core.config import load_config, restrict
from distillery.core.errors import DistilleryError
from distillery.core.files import read_jsonl
from distillery.core.records import Pair
from distillery.pairs.dataset import make_example
from distillery.questions.kernels.decision import KERNELS, kernel_decision, kernel_table
from distillery.questions.kernels.stages import FlipRow, Kernel, KernelCost, compare_kernels, kernel_stages, kernels_of
from distillery.questions.question import NOT_RUN
from distillery.questions.results import Results
from distillery.teachers.protocol import ChatRequest, Message

KEPT = Path(__file__).parent / "data/run"
CONFIG = load_config(overrides={"decisions.resamples": 999})


def drawn(lost: dict[str, float], ms: dict[str, float]):
    "Two hundred answers of eight tokens; a form loses one token of so many answers."
    rng = np.random.default_rng(88)
    rows = [FlipRow(id=str(i), doc_id=f"d{i // 5}", positions=8, same={v: 1 - 0.5 * float(rng.random() < p) for v, p in lost.items()})
            for i in range(200)]
    cost = {"accuracy_level": 1, "block_size": 32, "vocabulary": True, "bytes": 9}
    return rows, [KernelCost(level=v, ms_each=[t, t * 1.1], **cost) for v, t in ms.items()]


def test_the_fastest_form_that_keeps_the_tokens_is_chosen_and_speed_never_stands_alone():
    made = kernel_decision(*drawn({"slow": 0, "fast": 0, "wild": 0.5}, {"slow": 3.0, "fast": 2.0, "wild": 1.0}), CONFIG)
    assert made.sentence.startswith("Use fast: ")
    assert made.verdict == "equivalent (±0.05)"
    assert "most is lost by wild" in made.sentence
    none = kernel_decision(*drawn({"wild": 0.5, "wilder": 0.9}, {"wild": 2.0, "wilder": 1.0}), CONFIG)
    assert none.sentence.startswith("No form is shown to keep")
    assert none.verdict == "the student better"
    (row,) = kernel_table(*drawn({"slow": 0}, {"slow": 4.0}), CONFIG)
    assert str(row["decode, tokens/s"]) == "238"
    assert "[" in str(row["same likeliest token"])


def test_the_settings_decide_what_is_built(tmp_path, monkeypatch):
    import distillery.questions.kernels.stages as stages
    import distillery.exporting.check as check

    built = []
    monkeypatch.setattr(check, "encode_chats", lambda *a: [])
    monkeypatch.setattr(stages, "examples_of", lambda *a: [])
    compared = lambda merged, work, chats, requests, kernels, *rest: built.append(kernels) or ([], [], {})
    monkeypatch.setattr(stages, "compare_kernels", compared)
    for more in ({}, {"decisions.kernel_blocks": [64]}, {"decisions.kernel_vocabularies": [False]}):
        config = load_config(overrides={"decisions.kernel_levels": [1, 4], **more})
        (stage,) = kernel_stages(None, config, tmp_path)
        needs = {"merge": tmp_path, "dataset": tmp_path}
        stage.run(SimpleNamespace(config=restrict(config, stage.reads), needs=needs, out=tmp_path, scratch=tmp_path, say=None))
    assert [len(k) for k in built] == [8, 4, 4]
    assert {k.block for k in built[1]} == {64}
    assert {k.vocabulary for k in built[2]} == {False}
    assert kernel_stages(None, load_config(), tmp_path) == []
    assert KERNELS.why_not(Results(KEPT)) == NOT_RUN
    made = Kernel(1, 64, False).settings(load_config().quantization)
    assert (made.accuracy_level, made.block_size, made.vocabulary) == (1, 64, False)


def test_a_form_that_cannot_be_built_is_named_and_the_rest_is_measured(tmp_path, monkeypatch):
    import distillery.teachers.local as local
    import distillery.teachers.onnx as onnx

    model = SimpleNamespace(logits=lambda ids: np.eye(4)[list(ids)], folder=tmp_path)
    monkeypatch.setattr(local, "TransformersTeacher", lambda *a, **k: model)
    monkeypatch.setattr(onnx, "OnnxTeacher", lambda folder: model)

    def build(folder, how):
        if how.block_size == 256: raise DistilleryError("blocks of 256 weights are longer than a model of width 128", "lower it")

    chats = [SimpleNamespace(ids=(0, 1, 2, 3), first=1, document="d")]
    rows, costs, gone = compare_kernels(tmp_path, tmp_path, chats, [], kernels_of([1], [32, 256], [True]), build, CONFIG.quantization)
    assert [c.level for c in costs] == list(rows[0].same) == ["level 1, blocks of 32, vocabulary small"]
    assert rows[0].same["level 1, blocks of 32, vocabulary small"] == 1
    assert "256 weights" in gone["level 1, blocks of 256, vocabulary small"]


def massive(base: Path, out: Path, channel: int = 5, size: float = 1000.0) -> Path:
    "A model whose channel is a thousand times larger behind every norm, and read by no matrix: in fp32 nobody sees it."
    from safetensors.numpy import load_file, save_file

    shutil.copytree(base, out)
    file = out / "model.safetensors"
    weights = load_file(file)
    for name, w in weights.items():
        w = w.astype(np.float32)
        if "norm" in name and w.ndim == 1 and "q_norm" not in name and "k_norm" not in name: w[channel] = size
        if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight", "gate_proj.weight", "up_proj.weight", "embed_tokens.weight",
                          "lm_head.weight")): w[:, channel] = 0
        if name.endswith(("o_proj.weight", "down_proj.weight")): w[channel] = 0.3 * w[channel - 1]
        weights[name] = w
    save_file(weights, file, metadata={"format": "pt"})
    return out


@pytest.mark.slow
def test_a_massive_channel_flips_tokens_at_level_4_only_and_the_choice_avoids_it(tmp_path):
    from distillery.exporting.check import encode_chats
    from distillery.exporting.export import build_onnx
    from distillery.training.bases import base_folder

    merged = massive(base_folder("builtin:mini"), tmp_path / "merged")
    pairs = [p for p in read_jsonl(KEPT / "selected.jsonl", Pair) if p.kind == "answer"][::12]
    passages = {c["chunk_id"]: c["text"] for c in map(json.loads, (KEPT / "chunks.jsonl").read_text("utf-8").splitlines())}
    chats = encode_chats([make_example("test", p, passages[p.chunk_id]) for p in pairs], merged, 2000)
    kernels = kernels_of([1, 4], [32, 128], [True])
    build = lambda folder, how: build_onnx(merged, folder, "int8", how)
    requests = [ChatRequest(p.id, (Message("user", p.question),), max_tokens=12) for p in pairs[:3]]
    rows, costs, gone = compare_kernels(merged, tmp_path / "work", chats, requests, kernels, build, CONFIG.quantization)
    assert not gone
    made = kernel_decision(rows, costs, CONFIG)
    mean = {e.level: e.mean for e in made.estimates}
    assert min(m for v, m in mean.items() if v.startswith("level 1")) > 0.98, mean
    assert max(m for v, m in mean.items() if v.startswith("level 4")) < 0.9, mean
    assert made.sentence.startswith("Use level 1"), made.sentence


@pytest.mark.slow
def test_a_full_vocabulary_keeps_its_matrix(tmp_path):
    import onnx

    from distillery.exporting.export import build_onnx
    from distillery.training.bases import base_folder

    base, how = base_folder("builtin:mini"), CONFIG.quantization
    for variant in ("int8", "q4"):
        kinds = {}
        for kernel in kernels_of([4], [32], [True, False]):
            folder = build_onnx(base, tmp_path / variant / str(kernel.vocabulary), variant, kernel.settings(how))
            graph = onnx.load(folder / "model.onnx").graph
            kinds[kernel.vocabulary] = {n.op_type for n in graph.node if "lm_head" in n.name}
        assert "MatMulNBits" in kinds[True]
        assert kinds[False] <= {"MatMul", "Transpose"}
