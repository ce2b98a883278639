"The command line: what a person types, what comes back, and what happens to bad input."
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from distillery.workbook import machine

FACTS = "The cutter stands in room 12 of the main hall. The default speed of the cutter is 400 sheets. The cutter costs 40 euros a day."


def run(*args: str, cwd: Path, code: int | None = 0, **env: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", "from distillery.workbook.cli import main; main()", *args]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1", **env}, timeout=600)
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
    assert "distillery run --docs docs" in said
    shown = run("config", "show", cwd=tmp_path).stdout
    assert "builtin:extractive" in shown or "http" in shown
    again = run("init", cwd=tmp_path, code=1)
    assert "--force" in again.stderr


def test_doctor_reports(tmp_path):
    said = run("doctor", cwd=tmp_path).stdout
    assert "onnxruntime" in said
    assert "weights tiny" in said


def test_doctor_names_the_fix_of_a_missing_extra():
    bad = machine.check_packages({"no_such_thing": "onnx"})[0]
    assert not bad.ok
    assert "distillery[onnx]" in bad.fix


@pytest.mark.parametrize(("args", "code", "words"), [
    (["run", "--set", "lora.rank=3"], 2, "lora.r"),
    (["run", "--set", "lora.r"], 2, "no value"),
    (["run", "--docs", "nowhere"], 2, "does not exist"),
    (["run", "--preset", "handbok"], 2, "handbook"),
    (["run", "--no-such-flag"], 2, "No such option"),
    (["run", "--docs", "docs", "--pairs", "x.jsonl"], 2, "choose one"),
    (["run", "--docs", "docs", "--teacher", "builtin:tinny"], 1, "tiny or mini"),
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
    assert "Fix:" in run("run", "--docs", "empty", cwd=tmp_path, code=1).stderr
    (tmp_path / "noise").mkdir()
    (tmp_path / "noise/a.pdf").write_bytes(b"%PDF-1.4 broken")
    assert "a.pdf" in run("run", "--docs", "noise", cwd=tmp_path, code=1).stderr


def test_a_teacher_where_nobody_listens(tmp_path):
    pages(tmp_path / "docs")
    done = run("run", "--docs", "docs", "--teacher", "http://127.0.0.1:9/v1#m", "--set", "teacher.max_retries=0", cwd=tmp_path, code=1)
    assert "127.0.0.1:9" in done.stderr
    assert "Fix:" in done.stderr


def test_why_names_the_key(tmp_path):
    pages(tmp_path / "docs")
    assert "it has not run yet" in run("why", "documents", "--docs", "docs", cwd=tmp_path).stdout
    (tmp_path / ".distillery/last").mkdir(parents=True)
    from distillery.core.config import load_config
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
    assert json.dumps("x")


def test_a_missing_extra_names_itself(tmp_path):
    pages(tmp_path / "docs")
    block = ("import sys; sys.modules['bert_score'] = None; sys.modules['sentence_transformers'] = None\n"
             "from distillery.workbook.cli import main; main(['run', '--docs', 'docs'])")
    done = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "distillery[retrieval]" in done.stderr
