"Statistics: intervals that cover, verdicts that err as seldom as promised, and the corners where formulas break."

from math import sqrt

import numpy as np
import pytest
from hypothesis import assume, given, settings, strategies as st
from scipy import stats as scipy_stats

from distillery.core.records import Contrast
from distillery.core.stats import (
    StatsError,
    bootstrap_means,
    holm,
    mean_interval,
    paired_contrast,
    sign_flip_p,
    spread,
    tost,
    wilson,
)
from distillery.core.numbers import plus_minus
from distillery.core.differences import identity_design
from distillery.core.forecasts import clusters_to_decide
from distillery.core.verdicts import gate, not_asked, quantile_gate, verdict

LIKENESS = (0.1, 0.5)
WEEKLY = [pytest.param(groups, likeness, 2000, marks=pytest.mark.slow) for groups in (20, 36, 100) for likeness in LIKENESS]
studies = pytest.mark.parametrize(("groups", "likeness", "simulations"), [(20, 0.5, 400), *WEEKLY])


def covers(hits, simulations):
    "Whether intervals at 95 % held the truth as often as promised: within four standard errors, .93 to .97 for 2,000 of them."
    return abs(hits / simulations - 0.95) <= 4 * sqrt(0.95 * 0.05 / simulations) + 5e-4


def unequal_sizes(rng, groups):
    "Between 1 and some 40 cases a cluster, most of them few."
    return np.clip(np.round(np.exp(rng.normal(1.5, 0.7, groups))), 1, 40).astype(int)


def clustered(rng, groups, likeness):
    "Standard normal cases whose correlation within a cluster is `likeness`."
    sizes = unequal_sizes(rng, groups)
    cluster = np.repeat(np.arange(groups), sizes)
    return sqrt(likeness) * rng.normal(size=groups)[cluster] + sqrt(1 - likeness) * rng.normal(size=len(cluster)), cluster


@studies
def test_intervals_of_differences_cover_the_truth(groups, likeness, simulations):
    rng, hits = np.random.default_rng([groups, int(10 * likeness)]), np.zeros(2)
    for _ in range(simulations):
        d, cluster = clustered(rng, groups, likeness)
        c = paired_contrast(d + 0.3, np.zeros(len(d)), cluster, resamples=1)
        hits += [c.ci_low <= 0.3 <= c.ci_high, c.ci_naive_low <= 0.3 <= c.ci_naive_high]
    robust, naive = hits / simulations
    assert covers(hits[0], simulations), f"robust {robust:.3f}, naive {naive:.3f}"
    assert naive < (0.91 if likeness == 0.1 else 0.75), "clustering was meant to matter here"


@studies
def test_intervals_of_differences_of_right_and_wrong_cover_the_truth(groups, likeness, simulations):
    rng, hits = np.random.default_rng([groups, int(10 * likeness), 1]), 0
    truth = scipy_stats.norm.sf(1.2) - scipy_stats.norm.cdf(-1.6)
    for _ in range(simulations):
        z, cluster = clustered(rng, groups, likeness)
        c = paired_contrast(z > 1.2, z < -1.6, cluster, resamples=1)
        hits += c.ci_low <= truth <= c.ci_high
    assert covers(hits, simulations)


@studies
def test_intervals_of_shares_cover_the_truth(groups, likeness, simulations):
    rng, hits = np.random.default_rng([groups, int(10 * likeness), 2]), np.zeros(2)
    spare = (1 - likeness) / likeness
    for _ in range(simulations):
        sizes = unequal_sizes(rng, groups)
        cluster = np.repeat(np.arange(groups), sizes)
        right = (rng.random(len(cluster)) < rng.beta(0.8 * spare, 0.2 * spare, groups)[cluster]).astype(float)
        robust, naive = mean_interval(right, cluster), wilson(right.sum(), len(right))
        hits += [robust.ci_low <= 0.8 <= robust.ci_high, naive[0] <= 0.8 <= naive[1]]
    assert covers(hits[0], simulations), f"robust {hits[0] / simulations:.3f}, naive {hits[1] / simulations:.3f}"
    assert hits[1] < hits[0]


def is_wrong(said, effect, margin):
    "A false winner, the wrong winner, or `equivalent` beyond the margin."
    if said.startswith("undecided"):
        return False
    if said.startswith("equivalent"):
        return abs(effect) >= margin
    return effect == 0 or said != ("a better" if effect > 0 else "b better")


