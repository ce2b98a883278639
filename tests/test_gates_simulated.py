"Gates on students whose true rate is known: how often a pass is false, and how often the forecast of cases settles what was open."
from functools import cache, partial
from math import inf, sqrt

import numpy as np
import pytest

from distillery.core.stats import Spread, paired_contrast, spread, wilson
from distillery.core.forecasts import cases_to_settle
from distillery.core.verdicts import gate, noninferiority_gate, quantile_gate

AWAY = (-0.15, -0.10, -0.05, 0.05, 0.10)  # true rates, from the threshold
LONGEST = 30_000  # longer looks are cut: they could only settle more
WEEKLY = partial(pytest.param, marks=pytest.mark.slow)


def share(k, n):
    return Spread(k / n, sqrt(k / n * (1 - k / n) / n), inf, n, n, float(n))


@cache
def needed(k, n, threshold):
    return cases_to_settle(share(k, n), threshold)


def state(k, n, threshold):
    low, high = wilson(k, n)
    return "PASS" if low >= threshold else "FAIL" if high < threshold else "INCONCLUSIVE"


def look_twice(rates, n, threshold, rng):
    "States of the first look, and of the second with as many cases as the first asked for."
    first, second = [], []
    for rate in rates:
        k = int(rng.binomial(n, rate))
        first.append(state(k, n, threshold))
        if first[-1] != "INCONCLUSIVE":
            second.append(first[-1])
            continue
        total = min(needed(k, n, threshold) or LONGEST, LONGEST)
        second.append(state(k + int(rng.binomial(total - n, rate)), total, threshold))
    return np.array(first), np.array(second)


def settled(first, second):
    still = first == "INCONCLUSIVE"
    return float(np.mean(second[still] != "INCONCLUSIVE")) if still.any() else 1.0, int(still.sum())


@pytest.mark.parametrize(("threshold", "n"), [(0.80, 36), WEEKLY(0.35, 100), (0.92, 150), WEEKLY(0.90, 60)])
def test_the_forecast_settles_most_of_what_was_open(threshold, n):
    rng, shares = np.random.default_rng(5), {}
    for away in AWAY:
        rate = threshold + away
        if not 0 < rate < 1: continue
        shares[away], open_ones = settled(*look_twice(np.full(4000, rate), n, threshold, rng))
        if open_ones < 100: del shares[away]
    assert len(shares) >= 2
    assert min(shares.values()) >= 0.80, shares


@pytest.mark.parametrize(("threshold", "n"), [(0.80, 36), WEEKLY(0.35, 100), WEEKLY(0.92, 150)])
def test_over_all_truths_it_settles_four_in_five(threshold, n):
    "Truths from everywhere, those beside the threshold included, which hardly any number of cases settles."
    rng = np.random.default_rng(6)
    found, open_ones = settled(*look_twice(rng.uniform(max(0, threshold - 0.4), min(1, threshold + 0.4), 36_000), n, threshold, rng))
    assert open_ones > 3000
    assert found >= 0.80


def test_taking_the_mean_for_the_truth_would_settle_every_second_one():
    rng, threshold, n, right = np.random.default_rng(7), 0.80, 36, []
    for rate in rng.uniform(0.6, 1.0, 3000):
        k = int(rng.binomial(n, rate))
        if state(k, n, threshold) != "INCONCLUSIVE": continue
        total = next((m for m in (round(n * 1.02**i) for i in range(1, 400)) if state(k / n * m, m, threshold) != "INCONCLUSIVE"), LONGEST)
        right.append(state(k + int(rng.binomial(total - n, rate)), total, threshold) != "INCONCLUSIVE")
    assert 0.35 < np.mean(right) < 0.70


@pytest.mark.parametrize(("threshold", "n"), [(0.80, 36), WEEKLY(0.35, 100), WEEKLY(0.92, 150), (0.90, 60)])
def test_a_false_pass_is_rare(threshold, n):
    "Just below the threshold, where it is likeliest. Who looks twice spends the error twice, and more where Wilson's interval is short."
    first, second = look_twice(np.full(8000, threshold - 1e-9), n, threshold, np.random.default_rng(8))
    assert (first == "PASS").mean() <= 0.03
    assert (second == "PASS").mean() <= 0.06


def pages(rate, n, rng, likeness=0.2, size=6, first=0):
    "Cases of one page share a difficulty."
    groups = -(-n // size)
    scale = 1 / likeness - 1
    hard = rng.beta(rate * scale, (1 - rate) * scale, groups)
    names = np.repeat(np.arange(groups), size)[:n]
    return (rng.random(n) < hard[names]) * 1.0, names + first


def near(values, rng):
    "A score between 0 and 1 with the same mean, such as token F1."
    return np.where(values > 0, rng.uniform(0.6, 1.0, len(values)), rng.uniform(0.0, 0.4, len(values)))


@pytest.mark.parametrize("graded", [WEEKLY(False), True])
@pytest.mark.parametrize("away", [-0.10, WEEKLY(-0.05), 0.05])
def test_clustered_gates_settle_too(away, graded):
    rng, threshold, n, hits = np.random.default_rng(9), 0.80 if not graded else 0.60, 120, []
    rate = threshold + away
    true = rate if not graded else (rate - 0.2) / 0.6
    for _ in range(350):
        x, c = pages(true, n, rng)
        if graded: x = near(x, rng)
        found = gate("g", "v", x, threshold, clusters=c)
        if found.state != "INCONCLUSIVE": continue
        more = min(found.cases_needed, 12_000) - n
        y, d = pages(true, more, rng, first=10**6)
        if graded: y = near(y, rng)
        s = spread(np.concatenate([x, y]), np.concatenate([c, d]))
        low, high = s.interval()
        hits.append(low >= threshold or high < threshold)
    assert len(hits) > 60
    assert np.mean(hits) >= 0.80, np.mean(hits)


@pytest.mark.parametrize(("threshold", "likeness"), [(0.80, 0.4), WEEKLY(0.80, 0.1), WEEKLY(0.92, 0.2)])
@pytest.mark.slow
def test_a_false_pass_is_rare_in_clusters(threshold, likeness):
    rng = np.random.default_rng(10)
    passed = [gate("g", "v", x, threshold, clusters=c).state == "PASS"
              for x, c in (pages(threshold - 1e-9, 120, rng, likeness) for _ in range(1500))]
    assert np.mean(passed) <= 0.05


@pytest.mark.slow
def test_a_false_pass_of_noninferiority_is_rare():
    "A variant that loses exactly the margin: it flips one answer in ten to wrong, one in twenty to right."
    rng, passed, forecast = np.random.default_rng(11), [], []
    for _ in range(1500):
        d = rng.choice([-1.0, 1.0, 0.0], size=200, p=[0.10, 0.05, 0.85])
        found = noninferiority_gate("g", "v", paired_contrast(d, 0 * d, np.arange(200) // 5, resamples=99), 0.05)
        passed.append(found.state == "PASS")
        forecast.append(found.cases_needed)
    assert np.mean(passed) <= 0.05
    assert all(f is None or f > 200 for f in forecast)


@pytest.mark.slow
def test_a_false_pass_of_a_latency_budget_is_rare():
    rng = np.random.default_rng(12)
    for n in (80, 300):
        states = [quantile_gate("p95", "v", rng.random(n), 0.95 - 1e-9).state for _ in range(600)]
        assert np.mean([s == "PASS" for s in states]) <= 0.05
