"The command line: what a person types, what comes back, and what happens to bad input."
import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from warm import run_code, run_command

from distillery.commands.options import settings
from distillery.core.config import flatten, load_config, preset_names, read_preset, to_yaml
from distillery.workbook.needs import check_packages

FACTS = "The cutter stands in room 12 of the main hall. The default speed of the cutter is 400 sheets. The cutter costs 40 euros a day."


def run(*args: str, cwd: Path, code: int | None = 0, **env: str) -> subprocess.CompletedProcess:
    done = run_command(*args, cwd=cwd, env=env)
    if code is not None: assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
    return done


def pages(folder: Path, n: int = 3) -> Path:
    folder.mkdir()
    for i in range(n): (folder / f"page{i}.md").write_text(f"# Machine {i}\n\n" + FACTS.replace("cutter", f"cutter {chr(65 + i)}"))
    return folder


def test_help_teaches(tmp_path):
    shown = run("run", "--help", cwd=tmp_path).stdout
    assert "distillery run --pairs qa.jsonl" in shown
    for command in ("init", "doctor", "run", "estimate", "why", "ask", "runs", "report", "config"):
        assert run(command, "--help", cwd=tmp_path).stdout


def test_version(tmp_path): assert run("--version", cwd=tmp_path).stdout.strip().count(".") == 2


def test_init_writes_a_file_that_is_read_back(tmp_path):
    pages(tmp_path / "docs")
    said = run("init", cwd=tmp_path).stdout
    assert "documents in docs" in said
    assert "distillery run docs" in said
    shown = run("config", "show", cwd=tmp_path).stdout
    assert "builtin:extractive" in shown or "http" in shown
    again = run("init", cwd=tmp_path, code=1)
    assert "--force" in again.stderr


def test_init_writes_what_it_chose_and_everything_else_as_comments(tmp_path):
    pages(tmp_path / "docs")
    run("init", "docs", cwd=tmp_path)
    text = (tmp_path / "distillery.yaml").read_text()
    said = yaml.safe_load(text)
    assert (said["preset"], said["docs"], list(said["teacher"])) == ("technical-docs", "docs", ["model"])
    assert set(said) == {"preset", "docs", "teacher"}
    whole = yaml.safe_load("\n".join(line.removeprefix("# ") if line.startswith("# ") else line for line in text.splitlines()))
    assert len(whole) > 20
    assert whole["lora"]["dropout"] == 0.0


def test_init_takes_a_file_of_pairs_for_what_it_is(tmp_path):
    (tmp_path / "qa.jsonl").write_text('{"question": "Where is it?", "answer": "In room 7"}\n')
    assert "distillery run --pairs qa.jsonl" in run("init", "qa.jsonl", cwd=tmp_path).stdout
    said = yaml.safe_load((tmp_path / "distillery.yaml").read_text())
    assert (said["preset"], said["pairs"], set(said)) == ("qa-import", "qa.jsonl", {"preset", "pairs"})
    (tmp_path / "a.log").write_text("x")
    for command in (["init", "a.log", "--force"], ["why", "documents", "qa.jsonl"]):
        assert "--pairs" in run(*command, cwd=tmp_path, code=2).stderr


def test_documents_are_remembered_relative_to_the_file(tmp_path):
    pages(tmp_path / "docs")
    run("init", "docs", cwd=tmp_path)
    (tmp_path / "below").mkdir()
    assert "it has not run yet" in run("why", "documents", cwd=tmp_path).stdout
    shown = run("config", "show", "--config", "../distillery.yaml", cwd=tmp_path / "below").stdout
    assert re.search(r"^docs +\.\./docs", shown, re.M)
    assert "docs: docs" in (tmp_path / "distillery.yaml").read_text()


def test_a_folder_typed_by_itself_replaces_that_of_the_file(tmp_path):
    pages(tmp_path / "docs")
    pages(tmp_path / "other", 2)
    (tmp_path / "distillery.yaml").write_text("docs: gone\n")
    assert "gone does not exist" in run("why", "documents", cwd=tmp_path, code=2).stderr
    for typed in (["docs"], ["--docs", "docs"]): run("why", "documents", *typed, cwd=tmp_path)
    assert "both given" in run("why", "documents", "docs", "--docs", "other", cwd=tmp_path, code=2).stderr
    (tmp_path / "qa.jsonl").write_text('{"question": "Where is it?", "answer": "In room 7"}\n')
    assert "input pairs" not in run("why", "generate", "docs", cwd=tmp_path).stdout
    assert "no stage 'generate'" in run("why", "generate", "--pairs", "qa.jsonl", cwd=tmp_path, code=1).stderr


