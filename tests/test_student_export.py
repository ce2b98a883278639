"""Exported variants are the student they came from, quantization does what the knobs say, and a broken one is told."""
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from distillery.core.config import load_config
from distillery.core.files import digest_tree
from distillery.core.student_knobs import QuantizationSection
from distillery.exporting.check import EncodedChat, ExportCheck, check_variants, compare_logits, encode_chats
from distillery.exporting.export import ExportError, build_onnx, variant_bytes
from distillery.exporting.merge import merge_adapter
from distillery.training.sft import train_adapter
from distillery.training.toy import toy_base, toy_examples
from distillery.teachers.local import TransformersTeacher
from distillery.teachers.onnx import OnnxTeacher
from distillery.teachers.protocol import ask_all, user_request

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime_genai")

TRAIN = {"sft": {"epochs": 60, "batch_size": 12, "gradient_accumulation": 1, "learning_rate": 1e-2, "packing": False,
                 "dataloader_num_workers": 0}, "lora": {"r": 32, "alpha": 64}, "export.check_positions": 80}


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    root = tmp_path_factory.mktemp("student")
    base, cfg = toy_base(root / "base", hidden=128), load_config(overrides=TRAIN)
    train_adapter(toy_examples(12), [], base, cfg, root / "adapter", root / "checkpoints")
    merge_adapter(base, root / "adapter", root / "merged")
    return root / "merged"


@pytest.fixture(scope="module")
def variants(student, tmp_path_factory):
    root, out = tmp_path_factory.mktemp("onnx"), {}
    for v in ("fp32", "int8", "uint8", "q4"): out[v] = build_onnx(student, root / v, v)
    return out


def nodes(folder, attribute):
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    return {a.i for n in graph.node if n.op_type == "MatMulNBits" for a in n.attribute if a.name == attribute}


@pytest.mark.slow
def test_every_variant_stays_within_its_limits(student, variants):
    checks = check_variants(student, variants, toy_examples(16), load_config(overrides=TRAIN))
    assert checks["fp32"].max_abs_diff <= 1e-3
    assert all(c.ok and c.n_positions >= 80 and c.n_all > c.n_positions for c in checks.values())
    assert json.loads((variants["q4"] / "check.json").read_text())["same_top1"] == checks["q4"].same_top1


@pytest.mark.slow
def test_the_student_learnt_its_facts_and_every_variant_says_them(variants):
    for folder in variants.values():
        asked = [user_request(e.id, e.question, max_tokens=24) for e in toy_examples(12)]
        right = sum(r.text == e.answer for r, e in zip(ask_all(OnnxTeacher(folder), asked), toy_examples(12), strict=True))
        assert right >= 10


@pytest.mark.slow
def test_logits_are_there_at_every_position_and_with_a_cache(student, variants):
    ids = [5, 9, 40, 7, 200, 31]
    reference, decoder = TransformersTeacher(student, device="cpu").logits(ids), OnnxTeacher(variants["fp32"]).decoder
    assert reference.shape == (6, 320)
    cache, rows = decoder.start(), []
    for read, token in enumerate(ids):
        logits, cache = decoder.step([token], cache, read)
        rows.append(logits[0])
    assert np.abs(np.stack(rows) - reference).max() < 1e-3