@pytest.mark.slow
@studies
def test_verdicts_on_planted_effects_are_seldom_wrong(groups, likeness, simulations):
    rng = np.random.default_rng([groups, int(10 * likeness), 3])
    typical = np.median(
        [paired_contrast(*(lambda d, g: (d, 0 * d, g))(*clustered(rng, groups, likeness)), resamples=1).mde for _ in range(200)]
    )
    margin = typical  # a study just large enough to see the margin
    plans = {"none": 0.0, "half the margin": margin / 2, "beyond the margin": 1.25 * margin, "twice the detectable": 2 * typical}
    wrong, found = dict.fromkeys(plans, 0), dict.fromkeys(plans, 0)
    for name, effect in plans.items():
        for _ in range(simulations):
            d, cluster = clustered(rng, groups, likeness)
            said, _ = verdict(paired_contrast(d + effect, 0 * d, cluster, resamples=199, seed=7), margin)
            wrong[name] += is_wrong(said, effect, margin)
            found[name] += said == ("a better" if effect else f"equivalent ({plus_minus(margin)})")
    assert max(wrong.values()) <= 0.05 * simulations, wrong
    assert found["twice the detectable"] > 0.95 * simulations, found
    assert found["none"] > 0.6 * simulations, found


def test_a_size_of_study_finds_its_detectable_effect_four_times_in_five():
    rng, power = np.random.default_rng(4), 0
    mde = np.median([paired_contrast(*(lambda d, g: (d, 0 * d, g))(*clustered(rng, 36, 0.3)), resamples=1).mde for _ in range(300)])
    for _ in range(1000):
        d, cluster = clustered(rng, 36, 0.3)
        power += paired_contrast(d + mde, 0 * d, cluster, resamples=1).ci_low > 0
    assert 0.75 < power / 1000 < 0.86


def test_permutation_p_is_uniform_when_nothing_differs():
    rng = np.random.default_rng(5)
    for likeness in LIKENESS:
        p = []
        for _ in range(600):
            d, cluster = clustered(rng, 30, likeness)
            p.append(sign_flip_p(np.bincount(cluster, d), resamples=499, seed=int(rng.integers(2**31))))
        assert scipy_stats.kstest(p, "uniform").pvalue > 0.001


def test_permutation_p_agrees_with_scipy_and_counts_all_flips_of_few():
    d = np.random.default_rng(6).normal(0.4, 1, 12)
    theirs = scipy_stats.permutation_test((d,), np.mean, permutation_type="samples", n_resamples=np.inf, alternative="two-sided").pvalue
    assert sign_flip_p(d) == pytest.approx(theirs, abs=1e-12)
    assert sign_flip_p(d, resamples=4000) == pytest.approx(theirs, abs=0.03)
    assert sign_flip_p([0.0] * 20) == 1.0
    assert sign_flip_p([1.0] * 40) == 1 / 10_001


def test_bootstrap_agrees_with_scipy_and_keeps_clusters_together():
    x = np.random.default_rng(8).normal(size=80)
    ours, theirs = bootstrap_means(x), scipy_stats.bootstrap((x,), np.mean, method="percentile", n_resamples=9999, random_state=1)
    assert np.quantile(ours, [0.025, 0.975]) == pytest.approx(tuple(theirs.confidence_interval), abs=0.02)
    assert ours.std() == pytest.approx(x.std() / sqrt(80), rel=0.05)
    d, cluster = clustered(np.random.default_rng(9), 40, 0.5)
    assert bootstrap_means(d, cluster).std() == pytest.approx(spread(d, cluster, None).se, rel=0.15)
    assert bootstrap_means(d, cluster).std() > 1.5 * bootstrap_means(d).std()
    assert (bootstrap_means(d, cluster, 100, seed=1) == bootstrap_means(d, cluster, 100, seed=1)).all()


def test_unclustered_formulas_are_the_textbooks():
    rng = np.random.default_rng(10)
    x, y = rng.normal(size=50), rng.normal(size=50)
    c, theirs = paired_contrast(x, y), scipy_stats.ttest_rel(x, y).confidence_interval()
    assert (c.ci_low, c.ci_high) == pytest.approx((theirs.low, theirs.high))
    assert (c.ci_naive_low, c.ci_naive_high) == (c.ci_low, c.ci_high)
    e = mean_interval(x * 100, scale=None)
    assert (e.ci_low, e.ci_high) == pytest.approx(scipy_stats.t.interval(0.95, 49, 100 * x.mean(), 100 * scipy_stats.sem(x)))
    for k, n in ((0, 5), (31, 36), (36, 36), (1, 300)):
        theirs = scipy_stats.binomtest(k, n).proportion_ci(method="wilson")
        assert wilson(k, n) == pytest.approx((theirs.low, theirs.high), abs=1e-9)
        e = mean_interval([1] * k + [0] * (n - k))
        assert (e.ci_low, e.ci_high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_clusters_of_one_and_equal_clusters_give_what_they_must():
    x = np.random.default_rng(11).normal(size=40)
    assert paired_contrast(x, 0 * x, np.arange(40)).ci_low == pytest.approx(paired_contrast(x, 0 * x).ci_low)
    means = x.reshape(10, 4).mean(1)
    by_cluster, by_mean = paired_contrast(x, 0 * x, np.arange(40) // 4), scipy_stats.ttest_1samp(means, 0).confidence_interval()
    assert (by_cluster.ci_low, by_cluster.ci_high) == pytest.approx((by_mean.low, by_mean.high))


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 4)), min_size=1, max_size=30), st.floats(0.6, 0.99))
@settings(max_examples=200)
def test_an_interval_of_scores_stays_on_the_scale_and_holds_its_mean(cases, confidence):
    values, clusters = zip(*cases, strict=True)
    e = mean_interval(values, clusters, confidence)
    assert 0 <= e.ci_low <= e.mean + 1e-9
    assert e.mean - 1e-9 <= e.ci_high <= 1
    assert (e.n, e.n_clusters) == (len(values), len(set(clusters)))