def test_where_documents_are_not(tmp_path):
    assert "does not exist" in run("init", "./typo", cwd=tmp_path, code=2).stderr
    (tmp_path / "empty").mkdir()
    said = run("init", "empty", cwd=tmp_path, code=2).stderr
    assert "no documents in empty" in said
    assert "Fix:" in said
    assert not (tmp_path / "distillery.yaml").exists()


def test_several_folders_of_documents_are_one_corpus(tmp_path):
    (tmp_path / "all").mkdir()
    for name in ("guides", "notes"): pages(tmp_path / "all" / name)
    said = run("init", "all", cwd=tmp_path).stdout
    assert "distillery run all" in said
    assert "documents in guides" in said
    assert yaml.safe_load((tmp_path / "distillery.yaml").read_text())["docs"] == "all"


def value(cwd: Path, key: str, *args: str) -> str:
    shown = run("config", "show", *args, cwd=cwd).stdout
    return next(line.split(maxsplit=1)[1].strip() for line in shown.splitlines() if line.split(maxsplit=1)[0] == key)


def test_defaults_then_presets_then_the_file_then_flags(tmp_path):
    default = load_config()
    assert value(tmp_path, "sft.learning_rate", "--set", "sft.epochs=1") != str(default.sft.learning_rate)  # the handbook's preset
    (tmp_path / "distillery.yaml").write_text(f"preset: technical-docs\nlora.dropout: {default.lora.dropout}\n")
    assert value(tmp_path, "sft.learning_rate") == "0.003"
    assert value(tmp_path, "lora.dropout") == "0.05"  # a person wrote the default, and means it
    assert value(tmp_path, "lora.dropout", "--set", "lora.dropout=0.2") == "0.2"
    high = str(load_config(preset="lora-high-capacity").lora.r)
    assert value(tmp_path, "lora.r", "--preset", "technical-docs,lora-high-capacity") == high


def test_what_an_old_init_wrote_whole_does_not_beat_a_preset(tmp_path):
    (tmp_path / "distillery.yaml").write_text(to_yaml(load_config(overrides={"lora.r": 7})))
    assert value(tmp_path, "lora.dropout") == "0.05"
    assert value(tmp_path, "lora.dropout", "--preset", "technical-docs") == "0"
    assert value(tmp_path, "lora.r", "--preset", "technical-docs") == "7"


def test_every_preset_works_after_init(tmp_path, monkeypatch):
    pages(tmp_path / "docs")
    run("init", "docs", cwd=tmp_path)
    monkeypatch.chdir(tmp_path)
    assert settings(None, None, None).prompts.pack == "technical-docs"
    for name in preset_names():  # what a preset says counts, but for the two settings that init wrote down
        shown, said = flatten(settings(None, name, None)), {k: v["value"] for k, v in read_preset(name).items() if k != "teacher.model"}
        assert {k: shown[k] for k in said} == said


@pytest.mark.parametrize(("source", "under"), [
    ({"docs": Path("docs")}, "technical-docs"), ({"pairs": Path("q.csv")}, "qa-import"), ({}, "handbook")])
def test_a_preset_for_a_base_leaves_that_of_the_data_in_place(tmp_path, monkeypatch, source, under):
    monkeypatch.chdir(tmp_path)
    about = ("prompts", "dataset", "generation_limits", "selection")
    data = {k: v["value"] for k, v in read_preset(under).items() if k.split(".")[0] in about}
    for base in ("tinyllama-1.1b", "qwen2.5-0.5b", "lora-balanced"):
        made = flatten(settings(None, base, None, **source))
        assert {k: made[k] for k in data} == data
        assert made["lora.r"] == load_config(preset=base).lora.r
    assert settings(None, "qwen2.5-0.5b", None, **source).sft.learning_rate == load_config().sft.learning_rate
    assert settings(None, None, ["student.base=some/base"], **source).sft.learning_rate == load_config().sft.learning_rate
    assert settings(None, "resume", None, **source).prompts.pack == "resume"


