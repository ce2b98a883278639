"Measures of a dataset against what was planted in it, and targets against intervals."
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from distillery.commands.cli import app
from distillery.core.errors import DistilleryError
from distillery.core.records import Estimate, Pair
from distillery.questions.measures import (coherence, commonest_share, covered_share, length_variation, measure_pairs, pattern_diversity,
                                           preserved_share, set_measures, whole_sentences)
from distillery.questions.results import open_results
from distillery.questions.targets import Target, dataset_rows, estimates_of, ratio_of, read_targets, run_estimates

KEPT = Path(__file__).parent / "data/run"


class Letters:
    "A sentence model that knows first letters."

    def encode(self, texts): return np.array([[t[0] == "A", t[0] != "A"] for t in texts], dtype=float)


def pair(i, question="What is it?", answer="12 May", **scores):
    return Pair(id=str(i), doc_id=f"d{i % 40}", chunk_id=f"c{i % 40}", family_id=str(i), category="c", difficulty="easy", question=question,
                answer=answer, teacher="t", scores=scores)


def test_a_changed_number_and_a_changed_name_cost_what_they_are():
    passage = "The Orvane press, serviced on 12 May 2021 by Ada Lind, prints 900 sheets an hour."
    assert preserved_share("serviced by Ada Lind on 12 May 2021", passage) == 1
    assert preserved_share("serviced by Ada Lind on 13 May 2021", passage) == pytest.approx(4 / 5)
    assert preserved_share("it was Bo Stark", passage) == 0
    assert preserved_share("by the crew", passage) is None
    assert covered_share("prints sheets", passage) == 1 > covered_share("folds sheets", passage) > covered_share("folds maps", passage) == 0


@pytest.mark.parametrize(("text", "share"), [
    ("The press is serviced once a week. It prints 900 sheets.", 1), ("The press is serviced once a week. It prints (900 sheets", 0.5),
    ("the press is serviced once a week", 0), ("机器每周检修一次，由夜班负责。", 1), ("12 May", None), ("", None)])
def test_sentences_begin_end_and_close(text, share): assert whole_sentences(text) == share


def test_coherence_is_the_cosine_of_neighbours():
    assert coherence(["A one. A two. B three.", "A one."], Letters()) == [0.5, None]


def test_set_measures_are_those_of_their_formulas():
    w, words = np.ones(4), ["what", "what", "who", "when"]
    assert pattern_diversity(words, w) == pytest.approx(1 - 2 / 12)
    assert commonest_share(words, w) == 0.5
    assert length_variation(np.array([1.0, 3.0]), np.ones(2)) == pytest.approx(0.5)
    doubled = set_measures(measure_pairs([pair(0), pair(1, "Who is it?"), pair(2, "what is it")], {}, lambda a: True, Letters()))
    assert doubled["uniqueness"](np.ones(3)) == pytest.approx(1 / 3)


def test_weights_of_two_count_a_pair_twice():
    "So that leaving a document out is what the jackknife says it is."
    pairs = [pair(0), pair(1, "Who was it?", "Ada Lind the first of two"), pair(2, "Who was it?", "in 7 rooms")]
    once = set_measures(measure_pairs([*pairs, pairs[0]], {}, lambda a: True, Letters()))
    for name, metric in set_measures(measure_pairs(pairs, {}, lambda a: True, Letters())).items():
        if name != "uniqueness": assert metric(np.array([2.0, 1, 1])) == pytest.approx(once[name](np.ones(4))), name


def test_planted_changes_turn_the_gate():
    "Of 200 answers none is changed, some are, many are: green, yellow, red."
    passages = {f"c{i}": "It was on 12 May and cost 40 euros." for i in range(40)}
    target, states = Target(min=0.95), []
    for changed in (0, 18, 60):
        pairs = [pair(i, answer="13 May" if (i * 37) % 200 < changed else "12 May") for i in range(200)]
        found = estimates_of(measure_pairs(pairs, passages, lambda a: True, Letters()))
        states.append(target.state(found["preservation"]))
    assert states == ["green", "yellow", "red"]


