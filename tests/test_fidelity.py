"The fidelity ladder: its formulas against others', twenty breakages and twenty sound exports, and what a page says of them."
import json
import re
import shutil
from pathlib import Path

import fidelity_plants as plants
import numpy as np
import pytest
import warm

from distillery.core.config import load_config
from distillery.exporting.check import EncodedChat, encode_chats, evaluation_texts
from distillery.exporting.export import ExportError, build_onnx, variant_bytes
from distillery.exporting.fidelity import (
    Fidelity, chance_of, compare_text, fidelity_gates, fidelity_metrics, ladder_of, measure_fidelity, near_chance,
)
from distillery.training.toy import toy_base, toy_examples
from distillery.teachers.local import TransformersTeacher
from distillery.teachers.onnx import OnnxTeacher
from distillery.teachers.open import builtin_dir
from distillery.teachers.protocol import ask_all, user_request
from distillery.evaluation.ladder import (
    ladder_plot, ladder_sentence, ladder_table, missed_limits, read_ladders, variants_at_chance, variants_beyond,
)

pytest.importorskip("onnxruntime_genai")
KEPT = Path(__file__).parent / "data/run"


# --- formulas ------------------------------------------------------------------------------------------------------------------------
def invented(blur, texts=40, answers=6, vocabulary=30, seed=0, page=lambda i: f"p{i}"):
    "A model that is mostly right, and the same with noise on its logits."
    rng, found = np.random.default_rng(seed), []
    for i in range(texts):
        ids = tuple(int(t) for t in rng.integers(0, vocabulary, answers + 3))
        logits = rng.normal(0, 3, (len(ids), vocabulary)).astype(np.float32)
        logits[range(len(ids) - 1), ids[1:]] += 5
        other = logits + rng.normal(0, blur, logits.shape).astype(np.float32)
        found.append((EncodedChat(ids, 2, ("easy", "hard")[i % 2], page(i)), logits, other))
    return found


def readings_of(made): return [compare_text(*m) for m in made]


def test_divergence_is_scipys_and_the_loss_is_torchs():
    torch, scipy = pytest.importorskip("torch"), pytest.importorskip("scipy.stats")
    passage, a, b = invented(1.0, 1)[0]
    read, soft = compare_text(passage, a, b, rows=2), lambda x: np.exp(x.astype(float)) / np.exp(x.astype(float)).sum(-1, keepdims=True)
    assert np.allclose(read.kl, scipy.entropy(soft(a), soft(b), axis=-1)[:-1])
    loss = lambda x: torch.nn.functional.cross_entropy(torch.tensor(x[:-1]), torch.tensor(passage.ids[1:]), reduction="none").numpy()
    assert np.allclose(read.loss, loss(b), atol=1e-5)
    assert np.allclose(read.reference_loss, loss(a), atol=1e-5)


def test_one_position_a_page_gives_the_standard_error_that_llama_cpp_prints():
    "Mean, and standard deviation over the root of n; perplexities as the exponential of the mean paired difference."
    readings = readings_of(invented(0.7, 50, answers=1))
    rungs, kl = fidelity_metrics(readings), np.array([r.kl[-1] for r in readings])
    rise = np.array([r.loss[-1] - r.reference_loss[-1] for r in readings])
    assert rungs.n == rungs.n_clusters == 50
    assert np.isclose(rungs.kl.mean, kl.mean())
    assert np.isclose(rungs.kl.se, kl.std(ddof=1) / np.sqrt(50))
    assert np.isclose(rungs.perplexity_ratio.mean, np.exp(rise.mean()))
    assert np.isclose(rungs.perplexity_ratio.se, np.exp(rise.mean()) * rise.std(ddof=1) / np.sqrt(50))


def test_the_ratio_of_losses_has_the_standard_error_of_a_bootstrap_over_pages():
    readings, rng = readings_of(invented(1.0, 200, page=lambda i: f"p{i // 2}")), np.random.default_rng(1)
    sums = np.array([[sum(r.loss[2:].sum() for r in readings[i : i + 2]), sum(r.reference_loss[2:].sum() for r in readings[i : i + 2])]
                     for i in range(0, 200, 2)])
    drawn = sums[rng.integers(0, 100, (4000, 100))].sum(1)
    rungs = fidelity_metrics(readings)
    assert np.isclose(rungs.nll_ratio.mean, sums[:, 0].sum() / sums[:, 1].sum())
    assert np.isclose(rungs.nll_ratio.se, (drawn[:, 0] / drawn[:, 1]).std(), rtol=0.12)


def test_positions_of_a_page_are_not_independent():
    "The same text forty times, on one page of five or on a page each."
    alone = fidelity_metrics(readings_of(invented(1.0, 40))).kl.se
    copies = [m for m in invented(1.0, 5) for _ in range(8)]
    assert fidelity_metrics(readings_of(copies)).kl.se > 1.5 * alone


