"Selection: exact facility location, the graph beside it, whole families within a number, and planted pools for one method each."
import json
from types import SimpleNamespace

import numpy as np
import pytest

from distillery.core.config import ConfigError, load_config
from distillery.core.records import Pair
from distillery.core.stats import mean_interval
from distillery.core.store import read_jsonl, write_jsonl
from distillery.engine.source import open_source
from distillery.pairs.stages import pairs_stages
from distillery.selection.facility import Dense, covered_by, facility_order
from distillery.selection.graph import graph_recall, neighbour_graph
from distillery.selection.methods import BY_MEANING, METHODS
from distillery.selection.pool import Pool, k_center_order


def unit(x): return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def patient(table, k):
    "Greedy facility location that asks every candidate every time."
    best, chosen = np.zeros(len(table), np.float32), []
    for _ in range(k):
        gains = [float(np.maximum(row - best, 0).sum(dtype=np.float64)) if j not in chosen else -1.0 for j, row in enumerate(table)]
        chosen.append(int(np.argmax(gains)))
        best = np.maximum(best, table[chosen[-1]])
    return chosen


@pytest.mark.parametrize("seed", range(8))
def test_lazy_facility_location_is_equal_to_asking_every_candidate_every_time(seed):
    rng = np.random.default_rng(seed)
    vectors, weights = unit(rng.normal(size=(60, 6))), rng.random(60)
    vectors[7] = vectors[3]  # a tie
    for table in (Dense(vectors), Dense(vectors, weights)): assert facility_order(table, 60) == patient(table.table, 60)


def test_a_graph_of_all_neighbours_is_exact():
    vectors = unit(np.abs(np.random.default_rng(0).normal(size=(90, 5))))  # no similarity below 0
    graph, table = neighbour_graph(vectors, 90), Dense(vectors)
    assert graph_recall(vectors, graph) == 1
    same = covered_by(table, facility_order(graph, 9)).sum() / covered_by(table, facility_order(table, 9)).sum()
    assert same == pytest.approx(1, abs=1e-6)


def test_a_graph_of_a_few_neighbours_says_what_it_misses():
    vectors = unit(np.random.default_rng(0).normal(size=(3000, 32)))
    assert graph_recall(vectors, neighbour_graph(vectors, 4)) < graph_recall(vectors, neighbour_graph(vectors, 64)) <= 1


def test_k_center_is_within_twice_the_best_radius():
    vectors = unit(np.random.default_rng(3).normal(size=(40, 3)))
    away = np.arccos(np.clip(vectors @ vectors.T, -1, 1))
    radius = lambda some: away[:, list(some)].min(1).max()
    best = min(radius((a, b)) for a in range(40) for b in range(a))
    assert radius(k_center_order(Pool(np.ones(40), [""] * 40, np.zeros(40), vectors), 2)) <= 2 * best


FORMS = ("What is number {} of subject {}?", "Which value has item {} in topic {}?", "Tell the figure {} that {} shows.")


def pairs(n=60):
    made = []
    for i in range(n):
        kind = "refusal" if i % 6 == 0 else "answer"
        scores = {} if kind == "refusal" else {"evidence": 1.0, "relevance": 0.2 + 0.7 * (i * 7 % n) / n}
        made += [Pair(id=f"p{i}-{j}", doc_id=f"d{i // 4}", chunk_id=f"c{i}", family_id=f"f{i}", category=f"k{i % 3}", difficulty="easy",
                      kind=kind, question=FORMS[j].format(i, i % 5), answer=f"Value {i} here", teacher="t",
                      scores=scores) for j in range(1 + i % 3)]
    return made


def chosen(tmp_path, method, most=40):
    "What the stage of a method keeps."
    config = load_config(preset="handbook", overrides={"selection.method": method, "selection.max_pairs": most})
    stage = next(s for s in pairs_stages(open_source(None, None, "builtin"), config, tmp_path) if s.name == "select")
    write_jsonl(tmp_path / "pairs.jsonl", pairs())
    (tmp_path / "chunks.jsonl").write_text("")
    run = stage.run
    if method in BY_MEANING:
        counts = lambda spec, texts, *how: np.array([[t.count(str(d)) for d in range(10)] + [1] for t in texts], np.float32)
        run = lambda job: stage.run.func(job, **{**stage.run.keywords, "vectors": counts})
    run(SimpleNamespace(config=config, needs={"judge": tmp_path, "documents": tmp_path}, out=tmp_path))
    reasons = {json.loads(line)["reason"] for line in (tmp_path / "dropped.jsonl").read_text("utf-8").splitlines()}
    return read_jsonl(tmp_path / "selected.jsonl", Pair), reasons


