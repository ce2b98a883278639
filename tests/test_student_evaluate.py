"""Rows, summaries and gates: what is counted, what is hidden from nobody, and what a kill leaves behind."""
import json
import signal
import time

import pytest
import warm

from distillery.core.config import load_config
from distillery.evaluation.evaluate import EvalRow, align_rows, draw_examples, evaluate_variant, score_answer
from distillery.evaluation.gates import THRESHOLDS, budget_key, student_gates
from distillery.evaluation.summary import METRICS, find_failures, metric_values, speed_of, summarise_rows, write_evaluation
from distillery.evaluation.markdown import render_summary, write_summaries
from distillery.training.toy import toy_base, toy_examples
from distillery.teachers.protocol import ChatResult

CFG = load_config()


def answer(example, text, **more):
    return score_answer(example, ChatResult(example.id, text, "stop", latency_ms=20.0, completion_tokens=5, **more), "fp32", CFG)


def refusal(i=0):
    return toy_examples(i + 1, "test")[i].model_copy(update={"kind": "refusal", "answer": "The passage does not tell."})


def test_any_refusal_is_right_where_there_is_no_answer():
    for text, right in {"The passage does not tell.": 1.0, "I don't know that.": 1.0, "In room A10.": 0.0, "": 0.0}.items():
        row = answer(refusal(), text)
        assert (row.exact_match, row.token_f1, row.refusal_accuracy, row.behaviour_accuracy) == (right,) * 4


def test_a_refusal_is_wrong_where_there_is_one():
    row = answer(toy_examples(1)[0], "The passage does not tell.")
    assert (row.exact_match, row.behaviour_accuracy) == (0.0, 0.0)


def test_failed_requests_count_as_wrong_and_are_counted():
    class Dead:
        name, identity = "dead", {"model": "dead"}
        async def stream(self, requests):
            for r in requests: yield ChatResult(r.key, "", "error", error="TimeoutError: 600 s")
        async def close(self): pass
    rows = evaluate_variant(Dead(), toy_examples(4, "test"), CFG, "fp32")
    assert [r.exact_match for r in rows] == [0.0] * 4
    assert summarise_rows(rows)["test"]["failed_requests"] == 4
    assert speed_of(rows)["p95_latency_ms"] is None
    assert find_failures(rows, CFG)[0]["reasons"][-1] == "request failed: TimeoutError: 600 s"
    assert not [g for g in student_gates({"fp32": rows}, CFG) if "latency" in g.name]


def test_warm_up_is_asked_and_not_counted():
    seen = []
    class Counter:
        name, identity = "counter", {"model": "counter"}
        async def stream(self, requests):
            for r in requests:
                seen.append((r.key, r.max_tokens, r.temperature))
                yield ChatResult(r.key, "x", "stop")
        async def close(self): pass
    rows = evaluate_variant(Counter(), toy_examples(5), load_config(overrides={"evaluation.max_new_tokens": 9}), warm_up=2)
    assert (len(rows), len(seen)) == (5, 7)
    assert {s[1:] for s in seen} == {(9, 0.0)}


def test_sets_are_never_pooled():
    rows = [answer(e, e.answer) for e in toy_examples(9, "recall")] + [answer(e, "wrong") for e in toy_examples(9, "test")]
    summary = summarise_rows(rows)
    assert summary["recall"]["exact_match"]["mean"] == 1.0
    assert summary["test"]["exact_match"]["mean"] == 0.0
    assert {g.name.split(".")[0] for g in student_gates({"fp32": rows}, CFG)} == {"recall", "test"}


def test_the_draw_is_seeded_and_keeps_order():
    examples = toy_examples(30, "test") + toy_examples(30, "recall")
    drawn = draw_examples(examples, 10, 88)
    assert len(drawn) == 20
    assert [examples.index(e) for e in drawn] == sorted(examples.index(e) for e in drawn)
    assert drawn != draw_examples(examples, 10, 89)
    assert draw_examples(examples, 300, 88) == examples


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_every_threshold_decides_a_gate(threshold):
    rows = [answer(e, e.answer + (" in the corner" if i % 2 else "")) for i, e in enumerate(toy_examples(36, "test"))]
    unanswerable = [refusal(i).model_copy(update={"id": f"r{i}"}) for i in range(30)]
    rows += [answer(e, "The passage does not tell." if i % 2 else "In room A10.") for i, e in enumerate(unanswerable)]
    rows = align_rows({"fp32": rows, "q4": [r.model_copy(update={"variant": "q4", "prediction": r.gold}) for r in rows]})
    states = lambda value: [g.state for g in student_gates(rows, load_config(overrides={f"thresholds.{threshold}": value}))
                            if g.name == f"test.{threshold}" and g.variant == "q4"]
    assert states(0.0) == ["PASS"]
    if threshold not in ("response_length_compliance_min",): assert states(1.0) != ["PASS"]


