"Dataset sizes: shares nest and keep documents whole, the slope is that of a straight line, and a small set decides nothing."
import json
import re
from itertools import pairwise

import numpy as np
import pytest
import warm

from distillery.core.config import load_config
from distillery.core.files import write_jsonl
from distillery.evaluation.evaluate import EvalRow
from distillery.evaluation.gates import student_gates
from distillery.training.toy import toy_examples
from distillery.engine.source import open_source
from distillery.questions.learning_curve.decision import (LEARNING_CURVE, curve_decision, curve_decisions, curve_rows, curve_table,
                                                          doubling, why_no_curve)
from distillery.questions.learning_curve.stages import curve_stages, taught_documents
from distillery.questions.question import NOT_RUN
from distillery.questions.results import Results

CONFIG = load_config()


def rows_of(n: int, right, set_name: str = "test", variant: str = "fp32", pages: int = 12) -> list[EvalRow]:
    keep = {"id", "family_id", "category", "difficulty", "kind", "question"}
    same = {"refusal_accuracy": 0.0, "behaviour_accuracy": 1.0, "length_compliance": 1.0, "fp32_alignment": 1.0, "latency_ms": 5.0}
    score = lambda i: dict.fromkeys(("exact_match", "token_f1", "keyword_coverage"), float(right(i))) | same
    return [EvalRow(**e.model_dump(include=keep), set=set_name, doc_id=f"d{i % pages}", variant=variant, gold=e.answer,
                    prediction=e.answer if right(i) else "no idea of it", finish_reason="stop", **score(i))
            for i, e in enumerate(toy_examples(n, set_name))]


def test_shares_nest_and_keep_documents_whole():
    examples = toy_examples(60)
    shares = [taught_documents(examples, s, 88) for s in (0.1, 0.25, 0.5, 1.0)]
    assert [len(s) for s in shares] == [2, 5, 10, 20]
    assert all(a < b for a, b in pairwise(shares))
    assert taught_documents(examples, 0.5, 7) != shares[2]
    assert taught_documents(toy_examples(3), 0.01, 88) == {"d0"}


def test_the_gain_of_a_doubling_is_the_slope_of_a_straight_line():
    rng, pages = np.random.default_rng(0), {f"i{i}": f"p{i // 4}" for i in range(80)}
    sizes = {"13%": 5, "25%": 11, "50%": 20, "100%": 41}
    scores = {level: {i: float(rng.random() < 0.1 + 0.1 * k) for i in pages} for k, level in enumerate(sizes)}
    means = [np.mean(list(by.values())) for by in scores.values()]
    found = doubling(scores, pages, sizes, CONFIG)
    assert found.diff == pytest.approx(np.polyfit(np.log2(list(sizes.values())), means, 1)[0])
    assert found.n_clusters == 20
    assert found.ci_low < found.diff < found.ci_high