@pytest.mark.parametrize("method", ["threshold", *(m for m in METHODS if m != "random")])
def test_every_method_keeps_whole_families_the_share_of_refusals_and_the_number(tmp_path, method):
    kept, reasons = chosen(tmp_path, method)
    sizes = {p.family_id: sum(q.family_id == p.family_id for q in pairs()) for p in kept}
    assert 36 <= len(kept) <= 40
    assert all(sum(q.family_id == f for q in kept) == n for f, n in sizes.items())
    if method != "threshold":
        assert reasons == {f"not chosen by {method}"}
        assert abs(sum(p.kind == "refusal" for p in kept) / len(kept) - sum(p.kind == "refusal" for p in pairs()) / len(pairs())) < 0.06
        assert {p.id for p in kept} != {p.id for p in chosen(tmp_path, "threshold")[0]}


def test_a_method_without_a_number_is_refused_before_anything_is_asked(tmp_path):
    config = load_config(overrides={"selection.method": "facility"})
    with pytest.raises(ConfigError, match=r"selection\.method: facility") as e:
        pairs_stages(open_source(None, None, None), config, tmp_path)
    assert e.value.fix == "set selection.max_pairs"


def planted(seed, *, zipf=0.0, noise=0.0, topics=40, n=1200, tests=600, blur=1.6):
    "Questions about topics, as vectors: how often each is asked, how many answers are wrong; quality tells those, a little blurred."
    rng = np.random.default_rng(seed)
    centres, share = rng.normal(size=(topics, 16)), 1 / np.arange(1, topics + 1) ** zipf
    draw = lambda of, p: (at := rng.choice(topics, of, p=p / p.sum()), unit(centres[at] + blur * rng.normal(size=(of, 16))))
    (truth, vectors), (asked, questions) = draw(n, share), draw(tests, np.ones(topics))
    wrong = rng.random(n) < noise
    told = np.where(wrong, (truth + rng.integers(1, topics, n)) % topics, truth)
    quality = np.clip(rng.normal(np.where(wrong, .35, .65), .15), 0, 1)
    return Pool(quality, [""] * n, rng.random(n), vectors), told, questions, asked


def reader(pool, told, questions, asked, picked, near=5):
    "Share of questions that the nearest chosen neighbours answer, by vote."
    likeness = questions @ pool.vectors[picked].T
    best = np.argpartition(-likeness, near, axis=1)[:, :near]
    votes = np.zeros((len(asked), told.max() + 1))
    for c in best.T: np.add.at(votes, (np.arange(len(asked)), told[np.array(picked)][c]), likeness[np.arange(len(asked)), c])
    return float(np.mean(votes.argmax(1) == asked))


def gains(method, seeds=20, budget=240, **world):
    "Gain over a random choice of the same number, with its interval over seeds."
    diffs = []
    for seed in range(seeds):
        made = planted(seed, **world)
        pool = made[0]
        diffs.append(reader(*made, METHODS[method](pool, budget)) - reader(*made, METHODS["random"](pool, budget)))
    return mean_interval(np.array(diffs), [str(s) for s in range(seeds)], 0.95, method, None)


@pytest.mark.slow
def test_planted_redundancy_is_for_diversity_planted_noise_for_quality_and_neither_for_nobody():
    worlds = {"redundancy": {"zipf": 1.2}, "noise": {"noise": 0.4}, "neither": {"topics": 6, "blur": 0.8}}
    told = {(name, method): gains(method, **world) for name, world in worlds.items() for method in ("top-k", "facility", "blend")}
    for key, e in told.items(): print(key, f"{e.mean:+.3f} [{e.ci_low:+.3f}, {e.ci_high:+.3f}]")
    assert told["redundancy", "facility"].ci_low > 0
    assert told["redundancy", "facility"].ci_low > told["redundancy", "top-k"].ci_high
    assert told["noise", "top-k"].ci_low > 0
    assert told["noise", "top-k"].ci_low > told["noise", "facility"].ci_high
    for method in ("top-k", "facility"): assert -0.03 < told["neither", method].ci_low <= told["neither", method].ci_high < 0.03
