"""Which threshold tells a repeat: character 4-grams, and cosines of our sentence model, on pairs of sentences that people scored 0 to 5.

Repeats are pairs scored 4.5 or more, others those scored 2 or less. Needs ../shared/data/stsb_ccbysa.jsonl.gz.
Run: python benchmarks/duplicates.py
"""
import gzip
import json
from pathlib import Path

import numpy as np

from distillery.core.stats import wilson
from distillery.pairs.select import grams, overlap
from distillery.retrieval.embed import CachedVectors, vectors_of

DATA = Path(__file__).resolve().parents[2] / "shared/data/stsb_ccbysa.jsonl.gz"
REPEATS, OTHERS = 4.5, 2.0


def similarities(rows: list[dict]) -> dict[str, np.ndarray]:
    "Measure to [n]."
    encoder = CachedVectors(vectors_of("builtin:minilm"), "builtin:minilm")
    a, b = (encoder.encode([r[side] for r in rows]) for side in ("sentence1", "sentence2"))
    return {"4-grams (selection.near_duplicate)": np.array([overlap(grams(r["sentence1"]), grams(r["sentence2"])) for r in rows]),
            "cosine": (a * b).sum(1)}


def share(found: int, of: int) -> str:
    "A share with its Wilson interval."
    if not of: return "–"
    low, high = wilson(found, of)
    return f"{found / of:.3f} [{low:.3f}, {high:.3f}]"


def main() -> None:
    if not DATA.is_file(): return print("not run: ../shared/data/stsb_ccbysa.jsonl.gz is not there")
    with gzip.open(DATA, "rt", encoding="utf-8") as file: rows = [json.loads(line) for line in file]
    rows = [r for r in rows if r["score"] >= REPEATS or r["score"] <= OTHERS]
    same = np.array([r["score"] >= REPEATS for r in rows])
    print(f"{same.sum()} repeats, {(~same).sum()} others\n\n| similarity | threshold | precision | recall | others called repeats |")
    print("|---|---:|---:|---:|---:|")
    for name, x in similarities(rows).items():
        for t in (0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95):
            hit, false = int((same & (x >= t)).sum()), int((~same & (x >= t)).sum())
            print(f"| {name} | {t:.2f} | {share(hit, hit + false)} | {share(hit, int(same.sum()))} | {share(false, int((~same).sum()))} |")


if __name__ == "__main__": main()
