"Balanced accuracy is what it says, thresholds come from other articles than the numbers, and SQuAD's second half reads as it should."
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from distillery.core.errors import DistilleryError
from distillery.retrieval.answering import (ReaderAnswer, balanced_accuracy, choose_threshold, draw, measure_readers, read_squad, refuses,
                                            split_by_article, table_of)
from distillery.teachers.extractive import ExtractiveTeacher

SQUAD = Path(__file__).resolve().parents[2] / "shared/data/squad"
needs_squad = pytest.mark.skipif(not SQUAD.is_dir(), reason="../shared/data is not here")


def said(article, answerable, score, refused=False, i=[0]):  # noqa: B006
    i[0] += 1
    return ReaderAnswer(str(i[0]), article, answerable, "x", refused, score, True, float(answerable), float(answerable))


def population(seed=0, articles=10, each=30, gap=1.0, tilt=0.0):
    rng = np.random.default_rng(seed)
    shift = rng.normal(0, tilt, articles)
    return [said(f"a{a}", told, float(rng.normal(gap * told + shift[a])))
            for a in range(articles) for told in (True, False) for _ in range(each)]


def test_the_mean_of_two_shares():
    rows = [said("a", True, 1), said("a", True, -1), said("b", True, 1), said("b", True, 1), said("a", False, 1), said("b", False, -1)]
    e = balanced_accuracy(rows, 0.0)
    assert e.mean == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert (e.n, e.n_clusters) == (6, 2)
    assert e.ci_low < e.mean < e.ci_high


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_always_refusing_and_always_answering_score_one_half_at_any_mix(share):
    rows = [said(f"a{i % 7}", i < 100 * share, 0.0) for i in range(100)]
    for constant in ([replace(r, refused=True) for r in rows], rows):
        e = balanced_accuracy(constant)
        assert (e.mean, e.ci_low, e.ci_high) == (0.5, 0.5, 0.5)


def test_a_perfect_reader_still_has_an_interval():
    e = balanced_accuracy([said(f"a{i % 5}", i % 2 == 0, 0.0, refused=i % 2 == 1) for i in range(40)])
    assert e.mean == 1
    assert e.ci_low < 0.95


def test_the_interval_covers_over_articles():
    "The truth of this population is known: a hundred draws, of which about five may miss it."
    from statistics import NormalDist

    tilt = 0.5
    truth = NormalDist().cdf(0.5 / (1 + tilt**2) ** 0.5)
    missed = sum(not (e.ci_low <= truth <= e.ci_high) for e in (balanced_accuracy(population(s, tilt=tilt), 0.5) for s in range(100)))
    assert missed <= 11


def test_the_threshold_is_chosen_where_nothing_is_measured():
    rows = population(1, articles=12, gap=2.0)
    parts = {f"a{i}": "choose" if i % 2 else "confirm" for i in range(12)}
    table = table_of({"reader": rows}, parts)
    assert [r["reader"] for r in table] == ["always refusing", "reader", "reader, threshold chosen"]
    assert [r["balanced accuracy"] for r in table[:2]] == [0.5, 0.5]
    assert table[2]["threshold"] == pytest.approx(1.0, abs=0.5)
    assert table[2]["balanced accuracy"] > 0.75
    assert table[2]["ci_low"] > 0.5
    moved = [replace(r, score=r.score + 100) if parts[r.article] == "confirm" else r for r in rows]
    assert table_of({"reader": moved}, parts)[2]["threshold"] == table[2]["threshold"]


def test_what_a_reader_refuses_itself_stays_refused():
    rows = [*population(2), said("a0", True, 99.0, refused=True)]
    assert refuses(rows[-1], choose_threshold(rows))


def test_one_kind_alone_is_refused():
    with pytest.raises(DistilleryError, match="both kinds"): balanced_accuracy([said("a", True, 1.0), said("b", True, 0.0)])


@needs_squad
def test_squad_is_split_by_article_and_drawn_evenly():
    rows = read_squad(SQUAD)
    parts = split_by_article(rows)
    assert len(rows) == 5978
    assert sorted(map(list(parts.values()).count, ("choose", "confirm", "train"))) == [5, 5, 7]
    some = draw(rows, 20)
    for article in parts:
        mine = [r for r in some if r.article == article]
        assert sum(bool(r.answers) for r in mine) * 2 == len(mine) > 0


@needs_squad
def test_rules_on_squad_refuse_and_score_near_one_half():
    table, rows = measure_readers(SQUAD, {"rules": ExtractiveTeacher()}, each=8)
    assert table[0]["balanced accuracy"] == 0.5
    assert table[0]["n"] == 80
    assert table[0]["articles"] == 5
    assert table[1]["ci_low"] <= 0.5 <= table[1]["ci_high"]
    assert np.mean([s.found for s in rows["rules"] if s.answerable]) > 0.6


@needs_squad
def test_the_command_prints_the_table():
    command = [sys.executable, "-m", "distillery.retrieval.answering", str(SQUAD), "--each", "1", "--reader", "again=builtin:extractive"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in ran.stdout.splitlines()]
    assert [r["reader"] for r in lines[:-1]] == ["always refusing", "again", "again, threshold chosen"]
    assert lines[0]["balanced accuracy"] == 0.5
