"GGUF: what llama.cpp will read from the file is what the student is, tokens, template and numbers."
import json
import re
import unicodedata
from importlib import resources
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from go_template import go
from hypothesis import given, settings, strategies as st

from twins import TWINS, write_twin

from distillery.core.config import load_config
from distillery.exporting.check import encode_chats
from distillery.exporting.export import ExportError
from distillery.exporting.gguf import check_gguf, export_gguf, gguf_weights, write_gguf
from distillery.exporting.gguf_tokenizer import gguf_tokenizer
from distillery.exporting.llama import read_gguf
from distillery.exporting.ollama import modelfile, turn_frames
from distillery.training.exporters import model_facts, sibling_python
from distillery.training.gguf_header import GgufError, gguf_header, gguf_reasons
from distillery.training.gguf_words import gguf_words, piece_scores, pre_tokenizer_name
from distillery.training.preflight import preflight
from distillery.training.toy import toy_base, toy_examples
from distillery.teachers.chat import ChatTokenizer
from distillery.teachers.local import TransformersTeacher
from distillery.teachers.open import builtin_dir
from distillery.teachers.protocol import Message, ask_all, user_request

GOLD = [json.loads(line) for line in resources.files("distillery").joinpath("data/gold.jsonl").read_text("utf-8").splitlines()]
CFG = load_config(overrides={"export.check_positions": 100, "export.same_top1_min": {"gguf-f16": 0.95}})  # random weights have near ties


@pytest.fixture(scope="module")
def mini(tmp_path_factory) -> Path:
    return write_gguf(builtin_dir("mini"), tmp_path_factory.mktemp("gguf") / "student.gguf", "q8_0")


@pytest.fixture(scope="module")
def tokens(mini): return gguf_tokenizer(mini), ChatTokenizer(builtin_dir("mini"))


def test_every_gold_question_is_cut_like_ours(tokens):
    theirs, ours = tokens
    texts = [w for g in GOLD for w in g["wordings"]] + [g["sentence"] for g in GOLD]
    assert [t for t in texts if theirs.encode(t, add_special_tokens=False).ids != ours.tokens(t)] == []


@settings(max_examples=300)
@given(st.text(max_size=60))
def test_any_text_is_cut_like_ours(tokens, text):
    theirs, ours = tokens
    text = unicodedata.normalize("NFC", text)
    assert theirs.encode(text, add_special_tokens=False).ids == ours.tokens(text)


def test_digits_stand_alone(tokens):
    theirs, _ = tokens
    assert [t for t in theirs.encode("in 2048 and 74", add_special_tokens=False).tokens if t.isdigit()] == list("204874")


