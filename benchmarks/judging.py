"""Judging pairs beside SentenceTransformer.encode on the same distinct texts, in one process: paired repeats, the order changing each time.
Run: OMP_NUM_THREADS=1 python benchmarks/judging.py [--pages 48] [--repeats 10]"""
import argparse
import math
import tempfile
import time
from pathlib import Path

import numpy as np
from growth import write_pages
from scipy.special import stdtrit

GOAL = 2.0


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pages", type=int, default=48, help="pages of the handbook that the pairs are about")
    parser.add_argument("--repeats", type=int, default=10, help="paired repeats")
    args = parser.parse_args()
    import torch
    from distillery.pairs.judge import answering_text, score_pairs
    from distillery.retrieval.embed import Embedder, load_model

    with tempfile.TemporaryDirectory() as work: pairs, chunks = made_pairs(Path(work), args.pages)
    by_id, theirs, ratios = {c.chunk_id: c for c in chunks}, load_model("builtin:minilm"), list[float]()
    sides = [(p.question, answering_text(p, by_id[p.chunk_id])) for p in pairs if p.kind == "answer"]
    texts = list(dict.fromkeys(text for side in sides for text in side))
    judge, encode = lambda: score_pairs(pairs, chunks, Embedder()), lambda: theirs.encode(texts, show_progress_bar=False)
    near = np.abs(Embedder().encode(texts) - np.asarray(encode())).max()
    for i in range(args.repeats):
        took = dict[str, float]()
        for name, work in (("judge", judge), ("encode", encode))[:: 1 if i % 2 else -1]:
            began = time.perf_counter(), time.process_time()
            work()
            took[name] = time.process_time() - began[1] if torch.get_num_threads() == 1 else time.perf_counter() - began[0]
        ratios.append(took["encode"] / took["judge"])
    logs = np.log(ratios)
    half = stdtrit(len(logs) - 1, 0.975) * logs.std(ddof=1) / math.sqrt(len(logs))
    mean, low, high = (math.exp(x) for x in (logs.mean(), logs.mean() - half, logs.mean() + half))
    print(f"{len(pairs):,} pairs, {len(texts):,} distinct texts, {torch.get_num_threads()} threads; vectors differ by at most {near:.1e}")
    print(f"judging at {mean:.2f} times SentenceTransformer.encode (95 % interval {low:.2f} to {high:.2f}, {len(ratios)} paired repeats)")
    print(f"goal: the lower end at least {GOAL:g}: {'met' if low >= GOAL else 'MISSED'}")


if __name__ == "__main__": main()
