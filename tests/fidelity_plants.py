"Twenty breakages that an exporter or a careless script could make, and twenty sound exports; each a folder that loads and answers."
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distillery.core.records import ChatTurn, Example
from distillery.core.student_knobs import QuantizationSection
from distillery.models.reading import answer_cases
from distillery.exporting.export import build_onnx

Edit = Callable[[Any], None]


def reading_examples(n: int, seed: str = "fidelity") -> list[Example]:
    "Questions to passages that the built-in models never saw, one page each."
    found = []
    for i, c in enumerate(answer_cases(n, False, seed)):
        said = next(iter(sorted(c.good)))
        chat = [ChatTurn(role="user", content=c.prompt), ChatTurn(role="assistant", content=said)]
        found.append(Example(id=str(i), pair_id=str(i), family_id=str(i), chunk_id=str(i), doc_id=f"page-{i}", set="test",
                             question=c.prompt, answer=said, category=c.category, kind="refusal" if c.difficulty == "refusal" else "answer",
                             difficulty=c.difficulty, messages=chat))
    return found


# --- in the weights, before export ---------------------------------------------------------------------------------------------------
def edit_weights(source: Path, out: Path, edit: Callable[[dict[str, Any], dict[str, Any]], None]) -> Path:
    "A copy of a model with other weights or another config."
    from safetensors.numpy import load_file, save_file

    shutil.copytree(source, out)
    weights, config = load_file(out / "model.safetensors"), json.loads((out / "config.json").read_text())
    edit(weights, config)
    save_file({k: np.ascontiguousarray(v) for k, v in weights.items()}, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(config))
    return out


def rope_theta(w, c): c["rope_parameters"]["rope_theta"] = 1_000_000.0
def wrong_eps(w, c): c["rms_norm_eps"] = 1e-5
def lost_layer(w, c):
    c["num_hidden_layers"] -= 1
    if "layer_types" in c: c["layer_types"] = c["layer_types"][:-1]
    for k in [k for k in w if f"layers.{c['num_hidden_layers']}." in k]: del w[k]
def swapped_layers(w, c):
    for k in [k for k in w if ".layers.1." in k]:
        other = k.replace(".layers.1.", ".layers.2.")
        w[k], w[other] = w[other], w[k]
def swapped_k_v(w, c):
    for part in ("weight", "bias"):
        k, v = (f"model.layers.0.self_attn.{x}_proj.{part}" for x in "kv")
        if k in w: w[k], w[v] = w[v], w[k]
def lost_bias(w, c):
    for k in [k for k in w if k.endswith("_proj.bias")]: w[k] = 0 * w[k]
def shuffled_embedding(w, c):
    w["model.embed_tokens.weight"] = w["model.embed_tokens.weight"][np.random.default_rng(0).permutation(c["vocab_size"])]
def lost_head(w, c):
    c["tie_word_embeddings"] = False
    w["lm_head.weight"] = np.random.default_rng(0).normal(0, 0.02, w["model.embed_tokens.weight"].shape).astype(np.float32)
def offset_tokens(w, c): w["model.embed_tokens.weight"] = np.roll(w["model.embed_tokens.weight"], 1, axis=0)
def interleaved_heads(w, c):
    "Rotary halves stored pairwise, as another framework keeps them."
    for k in [k for k in w if "q_proj.weight" in k or "k_proj.weight" in k]:
        heads, size = w[k].reshape(c["num_attention_heads"], -1, w[k].shape[1]), w[k].shape[0] // c["num_attention_heads"]
        w[k] = heads.reshape(len(heads), 2, size // 2, -1).swapaxes(1, 2).reshape(w[k].shape)
def doubled_norm(w, c): w["model.layers.1.input_layernorm.weight"] = 2 * w["model.layers.1.input_layernorm.weight"]
def zeroed_head(w, c):
    size = c["hidden_size"] // c["num_attention_heads"]
    w["model.layers.1.self_attn.o_proj.weight"][:, :size] = 0


# --- in the graph, after export ------------------------------------------------------------------------------------------------------
def edit_graph(source: Path, out: Path, edit: Edit) -> Path:
    "A copy of a variant with another graph."
    import onnx

    shutil.copytree(source, out)
    model = onnx.load(out / "model.onnx")
    for old in out.glob("model.onnx*"): old.unlink()
    edit(model.graph)
    onnx.save(model, out / "model.onnx")
    return out


def change(graph: Any, names: Callable[[str], bool], to: Callable[[np.ndarray], np.ndarray]) -> None:
    "Change tensors by name; at least one must be there."
    import onnx

    some = [t for t in graph.initializer if names(t.name)]
    assert some
    for t in some: t.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(to(onnx.numpy_helper.to_array(t).copy())), t.name))


