"Prefilters: promises over redrawn pools whose truth is known, the labels that a refusal names, rules beside them, and the cascade."
from functools import cache
from itertools import product
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy.optimize import brentq
from scipy.stats import binom, norm

from distillery.core.errors import DistilleryError
from distillery.filters.contract import weighted_scores
from distillery.filters.prefilter import Cascade, Prefilter, Signal, fit_prefilter, fit_signal, load_prefilter, promise_side, save_prefilter
from distillery.filters.promise import (Promise, clusters_needed, compare_rules, labels_needed, make_promise, misses_allowed,
                                        safe_threshold, worst_of_clusters)
from distillery.filters.static import MixedEncoder, StaticEncoder, static_folder
from distillery.filters.world import WorldShape, make_world, world_contract

TARGET, DELTA, LABELLED = 0.95, 0.1, 8  # of a cluster
LIKENESS = (0.0, 0.3, 0.6)


class Pool:
    """Articles whose true score and signal are normal, alike within clusters by `icc`, and correlate by `rho`.
    What a single article is does not hang on the likeness, so recall and rejection at a threshold are known exactly."""

    def __init__(self, prevalence: float, icc: float, rho: float = 0.9, labelled: int = LABELLED):
        self.prevalence, self.icc, self.rho, self.tier, self.labelled = prevalence, icc, rho, float(norm.isf(prevalence)), labelled
        self.grid = np.linspace(-4, 4, 321)
        self.recalls = self._recall(self.grid)

    def _recall(self, threshold: np.ndarray) -> np.ndarray:
        true = norm.isf(self.prevalence * (np.arange(2000) + 0.5) / 2000)  # of good articles, at equal steps of probability
        return norm.sf((np.asarray(threshold)[..., None] - self.rho * true) / (1 - self.rho**2) ** 0.5).mean(-1)

    def recall(self, threshold): return np.interp(threshold, self.grid, self.recalls)

    def knows(self, target: float) -> float:
        "Threshold of someone who knows the truth."
        return brentq(lambda t: float(self._recall(t)) - target, -6, 6)

    def clusters(self, rng, n: int) -> tuple[np.ndarray, np.ndarray]:
        "Signal and true score [n, labelled] of n clusters."
        def alike():
            return rng.normal(0, self.icc**0.5, (n, 1)) + rng.normal(0, (1 - self.icc) ** 0.5, (n, self.labelled))

        true = alike()
        return self.rho * true + (1 - self.rho**2) ** 0.5 * alike(), true

    def with_good(self, rng, n: int) -> tuple[np.ndarray, np.ndarray]:
        "The same of clusters that hold a good article."
        signal, true = self.clusters(rng, 64)
        while (has := (true >= self.tier).any(1)).sum() < n:
            more = self.clusters(rng, 4 * n)
            signal, true = np.concatenate([signal, more[0]]), np.concatenate([true, more[1]])
        return signal[has][:n], true[has][:n]


@cache
def pool(prevalence: float, icc: float, rho: float = 0.9) -> Pool: return Pool(prevalence, icc, rho)


def certified(made: Pool, rng, good_clusters: int, target: float = TARGET) -> float | None:
    signal, true = made.with_good(rng, good_clusters)
    good = true >= made.tier
    owner = np.broadcast_to(np.arange(good_clusters)[:, None], good.shape)
    return safe_threshold(signal[good], owner[good], target, DELTA)


def few(redraws: int) -> float:
    "Share of broken promises that chance allows: delta and three Monte Carlo errors."
    return DELTA + 3 * (DELTA * (1 - DELTA) / redraws) ** 0.5


def broken_and_efficient(made: Pool, redraws: int, good_clusters: int, seed: int) -> tuple[float, float, float]:
    "Share of redraws below target; mean rejection, as a share of what the truth rejects; share that rejects 30 % or more."
    rng = np.random.default_rng(seed)
    found = np.array([certified(made, rng, good_clusters) for _ in range(redraws)])
    rejected = norm.cdf(found)
    efficient = rejected.mean() / norm.cdf(made.knows(TARGET))
    return float((made.recall(found) < TARGET).mean()), float(efficient), float((rejected >= 0.3).mean())


# The numbers of the rule

def test_least_clusters():
    assert (clusters_needed(0.95, 0.1), clusters_needed(0.99, 0.1)) == (45, 230)
    for target, delta in product((0.9, 0.95, 0.99), (0.05, 0.1)):
        least = clusters_needed(target, delta)
        assert misses_allowed(least, target, delta) == 0
        assert misses_allowed(least - 1, target, delta) == -1


