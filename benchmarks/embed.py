"""Encoding passages of mixed length: our int8 export beside SentenceTransformer.encode as it comes, in one process.
Run: python benchmarks/embed.py [--n 10000] [--data ../shared/data/squad_retrieval]"""
import argparse
import random
import tempfile
import time
from pathlib import Path

import numpy as np

from distillery.core.stats import paired_contrast
from distillery.retrieval.embed import Embedder, embedder_dir
from distillery.retrieval.export import export_embedder
from distillery.retrieval.queries import QuerySet, beir_queries
from distillery.retrieval.ranking import score_ranking
from distillery.retrieval.search import DenseSearcher

GOAL, MARGIN = 2.0, 0.005


def mixed_lengths(texts: list[str], n: int, seed: int = 88) -> list[str]:
    "n distinct texts of 8 to 250 words, cut from neighbouring passages; drawn evenly over short and long."
    rng, words = random.Random(seed), " ".join(texts).split()
    lengths = [round(8 * (250 / 8) ** rng.random()) for _ in range(n)]
    return [" ".join(words[start : start + size]) for size, start in ((s, rng.randrange(len(words) - 250)) for s in lengths)]


def seconds(work, rounds: int) -> float:
    "The fastest of a few rounds: other people's load only ever adds."
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def quality(made: QuerySet, spec: str, most: int, cache: Path) -> list[float]:
    "nDCG@10 of each question."
    hits = DenseSearcher(made.ids, made.texts, Embedder(spec, cache)).rank(made.asked[:most])
    return list(score_ranking(hits, made.query_ids[:most], made.qrels[:most], ["ndcg@10"])["ndcg@10"].values())


def main() -> None:
    root = Path(__file__).resolve().parents[2]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=10_000, help="texts to encode")
    parser.add_argument("--rounds", type=int, default=1, help="rounds of each side; the fastest counts")
    parser.add_argument("--queries", type=int, default=10**9, help="most questions of the quality comparison; 0 leaves it out")
    parser.add_argument("--data", type=Path, default=root / "shared/data/squad_retrieval", help="a judged set in BEIR's layout")
    args = parser.parse_args()
    if not args.data.is_dir():
        print(f"skipped: {args.data} is not there")
        return
    import torch
    from sentence_transformers import SentenceTransformer

    made = beir_queries(args.data)
    rng = random.Random(88)
    shuffled = QuerySet(made.name, made.ids, made.texts, tuple(rng.sample(made.queries, len(made.queries))))
    texts = mixed_lengths(list(made.texts), args.n)
    with tempfile.TemporaryDirectory() as work:
        spec, cache = f"onnx:{export_embedder('builtin:minilm', Path(work, 'int8'))}", Path(work, "vectors.sqlite")
        theirs, ours = SentenceTransformer(str(embedder_dir()), device="cpu"), Embedder(spec, cache)
        theirs.encode(texts[:8], show_progress_bar=False), ours.encode(texts[:8], fresh=True)
        slow = seconds(lambda: theirs.encode(texts, show_progress_bar=False), args.rounds)
        fast = seconds(lambda: ours.encode(texts, fresh=True), args.rounds)
        kept = seconds(lambda: ours.encode(texts), 1)
        again = seconds(lambda: Embedder(spec, cache).encode(texts), 1)
        print(f"{len(texts):,} texts, {np.mean([len(t.split()) for t in texts]):.0f} words in the mean, {torch.get_num_threads()} threads")
        print(f"{'SentenceTransformer.encode':32}{len(texts) / slow:10.1f} sentences/s")
        print(f"{'int8 export':32}{len(texts) / fast:10.1f} sentences/s{slow / fast:8.2f} x")
        print(f"{'int8 export, vectors kept':32}{len(texts) / kept:10.1f} sentences/s{slow / kept:8.2f} x")
        print(f"{'the second time':32}{len(texts) / again:10.1f} sentences/s{slow / again:8.0f} x, {again / fast:.1%} of the first time")
        print(f"goal: at least {GOAL:g} x: {'met' if slow / fast >= GOAL else 'MISSED'}")
        if not args.queries: return
        scores = [quality(shuffled, s, args.queries, cache) for s in (spec, "builtin:minilm")]
        c = paired_contrast(*scores, [q.cluster for q in shuffled.queries[: args.queries]], levels=("int8", "minilm"))
        print(f"nDCG@10: int8 {np.mean(scores[0]):.4f}, fp32 {np.mean(scores[1]):.4f}, difference {c.diff:+.4f} "
              f"(95 % interval {c.ci_low:+.4f} to {c.ci_high:+.4f}, {c.n_items:,} questions, {c.n_clusters} articles)")
        print(f"goal: not worse by {MARGIN:g}: {'met' if c.ci_low > -MARGIN else 'MISSED'}")


if __name__ == "__main__": main()
