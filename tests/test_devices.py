"Precision and devices by a double of a GPU; a training that moves to other ways of waiting ends where it would have without."
import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from distillery.core.config import flatten, load_config
from distillery.core.errors import DistilleryError
from distillery.core.files import write_jsonl
from distillery.exporting.extractive import extractive_arguments
from distillery.teachers import memory, onnx
from distillery.teachers.memory import Device, onnx_providers
from distillery.training import sft, waiting
from distillery.training.arguments import sft_arguments, training_precision
from distillery.training.bases import load_base
from distillery.training.sft import make_trainer, train_adapter
from distillery.training.train_log import LOG, open_log, read_log
from distillery.training.toy import toy_base, toy_examples

GPU, OLD_GPU, LAPTOP = Device("cuda", bf16=True), Device("cuda"), Device()
TINY = {"lora.r": 4, "lora.alpha": 8, "sft.batch_size": 8, "sft.gradient_accumulation": 1, "sft.epochs": 4, "sft.packing": False,
        "sft.max_length": 64, "sft.dataloader_num_workers": 0, "sft.learning_rate": 5e-3}


@pytest.fixture(scope="module")
def base(tmp_path_factory): return toy_base(tmp_path_factory.mktemp("toy") / "base")


@pytest.mark.parametrize(("device", "precision", "wanted"), [
    (GPU, "auto", "bf16"), (OLD_GPU, "auto", "fp32"), (LAPTOP, "auto", "fp32"), (Device("mps"), "auto", "fp32"), (GPU, "fp32", "fp32"),
    (LAPTOP, "bf16", "bf16")])
def test_the_device_decides_the_precision_unless_the_settings_do(device, precision, wanted):
    cfg = load_config(overrides={"sft.precision": precision})
    assert training_precision(cfg, device) == wanted
    for arguments in (sft_arguments(cfg, "", device), extractive_arguments(cfg, "", device)):
        assert (arguments["bf16"], arguments["use_cpu"]) == (wanted == "bf16", device.kind == "cpu")


def test_bf16_on_a_gpu_without_it_is_refused_with_a_fix():
    with pytest.raises(DistilleryError, match=r"set sft\.precision"):
        training_precision(load_config(overrides={"sft.precision": "bf16"}), OLD_GPU)


def test_a_gpu_gets_what_its_description_says(base, tmp_path, monkeypatch):
    import trl
    asked = {}

    class Recorded(Exception): pass

    def recorded(**arguments):
        asked.update(arguments)
        raise Recorded
    monkeypatch.setattr(trl, "SFTConfig", recorded)
    monkeypatch.setattr(sft, "load_base", lambda folder, precision: (asked.update(weights=precision), load_base(folder, precision))[1])
    with pytest.raises(Recorded): make_trainer(toy_examples(8), [], base, load_config(overrides=TINY), tmp_path, device=GPU)
    assert (asked["weights"], asked["bf16"], asked["use_cpu"]) == ("bf16", True, False)


@pytest.mark.slow
def test_training_in_bf16_has_a_bf16_base_and_a_single_precision_adapter(base, tmp_path):
    import torch
    from safetensors import safe_open
    cfg, train = load_config(overrides={**TINY, "sft.precision": "bf16"}), toy_examples(16)
    trainer = make_trainer(train, [], base, cfg, tmp_path / "look")
    assert {p.dtype for p in trainer.model.parameters() if not p.requires_grad} == {torch.bfloat16}
    assert {p.dtype for p in trainer.model.parameters() if p.requires_grad} == {torch.float32}
    half = train_adapter(train, [], base, cfg, tmp_path / "half", tmp_path / "c")
    full = train_adapter(train, [], base, load_config(overrides=TINY), tmp_path / "full", tmp_path / "d")
    assert (half.precision, full.precision) == ("bf16", "fp32")
    assert 0 < abs(half.final_loss - full.final_loss) < 0.02 * full.final_loss
    with safe_open(tmp_path / "half/adapter_model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float32}


@pytest.mark.parametrize(("device", "built", "first"), [
    ("auto", ["CUDAExecutionProvider", "CPUExecutionProvider"], "CUDAExecutionProvider"),
    ("auto", ["CPUExecutionProvider"], "CPUExecutionProvider"),
    ("cpu", ["CUDAExecutionProvider", "CPUExecutionProvider"], "CPUExecutionProvider")])
def test_the_runtime_is_asked_for_what_it_was_built_for(device, built, first):
    assert onnx_providers(device, built)[0] == first
    assert onnx_providers(device, built)[-1] == "CPUExecutionProvider"


def test_a_session_is_opened_with_the_providers_of_its_device(monkeypatch):
    opened = []

    class Session:
        def __init__(self, file, options, providers): opened.append(providers)
        def get_providers(self): return opened[-1]
        def get_inputs(self): return []
        def get_outputs(self): return []

    class Runtime:
        SessionOptions = type("Options", (), {"add_session_config_entry": lambda *said: None})
        InferenceSession = Session
        @staticmethod
        def get_available_providers(): return ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnx, "need", lambda *_, **__: Runtime)
    for device in ("auto", "cpu"):
        with pytest.raises(DistilleryError, match="no language model"): onnx.Decoder(os, 64, 1, device)
    assert opened == [["CUDAExecutionProvider", "CPUExecutionProvider"], ["CPUExecutionProvider"]]


