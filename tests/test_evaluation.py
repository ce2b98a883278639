"Evaluating finished runs: suites, own sets, the incumbent, failures side by side, latency and exit codes."
import contextlib
import io
import json
import re
import shutil
from pathlib import Path

import pytest

from distillery.core.config import load_config
from distillery.core.errors import DistilleryError
from distillery.core.files import write_jsonl
from distillery.core.records import Example
from distillery.evaluation import measure
from distillery.evaluation.evaluate import EvalCase, align_rows, draw_suite, score_answer
from distillery.evaluation.gates import TAUGHT, THRESHOLDS, budget_key, student_gates
from distillery.evaluation.incumbent import incumbent_variants, unseen_cases
from distillery.evaluation.latency import Timing, latency_summary, measure_latency
from distillery.evaluation.own_sets import find_overlaps, read_own_sets, without_overlaps
from distillery.evaluation.summary import METRICS, find_failures, worst_cases
from distillery.evaluation.markdown import render_overview
from distillery.training.toy import toy_base, toy_examples
from distillery.teachers.onnx import OnnxTeacher
from distillery.teachers.protocol import ChatResult
from distillery.commands.cli import main
from distillery.workbook.reevaluate import cases_of, evaluate_run, settings_of, verdict_of, write_overview
from distillery.pages.html import table
from distillery.questions.results import Results

CFG = load_config()
GUIDE = Path(__file__).resolve().parents[2] / "shared/seeds"
KNOBS = {"evaluation.max_new_tokens": 6, "evaluation.latency_questions": 8, "evaluation.concurrency": [1, 2]}


def answered(example, text, variant="fp32", **more):
    return score_answer(example, ChatResult(example.id, text, "stop", latency_ms=20.0, completion_tokens=5, **more), variant, CFG)


def toy_run(place: Path, onnx: Path, trained: int = 3, asked: int = 36) -> Path:
    "A finished run of a random network."
    shutil.copytree(onnx, place / "onnx")
    sets = {"test": toy_examples(asked, "test")[6:], "recall": toy_examples(asked, "recall")[6:], "train": toy_examples(trained)}
    for name, rows in sets.items():
        write_jsonl(place / "dataset" / f"{name}.jsonl", rows)
    (place / "config.json").write_text(json.dumps(KNOBS))
    for file in ("provenance.json", "manifest.json"): (place / file).write_text("{}")
    return place


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    pytest.importorskip("onnxruntime_genai")
    from distillery.exporting.export import build_onnx
    folder = tmp_path_factory.mktemp("toy")
    merged = toy_base(folder / "merged")
    for v in ("fp32", "q4"): build_onnx(merged, folder / "onnx" / v, v)
    return folder / "onnx"


@pytest.fixture(scope="module")
def runs(exported, tmp_path_factory):
    "A folder in which somebody works: two finished runs."
    place = tmp_path_factory.mktemp("work")
    toy_run(place / "runs/aaaa", exported)
    toy_run(place / "runs/bbbb", exported, trained=9)
    (place / "runs/latest").write_text("aaaa\n")
    return place


# Suites

def suite(name, examples, **more):
    cfg = load_config(overrides={"evaluation.suite": name} | {f"evaluation.{k}": v for k, v in more.items()})
    return {e.id for e in draw_suite(examples, cfg)}


@pytest.mark.parametrize("seed", range(5))
def test_smoke_is_a_part_of_full_and_both_keep_their_sizes(seed):
    examples = toy_examples(500, "test")
    many = [EvalCase(**{**e.model_dump(), "id": f"{s}-{i}", "set": s}) for s in ("test", "recall", "ours") for i, e in enumerate(examples)]
    smoke, full = suite("smoke", many, seed=seed), suite("full", many, seed=seed)
    assert (len(smoke), len(full)) == (150, 900)
    assert smoke < full
    small = {"seed": seed, "smoke_samples": 400, "full_samples_per_set": 30}
    assert suite("smoke", many, **small) == suite("full", many, **small)
    assert suite("smoke", many, seed=seed) != suite("smoke", many, seed=seed + 1)