@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5), st.integers(0, 5)), min_size=4, max_size=40), st.randoms())
@settings(max_examples=100)
def test_a_contrast_does_not_depend_on_order_and_turns_with_its_levels(cases, random):
    assume(len({c for *_, c in cases}) > 1)
    first = paired_contrast(*map(list, zip(*cases, strict=True)), resamples=1)
    a, b, c = map(list, zip(*random.sample(cases, len(cases)), strict=True))
    turned = paired_contrast(b, a, c, resamples=1)
    assert (first.diff, first.ci_low, first.ci_high) == pytest.approx((-turned.diff, -turned.ci_high, -turned.ci_low), abs=1e-7)
    assert first.ci_low <= first.diff <= first.ci_high
    assert first.mde >= 0


@pytest.mark.parametrize(
    "bad",
    [
        lambda: mean_interval([]),
        lambda: mean_interval([1.0, float("nan")]),
        lambda: mean_interval([1.0, 0.0], ["a"]),
        lambda: mean_interval([300.0]),
        lambda: mean_interval([300.0], scale=None),
        lambda: paired_contrast([1.0, 2.0], [1.0]),
        lambda: paired_contrast([1.0, 0.0], [0.0, 0.0], ["a", "a"]),
        lambda: wilson(5, 4),
        lambda: wilson(0, 0),
        lambda: gate("g", "v", [], 0.5),
        lambda: quantile_gate("g", "v", [], 0.5),
        lambda: verdict(paired_contrast([1.0, 0.0], [0.0, 0.0]), 0.0),
    ],
)
def test_what_cannot_be_answered_is_refused_with_a_fix(bad):
    with pytest.raises(StatsError) as error:
        bad()
    assert error.value.fix