def test_a_variant_is_measured_where_the_settings_say(tmp_path, monkeypatch):
    from distillery.evaluation import measure

    class Opened(Exception): pass

    def opened(folder, device): raise Opened(device)
    monkeypatch.setattr(measure, "OnnxTeacher", opened)
    write_jsonl(tmp_path / "examples.jsonl", toy_examples(1))
    for device in ("auto", "cpu"):
        knobs = {name: flatten(load_config(overrides={"evaluation.device": device}))[name] for name in measure.KNOBS}
        (tmp_path / "request.json").write_text(json.dumps({"onnx": "o", "variant": "q4", "knobs": knobs, "digest": "d"}))
        with pytest.raises(Opened, match=device): measure.answer_request(tmp_path)


def test_this_machine_is_described_by_torch(monkeypatch):
    import torch
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert memory.this_device() == OLD_GPU


# ---- a busy machine

def steps(watch, clock, seconds, left=1000):
    moved = []
    for spent in seconds:
        clock[0] += spent
        moved.append(watch.should_change(100, left))
    return moved


@pytest.mark.parametrize(("policy", "share", "moves"), [
    ("active", 1.0, False), ("active", 0.5, True), ("active", 0.9, False), ("passive", 0.9, False), ("passive", 1.0, True),
    ("passive", 0.5, False)])
def test_the_first_look_comes_after_one_window(policy, share, moves):
    clock = [0.0]
    watch = waiting.SpeedWatch(policy, 2, lambda threads: share, lambda: clock[0])
    assert steps(watch, clock, [1.0] * 3) == [False, False, moves]


def test_a_look_follows_when_speed_falls_below_half_and_every_half_minute_and_never_at_the_end():
    clock, looks = [0.0], []
    watch = waiting.SpeedWatch("active", 2, lambda threads: looks.append(clock[0]) or 1.0, lambda: clock[0])
    steps(watch, clock, [1.0] * 12)
    assert looks == [3.0]
    steps(watch, clock, [3.0])
    assert looks == [3.0, 15.0], "a third of the speed"
    steps(watch, clock, [1.0] * 33)
    assert looks == [3.0, 15.0, 48.0], "half a minute has passed"
    steps(watch, clock, [10.0] * 3, left=2)
    assert len(looks) == 3, "two steps are left: a new process costs more than it could win"


def test_the_share_of_the_cores_is_what_other_threads_leave():
    assert 0 < waiting.free_share(1, 0.02) <= 1.05
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert waiting.free_share(8 * cores, 0.1) < 0.3, "eight threads a core get an eighth of it each"


@pytest.fixture
def restless(monkeypatch):
    "A training that has two threads on a busy machine, and moves after a step."
    monkeypatch.setattr(waiting, "WINDOW", 0.0)
    monkeypatch.setattr(waiting, "WORTH", 0.0)
    monkeypatch.setattr(sft, "_may_move", lambda cfg, make: True)
    real = waiting.SpeedWatch
    monkeypatch.setattr(waiting, "SpeedWatch", lambda policy, threads: real(policy, 2, lambda _: 0.5))


@pytest.mark.slow
def test_a_training_that_moved_ends_where_one_that_stayed_does(base, tmp_path, restless):
    cfg, train, seen = load_config(overrides=TINY), toy_examples(24), []
    stays = load_config(overrides={**TINY, "sft.wait_policy": "active"})
    whole = train_adapter(train, [], base, stays, tmp_path / "whole", tmp_path / "a")
    moved = train_adapter(train, [], base, cfg, tmp_path / "moved", tmp_path / "b", lambda done, total: seen.append((done, total)))
    assert [r["step"] for r in read_log(tmp_path / "moved", "start")] == [0, 1], "moved after its first step"
    assert [r["loss"] for r in read_log(tmp_path / "moved")] == [r["loss"] for r in read_log(tmp_path / "whole")]
    assert (tmp_path / "moved/adapter_model.safetensors").read_bytes() == (tmp_path / "whole/adapter_model.safetensors").read_bytes()
    assert (moved.resumed_from, moved.steps, moved.kept_step) == (None, whole.steps, whole.steps)
    assert json.loads((tmp_path / "moved/training.json").read_text())["resumed_from"] is None
    assert seen == sorted(seen)
    assert seen[0] == (1, whole.steps)
    assert not (tmp_path / "b" / waiting.MOVES).exists()


