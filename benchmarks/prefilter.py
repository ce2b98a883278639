"""Promises of recall: ours beside BARGAIN_R's (Zeighami and others 2025), on the same pools, articles alone and alike, as many labels.

Both are asked for a recall of 95 % at a risk of 10 %, and label 800 articles of the pool, drawn one by one.
The peer runs in an environment of its own; one that cannot be had is "not run".
Run: python benchmarks/prefilter.py [200]
"""
import subprocess
import sys
import tempfile
from math import sqrt
from pathlib import Path

import numpy as np
from intervals import HERE, of_peer
from scipy.stats import norm

from distillery.filters.promise import safe_threshold

TARGET, DELTA, LABELS, EACH, CLUSTERS = 0.95, 0.1, 800, 8, 500
KINDS = {"independent": 0.0, "alike within clusters of 8 (.6)": 0.6}


def pool(rng: np.random.Generator, icc: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    "Signal, whether it is good, and cluster of 4,000 articles; one in ten is good, and the signal correlates .9 with the score."
    def alike() -> np.ndarray:
        return (icc**0.5 * rng.normal(size=(CLUSTERS, 1)) + (1 - icc) ** 0.5 * rng.normal(size=(CLUSTERS, EACH))).ravel()

    true, noise = alike(), alike()
    owner = np.repeat(np.arange(CLUSTERS), EACH) if icc else np.arange(CLUSTERS * EACH)
    return 0.9 * true + sqrt(1 - 0.9**2) * noise, true >= norm.isf(0.1), owner


def ours(rng: np.random.Generator, signal: np.ndarray, good: np.ndarray, owner: np.ndarray) -> list[float]:
    "Recall in the pool, share that is kept, labels asked for."
    labelled = np.isin(np.arange(len(good)), rng.choice(len(good), LABELS, replace=False)) & good
    t = safe_threshold(signal[labelled], owner[labelled].tolist(), TARGET, DELTA)
    kept = np.ones(len(signal), bool) if t is None else signal >= t
    return [float(good[kept].sum() / good.sum()), float(kept.mean()), LABELS]


def line(kind: str, name: str, found: list[list[float]] | str) -> str:
    "One row of the table."
    if isinstance(found, str): return f"| {kind} | {name} | {found} | | | |"
    recall, kept, labels = np.array(found).T
    return f"| {kind} | {name} | {(recall < TARGET).mean():.3f} | {recall.mean():.3f} | {1 - kept.mean():.3f} | {labels.mean():.0f} |"


def main(n: int) -> None:
    cells = [(kind, pool(np.random.default_rng([88, k, i]), icc)) for k, (kind, icc) in enumerate(KINDS.items()) for i in range(n)]
    terms = {"target": TARGET, "delta": DELTA, "labels": LABELS}
    asked = [{"signal": s.tolist(), "good": g.astype(int).tolist(), **terms} for _, (s, g, _) in cells]
    with tempfile.TemporaryDirectory() as work: theirs = of_peer("bargain", asked, Path(work))
    mine = [ours(np.random.default_rng([89, i]), *drawn) for i, (_, drawn) in enumerate(cells)]
    commit = subprocess.run(["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    print(f"{n} pools of {CLUSTERS * EACH} articles a row, commit {commit}; a promise may be broken by {DELTA:g}, "
          f"three Monte Carlo errors are {3 * sqrt(DELTA * (1 - DELTA) / n):.3f}\n")
    print("| articles | rule | recall below .95 | mean recall | rejected | labels |\n|---|---|---|---|---|---|")
    for k, kind in enumerate(KINDS):
        here = slice(k * n, (k + 1) * n)
        print(line(kind, "ours", mine[here]))
        print(line(kind, "BARGAIN_R", theirs if isinstance(theirs, str) else theirs[here]))


if __name__ == "__main__": main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