def test_what_does_not_apply_is_absent_and_pairs_of_one_document_are_refused():
    found = measure_pairs([pair(i) for i in range(10)], {}, lambda a: len(a) > 3, Letters())
    assert set(found.raw) == {"length"}
    assert found.points.tolist() == [10.0] * 10
    with pytest.raises(DistilleryError, match="of one document"):
        estimates_of(measure_pairs([pair(0), pair(40)], {}, lambda a: True, Letters()))
    row = next(r for r in dataset_rows(read_targets(), estimates_of(found)) if r["measure"] == "coherence")
    assert (row["value"], row["state"]) == ("–", "not measured")


def test_a_ratio_covers_what_was_planted():
    rng, hits = np.random.default_rng(8), 0
    for _ in range(400):
        a, b = (rng.normal(m, 0.05) for m in (1.2, 1.0))
        one, other = (Estimate(mean=x, ci_low=x - 0.098, ci_high=x + 0.098) for x in (a, b))
        r = ratio_of(one, other)
        hits += r.ci_low <= 1.2 <= r.ci_high
    assert 0.92 <= hits / 400 <= 0.98


@pytest.mark.parametrize(("text", "said"), [
    ("measures: {beauty: {min: 1}}", "no measure 'beauty'"), ("measures: {length: {}}", "give min or max"), ("- 1", "targets-mine.yaml, "),
    ("a: [", "no YAML"), ("lengths: 3", "lengths")])
def test_a_slip_in_the_file_is_named(tmp_path, text, said):
    (tmp_path / "targets-mine.yaml").write_text(text)
    with pytest.raises(DistilleryError, match=said): read_targets(tmp_path / "targets-mine.yaml")


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    "One pair in seven of the kept run, and what else the measures read."
    run = tmp_path_factory.mktemp("runs") / "kept"
    run.mkdir()
    for name in ("provenance.json", "config.json", "chunks.jsonl"): shutil.copy(KEPT / name, run)
    lines = (KEPT / "selected.jsonl").read_text("utf-8").splitlines(keepends=True)
    (run / "selected.jsonl").write_text("".join(lines[::7]), "utf-8")
    (run / "manifest.json").write_text("{}")
    return run


@pytest.fixture(scope="module")
def told(kept): return run_estimates(open_results(kept), read_targets())


def test_the_kept_run(told):
    assert told["preservation"].ci_low > 0.95
    assert told["first word"].n > 300
    assert told["lowest quality"].mean <= told["quality"].mean
    rows = {r["measure"]: r["state"] for r in dataset_rows(read_targets(), told)}
    assert (rows["preservation"], rows["first word"]) == ("green", "red")


def test_a_run_against_itself_changed_by_nothing(told):
    rows = {r["measure"]: r for r in dataset_rows(read_targets(), told, told) if r["measure"].endswith("ratio")}
    assert rows["term density, ratio"]["value"].startswith("1.00 ")
    assert rows["variance of quality, ratio"]["state"] == "red"


def test_the_command_shows_and_ends_with_four(kept, tmp_path):
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"measures": {"first word": {"max": 0.9}}, "answer_characters": [1, 4000]}))
    (tmp_path / "distillery.yaml").write_text(yaml.safe_dump(
        {"workbook": {"runs_dir": str(kept.parent), "cache_dir": str(tmp_path / "cache")}}))
    calls = [("--fail-on-red",), ("--targets", str(tmp_path / "mine.yaml"), "--fail-on-red")]
    done = [CliRunner().invoke(app, ["runs", "dataset", "kept", "--config", str(tmp_path / "distillery.yaml"), *flags]) for flags in calls]
    assert [d.exit_code for d in done] == [4, 0], done[0].output + repr(done[0].exception)
    assert "green" in done[1].output