@given(st.integers(1, 900), st.sampled_from((0.9, 0.95, 0.99)), st.sampled_from((0.05, 0.1, 0.2)))
@settings(max_examples=60)
def test_misses_are_those_of_the_binomial(clusters, target, delta):
    lost = misses_allowed(clusters, target, delta)
    if lost >= 0: assert binom.cdf(lost, clusters, 1 - target) <= delta + 1e-9
    assert binom.cdf(lost + 1, clusters, 1 - target) > delta


@given(st.lists(st.tuples(st.integers(0, 60), st.floats(-9, 9)), min_size=1, max_size=200))
@settings(max_examples=60)
def test_a_threshold_is_that_of_the_worst_or_above(rows):
    names, signal = [f"c{c}" for c, _ in rows], np.array([s for _, s in rows])
    threshold = safe_threshold(signal, names)
    lost = {c for c, s in zip(names, signal, strict=True) if threshold is not None and s < threshold}
    assert len(worst_of_clusters(signal, names)) == len(set(names))
    if threshold is None: assert len(set(names)) < 45
    else: assert threshold >= worst_of_clusters(signal, names)[misses_allowed(len(set(names)))]
    if threshold is not None and len(names) == len(set(names)): assert len(lost) <= misses_allowed(len(names))


def test_odd_targets_are_refused():
    for target, delta in ((1.0, 0.1), (0.95, 0.0), (0.0, 0.1)):
        with pytest.raises(DistilleryError, match="both between 0 and 1"): clusters_needed(target, delta)


# The promise holds

@pytest.mark.parametrize("icc", [0.0, 0.6])
def test_the_promise_is_kept(icc):
    below, efficient, _ = broken_and_efficient(pool(0.1, icc), 200, 80, 88)
    assert below <= few(200)
    assert efficient >= 0.8


@pytest.mark.slow
@pytest.mark.parametrize("prevalence", [0.02, 0.1])
@pytest.mark.parametrize("icc", LIKENESS)
def test_a_thousand_redraws(prevalence, icc):
    "15 to 300 clusters with a good article: refused below 45, kept from there on, and rejecting at least 80 % of what the truth rejects."
    made = pool(prevalence, icc)
    assert {certified(made, np.random.default_rng(i), 15 + i) for i in range(30)} == {None}
    for good_clusters in (45, 60, 77, 120, 200, 300):
        below, efficient, passes = broken_and_efficient(made, 1000, good_clusters, 88)
        assert below <= few(1000), (good_clusters, below)
        assert efficient >= 0.8, (good_clusters, efficient)
        assert passes >= 0.8


@pytest.mark.slow
def test_a_threshold_from_articles_would_break_it():
    "The same rule without clusters, where articles are alike: the unit is what makes the promise true."
    made, rng, below = Pool(0.1, 0.6, labelled=40), np.random.default_rng(88), []
    for _ in range(500):
        signal, true = made.with_good(rng, 30)
        good = true >= made.tier
        below.append(made.recall(safe_threshold(signal[good], np.arange(good.sum()))) < TARGET)
    assert np.mean(below) > few(500)


@pytest.mark.slow
def test_the_promise_is_kept_on_the_built_in_data():
    "Redraws of 1,600 labelled articles of the built-in data: half of the topics fit the signal, half make the promise."
    world = make_world(88, WorldShape(production=1))
    contract, some = world_contract(world), [a for kind in ("labelled", "pool") for a in world.sets[kind] if a.id not in world.walls]
    true = weighted_scores(contract, np.array([list(world.truth[a.id].values()) for a in some]))
    vectors = MixedEncoder(StaticEncoder(static_folder())).encode([a.full_text for a in some])
    rng, clusters, tier, found = np.random.default_rng(88), np.array([a.cluster for a in some]), contract.tier("medium").at, []
    for i in range(60):
        mine = np.isin(np.arange(len(some)), rng.permutation(len(some))[:1600])
        fits = ~promise_side(clusters[mine].tolist(), f"redraw {i}")
        signal = fit_signal(vectors[mine][fits], true[mine][fits], clusters[mine][fits].tolist(), "weighted", {})
        said = make_promise(signal.of(vectors[mine][~fits]), true[mine][~fits], clusters[mine][~fits].tolist(), tier)
        if said.threshold is None: continue  # too few topics with a good article in this draw
        told, good = signal.of(vectors[~mine]), true[~mine] >= tier
        _, owner, size = np.unique(clusters[~mine][good], return_inverse=True, return_counts=True)
        order, weight = np.argsort(told[good]), 1 / size[owner]  # every topic counts once
        least = told[good][order][np.searchsorted(np.cumsum(weight[order]) / weight.sum(), 1 - TARGET)]
        kept = np.average(told[good] >= said.threshold, weights=weight)
        found.append((kept < TARGET, (told < said.threshold).mean() / (told < least).mean()))
    below, efficient = np.mean(found, 0)
    assert len(found) >= 50
    assert below <= few(len(found))
    assert efficient >= 0.8


