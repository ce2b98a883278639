"What counts as right: numbers, signs, units and symbols as they are, typography as equal; figures of two definitions are never compared."
import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st
from typed import distillery

from distillery.core.metrics import DECIDING_VERSION, answer_match, exact_match, match_form
from distillery.core.records import Pair
from distillery.evaluation.evaluate import EvalRow, deciding_metric
from distillery.pairs.limits import find_span, locate, same_answer
from distillery.pairs.select import contradictions
from distillery.questions.results import open_results

CASES = Path(__file__).resolve().parents[2] / "shared/cases"
RUN, BEFORE = Path(__file__).parent / "data/run", Path(__file__).parent / "data/run_before"
needs_cases = pytest.mark.skipif(not CASES.exists(), reason="the cases are not here: ../shared/cases is no part of the project")


@needs_cases
def test_the_case_of_numbers():
    for row in map(json.loads, (CASES / "22_numbers_in_exact_match/rows.jsonl").read_text("utf-8").splitlines()):
        assert answer_match(row["prediction"], row["gold"]) == row["exact_match"], row


@needs_cases
def test_the_case_of_typography():
    for row in map(json.loads, (CASES / "21_typography_of_answers/pairs.jsonl").read_text("utf-8").splitlines()):
        found = locate(row["context"], 100, row["answer"])
        assert found, row
        assert row["context"][found.start - 100 : found.end - 100] == found.text
        assert answer_match(found.text, row["answer"]) == 1


@pytest.mark.parametrize("pair", [
    "10\u00a0000|10,000", "10 000|10000", "5%|5 %", "15mm|15 mm", "“Raven”|Raven", "pre-heated|preheated", "14 日|14日",
    "１２バール|12バール", "U.S.A.|USA", "½|1/2", "1½|1 1/2", "10^6|10⁶",
    "H₂O|H2O", "the drum|a drum", "km / h|km/h", "p.m.|pm", "3,000.50|3000.50", "-3,000|−3000", "٣٫٥|3.5", "«да»|да", "10 – 20|10–20",
    "model.onnx|Model.onnx", "Yes!|yes", "the A|A"])
def test_the_same_but_for_typography(pair):
    a, b = pair.split("|")
    assert answer_match(a, b) == answer_match(b, a) == 1
    assert same_answer(a, b)


@pytest.mark.parametrize("pair", [
    "C++|C#", "A+|A", "A-|A+", "v1.10|v1.1", "10-20|10 20", "10:30|1030", "$5|5", "€5|$5", "10⁶|106", "m²|m2", "±5|5", "1,5|15",
    "192.168.1.1|19216811", "Plan A|Plan", "vitamin A|vitamin",
    "5'|5\"", "R&D|RD", "max_tokens|maxtokens", "2024-05-01|20240501", "½|12", "10^-6|10^6", "50 %|50 ‰", "°C|°F", "|", "?|!",
    "not open|open", "12|13", "é|e"])
def test_another_number_sign_unit_or_symbol_is_another_answer(pair):
    a, b = pair.split("|")
    assert answer_match(a, b) == answer_match(b, a) == 0


@pytest.mark.parametrize("pair", [
    "ｶﾞｽ|ガス", "1920x1080|1920×1080", "3 x 4|3 × 4",
    "1x2.5x3|1 × 2.5 × 3", "10—20|10-20", "5 µm|5 μm", "10 Ω|10 Ω", "5 ℃|5 °C", "１／２|1/2",
    "5\u202f%|5%", "한국|한국"])
def test_still_the_same_but_for_typography(pair): test_the_same_but_for_typography(pair)


@pytest.mark.parametrize("pair", ["5 mW|5 MW", "2**10|210",
    "2**10|2*10", "x0x1|x0 × 1",
    "0x10|0 × 10", "a_*_b|a_b", "-v|v", "--force|force", "1e6|16", "≥5|>5", "5''|5'", "$5|€5", "v1.2|v12",
    "no|yes", "3×4|34"])
def test_still_another_answer(pair): test_another_number_sign_unit_or_symbol_is_another_answer(pair)


@pytest.mark.parametrize(("answer", "text", "there"), [
    ("10000", "up to 10\u202f000 sheets", True), ("10,000", "up to 10000 sheets", True), ("1'000'000", "all 1,000,000 of them", True),
    ("5", "at .5 mm", False), (".5", "at -.5 mm", False), ("1000", "in 21,000", False), ("5 mW", "it takes 5 MW", False), ("≥ 5",
    "it is ≥5", True)])
def test_evidence_across_thousands_and_prefixes(answer, text, there): assert bool(find_span(text, answer)) == there


