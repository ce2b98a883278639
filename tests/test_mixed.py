"Mixed precision: the order is measured, and the file is the smallest whose drift stays under the limit."
import json
import shutil

import numpy as np
import pytest

from distillery.core.config import load_config
from distillery.exporting.check import encode_chats
from distillery.exporting.export import quantize_weights, weight_matrices
from distillery.exporting.graph import ExportError, run_builder
from distillery.exporting.fidelity import compare_text, fidelity_metrics
from distillery.exporting.mixed import build_mixed, fake_quantize, nodes_of, sensitivities
from distillery.training.toy import toy_base, toy_examples
from distillery.teachers.local import TransformersTeacher
from distillery.teachers.onnx import OnnxTeacher

torch = pytest.importorskip("torch")
TEXTS = toy_examples(12)


def settings(limit, **more):
    return load_config(overrides={"quantization.block_size": 16, "export.kl_max": {"mixed": limit}, **more})


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return toy_base(tmp_path_factory.mktemp("base"))


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_rounding_here_is_rounding_in_the_file(student, tmp_path, symmetric, bits):
    "What PyTorch is given to read equals what ONNX Runtime's quantizer wrote, block by block."
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
    run_builder(student, tmp_path / "fp32", "shared_embeddings=false")
    model = onnx.load(tmp_path / "fp32" / "model.onnx")
    name = "/model/layers.0/mlp/up_proj/MatMul"
    tensors = {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}
    weight = tensors[next(n for n in model.graph.node if n.name == name).input[1]]  # [in, out]
    made = MatMulNBitsQuantizer(model, bits=bits, block_size=16, is_symmetric=symmetric, accuracy_level=1, nodes_to_include=[name])
    made.process()
    graph = made.model.model.graph
    node = next(n for n in graph.node if n.name.startswith(name))
    parts = {i.name: onnx.numpy_helper.to_array(i) for i in graph.initializer}
    packed, scales = parts[node.input[1]], parts[node.input[2]].reshape(weight.shape[1], -1, 1)
    levels = packed.reshape(weight.shape[1], scales.shape[1], -1)
    halves = lambda x: np.stack([x & 15, x >> 4], -1).reshape(*x.shape[:-1], -1)
    if bits == 4: levels = halves(levels)
    zero = np.full(scales.shape, 2 ** (bits - 1))
    if not symmetric:
        points = parts[node.input[3]].reshape(weight.shape[1], -1)
        zero = (halves(points)[:, : scales.shape[1]] if bits == 4 else points)[..., None]
    stored = ((levels.astype(float) - zero) * scales).reshape(weight.shape[1], -1)
    ours = fake_quantize(torch.tensor(weight.T.copy()), 16, symmetric, bits).numpy()
    apart = np.abs(stored - ours) > 1e-5
    assert apart.mean() < 0.01  # halfway between two levels, either is right
    assert np.abs(stored - ours).max() < 1.01 * np.abs(scales).max()


def test_what_a_matrix_moves_alone_is_what_a_real_export_moves(student, tmp_path):
    "One matrix in four bits and all others in eight: the file drifts as PyTorch foretold, give or take the eight bits."
    run_builder(student, tmp_path / "graph", "shared_embeddings=false")
    names = list(weight_matrices(tmp_path / "graph" / "model.onnx"))
    reader, passages, cfg = TransformersTeacher(student, device="cpu"), encode_chats(TEXTS, student, 300), settings(0.01)
    truth = [reader.logits(p.ids) for p in passages]
    texts = list(zip(passages, truth, strict=True))
    drift = lambda folder: fidelity_metrics([compare_text(p, a, OnnxTeacher(folder).logits(p.ids)) for p, a in texts]).kl.mean
    moved = sensitivities(reader, truth, passages, names[:-1], cfg)
    for name in (max(moved, key=moved.get), min(moved, key=moved.get)):
        shutil.copytree(tmp_path / "graph", tmp_path / "one", dirs_exist_ok=True)
        quantize_weights(tmp_path / "one" / "model.onnx", [n for n in names if n != name], False, cfg.quantization)
        assert drift(tmp_path / "one") == pytest.approx(moved[name], rel=0.35, abs=2e-4)


@pytest.mark.parametrize("limit", [3e-4, 3e-3])
def test_the_file_is_under_the_limit_and_one_matrix_more_is_not(student, tmp_path, limit):
    out = build_mixed(student, tmp_path / "mixed", TEXTS, settings(limit))
    said = json.loads((out / "mixed.json").read_text())
    count, tried = len(said["four_bits"]), {int(n): m["ci_high"] for n, m in said["tried"].items()}
    assert tried[count] <= limit
    assert count == len(said["kl_alone"]) or tried[count + 1] > limit
    reader, teacher = TransformersTeacher(student, device="cpu"), OnnxTeacher(out)
    passages = encode_chats(TEXTS[::-1], student, settings(limit).export.check_positions)
    found = fidelity_metrics([compare_text(p, reader.logits(p.ids), teacher.logits(p.ids)) for p in passages]).kl
    assert found.ci_high == pytest.approx(tried[count], rel=1e-6)


def test_where_no_mix_keeps_the_limit_there_is_one_of_eight_bits(student, tmp_path):
    said = json.loads((build_mixed(student, tmp_path / "m", TEXTS, settings(1e-12)) / "mixed.json").read_text())
    assert said["four_bits"] == []
    assert said["tried"]["0"]["ci_high"] > said["limit"]


def test_mixed_wants_a_limit_to_search_under(student, tmp_path):
    with pytest.raises(ExportError, match="no limit"):
        build_mixed(student, tmp_path / "n", TEXTS, load_config(overrides={"export.kl_max": {"q4": 1.0}}))


def test_nodes_of_an_architecture_that_joins_its_matrices():
    "Phi and its like have one module for three, or the builder joins gate and up."
    names = ["/model/layers.0/attn/qkv_proj/MatMul", "/model/layers.0/mlp/gate_up_proj/MatMul", "/model/layers.10/mlp/gate_up_proj/MatMul"]
    modules = [f"model.layers.{m}" for m in ("0.self_attn.qkv_proj", "0.mlp.gate_proj", "0.mlp.up_proj", "10.mlp.up_proj")]
    assert nodes_of(modules, names) == {names[0]: modules[:1], names[1]: modules[1:3], names[2]: modules[3:]}
