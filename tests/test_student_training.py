"""Every training knob arrives, checkpoints hold no pickle, and a killed training ends as if it had not been killed."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from distillery.core.config import load_config
from distillery.core.errors import DistilleryError
from distillery.core.knobs import knobs
from distillery.training.arguments import lora_arguments, sft_arguments, training_rows
from distillery.training.checkpoints import EpochSampler, last_checkpoint
from distillery.training.bases import load_base
from distillery.training.sft import make_trainer, read_log, train_adapter
from distillery.training.toy import toy_base, toy_examples

pytest.importorskip("trl")

FAST = {"sft": {"epochs": 3, "batch_size": 4, "gradient_accumulation": 1, "learning_rate": 5e-3, "packing": False,
                "dataloader_num_workers": 0, "logging_steps": 2}, "lora": {"r": 4, "alpha": 8}}
OTHER = {"lora.r": 8, "lora.alpha": 16.0, "lora.dropout": 0.3, "lora.target_modules": ["v_proj"], "sft.epochs": 2.0, "sft.batch_size": 3,
         "sft.gradient_accumulation": 2, "sft.learning_rate": 1e-3, "sft.max_length": 64, "sft.warmup_ratio": 0.2, "sft.weight_decay": 0.1,
         "sft.packing": False, "sft.group_by_length": False, "sft.eval_strategy": "epoch", "sft.load_best_model_at_end": True,
         "sft.seed": 7, "sft.gradient_checkpointing": True, "sft.dataloader_num_workers": 1,
         "sft.save_strategy": "steps", "sft.save_total_limit": 5, "sft.precision": "bf16",
         "sft.logging_steps": 3}
ELSEWHERE = {"sft.processes", "sft.early_stopping_patience", "sft.wait_policy"}  # seen in test_training_sft and test_devices
FIELDS = {"lora.alpha": "lora_alpha", "lora.dropout": "lora_dropout", "sft.epochs": "num_train_epochs",
          "sft.batch_size": "per_device_train_batch_size", "sft.gradient_accumulation": "gradient_accumulation_steps",
          "sft.warmup_ratio": "warmup_steps", "sft.group_by_length": "train_sampling_strategy",
          "sft.precision": "bf16"}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return toy_base(tmp_path_factory.mktemp("base"))


def test_the_table_of_knobs_is_complete():
    assert set(OTHER) | ELSEWHERE == {k.name for k in knobs() if k.name.startswith(("lora.", "sft."))}


@pytest.mark.parametrize("name", OTHER)
def test_every_knob_reaches_its_library(name, tmp_path):
    from peft import LoraConfig
    from trl import SFTConfig
    extra = {"sft.eval_strategy": "epoch", "sft.save_strategy": "epoch"} if name == "sft.load_best_model_at_end" else {}

    def recorded(overrides):
        cfg = load_config(overrides=overrides)
        lora, sft = LoraConfig(**lora_arguments(cfg)), SFTConfig(**sft_arguments(cfg, tmp_path))
        return getattr(lora if name.startswith("lora.") else sft, FIELDS.get(name, name.split(".")[1]))

    before, after = recorded(extra), recorded({**extra, name: OTHER[name]})
    assert before != after
    wanted = {"sft.group_by_length": "random", "lora.target_modules": {"v_proj"}, "sft.precision": True}.get(name, OTHER[name])
    assert getattr(after, "value", after) == wanted


def losses_with(overrides, base, place):
    train_adapter(toy_examples(10), [], base, load_config(overrides={**FAST, **overrides}), place / "adapter", place / "checkpoints")
    return [r["loss"] for r in read_log(place / "adapter")]


@pytest.fixture(scope="module")
def before(base, tmp_path_factory): return losses_with({}, base, tmp_path_factory.mktemp("before"))


WEEKLY = [{"sft.gradient_checkpointing": True}, {"sft.gradient_accumulation": 2}, {"sft.seed": 3}, {"sft.weight_decay": 0.5},
          {"sft.group_by_length": False}, {"lora.dropout": 0.5}, {"lora.target_modules": ["o_proj"]}]


@pytest.mark.slow
@pytest.mark.parametrize("change", [{"sft.packing": True}, {"lora.r": 2}, {"sft.max_length": 22},
                                    *(pytest.param(change, marks=pytest.mark.slow) for change in WEEKLY)])
def test_result_knobs_change_the_training_and_execution_knobs_do_not(base, before, tmp_path, change):
    after = losses_with(change, base, tmp_path)
    if change == {"sft.gradient_checkpointing": True}: assert after == pytest.approx(before, abs=1e-5)
    else: assert len(after) != len(before) or max(abs(x - y) for x, y in zip(before, after, strict=True)) > 1e-6


def test_packing_fills_rows_and_keeps_examples_apart(base, tmp_path):
    cfg = load_config(overrides={**FAST, "sft.packing": True, "sft.max_length": 100})
    trainer = make_trainer(toy_examples(12), [], base, cfg, tmp_path)
    assert len(trainer.train_dataset) < 12
    assert sum(map(len, trainer.train_dataset["input_ids"])) == sum(sum(s) for s in trainer.train_dataset["seq_lengths"])


def test_loss_is_on_the_answer_and_its_end_only(base, tmp_path):
    trainer = make_trainer(toy_examples(3), [], base, load_config(overrides=FAST), tmp_path)
    tokenizer = load_base(base)[1]
    row = trainer.train_dataset[0]
    learnt = tokenizer.decode([i for i, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100])
    answers = {r["completion"][0]["content"] for r in training_rows(toy_examples(3))}
    assert learnt.strip().removesuffix("<|im_end|>") in answers
    assert "<|im_end|>" in learnt
    assert "user" not in learnt


def test_truncated_examples_are_counted(base, tmp_path):
    log = train_adapter(toy_examples(4), [], base, load_config(overrides={**FAST, "sft.max_length": 20}), tmp_path / "a", tmp_path / "c")
    assert log.truncated == 4
    assert json.loads((tmp_path / "a" / "training.json").read_text())["truncated"] == 4


def test_the_best_checkpoint_is_kept_and_validation_is_measured(base, tmp_path):
    cfg = load_config(overrides={**FAST, "sft.eval_strategy": "epoch", "sft.save_strategy": "epoch", "sft.load_best_model_at_end": True})
    log = train_adapter(toy_examples(8), toy_examples(4, "validation"), base, cfg, tmp_path / "a", tmp_path / "c")
    held = [r["eval_loss"] for r in read_log(tmp_path / "a", "log") if "eval_loss" in r]
    assert len(held) == 3
    assert log.eval_loss == held[-1]


def test_nothing_is_a_pickle(base, tmp_path):
    cfg = load_config(overrides={**FAST, "sft.save_strategy": "epoch"})
    train_adapter(toy_examples(8), [], base, cfg, tmp_path / "a", tmp_path / "c")
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert {p.suffix for p in files} <= {".safetensors", ".json", ".jsonl", ".jinja", ".txt"}
    assert len(list((tmp_path / "c").glob("checkpoint-*"))) == 2
    assert not any(str(base) in p.read_text() for p in (tmp_path / "a").glob("*.json"))


@pytest.mark.slow
def test_checkpoints_of_another_training_are_not_continued(base, tmp_path):
    cfg = load_config(overrides={**FAST, "sft.save_strategy": "epoch"})
    train_adapter(toy_examples(8), [], base, cfg, tmp_path / "a", tmp_path / "c")
    more = load_config(overrides={**FAST, "sft.save_strategy": "epoch", "sft.epochs": 4})
    assert train_adapter(toy_examples(8), [], base, more, tmp_path / "a", tmp_path / "c").resumed_from is None
    faster = load_config(overrides={**FAST, "sft.save_strategy": "epoch", "sft.epochs": 4, "sft.save_total_limit": 1})
    assert train_adapter(toy_examples(8), [], base, faster, tmp_path / "b", tmp_path / "c").resumed_from == 8


def test_a_half_written_checkpoint_is_swept_away(tmp_path):
    for step, text in {4: '{"global_step": 4}', 8: None, 12: ""}.items():
        (tmp_path / f"checkpoint-{step}").mkdir()
        if text is not None: (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(text)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-4"
    assert len(list(tmp_path.iterdir())) == 1
    assert last_checkpoint(tmp_path / "nowhere") is None


@pytest.mark.parametrize("grouped", [True, False])
def test_every_epoch_shows_every_example_once(grouped):
    order = EpochSampler([3, 1, 4, 1, 5, 9, 2, 6, 5, 3], 3, 88, grouped)
    orders = [(order.set_epoch(e), tuple(order))[1] for e in range(5)]
    assert all(sorted(o) == list(range(10)) for o in orders)
    assert len(set(orders)) > 1


def test_an_empty_training_set_is_refused(base, tmp_path):
    with pytest.raises(DistilleryError, match="nothing to train on"):
        train_adapter([], [], base, load_config(overrides=FAST), tmp_path / "a", tmp_path / "c")


SCRIPT = """
import sys
from pathlib import Path
from distillery.core.config import load_config
from distillery.training.sft import train_adapter
from distillery.training.toy import toy_examples
base, folder, strategy = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
cfg = load_config(overrides={"sft": {"epochs": 6, "batch_size": 4, "gradient_accumulation": 2, "learning_rate": 5e-3, "packing": False,
    "dataloader_num_workers": 0, "logging_steps": 5, "save_strategy": strategy}, "lora": {"r": 4, "alpha": 8, "dropout": 0.1}})