def test_config_says_which_layer_set_a_value_and_what_it_beat(tmp_path):
    pages(tmp_path / "docs")
    (tmp_path / "distillery.yaml").write_text("preset: technical-docs\ndocs: docs\n\nlora:\n  alpha: 9\n")
    why = lambda key, *args: " ".join(run("config", "show", "--why", key, *args, cwd=tmp_path).stdout.split())
    assert why("sft.max_length") == "sft.max_length 384 from default"
    assert "lora.dropout 0 from preset technical-docs (the aim is to remember" in why("lora.dropout")
    assert why("lora.alpha") == "lora.alpha 9 from distillery.yaml, line 5; over default 128"
    beaten = "over distillery.yaml, line 5 9, preset tinyllama-1.1b 32, default 128"
    assert beaten in why("lora.alpha", "-p", "tinyllama-1.1b", "-s", "lora.alpha=3")
    assert "docs other from DOCS; over distillery.yaml, line 2" in why("docs", "other")
    assert why("lora", "--teacher", "builtin:mini").count("lora.") >= 4
    assert "did you mean 'lora.r'" in run("config", "show", "--why", "lora.x", cwd=tmp_path, code=2).stderr


def finished_runs(cwd: Path) -> None:
    for place, (run_id, name) in enumerate([("aaaa000001", "trial-2"), ("bbbb000002", "trial-2"), ("cccc000003", None)]):
        folder = cwd / "runs" / run_id
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text(json.dumps({"name": name}))
        (folder / "provenance.json").write_text(json.dumps({"source": run_id}))
        os.utime(folder / "manifest.json", (1000 + place, 1000 + place))


def test_a_name_stands_wherever_a_run_id_can(tmp_path):
    finished_runs(tmp_path)
    shown = run("runs", "show", "trial-2", cwd=tmp_path)
    assert "bbbb000002" in shown.stdout
    assert "2 runs are called 'trial-2'; the newest is taken, bbbb000002" in shown.stderr
    assert "aaaa000001" in run("runs", "show", "aaaa", cwd=tmp_path).stdout
    assert "no setting differs" in run("runs", "compare", "trial-2", "cccc", cwd=tmp_path, code=None).stdout
    for command in (["ask", "q4", "Who?", "--run", "trial-2"], ["package", "q4", "--run", "trial-2"], ["serve", "q4", "--run", "trial-2"]):
        assert "variant 'q4'" in run(*command, cwd=tmp_path, code=1).stderr
    assert "0 runs are called 'trial-3'" in run("report", "quantization", "--run", "trial-3", cwd=tmp_path, code=1).stderr


@pytest.mark.parametrize("name", ["4f2a", "0123456789", "latest", "../x", "a/b", "-q", ""])
def test_a_name_that_looks_like_something_else_is_refused(tmp_path, name):
    pages(tmp_path / "docs")
    assert "cannot be called" in run("run", "docs", f"--name={name}", cwd=tmp_path, code=2).stderr
    assert not (tmp_path / ".distillery").exists()


def test_the_exit_codes_stand_in_the_help(tmp_path):
    said = " ".join(run("--help", cwd=tmp_path).stdout.split())
    for code in ("0 done", "1 failed", "2 bad request", "3 inputs were skipped", "4 a gate failed", "130 interrupted"): assert code in said
    assert "technical-docs,tinyllama-1.1b" in re.sub(r"\s", "", run("run", "--help", cwd=tmp_path).stdout)


def test_doctor_reports(tmp_path):
    said = run("doctor", cwd=tmp_path).stdout
    assert "onnxruntime" in said
    assert "weights tiny" in said


def test_doctor_names_the_fix_of_a_missing_extra():
    bad = check_packages({"no_such_thing": "onnx"})[0]
    assert not bad.ok
    assert "distillery[onnx]" in bad.fix


