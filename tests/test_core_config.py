"Config: every knob by name, every kind, every layer; what a stage may read; what a file says."

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings, strategies as st

from distillery.core.config import (
    PATHS,
    Config,
    ConfigError,
    config_diff,
    explain,
    find_knob,
    flatten,
    knobs,
    load_config,
    preset_names,
    read_preset,
    restrict,
    result_keys,
    to_yaml,
)

from knob_values import another

KNOBS = knobs()
NAMES = [k.name for k in KNOBS]


def dig(config, name):
    for part in name.split("."):
        config = getattr(config, part)
    return config


def test_there_are_knobs_of_every_kind():
    assert len(KNOBS) >= 95
    assert {k.kind for k in KNOBS} == {"result", "execution", "presentation"}
    assert all(k.help and not k.help.endswith(".") for k in KNOBS)
    assert len(set(NAMES)) == len(NAMES)


def test_a_change_shows_where_its_kind_says():
    before = Config()
    for knob in KNOBS:
        after, section = load_config(overrides={knob.name: another(knob, knob.default)}), knob.name.split(".")[0]
        assert list(config_diff(before, after)) == [knob.name]
        changed = result_keys(before, [section]) != result_keys(after, [section])
        assert changed == (knob.kind == "result"), knob.name


def test_a_file_may_name_one_margin_and_keep_the_others(tmp_path):
    (tmp_path / "distillery.yaml").write_text("decisions: {margins: {exact_match: 0.03}}")
    margins = load_config(tmp_path / "distillery.yaml").decisions.margins
    assert margins == Config().decisions.margins | {"exact_match": 0.03}


@pytest.mark.parametrize("margins", [{"exact_macth": 0.03}, {"exact_match": 0.0}])
def test_a_margin_has_a_known_metric_and_is_above_nothing(margins):
    with pytest.raises(ConfigError, match=r"exact_match|above 0"):
        load_config(overrides={"decisions.margins": margins})


def test_a_view_lets_through_what_was_declared_and_nothing_else():
    config = Config()
    values = flatten(config)
    for name in NAMES:
        assert dig(restrict(config, [name]), name) == values[name]
        with pytest.raises(ConfigError, match=f"{name} was read but not declared"):
            dig(restrict(config, [n for n in NAMES if n != name]), name)


def test_a_prefix_ends_at_a_dot():
    view = restrict(Config(), ["dataset.temp", "lora.r"])
    assert view.lora.r == 64
    with pytest.raises(ConfigError):
        _ = view.dataset.temperatures.answer
    with pytest.raises(ConfigError):
        _ = view.no_such_section


def test_a_view_hands_out_copies():
    config = Config()
    restrict(config, ["decisions"]).decisions.margins["exact_match"] = 0.5
    assert config.decisions.margins["exact_match"] == 0.05


def test_the_configuration_is_frozen_and_defaults_are_not_shared():
    with pytest.raises(Exception, match="frozen"):
        Config().lora.r = 3
    first = Config()
    first.evaluation.refusal_markers.append("x")
    assert "x" not in Config().evaluation.refusal_markers


@given(st.dictionaries(st.sampled_from([k.name for k in KNOBS if k.name not in PATHS]), st.none(), max_size=12))
@settings(max_examples=10)
def test_a_written_file_reads_back_as_the_same_configuration(tmp_path_factory, picked):
    table = {k.name: k for k in KNOBS}
    config = load_config(overrides={n: another(table[n], table[n].default) for n in picked})
    path = tmp_path_factory.mktemp("config") / "distillery.yaml"
    for commented in (True, False):
        path.write_text(to_yaml(config, commented), "utf-8")
        assert load_config(path) == config


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40), st.booleans())  # no file holds a zero
@settings(max_examples=20)
def test_any_text_survives_the_file(text, commented):
    config = load_config(overrides={"workbook.name": text, "llm_defaults.stop_sequences": [text, "\n"]})
    read = yaml.safe_load(to_yaml(config, commented))
    assert read["workbook"]["name"] == text
    assert read["llm_defaults"]["stop_sequences"] == [text, "\n"]