def test_a_split_without_a_name_is_refused():
    file = json.loads(Path(builtin_dir("mini"), "tokenizer.json").read_text())
    file["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\w+|\W"
    with pytest.raises(GgufError, match="no name"): pre_tokenizer_name(file)
    with pytest.raises(GgufError, match="Unigram"): pre_tokenizer_name({**file, "model": {**file["model"], "type": "Unigram"}})


@pytest.mark.parametrize("theta", [1e4, 1e6])
@pytest.mark.parametrize("tied", [True, False])
def test_the_logits_are_the_students(tmp_path, theta, tied):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    toy_base(tmp_path)
    torch.manual_seed(2)
    shape = transformers.AutoConfig.from_pretrained(tmp_path)
    shape.rope_parameters, shape.tie_word_embeddings = {"rope_theta": theta, "rope_type": "default"}, tied
    model = transformers.Qwen2ForCausalLM(shape)
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if name.endswith("bias"): weights.normal_()
    model.save_pretrained(tmp_path)
    check = check_gguf(tmp_path, write_gguf(tmp_path, tmp_path / "m.gguf", "f16"), "f16", toy_examples(12), CFG)
    assert check.ok
    assert check.max_abs_diff < 0.01


def test_llamas_rows_are_put_in_order(tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    toy_base(tmp_path)
    torch.manual_seed(3)
    shape = transformers.LlamaConfig(vocab_size=320, hidden_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                                     intermediate_size=64, max_position_embeddings=256, tie_word_embeddings=False, initializer_range=0.1,
                                     bos_token_id=None, eos_token_id=2, pad_token_id=0)
    transformers.LlamaForCausalLM(shape).save_pretrained(tmp_path)
    assert check_gguf(tmp_path, write_gguf(tmp_path, tmp_path / "m.gguf", "f16"), "f16", toy_examples(12), CFG).max_abs_diff < 0.01


@pytest.mark.parametrize("plant", ["theta", "scale", "swap"])
def test_a_broken_file_is_refused(tmp_path, plant):
    safetensors = pytest.importorskip("safetensors.torch")
    good, bad = toy_base(tmp_path / "good"), toy_base(tmp_path / "bad")
    if plant == "theta":
        config = json.loads((bad / "config.json").read_text())
        config["rope_parameters"]["rope_theta"] = 20.0
        (bad / "config.json").write_text(json.dumps(config))
    else:
        weights = safetensors.load_file(bad / "model.safetensors")
        a, b = (f"model.layers.{i}.mlp.down_proj.weight" for i in (0, 1))
        if plant == "scale": weights[a] = 0 * weights[a]
        else: weights[a], weights[b] = weights[b].clone(), weights[a].clone()
        safetensors.save_file(weights, bad / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(GgufError, match="is not the student"):
        check_gguf(good, write_gguf(bad, tmp_path / "m.gguf", "f16"), "f16", toy_examples(36), load_config())
    if plant == "theta": return  # stands in the header of every kind
    assert not check_gguf(good, write_gguf(bad, tmp_path / "q.gguf", "q8_0"), "q8_0", toy_examples(36), load_config()).ok


QWEN = ("{%- if messages[0]['role'] == 'system' %}{{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}{%- else %}"
        "{{- '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}{%- endif %}{%- for m in messages %}"
        "{%- if m.role != 'system' %}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n' }}{%- endif %}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}")


@pytest.mark.parametrize("template", [None, QWEN])
def test_ollamas_template_writes_what_ours_writes(tmp_path, template):
    toy_base(tmp_path)
    if template: (tmp_path / "chat_template.jinja").write_text(template)
    text, chat = modelfile(tmp_path, "student-q8_0.gguf"), ChatTokenizer(tmp_path)
    made = re.search('TEMPLATE """(.*?)"""', text, re.S)[1]
    user, said, system = Message("user", "Who?"), Message("assistant", "Ann."), Message("system", "Be short.")
    for turns in ([user], [user, said, user], [system, user, said, user]): assert go(made, turns) == chat.render(turns)
    assert 'PARAMETER stop "<|im_end|>"' in text
    assert "PARAMETER temperature 0" in text
    assert text.startswith("FROM ./student-q8_0.gguf\n")


def test_a_template_that_is_no_sequence_of_turns_is_refused(tmp_path):
    toy_base(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{% for m in messages %}{{ loop.index }}{{ m.content }}{% endfor %}")
    with pytest.raises(ExportError): turn_frames(tmp_path)


def transformers_reads(file: Path) -> object:
    "The model in a GGUF file by transformers' own loader, which is another's reading of it."
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    transformers.utils.logging.disable_progress_bar()
    return transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()


QUICK, READ_BY_TRANSFORMERS = ("phi-3", "stablelm2"), ("qwen2.5", "tinyllama", "mistral", "phi-3", "stablelm2")


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in TWINS])
def test_every_family_is_written_and_read_back(tmp_path, name):
    "The preflight says so before; tokens and logits are the model's. Transformers reads five of them rightly too."
    import torch

    base = write_twin(name, tmp_path / "base")
    found = {f.name: f for f in preflight(base, load_config(), "genai", ["f16", "q8_0"])}
    assert found["GGUF"].ok, found["GGUF"].found
    for kind in ("f16", "q8_0"):
        cfg = load_config(overrides={"export.check_positions": 60, "export.same_top1_min": {f"gguf-{kind}": 0.5}})
        check = check_gguf(base, write_gguf(base, tmp_path / f"m-{kind}.gguf", kind), kind, toy_examples(4), cfg)
        assert check.max_abs_diff < (0.05 if kind == "f16" else 3)
    if name in READ_BY_TRANSFORMERS:
        ids = list(range(20, 60))
        with torch.inference_mode(): theirs = transformers_reads(tmp_path / "m-f16.gguf")(torch.tensor([ids]), use_cache=False).logits[0]
        assert np.abs(theirs.numpy() - TransformersTeacher(base, device="cpu").logits(ids)).max() < 0.05


def changed(folder: Path, **facts) -> Path:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **facts}))
    return folder


