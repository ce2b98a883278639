"""Judging pairs beside SentenceTransformer.encode on the same distinct texts, in one process: paired repeats, the order changing each time.
Judging as it ships (half precision where the CPU has matrix tiles) and in full precision; what half precision changes of scores and
verdicts; and the wall of full precision: the matrix products alone.
Run: OMP_NUM_THREADS=1 python benchmarks/judging.py [--pages 48] [--repeats 10]"""
import argparse
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from growth import write_pages
from scipy.special import stdtrit
from scipy.stats import rankdata

GOAL = 2.0
APART = 0.005  # most that a cosine may differ from full precision


def made_pairs(folder: Path, pages: int):
    "Pairs and passages of a drawn handbook."
    from distillery.core.config import load_config
    from distillery.core.files import read_jsonl
    from distillery.core.records import Chunk, Pair
    from distillery.engine.plan import Plan
    from distillery.engine.source import open_source
    from distillery.pairs.stages import pairs_stages

    write_pages(folder / "docs", pages)
    config = load_config(preset="technical-docs")
    done = Plan(pairs_stages(open_source(folder / "docs", None, None), config, folder / "cache")[:2], config, folder / "cache").run()
    return read_jsonl(done["generate"].path / "pairs.jsonl", Pair), read_jsonl(done["documents"].path / "chunks.jsonl", Chunk)


def seconds(work: Callable[[], object]) -> float:
    "CPU time on one thread, else the clock's."
    import torch
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    began = clock()
    work()
    return clock() - began


def paired(works: dict[str, Callable[[], object]], repeats: int) -> dict[str, np.ndarray]:
    "Seconds of each, one after the other in every repeat."
    took = {name: list[float]() for name in works}
    for i in range(repeats):
        for name in list(works)[:: 1 if i % 2 else -1]: took[name].append(seconds(works[name]))
    return {name: np.array(some) for name, some in took.items()}


def ratio(over: np.ndarray, under: np.ndarray) -> tuple[float, float, float]:
    "Geometric mean of paired ratios with its 95 % interval."
    logs = np.log(over / under)
    half = stdtrit(len(logs) - 1, 0.975) * logs.std(ddof=1) / math.sqrt(len(logs))
    return tuple(math.exp(x) for x in (logs.mean(), logs.mean() - half, logs.mean() + half))


def bare_products(encoder, texts: list[str]) -> tuple[Callable[[], object], float]:
    "The linear layers' products in full precision on as many tokens, nothing else, and their floating-point operations."
    import torch
    tokens, size = sum(map(len, encoder.ids(texts))), 512
    weights = [w for layer in encoder.layers for w, _ in (layer[0], layer[1], layer[3], layer[4])]
    rows = {w.shape[1]: torch.randn(size, w.shape[1]) for w in weights}

    def work() -> None:
        with torch.inference_mode():
            for _ in range(-(-tokens // size)):
                for w in weights: torch.nn.functional.linear(rows[w.shape[1]], w)
    return work, 2.0 * -(-tokens // size) * size * sum(w.numel() for w in weights)


def auc(right: np.ndarray, wrong: np.ndarray) -> float:
    "Share of (right, wrong) pairs in order."
    ranks = rankdata(np.concatenate([right, wrong]))[: len(right)]
    return float((ranks.sum() - len(right) * (len(right) + 1) / 2) / len(right) / len(wrong))


def compare(sides: list[tuple[str, str]], floor: float) -> bool:
    "Print what half precision changes; true where every cosine is near."
    from distillery.retrieval.embed import Embedder

    texts = list(dict.fromkeys(text for side in sides for text in side))
    row = {text: i for i, text in enumerate(texts)}
    asked, told = (np.array([row[side[k]] for side in sides]) for k in (0, 1))
    right, wrong = dict[bool, np.ndarray](), dict[bool, np.ndarray]()
    for half in (False, True):
        vectors = Embedder(half=half).encode(texts)
        right[half], wrong[half] = ((vectors[asked] * vectors[t]).sum(1) for t in (told, np.roll(told, len(told) // 2)))
    far = max(np.abs(some[True] - some[False]).max() for some in (right, wrong))
    turns = lambda limit: np.mean(np.concatenate([(some[True] < limit) != (some[False] < limit) for some in (right, wrong)]))
    turned = [float(turns(limit)) for limit in (floor, 0.3, 0.5)]
    alike = np.corrcoef(right[True], right[False])[0, 1]
    print(f"half precision: cosines differ by at most {far:.4f}, correlation {alike:.6f}; "
          f"right before wrong answers {auc(right[True], wrong[True]):.4f} (full {auc(right[False], wrong[False]):.4f})")
    print(f"verdicts turned, of {2 * len(sides):,} right and wrong ones: {turned[0]:.2%} at the floor of {floor:g}, "
          f"{turned[1]:.2%} at 0.3, {turned[2]:.2%} at 0.5")
    return far <= APART


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pages", type=int, default=48, help="pages of the handbook that the pairs are about")
    parser.add_argument("--repeats", type=int, default=10, help="paired repeats")
    parser.add_argument("--pairs", type=int, default=0, help="the first so many pairs; 0 takes all")
    args = parser.parse_args()
    import torch
    from distillery.core.config import load_config
    from distillery.pairs.judge import answering_text, score_pairs
    from distillery.retrieval.embed import Embedder, load_model, packed_model
    from distillery.retrieval.packed import has_bf16_tiles

    with tempfile.TemporaryDirectory() as work: pairs, chunks = made_pairs(Path(work), args.pages)
    pairs = pairs[: args.pairs or None]
    by_id, theirs = {c.chunk_id: c for c in chunks}, load_model("builtin:minilm")
    sides = [(p.question, answering_text(p, by_id[p.chunk_id])) for p in pairs if p.kind == "answer"]
    texts = list(dict.fromkeys(text for side in sides for text in side))
    products, operations = bare_products(packed_model("builtin:minilm"), texts)
    shipped = "judging" if has_bf16_tiles() else "judging in half precision"
    works = {"encode": lambda: theirs.encode(texts, show_progress_bar=False), "full": lambda: score_pairs(pairs, chunks, Embedder()),
             "products": products, shipped: lambda: score_pairs(pairs, chunks, Embedder(half=True))}
    if not has_bf16_tiles(): works["judging"] = works["full"]
    near = np.abs(Embedder().encode(texts) - np.asarray(works["encode"]())).max()
    score_pairs(pairs[:50], chunks, Embedder(half=True))  # loads
    took = paired(works, args.repeats)
    print(f"{len(pairs):,} pairs, {len(texts):,} distinct texts, {torch.get_num_threads()} threads; "
          f"vectors in full precision differ by at most {near:.1e}")
    said = {name: ratio(took["encode"], took[name]) for name in works if name != "encode"}
    for name, (mean, low, high) in said.items():
        words = {"full": "judging in full precision", "products": "the bare products in full precision"}.get(name, name)
        interval = f"95 % interval {low:.2f} to {high:.2f}, {args.repeats} paired repeats"
        print(f"{words}: {mean:.2f} times SentenceTransformer.encode ({interval})")
    print(f"the bare products: {operations / np.median(took['products']) / 1e9:.0f} GFLOP/s")
    close = compare(sides, load_config().selection.min_relevance)
    met = said["judging"][1] >= GOAL and close
    print(f"goal: the lower end of judging at least {GOAL:g}, cosines within {APART:g} of full precision: {'met' if met else 'MISSED'}")


if __name__ == "__main__": main()