@pytest.mark.parametrize(("args", "code", "words"), [
    (["run", "--set", "lora.rank=3"], 2, "lora.r"),
    (["run", "--set", "lora.r"], 2, "no value"),
    (["run", "--docs", "nowhere"], 2, "does not exist"),
    (["run", "--preset", "handbok"], 2, "handbook"),
    (["run", "--no-such-flag"], 2, "No such option"),
    (["run", "--docs", "docs", "--pairs", "x.jsonl"], 2, "choose one"),
    (["run", "--docs", "docs", "--teacher", "builtin:tinny"], 2, "tiny or mini"),
    (["ask", "q4", "Who?"], 1, "run"),
    (["report", "quantisation"], 1, "distillery run"),
    (["why", "exprot"], 1, "export"),
    (["config", "explain", "sft.epoch"], 2, "sft.epochs"),
])
def test_slips_are_named(tmp_path, args, code, words):
    pages(tmp_path / "docs")
    done = run(*args, cwd=tmp_path, code=code)
    assert words in done.stderr
    assert "fix" in done.stderr.lower() or "No such option" in done.stderr


def test_a_misspelt_key_in_the_file_is_named(tmp_path):
    (tmp_path / "distillery.yaml").write_text("lora:\n  rank: 8\n")
    done = run("config", "show", cwd=tmp_path, code=2)
    assert "lora.rank" in done.stderr
    assert "lora.r" in done.stderr


@pytest.mark.parametrize(("name", "content", "words"), [
    ("zero.jsonl", b"", "empty"),
    ("line17.jsonl", b'{"question": "Where is it?", "answer": "In room 7"}\n' * 16 + b'{"question": \n', "line 17"),
    ("latin.jsonl", '{"question": "Où est-il?", "answer": "là"}\n'.encode("latin-1"), "UTF-8"),
])
def test_bad_pairs_are_named(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    done = run("run", "--pairs", name, cwd=tmp_path, code=None)
    assert done.returncode not in (0, 3)
    assert words in done.stderr
    assert "Fix:" in done.stderr


def test_an_empty_folder_and_one_with_nothing_readable(tmp_path):
    (tmp_path / "empty").mkdir()
    assert "Fix:" in run("run", "--docs", "empty", cwd=tmp_path, code=2).stderr
    (tmp_path / "noise").mkdir()
    (tmp_path / "noise/a.pdf").write_bytes(b"%PDF-1.4 broken")
    assert "a.pdf" in run("run", "--docs", "noise", cwd=tmp_path, code=1).stderr


def test_a_teacher_where_nobody_listens(tmp_path):
    pages(tmp_path / "docs")
    done = run("run", "--docs", "docs", "--teacher", "http://127.0.0.1:9/v1#m", cwd=tmp_path, code=2)
    assert "127.0.0.1:9" in done.stderr
    assert "Fix:" in done.stderr


def test_why_names_the_key(tmp_path):
    pages(tmp_path / "docs")
    assert "it has not run yet" in run("why", "documents", "--docs", "docs", cwd=tmp_path).stdout
    (tmp_path / ".distillery/last").mkdir(parents=True)
    from distillery.workbook import experiment
    os.chdir(tmp_path)
    plan = experiment.prepare(Path("docs"), None, load_config(preset="technical-docs")).plan
    plan.stages = plan.stages[:1]
    plan.run()
    assert "would not run again" in run("why", "documents", "--docs", "docs", cwd=tmp_path).stdout
    said = run("why", "documents", "--docs", "docs", "--set", "chunking.max_tokens=99", cwd=tmp_path).stdout
    assert "chunking.max_tokens: 220 -> 99" in said


def test_estimate_counts_without_running(tmp_path):
    pages(tmp_path / "docs")
    said = run("estimate", "--docs", "docs", cwd=tmp_path).stdout
    assert "questions planned" in said
    assert not (tmp_path / "runs").exists()


def test_config_diff(tmp_path):
    said = run("config", "diff", "handbook", "qa-import", cwd=tmp_path).stdout
    assert "->" in said


def test_a_missing_extra_names_itself(tmp_path):
    pages(tmp_path / "docs")
    block = ("import sys; sys.modules['bert_score'] = None; sys.modules['sentence_transformers'] = None\n"
             "from distillery.commands.cli import main; main(['run', '--docs', 'docs'])")
    done = run_code(block, cwd=tmp_path)
    assert done.returncode == 2
    assert "distillery[retrieval]" in done.stderr
