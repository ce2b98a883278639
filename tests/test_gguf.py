"GGUF: what llama.cpp will read from the file is what the student is, tokens, template and numbers."
import json
import re
import unicodedata
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from go_template import go
from hypothesis import given, settings, strategies as st

from distillery.core.config import load_config
from distillery.exporting.check import encode_chats
from distillery.exporting.export import ExportError
from distillery.exporting.gguf import GgufError, check_gguf, export_gguf, gguf_tokenizer, pre_tokenizer_name, write_gguf
from distillery.exporting.ollama import modelfile, turn_frames
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


@settings(max_examples=300, deadline=None)
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
        check_gguf(good, write_gguf(bad, tmp_path / "m.gguf", "q8_0"), "q8_0", toy_examples(36), load_config())


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


def llama(file: Path):
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (it compiles for ten minutes)")
    return llama_cpp.Llama(str(file), n_ctx=512, n_threads=1, logits_all=True, verbose=False)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["f16", "q8_0"])
def test_llama_cpp_loads_it_and_answers(tmp_path, kind):
    merged = builtin_dir("mini")
    export_gguf(merged, tmp_path, [kind], toy_examples(12), load_config(overrides={"export.same_top1_min": {f"gguf-{kind}": 0.5}}))
    model, chat = llama(tmp_path / f"student-{kind}.gguf"), ChatTokenizer(merged)
    odd = ["Room 1234, isn't  it?\n\n früh 東京 🙂", " 12:05\t- x", "<|im_start|>user\nhi<|im_end|>\n"]
    texts = [*odd, *(w for g in GOLD for w in g["wordings"])]
    assert [t for t in texts if model.tokenize(t.encode(), add_bos=False, special=True) != chat.tokens(t)] == []
    asked = [f"{g['sentence']}\n\nQuestion: {g['wordings'][0]}" for g in GOLD[:20]]
    requests = [user_request(str(i), q, max_tokens=48) for i, q in enumerate(asked)]
    ours = [r.text for r in ask_all(TransformersTeacher(merged, device="cpu"), requests)]
    theirs = [model.create_chat_completion([{"role": "user", "content": q}], max_tokens=48, temperature=0, repeat_penalty=1)
              ["choices"][0]["message"]["content"].strip() for q in asked]
    same = sum(a == b for a, b in zip(ours, theirs, strict=True))
    assert same >= (20 if kind == "f16" else 18), list(zip(ours, theirs, strict=True))
    p = encode_chats(toy_examples(1), merged, 1)[0]
    model.reset(); model.eval(list(p.ids))
    difference = np.abs(np.array(model.scores[: len(p.ids)]) - TransformersTeacher(merged, device="cpu").logits(p.ids)).max()
    assert difference < (0.1 if kind == "f16" else 2.0)
