"""Training tokens a second: ours beside a plain TRL script (SFTTrainer and LoRA, same precision and batch, no checkpointing).
The same rows once through, so the same tokens on both sides; padding is no token.
Run: python benchmarks/sft.py [--rounds 3] [--rows 640]"""
import argparse
import json
import os
import tempfile
import time
import warnings
from pathlib import Path
from statistics import median

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
import datasets
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from distillery.core.config import load_config
from distillery.core.records import ChatTurn, Example
from distillery.training.arguments import lora_arguments, training_rows
from distillery.training.bases import base_folder
from distillery.training.sft import make_trainer

ROWS = Path(__file__).resolve().parents[1] / "tests/data/run"


def examples(n: int) -> list[Example]:
    "Questions of the kept run; one in ten with its passage, as the built-in run trains them."
    read = lambda name: [json.loads(line) for line in (ROWS / name).read_text("utf-8").splitlines()]
    text = {c["chunk_id"]: c["text"] for c in read("chunks.jsonl")}
    found = []
    for i, p in enumerate(read("selected.jsonl")[:n]):
        asked = p["question"] if i % 10 else f"{text[p['chunk_id']]}\n\nQuestion: {p['question']}"
        chat = [ChatTurn(role="user", content=asked), ChatTurn(role="assistant", content=p["answer"])]
        found.append(Example.model_validate({
            "id": str(i), "set": "train", "pair_id": p["id"], "family_id": p["family_id"], "doc_id": p["doc_id"], "chunk_id": p["chunk_id"],
            "category": p["category"], "difficulty": p["difficulty"], "kind": p["kind"], "question": p["question"], "answer": p["answer"],
            "messages": chat}))
    return found


class Clock(TrainerCallback):
    "Time from the first step to the last."
    def __init__(self) -> None: self.began, self.seconds = 0.0, 0.0

    def now(self) -> float:
        if torch.cuda.is_available(): torch.cuda.synchronize()
        return time.perf_counter() if torch.cuda.is_available() else time.process_time()

    def on_train_begin(self, args, state, control, **_):
        self.began = self.now()

    def on_step_end(self, args, state, control, **_):
        self.seconds = self.now() - self.began


def counted(trainer, clock: Clock) -> float:
    "Train once through, and give tokens a second."
    trainer.add_callback(clock)
    with warnings.catch_warnings(action="ignore"): trainer.train()
    return sum(len(ids) for ids in trainer.train_dataset["input_ids"]) / clock.seconds


def ours(data: list[Example], cfg, folder: str, grouped: bool) -> float:
    return counted(make_trainer(data, [], base_folder(cfg.student.base), cfg, Path(folder)), Clock())


def plain(data: list[Example], cfg, folder: str, grouped: bool) -> float:
    place, k = base_folder(cfg.student.base), cfg.sft
    model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
    args = SFTConfig(output_dir=folder, num_train_epochs=1, train_sampling_strategy="group_by_length" if grouped else "random",
                     per_device_train_batch_size=k.batch_size, completion_only_loss=True,
                     gradient_accumulation_steps=k.gradient_accumulation, learning_rate=k.learning_rate, max_length=k.max_length,
                     packing=k.packing, bf16=False, gradient_checkpointing=False, save_strategy="no", report_to="none", seed=k.seed,
                     disable_tqdm=True, logging_steps=k.logging_steps, dataloader_pin_memory=False)
    trainer = SFTTrainer(model=model, args=args, train_dataset=datasets.Dataset.from_list(training_rows(data)),
                         processing_class=AutoTokenizer.from_pretrained(place), peft_config=LoraConfig(**lora_arguments(cfg)))
    trainer.remove_callback(PrinterCallback)
    return counted(trainer, Clock())


def main() -> None:
    ask = argparse.ArgumentParser()
    ask.add_argument("--rounds", type=int, default=3)
    ask.add_argument("--base", default="builtin:mini")
    ask.add_argument("--rows", type=int, default=640)
    how = ask.parse_args()
    datasets.disable_progress_bars()
    data, unit = examples(how.rows), "wall" if torch.cuda.is_available() else "CPU"
    print(f"{len(data)} rows of the kept run, {how.base}, median of {how.rounds} rounds in turn, tokens a {unit} second")
    print(f"{'':40}{'ours':>9}{'plain TRL':>11}{'ours / plain':>14}")
    shapes = {"padded rows, plain in random order": ({}, False), "padded rows, plain by length too": ({}, True),
              "packed rows (the guide's default)": ({"sft.packing": True, "sft.batch_size": 4}, False)}
    worst = float("inf")
    for name, (change, grouped) in shapes.items():
        cfg = load_config(preset="handbook", overrides={"student.base": how.base, "sft.epochs": 1, "sft.save_strategy": "no", **change})
        found = {"ours": [], "plain": []}
        for _ in range(how.rounds):
            for side, train in (("ours", ours), ("plain", plain)):
                with tempfile.TemporaryDirectory() as folder: found[side].append(train(data, cfg, folder, grouped))
        a, b = median(found["ours"]), median(found["plain"])
        worst = min(worst, a / b)
        print(f"{name:40}{a:9,.0f}{b:11,.0f}{a / b:14.2f}", flush=True)
    print(f"goal: never below 1.0: {'met' if worst >= 1 else 'MISSED'}")


if __name__ == "__main__": main()
