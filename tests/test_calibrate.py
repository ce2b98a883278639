"Calibration: what ships where nothing is wrong and where scores are squeezed, coverage of intervals, and what a person should see."
import json

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from distillery.core.errors import DistilleryError
from distillery.filters.calibrate import (
    Calibration, Curve, calibrate, cluster_quantile, doubt_curve, fit_curve, in_doubt, read_test, ships)
from distillery.filters.runtime import calibrated

NAMES = tuple(f"d{i}" for i in range(6))
WEIGHTS = np.array([0.25, 0.2, 0.2, 0.15, 0.1, 0.1])


def combine(scores: np.ndarray) -> np.ndarray: return scores @ WEIGHTS


def study(rng, slope: float, topics: int = 43, each: int = 6, icc: float = 0.3, noise: float = 0.6):
    "True and predicted scores of articles that are alike within topics; predictions are squeezed towards the middle by `slope`."
    topic = np.repeat(np.arange(topics), each)
    def alike(sd): return rng.normal(0, sd * icc**0.5, (topics, 6))[topic] + rng.normal(0, sd * (1 - icc) ** 0.5, (len(topic), 6))
    expected = np.clip(5 + alike(1.4), 0, 10)
    truth = np.clip(expected + alike(noise), 0, 10)  # the prediction is the truth's expectation, before it is squeezed
    return 5 + slope * (expected - 5), truth, topic.tolist()


def ships_any(rng, slope: float) -> list[bool]:
    predicted, truth, topic = study(rng, slope)
    return [ships(c) for c in calibrate(predicted, truth, topic, NAMES, combine).gains.values()]


def test_a_useless_curve_stays_and_a_needed_one_ships():
    rng = np.random.default_rng(88)
    assert sum(any(ships_any(rng, 1.0)) for _ in range(8)) <= 1
    assert all(all(ships_any(rng, 0.6)) for _ in range(8))


@pytest.mark.slow
def test_ships_over_two_hundred_seeds():
    "Truth identity: any of six curves in at most 5 %; planted regression to the mean: all of them in at least 95 %."
    assert np.mean([any(ships_any(np.random.default_rng(seed), 1.0)) for seed in range(200)]) <= 0.05
    assert np.mean([all(ships_any(np.random.default_rng(seed), 0.6)) for seed in range(200)]) >= 0.95


def coverage(seed: int, slope: float) -> float:
    "Share of the articles of two hundred new topics whose true scores, and weighted score, lie inside."
    rng = np.random.default_rng(seed)
    calibration = calibrate(*study(rng, slope), NAMES, combine)
    predicted, truth, topic = study(rng, slope, topics=200)
    tested = read_test(calibration, predicted, truth, topic, combine)
    return float(np.mean([r.covered.mean for r in tested.test.values()]))


def test_stated_intervals_cover(): assert 0.84 < np.mean([coverage(seed, 0.6) for seed in range(4)]) < 0.96


@pytest.mark.slow
@pytest.mark.parametrize("slope", [0.6, 1.0])
def test_stated_intervals_cover_over_a_hundred_seeds(slope):
    assert 0.87 <= np.mean([coverage(seed, slope) for seed in range(100)]) <= 0.93


@pytest.mark.slow
def test_intervals_of_few_and_of_likely_alike_clusters():
    "Where articles of a topic are nearly the same, one vote an article would cover too little; one vote a cluster holds."
    rng, inside = np.random.default_rng(88), {"clusters": [], "articles": []}
    for _ in range(400):
        topic = np.repeat(np.arange(20), rng.integers(1, 30, 20))
        errors = np.abs(rng.normal(size=20)[topic] + 0.1 * rng.normal(size=len(topic)))
        new = np.abs(rng.normal(size=200) + 0.1 * rng.normal(size=200))
        for name, owner in (("clusters", topic), ("articles", np.arange(len(topic)))):
            inside[name].append((new <= cluster_quantile(errors, owner.tolist())).mean())
    assert np.mean(inside["clusters"]) >= 0.89 > np.mean(inside["articles"])


@given(st.integers(1, 40), st.integers(0, 2**32 - 1))
@settings(max_examples=40)
def test_one_article_a_cluster_is_plain_conformal(n, seed):
    errors = np.random.default_rng(seed).random(n)
    place = int(np.ceil(0.9 * (n + 1) - 1e-9))
    assert cluster_quantile(errors, range(n)) == (np.sort(errors)[place - 1] if place <= n else np.inf)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20)
def test_a_curve_never_turns_an_order_around(seed):
    rng = np.random.default_rng(seed)
    curve = fit_curve(rng.uniform(0, 10, 30), rng.uniform(0, 10, 30))
    assert (np.diff(curve.apply(np.linspace(-2, 12, 200))) >= -1e-12).all()


def test_the_test_is_read_once_and_a_record_keeps_it():
    rng = np.random.default_rng(88)
    calibration = calibrate(*study(rng, 0.6), NAMES, combine)
    held = study(rng, 0.6)
    tested = read_test(calibration, *held, combine)
    with pytest.raises(DistilleryError, match="read already"): read_test(tested, *held, combine)
    again = Calibration.model_validate_json(tested.model_dump_json())
    assert again == tested
    assert np.allclose(again.apply(held[0]), calibration.apply(held[0]))
    assert tested.test["weighted"].after.mean < tested.test["weighted"].before.mean


def test_few_clusters_have_no_interval():
    predicted, truth, topic = study(np.random.default_rng(88), 1.0, topics=6)
    calibration = calibrate(predicted, truth, topic, NAMES, combine)
    assert set(calibration.halves.values()) == {None}
    assert in_doubt(combine(predicted), calibration.halves["weighted"], (4, 6)).all()


def test_sending_the_doubtful_beats_sending_at_random():
    rng = np.random.default_rng(88)
    predicted, truth, topic = study(rng, 1.0, topics=120)
    left = {s: e.mean for s, e in doubt_curve(combine(truth), combine(predicted), (4, 6), topic).items()}
    assert left[0.3] < 0.6 * left[0.0]
    assert list(left.values()) == sorted(left.values(), reverse=True)


@pytest.mark.parametrize("names", [["reach", "benefit"], ["b", "a", "c"], ["z_1", "m", "a_9", "k"]])
def test_curves_find_their_dimensions_in_whatever_order_a_file_has_them(names):
    curves = {d: Curve(x=[0, 10], y=[i, 10 - i]) for i, d in enumerate(names)}
    made = Calibration(dimensions=names, curves=curves, gains={}, halves={}, n=9, n_clusters=9)
    read = Calibration.model_validate_json(json.dumps(made.model_dump(mode="json", by_alias=True), sort_keys=True))
    points = np.random.default_rng(88).uniform(0, 10, (7, len(names)))
    wanted = np.stack([curves[d].apply(points[:, i]) for i, d in enumerate(names)], 1)
    assert (read.apply(points) == wanted).all()
    kept = json.loads(json.dumps(made.model_dump(mode="json")["curves"], sort_keys=True))
    assert np.allclose(calibrated(points, kept, names), wanted)
