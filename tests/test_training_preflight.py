"A base is judged by its files: what cannot work is refused with a way out, before anything is loaded."
import json

import pytest

from distillery.core.config import load_config, preset_names, read_preset
from distillery.core.errors import DistilleryError
from distillery.training.bases import learns_stop_token
from distillery.training.preflight import (
    Base,
    adapter_size,
    local_base,
    memory_gib,
    preflight,
    require,
    size_tier,
    training_findings,
)
from distillery.training.toy import CHAT_TEMPLATE, toy_base

pytest.importorskip("transformers")


@pytest.fixture
def base(tmp_path):
    return toy_base(tmp_path / "base")


def said(base, **overrides):
    return {f.name: f for f in preflight(base, load_config(overrides=overrides), free_gib=8)}


def test_counts_are_those_of_the_loaded_model(base):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from distillery.training.arguments import lora_arguments
    cfg, model = load_config(overrides={"lora.r": 4}), AutoModelForCausalLM.from_pretrained(base)
    assert Base(base).parameters == model.num_parameters()
    model = get_peft_model(model, LoraConfig(**lora_arguments(cfg)))
    assert adapter_size(Base(base), cfg) == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_a_sound_base_passes(base):
    found = said(base, **{"sft.max_length": 256})
    assert [f.name for f in found.values() if not f.ok] == []
    require(found.values())


def test_a_base_without_template_is_refused(base):
    (base / "chat_template.jinja").unlink(missing_ok=True)
    config = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "chat_template"}))
    assert learns_stop_token(base) is None
    with pytest.raises(DistilleryError, match="chat template") as e: require(said(base).values())
    assert "instruction-tuned" in e.value.fix


def test_a_template_that_leaves_the_stop_token_out_is_refused(base):
    bad = CHAT_TEMPLATE.replace("{{ m['content'] + '<|im_end|>' }}{% endgeneration %}", "{{ m['content'] }}{% endgeneration %}")
    assert bad != CHAT_TEMPLATE
    (base / "chat_template.jinja").write_text(bad)
    assert learns_stop_token(base) is False
    with pytest.raises(DistilleryError, match="it would never stop"): require(said(base).values())


def test_an_adapter_on_matrices_that_are_not_there_is_refused(base):
    found = said(base, **{"lora.target_modules": ["q_proj", "c_attn"]})
    with pytest.raises(DistilleryError, match="no c_attn") as e: require(found.values())
    assert "gate_proj" in e.value.fix


def test_an_architecture_that_nobody_exports_is_refused_where_exports_are_asked_for(base):
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "architectures": ["Qwen2MoeForCausalLM"]}))
    with pytest.raises(DistilleryError, match="Qwen2MoeForCausalLM"): require(preflight(base, load_config(), free_gib=8))
    require(training_findings(base, load_config(), free_gib=8))


def test_memory_follows_the_knobs_and_only_weights_that_do_not_fit_are_refused(base):
    small, large = (memory_gib(Base(base), load_config(overrides=o)) for o in ({"sft.batch_size": 1}, {"sft.batch_size": 32}))
    assert large["activations"] == pytest.approx(32 * small["activations"])
    assert memory_gib(Base(base), load_config(overrides={"sft.gradient_checkpointing": True}))["activations"] < large["activations"]
    require(preflight(base, load_config(), free_gib=small["total"]))
    with pytest.raises(DistilleryError, match="weights"): require(preflight(base, load_config(), free_gib=small["weights"] / 2))


def test_rows_longer_than_the_base_reads_are_shown(base):
    found = said(base, **{"sft.max_length": 5000})
    require(found.values())
    assert (found["row length"].ok, found["row length"].fix) == (False, "set sft.max_length to 256")


@pytest.mark.parametrize(("parameters", "tier"), [(2e6, "below"), (494e6, "tiny"), (1.1e9, "small"), (1.6e9, "small"), (3.8e9, "larger")])
def test_tiers_are_the_guides(parameters, tier):
    assert size_tier(int(parameters)).startswith(tier)


def test_a_licence_file_counts_too(tmp_path):
    base = toy_base(tmp_path)
    assert said(base)["licence"].found == "no card or licence file says"
    (tmp_path / "LICENSE").write_text("MIT License\n\nCopyright")
    assert said(base)["licence"].found == "MIT License"


def test_a_base_that_is_not_here_is_not_fetched():
    assert local_base("nobody/none") is None
    assert not preflight("nobody/none", load_config())[0].ok


PROFILES = {"lora-conservative": (32, 64, 0.05), "lora-balanced": (64, 128, 0.05), "lora-high-capacity": (128, 256, 0.05),
            "lora-regularized": (128, 256, 0.1)}


@pytest.mark.parametrize("name", PROFILES)
def test_the_guides_profiles_win_over_a_preset_for_data(name):
    for data in ("", "handbook,"):
        lora = load_config(preset=f"{data}{name}").lora
        assert (lora.r, lora.alpha, lora.dropout) == PROFILES[name]
    assert load_config(preset=f"handbook,{name}").sft.epochs == load_config(preset="handbook").sft.epochs
    assert load_config(preset=f"{name},handbook").lora.dropout == 0.0


def test_the_analysis_configuration_stands():
    c = load_config(preset="tinyllama-1.1b")
    assert (c.lora.r, c.lora.alpha, c.lora.dropout, c.sft.learning_rate, c.sft.batch_size, c.sft.gradient_accumulation,
            c.sft.weight_decay) == (16, 32, 0.1, 2e-4, 4, 8, 0.01)
    assert 3 <= c.sft.epochs <= 5
    assert load_config(preset="phi-3-mini").student.base.startswith("microsoft/Phi-3-mini")
    assert load_config(preset="stablelm-2-1.6b").student.base.startswith("stabilityai/stablelm-2-1_6b")
    assert all(line["reason"] for name in preset_names() for line in read_preset(name).values())
