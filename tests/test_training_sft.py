"""Packing changes no loss and mixes no samples, the stop token is learnt, several processes train as one, and a kill changes nothing."""
import json
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from distillery.core.config import load_config
from distillery.core.errors import DistilleryError
from distillery.training.arguments import share_batch, sft_arguments
from distillery.training.checkpoints import last_checkpoint
from distillery.training.bases import load_base
from distillery.training.sft import make_trainer, read_log, train_adapter
from distillery.training.toy import toy_base, toy_examples

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

FAST = {"sft": {"epochs": 3, "batch_size": 4, "gradient_accumulation": 1, "learning_rate": 5e-3, "packing": False,
                "dataloader_num_workers": 0, "logging_steps": 2}, "lora": {"r": 4, "alpha": 8, "dropout": 0.0}}
PACKED = {**FAST, "sft.packing": True, "sft.max_length": 200}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return toy_base(tmp_path_factory.mktemp("base"))


def awake(trainer):
    "Give the adapter something to say: it begins as zero."
    torch.manual_seed(1)
    for name, p in trainer.model.named_parameters():
        if "lora_B" in name: torch.nn.init.normal_(p, std=0.2)
    return trainer


def mean_loss(trainer) -> tuple[float, int]:
    "Loss per learnt token over the whole training set, as the training step computes it."
    trainer.model.eval()
    total, items = 0.0, 0
    with torch.no_grad():
        for batch in trainer.get_train_dataloader():
            n = int((batch["labels"][:, 1:] != -100).sum())
            total, items = total + trainer.compute_loss(trainer.model, batch, num_items_in_batch=torch.tensor(n)).item() * n, items + n
    return total / items, items


@pytest.mark.parametrize("device", ["cpu", "trl"])
def test_packed_and_unpacked_loss_agree(base, tmp_path, device):
    found = {}
    for name, overrides in {"apart": FAST, "packed": PACKED}.items():
        trainer = awake(make_trainer(toy_examples(24), [], base, load_config(overrides=overrides), tmp_path / name))
        if device == "trl":  # TRL's own loss, which answers_only replaces on a CPU
            theirs = type(trainer).__mro__[2]
            trainer.compute_loss = lambda *a, t=trainer, c=theirs, **k: c.compute_loss(t, *a, **k)
        found[name] = mean_loss(trainer), len(trainer.train_dataset)
    (apart, items), rows = found["apart"]
    (packed, same), fewer = found["packed"]
    assert (rows, same) == (24, items)
    assert fewer < 12
    assert packed == pytest.approx(apart, abs=1e-5)


def test_packing_lets_no_sample_see_another(base, tmp_path):
    trainer = awake(make_trainer(toy_examples(12), [], base, load_config(overrides=PACKED), tmp_path))
    trainer.model.eval()
    batch = trainer.data_collator([trainer.train_dataset[0]])
    place = batch["position_ids"][0]
    starts = [*(place == 0).nonzero().flatten().tolist(), len(place)]
    assert len(starts) > 3
    assert "attention_mask" not in batch
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    logits = lambda ids: trainer.model(**{**inputs, "input_ids": ids}, use_cache=False).logits[0]
    with torch.no_grad(): before = logits(inputs["input_ids"])
    for i in range(len(starts) - 1):
        changed = inputs["input_ids"].clone()
        here = slice(starts[i], starts[i + 1])
        changed[0, here] = (changed[0, here] + 7) % 300 + 3
        with torch.no_grad(): after = logits(changed)
        moved = (after - before).abs().amax(-1)
        assert moved[here].min() > 1e-3
        moved[here] = 0
        assert moved.max() == 0


def test_a_packed_sample_is_scored_as_if_it_were_alone(base, tmp_path):
    trainer = awake(make_trainer(toy_examples(12), [], base, load_config(overrides=PACKED), tmp_path))
    trainer.model.eval()
    batch = trainer.data_collator([trainer.train_dataset[0]])
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    starts = [*(batch["position_ids"][0] == 0).nonzero().flatten().tolist(), batch["input_ids"].shape[1]]
    with torch.no_grad():
        together = trainer.model(**inputs, use_cache=False).logits[0]
        for a, b in pairwise(starts):
            alone = trainer.model(input_ids=batch["input_ids"][:, a:b]).logits[0]
            assert (alone - together[a:b]).abs().max() < 1e-4


@pytest.mark.parametrize("overrides", [FAST, PACKED], ids=["apart", "packed"])
def test_the_stop_token_is_learnt_at_the_end_of_every_answer_and_no_question_is(base, tmp_path, overrides):
    trainer, tokenizer = make_trainer(toy_examples(10), [], base, load_config(overrides=overrides), tmp_path), load_base(base)[1]
    learnt = []
    for i in range(len(trainer.train_dataset)):
        batch = trainer.data_collator([trainer.train_dataset[i]])
        ids, labels = batch["input_ids"][0], batch["labels"][0]
        assert (ids[labels != -100] == labels[labels != -100]).all()
        learnt += [tokenizer.decode(labels[labels != -100])]
    said = "".join(learnt)
    answers = [e.answer for e in toy_examples(10)]
    assert said.count("<|im_end|>") == 10
    assert all(f"{a}<|im_end|>" in said for a in answers)
    assert "stand?" not in said
    assert "user" not in said


