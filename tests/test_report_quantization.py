"The quantization report from the kept run: the whole page against what it must hold, twice from two places, and with attacks in the data."
import json
import re
import shutil
from pathlib import Path

import browser
import pytest
import warm

from distillery.core.config import load_config
from distillery.core.records import ChatTurn, Example
from distillery.models.reading import answer_cases
from distillery.evaluation.evaluate import evaluate_variant
from distillery.evaluation.gates import student_gates
from distillery.exporting.export import build_onnx
from distillery.teachers.onnx import OnnxTeacher
from distillery.teachers.open import builtin_dir
from distillery.questions.decide import level_verdicts
from distillery.engine.source import open_source
from distillery.questions.quantization.decision import gates_of, quantization_decision, quantization_metrics, why_no_teacher
from distillery.questions.quantization.stages import level_weights, teacher_stages, why_no_levels
from distillery.questions.quantization.tables import answer_takeaway, variant_table
from distillery.questions.tables import contrast_table, scores_of
from distillery.questions.all import all_questions
from distillery.pages.report import build_report
from distillery.questions.results import open_results

KEPT = Path(__file__).parent / "data/run"
ATTACK = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\"> ../../etc/passwd"


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("one") / "run"
    shutil.copytree(KEPT, folder)
    with warm.kernels(): return build_report("quantization", folder / "reports", {"run_dir": str(folder)})


def test_the_page_answers_first_and_explains_after(page):
    text = page.read_text("utf-8")
    headings = re.findall(r"<h2[^>]*>(.*?)</h2>", text)
    assert [re.sub("<.*?>", "", h) for h in headings] == [
        "The variants", "Latency", "The differences", "By difficulty", "Size against quality", "What quantization costs a teacher",
        "Are the exports the model?", "Gates", "Cases that changed", "The worst cases", "Method"]
    first = text.index('class="finding"')
    assert first < text.index("<h2")
    assert re.search(r"Ship \w+", text[first:first + 200])
    assert "95 % interval" in text
    assert "naive interval" in text
    assert text.count("<figure") == 4
    assert "<script" not in text
    assert len(text.encode()) < 1_000_000


@pytest.mark.slow
def test_two_builds_from_two_places_are_the_same(page, tmp_path):
    shutil.copytree(KEPT, tmp_path / "elsewhere")
    again = build_report("quantization", tmp_path / "elsewhere/reports", {"run_dir": str(tmp_path / "elsewhere")})
    assert again.read_bytes() == page.read_bytes()
    assert str(tmp_path) not in again.read_text("utf-8")


TEACHERS = {
    "https://api.example/v1#big": "behind a server", "batch:jobs#big": "behind a server",
    "local:no/such-model": "hf download no/such-model",
    "mlx:no/such-model": "hf download no/such-model", "builtin:extractive": "a set of rules", "onnx:folder": "an exported graph",
    "builtin:tiny": "decisions.teacher_reference=pairs"}


@pytest.mark.parametrize("spec", [pytest.param(t, marks=[pytest.mark.slow] if i > 2 else []) for i, t in enumerate(TEACHERS)])
def test_a_teacher_that_could_not_be_compared_has_its_reason_on_the_page(tmp_path, spec):
    shutil.copytree(KEPT, tmp_path / "run", ignore=shutil.ignore_patterns("teacher"))
    facts = json.loads((tmp_path / "run/provenance.json").read_text())
    (tmp_path / "run/provenance.json").write_text(json.dumps(facts | {"teacher": spec, "gold": spec != "builtin:tiny"}))
    results = open_results(tmp_path / "run")
    assert TEACHERS[spec] in why_no_teacher(results)
    assert TEACHERS[spec] in quantization_metrics(results, load_config())["reasons"]["quantization_comparison"]
    assert TEACHERS[spec] in answer_takeaway(results, load_config())[0]["answer"]