def test_every_variant_is_asked_the_same_cases(runs, tmp_path):
    results = Results(runs / "runs/aaaa")
    now = {"evaluation.report_output": str(tmp_path), "evaluation.smoke_samples": 5, "evaluation.suite": "smoke"}
    made = evaluate_run(results, settings_of(results, now))
    ids = {v: [r.id for r in rows] for v, rows in made.rows.items()}
    assert ids["fp32"] == ids["q4"]
    assert len(ids["q4"]) == 10


# What the guide asks for

def test_every_metric_threshold_and_budget_of_the_guide_is_there():
    found = sorted(GUIDE.glob("002_*.txt")) if GUIDE.is_dir() else []
    if not found: pytest.skip("the guide is not here: ../shared/seeds is no part of the project")
    text = found[0].read_text("utf-8")
    part = text[text.index("## Evaluation Knobs and Gates") : text.index("## Operational")]
    named = [line.split("`")[1] for line in part.splitlines() if line.startswith("| `")]
    assert len(named) == 22
    knobs = {f"{section}.{k}" for section in ("evaluation", "thresholds") for k in getattr(CFG, section).model_dump()}
    for name in named:
        if "p95_latency" in name: assert name.removeprefix("thresholds.p95_latency_ms_max.") in CFG.thresholds.p95_latency_ms_max
        elif name.startswith("evaluation.hub."): assert name.rpartition(".")[2] in type(CFG.evaluation.hub).model_fields
        else: assert name in knobs
    gated = {name.removeprefix("thresholds.") for name in named if name.endswith("_min") and ".case_" not in name}
    assert gated == set(THRESHOLDS)
    assert set(THRESHOLDS.values()) <= set(METRICS)


def test_gates_also_ask_whether_a_variant_is_worse_than_fp32():
    rows = {"fp32": [answered(e, e.answer) for e in toy_examples(300, "test")]}
    rows["q4"] = [r.model_copy(update={"variant": "q4"}) for r in rows["fp32"]]
    rows["int8"] = [r if i % 5 else r.model_copy(update={"answer_match": 0.0, "token_f1": 0.0}) for i, r in enumerate(rows["fp32"])]
    gates = {(g.variant, g.name): g for g in student_gates(align_rows(rows), CFG)}
    assert gates["q4", "test.answer_match_vs_fp32"].state == "PASS"
    assert gates["int8", "test.answer_match_vs_fp32"].state == "FAIL"
    assert gates["q4", "test.answer_match_vs_fp32"].threshold == -CFG.decisions.margins["answer_match"]
    assert ("fp32", "test.answer_match_vs_fp32") not in gates
    one_page = {v: [r.model_copy(update={"doc_id": "d"}) for r in some] for v, some in rows.items()}
    assert {g.state for g in student_gates(one_page, CFG) if g.name.endswith("_vs_fp32")} == {"INCONCLUSIVE"}
    assert budget_key("q4") == "model_q4.onnx"


# Own sets

GOOD = '{"question": "Where is the press?", "answer": "In room 4", "context": "The press is in room 4."}'