SIGNS = st.sampled_from(["-", "−", "+", "±", "~", "#", "%", "°", "/", ".", ",", ":", "^", "½", "²", "1", "23", "4.5", "mm", "C", "the",
    "A", " ", "’", "“", "–", "清", "é", "e\u0301", "\u00ad"])


@given(st.lists(SIGNS, max_size=8).map("".join))
@settings(max_examples=150)
def test_a_form_is_stable_and_an_empty_answer_is_never_right(text):
    assert answer_match(text, text) == float(bool(match_form(text)))
    assert answer_match("", text) == 0
    assert answer_match(f" {text}  ", text) == answer_match(text, text)


@given(st.integers(0, 99_999), st.integers(0, 99_999), st.sampled_from(["{}", "{} mm", "-{}", "{} %", "at {}:30", "v1.{}"]))
@settings(max_examples=60)
def test_two_numbers_are_two_answers(a, b, shape):
    assert answer_match(shape.format(a), shape.format(b)) == float(a == b)
    if shape not in ("v1.{}", "at {}:30"): assert answer_match(shape.format(f"{a:,}"), shape.format(a)) == 1


def test_questions_about_two_symbols_do_not_contradict_each_other():
    one = Pair(id="a", doc_id="d", chunk_id="c", family_id="f", category="k", difficulty="easy", question="Who wrote C#?",
        answer="Jo Brandt", kind="answer", teacher="t", template="")
    other = one.model_copy(update={"id": "b", "question": "Who wrote C?", "answer": "Mira Tolan"})
    assert contradictions([one, other]) == set()
    wrong = one.model_copy(update={"id": "b", "answer": "Jo  Brandt."})
    assert contradictions([one, wrong]) == set()
    assert contradictions([one, one.model_copy(update={"id": "b", "answer": "Mira Tolan"})]) == {"a", "b"}


@pytest.mark.parametrize(("answer", "text", "there"), [
    ("5 °C", "at −5 °C", False), ("C", "in C++ and C", True), ("C", "in C++", False), ("1", "1/2", False), ("10", "10⁶", False), ("14",
    "14日ごと", True), ("4", "14日", False),
    ("14일", "14일마다", True), ("5 kg", "5kg of it", True), ("café", "cafe\u0301", True), ("cafe", "café", False), ("v1.1", "v1.10",
    False), ("can't", "can’t", True), ("किताब", "किताबें", False)])
def test_evidence_across_typography(answer, text, there): assert bool(find_span(text, answer)) == there


def rows_of(run):
    read = lambda path: [EvalRow.model_validate_json(x) for x in path.read_text("utf-8").splitlines()]
    return {p.parent.name: read(p) for p in sorted(run.glob("eval/*/rows.jsonl"))}


@pytest.mark.parametrize("run", [RUN, BEFORE])
def test_both_definitions_agree_row_for_row_on_the_kept_runs(run):
    "So the digits of the built-in run stay what they were."
    answered = [r for some in rows_of(run).values() for r in some if r.kind == "answer"]
    assert len(answered) > 150
    assert [r for r in answered if answer_match(r.prediction, [r.gold]) != exact_match(r.prediction, [r.gold])] == []


def test_an_old_run_keeps_its_metric_and_is_not_compared_with_a_new_one(tmp_path):
    for name in ("old", "new"): shutil.copytree(BEFORE, tmp_path / "runs" / name)
    for path in (tmp_path / "runs/new/eval").glob("*/rows.jsonl"):
        rows = [json.loads(x) for x in path.read_text("utf-8").splitlines()]
        path.write_text("".join(json.dumps(r | {"answer_match": r["exact_match"]}) + "\n" for r in rows), "utf-8")
        figures = json.loads(path.with_name("metrics.json").read_text("utf-8"))
        path.with_name("metrics.json").write_text(json.dumps(figures | {"deciding": {"metric": "answer_match",
            "version": DECIDING_VERSION}}), "utf-8")
    assert [deciding_metric(rows_of(tmp_path / "runs" / name)) for name in ("old", "new")] == ["exact_match", "answer_match"]
    assert [open_results(tmp_path / "runs" / name).deciding() for name in ("old", "new")] == ["exact_match", "answer_match 1"]
    for command in (("runs", "compare", "old", "new"), ("evaluate", "--run", "new", "--compare-to", "old")):
        done = distillery(*command, cwd=tmp_path)
        assert done.returncode != 0
        assert "measured in two ways" in " ".join((done.stderr + done.stdout).split())
        assert "Traceback" not in done.stderr