def test_a_child_is_told_its_environment(base, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(sft, "run_child", lambda work, arguments, environment, tick: (told.append(environment), work(*arguments))[1])
    monkeypatch.setattr(sft, "_may_move", lambda cfg, make: True)
    cfg = load_config(overrides={**TINY, "sft.epochs": 1, "sft.wait_policy": "passive"})
    train_adapter(toy_examples(8), [], base, cfg, tmp_path / "a", tmp_path / "c")
    assert told == [{"OMP_WAIT_POLICY": "PASSIVE"}]


@pytest.mark.slow
def test_a_long_training_looks_before_its_first_step(base, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(sft, "run_child", lambda work, arguments, environment, tick: (told.append(environment), work(*arguments))[1])
    monkeypatch.setattr(sft, "_may_move", lambda cfg, make: True)
    monkeypatch.setattr(waiting, "already_chosen", lambda environment: False)
    cfg = load_config(overrides={**TINY, "sft.epochs": 1})
    for share, speed in ((0.5, 1.0), (1.0, 1.0), (0.5, 1e15)):
        monkeypatch.setattr(waiting, "free_share", lambda threads, share=share: share)
        monkeypatch.setattr(sft, "LAPTOP", speed)
        train_adapter(toy_examples(8), [], base, cfg, tmp_path / "a", tmp_path / "c")
    assert told == [{"OMP_WAIT_POLICY": "PASSIVE"}], "busy and long; not when quiet, nor when short"


ALONE = """
import os, sys, time
from pathlib import Path
from distillery.training.processes import run_child
def told(): Path(sys.argv[1], "ticks").write_text("x")
run_child(time.sleep, (60,), {}, told)
"""


def test_a_child_dies_with_its_parent(tmp_path):
    (tmp_path / "alone.py").write_text(ALONE)
    parent = subprocess.Popen([sys.executable, str(tmp_path / "alone.py"), str(tmp_path)])
    for _ in range(200):
        if (tmp_path / "ticks").exists() and psutil.Process(parent.pid).children(): break
        time.sleep(0.1)
    children = [c for c in psutil.Process(parent.pid).children() if "spawn_main" in " ".join(c.cmdline())]
    assert children
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert not psutil.wait_procs(children, timeout=20)[1]


# ---- what ends badly

def test_a_loss_that_is_no_number_ends_the_training_and_keeps_what_was_saved(base, tmp_path):
    wild = load_config(overrides={**TINY, "sft.learning_rate": 1e30, "sft.warmup_ratio": 0.0, "sft.save_strategy": "steps",
                                  "sft.logging_steps": 1})
    with pytest.raises(DistilleryError, match=r"diverged: the loss of step \d is (nan|inf)") as told:
        train_adapter(toy_examples(24), [], base, wild, tmp_path / "a", tmp_path / "c")
    assert "sft.learning_rate" in told.value.fix
    assert list((tmp_path / "c").glob("checkpoint-*"))
    assert not (tmp_path / "a").exists()


def test_a_line_torn_by_a_kill_is_not_glued_to_the_next(tmp_path):
    (tmp_path / LOG).write_text('{"event": "step", "step": 1, "loss": 6.2}\n{"event": "st')
    with open_log(tmp_path) as file: file.write('{"event": "step", "step": 2, "loss": 6.1}\n')
    assert [r["step"] for r in read_log(tmp_path)] == [1, 2]
    (tmp_path / LOG).write_text('{"eve')
    open_log(tmp_path).close()
    assert (tmp_path / LOG).read_text() == ""


@pytest.mark.slow
def test_the_loss_in_the_log_is_that_of_the_step_that_was_kept(base, tmp_path):
    cfg = load_config(overrides={**TINY, "sft.batch_size": 4, "sft.epochs": 30, "sft.learning_rate": 0.2, "sft.eval_strategy": "epoch",
                                 "sft.save_strategy": "epoch", "sft.load_best_model_at_end": True})
    log = train_adapter(toy_examples(8), toy_examples(4, "validation"), base, cfg, tmp_path / "a", tmp_path / "c")
    losses = {r["step"]: r["eval_loss"] for r in read_log(tmp_path / "a", "log") if "eval_loss" in r}
    assert log.kept_step == min(losses, key=losses.get) < log.steps, "a learning rate under which the best is not the last"
    assert log.eval_loss == losses[log.kept_step]
    assert log.final_loss == next(r["loss"] for r in read_log(tmp_path / "a") if r["step"] == log.kept_step)
