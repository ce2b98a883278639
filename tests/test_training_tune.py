"Tuning adopts only what is shown to be better, runs are compared on the same questions, and three turned knobs are one warning."
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from distillery.core.config import load_config
from distillery.core.errors import DistilleryError
from distillery.core.files import write_jsonl
from distillery.core.records import Gate
from distillery.evaluation.evaluate import EvalRow
from distillery.workbook.compare_runs import changed_settings, compare_table, compare_warnings, run_contrasts
from distillery.questions.results import Results
from distillery.workbook.tune import REMEDIES, STEPS, asked_alike, candidates, judge, symptoms, tune_step

from warm import run_command

CONFIG = load_config(overrides={"decisions.resamples": 999})


def row(i: int, right: float, set_name: str = "recall", question: str = "") -> EvalRow:
    return EvalRow(id=f"{set_name}{i}", set=set_name, variant="fp32", doc_id=f"d{i // 4}", family_id=f"f{i}", category="c",
                   difficulty="easy", kind="answer", question=question or f"Question {i}?", gold="yes",
                   prediction="", finish_reason="stop", exact_match=right,
                   token_f1=right, keyword_coverage=right, refusal_accuracy=0, behaviour_accuracy=1, length_compliance=1, latency_ms=1.0)


def answers(share: float, seed: int, n: int = 120) -> list[EvalRow]:
    drawn = np.random.default_rng(seed).random(n)
    return [row(i, float(d < share)) for i, d in enumerate(drawn)]


def test_candidates_follow_the_guide_and_differ_from_what_is_there():
    training = candidates("training", CONFIG)
    assert {k for c in training.values() for k in c} == {"sft.learning_rate", "sft.epochs", "lora.r", "lora.alpha", "lora.dropout"}
    assert all(c.get("lora.alpha", 0) == 2 * c.get("lora.r", 0) for c in training.values())
    for step in STEPS:
        for change in candidates(step, CONFIG).values():
            load_config(overrides=change)
            assert 1 <= len(change) <= 2
    assert next(iter(candidates("quantization", load_config(overrides={"quantization.block_size": 16})))) == "quantization.block_size=32"
    with pytest.raises(DistilleryError, match="no step"): candidates("thresholds", CONFIG)


@pytest.mark.slow
def test_nothing_is_adopted_where_all_candidates_are_alike():
    "The best of seven by its mean is nearly always above the reference; it must nearly never be adopted."
    adopted = 0
    for seed in range(40):
        calls = iter(range(100))
        change, rounds = tune_step(lambda c, s=seed, k=calls: {"fp32": answers(0.5, 1000 * s + next(k))}, "training", CONFIG)
        adopted += bool(change)
        assert len(rounds) == 1
        assert len(rounds[0].lines) == 8
    assert adopted <= 5  # 5 % of 40, plus three standard errors, after Holm


@pytest.mark.parametrize("halving", [False, True])
def test_a_candidate_that_is_better_is_found_and_adopted(halving):
    asked = []

    def trial(change):
        asked.append(dict(change))
        return {"fp32": answers(0.8 if change.get("lora.dropout") == 0.1 else 0.4, len(asked))}
    change, rounds = tune_step(trial, "training", CONFIG, halving=halving)
    assert change == {"lora.dropout": 0.1}
    assert [r.share for r in rounds] == ([0.25, 0.5, 1.0] if halving else [1.0])
    assert [len(r.lines) - 1 for r in rounds] == ([7, 4, 2] if halving else [7])
    if halving:
        assert asked[0]["sft.epochs"] == CONFIG.sft.epochs / 4
        assert sum(c.get("sft.epochs", CONFIG.sft.epochs) / CONFIG.sft.epochs for c in asked) < 8 * 1.5  # cheaper than all in full
    assert rounds[-1].winner == "lora.dropout=0.1"
    line = next(x for x in rounds[-1].lines if x["candidate"] == "lora.dropout=0.1")
    assert line["difference"] > 0.2
    assert line["verdict"] == "lora.dropout=0.1 better"


def test_only_questions_asked_in_the_same_words_are_compared():
    one, other = [row(i, 1.0) for i in range(40)], [row(i, 0.0, question="Other words?" if i < 10 else "") for i in range(5, 45)]
    same = asked_alike({"a": one, "b": other})
    assert [r.id for r in same["a"]] == [f"recall{i}" for i in range(10, 40)] == [r.id for r in same["b"]]
    with pytest.raises(DistilleryError, match="share no questions"): judge("dataset", {"as it is": one[:2], "x": other[-2:]}, CONFIG)


def finished(folder: Path, name: str, share: float, seed: int, **config) -> Results:
    run = folder / "runs" / name
    (run / "eval/fp32").mkdir(parents=True)
    write_jsonl(run / "eval/fp32/rows.jsonl", answers(share, seed))
    for file, value in {"config": config, "provenance": {"code": "c1"}, "manifest": {"stages": {}, "ended": seed}}.items():
        (run / f"{file}.json").write_text(json.dumps(value))
    return Results(run)


