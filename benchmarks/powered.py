"""Clustered PPI++: glide-py 0.11's weight, mean and standard error on twenty studies, kept in tests/data/powered.json; ours beside them.

glide-py runs in an environment of its own, which needs Python 3.12; where it cannot be had, what is kept stays as it is.
Run: python benchmarks/powered.py
"""
import json
import tempfile
from pathlib import Path

import numpy as np
from intervals import HERE, of_peer

from distillery.questions.powered import ClusterMeans, cluster_means, judge_weight, powered_sum

KEPT = HERE.parent / "tests/data/powered.json"
SCALES = {"any number": lambda x: x, "ratings of 1 to 5": lambda x: np.clip(np.round(3.5 + x), 1, 5),
          "right or wrong": lambda x: (x > 0) * 1.0}


def study(seed: int) -> dict:
    "People and a judge on clusters of one to five items; 4 to 60 of them labelled, whole ones, rows in random order."
    rng, name = np.random.default_rng([88, seed]), list(SCALES)[seed % len(SCALES)]
    labelled, correlation = int(rng.integers(4, 61)), float(rng.uniform(-0.2, 0.98))
    sizes = rng.integers(1, 6, labelled + int(rng.integers(2, 100)))
    owner = np.repeat(np.arange(len(sizes)), sizes)
    truth = rng.normal(size=len(sizes))
    judged = correlation * truth + (1 - correlation**2) ** 0.5 * rng.normal(size=len(sizes))
    human, judge = (SCALES[name](x[owner] + 0.7 * rng.normal(size=len(owner))) for x in (truth, judged))
    order = rng.permutation(len(owner))
    said = [round(float(human[i]), 2) if owner[i] < labelled else None for i in order]
    return {"scale": name, "human": said, "judge": [round(float(judge[i]), 2) for i in order], "cluster": [f"d{owner[i]}" for i in order]}


def means_of(s: dict) -> ClusterMeans:
    return cluster_means([np.nan if x is None else x for x in s["human"]], s["judge"], s["cluster"])


def main() -> None:
    studies = [study(seed) for seed in range(20)]
    with tempfile.TemporaryDirectory() as work: theirs = of_peer("glide", studies, Path(work))
    if isinstance(theirs, str): return print(f"glide-py: {theirs}; {KEPT.name} stays as it is")
    KEPT.write_text(json.dumps([{**s, "glide": g} for s, g in zip(studies, theirs, strict=True)], separators=(",", ":")) + "\n")
    print("| study | scale | labelled clusters | others | weight | mean | standard error | largest difference |\n|" + "---|" * 8)
    for i, (s, g) in enumerate(zip(studies, theirs, strict=True)):
        m = means_of(s)
        weight = judge_weight(m)
        gap = np.abs(np.subtract([weight, *powered_sum(m, weight)], g)).max()
        print(f"| {i} | {s['scale']} | {len(m.human)} | {len(m.others)} | {g[0]:.3f} | {g[1]:.3f} | {g[2]:.4f} | {gap:.1e} |")


if __name__ == "__main__": main()
