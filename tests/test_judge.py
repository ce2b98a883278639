"Judging the judge: clustered PPI++ as glide-py computes it, intervals that cover, drift that is found, agreement as others count it."
import gzip
import json
from math import sqrt
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from distillery.commands.cli import app
from distillery.core.errors import DistilleryError
from distillery.core.metrics import token_f1
from distillery.core.stats import StatsError, mean_interval
from distillery.filters.quality import spearman
from distillery.questions.agreement import agreements, kappa, krippendorff
from distillery.questions.judged import Judged, read_judged
from distillery.questions.powered import cluster_means, judge_weight, label_order, powered_interval, powered_mean, powered_sum
from distillery.questions.steady import drift_looks, position_bias, self_consistency

RATINGS = Path(__file__).resolve().parents[2] / "shared/data/squality/human_ratings.jsonl.gz"
FIXTURES = json.loads((Path(__file__).parent / "data/powered.json").read_text())
SCORES = {"normal": lambda x: x, "ratings": lambda x: np.clip(np.round(4 + 0.9 * x), 1, 5)}


def run(*args):
    done = CliRunner().invoke(app, [str(a) for a in args])
    if isinstance(done.exception, DistilleryError): return done.exception.exit_code, f"{done.exception.message}\n{done.exception.fix}"
    if done.exception and not isinstance(done.exception, SystemExit): raise done.exception
    return done.exit_code, done.output


def clusters(rng, n, of, correlation, kind="normal"):
    "Items of `of` clusters with one to eight each, `n` of them labelled; the correlation is that of cluster means without their noise."
    sizes = rng.integers(1, 9, of)
    owner, truth = np.repeat(np.arange(of), sizes), rng.normal(size=of)
    judged = correlation * truth + sqrt(1 - correlation**2) * rng.normal(size=of)
    human, judge = (SCORES[kind](x[owner] + 0.5 * rng.normal(size=len(owner))) for x in (truth, judged))
    return np.where(owner < n, human, np.nan), judge, owner


def test_there_are_twenty_fixtures(): assert len(FIXTURES) == 20


@pytest.mark.parametrize("study", FIXTURES, ids=range(20))
def test_weight_mean_and_standard_error_are_those_of_glide(study):
    human = [np.nan if x is None else x for x in study["human"]]
    means = cluster_means(human, study["judge"], study["cluster"])
    weight = judge_weight(means)
    assert [weight, *powered_sum(means, weight)] == pytest.approx(study["glide"], abs=1e-9)


def held(n, of, correlation, kind, studies, seed):
    "Share of the studies whose interval holds the true mean, and widths beside those of labels alone."
    rng = np.random.default_rng([seed, n])
    human, _, owner = clusters(rng, 10**9, 400_000, 0, kind)
    truth, found, widths = float(cluster_means(human, human, owner).human.mean()), 0, []
    for _ in range(studies):
        table = clusters(rng, n, of, correlation, kind)
        p = powered_mean(Judged([str(i) for i in range(len(table[1]))], table[1], table[0][:, None], [str(c) for c in table[2]]))
        found += p.mean.ci_low <= truth <= p.mean.ci_high
        widths.append([p.mean.ci_high - p.mean.ci_low, p.labels.ci_high - p.labels.ci_low])
    ours, alone = np.mean(widths, axis=0)
    return found / studies, ours / alone


def test_intervals_cover_and_are_narrower():
    "A cheap look at what the next test asks for."
    rng = np.random.default_rng(5)
    drawn = [powered_interval(cluster_means(*clusters(rng, 12, 100, 0.75))) for _ in range(400)]
    assert abs(np.mean([e.ci_low <= 0 <= e.ci_high for e in drawn]) - 0.95) <= 4 * sqrt(0.95 * 0.05 / 400)


@pytest.mark.slow
@pytest.mark.parametrize(("n", "of"), [(12, 100), (15, 100), (30, 300), (60, 600)])
@pytest.mark.parametrize("kind", SCORES)
@pytest.mark.parametrize("correlation", [0.0, 0.75])
def test_intervals_cover_the_truth(n, of, kind, correlation):
    "Within 93 to 97 %, three Monte Carlo errors allowed."
    covered, _ = held(n, of, correlation, kind, 2000, 88)
    assert 0.93 - 3 * sqrt(0.93 * 0.07 / 2000) <= covered <= 0.97 + 3 * sqrt(0.93 * 0.07 / 2000)


