"""Indexes of 1,000 to 1,000,000 vectors: FAISS and usearch side by side, recall over latency, growth exponents, peak memory.

Vectors are windows of the texts in ../shared/data, embedded by the built-in embedder and kept in --cache; where a size asks for more,
turned copies at cosine .7 to a window. Exact search is held against plain FAISS flat over ten paired repeats.
Run: python benchmarks/retrieval_size.py [--sizes 1000 10000 100000 1000000] [--windows 20000] [--cache FILE]
"""
import argparse
import gzip
import json
import random
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from distillery.core.stats import mean_interval
from distillery.retrieval.device import TorchIndex, index_device
from distillery.retrieval.embed import Embedder
from distillery.retrieval.frontier import advised, break_even, exact_edge, grown, growth_exponents, measure_kind, on_frontier
from distillery.retrieval.kinds import KINDS, FlatIndex, IndexProblem, faiss_threads
from distillery.retrieval.queries import beir_queries
from distillery.retrieval.ties import rescored, tied_overlap

DATA = Path(__file__).resolve().parents[2] / "shared/data"
K, GOAL, MOST_GIB = 10, 1.2, 12.0


def windows(n: int, seed: int = 88) -> list[str]:
    "n distinct windows of 20 to 60 words, from SQuAD's passages and SQuALITY's stories."
    texts = list(beir_queries(DATA / "squad_retrieval").texts)
    with gzip.open(DATA / "squality/docs.jsonl.gz", "rt", encoding="utf-8") as lines:
        texts += [next(v for v in json.loads(line).values() if isinstance(v, str) and len(v) > 2000) for line in lines]
    words, rng, found = " ".join(texts).split(), random.Random(seed), dict[str, None]()
    while len(found) < n:
        at = rng.randrange(len(words) - 60)
        found[" ".join(words[at : at + rng.randint(20, 60)])] = None
    return list(found)


def seconds(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def against_plain(vectors: np.ndarray, queries: np.ndarray, repeats: int = 10) -> tuple[float, float, float]:
    "Time of our exact search over that of FAISS's flat index, in a batch: mean ratio and its interval on the log scale."
    with faiss_threads() as faiss:
        plain = faiss.IndexFlatIP(vectors.shape[1])
        plain.add(vectors)
        ours, logs = FlatIndex(vectors), list[float]()
        for i in range(repeats + 1):
            pair = [lambda: plain.search(queries, K), lambda: ours.search(queries, K)]
            took = [seconds(work) for work in (pair if i % 2 else pair[::-1])]
            if i: logs.append(float(np.log(took[1] / took[0])) * (1 if i % 2 else -1))
    e = mean_interval(logs, scale=None)
    return float(np.exp(e.mean)), float(np.exp(e.ci_low)), float(np.exp(e.ci_high))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10**3, 10**4, 10**5, 10**6])
    parser.add_argument("--windows", type=int, default=20_000, help="distinct windows that are embedded")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--cache", type=Path, help="keeps the windows' vectors; without it they are embedded each time")
    args = parser.parse_args()
    if not (DATA / "squad_retrieval").is_dir():
        print("skipped: ../shared/data is not there")
        return
    with tempfile.TemporaryDirectory() as work:
        embedder, texts = Embedder("builtin:minilm", args.cache or Path(work, "vectors.sqlite")), windows(args.windows)
        parts = list[np.ndarray]()
        for at in range(0, len(texts), 1000): parts.append(embedder.encode(texts[at : at + 1000], "document"))
        real, asked = np.concatenate(parts), random.Random(88).sample(beir_queries(DATA / "squad_retrieval").asked, args.queries)
        queries = embedder.encode(asked, "query")
    print(f"{len(real):,} distinct windows of {real.shape[1]} numbers, {len(queries)} questions, the first {K} of each")
    every = []
    for n in args.sizes:
        vectors = grown(real, n)
        edge = exact_edge(vectors, queries, K)
        mean, low, high = against_plain(vectors, queries)
        print(f"\n{n:,} vectors; exact over plain FAISS flat: {mean:.3f} [{low:.3f}, {high:.3f}], "
              f"goal at most {GOAL}: {'met' if high <= GOAL else 'MISSED'}")
        points = []
        for kind in args.kinds:
            try: points += measure_kind(kind, vectors, queries, K, edge)
            except IndexProblem as e: print(f"  {kind}: not measured: {e.message}")
        exact, front = next(p for p in points if p.kind == "flat"), {p.name for p in on_frontier(points)}
        for p in points:
            e = mean_interval(p.overlap)
            print(f"  {'*' if p.name in front else ' '} {p.name:14}{e.mean:7.3f} [{e.ci_low:.3f}, {e.ci_high:.3f}]{p.ms:10.3f} ms alone"
                  f"{p.ms_batch:10.4f} ms in a batch{p.build_s:9.1f} s to build{p.bytes / 1e6:9.1f} MB   "
                  f"pays after {break_even(exact, p):.3g} questions{'   ' + p.alarm if p.alarm else ''}", flush=True)
        for often in (10**3, 10**5, 10**7): print(f"  for {often:>10,} questions between two changes: {advised(points, often).name}")
        device, why = index_device()
        other = TorchIndex(vectors, device)
        places = other.search(queries, K)[1]
        same = (places == FlatIndex(vectors).search(queries, K)[1]).all(1).mean()
        kept = tied_overlap(places, rescored(vectors, queries, places), edge).mean()
        print(f"  torch on {device}: keeps {kept:.4f}, the same order for {same:.3f} of the questions; GPU: {why or 'measured'}")
        del other
        every += points
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print("\nGrowth exponents where .95 is kept: a question alone", {k: round(v, 2) for k, v in growth_exponents(every).items()})
    print("building", {k: round(v, 2) for k, v in growth_exponents(every, lambda p: p.build_s).items() if k != "flat"})
    print(f"peak memory {peak:.1f} GiB, goal at most {MOST_GIB:g}: {'met' if peak <= MOST_GIB else 'MISSED'}")


if __name__ == "__main__": main()