def test_nothing_different_is_not_certainty():
    few, many = (paired_contrast([1.0] * n, [1.0] * n, np.arange(n) // 3, scale=(0.0, 1.0)) for n in (24, 300))
    assert verdict(few, 0.05)[0].startswith("undecided")
    assert verdict(many, 0.05)[0].startswith("equivalent")
    one = np.ones(300)
    one[7] = 0
    almost = paired_contrast(np.ones(300), one, np.arange(300) // 3, scale=(0.0, 1.0))
    assert many.ci_high == pytest.approx(wilson(0, 300 / identity_design(100, 2, 1.959964))[1], rel=1e-6)
    assert many.ci_high < almost.ci_high < 2 * many.ci_high


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_raises_keeps_order_and_never_exceeds_bonferroni(p):
    raised = holm(p)
    assert all(a <= r <= min(1, len(p) * a) + 1e-12 for a, r in zip(p, raised, strict=True))
    assert [raised[i] for i in np.argsort(p, kind="stable")] == sorted(raised)


def test_holm_and_tost_by_hand():
    assert holm([0.01, 0.02, 0.03, 0.005]) == pytest.approx([0.03, 0.04, 0.04, 0.02])
    c = Contrast(diff=0.01, ci_low=-0.03, ci_high=0.05, ci_naive_low=0, ci_naive_high=0, p=0.6, mde=0.06, se=0.02, df=30)
    assert tost(c, 0.05) == pytest.approx(scipy_stats.t.sf(2, 30))
    assert tost(c, 0.005) > 0.5
    low, high = c.diff - scipy_stats.t.ppf(0.95, 30) * c.se, c.diff + scipy_stats.t.ppf(0.95, 30) * c.se
    assert tost(c, high * 1.001) < 0.05
    assert tost(c, high * 0.999) > 0.05
    assert low > -high


def test_undecided_says_how_many_more():
    rng = np.random.default_rng(12)
    d = rng.normal(0.06, 1, 200)
    d += 0.06 - d.mean()
    c = paired_contrast(d, 0 * d, np.arange(200) // 5)
    said, sentence = verdict(c, 0.05, ("int8", "q4"), unit="documents", metric="token F1")
    n = clusters_to_decide(c, 0.05) - 40
    assert said == f"undecided: {n:,} more documents"
    assert f"{n:,} more documents would settle it four times in five" in sentence


def test_verdicts_name_the_better_side_and_listen_to_holm():
    rng = np.random.default_rng(13)
    slow, fast = 100 + rng.normal(size=60), 90 + rng.normal(size=60)
    c = paired_contrast(slow, fast, np.arange(60) // 2, levels=("fp32", "int8"))
    assert verdict(c, 1, higher_is_better=False)[0] == "int8 better"
    assert verdict(c, 1)[0] == "fp32 better"
    assert verdict(c.model_copy(update={"p_holm": 0.2}), 1)[0].startswith("undecided")
    assert not_asked("a GPU", "2 hours") == ("not asked", "Not asked: it needs a GPU and costs 2 hours.")


def test_31_of_36_settles_nothing_against_80_percent():
    g = gate("exact_match_rate_min", "int8", [1] * 31 + [0] * 5, 0.80)
    assert (g.state, g.n) == ("INCONCLUSIVE", 36)
    assert g.bound == pytest.approx(0.7134, abs=1e-4)
    assert g.cases_needed > 171  # what would do if .861 were the truth
    assert gate("g", "v", [1] * 310 + [0] * 50, 0.80).state == "PASS"
    assert gate("g", "v", [1] * 20 + [0] * 16, 0.80).state == "FAIL"


def test_gates_look_both_ways_and_at_clusters():
    right, pages = [1] * 150 + [0] * 20, np.arange(170) // 10
    assert gate("g", "v", right, 0.80).state == "PASS"
    clustered_gate = gate("g", "v", right, 0.80, clusters=pages)
    assert clustered_gate.state == "INCONCLUSIVE"
    assert clustered_gate.cases_needed > 170
    times = np.random.default_rng(14).normal(500, 50, 100)
    assert [gate("g", "v", times, t, side="max", scale=None).state for t in (450, 500, 550)] == ["FAIL", "INCONCLUSIVE", "PASS"]
    assert gate("g", "v", [1, 0] * 20, 0.5).cases_needed > 40 * 50  # seen on the threshold: only a long look tells
    assert gate("g", "v", [1] * 20, 1.0).cases_needed is None


def test_a_quantile_needs_cases_enough():
    fast = np.linspace(300, 900, 400)
    assert [quantile_gate("p95", "q4", fast, t).state for t in (600, 871, 1000)] == ["FAIL", "INCONCLUSIVE", "PASS"]
    assert quantile_gate("p95", "q4", fast[:20], 1000).state == "INCONCLUSIVE"
    assert quantile_gate("p95", "q4", fast[:20], 1000).least_clusters == 73  # that many without one slow answer are the least


@given(st.lists(st.floats(1, 1000), min_size=5, max_size=400), st.floats(1, 1000))
@settings(max_examples=150)
def test_the_bound_of_a_quantile_tells_its_state(values, threshold):
    g = quantile_gate("p95", "q4", values, threshold)
    if g.state == "PASS":
        assert g.bound <= threshold
    if g.state == "FAIL":
        assert g.bound > threshold
    if g.state == "INCONCLUSIVE" and len(values) >= 80:
        assert g.bound > threshold


def test_a_series_is_paired_by_its_labels_or_refused():
    pd = pytest.importorskip("pandas")
    a, b = pd.Series([0.1, 0.9, 0.4], ["x", "y", "z"]), pd.Series([0.2, 0.5, 0.4], ["x", "y", "z"])
    shuffled, told = b.loc[["z", "x", "y"]], paired_contrast(a, b)
    assert paired_contrast(a, shuffled.reindex(a.index)) == told == paired_contrast(a.to_list(), b.to_list())
    with pytest.raises(StatsError, match="another order"): paired_contrast(a, shuffled)
    with pytest.raises(StatsError, match="another order"): paired_contrast(a, b, pd.Series(["d", "d", "e"], ["z", "x", "y"]))


@pytest.mark.parametrize("confidence", [95, 1.0, 0.0, -0.5])
def test_a_confidence_that_is_no_share_is_refused(confidence):
    with pytest.raises(StatsError, match="no interval covers"): paired_contrast([0.1, 0.9, 0.4], [0.2, 0.5, 0.4], confidence=confidence)
    if confidence > 1:
        with pytest.raises(StatsError, match="no interval covers"): mean_interval([0.1, 0.9, 0.4], confidence=confidence, scale=None)