@pytest.mark.slow
def test_the_vocabulary_shrinks_and_is_stored_once(variants):
    sizes = {v: variant_bytes(f) for v, f in variants.items()}
    assert sizes["q4"] < sizes["int8"] < 0.55 * sizes["fp32"]
    for v in ("int8", "uint8", "q4"):
        tensors = onnx.load(variants[v] / "model.onnx").graph.initializer
        vocabulary = [t for t in tensors if np.prod(t.dims) >= 320 * 128 // 2 and ("lm_head" in t.name or "embed" in t.name)]
        assert len(vocabulary) == 1
        assert vocabulary[0].data_type in (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)


@pytest.mark.slow
def test_signed_and_unsigned_differ(variants):
    "Without zero points the blocks lie around zero; with them, anywhere."
    graphs = {v: onnx.load(variants[v] / "model.onnx").graph for v in ("int8", "uint8")}
    points = {v: [t.name for t in graph.initializer if "zero_point" in t.name] for v, graph in graphs.items()}
    assert points["int8"] == []
    assert len(points["uint8"]) == sum(n.op_type == "MatMulNBits" for n in graphs["uint8"].node)


@pytest.mark.slow
@pytest.mark.parametrize(("block_size", "accuracy_level"), [(16, 4), (32, 1), (64, 0)])
def test_block_size_and_accuracy_level_reach_the_graph(student, tmp_path, block_size, accuracy_level):
    build_onnx(student, tmp_path / "q4", "q4", QuantizationSection(block_size=block_size, accuracy_level=accuracy_level))
    assert nodes(tmp_path / "q4", "block_size") == {block_size}
    assert nodes(tmp_path / "q4", "accuracy_level") == ({accuracy_level} if accuracy_level else set())
    assert nodes(tmp_path / "q4", "bits") == {4, 8}


@pytest.mark.slow
def test_q4_keeps_the_named_matrices_in_eight_bits(student, tmp_path):
    "And without zero points where it is symmetric; the vocabulary keeps eight in every case."
    build_onnx(student, tmp_path / "q4", "q4", QuantizationSection(keep8=["o_proj", "layers.1/mlp"], symmetric=True))
    graph = onnx.load(tmp_path / "q4" / "model.onnx").graph
    bits = {n.name: a.i for n in graph.node if n.op_type == "MatMulNBits" for a in n.attribute if a.name == "bits"}
    eight = {name for name, b in bits.items() if b == 8}
    assert eight == {n for n in bits if "o_proj" in n or "layers.1/mlp" in n or "lm_head" in n}
    assert not [i.name for i in graph.initializer if "zero_point" in i.name]


def test_an_untied_model_exports_too(tmp_path):
    import transformers
    toy_base(tmp_path / "tied")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "tied", tie_word_embeddings=False)
    shutil.copytree(tmp_path / "tied", tmp_path / "untied")
    with __import__("torch").no_grad(): model.lm_head.weight.mul_(1.5)
    model.save_pretrained(tmp_path / "untied")
    ids = [4, 8, 15, 16, 23, 42]
    reference = TransformersTeacher(tmp_path / "untied", device="cpu").logits(ids)
    for v in ("fp32", "int8", "q4"):
        found = OnnxTeacher(build_onnx(tmp_path / "untied", tmp_path / v, v)).logits(ids)
        assert np.abs(found - reference).max() < (1e-3 if v == "fp32" else 0.2 * np.abs(reference).max())


@pytest.mark.slow
def test_the_same_model_gives_the_same_files(student, variants, tmp_path):
    for v in ("fp32", "int8", "q4"):
        again = build_onnx(student, tmp_path / v, v)
        (variants[v] / "check.json").unlink(missing_ok=True)
        assert digest_tree(again) == digest_tree(variants[v]), v


@pytest.mark.slow
def test_an_export_of_another_model_is_stopped(student, variants, tmp_path):
    other = build_onnx(toy_base(tmp_path / "other", hidden=128), tmp_path / "fp32", "fp32")
    with pytest.raises(ExportError, match=r"fp32: largest difference .*limit: difference at most 0\.001"):
        check_variants(student, {"fp32": other}, toy_examples(16), load_config(overrides=TRAIN))


@pytest.mark.slow
def test_a_zeroed_layer_is_written_down_and_stops_nothing(student, variants, tmp_path):
    broken = Path(shutil.copytree(variants["int8"], tmp_path / "int8"))
    model = onnx.load(broken / "model.onnx")
    for t in model.graph.initializer:
        if "layers.0.mlp.down_proj" in t.name and "scale" in t.name:
            t.CopyFrom(onnx.numpy_helper.from_array(0 * onnx.numpy_helper.to_array(t), t.name))
    onnx.save(model, broken / "model.onnx")
    made = check_variants(student, {"int8": broken}, toy_examples(16), load_config(overrides=TRAIN))
    assert made["int8"].ok is False
    assert ExportCheck(**json.loads((broken / "check.json").read_text())) == made["int8"]


def test_logits_that_are_no_numbers_never_pass():
    text = [EncodedChat((1, 2, 3), 0)]
    largest, _, _ = compare_logits([np.zeros((3, 4), np.float32)], [np.full((3, 4), np.nan, np.float32)], text)
    assert largest == float("inf")


@pytest.mark.slow
def test_answers_are_tokenised_as_the_student_writes_them(student):
    passage = encode_chats(toy_examples(1), student, 1)[0]
    chat = OnnxTeacher.__init__.__globals__["ChatTokenizer"](student)
    assert chat.decode(passage.ids[passage.first + 1 :], special=True) == toy_examples(1)[0].answer + "<|im_end|>"
