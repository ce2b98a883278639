"""Training steps a second on a quiet machine and beside two busy processes: with threads that always spin, and with sft.wait_policy auto.
Beside the two the training first moves to a process whose threads sleep; its speed is counted from then on.
Run: python benchmarks/busy.py [--seconds 10] [--busy 2]"""
import argparse
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"): os.environ.pop(name, None)
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


class Enough(Exception):
    "Long enough to know the speed."


class Clock:
    "Steps and times since the training last began or moved."
    def __init__(self, seconds: float, moves: bool) -> None: self.seconds, self.moves, self.seen = seconds, moves, []

    def __call__(self, done: int, total: int) -> None:
        from distillery.training.processes import multiprocessing
        now, elsewhere = time.perf_counter(), bool(multiprocessing.active_children())
        if (self.moves and not elsewhere) or (self.seen and done == self.seen[-1][0]): return
        self.seen.append((done, now))
        if now - self.seen[min(2, len(self.seen) - 1)][1] > self.seconds: raise Enough

    @property
    def speed(self) -> float:
        (a, began), (b, ended) = self.seen[2], self.seen[-1]
        return (b - a) / (ended - began)


def speed(data, policy: str, seconds: float, moves: bool = False) -> float:
    from distillery.core.config import load_config
    from distillery.training.sft import train_adapter
    cfg = load_config(preset="handbook", overrides={
        "sft.epochs": 1000, "sft.save_strategy": "no", "sft.dataloader_num_workers": 0, "sft.wait_policy": policy, "sft.batch_size": 4,
        "sft.gradient_accumulation": 1, "sft.packing": False})
    clock = Clock(seconds, moves)
    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings(action="ignore"):
        try: train_adapter(data, [], cfg.student.base, cfg, Path(place, "out"), Path(place, "checkpoints"), clock)
        except Enough: return clock.speed
    raise SystemExit("the training ended before its speed was known")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--busy", type=int, default=2)
    options = parser.parse_args()
    from sft import examples

    from distillery.training.waiting import free_share
    cores = os.cpu_count() or 1
    if cores < 2: raise SystemExit("one core: there is nothing to wait for")
    data = examples(640)
    speed(data, "active", 2)  # warms up
    quiet = {policy: speed(data, policy, options.seconds) for policy in ("active", "auto")}
    shares = [free_share(cores)]
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(options.busy)]
    try:
        shares.append(free_share(cores))
        busy = {"active": speed(data, "active", options.seconds), "auto": speed(data, "auto", options.seconds, moves=True)}
    finally:
        for other in others: other.kill()
    print(f"share of {cores} cores that is left: quiet {shares[0]:.2f}, beside {options.busy} busy processes {shares[1]:.2f}")
    for policy in quiet:
        print(f"{policy:>6}: quiet {quiet[policy]:.1f} steps/s, busy {busy[policy]:.1f}, kept {busy[policy] / quiet[policy]:.2f}")
    print(f"auto against active, quiet: {quiet['auto'] / quiet['active']:.2f}")


if __name__ == "__main__": main()