# The labels that a refusal names

def after_the_labels_named(made: Pool, rng, clusters: int) -> bool | None:
    "Label, be refused, label as many more as were named: whether it passes then. None where it was not refused with a number."
    signal, true = made.clusters(rng, clusters)
    owner = np.repeat(np.arange(clusters), LABELLED)
    first = make_promise(signal.ravel(), true.ravel(), owner, made.tier)
    if first.state == "promised" or not first.more_labels: return None
    more = made.clusters(rng, -(-first.more_labels // LABELLED))
    signal, true = np.concatenate([signal, more[0]]), np.concatenate([true, more[1]])
    owner = np.repeat(np.arange(len(signal)), LABELLED)
    good = true.ravel() >= made.tier
    threshold = safe_threshold(signal.ravel()[good], owner[good])
    return threshold is not None and norm.cdf(threshold) >= 0.3


def test_a_refusal_says_what_is_missing():
    made = pool(0.02, 0.3)
    signal, true = made.clusters(np.random.default_rng(88), 60)
    said = make_promise(signal.ravel(), true.ravel(), np.repeat(np.arange(60), LABELLED), made.tier)
    assert (said.state, said.threshold, said.needed, said.labels) == ("refused", None, 45, 480)
    assert said.positive_clusters < 45
    assert said.more_labels > 480
    for number in (said.positives, said.positive_clusters, said.needed): assert str(number) in said.sentence
    assert f"{said.more_labels:,}" in said.sentence
    none = make_promise(signal.ravel(), true.ravel(), np.repeat(np.arange(60), LABELLED), 99.0)
    assert none.more_labels is None
    assert "no number of labels can be named" in none.sentence


@pytest.mark.parametrize("kind", ["weighted", "known_good", "evidence"])
def test_points_are_held_against_a_signal_of_points_only(kind):
    rng = np.random.default_rng(88)
    vectors, clusters = rng.normal(size=(600, 8)), [f"t{i // 4}" for i in range(600)]
    points = np.clip(5 + vectors[:, 0] * 2, 0, 10)
    made = fit_prefilter(vectors, points, points, clusters, 7.0, kind)
    below = [r for r in made.rules if r.rule == "reject below 2.5"]
    assert bool(below) == (kind == "weighted")
    assert all(r.rejected.mean < 1 for r in made.rules)


@given(st.integers(1, 44), st.integers(0, 400))
@settings(max_examples=30)
def test_more_good_clusters_need_fewer_labels(good, others):
    clusters = good + others + 1
    assert labels_needed(good, clusters, 4 * clusters) >= labels_needed(good + 1, clusters, 4 * clusters) >= 0


@pytest.mark.parametrize("prevalence", [0.1])
def test_the_labels_named_are_enough(prevalence):
    rng = np.random.default_rng(88)
    told = [after_the_labels_named(pool(prevalence, 0.3), rng, 40) for _ in range(25)]
    assert np.mean([t for t in told if t is not None]) >= 0.8


@pytest.mark.slow
@pytest.mark.parametrize("prevalence", [0.02, 0.1])
@pytest.mark.parametrize("icc", LIKENESS)
def test_the_labels_named_are_enough_everywhere(prevalence, icc):
    rng, made = np.random.default_rng(88), pool(prevalence, icc)
    told = [after_the_labels_named(made, rng, int(20 / (prevalence * 5) * rng.uniform(0.5, 1.0))) for _ in range(1000)]
    told = [t for t in told if t is not None]
    assert len(told) > 800
    assert np.mean(told) >= 0.8


# Rules beside it

def test_rules_stand_beside_as_many_at_random():
    made = pool(0.1, 0.3)
    signal, true = made.clusters(np.random.default_rng(88), 400)
    owner = np.repeat(np.arange(400), LABELLED)
    points, signal = 4 + 1.5 * true.ravel(), 4 + 1.5 * signal.ravel()
    promise = make_promise(signal, points, owner, 4 + 1.5 * made.tier)
    rows = compare_rules(promise, signal, points, owner)
    assert [r.rule for r in rows] == ["promise", "as many at random (promise)", "reject below 2.5", "as many at random (reject below 2.5)"]
    assert [r.promise for r in rows] == ["promised", "none", "none", "none"]
    for rule, chance in (rows[:2], rows[2:]):
        assert abs(rule.rejected.mean - chance.rejected.mean) < 1e-3
        assert rule.kept.mean > chance.kept.ci_high
        assert chance.kept.ci_low < 1 - chance.rejected.mean < chance.kept.ci_high
    assert rows[2].rejected.mean == (signal < 2.5).mean()


# Prefilter and cascade

def topical(n_clusters: int, width: int = 8):
    rng = np.random.default_rng(88)
    kind = np.repeat(np.arange(n_clusters), 4)
    vectors = rng.normal(size=(len(kind), width)) + rng.normal(size=(n_clusters, width))[kind]
    points = np.clip(5 + vectors @ np.linspace(0.2, 1, width) + rng.normal(0, 0.3, len(kind)), 0, 10)
    return vectors, points, [f"c{k}" for k in kind]


def test_signal_and_promise_see_different_clusters():
    vectors, points, clusters = topical(300)
    side = promise_side(clusters)
    found = fit_prefilter(vectors, points, points, clusters, 7.0)
    assert found.promise.labels == side.sum()
    moved = points.copy()
    moved[side] = 10 - points[side]  # what makes the promise does not fit the signal
    assert np.allclose(fit_prefilter(vectors, moved, moved, clusters, 7.0).signal.coef, found.signal.coef)
    assert found.promise.state == "promised"
    assert found.promise.rejected.mean > 0.3
    assert (found.keeps(vectors) == (found.signal.of(vectors) >= found.promise.threshold)).all()


@pytest.mark.parametrize("kind", ["weighted", "known_good", "reach"])
def test_every_signal_is_kept_and_read(kind, tmp_path):
    vectors, points, clusters = topical(300)
    found = fit_prefilter(vectors, points, points, clusters, 7.0, kind, {"model": "toy"})
    again = load_prefilter(save_prefilter(found, tmp_path))
    assert (again.signal.kind, again.promise, again.rules) == (kind, found.promise, found.rules)
    assert (again.keeps(vectors) == found.keeps(vectors)).all()
    assert np.corrcoef(found.signal.of(vectors), points)[0, 1] > 0.5
    (tmp_path / "prefilter.safetensors").unlink()
    with pytest.raises(DistilleryError, match="does not belong"): load_prefilter(tmp_path)


class Lengths:
    "An encoder of one number."
    identity: ClassVar = {"model": "lengths"}

    def encode(self, texts): return np.array([[len(t)] for t in texts], float)


@given(st.lists(st.integers(1, 40), max_size=60), st.integers(1, 17))
@settings(max_examples=40)
def test_a_cascade_scores_what_is_kept_and_nothing_else(lengths, batch):
    promise = Promise(state="promised", sentence="", tier=6, target=0.95, delta=0.1, threshold=20.0, positives=45, positive_clusters=45,
                      needed=45, labels=90)
    asked: list[str] = []

    def score(texts):
        asked.extend(texts)
        return np.array([[len(t)] for t in texts], float)

    cascade = Cascade(Prefilter(Signal("weighted", np.ones(1), 0.0, Lengths.identity), promise), Lengths(), score, batch, price=0.5)
    texts = ["x" * n for n in lengths]
    out = list(cascade.run(iter(texts)))
    assert [p.place for p in out] == list(range(len(texts)))
    assert asked == [t for t in texts if len(t) >= 20]
    assert [None if p.scores is None else p.scores[0] for p in out] == [n if n >= 20 else None for n in lengths]
    assert (cascade.cost.articles, cascade.cost.rejected) == (len(texts), len(texts) - len(asked))
    assert cascade.cost.saved_price == 0.5 * (len(texts) - len(asked))


def test_without_a_promise_nothing_is_rejected():
    vectors, points, clusters = topical(40)
    found = fit_prefilter(vectors, points, points, clusters, 8.0, encoder=Lengths.identity)
    assert found.promise.state == "refused"
    assert found.keeps(vectors).all()
