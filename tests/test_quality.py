"Metrics of scorers beside rivals that cannot read: against libraries, under weights, intervals, and who learned the source."
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats
from sklearn.metrics import ndcg_score

from distillery.core.stats import StatsError
from distillery.filters.quality import (FISHER, jackknife_interval, ndcg, precision_at, prevalence_weights, recall_at,
                                        shrinkage_slope, spearman, spearman_across, top_places)
from distillery.filters.rivals import (HeldOut, between_sources, check_source, contrast_errors, length_alone, measure, rival_predictions,
                                       seed_spread, source_alone)

SEEDS = st.integers(0, 2**32 - 1)


# Metrics against libraries, and weights as repetitions

@given(SEEDS, st.integers(3, 60))
@settings(max_examples=40)
def test_metrics_agree_with_libraries(seed, n):
    rng = np.random.default_rng(seed)
    truth, said, ones = rng.integers(0, 6, n).astype(float), rng.integers(0, 6, n) + 0.0, np.ones(n)
    if np.ptp(truth) and np.ptp(said): assert np.isclose(spearman(truth, said, ones), stats.spearmanr(truth, said).statistic)
    apart = said + rng.permutation(n) / 1e3  # scikit-learn averages over ties
    if truth.any(): assert np.isclose(ndcg(truth, apart, 1.0, ones), ndcg_score([truth], [apart]))
    if np.ptp(truth): assert np.isclose(shrinkage_slope(truth, said, ones), stats.linregress(truth, said).slope)


@given(SEEDS, st.integers(4, 40))
@settings(max_examples=40)
def test_a_weight_is_a_repetition(seed, n):
    rng = np.random.default_rng(seed)
    truth, said, w, kind = rng.normal(size=n), rng.normal(size=n), rng.integers(0, 4, n), rng.integers(0, 3, n)
    if w.sum() < 4: return
    again = np.repeat(np.arange(n), w)
    ones = np.ones(len(again))
    for metric, more in ((spearman, ()), (shrinkage_slope, ()), (spearman_across, (kind,))):
        one = metric(truth, said, *more, w.astype(float))
        other = metric(truth[again], said[again], *(m[again] for m in more), ones)
        assert np.isclose(one, other, equal_nan=True)


def test_top_places_are_a_share_of_the_pool_by_weight():
    said = np.array([3.0, 1, 2, 0])
    assert top_places(said, 0.5, np.ones(4)).tolist() == [True, False, True, False]
    assert top_places(said, 0.5, np.array([3.0, 1, 1, 1])).tolist() == [True, False, False, False]
    assert not top_places(said, 0.2, np.ones(4)).any()


def test_an_enriched_sample_is_brought_back_to_the_prevalence_of_its_pool():
    rng = np.random.default_rng(88)
    truth = rng.normal(4, 1.5, 20_000)
    said, topic = truth + rng.normal(0, 1, 20_000), rng.integers(0, 400, 20_000)
    good = truth >= 7
    sample = np.concatenate([np.flatnonzero(good), rng.choice(np.flatnonzero(~good), 800, replace=False)])
    weights = prevalence_weights(good[sample], float(good.mean()))
    whole = precision_at(truth, said, 7, np.ones(len(truth)), topic)
    back = precision_at(truth[sample], said[sample], 7, weights, topic[sample])
    naive = precision_at(truth[sample], said[sample], 7, np.ones(len(sample)), topic[sample])
    assert back.ci_low < whole.mean < back.ci_high < naive.ci_low
    assert recall_at(truth, said, 99.0, 0.1, np.ones(len(truth)), topic) is None
    assert precision_at(truth, said, 99.0, np.ones(len(truth)), topic) is None
    with pytest.raises(StatsError, match="between 0 and 1"): prevalence_weights(good, 1.5)


@pytest.mark.slow
@pytest.mark.parametrize("topics", [12, 40])
def test_the_jackknife_covers(topics):
    "Spearman's correlation and the slope over articles that are alike within topics: at least 93 of 100 intervals of 95 % hold the truth."
    inside, rng = np.zeros(2), np.random.default_rng(88)
    rho = 6 / np.pi * np.arcsin(0.8 / 2)  # of a normal pair that correlates .8
    for _ in range(400):
        topic, ones = np.repeat(np.arange(topics), 8), np.ones(topics * 8)
        def alike(topic=topic): return 0.3**0.5 * rng.normal(size=topics)[topic] + 0.7**0.5 * rng.normal(size=len(topic))
        truth = alike()
        said = 0.8 * truth + 0.6 * alike()
        order = jackknife_interval(lambda w, t=truth, s=said: spearman(t, s, w), ones, topic, bend=FISHER)
        slope = jackknife_interval(lambda w, t=truth, s=said: shrinkage_slope(t, s, w), ones, topic)
        inside += [order.ci_low < rho < order.ci_high, slope.ci_low < 0.8 < slope.ci_high]
    assert (inside / 400 >= 0.93).all(), inside / 400


