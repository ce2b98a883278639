"Training through MLX learns what PyTorch's trainer learns from, goes on after a kill unharmed, and ends as a folder like any other."
import json
import math
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from distillery.core.config import load_config
from distillery.core.errors import DistilleryError
from distillery.training.mlx_settings import mlx_data, mlx_differences, mlx_lora_config, mlx_steps
from distillery.training.mlx_train import fuse_mlx, train_mlx
from distillery.training.sft import read_log, train_adapter
from distillery.training.toy import toy_base, toy_examples

pytest.importorskip("mlx_lm")
pytest.importorskip("trl")

FAST = {"sft.epochs": 3, "sft.batch_size": 4, "sft.gradient_accumulation": 1, "sft.learning_rate": 5e-3, "sft.packing": False,
        "sft.max_length": 64, "sft.dataloader_num_workers": 0, "sft.logging_steps": 2, "sft.save_strategy": "steps",
        "lora.r": 4, "lora.alpha": 8, "lora.dropout": 0.1}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return toy_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory):
    place = tmp_path_factory.mktemp("trained")
    log = train_mlx(toy_examples(22), toy_examples(6, "validation"), base, load_config(overrides={**FAST, "sft.eval_strategy": "epoch"}),
                    place / "adapter", place / "checkpoints")
    fuse_mlx(base, place / "adapter", place / "fused")
    return place, log


def test_mlx_lm_reads_the_dataset_folder(base, tmp_path):
    from types import SimpleNamespace

    import transformers
    from mlx_lm.tuner.datasets import load_local_dataset

    folder = mlx_data(toy_examples(9), toy_examples(4, "validation"), tmp_path / "data")
    sets = load_local_dataset(folder, transformers.AutoTokenizer.from_pretrained(base), SimpleNamespace(mask_prompt=True))
    assert [len(s) for s in sets] == [9, 4, 0]
    ids, first = sets[0].process(sets[0][0])
    assert 0 < first < len(ids)