def test_widths_at_sixty_labels():
    "Means of clusters that correlate .75: at least a fifth narrower than labels alone; that do not: no narrower, 5 % wider at most."
    widths, rng = {}, np.random.default_rng(60)
    for correlation in (0.75, 0.0):
        ratios = []
        for _ in range(150):
            truth = rng.normal(size=600)
            judge = correlation * truth + sqrt(1 - correlation**2) * rng.normal(size=600)
            means = cluster_means(np.where(np.arange(600) < 60, truth, np.nan), judge, range(600))
            ours, alone = powered_interval(means), mean_interval(means.human, scale=None)
            ratios.append((ours.ci_high - ours.ci_low) / (alone.ci_high - alone.ci_low))
        widths[correlation] = np.mean(ratios)
    assert widths[0.75] <= 0.8
    assert 1 <= widths[0.0] <= 1.05


def test_the_order_of_rows_does_not_count_and_a_torn_cluster_is_refused():
    human, judge, owner = clusters(np.random.default_rng(3), 12, 60, 0.75)
    turn = np.random.default_rng(4).permutation(len(owner))
    one, other = cluster_means(human, judge, owner), cluster_means(human[turn], judge[turn], owner[turn])
    assert powered_interval(one).mean == pytest.approx(powered_interval(other).mean, abs=1e-12)
    human[np.flatnonzero(owner == np.bincount(owner[owner < 12]).argmax())[0]] = np.nan
    with pytest.raises(StatsError, match=r"has labels for \d of its"): cluster_means(human, judge, owner)


def test_a_judge_that_says_one_thing_and_too_few_labels_are_refused():
    with pytest.raises(StatsError, match="same score"): judge_weight(cluster_means([1, 2, 3, 4, np.nan, np.nan], [3] * 6, range(6)))
    with pytest.raises(StatsError, match="3 labelled clusters"):
        powered_interval(cluster_means([1, 2, 3, np.nan, np.nan], [1, 2, 3, 4, 5], range(5)))


def test_an_order_of_labelling_stays_when_clusters_are_added():
    table = lambda n: Judged([str(i) for i in range(n)], np.arange(n) * 1.0, np.where(np.arange(n) < 3, 1.0, np.nan)[:, None])
    few, many = label_order(table(20)), label_order(table(40))
    assert [c for c in many if int(c) < 20] == few
    assert set(few) == {str(i) for i in range(3, 20)}


def test_kappa_is_that_of_scikit_learn_and_alpha_that_of_its_definition():
    sklearn = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(8)
    for _ in range(20):
        a, b = rng.integers(1, 6, 40), rng.integers(1, 6, 40)
        assert kappa(a * 1.0, b * 1.0, np.ones(40)) == pytest.approx(sklearn.cohen_kappa_score(a, b, weights="quadratic"), abs=1e-12)
        scores = np.where(rng.random((30, 4)) < 0.3, np.nan, rng.integers(0, 5, (30, 4)))
        units = [u[~np.isnan(u)] for u in scores]
        units = [u for u in units if len(u) > 1]
        every = np.concatenate(units)
        seen = sum(((u[:, None] - u) ** 2).sum() / (len(u) - 1) for u in units) / len(every)
        among = ((every[:, None] - every) ** 2).sum() / (len(every) * (len(every) - 1))
        assert krippendorff(scores, np.ones(30)) == pytest.approx(1 - seen / among, abs=1e-9)


def watched(seed, shift, begins=14, looks=26, anchors=40, sd=1.0, repeats=3):
    rng = np.random.default_rng(seed)
    own, names, when = rng.normal(5, 2, anchors), [f"a{i}" for i in range(anchors)], [0] * repeats + list(range(1, looks + 1))
    scores = [own + shift * (w >= begins) + sd * rng.normal(size=anchors) for w in when]
    return drift_looks([f"{w}" for w in when for _ in names], names * len(when), np.concatenate(scores), 26)