def test_a_run_of_one_page_has_texts_for_clusters():
    assert fidelity_metrics(readings_of(invented(1.0, 12, page=lambda i: "only"))).n_clusters == 12
    assert fidelity_metrics(readings_of(invented(1.0, 1))).n == 6


# --- alarms and gates ----------------------------------------------------------------------------------------------------------------
def alarms_of(readings):
    rungs = fidelity_metrics(readings)
    return near_chance(readings, rungs, chance_of(readings, rungs))


def test_noise_alarms_and_rounding_does_not():
    assert alarms_of(readings_of(invented(0.05))) == []
    rng = np.random.default_rng(5)
    noise = [(p, a, rng.normal(0, 3, a.shape).astype(np.float32)) for p, a, _ in invented(0)]
    assert len(alarms_of(readings_of(noise))) == 2
    flat = [(p, a, np.zeros_like(a)) for p, a, _ in invented(0)]
    assert len(alarms_of(readings_of(flat))) == 2


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_position_that_is_no_number_alarms(value):
    made = invented(0.01)
    made[7][2][4, 3] = value
    assert alarms_of(readings_of(made)) == ["at 1 positions its logits are no numbers"]
    ladder = ladder_of("fp32", readings_of(made), load_config())
    assert ladder.state == "FAIL"
    assert Fidelity.model_validate_json(ladder.model_dump_json(by_alias=True)) == ladder


def test_a_student_that_guesses_does_not_blame_its_export():
    "Losses near chance on both sides, and odds that agree: nothing rings."
    rng = np.random.default_rng(2)
    made = [(p, a := rng.normal(0, 1, old.shape).astype(np.float32), a + 0.001) for p, old, _ in invented(0)]
    readings = readings_of(made)
    assert chance_of(readings, fidelity_metrics(readings)).reference_guesses
    assert alarms_of(readings) == []


def test_chance_is_that_of_the_best_guesser():
    "A constant agrees as often as its token comes; who knows the frequencies of tokens never loses more than ln V."
    readings = readings_of(invented(0.1, 60))
    chance = chance_of(readings, fidelity_metrics(readings))
    said = [int(t) for r in readings for t in r.chosen[2:]]
    assert chance.same_top1 == max(said.count(t) for t in set(said)) / len(said)
    assert 0 < chance.nll <= np.log(30)


def test_limits_have_three_states_and_say_how_many_positions_are_missing():
    readings, at = readings_of(invented(0.3, 30)), fidelity_metrics(readings_of(invented(0.3, 30))).kl
    def gate(limit):
        cfg = load_config(overrides={"export.kl_max": {"q4": limit}})
        return next(g for g in fidelity_gates("q4", readings, cfg) if g.name == "kl_max")
    assert [gate(x).state for x in (at.ci_high * 1.1, at.mean * 1.01, at.ci_low * 0.9)] == ["PASS", "INCONCLUSIVE", "FAIL"]
    assert gate(at.mean * 1.01).cases_needed > 180
    assert gate(at.ci_high * 1.1).bound == at.ci_high


@pytest.mark.parametrize(("knob", "limit"), [
    ("export.kl_max", 1e-9), ("export.kl_everywhere_max", 1e-9), ("export.perplexity_ratio_max", 0.5), ("export.same_top1_min", 0.9999)])
def test_every_limit_can_fail_a_form(knob, limit):
    readings = readings_of(invented(0.3, 60))
    assert ladder_of("int8", readings, load_config(overrides={knob: {"int8": limit}})).state == "FAIL"


def test_a_form_whose_logits_are_no_numbers_has_a_ladder_that_fails():
    made = [compare_text(chat, logits, np.full_like(other, np.nan)) for chat, logits, other in invented(0.3)]
    ladder = ladder_of("int8", made, load_config())
    assert ladder.state == "FAIL"
    assert "logits are no numbers" in ladder.alarms[0]
    assert Fidelity.model_validate_json(json.dumps(ladder.model_dump(by_alias=True), allow_nan=False)) == ladder


def test_a_form_that_misses_a_limit_is_not_recommended_also_while_its_gate_is_open():
    readings = readings_of(invented(0.3, 30))
    wide = {"export.kl_everywhere_max": {}, "export.same_top1_min": {}, "export.perplexity_ratio_max": {}}
    ladder = lambda limit: {"int8": ladder_of("int8", readings, load_config(overrides={**wide, "export.kl_max": {"int8": limit}}))}
    at = ladder(1.0)["int8"].answers.kl
    made = [ladder(limit) for limit in (at.ci_high * 1.1, at.mean * 0.99, at.ci_low * 0.9)]
    assert [m["int8"].state for m in made] == ["PASS", "INCONCLUSIVE", "FAIL"]
    assert [len(missed_limits(m["int8"])) for m in made] == [0, 1, 1]
    assert [variants_beyond(m) for m in made] == [[], ["int8"], ["int8"]]
    assert [" ".join(ladder_sentence(m).split()[:3]) for m in made] == ["", "int8 may have", "int8 has drifted"]