def own(folder: Path, **files: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in files.items(): (folder / f"{name}.jsonl").write_text(text)
    return folder


@pytest.mark.parametrize(("name", "text", "words"), [
    ("ours", GOOD + '\n{"question": "How hot?"}', "line 2"),
    ("ours", GOOD + "\n\n{", "line 3"),
    ("ours", '{"question": "", "answer": "x"}', "line 1"),
    ("ours", '{"question": "Where?", "answer": "x", "contxt": "y"}', "contxt"),
    ("ours", '{"question": "Where?", "answer": "x", "kind": "maybe"}', "kind"),
    ("ours", GOOD + "\n" + GOOD, "repeats question 1"),
    ("ours", "", "empty"),
    ("train", GOOD, "cannot be called"),
    ("recall", GOOD, "cannot be called"),
    ("with space", GOOD, "cannot be called"),
])
def test_bad_sets_are_refused_with_their_line(tmp_path, name, text, words):
    with pytest.raises(DistilleryError, match=words) as refused: read_own_sets(own(tmp_path / "eval", **{name: text}))
    assert refused.value.fix


def test_a_folder_that_is_none_or_empty_is_named(tmp_path):
    with pytest.raises(DistilleryError, match="no folder"): read_own_sets(tmp_path / "nowhere")
    with pytest.raises(DistilleryError, match="no JSONL"): read_own_sets(tmp_path)


def test_each_file_is_a_set_asked_as_the_student_was_trained(tmp_path):
    cases = read_own_sets(own(tmp_path / "eval", ours=GOOD + '\n{"question": "Who won?", "kind": "refusal"}', theirs=GOOD))
    assert [(c.set, c.kind) for c in cases] == [("ours", "answer"), ("ours", "refusal"), ("theirs", "answer")]
    assert cases[0].messages[0].content == "The press is in room 4.\n\nQuestion: Where is the press?"
    assert len({c.id for c in cases}) == 3


def test_what_training_asked_is_left_out_and_named(tmp_path, runs):
    trained = toy_examples(3)
    lines = "\n".join(json.dumps({"question": q, "answer": "In room A10."}) for q in (
        trained[0].question.upper(), "Where, does the " + trained[1].question.split("the ")[1], "Where does nobody stand?"))
    folder = own(tmp_path / "eval", ours=lines)
    kept, overlaps = without_overlaps(read_own_sets(folder), trained)
    assert [c.question for c in kept] == ["Where does nobody stand?"]
    assert [o.seen for o in overlaps] == [trained[0].question, trained[1].question]
    cases, notes = cases_of(Results(runs / "runs/aaaa"), load_config(overrides={"evaluation.eval_data_dir": str(folder)}))
    assert len(cases) == 1
    assert trained[0].question.upper() in notes[0]
    (folder / "ours.jsonl").write_text(json.dumps({"question": trained[2].question, "answer": "x"}))
    cfg = load_config(overrides={"evaluation.eval_data_dir": str(folder)})
    with pytest.raises(DistilleryError, match="every question of ours"): cases_of(Results(runs / "runs/aaaa"), cfg)


def test_the_same_question_about_another_passage_is_no_overlap():
    seen = Example.model_validate({**toy_examples(1)[0].model_dump(), "passage": "The Raven stands in room 4."})
    passages = ("The Raven stands in room 4.", "It stands in room 9.", None)
    asked = [EvalCase(**{**seen.model_dump(), "passage": p, "id": str(p)}) for p in passages]
    assert [o.id for o in find_overlaps(asked, [seen])] == ["The Raven stands in room 4.", "None"]


def test_a_run_measures_own_sets_beside_its_own(tmp_path):
    from distillery.evaluation.stages import student_stages
    folder = own(tmp_path / "eval", ours=GOOD)

    def asked(**more):
        config = load_config(overrides={"evaluation.eval_data_dir": str(folder), **more})
        return {s.name: s for s in student_stages(config, tmp_path)}
    plain, with_own = asked(**{"evaluation.eval_data_dir": None}), asked()
    assert "own sets" not in plain["measure-q4"].inputs
    first = with_own["measure-q4"].inputs["own sets"]
    (folder / "ours.jsonl").write_text(GOOD.replace("room 4\"", "room 5\""))
    assert asked()["measure-q4"].inputs["own sets"] != first
    (folder / "ours.jsonl").write_text("{")
    with pytest.raises(DistilleryError, match="line 1"): asked()


# Failures side by side

EVIL = "<script>alert(1)</script> | `x` [a](http://b)\n# Owned"


def test_the_worst_cases_stand_side_by_side_and_are_text():
    examples = toy_examples(6, "test")
    rows = {"fp32": [answered(e, e.answer if i else EVIL) for i, e in enumerate(examples)],
            "q4": [answered(e, e.answer if i > 1 else EVIL, "q4") for i, e in enumerate(examples)]}
    worst = worst_cases(rows, CFG)
    assert [(w["question"], w["failed"]) for w in worst] == [(examples[0].question, "2 of 2"), (examples[1].question, "1 of 2")]
    assert worst[1]["fp32"] == examples[1].answer
    assert worst[1]["q4"] == EVIL
    markdown = render_overview(rows, [], {}, CFG, [EVIL])
    assert [line for line in markdown.splitlines() if line.startswith("# ")] == ["# Evaluation"]
    lines = [line for line in markdown.splitlines() if "script" in line]
    assert all(line.count("`") % 2 == 0 and "|" not in line.split("`")[1] for line in lines)
    assert "<script>" not in str(table(worst))


def test_a_case_that_one_variant_was_not_asked_is_shown_with_a_gap():
    examples = toy_examples(3, "test")
    rows = {"fp32": [answered(e, "wrong") for e in examples], "q4": [answered(e, "wrong", "q4") for e in examples[:1]]}
    assert [w["failed"] for w in worst_cases(rows, CFG)] == ["2 of 2", "1 of 1", "1 of 1"]
    assert "–" in render_overview(rows, [], {}, CFG)


def test_markers_of_a_refusal_come_from_the_settings():
    cfg = load_config(overrides={"evaluation.refusal_markers": ["no idea"]})
    unanswerable = toy_examples(1)[0].model_copy(update={"kind": "refusal", "answer": ""})
    said = lambda text, c: score_answer(unanswerable, ChatResult("x", text, "stop"), "fp32", c).refusal_accuracy
    assert (said("Hard to say, no idea at all.", cfg), said("Hard to say, no idea at all.", CFG), said("Room A10", cfg)) == (1.0, 0.0, 0.0)
    answer = score_answer(unanswerable, ChatResult("x", "Room 4", "stop"), "fp32", cfg)
    assert find_failures([answer], cfg)[0]["reasons"] == ["did not refuse"]


# Latency

def test_latency_is_measured_alone_and_in_a_crowd(exported):
    student = OnnxTeacher(exported / "q4", threads=1)
    knobs = {**KNOBS, "evaluation.latency_questions": 32, "evaluation.concurrency": [1, 8]}
    levels = measure_latency(student, toy_examples(36, "test"), load_config(overrides=knobs))
    alone, crowd = levels
    assert (alone["at_once"], crowd["at_once"], crowd["answers"]) == (1, 8, 32)
    for level in levels:
        for name in ("first_token_ms", "per_token_ms"): assert 0 < level[name]["ci_high"] >= level[name]["mean"] >= level[name]["ci_low"]
    assert crowd["first_token_ms"]["n_clusters"] == 4
    assert crowd["first_token_ms"]["mean"] > alone["first_token_ms"]["mean"]


def test_too_few_rounds_give_a_reason_and_no_interval():
    one = {"at_once": 8, "prompt_tokens": 9, "tokens": 1, "per_token_ms": None}
    timings = [Timing(id=str(i), place=i, first_token_ms=2.0 + i, **one) for i in range(8)]
    facts = latency_summary(timings, 100.0)
    assert facts["first_token_ms"] == {"mean": None, "reason": "fewer than two rounds of 8 questions"}
    assert facts["per_token_ms"]["mean"] is None


# The incumbent

def test_each_variant_meets_what_it_would_replace():
    assert incumbent_variants(["fp32", "q4"], ["fp32", "q4", "int8"]) == {"fp32": "fp32", "q4": "q4"}
    with pytest.raises(DistilleryError, match="no exported variant"): incumbent_variants(["q4"], [])


@pytest.mark.slow
def test_a_question_that_the_incumbent_trained_on_decides_nothing(runs, tmp_path):
    asked = [EvalCase(**e.model_dump()) for e in toy_examples(9, "test")]
    with pytest.raises(DistilleryError, match="trained on every question"): unseen_cases(asked, toy_examples(36))
    new, old = (Results(runs / "runs" / name) for name in ("aaaa", "bbbb"))
    cfg = settings_of(new, {"evaluation.report_output": str(tmp_path)})
    made = evaluate_run(new, cfg, ["q4"], incumbent=old)
    left_out = [n for n in made.notes if n.startswith("left out")]
    assert len(left_out) == 6  # questions 6, 7 and 8 of both sets
    assert {r.question for r in made.rows["q4"]}.isdisjoint(e.question for e in toy_examples(9))
    assert {d["incumbent"] for d in made.differences} == {"q4"}
    assert {g.name.rpartition("_vs_")[2] for g in made.gates if "_vs_" in g.name} == {"incumbent"}
    text = write_overview(made, cfg).read_text()
    assert "Against the incumbent" in text
    assert "bbbb" in text


# The command

def distillery(*args: str, cwd: Path, code: int) -> str:
    "What a person types, in this process: what is heavy is loaded once."
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(cwd), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as left:
        main(list(args))
    assert (left.value.code or 0) == code, f"exit {left.value.code}\n{out.getvalue()}\n{err.getvalue()}"
    return out.getvalue() + err.getvalue()


EASY = [x for name in THRESHOLDS | TAUGHT for x in ("--set", f"thresholds.{name}=0")]


def test_exit_codes(runs):
    failing = distillery("evaluate", "--suite", "smoke", cwd=runs, code=0)
    assert "FAIL q4 test.exact_match_rate_min" in failing
    assert "FAIL q4" in distillery("evaluate", "--suite", "smoke", "--fail-on-threshold", cwd=runs, code=4)
    open_ones = distillery("evaluate", "--suite", "smoke", "--fail-on-threshold", "--compare-to", "bbbb", *EASY, cwd=runs, code=0)
    assert "0 FAIL" in open_ones
    assert "INCONCLUSIVE q4" in open_ones
    assert "cases in all would settle it" in open_ones
    folders = sorted(p.name for p in (runs / "eval_reports/aaaa").iterdir())
    assert len(folders) == 2
    assert all(f.startswith("smoke-") for f in folders)


def test_an_export_that_only_guesses_fails_a_merge_whatever_the_thresholds(runs, tmp_path, exported):
    toy_run(tmp_path / "runs/aaaa", exported)
    (tmp_path / "runs/latest").write_text("aaaa\n")
    ask = "evaluate", "--suite", "smoke", "--variant", "q4", "--fail-on-threshold", *EASY
    ladder = json.loads(Path(__file__).with_name("data").joinpath("run/onnx/q4/fidelity.json").read_text())
    place = tmp_path / "runs/aaaa/onnx/q4/fidelity.json"
    place.write_text(json.dumps(ladder))
    assert "PASS q4 kl_max" in distillery(*ask, cwd=tmp_path, code=0)
    place.write_text(json.dumps({**ladder, "alarms": ["its likeliest token is anybody's guess"], "state": "FAIL"}))
    assert "FAIL q4 near_chance" in distillery(*ask, cwd=tmp_path, code=4)


@pytest.mark.slow
def test_the_same_evaluation_is_the_same_folder_and_asks_nothing_again(runs, tmp_path):
    results = Results(runs / "runs/bbbb")
    cfg = settings_of(results, {"evaluation.report_output": str(tmp_path)})
    first = evaluate_run(results, cfg)
    write_overview(first, cfg)
    before = {p.relative_to(tmp_path): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    write_overview(evaluate_run(results, cfg), cfg)
    assert {p.relative_to(tmp_path): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


@pytest.mark.slow
def test_looks_stop_when_it_is_decided_and_go_on_where_time_ended(exported, tmp_path, monkeypatch):
    "Eighteen documents a set, and a variant that answers as badly as fp32: it is no worse by .5, as twelve of them show."
    monkeypatch.setattr(measure, "_run_child", lambda variant, out, total, progress: measure.answer_request(out))  # two seconds less each
    results = Results(toy_run(tmp_path / "runs/aaaa", exported, asked=60))
    cfg = settings_of(results, {"evaluation.report_output": str(tmp_path / "reports"), "decisions.margins": {"answer_match": 0.5}})
    short = evaluate_run(results, cfg, looks=3, seconds=1e-9)
    assert short.decided[-1].endswith("The same command goes on.")
    made = evaluate_run(results, cfg, looks=3)
    assert made.folder == short.folder
    assert [r.id for r in made.rows["q4"]] == [r.id for r in made.rows["fp32"]]
    assert (len(short.rows["q4"]), len(made.rows["q4"])) == (36, 72)
    assert {g.state for g in made.gates if g.name.endswith("answer_match_vs_fp32")} == {"PASS"}
    assert all("q4 is no worse than fp32 in answer match by more than 0.5" in line for line in made.decided[:2])
    assert made.decided[-1] == "144 answers of 216 were needed: 33.3 % saved."
    assert made.confidence > 0.95
    assert made.decided[0] in write_overview(made, cfg).read_text()
    assert evaluate_run(results, cfg, looks=3).rows == made.rows
    with pytest.raises(DistilleryError, match="with another margin: a plan is declared once"):
        evaluate_run(results, settings_of(results, {"evaluation.report_output": str(tmp_path / "reports")}), looks=3)
    rows = next(made.folder.glob("measured/q4/look-1/rows.jsonl"))
    rows.write_text(rows.read_text().replace('"answer_match":0.0', '"answer_match":1.0'))
    with pytest.raises(DistilleryError, match="have changed since they were looked at"): evaluate_run(results, cfg, looks=3)


def test_looks_need_a_comparison(runs):
    assert "there is none" in distillery("evaluate", "--variant", "q4", "--looks", "5", cwd=runs, code=1)
    assert "--looks 5" in distillery("evaluate", "--within", "5m", cwd=runs, code=2)


@pytest.mark.slow
def test_looks_at_the_run_in_use(runs):
    wide = "--set", "decisions.margins={answer_match: 0.5}"
    said = distillery("evaluate", "--looks", "5", "--compare-to", "bbbb", "--variant", "q4", *wide, cwd=runs, code=0)
    assert "q4 is no worse than the incumbent's q4 in answer match by more than 0.5" in said
    assert re.search(r"answers of \d+ were needed: \S+ % saved", said)


def test_slips_are_named(runs):
    assert "one of: fp32, q4" in distillery("evaluate", "--variant", "int9", cwd=runs, code=1)
    assert "Fix:" in distillery("evaluate", "--run", "cccc", cwd=runs, code=1)
    assert "evaluation.suite" in distillery("evaluate", "--suite", "huge", cwd=runs, code=2)
    assert "no folder" in distillery("evaluate", "--data", "nowhere", cwd=runs, code=1)


def test_thresholds_of_today_hold(runs, tmp_path):
    "A run keeps its settings; a settings file of today brings its thresholds."
    results = Results(runs / "runs/aaaa")
    assert settings_of(results, {"thresholds.token_f1_min": 0.9, "lora.r": 3}).thresholds.token_f1_min == 0.9
    assert settings_of(results, {"lora.r": 3}).lora.r == CFG.lora.r
    assert settings_of(results, {}).evaluation.max_new_tokens == 6
    gates = student_gates({"fp32": [answered(e, "no") for e in toy_examples(36, "test")]}, CFG)
    assert "1 FAIL" in verdict_of([g for g in gates if "token_f1" in g.name])
