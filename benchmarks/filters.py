"""Filters at work, in one process on one thread, on the built-in filter data (seed 88):
the static prefilter beside SentenceTransformer.encode on the same texts, with what it loses of recall; the frozen scorer beside plain
encode and scikit-learn; how the scorer's time grows; and 100,000 articles, junk out, through prefilter and scorer with 2 % passing.

The prefilter is also timed on articles that people wrote (../shared/data/onestopenglish.jsonl.gz), where made ones flatter it.
Run: python benchmarks/filters.py [--articles 100000] [--sizes 500,2000,8000]
"""
import argparse
import gzip
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from sklearn.linear_model import Ridge

from distillery.core.numbers import with_interval
from distillery.core.stats import mean_interval, paired_contrast
from distillery.filters.articles import Article, score_matrix
from distillery.filters.calibrate import Calibration
from distillery.filters.contract import weighted_scores
from distillery.filters.prefilter import Cascade, Prefilter, Signal, fit_signal
from distillery.filters.promise import Promise
from distillery.filters.scorer import ALPHAS, cluster_folds, fold_loss
from distillery.filters.world import WorldShape, make_world, world_contract
from distillery.retrieval.embed import load_model
from distillery.scoring.cascade import cascade_rows
from distillery.scoring.fit import fit_filter, open_encoder, read_for
from distillery.scoring.rows import fit_articles, row_writer

ONE = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS", "HF_HUB_OFFLINE"), "1")  # Read when libraries load
REAL = Path(__file__).resolve().parents[2] / "shared/data/onestopenglish.jsonl.gz"
LEARN, HELD, KEPT, PASSING, TIMED = 600, 1000, 0.2, 0.02, 256


def seconds(work: Callable[[], object], rounds: int = 1) -> float:
    "CPU time of the best round: on one thread that is wall time, without what else the machine does."
    best = float("inf")
    for _ in range(rounds):
        start = time.process_time()
        work()
        best = min(best, time.process_time() - start)
    return best


def built_in() -> tuple[object, list[Article], list[Article]]:
    "Contract with a frozen scorer, labelled articles and a pool without walls, both with their true scores in points."
    world = make_world(88, WorldShape(production=1))
    plain = world_contract(world)
    scored = lambda kind: [a.model_copy(update={"scores": world.truth[a.id]}) for a in world.sets[kind] if a.id not in world.walls]
    return plain.model_copy(update={"scorer": plain.scorer.model_copy(update={"kind": "frozen"})}), scored("labelled"), scored("pool")


def head(x: np.ndarray, articles: Sequence[Article], y: np.ndarray) -> Ridge:
    "Ridge regression, its strength from folds of topics: what anybody would put on vectors."
    loss = fold_loss(x, y if y.ndim == 1 else y.mean(1), cluster_folds([a.cluster for a in articles], 4))
    return Ridge(alpha=ALPHAS[int(loss.argmin())]).fit(x, y)


def kept_of(signal: np.ndarray, good: np.ndarray) -> np.ndarray:
    "Which good articles are among the share that is kept."
    return (signal >= np.quantile(signal, 1 - KEPT))[good]


def show(name: str, e: object) -> None: print(f"{name}: {with_interval(e)}")


def prefilter_rows(contract, labelled: Sequence[Article], pool: Sequence[Article]) -> Signal:
    "The table of the prefilter; its signal."
    encoder, model = open_encoder("static", "builtin:minilm"), load_model("builtin:minilm")
    encode = lambda texts: model.encode(list(texts), show_progress_bar=False, normalize_embeddings=True)
    train, held = labelled[:LEARN], pool[:HELD]
    texts, own = [a.full_text for a in held], [a.full_text for a in train]
    truth = lambda some: weighted_scores(contract, score_matrix(some))
    signal = fit_signal(encoder.encode(own), truth(train), [a.cluster for a in train], "weighted", dict(encoder.identity))
    slow = head(encode(own), train, truth(train))
    good, clusters = truth(held) >= contract.tier("medium").at, [a.cluster for a in held]
    cheap_time = seconds(lambda: signal.of(encoder.encode(texts)), 3) / len(texts)
    start = time.process_time()
    dear = slow.predict(encode(texts))
    kinds = {"built-in": (texts, cheap_time, (time.process_time() - start) / len(texts))}
    if REAL.is_file():
        real = [json.loads(line)["text"] for line in gzip.open(REAL, "rt")][:TIMED]
        fresh = open_encoder("static", "builtin:minilm")  # has seen no word of them
        once = seconds(lambda: signal.of(fresh.encode(real))) / len(real)
        kinds["OneStopEnglish, read once"] = (real, once, seconds(lambda: slow.predict(encode(real))) / len(real))
    print("| articles | n | characters | static prefilter, ms | encode and head, ms | times |\n|---|---|---|---|---|---|")
    for kind, (some, a, b) in kinds.items():
        print(f"| {kind} | {len(some):,} | {np.mean([len(t) for t in some]):,.0f} | {1e3 * a:.3f} | {1e3 * b:.1f} | {b / a:.0f} |")
    cheap = signal.of(encoder.encode(texts))
    names = [c for c, g in zip(clusters, good, strict=True) if g]
    print(f"\nrecall of the medium tier among the {KEPT:.0%} of {len(held):,} articles that are kept")
    show("static prefilter", mean_interval(kept_of(cheap, good), names))
    show("encode and head", mean_interval(kept_of(dear, good), names))
    lost = paired_contrast(kept_of(cheap, good).astype(float), kept_of(dear, good).astype(float), names)
    show("difference", lost)
    return signal