train_adapter(toy_examples(36), [], base, cfg, folder / "adapter", folder / "checkpoints")
"""


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "kill_after"), [("steps", 13), ("epoch", 17)])
def test_kill_and_resume_gives_the_same_training(base, tmp_path, strategy, kill_after):
    from safetensors.numpy import load_file
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    start = lambda name: subprocess.Popen([sys.executable, script, base, tmp_path / name, strategy], env=env, stderr=subprocess.DEVNULL)
    assert start("straight").wait(120) == 0
    victim, log, deadline = start("killed"), tmp_path / "killed" / "checkpoints", time.time() + 120
    while victim.poll() is None and len(read_log(log)) < kill_after and time.time() < deadline: time.sleep(0.002)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    reached = read_log(log)[-1]["step"]
    assert start("killed").wait(120) == 0
    steps, starts = read_log(log), read_log(log, "start")
    straight = read_log(tmp_path / "straight" / "adapter")
    last = starts[1]["step"]
    assert kill_after <= reached < len(straight)
    assert 0 < last <= reached
    assert len(steps) - len(straight) == reached - last
    assert {r["step"]: r["loss"] for r in steps} == pytest.approx({r["step"]: r["loss"] for r in straight}, abs=1e-4)
    a, b = (load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("straight", "killed"))
    assert all(abs(a[k] - b[k]).max() < 1e-4 for k in a)
