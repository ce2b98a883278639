"What a verdict, a gate and a forecast mean, each held against an oracle that knows nothing of the formula."
from math import ceil, inf, sqrt

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats as scipy_stats

from distillery.core import forecasts
from distillery.core.records import Contrast
from distillery.core.stats import Spread, StatsError, least_clusters, paired_contrast, spread, tost, wilson
from distillery.core.forecasts import (
    LIKELY,
    SURE,
    cases_to_settle,
    chance_decided,
    chance_settled,
    clusters_to_decide,
    possible_truths,
)
from distillery.core.verdicts import gate, noninferiority_gate, quantile_gate, spread_gate, verdict, what_is_missing


def contrast(diff, half, p=0.01, **more):
    "A difference with its interval; `se` as for many clusters."
    fields = {"ci_low": diff - half, "ci_high": diff + half, "n_clusters": 40, "se": half / 2, "df": 1000.0} | more
    return Contrast(diff=diff, ci_naive_low=diff, ci_naive_high=diff, p=p, mde=1.0, **fields)


# Verdicts

@given(st.floats(-1, 1), st.floats(0.01, 2), st.floats(0.01, 1), st.integers(6, 500), st.integers(1, 12))
@settings(max_examples=60)
def test_as_many_clusters_as_said_are_likely_to_decide_and_one_less_is_not(diff, half, margin, clusters, comparisons):
    c = contrast(diff, half, n_clusters=clusters)
    g = clusters_to_decide(c, margin, comparisons)
    if g is None:
        assert chance_decided(c, margin, 1000 * clusters, comparisons) < LIKELY
        return
    assert g > clusters
    assert chance_decided(c, margin, g, comparisons) >= LIKELY
    assert g == clusters + 1 or chance_decided(c, margin, g - 1, comparisons) < LIKELY


def drawn_to_decide(c, margin, clusters, comparisons, rng, studies=40_000):
    "The share of second looks that end in a verdict, drawn from a normal law around truths from Student's."
    se, times, alpha = c.se, clusters / c.n_clusters, (1 - c.confidence) / comparisons
    truth = c.diff + se * scipy_stats.t.rvs(c.df, size=studies, random_state=rng)
    mean = (c.diff + (times - 1) * truth + np.sqrt(times - 1) * se * rng.normal(size=studies)) / times
    t = lambda level: scipy_stats.t.ppf(1 - level, c.df * times) * se / sqrt(times)
    better = np.abs(mean) > t(alpha / 2) if clusters >= least_clusters(alpha) else False
    return np.mean((np.abs(mean) < margin - t(alpha)) | better)


@pytest.mark.parametrize("comparisons", [1, 3])
@pytest.mark.parametrize(("diff", "times"), [(0.0, 2), (0.02, 3), (0.05, 2), (-0.04, 8)])
def test_the_chance_of_a_verdict_is_the_share_of_second_looks_that_have_one(diff, times, comparisons):
    c = contrast(diff, 0.06, n_clusters=40, se=0.03, df=30.0)
    drawn = drawn_to_decide(c, 0.05, 40 * times, comparisons, np.random.default_rng(2))
    assert chance_decided(c, 0.05, 40 * times, comparisons) == pytest.approx(drawn, abs=0.02)


LEVELS = {"levels": ("big", "small")}


@pytest.mark.parametrize(("found", "said"), [
    (contrast(0.3, 0.1), "big better"), (contrast(-0.3, 0.1), "small better"),
    (contrast(0.3, 0.1, p=0.2), "undecided"), (contrast(0.1, 0.3), "undecided"), (contrast(-0.1, 0.3), "undecided"),
    (contrast(-0.1, 0.1), "undecided"), (contrast(0.1, 0.1), "undecided"),
    (contrast(0.3, 0.1, p=0.2, p_holm=0.01), "big better"), (contrast(0.3, 0.1, p=0.01, p_holm=0.2), "undecided"),
    (contrast(0.3, 0.1, p=0.5, confidence=0.5), "big better"), (contrast(0.3, 0.1, p=0.51, confidence=0.5), "undecided"),
    (contrast(0.05, 0.01, confidence=0.5), "equivalent"), (contrast(0.051, 0.01, confidence=0.5), "big better")])
