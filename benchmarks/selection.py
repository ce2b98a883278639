"""Facility location among a hundred thousand candidates: seconds, memory, the graph's recall, and what it reaches of the exact objective.

Candidates are questions of SQuAD as our sentence model places them, each moved a little, ten or so times over (drawn crowds where
../shared/data is absent). The exact objective needs all similarities, so it is computed on the first 10,000 candidates.
Run: OMP_NUM_THREADS=2 python benchmarks/selection.py
"""
import gzip
import json
import os
import resource
import time
from pathlib import Path

import numpy as np

from distillery.retrieval.embed import CachedVectors, vectors_of
from distillery.selection.facility import Dense, covered_by, facility_order
from distillery.selection.graph import graph_recall, neighbour_graph

DATA = Path(__file__).resolve().parents[2] / "shared/data/squad/squad11_dev_qa.jsonl.gz"
ALL, PART, CHOSEN, MOVED = 100_000, 10_000, 1_000, 0.5


def unit(x: np.ndarray) -> np.ndarray: return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def seeds(rng: np.random.Generator) -> tuple[str, np.ndarray]:
    if not DATA.is_file(): return "drawn crowds", unit(rng.normal(size=(8000, 384)))
    with gzip.open(DATA, "rt", encoding="utf-8") as file: texts = sorted({json.loads(line)["question"] for line in file})
    return f"{len(texts):,} questions of SQuAD", unit(CachedVectors(vectors_of("builtin:minilm"), "builtin:minilm").encode(texts))


def candidates(rng: np.random.Generator) -> tuple[str, np.ndarray]:
    name, base = seeds(rng)
    chosen = base[rng.integers(0, len(base), ALL)]
    return name, unit(chosen + MOVED * rng.normal(size=chosen.shape).astype(np.float32) / np.sqrt(chosen.shape[1]))


def peak() -> float: return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # GiB, on Linux


def main() -> None:
    rng = np.random.default_rng(88)
    name, vectors = candidates(rng)
    before, began, used = peak(), time.perf_counter(), time.process_time()
    graph = neighbour_graph(vectors)
    built = time.perf_counter()
    chosen = facility_order(graph, CHOSEN)
    done, cpu, most = time.perf_counter(), time.process_time() - used, peak()
    print(f"{ALL:,} candidates of {name}, {os.environ.get('OMP_NUM_THREADS', 'all')} threads: graph {built - began:.1f} s, "
          f"{len(chosen):,} chosen in {done - built:.1f} s, together {done - began:.1f} s, "
          f"{cpu:.1f} s of CPU; "
          f"memory {most:.2f} GiB at most ({before:.2f} before)")
    print(f"recall of the 10 nearest: {graph_recall(vectors, graph):.3f}")
    part = vectors[:PART]
    exact, small = Dense(part), neighbour_graph(part)
    reach = lambda some: float(covered_by(exact, list(some)).sum())
    print(f"\nof the exact greedy objective, {PART:,} candidates (recall {graph_recall(part, small):.3f}):\n")
    print("| chosen | by the graph | at random |\n|---:|---:|---:|")
    for k in (100, CHOSEN):
        best = reach(facility_order(exact, k))
        print(f"| {k:,} | {reach(facility_order(small, k)) / best:.4f} | {reach(rng.permutation(PART)[:k]) / best:.4f} |")


if __name__ == "__main__": main()