@given(st.sampled_from(NAMES), st.integers(0, 30), st.sampled_from("abcxyz_"))
@settings(max_examples=100)
def test_a_slip_of_the_finger_is_answered_with_the_right_name(name, place, letter):
    section, _, last = name.rpartition(".")
    if len(last) < 5:
        return
    slip = f"{section}.{last[: place % len(last)]}{letter}{last[place % len(last) :]}"
    if slip in NAMES:
        return
    with pytest.raises(ConfigError) as error:
        load_config(overrides={slip: 1})
    assert name in error.value.fix


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lora: {r: 0}", "lora.r = 0"),
        ("sft.epochs: lots", "sft.epochs = 'lots'"),
        ("[1, 2]", "holds no mapping"),
        ("lora: 3", "lora is a section"),
        ("lora: {r: 8}\nlora: {alpha: 3}", "written twice"),
        ("a: [", "not valid YAML"),
        ("rank: 3", "no knob 'rank'"),
        ("lora: {r: 1, q: 2}", "no knob 'lora.q'"),
        ("dataset: {difficulty_mix: {easy: 0.5}}", "must sum to 1"),
        ("preset: nope", "no preset 'nope'"),
        ("sft: {eval_strategy: sometimes}", "sft.eval_strategy"),
        ("a: !!python/object/apply:os.system ['true']", "not valid YAML"),
    ],
)
def test_a_bad_file_is_named_with_its_fault(tmp_path, text, said):
    path = tmp_path / "distillery.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=None) as error:
        load_config(path)
    assert said in str(error.value)
    assert error.value.fix


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes("workbook: {name: Grün}".encode("latin-1"))
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(tmp_path / "latin.yaml")
    (tmp_path / "empty.yaml").write_text("")
    assert load_config(tmp_path / "empty.yaml") == Config()


def test_layers_lie_over_one_another(tmp_path: Path):
    path = tmp_path / "distillery.yaml"
    path.write_text("preset: handbook\nlora: {r: 8}\nsft.learning_rate: 2e-5\nsft: {save_strategy: no}\n")
    config = load_config(path, overrides={"lora.alpha": 99})
    assert (config.lora.r, config.lora.alpha, config.sft.learning_rate, config.sft.save_strategy) == (8, 99, 2e-5, "no")
    assert config.generation_limits.min_answer_length == 1
    assert load_config(path, preset="resume").generation_limits.min_answer_length == 15


def test_mappings_change_by_entry_or_as_a_whole():
    one = load_config(overrides={"thresholds.p95_latency_ms_max.model.onnx": 1})
    assert one.thresholds.p95_latency_ms_max == {"model.onnx": 1, "model_int8.onnx": 1800, "model_uint8.onnx": 1800, "model_q4.onnx": 1200}
    whole = load_config(overrides={"thresholds": {"p95_latency_ms_max": {"model.onnx": 1}}})
    assert whole.thresholds.p95_latency_ms_max == {"model.onnx": 1}
    knob, inner = find_knob("thresholds.p95_latency_ms_max.model_q4.onnx")
    assert (knob.name, inner) == ("thresholds.p95_latency_ms_max", "model_q4.onnx")


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_gives_a_reason_for_each_change(name):
    lines, config = read_preset(name), load_config(preset=name)
    assert all(set(line) - {"only"} == {"value", "reason"} and len(line["reason"]) > 15 for line in lines.values())
    assert {line["only"] for line in lines.values() if "only" in line} <= {"builtin"}
    profile = name.startswith("lora-")  # laid over a preset for data: what it says must win over that, the guide's default too
    others = [load_config(preset=p) for p in ("handbook", "lora-conservative", "lora-regularized")] if profile else []
    assert {k for c in (Config(), *others) for k in config_diff(c, config)} >= set(lines), "a line that changes nothing"
    assert profile or set(config_diff(Config(), config)) == set(lines)


def test_the_guides_defaults_stand():
    guide = {
        "dataset.samples_per_category": 1200,
        "dataset.variations_per_question": 3,
        "dataset.train_split": 0.9,
        "dataset.seed": 88,
        "lora.r": 64,
        "lora.alpha": 128,
        "lora.dropout": 0.05,
        "sft.epochs": 8,
        "sft.batch_size": 16,
        "sft.learning_rate": 2e-5,
        "sft.max_length": 384,
        "quantization.block_size": 32,
        "quantization.accuracy_level": 4,
        "evaluation.full_samples_per_set": 300,
        "thresholds.token_f1_min": 0.55,
        "thresholds.refusal_accuracy_min": 0.90,
        "inference.repetition_penalty": 1.2,
        "generation_limits.max_answer_words": 50,
    }
    values = flatten(Config())
    assert {k: values[k] for k in guide} == guide


def test_every_knob_can_be_explained():
    for knob in KNOBS:
        assert knob.kind in explain(knob.name)


@pytest.mark.parametrize("name", ["export.variants", "lora.target_modules", "decisions.train_seeds", "context.views",
                                  "decisions.chunk_titles", "decisions.chunk_overlaps", "decisions.kernel_blocks",
                                  "decisions.kernel_vocabularies"])
def test_a_list_without_which_nothing_can_be_done_is_not_empty(name):
    "Each ended a run after hours, or made a card of nothing; it is refused when the settings are read."
    with pytest.raises(ConfigError, match=name.replace(".", r"\.")): load_config(overrides={name: []})