def test_runs_are_compared_and_three_settings_are_warned_of(tmp_path):
    base = {"lora.r": 64, "sft.epochs": 8, "lora.dropout": 0.0, "evaluation.seed": 88}
    a, b = finished(tmp_path, "aaaa", 0.3, 1, **base), finished(tmp_path, "bbbb", 0.8, 2, **{**base, "lora.r": 32, "sft.epochs": 4})
    c = finished(tmp_path, "cccc", 0.8, 3, **{**base, "lora.r": 32, "sft.epochs": 4, "lora.dropout": 0.1, "thresholds.token_f1_min": 0.9})
    assert changed_settings(base, json.loads((c.path / "config.json").read_text())).keys() == {"lora.r", "sft.epochs", "lora.dropout"}
    assert compare_warnings(a, b) == []
    assert [w[:17] for w in compare_warnings(a, c)] == ["3 settings differ"]
    table = compare_table(a, b, CONFIG)
    assert [(r["metric"], r["verdict"]) for r in table] == [("exact match", "second better"), ("token F1", "second better")]
    assert all(r["n"] == 120 for r in table)
    assert run_contrasts(a.rows()["fp32"], a.rows()["fp32"], CONFIG)[0][2].diff == 0
    (b.path / "provenance.json").write_text('{"code": "c2"}')
    write_jsonl(b.path / "eval/fp32/rows.jsonl", answers(0.8, 2)[:100])
    assert len(compare_warnings(a, b)) == 2


def command(cwd: Path, *words: str) -> subprocess.CompletedProcess:
    return run_command(*words, cwd=cwd, env={"COLUMNS": "200"})


def test_the_commands_compare_and_advise(tmp_path):
    base = {"lora.r": 64, "sft.epochs": 8, "sft.learning_rate": 1e-4}
    finished(tmp_path, "aaaa", 0.3, 1, **base)
    finished(tmp_path, "bbbb", 0.8, 2, **{"lora.r": 32, "sft.epochs": 4, "sft.learning_rate": 2e-4})
    said = command(tmp_path, "runs", "compare", "aaaa", "bbbb")
    assert said.returncode == 0, said.stderr
    assert "64 -> 32" in said.stdout
    assert "3 settings differ" in said.stdout
    assert "second better" in said.stdout
    advice = command(tmp_path, "tune", "--advise", "aaaa")
    assert advice.returncode == 0, advice.stderr
    assert "no symptom" in advice.stdout


def test_symptoms_are_named_with_what_shows_them(tmp_path):
    run = finished(tmp_path, "aaaa", 0.3, 1).path
    gate = lambda name, state, variant="fp32": Gate(name=name, variant=variant, value=0.4, bound=0.45, threshold=0.55, side="min",
                                                    state=state, n=90)
    write_jsonl(run / "eval/gates.jsonl", [gate("recall.token_f1_min", "FAIL"), gate("recall.fp32_alignment_min", "FAIL", "q4"),
                                           gate("test.exact_match_rate_min", "INCONCLUSIVE")])
    low = {"exact_match": {"mean": 0.3, "ci_low": 0.2, "ci_high": 0.4}}
    (run / "eval/fp32/metrics.json").write_text(json.dumps({"sets": {"recall": low}}))
    (run / "student/adapter").mkdir(parents=True)
    log = [{"event": "log", "step": i, "eval_loss": loss} for i, loss in enumerate((2.0, 1.0, 1.4))]
    (run / "student/adapter/train_log.jsonl").write_text("".join(json.dumps(x) + "\n" for x in log))
    found = {s["symptom"]: s for s in symptoms(Results(run))}
    assert list(found) == ["weak factuality", "overfitting", "variants drift", "accuracy below 80 %", "too few cases"]
    assert "n = 90" in found["weak factuality"]["seen in"]
    assert "1.40 at the end, 1.000 at its best" in found["overfitting"]["seen in"]
    assert "q4" in found["variants drift"]["seen in"]
    assert all(s["try"] == REMEDIES[name] for name, s in found.items())
    write_jsonl(run / "eval/gates.jsonl", [gate("recall.token_f1_min", "PASS")])
    assert "all gates pass" in {s["symptom"] for s in symptoms(Results(run))}


@pytest.mark.slow
def test_trials_share_what_they_can_and_train_what_they_must(tmp_path):
    from distillery.workbook.tune import trials
    knobs = {"export.variants": ["fp32"], "sft.epochs": 1, "dataset.questions_per_chunk": 3, "export.check_positions": 50,
             "evaluation.full_samples_per_set": 20, "evaluation.max_new_tokens": 8, "workbook.cache_dir": str(tmp_path / "cache"),
             "student.base": "builtin:tiny"}
    made = []
    run = trials(None, None, load_config(preset="handbook", overrides=knobs), lambda e: made.append(e.stage) if e.kind == "done" else None)
    first = run({})
    assert made[-1] == "evaluate"
    assert not {"temperature-0.7", "embedder", "context"} & set(made)
    made.clear()
    second = run({"lora.r": 8, "lora.alpha": 16})
    assert set(made) == {"sft", "merge", "export-fp32", "measure-fp32", "evaluate"}
    assert [r.id for r in first["fp32"]] == [r.id for r in second["fp32"]]


@pytest.mark.slow
def test_candidates_are_exported_once_and_asked_until_decided(tmp_path):
    from distillery.workbook.tune_looks import exports, measured_rows, tune_in_looks
    knobs = {"export.variants": ["fp32", "q4"], "sft.epochs": 1, "dataset.questions_per_chunk": 3, "export.check_positions": 50,
             "evaluation.full_samples_per_set": 60, "evaluation.max_new_tokens": 8, "workbook.cache_dir": str(tmp_path / "cache"),
             "student.base": "builtin:tiny", "decisions.margins": {"answer_match": 0.5}}
    made, heard, config = [], [], load_config(preset="handbook", overrides=knobs)
    watch = lambda e: made.append(e.stage) if e.kind == "done" else None
    make, answer = exports(config, "quantization", watch), measured_rows(config)
    step = lambda: tune_in_looks(make, answer, "quantization", config, 5, tell=heard.append)
    change, [found] = step()
    assert not {s for s in made if s.startswith("measure-")}
    assert found.decided[-1].endswith("saved.")
    assert all(line["verdict"].startswith("equivalent") for line in found.lines[1:])
    assert change == {}
    made.clear()
    assert step() == (change, [found])
    assert made == []