@pytest.mark.slow
def test_training_stops_early_and_keeps_the_best(base, tmp_path):
    cfg = load_config(overrides={**FAST, "sft.epochs": 30, "sft.learning_rate": 0.2, "sft.eval_strategy": "epoch",
                                 "sft.save_strategy": "epoch", "sft.load_best_model_at_end": True, "sft.early_stopping_patience": 2})
    log = train_adapter(toy_examples(8), toy_examples(4, "validation"), base, cfg, tmp_path / "a", tmp_path / "c")
    held = [r["eval_loss"] for r in read_log(tmp_path / "a", "log") if "eval_loss" in r]
    best = held.index(min(held))
    assert len(held) == best + 1 + 2 < 30
    assert log.epochs == len(held)


def test_early_stopping_without_a_loss_to_watch_is_refused():
    with pytest.raises(DistilleryError, match="early_stopping_patience"):
        sft_arguments(load_config(overrides={"sft.early_stopping_patience": 1}), "c")


@pytest.mark.parametrize(("batch", "accumulation", "processes"), [(16, 4, 1), (16, 4, 2), (16, 1, 4), (6, 9, 3)])
def test_processes_keep_the_effective_batch(batch, accumulation, processes):
    each, passes = share_batch(batch, accumulation, processes)
    assert each * passes * processes == batch * accumulation


def test_processes_that_cannot_share_are_refused_with_a_fix():
    with pytest.raises(DistilleryError, match="cannot share") as e: share_batch(5, 3, 2)
    assert "multiple of sft.processes" in e.value.fix


def test_a_checkpoint_that_one_process_did_not_finish_does_not_count(tmp_path):
    for step in (4, 8):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}/trainer_state.json").write_text("{}")
    (tmp_path / "checkpoint-4/random-1.json").write_text("{}")
    (tmp_path / "checkpoint-8/random-1.json").write_text('{"python": [3, [1')
    assert last_checkpoint(tmp_path, 2) == tmp_path / "checkpoint-4"
    assert not (tmp_path / "checkpoint-8").exists()


@pytest.mark.slow
@pytest.mark.parametrize("change", [{"sft.gradient_accumulation": 2}, {"sft.batch_size": 8},
                                    {"sft.gradient_accumulation": 2, "sft.packing": True, "sft.max_length": 100}],
                         ids=["accumulation", "batch", "packed"])
def test_two_processes_train_as_one(base, tmp_path, change):
    losses = {}
    for n in (1, 2):
        cfg = load_config(overrides={**FAST, **change, "sft.processes": n})
        log = train_adapter(toy_examples(32), [], base, cfg, tmp_path / f"a{n}", tmp_path / f"c{n}")
        losses[n] = [r["loss"] for r in read_log(tmp_path / f"a{n}")]
        assert log.steps == len(losses[n])
    if "sft.packing" in change: assert len(losses[1]) == len(losses[2])  # the last batch may be filled up with rows from the start
    else: assert losses[2] == pytest.approx(losses[1], abs=1e-4)


SCRIPT = """
import json, sys
from pathlib import Path
from distillery.core.config import load_config
from distillery.training.sft import train_adapter
from distillery.training.toy import toy_examples
if __name__ == "__main__":
    base, folder, more = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    cfg = load_config(overrides={"sft": {"epochs": 8, "batch_size": 4, "gradient_accumulation": 2, "learning_rate": 5e-3, "packing": False,
        "dataloader_num_workers": 0, "logging_steps": 3, "save_strategy": "steps"}, "lora": {"r": 4, "alpha": 8, "dropout": 0.1}, **more})
    train_adapter(toy_examples(36), toy_examples(6, "validation"), base, cfg, folder / "adapter", folder / "checkpoints")
"""
KILLS = {
    "packing": {"sft.packing": True, "sft.max_length": 100, "sft.batch_size": 2},
    "accumulation": {"sft.gradient_accumulation": 3, "sft.batch_size": 2},
    "early stopping": {"sft.eval_strategy": "steps", "sft.load_best_model_at_end": True, "sft.early_stopping_patience": 3},
    "two processes": {"sft.processes": 2},
}


def deaf():
    "As a shell starts what runs in the background."
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@pytest.mark.slow
@pytest.mark.parametrize("name", KILLS)
def test_kill_and_resume_gives_the_same_training(base, tmp_path, name):
    from safetensors.numpy import load_file
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(__file__).parents[1])}

    def start(folder: str) -> subprocess.Popen:
        with (tmp_path / f"{folder}.log").open("a") as log:
            command = [sys.executable, script, base, tmp_path / folder, json.dumps(KILLS[name])]
            return subprocess.Popen(command, env=env, stdout=log, stderr=log, preexec_fn=deaf)
    assert start("straight").wait(300) == 0, (tmp_path / "straight.log").read_text()
    straight = read_log(tmp_path / "straight" / "adapter")
    wanted, log, deadline = max(5, len(straight) // 2), tmp_path / "killed" / "checkpoints", time.time() + 300
    victim = start("killed")
    while victim.poll() is None and len(read_log(log)) < wanted and time.time() < deadline: time.sleep(0.002)
    victim.send_signal(signal.SIGKILL)  # the process that was started, and it alone
    victim.wait()
    time.sleep(3)  # its children must be gone by themselves
    reached = read_log(log)[-1]["step"]
    assert reached < len(straight)
    assert start("killed").wait(300) == 0, (tmp_path / "killed.log").read_text()
    steps, begins = read_log(log), read_log(log, "start")
    last = begins[1]["step"]
    assert 0 < last <= reached
    assert len(steps) - len(straight) == reached - last <= 3
    assert {r["step"]: r["loss"] for r in steps} == pytest.approx({r["step"]: r["loss"] for r in straight}, abs=1e-4)
    a, b = (load_file(tmp_path / folder / "adapter" / "adapter_model.safetensors") for folder in ("straight", "killed"))
    assert all(abs(a[k] - b[k]).max() < 1e-4 for k in a)