@pytest.mark.parametrize("studies", [40, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_drift_of_half_a_point_is_found_and_none_invented(studies):
    "40 anchors, a noise of one point, three scores at the first look, a shift of .5 from the fourteenth of 26 looks on."
    found = np.mean([any(x.found for x in watched([88, i], 0.5)) for i in range(studies)])
    false = np.mean([any(x.found for x in watched([89, i], 0.0)) for i in range(studies)])
    assert found >= 0.9 - (0.1 if studies < 100 else 0)
    assert false <= 0.05 + 3 * sqrt(0.05 * 0.95 / studies)


def test_position_bias_is_found_where_it_was_planted():
    rng, sides = np.random.default_rng(2), (("old", "new"), ("new", "old"))
    for planted in (0.0, 0.3):
        rows = [(f"q{i}", a, a if rng.random() < planted else ("old", "new")[(i * 7919) % 2]) for i in range(150) for a, _ in sides]
        bias = position_bias(*zip(*rows, strict=True)).bias
        assert bias.ci_low <= planted <= bias.ci_high
        assert (bias.ci_low > 0) == (planted > 0)
    with pytest.raises(DistilleryError, match="both orders"): position_bias(["q1", "q2"], ["old", "old"], ["old", "new"])


def test_self_consistency_is_the_noise_of_a_score():
    rng = np.random.default_rng(2)
    said = np.concatenate([np.arange(300) % 5 + 0.7 * rng.normal(size=300) for _ in range(2)])
    sd = self_consistency([str(i) for i in range(300)] * 2, said).sd
    assert sd.ci_low <= 0.7 <= sd.ci_high


@pytest.mark.skipif(not RATINGS.is_file(), reason="needs ../shared/data")
def test_ratings_that_people_wrote(tmp_path):
    "SQuALITY: token F1 agrees with people over three systems, and much less within one."
    rows = [json.loads(line) for line in gzip.open(RATINGS, "rt")]
    for r in rows: r["f1"] = max(token_f1(r["response"], reference) for reference in r["references"])
    (tmp_path / "rated.jsonl").write_text("".join(json.dumps({k: r[k] for k in ("doc_id", "question_id", "system", "overall", "f1")}) + "\n"
                                                  for r in rows))
    code, said = run("judge", "agree", tmp_path / "rated.jsonl", "--judge", "f1", "--human", "overall", "--cluster", "doc_id")
    assert (code, "Spearman within a system" in said) == (0, True)
    table = read_judged(tmp_path / "rated.jsonl", {"judge": "f1", "human": "overall", "cluster": "doc_id"})
    every, within = (a.found for a in agreements(table)[:2])
    assert every.mean == pytest.approx(spearman(table.people, table.judge, np.ones(150)))
    assert 0.5 < every.mean < 0.65
    assert within.mean < every.ci_low


def test_commands_show_label_and_refuse(tmp_path):
    human, judge, owner = clusters(np.random.default_rng(3), 20, 80, 0.75)
    lines = [f"d{c},{'' if h != h else h},{j}" for h, j, c in zip(human, judge, owner, strict=True)]
    (tmp_path / "r.csv").write_text("doc,human,judge\n" + "\n".join(lines))
    code, said = run("judge", "mean", tmp_path / "r.csv", "--json")
    [told] = json.loads(said)
    assert (code, told["flagged"], told["mean"]["n_clusters"], told["clusters"]) == (0, False, 20, 80)
    assert told["mean"]["ci_high"] - told["mean"]["ci_low"] < told["labels"]["ci_high"] - told["labels"]["ci_low"]
    assert "narrower than labels alone" in " ".join(run("judge", "mean", tmp_path / "r.csv")[1].split())
    assert len(run("judge", "mean", tmp_path / "r.csv", "--label", "5")[1].split()) == 5
    assert "has no column 'stars'" in run("judge", "mean", tmp_path / "r.csv", "--human", "stars")[1]
    assert "every item once" in run("judge", "steady", tmp_path / "r.csv", "--item", "judge")[1]


def test_a_drift_ends_with_four(tmp_path):
    rng = np.random.default_rng(1)
    rows = [f"{w},a{i},{i % 5 + 0.3 * rng.normal() + (w == 3)}" for w in range(4) for i in range(30)]
    (tmp_path / "a.csv").write_text("week,item,judge\n" + "\n".join(rows))
    assert "--planned 26" in run("judge", "steady", tmp_path / "a.csv")[1]
    code, said = run("judge", "steady", tmp_path / "a.csv", "--planned", "26", "--fail-on-drift")
    assert (code, "Drift since 3" in said) == (4, True)
    assert run("judge", "steady", tmp_path / "a.csv", "--planned", "2")[0] == 2
    duels = [f"q{i},{a},{a}" for i in range(30) for a in ("old", "new")]
    (tmp_path / "d.csv").write_text("item,first,winner\n" + "\n".join(duels))
    assert "first place wins 1.00 " in run("judge", "steady", tmp_path / "d.csv")[1]