def test_the_interval_of_a_doubling_covers_as_it_says():
    truth, hits, sizes = 0.1, 0, {"25%": 8, "50%": 16, "100%": 32}
    for seed in range(200):
        rng = np.random.default_rng(seed)
        page = rng.normal(0, 0.1, 20)
        pages = {f"i{i}": f"p{i // 5}" for i in range(100)}
        chance = lambda i, k, page=page: np.clip(0.3 + truth * k + page[i // 5], 0, 1)
        scores = {level: {f"i{i}": float(rng.random() < chance(i, k)) for i in range(100)} for k, level in enumerate(sizes)}
        c = doubling(scores, pages, sizes, load_config(overrides={"decisions.resamples": 99}))
        hits += c.ci_low <= truth <= c.ci_high
    assert hits >= 183  # 95 % of 200, less three standard errors


@pytest.mark.parametrize(("right", "word"), [((6, 18, 30), "twice the documents better"), ((18, 18, 18), "undecided")])
def test_a_curve_says_what_more_would_bring_or_that_it_is_open(right, word):
    rows = {level: rows_of(36, lambda i, n=n: (i * 7) % 36 < n) for level, n in zip(("25%", "50%", "100%"), right, strict=True)}
    taught = {level: {f"x{i}" for i in range(n)} for level, n in zip(rows, (3, 6, 12), strict=True)}
    made = curve_decision(rows, taught, CONFIG)
    assert made.verdict.startswith(word) or (right[0] == right[2] and made.verdict.startswith("equivalent"))
    assert "n = 36 questions" in made.sentence
    assert made.contrasts[-1].b == "50%"


def test_recall_is_read_on_pages_that_all_were_taught():
    rows = {level: [*rows_of(24, lambda i: True), *rows_of(24, lambda i, k=k: i % 12 < k, "recall")]
            for level, k in {"50%": 6, "100%": 12}.items()}
    lines = curve_table(rows, {"50%": {f"d{i}" for i in range(6)}, "100%": {f"d{i}" for i in range(12)}}, CONFIG)
    found = {(r["asked about"], r["difficulty"], r["documents"]): r["estimate"].mean for r in lines}
    assert found["documents that all were taught", "all", "50%"] == found["documents that all were taught", "all", "100%"] == 1
    assert found["all documents of the training set", "all", "50%"] == 0.5
    assert {r["difficulty"] for r in lines} == {"all", "easy", "medium", "hard"}


def test_at_36_cases_gates_say_inconclusive_where_they_are():
    "The fine-tuning analysis: 31 of 36, its 86.1 %, does not settle 80 %."
    config = load_config(overrides={"thresholds.exact_match_rate_min": 0.8})
    gates = student_gates({"fp32": rows_of(36, lambda i: i < 31, pages=36)}, config)
    gate = next(g for g in gates if g.name == "test.exact_match_rate_min")
    assert (gate.n, gate.state) == (36, "INCONCLUSIVE")
    assert gate.value == pytest.approx(31 / 36)
    assert gate.bound < 0.8 < gate.value
    assert gate.cases_needed > 36


def test_nothing_is_asked_with_fewer_than_two_shares(tmp_path):
    stages = lambda config: curve_stages(open_source(None, None, None), config, tmp_path)
    assert stages(CONFIG) == []
    assert stages(load_config(overrides={"decisions.train_shares": [0.5]})) == []
    asked = load_config(overrides={"decisions.train_shares": [0.5, 0.25, 1.0]})
    assert [s.name for s in stages(asked)] == ["curve-0.25", "curve-0.5"]
    alone = load_config(overrides={"decisions.train_shares": [0.5, 1.0], "export.variants": ["q4"]})
    assert [s.name for s in stages(alone)] == ["curve-0.5", "curve-1"]
    assert why_no_curve(Results(tmp_path)) == NOT_RUN
    assert LEARNING_CURVE.command() in LEARNING_CURVE.reason(Results(tmp_path))


def test_the_page_is_built_from_a_run_and_names_the_next_doubling(tmp_path):
    from distillery.pages.report import build_report
    run = tmp_path / "run"
    for place, n in {"curve/0.25": 6, "curve/0.5": 15, "eval/fp32": 24}.items():
        (run / place).mkdir(parents=True)
        write_jsonl(run / place / "rows.jsonl", rows_of(36, lambda i, n=n: (i * 7) % 36 < n))
    (run / "dataset").mkdir()
    write_jsonl(run / "dataset/train.jsonl", toy_examples(36))
    (run / "provenance.json").write_text(json.dumps({"run": "r1", "source": "documents"}))
    (run / "config.json").write_text("{}")
    results = Results(run)
    assert list(curve_rows(results)) == ["25%", "50%", "100%"]
    card, = curve_decisions(results, CONFIG)
    assert card.cost["documents"] == "25%: 3, 50%: 6, 100%: 12"
    with warm.kernels(): build_report("learning_curve", run / "reports", {"run_dir": str(run)})
    page = re.sub("<.*?>", "", (run / "reports/learning_curve.html").read_text("utf-8"))
    assert "a doubling is worth" in page
    assert "The test set has 36 questions: expect wide intervals." in page
    assert "another draw of documents" in page


@pytest.mark.slow
def test_a_run_trains_a_student_for_each_share(tmp_path):
    from distillery.workbook.experiment import prepare
    knobs = {"decisions.train_shares": [0.3, 0.6], "export.variants": ["fp32"], "sft.epochs": 1, "dataset.questions_per_chunk": 3,
             "decisions.teacher_levels": ["fp32"], "decisions.temperatures": [], "export.check_positions": 50,
             "evaluation.full_samples_per_set": 20, "evaluation.max_new_tokens": 8,
             "workbook.cache_dir": str(tmp_path / "cache"), "workbook.runs_dir": str(tmp_path / "runs"), "student.base": "builtin:tiny"}
    request = prepare(None, None, load_config(preset="handbook", overrides=knobs))
    plan = request.plan
    wanted = {"documents", "generate", "judge", "select", "dataset", "curve-0.3", "curve-0.6"}
    plan.stages = [s for s in plan.stages if s.name in wanted]
    done = plan.run()
    facts = [json.loads((done[f"curve-{s}"].path / "facts.jsonl").read_text()) for s in ("0.3", "0.6")]
    assert facts[0]["documents"] < facts[1]["documents"]
    assert facts[0]["rows"] < facts[1]["rows"]
    assert [r.id for r in map(EvalRow.model_validate_json, (done["curve-0.3"].path / "rows.jsonl").read_text().splitlines())]
