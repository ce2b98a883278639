"""Every embedder on SQuAD's questions: recall@1 and nDCG@10 with intervals by article, what each loses against the base, and its speed.

Lengths are tuned on half of the articles and everything is measured on the other half; BM25 and the base on all of them, too.
Speed: ten paired repeats against SentenceTransformer.encode on passages of mixed length; the lower end of the ratio's interval counts.
Run: python benchmarks/embedders.py [--mpnet FOLDER] [--server http://HOST/v1#MODEL] [--texts 600] [--cache FILE]
"""
import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from embed import mixed_lengths

from distillery.core.stats import mean_interval, paired_contrast
from distillery.filters.embedders import open_embedder
from distillery.retrieval.embed import load_sentences
from distillery.retrieval.export import export_embedder
from distillery.retrieval.queries import beir_queries
from distillery.retrieval.ranking import first_part, score_ranking
from distillery.retrieval.search import Bm25Searcher, DenseSearcher, HybridSearcher, WeightedSearcher
from distillery.retrieval.shorter import pca_matrix, tuned_matrix, write_head

DATA = Path(__file__).resolve().parents[2] / "shared/data/squad_retrieval"
GOALS = {"int8": 2.0, "static": 50.0}
MPNET = "python benchmarks/embedders.py --mpnet FOLDER"


def ratio(theirs, ours, texts: list[str], repeats: int = 10) -> tuple[float, float, float]:
    "How many times as fast: mean of paired repeats and its interval, on the log scale."
    logs = list[float]()
    for i in range(repeats + 1):
        took = dict[int, float]()
        for which in ((0, 1) if i % 2 else (1, 0)):
            start = time.perf_counter()
            (theirs, ours)[which](texts)
            took[which] = time.perf_counter() - start
        if i: logs.append(float(np.log(took[0] / took[1])))
    e = mean_interval(logs, scale=None)
    return float(np.exp(e.mean)), float(np.exp(e.ci_low)), float(np.exp(e.ci_high))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mpnet", help="a folder with all-mpnet-base-v2, or another sentence model")
    parser.add_argument("--server", help="http://HOST:PORT/v1#MODEL")
    parser.add_argument("--texts", type=int, default=600, help="texts of the comparison of speed; 0 leaves it out")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--cache", type=Path, help="keeps vectors")
    args = parser.parse_args()
    if not DATA.is_dir():
        print("skipped: ../shared/data/squad_retrieval is not there")
        return
    made = beir_queries(DATA)
    half = first_part(q.cluster for q in made.queries)
    train, test = (replace(made, queries=tuple(q for q in made.queries if (q.cluster in half) == side)) for side in (True, False))
    with tempfile.TemporaryDirectory() as work:
        cache = args.cache or Path(work, "vectors.sqlite")
        base, where = open_embedder("builtin:minilm", cache), dict(zip(made.ids, range(len(made.ids)), strict=True))
        vectors = base.encode(made.texts, "document")
        answers = vectors[[where[next(iter(q.relevant))] for q in train.queries]]
        heads = {"pca": pca_matrix(vectors), "head": tuned_matrix(base.encode(train.asked, "query"), answers)}
        for name, matrix in heads.items(): write_head(Path(work, name), matrix, base.spec, base.identity["digest"], name)
        specs = {"minilm": base.spec, "onnx fp32": f"onnx:{export_embedder('builtin:minilm', Path(work, 'fp32'), 'fp32')}",
                 "int8": f"onnx:{export_embedder('builtin:minilm', Path(work, 'int8'))}", "static": "static:builtin:minilm",
                 **{f"cut {m}": f"cut:{m}:builtin:minilm" for m in (256, 128, 64)},
                 **{f"{name} {m}": f"head:{m}:{Path(work, name)}" for name in heads for m in (256, 128, 64)},
                 **({"mpnet": args.mpnet} if args.mpnet else {}), **({"server": args.server} if args.server else {})}
        embedders = {name: open_embedder(spec, cache) for name, spec in specs.items()}
        searchers = {name: DenseSearcher(made.ids, made.texts, e) for name, e in embedders.items()}
        searchers |= {"bm25": Bm25Searcher(made.ids, made.texts)}
        searchers |= {"hybrid, ranks": HybridSearcher((searchers["bm25"], searchers["minilm"])),
                      "hybrid, weighted": WeightedSearcher((searchers["bm25"], searchers["minilm"]))}
        whole = score_ranking(searchers["bm25"].rank(made.asked, 10), made.query_ids, made.qrels, ["recall@1", "ndcg@10"])
        print(f"BM25 on all {len(made.queries):,} questions: recall@1 {np.mean([*whole['recall@1'].values()]):.3f}, "
              f"nDCG@10 {np.mean([*whole['ndcg@10'].values()]):.3f} (.766 and .859 wanted, ±.002 and ±.005)")
        clusters = [q.cluster for q in test.queries]
        print(f"\n{len(test.queries):,} questions about {len(set(clusters))} articles that tuned nothing; differences to minilm")
        found = {name: score_ranking(s.rank(test.asked, 10), test.query_ids, test.qrels, ["recall@1", "ndcg@10"])
                 for name, s in searchers.items()}
        of = lambda name, metric: list(found[name][metric].values())
        for name in searchers:
            r, g = (mean_interval(of(name, m), clusters) for m in ("recall@1", "ndcg@10"))
            c = paired_contrast(of(name, "ndcg@10"), of("minilm", "ndcg@10"), clusters) if name != "minilm" else None
            apart = f"   {c.diff:+.3f} [{c.ci_low:+.3f}, {c.ci_high:+.3f}]" if c else ""
            print(f"  {name:18} recall@1 {r.mean:.3f} [{r.ci_low:.3f}, {r.ci_high:.3f}]   "
                  f"nDCG@10 {g.mean:.3f} [{g.ci_low:.3f}, {g.ci_high:.3f}]{apart}", flush=True)
        if not args.mpnet: print(f"  all-mpnet-base-v2  not asked: needs weights; {MPNET}")
        if not args.texts: return
        theirs, texts = load_sentences("builtin:minilm"), mixed_lengths(list(made.texts), args.texts)
        usual = lambda t: theirs.encode(t, show_progress_bar=False)
        print(f"\n{len(texts)} texts, {args.repeats} paired repeats against SentenceTransformer.encode")
        for name in ("minilm", "onnx fp32", "int8", "static", "head 128"):
            mine = open_embedder(specs[name])
            mean, low, high = ratio(usual, lambda t, e=mine: e.encode(t, "", True), texts, args.repeats)
            c = paired_contrast(of(name, "ndcg@10"), of("minilm", "ndcg@10"), clusters)
            goal = f", goal {GOALS[name]:g}: {'met' if low >= GOALS[name] else 'MISSED'}" if name in GOALS else ""
            print(f"  {name:12}{mean:8.2f} x [{low:.2f}, {high:.2f}]   nDCG@10 {c.diff:+.3f} "
                  f"[{c.ci_low:+.3f}, {c.ci_high:+.3f}]{goal}", flush=True)
        kept = open_embedder(specs["int8"], cache)
        kept.encode(texts)
        mean, low, high = ratio(usual, kept.encode, texts, args.repeats)
        print(f"  {'second time':12}{mean:8.1f} x [{low:.1f}, {high:.1f}]")


if __name__ == "__main__": main()
