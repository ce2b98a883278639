"Metrics: equal to SQuAD's own scorer on seven systems, and whole on every text."

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from distillery.core.config import Config
from distillery.core.metrics import (
    behaviour_correct, count_sentences, exact_match, keyword_coverage, keywords, length_compliant, normalize_answer, score_all,
    token_f1,
)
from distillery.core.reply import is_refusal

SQUAD = Path(__file__).resolve().parents[2] / "shared" / "data" / "squad"
needs_squad = pytest.mark.skipif(not SQUAD.exists(), reason="the SQuAD answers lie outside the repository and are not here")
SYSTEMS = [
    "squad11_bert_ensemble",
    "squad11_match_lstm_ensemble",
    "squad11_rnet_plus_ensemble",
    "squad11_slqa_plus_ensemble",
    "squad20_bert_single",
    "squad20_bidaf_elmo_single",
    "squad20_nlnet_single",
]


def rows(path):
    with gzip.open(path, "rt", encoding="utf-8") as f:
        return [json.loads(line) for line in f]


@needs_squad
def test_all_seven_systems_are_compared():
    assert sorted(SYSTEMS) == sorted(json.loads((SQUAD / "expected_scores.json").read_text())["expected"])


@needs_squad
@pytest.mark.parametrize("system", SYSTEMS)
def test_exact_match_and_f1_are_squads_own(system):
    expected = json.loads((SQUAD / "expected_scores.json").read_text())["expected"][system]
    questions = rows(SQUAD / ("squad11_dev_qa.jsonl.gz" if "squad11" in system else "squad2_dev_qa.jsonl.gz"))
    said = {r["id"]: r["prediction"] for r in rows(SQUAD / "predictions" / f"{system}.jsonl.gz")}
    asked = [q for q in questions if q["id"] in said]
    assert len(asked) == expected["total"]
    predictions, golds = [said[q["id"]] for q in asked], [q["answers"] for q in asked]
    for name, metric in (("exact", exact_match), ("f1", token_f1)):
        scores = score_all(metric, predictions, golds)
        parts = {
            "": scores,
            "HasAns_": [s for s, g in zip(scores, golds, strict=True) if g],
            "NoAns_": [s for s, g in zip(scores, golds, strict=True) if not g],
        }
        for part, some in parts.items():
            if some and f"{part}{name}" in expected:
                assert 100 * sum(some) / len(some) == pytest.approx(expected[f"{part}{name}"], abs=0.01)


TEXT = st.text(max_size=30) | st.lists(st.sampled_from(["the", "Hall", "3", "a", "not", "é", ".", "07:40"]), max_size=6).map(" ".join)


@given(TEXT, st.lists(TEXT, max_size=3))
def test_scores_lie_between_0_and_1_and_exact_match_is_the_stricter(prediction, golds):
    for metric in (exact_match, token_f1, keyword_coverage):
        assert 0 <= metric(prediction, golds) <= 1
    assert exact_match(prediction, golds) <= token_f1(prediction, golds) + 1e-12
    assert exact_match(prediction, [*golds, prediction]) == (
        1.0 if normalize_answer(prediction) or not any(map(normalize_answer, golds)) else 0.0
    )


@given(TEXT)
def test_an_answer_matches_itself_however_written(text):
    assert token_f1(f"  The {text.lower()}! ", text) == pytest.approx(1.0)
    assert keyword_coverage(text, text) == 1.0
    assert normalize_answer(normalize_answer(text)).split() == [w for w in normalize_answer(text).split() if w not in ("a", "an", "the")]


@given(TEXT, TEXT)
def test_f1_of_one_answer_is_symmetric(a, b):
    assert token_f1(a, b) == pytest.approx(token_f1(b, a))


@pytest.mark.parametrize(
    ("prediction", "golds", "em", "f1"),
    [
        ("", [], 1, 1),
        ("", [""], 1, 1),
        ("x", [""], 0, 0),
        ("", ["x"], 0, 0),
        ("the", ["x"], 0, 0),
        ("x x y", ["x y y"], 0, 2 / 3),
        ("x", ["", "x"], 1, 1),
        ("3.5 mm", ["35 mm"], 1, 1),
        ("Grüße", ["grüße"], 1, 1),
        ("anthem", ["them"], 0, 0),
        ("it’s", ["its"], 0, 0),
    ],
)
def test_known_scores(prediction, golds, em, f1):
    assert (exact_match(prediction, golds), token_f1(prediction, golds)) == pytest.approx((em, f1))


def test_key_words_keep_negations():
    assert "not" in keywords("It is not open.")
    assert keyword_coverage("It is open", "It is not open") == 0.5
    assert keyword_coverage("anything", []) == 0.0
    assert keyword_coverage("", []) == 1.0


MARKERS = Config().evaluation.refusal_markers


@pytest.mark.parametrize(
    "text", ["The passage does not tell.", "I DON’T KNOW", "There is no  information\nabout it.", "Sorry, I cannot answer that."]
)
def test_refusals_are_recognised(text):
    assert is_refusal(text, MARKERS)
    assert behaviour_correct(text, True, MARKERS)
    assert not behaviour_correct(text, False, MARKERS)


@pytest.mark.parametrize("text", ["Hall 3", "Ask Mira Tolan.", "It is not 5 but 6."])
def test_answers_are_not_refusals(text):
    assert not is_refusal(text, MARKERS)
    assert behaviour_correct(text, False, MARKERS)
    assert not is_refusal(text, ["", *[]])


@pytest.mark.parametrize("text", ["", "  ", "\n"])
def test_silence_is_wrong_both_ways(text):
    assert not behaviour_correct(text, True, MARKERS)
    assert not behaviour_correct(text, False, MARKERS)


@pytest.mark.parametrize(
    ("text", "n"),
    [
        ("", 0),
        ("Hall 3", 1),
        ("Hall 3.", 1),
        ("One. Two.", 2),
        ("It costs 3.50 euros.", 1),
        ("See Dr. Tolan. Now.", 2),
        ("Really?! Yes…", 2),
        ("He said “stop.” Then he left.", 2),
        ("e.g. this one", 1),
        ("J. R. Tolan runs it.", 1),
        ("...", 0),
    ],
)
def test_sentences(text, n):
    assert count_sentences(text) == n


def test_length_limits():
    assert length_compliant("One. Two.", 2, 2)
    assert not length_compliant("One. Two. Three.", 2, 50)
    assert not length_compliant("word " * 51, 2, 50)
