"""What each measure of a pair knows of people's ratings: SQuALITY's 150 rated answers, over three systems and within one.

A composite is fitted (ridge regression on ranks) to the ratings of all stories but one and held against token F1, the best of three
references, on that one; the difference leaves stories out for its interval. Needs ../shared/data/squality.
Run: python benchmarks/measures.py
"""
import gzip
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from scipy.stats import rankdata

from distillery.core.metrics import token_f1
from distillery.core.numbers import with_interval
from distillery.core.records import Estimate, Pair
from distillery.filters.quality import FISHER, STRAIGHT, jackknife_interval, spearman, spearman_within
from distillery.questions.measures import measure_pairs
from distillery.retrieval.embed import CachedVectors, vectors_of

HERE = Path(__file__).resolve().parents[2] / "shared/data/squality"
BEST, COMPOSITE, RIDGE = "token F1, best of three", "composite, story left out", 10.0


def lines(path: Path) -> Iterable[dict]:
    with gzip.open(path, "rt", encoding="utf-8") as file: yield from map(json.loads, file)


def measured(rows: list[dict], stories: dict[str, str]) -> dict[str, np.ndarray]:
    "Measure to [n]; what does not apply to an answer is the mean of the others."
    pairs = [Pair(id=str(i), doc_id=r["doc_id"], chunk_id=r["doc_id"], family_id=str(i), category="c", difficulty="d",
                  question=r["question"], answer=r["response"] or "-", teacher=r["system"]) for i, r in enumerate(rows)]
    encoder = CachedVectors(vectors_of("builtin:minilm"), "builtin:minilm")
    found = measure_pairs(pairs, stories, lambda a: 180 <= len(a) <= 4000, encoder)
    best = np.array([max(token_f1(r["response"], reference) for reference in r["references"]) for r in rows])
    return {**{name: np.where(np.isnan(x), np.nanmean(x), x) for name, x in found.raw.items()}, BEST: best}


def composite(x: np.ndarray, people: np.ndarray, story: np.ndarray) -> np.ndarray:
    "Predicted ratings [n], each from the other stories."
    ranks = np.column_stack([(rankdata(c) - len(c) / 2) / len(c) for c in x.T])
    out = np.zeros(len(people))
    for s in np.unique(story):
        there = story != s
        centre, mean = ranks[there].mean(0), people[there].mean()
        a = ranks[there] - centre
        weights = np.linalg.solve(a.T @ a + RIDGE * np.eye(a.shape[1]) / 12, a.T @ (people[there] - mean))
        out[~there] = mean + (ranks[~there] - centre) @ weights
    return out


def told(e: Estimate | None) -> str: return with_interval(e) if e else "cannot be told"


def main() -> None:
    if not HERE.is_dir(): return print("not run: ../shared/data/squality is not there")
    rows = list(lines(next(HERE.glob("human_ratings*"))))
    stories = {r["doc_id"]: r["text"] for r in lines(next(HERE.glob("docs*")))}
    people, system, story = (np.array([r[k] for r in rows]) for k in ("overall", "system", "doc_id"))
    found, ones = measured(rows, stories), np.ones(len(rows))
    found[COMPOSITE] = composite(np.column_stack(list(found.values())), people, story)
    print(f"{len(rows)} answers, {len(set(story))} stories; Spearman with people's overall rating, 95 % intervals over stories\n")
    print("| measure | over all systems | within a system |\n|---|---|---|")
    for name, x in found.items():
        over = jackknife_interval(lambda w, x=x: spearman(people, x, w), ones, story.tolist(), bend=FISHER)
        within = jackknife_interval(lambda w, x=x: spearman_within(people, x, system, w), ones, story.tolist(), bend=FISHER)
        print(f"| {name} | {told(over)} | {told(within)} |")
    for name, of in (("over all systems", spearman), ("within a system", lambda p, x, w: spearman_within(p, x, system, w))):
        gained = lambda w, of=of: of(people, found[COMPOSITE], w) - of(people, found[BEST], w)
        gain = jackknife_interval(gained, ones, story.tolist(), bend=STRAIGHT)
        print(f"\n{COMPOSITE} less {BEST}, {name}: {told(gain)}")


if __name__ == "__main__": main()
