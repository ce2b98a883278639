"""What locks, claims and the comparison of digests cost: their share of the CPU time of a whole small run, added up inside of it; and
CPU time of the run with them and without, in pairs.

    python benchmarks/integrity.py          # 6 pairs; a number says how many
    python benchmarks/integrity.py 10

The share is of the run's own process, its children left out, which can only make it look larger (`integrity_timed.py`). Without means
`tests/attack_olden.py`: no lock, no claim, sizes instead of digests, rows taken as they come; CPU time of a whole run varies by several
percent with what else the machine does, so the pairs say what they can. A run of minutes has the same locks and digests beside more
work: the share of a small run bounds it from above. Last, an unchanged run: all on the shelf.
"""
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from scipy.stats import t

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from pairs_oracle import write_handbook  # noqa: E402

LIMIT, UNCHANGED = 0.03, 0.8  # share of the CPU time; seconds of an unchanged run
MAIN = "from distillery.commands.cli import main; main()"
KNOBS = {"prompts.pack": "handbook", "sft.epochs": 3, "dataset.questions_per_chunk": 6, "generation_limits.min_answer_length": 1,
         "evaluation.max_new_tokens": 32, "dataset.test_share": 0.3, "export.variants": "[fp32, q4]", "export.check_positions": 100}


def cpu_seconds(code: str, docs: Path, place: Path) -> float:
    "CPU time of a run and its children."
    paths = os.pathsep.join([str(ROOT / "tests"), str(ROOT / "benchmarks"), str(ROOT)])
    env = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "INTEGRITY_TIMED": str(place / "timed.json")}
    command = [sys.executable, "-c", code, "run", "--docs", str(docs), *(x for k, v in KNOBS.items() for x in ("--set", f"{k}={v}"))]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, cwd=place, env=env, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def pair(docs: Path, place: Path, turn: int) -> tuple[float, float, float]:
    "CPU seconds with, without, and of the run with them once more; who goes first alternates."
    arms = {"with": MAIN, "without": f"import attack_olden; {MAIN}"}
    taken = {}
    for name in sorted(arms, reverse=turn % 2 == 0):
        folder = place / f"{name}-{turn}"
        folder.mkdir()
        taken[name] = cpu_seconds(arms[name], docs, folder)
    return taken["with"], taken["without"], min(cpu_seconds(MAIN, docs, place / f"with-{turn}") for _ in range(3))


def share(docs: Path, place: Path) -> tuple[float, int]:
    "Share of a run's CPU time that is spent in locks, claims and comparisons, and how many there were."
    place.mkdir()
    cpu_seconds(f"import integrity_timed; {MAIN}", docs, place)
    told = json.loads((place / "timed.json").read_text())
    return told["seconds"] / (told["process"] - told["seconds"]), told["calls"]


def main(pairs: int) -> None:
    with tempfile.TemporaryDirectory() as made:
        docs = Path(made, "docs")
        docs.mkdir()
        write_handbook(docs, 6)
        Path(made, "first").mkdir()
        cpu_seconds(MAIN, docs, Path(made, "first"))  # compiles what is imported
        shares = np.array([share(docs, Path(made, f"share-{turn}")) for turn in range(pairs)])
        rows = np.array([pair(docs, Path(made), turn) for turn in range(pairs)])
    mean, half = shares[:, 0].mean(), t.ppf(0.975, pairs - 1) * shares[:, 0].std(ddof=1) / pairs**0.5
    print(f"{np.median(shares[:, 1]):.0f} locks, claims and comparisons take {mean:.2%} of a run's CPU time beside the rest, 95 % interval "
          f"{mean - half:.2%} to {mean + half:.2%}, n = {pairs}; limit {LIMIT:.0%}: {'met' if mean + half <= LIMIT else 'MISSED'}")
    ratio = np.log(rows[:, 0] / rows[:, 1])
    half = t.ppf(0.975, pairs - 1) * ratio.std(ddof=1) / pairs**0.5
    mean, low, high = (np.expm1(x) for x in (ratio.mean(), ratio.mean() - half, ratio.mean() + half))
    print(f"with {np.median(rows[:, 0]):.1f} s of CPU, without {np.median(rows[:, 1]):.1f} s, median of {pairs} pairs")
    print(f"whole runs differ by {mean:+.1%}, 95 % interval {low:+.1%} to {high:+.1%}")
    print(f"unchanged run {rows[:, 2].min():.2f} s of CPU; limit {UNCHANGED:g} s: {'met' if rows[:, 2].min() <= UNCHANGED else 'MISSED'}")


if __name__ == "__main__": main(int(sys.argv[1]) if sys.argv[1:] else 6)