def test_texts_are_those_of_the_evaluation_and_of_all_pages():
    examples = toy_examples(36, "train") + toy_examples(30, "test")
    chosen = evaluation_texts(examples)
    assert {e.set for e in chosen} == {"test"}
    assert len({e.doc_id for e in chosen[:12]}) > 5
    assert evaluation_texts(reversed(examples)) == chosen
    assert len(evaluation_texts(toy_examples(4, "train"))) == 4


# --- in the run ----------------------------------------------------------------------------------------------------------------------
def test_the_ladder_is_kept_beside_the_check_also_when_the_check_stops_the_run(tmp_path):
    merged, other = toy_base(tmp_path / "merged"), toy_base(tmp_path / "other", layers=1)
    cfg = load_config(overrides={"export.check_positions": 100})
    good, bad = build_onnx(merged, tmp_path / "fp32", "fp32"), build_onnx(other, tmp_path / "broken", "fp32")
    ladders = measure_fidelity(merged, {"fp32": good}, toy_examples(12), cfg)
    kept = Fidelity.model_validate_json((good / "fidelity.json").read_text())
    assert kept == ladders["fp32"]
    assert kept.answers.max_abs_diff == json.loads((good / "check.json").read_text())["max_abs_diff"]
    assert kept.answers.n == json.loads((good / "check.json").read_text())["n_positions"]
    with pytest.raises(ExportError, match="fp32"): measure_fidelity(merged, {"fp32": bad}, toy_examples(12), cfg)
    assert Fidelity.model_validate_json((bad / "fidelity.json").read_text()).state == "FAIL"


def test_the_kept_run_has_a_ladder_of_every_form_and_none_alarms():
    ladders = read_ladders(KEPT)
    assert list(ladders) == ["fp32", "int8", "uint8", "q4"]
    assert variants_at_chance(ladders) == []
    assert ladder_sentence(ladders) == ""
    assert [f.state for f in ladders.values()] == ["PASS"] * 4
    assert all({"easy", "medium", "hard"} <= set(f.difficulty) and f.answers.n >= 2000 for f in ladders.values())
    assert ladders["fp32"].answers.kl.ci_high < 1e-9 < ladders["int8"].answers.kl.ci_low
    assert ladders["int8"].answers.kl.ci_high < ladders["q4"].answers.kl.ci_low
    assert len(ladder_table(ladders)) == 8
    ticks = [float(t) for t in re.findall(r">([\d.e−-]+)</text>", str(ladder_plot(ladders).svg()).replace("−", "-"))]
    assert len(ticks) > 2
    assert all(np.log10(t) % 1 == pytest.approx(0, abs=1e-9) for t in ticks), "an axis in powers of ten"


@pytest.mark.slow
def test_a_page_says_plainly_that_an_alarm_rang(tmp_path):
    from distillery.pages.report import build_report

    shutil.copytree(KEPT, tmp_path / "run")
    file = tmp_path / "run/onnx/q4/fidelity.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"alarms": ["its loss is <b>9</b> nats a token"], "state": "FAIL"}))
    with warm.kernels(): text = build_report("quantization", tmp_path / "out", {"run_dir": str(tmp_path / "run")}).read_text("utf-8")
    finding = re.search(r'class="finding">(.*?)</p>', text)[1]
    assert "ALARM: q4 is no better than guessing" in finding
    assert "<b>9" not in text
    assert not finding.startswith("Ship q4")


def test_a_run_older_than_ladders_still_has_its_page(tmp_path):
    from distillery.questions.quantization.decision import quantization_decisions
    from distillery.questions.results import open_results

    shutil.copytree(KEPT, tmp_path / "run")
    for file in (tmp_path / "run/onnx").glob("*/fidelity.json"): file.unlink()
    assert read_ladders(tmp_path / "run") == {}
    assert quantization_decisions(open_results(tmp_path / "run"), load_config())[0].sentence.startswith("Ship ")


