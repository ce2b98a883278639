"Ctrl-C in a training: the step under way is finished and kept, and the same call goes on from it, under every preset."
import signal

import pytest

from distillery.core.config import load_config, preset_names
from distillery.training.sft import read_log, train_adapter
from distillery.training.toy import toy_base, toy_examples

from warm import run_code

TINY = {"lora.r": 4, "lora.alpha": 8, "sft.batch_size": 8, "sft.gradient_accumulation": 1, "sft.epochs": 4, "sft.packing": False,
        "sft.max_length": 64, "sft.dataloader_num_workers": 0}


@pytest.fixture(autouse=True)
def _heard():
    "A shell that starts the tests in the background lets them ignore Ctrl-C."
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def base(tmp_path_factory): return toy_base(tmp_path_factory.mktemp("toy") / "base")


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_writes_checkpoints(preset):
    assert load_config(preset=preset).sft.save_strategy != "no"


def test_an_interrupted_training_goes_on_from_its_step(tmp_path, base):
    cfg, train = load_config(preset="technical-docs", overrides=TINY), toy_examples(24)
    whole = train_adapter(train, [], base, cfg, tmp_path / "whole", tmp_path / "other")

    def ctrl_c(done, total):
        if done == 4: signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt): train_adapter(train, [], base, cfg, tmp_path / "out", tmp_path / "kept", ctrl_c)
    assert read_log(tmp_path / "kept")[-1]["step"] == 4 < whole.steps
    again = train_adapter(train, [], base, cfg, tmp_path / "out", tmp_path / "kept")
    assert (again.resumed_from, again.steps) == (4, whole.steps)
    assert again.final_loss == pytest.approx(whole.final_loss, abs=1e-6)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_interrupt_does_not_wait(tmp_path, base):
    cfg, seen = load_config(preset="technical-docs", overrides=TINY), []

    def twice(done, total):
        seen.append(done)
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt): train_adapter(toy_examples(24), [], base, cfg, tmp_path / "out", tmp_path / "kept", twice)
    assert seen == [1]
    assert not list((tmp_path / "kept").glob("checkpoint-*"))


STOPPED = """
import signal
from distillery.engine.plan import Stage
from distillery.questions import all as listed
from distillery.workbook import experiment


def long(job):
    job.say("steps", 40, 200)
    signal.raise_signal(signal.SIGINT)


prepare = experiment.prepare
def short(docs, pairs, config):
    request = prepare(docs, pairs, config)
    request.plan.stages = [Stage("sft", long, about="training")]
    return request
experiment.prepare = short
from distillery.commands.cli import main
main(["run", "docs"])
"""


def test_the_command_says_what_is_kept_and_exits_with_130(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/a.md").write_text("# Cutter\n\nThe cutter stands in room 12 of the main hall.\n")
    done = run_code(STOPPED, cwd=tmp_path)
    assert done.returncode == 130, done.stderr
    assert "stopped in sft at step 40 of 200" in done.stderr
    assert "the same command goes on" in done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c_anywhere_is_130_without_a_traceback(tmp_path):
    code = ("from distillery.commands import calls, cli\ndef stop(*a, **k): raise KeyboardInterrupt\n"
            "calls.settings = stop\ncli.main(['calls', 'list'])")
    done = run_code(code, cwd=tmp_path)
    assert (done.returncode, "Traceback" in done.stderr) == (130, False)