def test_a_winner_needs_an_interval_on_one_side_of_zero_and_a_p_of_at_most_alpha(found, said):
    assert verdict(found, 0.05, **LEVELS)[0].startswith(said)
    other = {"big better": "small better", "small better": "big better"}.get(said, said)
    assert verdict(found, 0.05, higher_is_better=False, **LEVELS)[0].startswith(other)


@given(st.floats(-0.1, 0.1), st.floats(0.001, 0.1), st.floats(0.01, 0.1))
def test_it_is_equivalent_where_both_one_sided_tests_say_so(diff, half, margin):
    c = contrast(diff, half)
    assert verdict(c, margin)[0].startswith("equivalent") == (tost(c, margin) <= 0.05)


def test_a_margin_must_be_positive():
    for margin in (0.0, -0.1):
        with pytest.raises(StatsError) as error: verdict(contrast(0.1, 0.2), margin)
        assert error.value.fix


def test_the_sentence_writes_signs_and_a_zero_without_one():
    said = verdict(contrast(0.0, 0.25), 0.05, ("a", "b"))[1]
    assert "a − b = 0.00, 95 % interval [−0.25, +0.25] (40 cases)" in said


# Forecasts

many = st.builds(lambda k, n: spread([1] * min(k, n) + [0] * (n - min(k, n))), st.integers(0, 200), st.integers(5, 200))
graded = Spread(0.7, 0.03, 17.0, 120, 20)  # a scale without ends
clustered = Spread(0.7, sqrt(0.7 * 0.3 / 40), 19.0, 120, 20, 40.0)  # 120 cases that are worth 40


@pytest.mark.parametrize("s", [graded, clustered, spread([1] * 31 + [0] * 5), Spread(0.5, 0.2, 3.0, 40, 4)])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_as_many_possible_truths_lie_in_the_interval_as_its_coverage_says(s, confidence):
    truths, (low, high) = possible_truths(s, confidence), s.interval(confidence)
    assert len(truths) == 201
    assert (np.diff(truths) > 0).all()
    assert np.mean((low <= truths) & (truths <= high)) == pytest.approx(confidence, abs=0.02)


@given(many)
def test_truths_of_a_share_are_those_of_jeffreys(s):
    right, chances = s.mean * s.n, (np.arange(201) + 0.5) / 201
    assert possible_truths(s) == pytest.approx(scipy_stats.beta(right + 0.5, s.n - right + 0.5).ppf(chances), abs=1e-9)


@given(st.floats(0, 1), st.floats(5, 200), st.floats(2, 100), st.floats(0.6, 0.99))
def test_few_clusters_count_for_fewer_cases(mean, n_eff, df, confidence):
    "A share of z²/t² of them, so that the interval is as wide as Student's."
    level = (1 + confidence) / 2
    worth = n_eff * (scipy_stats.norm.ppf(level) / scipy_stats.t.ppf(level, df)) ** 2
    few, same = Spread(mean, 0.1, df, 300, 20, n_eff), Spread(mean, 0.1, inf, 300, 20, worth)
    assert possible_truths(few, confidence) == pytest.approx(possible_truths(same, confidence), abs=1e-9)


def drawn_to_settle(s, truths, threshold, n, confidence, rng):
    "The share of second looks that end in PASS or FAIL, drawn case by case where cases are right or wrong, else from a normal law."
    truth, more = np.repeat(truths, 400), n - s.n
    if s.n_eff == s.n: total = s.mean * s.n + rng.binomial(more, truth)
    else:
        variance = truth * (1 - truth) * s.n / s.n_eff if s.n_eff else s.se**2 * s.n
        total = s.mean * s.n + more * truth + rng.normal(size=len(truth)) * np.sqrt(more * variance)
    means, level = total / n, (1 + confidence) / 2
    t = scipy_stats.norm.ppf(level) if s.df == inf else scipy_stats.t.ppf(level, s.df * n / s.n)
    if s.n_eff is None:
        half = t * s.se * sqrt(s.n / n)
        return np.mean((means - half >= threshold) | (means + half < threshold))
    worth = s.n_eff * n / s.n
    score = (means - threshold) / sqrt(threshold * (1 - threshold) / worth)  # Wilson's interval is the score test turned round
    return np.mean(abs(score) >= t)