# Sources

def sourced(seed: int, between: float, reads: float, n: int = 800):
    "A pool with a share of the variance between 24 sources, and a scorer that knows the source and reads a share of the rest."
    rng = np.random.default_rng(seed)
    source, topic = rng.integers(0, 24, n), np.repeat(np.arange(n // 8), 8)
    level = rng.normal(size=24)[source]
    own = 0.5 * rng.normal(size=n // 8)[topic] + 0.75**0.5 * rng.normal(size=n)
    true = 5 + 1.5 * (between**0.5 * level + (1 - between) ** 0.5 * own)
    said = 5 + 1.5 * (between**0.5 * level + reads * (1 - between) ** 0.5 * own) + 0.15 * rng.normal(size=n)
    points, names = np.clip(np.stack([true, true], 1), 0, 10), np.array([f"s{i}" for i in source])
    held = HeldOut(("a", "b"), points[n // 2 :], lambda x: x.mean(1), topic[n // 2 :], names[n // 2 :], tier=7.0)
    lengths = rng.integers(100, 2000, n)
    half = n // 2
    rivals = rival_predictions(points[:half], lengths[:half], names[:half].tolist(), lengths[half:], names[half:].tolist())
    return held, np.clip(np.stack([said, said], 1), 0, 10)[half:], rivals


@pytest.mark.parametrize(("between", "reads", "verdict"), [(0.95, 0.0, "learned the source"), (0.25, 0.8, "reads the text"),
                                                           (0.25, 0.0, "learned the source"), (0.0, 0.8, "reads the text"),
                                                           (0.0, 0.0, "neither beats the mean")])
def test_who_learned_the_source(between, reads, verdict):
    for seed in range(2):
        held, said, rivals = sourced(seed, between, reads)
        found = check_source(held, said, rivals)
        assert found.verdict == verdict, found.sentence
        assert found.sentence.startswith(verdict[0].upper() + verdict[1:])
        assert abs(found.true_between - between) < 0.2
        if verdict == "learned the source": assert found.within_sources.ci_low < 0.2


def test_a_scorer_stands_beside_its_rivals():
    held, said, rivals = sourced(88, 0.25, 0.8)
    contrasts = {c.b: c for c in contrast_errors(held, {"scorer": said, **rivals})}
    assert set(contrasts) == {"mean score", "length alone", "source alone"}
    assert all(c.ci_high < 0 and c.p_holm < 0.05 for c in contrasts.values())
    row, alone = measure(held, "scorer", said), measure(held, "source alone", rivals["source alone"])
    assert row.within_sources.mean > 0.6 > alone.within_sources.mean
    assert alone.across_sources.ci_low > 0.3
    assert row.n == 400
    for metric in ("spearman", "recall", "ndcg", "slope"):
        found = getattr(row, metric)
        assert found.ci_low <= found.mean <= found.ci_high
    assert measure(held, "mean score", rivals["mean score"]).spearman is None


def test_baselines_are_what_they_say():
    points = np.array([[1.0], [3], [8]])
    assert source_alone(points, ["a", "a", "b"], ["a", "b", "new"]).ravel().tolist() == pytest.approx([8 / 3, 6.0, 4.0])
    assert length_alone(points, np.array([5, 5, 5]), np.array([7])).tolist() == [[4.0]]
    lengths = np.array([10, 100, 1000])
    assert length_alone(np.log10(lengths)[:, None], lengths, np.array([10_000])).tolist() == [[pytest.approx(4.0)]]
    assert between_sources(np.array([1.0, 1, 5, 5]), ["a", "a", "b", "b"]) == 1.0
    assert between_sources(np.array([1.0, 5, 1, 5]), ["a", "a", "b", "b"]) == 0.0


def test_seeds_have_a_spread():
    found = seed_spread("mae", {1: 0.5, 2: 0.7, 3: 0.6})
    assert found.sd == pytest.approx(0.1)
    assert found.mean.ci_low < 0.5 < 0.7 < found.mean.ci_high