def tensor(graph: Any, part: str, end: tuple[str, ...]) -> Any:
    return next(t for t in graph.initializer if part in t.name and t.name.endswith(end))


SCALES, BLOCKS, POINTS = ("_scales", "_scale"), ("_Q8", "_Q4", "_Q8G32", "_Q4G32"), ("_zp", "_zero_points")
ends = lambda part, end: lambda name: part in name and name.endswith(end)
def zero_scales(g): change(g, ends("layers.1.mlp.down_proj", SCALES), lambda x: 0 * x)
def flipped_sign(g): change(g, ends("layers.0.mlp.up_proj", SCALES), lambda x: -x)
def transposed_blocks(g): change(g, ends("layers.1.attn.o_proj", BLOCKS), lambda x: x.swapaxes(0, 1).reshape(x.shape))
def wrong_zero_points(g): change(g, ends("layers.", POINTS), lambda x: np.zeros_like(x))
def nan_scale(g):
    one = lambda x: np.where(np.arange(x.size).reshape(x.shape) == 7, np.nan, x).astype(x.dtype)
    change(g, ends("layers.2.attn.o_proj", SCALES), one)
def half_vocabulary(g): change(g, ends("lm_head", SCALES), lambda x: np.concatenate([x[: len(x) // 2], 0 * x[len(x) // 2 :]]))
def swapped_nibbles(g): change(g, ends("layers.", ("_Q4G32", "_Q4")), lambda x: (x << 4) | (x >> 4))
def scales_of_another_layer(g):
    import onnx
    other = onnx.numpy_helper.to_array(tensor(g, "layers.2.mlp.gate_proj", SCALES))
    change(g, ends("layers.0.mlp.gate_proj", SCALES), lambda x: other.copy())


@dataclass(frozen=True)
class Plant:
    "One breakage: in which variant, and where."
    name: str
    variant: str
    edit: Callable[..., None]
    weights: bool

    def make(self, merged: Path, exports: dict[str, Path], out: Path) -> Path:
        "The broken folder."
        if not self.weights: return edit_graph(exports[self.variant], out, self.edit)
        return build_onnx(edit_weights(merged, out.with_suffix(".weights"), self.edit), out, self.variant)


PLANTS = [Plant(e.__name__, v, e, True) for e, v in (
    (rope_theta, "fp32"), (wrong_eps, "fp32"), (lost_layer, "int8"), (swapped_layers, "q4"), (swapped_k_v, "q4"), (lost_bias, "fp32"),
    (shuffled_embedding, "fp32"), (lost_head, "uint8"), (offset_tokens, "q4"), (interleaved_heads, "int8"), (doubled_norm, "q4"),
    (zeroed_head, "uint8"),
)] + [Plant(e.__name__, v, e, False) for e, v in (
    (zero_scales, "int8"), (flipped_sign, "q4"), (transposed_blocks, "uint8"), (wrong_zero_points, "q4"), (nan_scale, "int8"),
    (half_vocabulary, "uint8"), (swapped_nibbles, "q4"), (scales_of_another_layer, "int8"),
)]


PLAIN = {"block_size": 32, "accuracy_level": 4}
SOUND = [("tiny", "fp32", {}), ("mini", "fp32", {})] + [(name, variant, PLAIN | how) for name, variant, how in (
    ("tiny", "int8", {}), ("tiny", "int8", {"block_size": 64, "accuracy_level": 1}),
    ("tiny", "int8", {"block_size": 16, "accuracy_level": 0}),
    ("tiny", "uint8", {}), ("tiny", "uint8", {"block_size": 128}), ("tiny", "q4", {}),
    ("tiny", "q4", {"block_size": 16, "accuracy_level": 1}),
    ("tiny", "q4", {"block_size": 64}), ("tiny", "q4", {"symmetric": True}),
    ("mini", "int8", {}), ("mini", "int8", {"block_size": 16, "accuracy_level": 1}), ("mini", "int8", {"block_size": 64}),
    ("mini", "uint8", {}), ("mini", "uint8", {"block_size": 64, "accuracy_level": 0}),
    ("mini", "uint8", {"block_size": 128, "accuracy_level": 1}),
    ("mini", "q4", {}), ("mini", "q4", {"block_size": 16, "accuracy_level": 1}), ("mini", "q4", {"keep8": ["attn"]}),
)]


def build_sound(variant: str, how: dict[str, Any], merged: Path, out: Path) -> Path:
    "One of `SOUND`."
    return build_onnx(merged, out, variant, QuantizationSection(**how))