@pytest.mark.parametrize("confidence", [0.8, 0.95])
@pytest.mark.parametrize("s", [graded, clustered, spread([1] * 310 + [0] * 90), spread([1] * 270 + [0] * 130)])
@pytest.mark.parametrize(("threshold", "times"), [(0.63, 2), (0.8, 2), (0.8, 5), (0.66, 10)])
def test_the_forecast_is_the_share_of_second_looks_that_settle(s, threshold, times, confidence):
    truths, n = possible_truths(s), times * s.n
    drawn = drawn_to_settle(s, truths, threshold, n, confidence, np.random.default_rng(1))
    assert chance_settled(s, truths, threshold, n, confidence) == pytest.approx(drawn, abs=0.02)


def test_no_further_case_settles_what_is_settled_and_nothing_else():
    for s in (graded, clustered, spread([1] * 31 + [0] * 5)):
        low, high = s.interval()
        for threshold, settled in ((low - 0.02, 1.0), (high + 0.02, 1.0), (s.mean, 0.0), (low + 0.01, 0.0), (high - 0.01, 0.0)):
            assert chance_settled(s, possible_truths(s), threshold, s.n) == settled


@settings(max_examples=40)
@given(st.integers(4, 60), st.floats(0.02, 0.98), st.floats(0.02, 0.98))
def test_a_forecast_is_the_smallest_number_that_is_likely_enough(n, share, threshold):
    s = spread([1] * round(share * n) + [0] * (n - round(share * n)))
    if gate("g", "v", [1] * round(share * n) + [0] * (n - round(share * n)), threshold).state != "INCONCLUSIVE": return
    needed, truths = cases_to_settle(s, threshold), possible_truths(s)
    if needed is None: return
    assert needed > n
    assert chance_settled(s, truths, threshold, needed) >= SURE
    assert needed == n + 1 or chance_settled(s, truths, threshold, needed - 1) < SURE


def test_forecasts_far_and_near_are_found_to_the_case(monkeypatch):
    "Whatever number it is that is likely enough, that one is found."
    for first in (41, 42, 59, 60, 61, 79, 80, 81, 82, 119, 120, 121, 160, 161, 162, 241):
        monkeypatch.setattr(forecasts, "chance_settled", lambda s, truths, threshold, n, confidence, first=first: float(n >= first))
        assert cases_to_settle(spread([1, 0] * 20), 0.5) == first


@pytest.mark.parametrize("first", [81, 160, 161, 320, 321])
def test_beyond_the_most_cases_no_number_is_named(monkeypatch, first):
    monkeypatch.setattr(forecasts, "chance_settled", lambda s, truths, threshold, n, confidence: float(n >= first))
    for most in (160, 320):
        monkeypatch.setattr(forecasts, "MOST", most)
        assert cases_to_settle(spread([1, 0] * 20), 0.5) == (first if first <= most else None)


def test_no_number_of_right_and_wrong_settles_whether_all_are():
    for threshold in (-0.5, 0.0, 1.0, 1.5): assert cases_to_settle(spread([1] * 31 + [0] * 5), threshold) is None
    assert cases_to_settle(graded, 1.0) is not None


# Gates