def scorer_rows(contract, labelled: Sequence[Article], pool: Sequence[Article], sizes: Sequence[int]) -> object:
    "The table of the scorer, and how its time grows; the scorer."
    train, held = labelled[:LEARN], pool[:HELD]
    scorer, model = fit_filter(contract, read_for(contract, train)), load_model("builtin:minilm")
    encode = lambda some: model.encode([a.full_text for a in some], show_progress_bar=False, normalize_embeddings=True)
    plain = head(encode(train), train, score_matrix(train))
    names, found, spent = [a.cluster for a in held], {}, {}
    readers = {"frozen scorer": lambda: scorer.predict(read_for(contract, held)), "encode and Ridge": lambda: plain.predict(encode(held))}
    for name, predict in readers.items():
        start = time.process_time()
        found[name] = np.abs(predict() - score_matrix(held)).mean(1)
        spent[name] = (time.process_time() - start) / len(held)
    print(f"\n| scorer | ms an article | MAE on {len(held):,} articles |\n|---|---|---|")
    for name, errors in found.items():
        print(f"| {name} | {1e3 * spent[name]:.1f} | {with_interval(mean_interval(errors, names, scale=None))} |")
    show("difference in MAE", paired_contrast(*found.values(), names))
    score = lambda n: [scorer.predict(read_for(contract, some)) for some in batches(islice(cycle(pool), n))]
    by_size = {n: seconds(partial(score, n)) for n in sizes}
    slope = np.polyfit(np.log(list(by_size)), np.log(list(by_size.values())), 1)[0]
    print("\nscorer alone: " + ", ".join(f"{n:,} in {s:.1f} s" for n, s in by_size.items()) + f"; exponent {slope:.3f}")
    return scorer


def batches(articles: Iterator[Article], size: int = 256) -> Iterator[list[Article]]:
    "Articles in lists."
    while some := list(islice(articles, size)): yield some


def resident() -> float:
    "Resident memory of this process in MiB."
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def long_run(contract, signal: Signal, scorer, pool: Sequence[Article], n: int) -> None:
    "A stream of n articles through junk, prefilter and scorer to a file, 2 % passing."
    encoder, names = open_encoder("static", "builtin:minilm"), list(contract.dimensions)
    seen = signal.of(encoder.encode([a.full_text for a in pool[:4000]]))
    promise = Promise(state="promised", sentence="", tier=0, target=0.95, delta=0.1, threshold=float(np.quantile(seen, 1 - PASSING)),
                      positives=0, positive_clusters=0, needed=45, labels=0)
    bare = lambda text: Article(id="-", cluster="-", text=text)
    cascade = Cascade(Prefilter(signal, promise), encoder, lambda texts: scorer.predict(read_for(contract, [bare(t) for t in texts])))
    plain = Calibration(dimensions=names, curves={d: {} for d in names}, gains={}, n=0, n_clusters=0, halves={"weighted": 1.0})
    rows = (a.model_copy(update={"id": str(i), "scores": {}}) for i, a in enumerate(islice(cycle(pool), n)))
    memory, start, left_out = dict[int, float](), time.perf_counter(), Counter()
    with tempfile.TemporaryDirectory() as work, row_writer(Path(work) / "scores.jsonl") as write:
        for i, row in enumerate(cascade_rows(contract, cascade, fit_articles(rows, contract, left_out), plain), 1):
            write(row)
            if i % 1000 == 0: memory[i] = resident()
    spent, later = time.perf_counter() - start, [m for i, m in memory.items() if i >= min(5000, n // 2)]
    cost, first, junk = cascade.cost, min(5000, n // 2), sum(left_out.values())
    print(f"\n{n:,} articles in {spent / 60:.1f} minutes ({n / spent:.0f} a second): {1 - cost.rejected / cost.articles:.1%} pass, "
          f"{junk:,} left out as junk; prefilter {cost.prefilter_seconds:.0f} s, scorer {cost.scorer_seconds:.0f} s")
    print(f"resident memory after the first {first:,}: {later[0]:.0f} MiB, then {min(later) / later[0] - 1:+.1%} "
          f"to {max(later) / later[0] - 1:+.1%}")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--articles", type=int, default=100_000)
    p.add_argument("--sizes", default="500,2000,8000")
    args = p.parse_args()
    contract, labelled, pool = built_in()
    signal = prefilter_rows(contract, labelled, pool)
    scorer = scorer_rows(contract, labelled, pool, [int(n) for n in args.sizes.split(",")])
    long_run(contract, signal, scorer, pool, args.articles)


if __name__ == "__main__":
    if {**os.environ, **ONE} == dict(os.environ): main()
    else: os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ONE})
