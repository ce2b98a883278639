"""What locks, claims and the comparison of digests cost: CPU time of a whole small run with them and without, in pairs.

    python benchmarks/integrity.py          # 6 pairs; a number says how many
    python benchmarks/integrity.py 10

Without means `tests/attack_olden.py`: no lock, no claim, sizes instead of digests, rows taken as they come. A run of minutes has the
same locks and digests beside more work, so the share of a small run bounds it from above. Last, an unchanged run: all on the shelf.
"""
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
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), str(ROOT)]), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
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


def main(pairs: int) -> None:
    with tempfile.TemporaryDirectory() as made:
        docs = Path(made, "docs")
        docs.mkdir()
        write_handbook(docs, 6)
        Path(made, "first").mkdir()
        cpu_seconds(MAIN, docs, Path(made, "first"))  # compiles what is imported
        rows = np.array([pair(docs, Path(made), turn) for turn in range(pairs)])
    ratio = np.log(rows[:, 0] / rows[:, 1])
    half = t.ppf(0.975, pairs - 1) * ratio.std(ddof=1) / pairs**0.5
    mean, low, high = (np.expm1(x) for x in (ratio.mean(), ratio.mean() - half, ratio.mean() + half))
    print(f"with {np.median(rows[:, 0]):.1f} s of CPU, without {np.median(rows[:, 1]):.1f} s, median of {pairs} pairs")
    print(f"overhead {mean:+.1%}, 95 % interval {low:+.1%} to {high:+.1%}; limit {LIMIT:.0%}: {'met' if high <= LIMIT else 'NOT SHOWN'}")
    print(f"unchanged run {rows[:, 2].min():.2f} s of CPU; limit {UNCHANGED:g} s: {'met' if rows[:, 2].min() <= UNCHANGED else 'MISSED'}")


if __name__ == "__main__": main(int(sys.argv[1]) if sys.argv[1:] else 6)
