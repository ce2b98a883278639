"What intervals, verdicts and gates promise, held against thousands of studies whose truth is known; the grids are weekly."
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from math import inf, sqrt
from multiprocessing import get_context
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats as scipy_stats
from scipy.special import betaln, expit
from simulated import differences, document_sizes, draw_outcomes, draw_shares, remember_designs, students_half

from distillery.core.clusters import ICC, ICC_WIDTH, effective_clusters, share_posterior
from distillery.core.differences import (
    Differences,
    critical_distance,
    difference_interval,
    distance_from,
    equivalence_p,
    tail_p,
    tango_variance,
)
from distillery.core.forecasts import clusters_to_decide, least_to_pass
from distillery.core.stats import SHARE, contrast_interval, differences_of, least_clusters, paired_contrast, sign_flip_p, spread, tost
from distillery.core.verdicts import ask_equivalence, gate, noninferiority_gate, quantile_gate, verdict

PATTERNS = [(0.0, p) for p in (0.02, 0.05, 0.1, 0.2)] + [(0.05, 0.1), (0.1, 0.1), (0.1, 0.0)]
LAYOUTS = [(n, g, unequal) for n in (30, 100, 300, 1000) for g in (6, 12, 36, 100, 200) if g <= n // 2 for unequal in (False, True)]
ICCS = (0.0, 0.1, 0.3, 0.5)


def simulation_error(rate: float, studies: int) -> float: return 3 * sqrt(rate * (1 - rate) / studies)


def binary(won: int, lost: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    "Answers of two levels with so many gains and losses."
    a = np.array([1.0] * won + [0.0] * lost + [1.0] * (n - won - lost))
    b = np.array([0.0] * won + [1.0] * lost + [1.0] * (n - won - lost))
    return a, b


def noninferiority_p(contrast, margin: float) -> float:
    "Of the end of the interval that a gate looks at."
    p = tail_p(differences_of(contrast), -margin)
    return p if contrast.diff > -margin else 1 - p


# Formulas

def tango_by_likelihood(won: int, lost: int, n: int, at: float) -> float:
    "Tango's statistic from its definition: the losses that make the counts likeliest, found by search."
    grid = np.linspace(max(0.0, -at), (1 - at) / 2, 200_001)[1:-1]
    log = lost * np.log(grid) + (won * np.log(grid + at) if won else 0) + (n - won - lost) * np.log(np.maximum(1e-300, 1 - 2 * grid - at))
    best = grid[np.argmax(log)]
    return (won - lost - n * at) / sqrt(n * (2 * best + at - at * at))


@given(st.integers(0, 12), st.integers(1, 12), st.integers(30, 300), st.floats(-0.4, 0.4))
@settings(max_examples=40)
def test_the_variance_is_that_of_tangos_likelihood(won, lost, n, at):
    if abs(at) < 1e-3: return
    d = (won - lost) / n
    ours = (d - at) / sqrt(tango_variance(won / n, lost / n, at) / n)
    assert ours == pytest.approx(tango_by_likelihood(won, lost, n, at), rel=2e-3, abs=2e-3)


@pytest.mark.parametrize(("won", "lost", "n"), [(0, 1, 43), (4, 14, 349), (0, 5, 100), (7, 2, 60)])
def test_independent_cases_have_tangos_interval(won, lost, n):
    of = Differences(n, inf, won / n, lost / n, (won + lost) / n, zeros=1.0, design=1.0, assumed=1.0, doubt=0.0,
                     clusters=n, crowd=0.0, reach=1.0)
    for end in difference_interval(of): assert abs(tango_by_likelihood(won, lost, n, end)) == pytest.approx(1.959964, abs=2e-3)


def test_dense_differences_are_students():
    d = np.random.default_rng(1).normal(0.1, 1, 60)
    c, theirs = paired_contrast(d, 0 * d), scipy_stats.ttest_1samp(d, 0)
    ends = theirs.confidence_interval()
    assert (c.ci_low, c.ci_high) == pytest.approx((ends.low, ends.high), abs=1e-9)
    for margin in (0.2, 0.5):
        assert noninferiority_p(c, margin) == pytest.approx(scipy_stats.ttest_1samp(d, -margin, alternative="greater").pvalue, abs=1e-9)
        both = [scipy_stats.ttest_1samp(d, s * margin, alternative=side).pvalue for s, side in ((-1, "greater"), (1, "less"))]
        assert tost(c, margin) == pytest.approx(max(both), abs=1e-9)


def test_the_cluster_variance_is_that_of_statsmodels():
    import statsmodels.api as sm
    rng = np.random.default_rng(2)
    cluster = np.repeat(np.arange(12), rng.integers(1, 9, 12))
    d = rng.normal(size=len(cluster)) + rng.normal(size=12)[cluster]
    c = paired_contrast(d, 0 * d, cluster)
    hc = sm.OLS(d, np.ones(len(d))).fit(cov_type="cluster", cov_kwds={"groups": cluster, "use_correction": False}).bse[0]
    sums, sizes = np.bincount(cluster, d), np.bincount(cluster)
    cr0 = sqrt(((sums - sizes * d.mean()) ** 2).sum()) / len(d)
    cr2 = sqrt((((sums - sizes * d.mean()) ** 2) / (1 - sizes / len(d))).sum()) / len(d)
    assert (hc, c.se) == pytest.approx((cr0, cr2), abs=1e-9)


@given(st.integers(0, 30), st.integers(0, 30), st.integers(61, 400), st.integers(2, 60), st.floats(0.6, 0.99), st.floats(0.01, 0.3))
@settings(max_examples=80)
def test_interval_and_p_value_are_one_test(won, lost, n, groups, confidence, margin):
    "The margin lies outside of the interval at a level exactly where its p-value is below half of what the level leaves."
    rng = np.random.default_rng(won + 31 * lost)
    a, b = binary(won, lost, n)
    order = rng.permutation(n)
    c = paired_contrast(a[order], b[order], np.arange(n) * groups // n, resamples=1, scale=SHARE)
    low, high = contrast_interval(c, confidence)
    alpha, p, q = (1 - confidence) / 2, noninferiority_p(c, margin), tost(c, margin)
    if abs(p - alpha) > 1e-6: assert (low > -margin) == (p < alpha)
    if abs(q - alpha) > 1e-6: assert (low > -margin and high < margin) == (q < alpha)
    assert low - 1e-9 <= c.diff <= high + 1e-9
    assert -1 <= low <= high <= 1


@given(st.integers(1, 30), st.integers(0, 30), st.integers(61, 200), st.sampled_from((10.0, 100.0, 0.1)))
@settings(max_examples=30)
def test_an_interval_has_the_unit_of_its_metric(won, lost, n, factor):
    a, b = binary(won, lost, n)
    one = paired_contrast(a, b, np.arange(n) // 3, resamples=1, scale=SHARE)
    other = paired_contrast(factor * a, factor * b, np.arange(n) // 3, resamples=1, scale=(0.0, factor))
    assert (other.ci_low, other.ci_high) == pytest.approx((factor * one.ci_low, factor * one.ci_high), rel=1e-6, abs=1e-9)


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), min_size=1, max_size=30))
@settings(max_examples=30)
def test_the_posterior_is_that_of_beta_binomial_counts(clusters):
    "On its own grid, by SciPy's distribution of each cluster: powers of logarithms and interpolation change no digit that counts."
    right = np.array([min(k, m + 1) for k, m in clusters], float)
    sizes = np.array([m + 1 for _, m in clusters], float)
    found = share_posterior(right, sizes)
    share, icc, width = expit(found.logits)[:, None], np.array(ICC), np.array(ICC_WIDTH)
    strength = 1 / icc - 1
    of_counts = betaln(right + (share * strength)[..., None], sizes - right + ((1 - share) * strength)[..., None])
    alone = betaln(share * strength, (1 - share) * strength)
    log = of_counts.sum(axis=-1) - len(right) * alone + np.log(width / (icc + 0.1))
    weight = np.exp(log - log.max()).sum(axis=1) * np.sqrt(share * (1 - share))[:, 0]
    steps = (weight[1:] + weight[:-1]) / 2
    assert np.diff(found.cumulative) == pytest.approx(steps / steps.sum(), abs=1e-9)


# Identical outputs, few clusters, many clusters

@pytest.mark.parametrize("groups", [48, 97, 150])
def test_150_identical_differences_are_equivalent(groups):
    x = np.random.default_rng(3).random(150)
    found = paired_contrast(x, x, np.arange(150) % groups, scale=SHARE)
    assert verdict(found, 0.02)[0].startswith("equivalent")
    nearly = x.copy()
    nearly[7] = x[7] * (1 - 1e-6)
    assert verdict(paired_contrast(x, nearly, np.arange(150) % groups, scale=SHARE), 0.02)[0].startswith("equivalent")
    shifted = paired_contrast(np.full(150, 0.3), np.full(150, 0.1), np.arange(150) % groups, scale=SHARE)
    assert shifted.ci_low < 0.2 < shifted.ci_high


def test_the_same_outputs_on_a_wider_scale_leave_more_open():
    x = np.full(150, 0.5)
    ends = [paired_contrast(x, x, scale=(0.0, top)).ci_high for top in (1.0, 10.0, 100.0)]
    assert ends == pytest.approx([ends[0], 10 * ends[0], 100 * ends[0]])


def test_below_six_clusters_nothing_is_claimed():
    a, b = np.ones(200), np.repeat([0.0, 1.0], 100)
    for found in (paired_contrast(a, b, np.arange(200) % 5, scale=SHARE), paired_contrast(a, a, np.arange(200) % 5, scale=SHARE)):
        word, sentence = verdict(found, 0.05, unit="documents")
        assert word == "undecided: fewer than 6 documents"
        assert "more documents would" not in sentence
        g = noninferiority_gate("g", "v", found, 0.05)
        assert (g.state, g.least_clusters, g.cases_needed) == ("INCONCLUSIVE", 6, None)
    assert least_clusters(0.05 / 3) == 7


def test_one_document_is_answered_for_itself():
    "150 right of 150 about one document: enough for that document, and nothing about documents like it."
    right = [1.0] * 150
    assert gate("g", "v", right, 0.95).state == "PASS"
    alike = gate("g", "v", right, 0.95, clusters=["resume"] * 150)
    assert (alike.state, alike.cases_needed) == ("INCONCLUSIVE", None)
    assert alike.least_clusters == least_to_pass(0.95, 150) > 6


def test_an_effective_sample_is_no_larger_than_the_sample():
    rng = np.random.default_rng(4)
    for _ in range(40):
        n, groups = int(rng.integers(6, 120)), int(rng.integers(2, 6))
        for values in ((rng.random(n) < 0.5) * 1.0, rng.beta(8, 2, n)):
            s = spread(values, np.arange(n) % groups)
            assert s.n_eff <= n + 1e-9


@pytest.mark.parametrize("groups", [1024, 10_000, 100_000])
def test_many_clusters_get_an_answer(groups):
    script = f"""
import numpy as np, re, time
from distillery.core.stats import SHARE, mean_interval, paired_contrast
from distillery.core.verdicts import verdict
rng, began = np.random.default_rng(5), time.process_time()
a, b = (rng.random({groups}) < .9) * 1., (rng.random({groups}) < .9) * 1.
c = paired_contrast(a, b, [f"document {{i}}" for i in range({groups})], scale=SHARE)
word = verdict(c, .05)[0]
same = verdict(paired_contrast(a, a, scale=SHARE), .05)[0]
print(word, same, mean_interval(a).n, sep=";")
print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
"""
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.splitlines()
    word, same, n = out[0].split(";")
    assert word.startswith(("equivalent", "undecided"))
    assert same.startswith("equivalent")
    assert int(n) == groups
    assert int(out[1]) / 1024 <= 500


def test_flips_of_many_clusters_are_those_of_a_matrix():
    s = np.random.default_rng(6).normal(0.05, 1, 300)
    width = -(-300 // 8)
    bits = np.frombuffer(np.random.default_rng(88).bytes(2000 * width), dtype=np.uint8).reshape(2000, width)
    flips = np.unpackbits(bits, axis=1, count=300).astype(float)
    hits = (np.abs(2 * (flips @ s) - s.sum()) >= abs(s.sum()) - 1e-9).sum()
    assert sign_flip_p(s, 2000) == (hits + 1) / 2001


# Several levels

@pytest.mark.slow
def test_holm_keeps_wrong_equivalents_of_a_card_rare():
    "Levels exactly at the margin: without the adjustment one of twelve would pass in every third card."
    rng, n, alone, adjusted = np.random.default_rng(7), 240, 0, 0
    for _ in range(300):
        losing = lambda: np.where(rng.random(n) < 0.05, 0.0, 1.0)
        contrasts = [paired_contrast(losing(), np.ones(n), np.arange(n) // 4, resamples=1, scale=SHARE) for _ in range(9)]
        alone += any(tost(c, 0.05) <= 0.05 for c in contrasts)
        adjusted += any(c.p_equivalent <= 0.05 for c in ask_equivalence(contrasts, 0.05))
    assert alone / 300 > 0.12
    assert adjusted / 300 <= 0.05 + simulation_error(0.05, 300)


# Gates

@pytest.mark.slow
def test_a_gate_on_latency_counts_documents():
    rng = np.random.default_rng(8)
    passed = {True: 0, False: 0}
    for _ in range(300):
        page = np.repeat(np.arange(36), 10)
        z = sqrt(0.5) * rng.normal(size=36)[page] + sqrt(0.5) * rng.normal(size=360)
        ceiling = scipy_stats.norm.ppf(0.95 - 1e-9)
        for by_page in passed: passed[by_page] += quantile_gate("p95", "v", z, ceiling, clusters=page if by_page else None).state == "PASS"
    assert passed[False] / 300 > 0.04
    assert passed[True] / 300 <= 0.025 + simulation_error(0.025, 300)


def test_a_bound_that_no_case_attains_is_none():
    few = quantile_gate("p95", "v", range(20), 100)
    assert (few.state, few.bound, few.least_clusters) == ("INCONCLUSIVE", None, 73)


@pytest.mark.parametrize("threshold", [0.8, 0.95])
def test_what_a_gate_cannot_do_without_is_enough_if_all_is_right(threshold):
    for size in (1, 5, 30):
        g = least_to_pass(threshold, size)
        def passes(groups, size=size):
            return gate("g", "v", np.ones(groups * size), threshold, clusters=np.arange(groups * size) // size).state == "PASS"

        assert passes(g)
        if size > 1: assert not passes(g - 1)


# Weekly grids

STUDIES = 1000


def coverage(cell, rng, studies=STUDIES):
    "Of a cell: is much known there, share of intervals with the truth, clusters that differ, width beside Student's, what that covers."
    n, groups, unequal, icc, gains, losses = cell
    sizes, truth = document_sizes(n, groups, unequal), gains - losses
    won, lost = draw_outcomes(rng, sizes, gains, losses, icc, studies)
    told = [differences(w, x, sizes) for w, x in zip(won, lost, strict=True)]
    z = NormalDist().inv_cdf(0.975)
    holds = [distance_from(of, truth) <= critical_distance(of, z) for of, _ in told]  # as the interval does
    half = np.array([students_half(of, se, 0.95) for of, se in told])
    former = np.mean(abs(np.array([of.mean for of, _ in told]) - truth) <= half + 1e-9)
    ends = np.array([difference_interval(of) for of, _ in told[:studies // 20]])
    informative = effective_clusters(sizes.astype(float)) >= 6 and n * (gains + losses) >= 5
    some = np.median([effective_clusters(w + x) for w, x in zip(won, lost, strict=True)])
    return informative, np.mean(holds), some, np.median(ends[:, 1] - ends[:, 0]) / (2 * np.median(half)), former


def all_cells(n):
    "What intervals cover in every cell of n questions."
    cells = [(*layout, icc, *pattern) for layout in LAYOUTS if layout[0] == n for icc in ICCS for pattern in PATTERNS]
    rng = np.random.default_rng([9, n])
    return [(cell, *coverage(cell, rng)) for cell in cells]


@pytest.mark.slow
def test_intervals_of_rare_and_one_way_differences_cover(monkeypatch):
    "Where few clusters differ and all point one way, an interval errs on one side only, and covers more than it says."
    remember_designs(monkeypatch)
    with ProcessPoolExecutor(os.cpu_count(), get_context("fork")) as pool:
        found = [row for rows in pool.map(all_cells, (1000, 300, 100, 30)) for row in rows]
    cells = [row[0] for row in found]
    known, holds, some, wider, former = (np.array(column) for column in list(zip(*found, strict=True))[1:])
    low, high = 0.93 - simulation_error(0.93, STUDIES), 0.97 + simulation_error(0.97, STUDIES)
    many, least = some >= 6, min((x, cell) for x, cell, k in zip(holds, cells, known, strict=True) if k)
    same = wider[known & (former >= low)]
    above = lambda some: f"{np.mean(holds[some] > high):.3f} of {some.sum()}"
    print(f"\n{len(cells)} cells, {known.sum()} informative: {np.mean(holds[known] < low):.3f} below 93 %, above 97 % "
          f"{above(known & many)} where 6 clusters differ, {above(known & ~many)} where fewer do; least {least[0]:.3f} {least[1]}; "
          f"others: {np.mean(holds[~known] < low):.3f} below, least {holds[~known].min():.3f}; as wide as Student's where that covers, "
          f"times {np.median(same):.2f} (median), more than 1.25 times in {np.mean(same > 1.25):.3f} of {len(same)}")
    assert np.mean(holds[known] < low) + np.mean(holds[known & many] > high) <= 0.05
    assert least[0] >= 0.91 - simulation_error(0.91, STUDIES), least
    assert np.mean(holds[~known] < low) <= 0.05
    assert np.median(same) <= 1.25


POWER = [(n, groups, icc, *pattern) for n, groups in ((100, 12), (100, 40), (349, 39), (1000, 20), (1000, 60)) for icc in (0.0, 0.1)
         for pattern in ((0.01, 0.01), (0.02, 0.02), (0.05, 0.05), (0.1, 0.1), (0.0, 0.03), (0.02, 0.06), (0.0, 0.1), (0.05, 0.15))]


@pytest.mark.slow
def test_power_beside_students_interval(monkeypatch):
    "Where eight clusters differ, nearly all of it; with fewer Student's finds more, and errs in .06 to .25 of one-way losses."
    remember_designs(monkeypatch)
    rng, rows, margin = np.random.default_rng(10), [], 0.05
    for n, groups, icc, gains, losses in POWER:
        sizes = document_sizes(n, groups, False)
        won, lost = draw_outcomes(rng, sizes, gains, losses, icc, STUDIES // 2)
        told = [differences(w, x, sizes) for w, x in zip(won, lost, strict=True)]
        some = np.median([effective_clusters(w + x) for w, x in zip(won, lost, strict=True)])
        if gains == losses:
            ours = np.mean([equivalence_p(of, margin) <= 0.05 for of, _ in told])
            theirs = np.mean([abs(of.mean) + students_half(of, se, 0.9) <= margin for of, se in told])
        else:
            ours = np.mean([tail_p(of, 0.0) <= 0.025 for of, _ in told])
            theirs = np.mean([abs(of.mean) > students_half(of, se, 0.95) for of, se in told])
        if theirs >= 0.2: rows.append((gains == losses, some, ours / theirs))
    for alike, word in ((True, "equivalent"), (False, "better")):
        for least, most in ((0, 4), (4, 8), (8, 12), (12, inf)):
            part = [r for a, s, r in rows if a == alike and least <= s < most]
            if not part: continue
            print(f"{word}, {least} to {most} clusters differ: {len(part)} cells, power {np.mean(part):.2f} of Student's, "
                  f"least {min(part):.2f}")
    assert min(r for a, s, r in rows if not a and s >= 8) >= 0.85
    assert np.mean([r for a, s, r in rows if a and s >= 12]) >= 0.9


@pytest.mark.slow
@pytest.mark.parametrize(("n", "groups", "margin"), [(100, 20, 0.05), (349, 39, 0.05), (349, 39, 0.02), (150, 30, 0.05), (1000, 100, 0.02)])
@pytest.mark.parametrize("icc", [0.0, 0.1, 0.3])
def test_a_loss_of_exactly_the_margin_is_seldom_equivalent(n, groups, margin, icc, monkeypatch):
    remember_designs(monkeypatch)
    rng, studies = np.random.default_rng([n, int(100 * margin), int(10 * icc)]), 3000
    sizes = document_sizes(n, groups, False)
    won, lost = draw_outcomes(rng, sizes, 0.0, margin, icc, studies)
    told = [differences(w, x, sizes)[0] for w, x in zip(won, lost, strict=True)]
    p = np.array([tail_p(of, -margin) if of.mean > -margin else 1.0 for of in told])
    equivalent, passed = np.mean(p <= 0.05), np.mean(p <= 0.025)
    print(f"n {n}, {groups} documents, margin {margin}, ICC {icc}: equivalent {equivalent:.3f}, PASS {passed:.3f}")
    assert equivalent <= 0.05 + simulation_error(0.05, studies)
    assert passed <= 0.025 + simulation_error(0.025, studies)


@pytest.mark.slow
@pytest.mark.parametrize("icc", ICCS)
@pytest.mark.parametrize("threshold", [0.8, 0.95])
def test_a_false_pass_is_rare_at_any_likeness(threshold, icc):
    rng, studies, sizes = np.random.default_rng([int(100 * threshold), int(10 * icc)]), 2000, np.full(36, 30)
    low = [float(share_posterior(s, sizes.astype(float)).quantile(0.025)) for s in draw_shares(rng, sizes, threshold, icc, studies)]
    rate = np.mean(np.array(low) >= threshold)
    print(f"threshold {threshold}, ICC {icc}: false PASS {rate:.3f}")
    assert rate <= 0.025 + simulation_error(0.025, studies)


def normal_study(rng, groups, effect, unequal, first=0):
    "Normal differences of an intraclass correlation of .2, and their documents."
    sizes = np.clip(np.round(np.exp(rng.normal(1.5, 0.7, groups))), 1, 40).astype(int) if unequal else np.full(groups, 6)
    document = np.repeat(np.arange(groups), sizes)
    return effect + sqrt(0.2) * rng.normal(size=groups)[document] + sqrt(0.8) * rng.normal(size=len(document)), document + first


def judged(d, document, margin):
    contrast = paired_contrast(d, 0 * d, document, resamples=999)
    return contrast, not verdict(contrast, margin)[0].startswith("undecided")


@pytest.mark.slow
@pytest.mark.parametrize("unequal", [False, True])
@pytest.mark.parametrize("groups", [8, 12, 36])
def test_what_a_forecast_asks_for_settles_four_in_five(groups, unequal):
    "Truths: none, half the margin, twice the detectable difference; of each 350 cards, those that are open get what they ask for."
    rng = np.random.default_rng([groups, unequal])
    small = (normal_study(rng, groups, 0, unequal) for _ in range(100))
    margin = float(np.median([paired_contrast(d, 0 * d, g, resamples=99).mde for d, g in small]))
    settled, asked, none = 0, 0, 0
    for effect in (0.0, margin / 2, 2 * margin):
        for _ in range(350):
            d, document = normal_study(rng, groups, effect, unequal)
            contrast, closed = judged(d, document, margin)
            if closed: continue
            asked += 1
            total = clusters_to_decide(contrast, margin)
            none += total is None
            if total is None: continue
            assert total >= least_clusters(0.05)
            more, others = normal_study(rng, min(total, 5000) - groups, effect, unequal, first=10**6)
            settled += judged(np.concatenate([d, more]), np.concatenate([document, others]), margin)[1]
    share = settled / max(1, asked - none)
    print(f"{groups} documents, unequal {unequal}: {asked} open of 1,050, {none} without a number, {share:.3f} settled")
    assert none <= 0.3 * 1050
    assert 0.75 - simulation_error(0.75, asked) <= share <= 0.9 + simulation_error(0.9, asked)


@pytest.mark.slow
@pytest.mark.parametrize("unequal", [False, True])
@pytest.mark.parametrize(("groups", "comparisons"), [(6, 1), (12, 1), (12, 3), (36, 1), (36, 3)])
def test_the_detectable_difference_is_found_four_times_in_five(groups, unequal, comparisons):
    rng = np.random.default_rng([groups, unequal, comparisons])
    small = (normal_study(rng, groups, 0, unequal) for _ in range(200))
    told = [paired_contrast(d, 0 * d, g, resamples=99, comparisons=comparisons).mde for d, g in small]
    effect, found = float(np.median(told)), 0
    for _ in range(400):
        d, document = normal_study(rng, groups, effect, unequal)
        c = paired_contrast(d, 0 * d, document, resamples=1999)
        found += c.ci_low > 0 and comparisons * c.p <= 0.05
    print(f"{groups} documents, unequal {unequal}, {comparisons} comparisons: {found / 400:.3f}")
    assert 0.74 - simulation_error(0.75, 400) <= found / 400 <= 0.95
