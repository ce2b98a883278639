"""Local and ONNX teachers: one model, one answer, whatever the batch and whatever the engine."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from distillery.core.errors import DistilleryError
from distillery.teachers.local import TransformersTeacher
from distillery.teachers.onnx import OnnxTeacher
from distillery.teachers.protocol import Message, ask_all, user_request

sys.path.insert(0, str(Path(__file__).parent))
from teachers_model import build_onnx, micro_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return micro_model(tmp_path_factory.mktemp("micro"))


@pytest.fixture(scope="module")
def local(model):
    return TransformersTeacher(model, batch_size=4, device="cpu")


@pytest.fixture(scope="module")
def onnx(model, tmp_path_factory):
    return OnnxTeacher(build_onnx(model, tmp_path_factory.mktemp("onnx")), threads=1)


SETTINGS = [{}, {"repetition_penalty": 1.3}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 5}, {"temperature": 0.8, "top_p": 0.7},
            {"temperature": 2.0, "top_k": 50, "top_p": 0.9, "repetition_penalty": 1.1}]
REQUESTS = [user_request(str(i), "The Raven 74 stands in Hall 3. " * (i % 4) + "Where?", seed=i, max_tokens=12 + i, **s)
            for i, s in enumerate(SETTINGS)]


def texts(results):
    return [(r.text, r.finish_reason, r.completion_tokens) for r in results]


def test_batch_changes_nothing(local):
    assert texts(ask_all(local, REQUESTS)) == texts([ask_all(local, [r])[0] for r in REQUESTS])


PASSAGES = ["The Raven 74 stands in Hall 3. " * 16, "Question: Where does the Heron 12 stand? " * 8]
SHARED = [user_request(f"{i}-{j}", passage + question, max_tokens=10, seed=j, temperature=j % 2, logprobs=2)
          for i, passage in enumerate(PASSAGES) for j, question in enumerate(["Who?", "Where does it stand, and since when?", "", "Who?"])]


def test_a_shared_passage_is_read_once_and_changes_nothing(local):
    alone, read = [ask_all(local, [r])[0] for r in SHARED], list[int]()
    hook = local.model.register_forward_pre_hook(
        lambda _, args, kwargs: read.append((args[0] if args else kwargs["input_ids"]).numel()), with_kwargs=True)
    together = ask_all(local, SHARED)
    hook.remove()
    assert texts(together) == texts(alone)
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one.logprobs.logprobs, other.logprobs.logprobs, atol=1e-4)
    assert sum(read) < 0.6 * sum(r.prompt_tokens for r in alone)


def test_a_model_that_forgets_reads_each_prompt_whole(tmp_path):
    forgets = TransformersTeacher(micro_model(tmp_path, use_sliding_window=True, sliding_window=8, max_window_layers=1), device="cpu")
    assert forgets.model.config.layer_types == ["full_attention", "sliding_attention"]
    assert texts(ask_all(forgets, SHARED)) == texts([ask_all(forgets, [r])[0] for r in SHARED])


def test_engines_agree(local, onnx):
    assert texts(ask_all(local, REQUESTS)) == texts(ask_all(onnx, REQUESTS))


def test_seed_decides(onnx):
    warm = REQUESTS[2]
    once, again, other = ask_all(onnx, [warm])[0], ask_all(onnx, [warm])[0], ask_all(onnx, [replace(warm, seed=99)])[0]
    assert once.text == again.text
    assert once.text != other.text


def test_logits_agree_at_every_position(local, onnx):
    ids = onnx.chat.encode(REQUESTS[3].messages)
    a, b = local.logits(ids), onnx.logits(ids)
    assert a.shape == b.shape == (len(ids), local.model.config.vocab_size)
    assert np.abs(a - b).max() < 1e-3


def test_greedy_and_penalty_equal_the_library(local):
    import torch
    for penalty in (1.0, 1.3):
        request = user_request("x", "Where does the Raven 74 stand?", max_tokens=20, repetition_penalty=penalty)
        ids = local.chat.encode(request.messages)
        theirs = local.model.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), max_new_tokens=20,
                                      do_sample=False, repetition_penalty=penalty, eos_token_id=2, pad_token_id=0)[0, len(ids):]
        assert ask_all(local, [request])[0].text == local.chat.decode(theirs.tolist()).strip()


def test_chat_tokenizer_equals_the_library(local, model):
    from transformers import PreTrainedTokenizerFast
    turns = [Message("system", "Be brief."), Message("user", "Größe?\n\nHall 3"), Message("assistant", "3"), Message("user", "{{ x }} <b>")]
    theirs = PreTrainedTokenizerFast.from_pretrained(model).apply_chat_template(
        [{"role": t.role, "content": t.content} for t in turns], add_generation_prompt=True)
    assert local.chat.encode(turns) == list(theirs["input_ids"] if hasattr(theirs, "keys") else theirs)


def test_logprobs_are_the_models_own(local, onnx):
    request = user_request("x", "Where?", max_tokens=6, logprobs=3, temperature=2.0, repetition_penalty=2.0)
    results = [ask_all(t, [request])[0] for t in (local, onnx)]
    top = [np.array(r.logprobs.logprobs) for r in results]
    assert top[0].shape == (results[0].completion_tokens, 3)
    assert np.abs(top[0] - top[1]).max() < 1e-3
    first = local.logits(local.chat.encode(request.messages))[-1].astype(float)
    assert abs(top[0][0, 0] - (first.max() - np.log(np.exp(first).sum()))) < 1e-4


def test_too_long_prompt_fails_alone(local, onnx):
    for teacher in (local, onnx):
        long, short = ask_all(teacher, [user_request("long", "Hall " * 400), user_request("short", "Where?", max_tokens=3)])
        assert "the model reads 256" in long.error
        assert short.ok


def test_answer_stops_at_the_end_of_the_context(onnx):
    result = ask_all(onnx, [user_request("x", "Hall " * 100, max_tokens=10_000)])[0]
    assert result.prompt_tokens + result.completion_tokens <= 256


def test_identity_follows_the_bytes(model, local, tmp_path):
    import shutil
    copy = Path(shutil.copytree(model, tmp_path / "copy"))
    assert TransformersTeacher(copy).identity["digest"] == local.identity["digest"]
    (copy / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert TransformersTeacher(copy).identity["digest"] != local.identity["digest"]


def test_pickled_weights_are_not_read(model, tmp_path):
    import shutil
    import torch
    copy = Path(shutil.copytree(model, tmp_path / "copy"))
    (copy / "model.safetensors").unlink()
    torch.save({}, copy / "pytorch_model.bin")
    with pytest.raises((OSError, DistilleryError)): _ = TransformersTeacher(copy).model


@pytest.mark.parametrize("command", [
    ["mlx_lm.server", "--model", "MODEL", "--host", "127.0.0.1", "--port", "PORT"],
    pytest.param(["transformers", "serve", "MODEL", "--host", "127.0.0.1", "--port", "PORT", "--device", "cpu"], marks=pytest.mark.slow)])
def test_real_server(command, model, local, tmp_path):
    import os
    import socket
    import subprocess
    import time
    from distillery.teachers.openai import OpenAITeacher
    binary = Path(sys.executable).parent / command[0]
    if not binary.exists(): pytest.skip(f"{command[0]} is not installed: pip install 'distillery[mlx,serve]'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    (tmp_path / "hf" / "hub").mkdir(parents=True)
    words = [str(binary), *(c.replace("MODEL", str(model)).replace("PORT", port) for c in command[1:])]
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    with (tmp_path / "log").open("wb") as log: process = subprocess.Popen(words, stdout=log, stderr=log, env=env)
    try:
        for _ in range(240):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", int(port))) == 0: break
            assert process.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.5)
        teacher = OpenAITeacher(f"http://127.0.0.1:{port}/v1", str(model), concurrency=4, timeout_s=120, max_retries=2)
        asked = [user_request(str(i), f"Where does the Raven {i} stand?", max_tokens=8) for i in range(8)]
        ours, theirs = ask_all(local, asked), ask_all(teacher, asked)
        assert all(r.ok for r in theirs), theirs
        assert sum(a.text == b.text for a, b in zip(ours, theirs, strict=True)) >= 6, (texts(ours), texts(theirs))
    finally:
        process.kill()
        process.wait()