@pytest.mark.parametrize(("facts", "why"), [
    ({"hidden_act": "relu"}, "the activation relu"),
    ({"architectures": ["MixtralForCausalLM"]}, "no GGUF is written of MixtralForCausalLM"),
    ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}}, "type yarn"),
    ({"vocab_size": 300}, "320 tokens and the model 300 rows")])
def test_what_llama_cpp_cannot_compute_is_refused_before_training(tmp_path, facts, why):
    found = next(f for f in preflight(changed(toy_base(tmp_path / "m"), **facts), load_config(), "genai", ["q8_0"]) if f.name == "GGUF")
    assert (found.ok, why in found.found, bool(found.fix)) == (False, True, True), found.found


def test_layers_without_positions_must_be_where_llama_cpp_leaves_them():
    facts = {"architectures": ["SmolLM3ForCausalLM"], "no_rope_layers": [1, 1, 1, 0, 1, 1, 1, 0]}
    assert gguf_reasons(facts) == []
    assert "fourth" in gguf_reasons({**facts, "no_rope_layers": [1, 0]})[0]


def test_a_context_is_promised_only_as_far_as_llama_cpp_computes_it():
    base = {"architectures": ["MistralForCausalLM"], "max_position_embeddings": 32768, "sliding_window": 4096, "vocab_size": 9,
            "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 8, "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_theta": 1e4}}
    assert gguf_header(base)["context_length"] == 4096
    assert gguf_header({**base, "sliding_window": None})["context_length"] == 32768
    gemma = {**base, "architectures": ["Gemma2ForCausalLM"], "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
             "tie_word_embeddings": True, "layer_types": ["sliding_attention", "full_attention"], "hidden_activation": "gelu_pytorch_tanh"}
    header, pattern = gguf_header(gemma), "attention.sliding_window_pattern"
    assert (header["context_length"], header["attention.sliding_window"], pattern in header) == (32768, 4096, False)
    assert gguf_header({**gemma, "layer_types": ["full_attention"] * 2 + ["sliding_attention"]})[pattern] == [False, False, True]


def test_merges_that_no_scores_would_give_are_refused(tmp_path):
    "A tokenizer with byte fallback that was learnt as BPE joins in other ways than SentencePiece."
    file = json.loads((write_twin("tinyllama", tmp_path / "m") / "tokenizer.json").read_text())
    assert len(piece_scores(file)) > 100
    merges = file["model"]["merges"]
    file["model"]["merges"] = [m for i, m in enumerate(merges) if i == 0 or "".join(m) != "".join(merges[i - 1])]
    with pytest.raises(GgufError, match="would join"): piece_scores(file)


def test_every_stop_token_has_a_key(tmp_path):
    keys = gguf_words(write_twin("llama3.2", tmp_path / "m"), model_facts(tmp_path / "m")["vocab_size"])
    stops = json.loads((tmp_path / "m/generation_config.json").read_text())["eos_token_id"]
    assert {keys[f"{k}_token_id"] for k in ("eos", "eot", "eom")} == set(stops)


needs_llama = pytest.mark.skipif(find_spec("llama_cpp") is None and sibling_python("llama") is None,
                                 reason="llama.cpp is not installed: make test-llama builds it (a quarter of an hour)")


@needs_llama
@pytest.mark.slow
@pytest.mark.parametrize("name", list(TWINS))
def test_llama_cpp_computes_every_family_as_pytorch_does(tmp_path, name):
    "Tokens of chats, logits, and the likeliest token again and again: of the stored weights, so that nothing is left to rounding."
    base = write_twin(name, tmp_path / "m")
    file, chat = write_gguf(base, tmp_path / "m.gguf", "f16"), ChatTokenizer(base)
    talk = [Message("user", "Room 1234, isn't it?"), Message("assistant", "DON'T, it's 12:05."), Message("user", "  früh\n\n東京 🙂")]
    texts = [chat.render([Message("user", w)]) for g in GOLD[:20] for w in g["wordings"]] + [chat.render(talk)]
    row = chat.tokens(texts[0])[:20]
    read = read_gguf(file, texts, [row], chat.stop_ids, most=16)
    assert [t for t, ids in zip(texts, read["tokens"], strict=True) if chat.tokens(t) != ids] == []
    stored = TransformersTeacher(base, device="cpu")
    stored.model.load_state_dict(gguf_weights(base, file), strict=False)
    assert np.abs(np.array(read["logits"][0]) - stored.logits(row)).max() < 2e-3
    ids = list(row)
    while len(ids) < len(row) + 16 and (ids == row or ids[-1] not in chat.stop_ids): ids.append(int(stored.logits(ids)[-1].argmax()))
    assert read["greedy"][0] == ids[len(row):]


@needs_llama
@pytest.mark.slow
def test_four_bits_by_llama_cpp(tmp_path):
    "K-quants want a width of 256; what is stored is read back, and llama.cpp answers from it."
    base = write_twin("qwen2.5", tmp_path / "m", hidden=256)
    cfg = load_config(overrides={"export.check_positions": 60, "export.same_top1_min": {"gguf-q4_k_m": 0.2}})
    checks = export_gguf(base, tmp_path / "gguf", ["f16", "q4_k_m"], toy_examples(4), cfg)
    assert [c.variant for c in checks] == ["gguf-f16", "gguf-q4_k_m"]
    kinds = {t.tensor_type.name for t in pytest.importorskip("gguf").GGUFReader(tmp_path / "gguf/student-q4_k_m.gguf").tensors}
    assert {"Q4_K", "Q6_K"} <= kinds
    sizes = {k: (tmp_path / f"gguf/student-{k}.gguf").stat().st_size for k in ("f16", "q4_k_m")}
    assert sizes["q4_k_m"] < 0.45 * sizes["f16"]
    assert len(read_gguf(tmp_path / "gguf/student-q4_k_m.gguf", rows=[[5, 6, 7]], most=8)["greedy"][0]) == 8


@pytest.mark.skipif(find_spec("llama_cpp") is not None, reason="llama.cpp is installed here")
def test_four_bits_without_llama_cpp_are_refused_before_training(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTILLERY_ENVIRONMENTS", str(tmp_path))
    found = next(f for f in preflight(toy_base(tmp_path / "m"), load_config(), "genai", ["q4_k_m"]) if f.name == "GGUF")
    assert (found.ok, "llama.cpp" in found.found, ".venv-llama" in found.fix) == (False, True, True)


@needs_llama
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["f16", "q8_0"])
def test_llama_cpp_loads_it_and_answers(tmp_path, kind):
    merged = builtin_dir("mini")
    export_gguf(merged, tmp_path, [kind], toy_examples(12), load_config(overrides={"export.same_top1_min": {f"gguf-{kind}": 0.5}}))
    chat = ChatTokenizer(merged)
    odd = ["Room 1234, isn't  it?\n\n früh 東京 🙂", " 12:05\t- x", "<|im_start|>user\nhi<|im_end|>\n"]
    texts = [*odd, *(w for g in GOLD for w in g["wordings"])]
    asked = [f"{g['sentence']}\n\nQuestion: {g['wordings'][0]}" for g in GOLD[:20]]
    p = encode_chats(toy_examples(1), merged, 1)[0]
    read = read_gguf(tmp_path / f"student-{kind}.gguf", texts, [p.ids], asked=[[{"role": "user", "content": q}] for q in asked], most=48)
    assert [t for t, ids in zip(texts, read["tokens"], strict=True) if chat.tokens(t) != ids] == []
    requests = [user_request(str(i), q, max_tokens=48) for i, q in enumerate(asked)]
    ours = [r.text for r in ask_all(TransformersTeacher(merged, device="cpu"), requests)]
    same = sum(a == b.strip() for a, b in zip(ours, read["texts"], strict=True))
    assert same >= (20 if kind == "f16" else 18), list(zip(ours, read["texts"], strict=True))
    difference = np.abs(np.array(read["logits"][0]) - TransformersTeacher(merged, device="cpu").logits(p.ids)).max()
    assert difference < (0.1 if kind == "f16" else 2.0)