@pytest.mark.parametrize("s", [Spread(0.3, 0.1, inf, 50, 50), Spread(-0.2, 0.05, 12.0, 50, 10), spread([1] * 31 + [0] * 19)])
@pytest.mark.parametrize("side", ["min", "max"])
@pytest.mark.parametrize("place", [-0.4, 0.0, 0.3, 0.7, 1.0, 1.4])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_a_gate_passes_or_fails_only_with_the_whole_interval(s, side, place, confidence):
    low, high = s.interval(confidence)
    threshold = low if place == 0 else high if place == 1 else low + place * (high - low)
    g = spread_gate("g", "v", s, threshold, side, confidence)
    holds = (low >= threshold, high < threshold) if side == "min" else (high <= threshold, low > threshold)
    assert g.state == ("PASS" if holds[0] else "FAIL" if holds[1] else "INCONCLUSIVE")
    nearest = {"min": {"FAIL": high}, "max": {"FAIL": low}}[side].get(g.state, low if side == "min" else high)
    assert (g.bound, g.value, g.n, g.threshold, g.side) == (nearest, s.mean, 50, threshold, side)
    if g.least_clusters: assert (g.state, g.cases_needed) == ("INCONCLUSIVE", None)
    else: assert g.cases_needed == (cases_to_settle(s, threshold, confidence) if g.state == "INCONCLUSIVE" else None)


@pytest.mark.parametrize(("confidence", "size", "least"), [(0.9, 2, 12), (0.95, 3, 12), (0.95, 5, 10)])
def test_the_fewest_clusters_with_which_a_gate_passes(confidence, size, least):
    found = lambda n: gate("g", "v", [1] * (size * n), 0.9, clusters=np.repeat(range(n), size), confidence=confidence)
    assert (found(least - 1).state, found(least - 1).least_clusters, found(least).state) == ("INCONCLUSIVE", least, "PASS")


def test_truths_of_another_scale_are_those_of_shares_drawn_out():
    x = np.random.default_rng(5).choice([0, 0.25, 0.5, 1.0], 40)
    assert possible_truths(spread(1 + 4 * x, scale=(1, 5))) == pytest.approx(1 + 4 * possible_truths(spread(x)))


def test_the_fewest_cases_that_can_pass_are_enough_and_one_less_is_told_of():
    assert gate("g", "v", [1] * 35, 0.9).model_dump().items() >= {"state": "PASS", "least_clusters": None}.items()
    assert gate("g", "v", [1] * 34, 0.9).model_dump().items() >= {"state": "INCONCLUSIVE", "least_clusters": 35}.items()
    assert [gate("g", "v", [0] * n, 0.1, "max").least_clusters for n in (34, 35)] == [35, None]
    assert gate("g", "v", [1] * 34 + [0], 0.9).least_clusters is None, "enough of them, but not all right"


@pytest.mark.parametrize(("confidence", "least"), [(0.95, 6), (0.9, 5)])
def test_too_few_clusters_are_told_how_many_are_enough(confidence, least):
    few = lambda n: what_is_missing(contrast(0.02, 0.5, n_clusters=n, df=n - 1.0, confidence=confidence), 0.05, "pages")[0]
    assert few(least - 1) == f"undecided: fewer than {least} pages"
    assert "fewer" not in few(least)
    clear = [contrast(1.0, 0.1, n_clusters=n, df=n - 1.0, confidence=confidence, p=0.001) for n in (least - 1, least)]
    assert [verdict(c, 0.05, ("a", "b"))[0] == "a better" for c in clear] == [False, True]


def test_what_is_missing_is_counted_beyond_what_is_there():
    c = contrast(0.06, 0.1)
    assert what_is_missing(c, 0.05, "pages")[0] == f"undecided: {clusters_to_decide(c, 0.05) - c.n_clusters} more pages"


def test_the_fewest_clusters_that_can_be_shown_better_are_enough():
    least = least_clusters(0.05)
    c = contrast(1.0, 0.1, n_clusters=least - 1, df=least - 2.0)
    assert chance_decided(c, 0.05, least) > 0.99
    assert chance_decided(c, 0.05, least - 1) == 0