def test_latency_budgets_belong_to_variants():
    rows = [answer(e, e.answer) for e in toy_examples(36, "test")] * 3
    rows = [r.model_copy(update={"id": str(i), "doc_id": str(i)}) for i, r in enumerate(rows)]
    cfg = load_config(overrides={"thresholds.p95_latency_ms_max": {"model_q4.onnx": 10, "model.onnx": 2500}})
    states = {g.variant: g.state for v in ("fp32", "q4") for g in student_gates({v: rows}, cfg) if "latency" in g.name}
    assert states == {"fp32": "PASS", "q4": "FAIL"}
    assert {budget_key(v) for v in ("fp32", "int8", "uint8", "q4")} == set(CFG.thresholds.p95_latency_ms_max)


def test_case_thresholds_choose_the_failures():
    rows = [answer(e, e.answer.split()[0]) for e in toy_examples(6)]
    strict = load_config(overrides={"thresholds.case_token_f1_min": 0.9})
    lax = load_config(overrides={"thresholds.case_token_f1_min": 0.0, "thresholds.case_keyword_coverage_min": 0.0})
    assert len(find_failures(rows, strict)) == 6
    assert find_failures(rows, lax) == []


def test_model_text_cannot_become_markup(tmp_path):
    evil = "# Owned\n\n<script>alert(1)</script> `x` [a](http://b)"
    rows = [answer(e.model_copy(update={"question": evil}), evil) for e in toy_examples(4)]
    write_evaluation(tmp_path / "fp32", "fp32", rows, {}, CFG)
    (tmp_path / "gates.jsonl").write_text("")
    write_summaries(tmp_path, CFG)
    page = (tmp_path / "fp32/summary.md").read_text()
    assert [line for line in page.splitlines() if line.startswith("# ")] == ["# Evaluation of fp32"]
    assert all("<script>" not in line or line.count("`") == 8 for line in page.splitlines())
    assert json.loads((tmp_path / "fp32/metrics.json").read_text())["failures"] == 4
    assert render_summary("fp32", {"sets": {}, "cost": {}}, [])


def test_every_metric_has_values_or_a_reason():
    rows = [answer(e, e.answer) for e in toy_examples(5)]
    summary = summarise_rows(rows)["train"]
    assert all("reason" in summary[m] or summary[m]["n"] == 5 for m in METRICS)
    assert summary["bert_f1"] == {"mean": None, "reason": "not computed"}
    assert metric_values(rows, "exact_match")[1] == [r.doc_id for r in rows]


MEASURE = """
import sys
from pathlib import Path
from distillery.core.config import load_config
from distillery.evaluation.measure import measure_variants
from distillery.training.toy import toy_examples
onnx, out = Path(sys.argv[1]), Path(sys.argv[2])
cfg = load_config(overrides={"evaluation.max_new_tokens": 16})
examples = [e.model_copy(update={"id": f"{i}-{e.id}"}) for i in range(3) for e in toy_examples(36, "test")]
measure_variants({"fp32": onnx, "again": onnx}, examples, out, cfg)
"""


@pytest.mark.slow
def test_a_kill_costs_one_variant(tmp_path):
    pytest.importorskip("onnxruntime_genai")
    from distillery.exporting.export import build_onnx
    onnx = build_onnx(toy_base(tmp_path / "base"), tmp_path / "onnx", "fp32")
    measure, out = lambda: warm.start(MEASURE, [onnx, tmp_path / "eval"], env={"OMP_NUM_THREADS": "1"}), tmp_path / "eval"
    victim, deadline = measure(), time.time() + 60
    while not (out / "again" / "request.json").exists() and time.time() < deadline: time.sleep(0.005)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    first = (out / "fp32" / "cost.json").stat().st_mtime_ns
    assert not (out / "again" / "cost.json").exists()
    assert measure().wait() == 0
    assert (out / "fp32" / "cost.json").stat().st_mtime_ns == first
    rows = [EvalRow.model_validate_json(line) for line in (out / "again" / "rows.jsonl").read_text().splitlines()]
    assert len({r.id for r in rows}) == 108
    assert not list(out.rglob("request.json"))


def test_a_child_counts_its_own_memory_only(tmp_path):
    pytest.importorskip("onnxruntime_genai")
    import torch
    from distillery.exporting.export import build_onnx
    from distillery.evaluation.measure import measure_variant, memory_mb
    onnx = build_onnx(toy_base(tmp_path / "base"), tmp_path / "onnx", "fp32")
    held = torch.ones(64, 2**20)
    _, cost = measure_variant("fp32", onnx, toy_examples(2), tmp_path / "eval", load_config(overrides={"evaluation.max_new_tokens": 4}))
    assert held.numel() * 4 / 2**20 < memory_mb()[1]
    assert 0 < cost["model_rss_mb"] < cost["peak_rss_mb"] < 250