@pytest.mark.parametrize("grouped", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_losses_and_learning_rates_are_those_of_pytorch(base, tmp_path, grouped):
    "At a learning rate of next to nothing both adapters stay zero, so every loss must agree: same rows, same order, same masks."
    cfg = load_config(overrides={**FAST, "sft.learning_rate": 1e-12, "sft.group_by_length": grouped, "sft.warmup_ratio": 0.2})
    train_adapter(toy_examples(22), [], base, cfg, tmp_path / "torch", tmp_path / "a")
    train_mlx(toy_examples(22), [], base, cfg, tmp_path / "mlx", tmp_path / "b")
    theirs, ours = read_log(tmp_path / "torch"), read_log(tmp_path / "mlx")
    assert len(ours) == len(theirs) == 18
    assert [r["loss"] for r in ours] == pytest.approx([r["loss"] for r in theirs], abs=1e-4)
    # PyTorch's log tells the rate of the step to come, MLX's the rate of the step done
    assert [r["learning_rate"] for r in ours[1:]] == pytest.approx([r["learning_rate"] for r in theirs[:-1]], rel=1e-4, abs=1e-18)


@pytest.mark.slow
def test_both_trainers_learn_alike(base, trained, tmp_path):
    "Other random numbers in the adapter, the same optimiser: losses fall alike."
    train_adapter(toy_examples(22), [], base, load_config(overrides=FAST), tmp_path / "torch", tmp_path / "a")
    theirs, ours = ([r["loss"] for r in read_log(p)] for p in (tmp_path / "torch", trained[0] / "adapter"))
    assert ours[0] == pytest.approx(theirs[0], abs=1e-3)
    assert ours[-1] < ours[0] - 1
    assert abs(np.mean(ours[-3:]) - np.mean(theirs[-3:])) < 0.25 * (ours[0] - np.mean(theirs[-3:]))


TRAIN = """
import sys
from pathlib import Path
from distillery.core.config import load_config
from distillery.training.mlx_train import train_mlx
from distillery.training.toy import toy_examples
out = Path(sys.argv[2])
slow = lambda done, total: __import__("time").sleep(float(sys.argv[3]))
train_mlx(toy_examples(22), [], sys.argv[1], load_config(overrides={overrides!r}), out / "adapter", out / "checkpoints", slow)
"""


@pytest.mark.slow
def test_kill_9_and_resume_end_at_the_same_loss(base, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(TRAIN.replace("{overrides!r}", repr({**FAST, "sft.gradient_accumulation": 2, "sft.epochs": 6})))

    def start(name, wait="0"):
        with (tmp_path / f"{name}.log").open("w") as said:
            command = [sys.executable, str(script), str(base), str(tmp_path / name), wait]
            return subprocess.Popen(command, stdout=said, stderr=said, env=dict(os.environ))

    assert start("straight").wait(300) == 0, (tmp_path / "straight.log").read_text()
    straight = read_log(tmp_path / "straight/adapter")
    victim, log, deadline = start("killed", "0.2"), tmp_path / "killed/checkpoints", time.time() + 240
    while victim.poll() is None and len(read_log(log)) < 9 and time.time() < deadline: time.sleep(0.01)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    reached = read_log(log)[-1]["step"]
    assert 9 <= reached < len(straight) == 18
    assert start("killed").wait(300) == 0, (tmp_path / "killed.log").read_text()
    steps, begins = read_log(tmp_path / "killed/adapter"), read_log(tmp_path / "killed/adapter", "start")
    last = begins[1]["step"]
    assert 0 < last <= reached
    assert len(steps) - len(straight) == reached - last <= 2
    assert {r["step"]: r["loss"] for r in steps} == pytest.approx({r["step"]: r["loss"] for r in straight}, abs=1e-4)


@pytest.mark.slow
def test_a_fresh_optimiser_would_not_do(base, trained, tmp_path, monkeypatch):
    "What mlx-lm's own resume does, adapter weights alone, ends elsewhere: the measure has teeth."
    import shutil

    from distillery.training import mlx_train

    cfg = load_config(overrides={**FAST, "sft.eval_strategy": "epoch"})
    shutil.copytree(trained[0] / "checkpoints", tmp_path / "c")
    for late in list((tmp_path / "c").glob("checkpoint-1[68]")): shutil.rmtree(late)
    if not list((tmp_path / "c").glob("checkpoint-*")):
        whole = load_config(overrides={**FAST, "sft.eval_strategy": "epoch", "sft.save_total_limit": 20})
        train_mlx(toy_examples(22), [], base, whole, tmp_path / "w", tmp_path / "c")
        for late in list((tmp_path / "c").glob("checkpoint-1[0-8]")): shutil.rmtree(late)
    whole = mlx_train.restore_mlx

    def weights_only(folder, model, optimizer):
        fresh = mlx_train.mlx_optimizer(18, 1, cfg)
        done = whole(folder, model, optimizer)
        optimizer.state = fresh.state
        return done

    monkeypatch.setattr(mlx_train, "restore_mlx", weights_only)
    log = train_mlx(toy_examples(22), [], base, cfg, tmp_path / "again", tmp_path / "c")
    assert log.resumed_from
    assert abs(log.final_loss - trained[1].final_loss) > 1e-3


def test_the_fused_folder_is_one_of_ours(trained, tmp_path):
    import torch
    import transformers

    from distillery.exporting.export import build_onnx
    from distillery.teachers.chat import ChatTokenizer
    from distillery.teachers.mlx import MlxTeacher, convert_mlx
    from distillery.teachers.onnx import OnnxTeacher
    from distillery.teachers.protocol import Message

    fused = trained[0] / "fused"
    ids = ChatTokenizer(fused).encode([Message("user", toy_examples(1)[0].question)])
    model = transformers.AutoModelForCausalLM.from_pretrained(fused, dtype=torch.float32)
    with torch.inference_mode(): truth = model(torch.tensor([ids])).logits[0].numpy()
    build_onnx(fused, tmp_path / "onnx", "fp32")
    for other in (MlxTeacher(fused), OnnxTeacher(tmp_path / "onnx")): assert np.abs(other.logits(ids) - truth).max() < 1e-3
    sizes = {}
    for bits in (8, 4):
        folder = convert_mlx(fused, tmp_path / f"b{bits}", bits)
        sizes[bits] = sum(p.stat().st_size for p in folder.glob("*.safetensors"))
        near = MlxTeacher(folder).logits(ids)
        assert np.corrcoef(near.ravel(), truth.ravel())[0, 1] > {8: 0.999, 4: 0.95}[bits]
    assert sizes[4] < sizes[8] < (fused / "model.safetensors").stat().st_size / 2


def test_settings_in_mlx_words(base):
    cfg = load_config(overrides={**FAST, "lora.r": 16, "lora.alpha": 8, "sft.gradient_accumulation": 3, "sft.warmup_ratio": 0.1})
    told = mlx_lora_config(base, 22, cfg)
    assert told["lora_parameters"]["scale"] == 0.5
    assert mlx_steps(22, cfg) == (6, 1)
    assert told["iters"] == 18
    assert told["optimizer_config"]["adamw"] == {"weight_decay": 0.0, "bias_correction": True}
    assert len(mlx_differences(load_config(overrides={"sft.packing": True, "sft.gradient_accumulation": 4}))) == 2


def test_the_log_and_the_refusals(base, trained, tmp_path):
    place, log = trained
    told = json.loads((place / "adapter/training.json").read_text())
    assert math.isfinite(told["eval_loss"])
    assert told["steps"] == log.steps == 18
    assert not list(place.rglob("*.bin")) + list(place.rglob("*.npz")) + list(place.rglob("*.pkl"))
    with pytest.raises(DistilleryError, match="no example fits"):
        train_mlx(toy_examples(4), [], base, load_config(overrides={**FAST, "sft.max_length": 8}), tmp_path / "a", tmp_path / "b")