def test_gates_are_at_95_percent_unless_told():
    values = [0.2, 0.9, 0.4, 0.8, 0.6, 0.7]
    assert gate("g", "v", values, 0.5) == gate("g", "v", values, 0.5, confidence=0.95) == spread_gate("g", "v", spread(values), 0.5)
    times = np.linspace(1, 2, 90)
    assert quantile_gate("g", "v", times, 1.9) == quantile_gate("g", "v", times, 1.9, 0.95, 0.95)
    s = spread([1] * 31 + [0] * 5)
    assert (possible_truths(clustered) == possible_truths(clustered, 0.95)).all()
    assert cases_to_settle(s, 0.8) == cases_to_settle(s, 0.8, 0.95)
    assert chance_settled(s, possible_truths(s), 0.8, 99) == chance_settled(s, possible_truths(s), 0.8, 99, 0.95)


@pytest.mark.parametrize(("margin", "state"), [(0.3, "PASS"), (0.05, "INCONCLUSIVE"), (-0.2, "FAIL")])
def test_a_loss_smaller_than_the_margin_is_borne(margin, state):
    d = np.random.default_rng(3).normal(-0.02, 0.3, 60)
    c = paired_contrast(d, 0 * d, np.arange(60) // 3)
    g = noninferiority_gate("g", "v", c, margin)
    assert (g.state, g.threshold, g.value, g.n) == (state, -margin, c.diff, 60)
    assert g.bound == pytest.approx(c.ci_high if state == "FAIL" else c.ci_low)
    assert g.least_clusters is None
    sd = (c.ci_high - c.ci_low) / 2 / scipy_stats.t.ppf((1 + c.confidence) / 2, c.df)
    needed = cases_to_settle(Spread(c.diff, sd, c.df, c.n_items, c.n_clusters), -margin, c.confidence)
    assert g.cases_needed == (needed if state == "INCONCLUSIVE" else None)


def test_a_loss_in_too_few_clusters_names_the_fewest_that_can_tell():
    d = np.random.default_rng(3).normal(-0.02, 0.3, 12)
    g = noninferiority_gate("g", "v", paired_contrast(d, 0 * d, np.arange(12) // 3), 0.9)
    assert (g.state, g.least_clusters, g.cases_needed) == ("INCONCLUSIVE", least_clusters(0.05), None)


@settings(max_examples=25)
@given(st.integers(1, 120), st.sampled_from((0.2, 0.5, 0.9, 0.95)), st.sampled_from((0.8, 0.95)), st.data())
def test_the_bound_of_a_quantile_is_the_ceiling_at_which_its_state_would_change(n, quantile, confidence, data):
    "Of a failed gate the smallest that does not fail, of any other the smallest that passes."
    x = np.sort(np.random.default_rng(n).permutation(10 * n)[:n]).astype(float)
    threshold = float(data.draw(st.sampled_from([-1.0, *x])))
    at = lambda ceiling: wilson((x <= ceiling).sum(), n, confidence)
    g = quantile_gate("g", "v", x[::-1], threshold, quantile, confidence)
    low, high = at(threshold)
    assert g.state == ("PASS" if low >= quantile else "FAIL" if high < quantile else "INCONCLUSIVE")
    good = [c for c in x if (at(c)[1] >= quantile if g.state == "FAIL" else at(c)[0] >= quantile)]
    assert g.bound == (good[0] if good else None)
    assert g.value == x[min(n - 1, ceil(quantile * (n - 1)))]
    assert (g.n, g.threshold, g.side) == (n, threshold, "max")
    if g.least_clusters: return
    assert g.cases_needed == (cases_to_settle(spread(x <= threshold), quantile, confidence) if g.state == "INCONCLUSIVE" else None)


def test_where_all_cases_exceed_the_ceiling_the_least_of_them_is_the_bound():
    g = quantile_gate("g", "v", range(1, 21), 0.5, quantile=0.2)
    assert (g.state, g.bound) == ("FAIL", 1.0)


@pytest.mark.parametrize("bad", [[], [1.0, float("nan")], [float("inf")]])
def test_a_quantile_needs_finite_values(bad):
    with pytest.raises(StatsError) as error: quantile_gate("g", "v", bad, 1.0)
    assert error.value.fix