# --- planted breakages and sound exports -----------------------------------------------------------------------------------------------
class Bench:
    "A built-in model, what it says of some texts, its exports, and the ladder of any other folder."

    def __init__(self, name, folder, texts):
        self.model, self.folder, self.cfg = builtin_dir(name), folder, load_config()
        examples = plants.reading_examples(texts)
        reader = TransformersTeacher(self.model, device="cpu")
        self.texts = [(p, reader.logits(p.ids)) for p in encode_chats(examples, self.model, 10**6)]

    def export(self, variant):
        place = self.folder / variant
        return place if place.is_dir() else build_onnx(self.model, place, variant)

    def ladder(self, variant, folder):
        reader = OnnxTeacher(folder)
        return ladder_of(variant, [compare_text(p, truth, reader.logits(p.ids)) for p, truth in self.texts], self.cfg)

    def plant(self, plant):
        exports = {plant.variant: self.export(plant.variant)} if not plant.weights else {}
        return self.ladder(plant.variant, plant.make(self.model, exports, self.folder / plant.name))


def caught(ladder): return [g.name for g in ladder.gates if g.state == "FAIL"] + ["alarm"] * bool(ladder.alarms)


@pytest.fixture(scope="module")
def few(tmp_path_factory): return Bench("mini", tmp_path_factory.mktemp("few"), 30)


@pytest.mark.parametrize("plant", [p for p in plants.PLANTS if p.name in ("swapped_layers", "zero_scales")], ids=lambda p: p.name)
def test_a_few_breakages_are_caught(few, plant):
    assert few.plant(plant).state == "FAIL"


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["fp32", "int8", "uint8", "q4"])
def test_a_few_sound_exports_are_not(few, variant):
    ladder = few.ladder(variant, few.export(variant))
    assert (ladder.alarms, caught(ladder)) == ([], [])


ALARMS = {"lost_layer", "swapped_k_v", "shuffled_embedding", "lost_head", "offset_tokens", "interleaved_heads", "flipped_sign",
          "wrong_zero_points", "nan_scale", "swapped_nibbles", "scales_of_another_layer"}


@pytest.mark.slow
def test_twenty_breakages_and_every_one_is_caught(tmp_path):
    "Eleven ring the alarm; eight more miss a limit of the divergence; a wrong epsilon of the norms shows in the largest logit only."
    bench = Bench("mini", tmp_path, 60)
    found = {plant.name: caught(bench.plant(plant)) for plant in plants.PLANTS}
    assert len(found) == 20
    assert [name for name, rungs in found.items() if not rungs] == []
    assert {name for name, rungs in found.items() if "alarm" in rungs} == ALARMS
    assert {name for name, rungs in found.items() if "kl_max" not in rungs} == {"wrong_eps"}
    assert found["wrong_eps"] == ["max_logit_difference"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", "mini"])
def test_twenty_sound_exports_and_none_rings(tmp_path, name):
    bench = Bench(name, tmp_path, 60)
    shapes = [s for s in plants.SOUND if s[0] == name]
    assert len(plants.SOUND) == 20
    assert len(shapes) == 10
    ladders = [bench.ladder(v, plants.build_sound(v, how, bench.model, tmp_path / str(i))) for i, (_, v, how) in enumerate(shapes)]
    assert [(s, f.alarms + caught(f)) for s, f in zip(shapes, ladders, strict=True) if f.alarms or caught(f)] == []


# --- what was promised of the exports --------------------------------------------------------------------------------------------------
def greedy(folder, prompts, longest=32):
    "transformers' own generate, one prompt at a time."
    torch, teacher = pytest.importorskip("torch"), TransformersTeacher(folder, device="cpu")
    said = []
    for prompt in prompts:
        ids = torch.tensor([teacher.chat.encode(user_request("x", prompt).messages)])
        with torch.inference_mode():
            out = teacher.model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=longest,
                                         eos_token_id=sorted(teacher.chat.stop_ids), pad_token_id=0)
        new = out[0, ids.shape[1]:].tolist()
        said.append(teacher.chat.decode([t for t in new if t not in teacher.chat.stop_ids]).strip())
    return said


def spoken(folder, prompts, longest=32):
    requests = [user_request(str(i), p, max_tokens=longest) for i, p in enumerate(prompts)]
    return [r.text for r in sorted(ask_all(OnnxTeacher(folder), requests), key=lambda r: int(r.key))]


def prompts(n): return [e.question for e in plants.reading_examples(n, "greedy")][:n]


def test_full_precision_says_what_pytorch_says(few):
    asked = prompts(16)
    said = greedy(few.model, asked)
    assert len(set(said)) > 8
    assert spoken(few.export("fp32"), asked) == said


@pytest.mark.slow
def test_full_precision_says_what_pytorch_says_on_200_prompts(few):
    asked = prompts(200)
    assert len(asked) == 200
    assert spoken(few.export("fp32"), asked) == greedy(few.model, asked)


def test_q4_has_at_most_three_tenths_of_the_bytes_of_the_default_student(few):
    "LoRA keeps shapes, so the base is as large as its student."
    assert load_config(preset="handbook").student.base == "builtin:mini"
    assert variant_bytes(few.export("q4")) <= 0.3 * variant_bytes(few.export("fp32"))