def test_a_hub_teacher_that_was_fetched_has_weights_and_pairs_can_stand_in_for_gold(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    (tmp_path / "models--some--model/refs").mkdir(parents=True)
    (tmp_path / "models--some--model/refs/main").write_text("c0ffee")
    (tmp_path / "models--some--model/snapshots/c0ffee").mkdir(parents=True)
    assert level_weights("local:some/model") == tmp_path / "models--some--model/snapshots/c0ffee"
    assert why_no_levels("local:some/model", True) is None
    stages = lambda **changed: teacher_stages(open_source(None, tmp_path, None), load_config(overrides=changed), tmp_path / "cache")
    assert stages() == []
    made = stages(**{"decisions.teacher_reference": "pairs"})
    assert [(s.name, s.needs) for s in made] == [("teacher-fp32", ("documents", "select")), ("teacher-int8", ("documents", "select"))]


@pytest.mark.browser
def test_hostile_answers_are_shown_as_text(tmp_path):
    shutil.copytree(KEPT, tmp_path / "run")
    for path in (tmp_path / "run/eval").glob("*/rows.jsonl"):
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        for r in rows:
            r.update(question=ATTACK, prediction=ATTACK, gold=ATTACK, exact_match=float(path.parent.name == "fp32"))
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    facts = json.loads((tmp_path / "run/provenance.json").read_text())
    (tmp_path / "run/provenance.json").write_text(json.dumps({**facts, "inputs": ATTACK}))
    with warm.kernels(): shown = build_report("quantization", tmp_path / "out", {"run_dir": str(tmp_path / "run")})
    seen = browser.dom(shown)
    assert "<title>Which quantization should I ship?</title>" in seen
    assert "&lt;script&gt;document.title" in seen
    assert not re.search(r"<script|onerror=(?!\"?document\.title='owned'\"?&gt;)", seen.replace("&lt;script", ""))


def planted(lost: float):
    "The kept rows, with a share of q4's right answers taken away."
    rows = open_results(KEPT).rows()
    wrong = {"exact_match": 0.0, "answer_match": 0.0}
    hurt = [r.model_copy(update=wrong) if r.answer_match and i % 100 < lost * 100 else r for i, r in enumerate(rows["fp32"])]
    return {"fp32": rows["fp32"], "q4": [r.model_copy(update={"variant": "q4"}) for r in hurt]}


def test_a_variant_against_itself_is_equivalent_and_a_broken_one_is_worse():
    config, sizes = load_config(), {"fp32": 10, "q4": 1}
    same, broken = (quantization_decision(planted(lost), sizes, config) for lost in (0.0, 0.3))
    assert same.verdict.startswith("equivalent")
    assert same.sentence.startswith("Ship q4")
    assert broken.verdict == "fp32 better"
    assert broken.sentence.startswith("Ship fp32")


@pytest.mark.slow
def test_a_graph_with_one_layer_of_scales_zeroed_is_worse_and_the_sound_one_is_not(tmp_path):
    "The shipped reader answers from passages it has never seen, in full, at 8 bits, and at 8 bits with one layer's scales at zero."
    import onnx

    tiny, config = builtin_dir("tiny"), load_config(overrides={"evaluation.max_new_tokens": 24})
    folders = {"fp32": build_onnx(tiny, tmp_path / "fp32", "fp32"), "int8": build_onnx(tiny, tmp_path / "int8", "int8")}
    folders["uint8"] = Path(shutil.copytree(folders["int8"], tmp_path / "broken"))
    model = onnx.load(folders["uint8"] / "model.onnx")
    scales = [t for t in model.graph.initializer if "layers.3." in t.name and "scale" in t.name]
    assert len(scales) >= 4
    for t in scales: t.CopyFrom(onnx.numpy_helper.from_array(0 * onnx.numpy_helper.to_array(t), t.name))
    onnx.save(model, folders["uint8"] / "model.onnx")
    cases = [c for c in answer_cases(150, False, "zeroed") if c.difficulty in ("easy", "medium")]
    told = {str(i): (c, next(iter(c.good))) for i, c in enumerate(cases)}
    examples = [Example(id=i, pair_id=i, family_id=i, chunk_id=i, doc_id=i, set="test", kind="answer", question=c.prompt, answer=a,
                        category=c.category, difficulty=c.difficulty,
                        messages=[ChatTurn(role="user", content=c.prompt), ChatTurn(role="assistant", content=a)])
                for i, (c, a) in told.items()]
    rows = {v: evaluate_variant(OnnxTeacher(folder), examples, config, v) for v, folder in folders.items()}
    made = quantization_decision(rows, {"fp32": 10, "int8": 2, "uint8": 1}, config)
    judged = level_verdicts(made.contrasts, made.margin, made.metric, "documents")
    assert judged["uint8"][0] == "fp32 better"
    assert judged["int8"][0].startswith("equivalent")
    assert made.sentence.startswith("Ship int8")


def alike(one, other):
    if isinstance(one, dict): return one.keys() == other.keys() and all(alike(one[k], other[k]) for k in one)
    return one == pytest.approx(other, rel=1e-9, abs=1e-12) if isinstance(one, float) else one == other


@pytest.mark.parametrize("name", ["quantization", "temperature", "embedder"])
def test_a_sentence_and_its_table_say_the_confidence_of_their_interval(name):
    kept, results = next(d for d in open_results(KEPT).decisions() if d.name == name), open_results(KEPT)
    question = next(q for q in all_questions() if q.name == name)
    usual, narrow = (question.decisions(results, load_config(preset="handbook", overrides={"decisions.confidence": c}))[0]
                     for c in (0.95, 0.8))
    for made, was in zip((*usual.estimates, *usual.contrasts), (*kept.estimates, *kept.contrasts), strict=True):
        assert alike(made.model_dump(), was.model_dump()), "but for the last digits, in which processors differ"
    assert "95 % interval" in usual.sentence
    assert "80 % interval" in narrow.sentence
    assert "95 %" not in narrow.sentence
    for made, column in ((usual, "difference, 95 % interval"), (narrow, "difference, 80 % interval")):
        assert [row[column].values for row in contrast_table(made.contrasts)] == [(c.diff, c.ci_low, c.ci_high) for c in made.contrasts]


def test_a_decision_on_the_test_set_counts_questions_with_an_answer_as_the_gates_do():
    results = open_results(KEPT)
    asked = {v: [r for r in some if r.set == "test"] for v, some in results.rows().items()}
    refusals = sum(r.kind == "refusal" for r in asked["fp32"])
    assert refusals > 0
    made, mean = quantization_decision(asked, {v: 10 - i for i, v in enumerate(asked)}, load_config()), results.metrics("fp32")
    known = mean["sets"]["test"]["exact_match"]
    assert made.n_items == known["n"] == len(asked["fp32"]) - refusals
    assert next(e for e in made.estimates if e.level == "fp32").mean == pytest.approx(known["mean"])
    assert len(scores_of(asked, "behaviour_accuracy", "test")[0]["fp32"]) == len(asked["fp32"])
    row = variant_table(results, "test")[0]
    assert (row["questions"].values, row["with an answer"].values) == ((len(asked["fp32"]),), (known["n"],))


def test_the_card_of_the_built_in_run_could_have_seen_a_small_difference():
    decision = next(d for d in open_results(KEPT).decisions() if d.name == "quantization")
    assert max(c.mde for c in decision.contrasts) <= 0.08


def test_recall_rests_on_at_least_334_facts():
    decision = next(d for d in open_results(KEPT).decisions() if d.name == "quantization")
    assert decision.n_items >= 334
    assert next(e for e in decision.estimates if e.level == "fp32").ci_low > 0.8


def test_one_document_is_answered_for_where_the_run_speaks_of_it_alone():
    "A resume: its questions are the draw. Of documents like it nothing is claimed, and no number of cases is asked for."
    results = open_results(KEPT)
    page = [r.model_copy(update={"doc_id": "resume"}) for r in results.rows()["fp32"] if r.set == "recall" and r.kind == "answer"][:150]
    right = [r.model_copy(update={"answer_match": 1.0, "exact_match": 1.0}) for r in page]
    asked = {"thresholds.exact_match_rate_min": 0.95}
    alone, like = (load_config(overrides={"decisions.population": p, **asked}) for p in ("these", "like these"))
    of = lambda cfg: {g.name: g for g in student_gates({"fp32": right, "q4": right}, cfg) if g.variant == "q4"}
    own, others = of(alone), of(like)
    assert own["recall.exact_match_rate_min"].state == "PASS"
    assert others["recall.exact_match_rate_min"].state == "INCONCLUSIVE"
    assert others["recall.exact_match_rate_min"].cases_needed is None
    assert others["recall.exact_match_rate_min"].least_clusters >= 6
    made = quantization_decision({"fp32": right, "q4": right}, {"fp32": 4, "q4": 1}, alone)
    assert made.sentence.startswith("Ship q4")
    assert "1 document" not in made.verdict


def test_a_card_ships_nothing_whose_gate_is_open():
    "Equivalent at 5 % on one side, open at 2.5 %: the card says what is missing."
    results = open_results(KEPT)
    fp32 = [r for r in results.rows()["fp32"] if r.set == "recall" and r.kind == "answer"][:160]
    fp32 = [r.model_copy(update={"doc_id": str(i), "answer_match": 1.0, "exact_match": 1.0}) for i, r in enumerate(fp32)]
    for lost in range(12):
        q4 = [r.model_copy(update={"answer_match": float(i >= lost), "exact_match": float(i >= lost)}) for i, r in enumerate(fp32)]
        made = quantization_decision({"fp32": fp32, "q4": q4}, {"fp32": 4, "q4": 1}, load_config())
        gate, equivalent = gates_of(made)["q4"], (made.contrasts[0].p_equivalent or 0) <= 0.05
        assert made.sentence.startswith("Ship q4") == (equivalent and gate.state == "PASS")
        if equivalent and gate.state != "PASS": break
    else: raise AssertionError("no number of losses lies between the two")
    assert "its gate is INCONCLUSIVE" in made.sentence
    assert made.verdict == "undecided: a gate is open"
