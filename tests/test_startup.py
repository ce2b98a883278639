"What a command loads before it does anything: little for help, no library of numbers and no weights for a run that has nothing to do."
import ast
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from distillery.commands.cli import COMMANDS
from distillery.commands.group import load_command
from distillery.core.config import load_config
from distillery.core.files import digest_json
from distillery.core.store import RunFolder
from distillery.workbook.experiment import pages_key, prepare

HEAVY = {"torch", "transformers", "onnxruntime", "onnx", "numpy", "scipy", "pandas", "matplotlib", "jinja2", "aiohttp", "sqlite3",
         "datasets", "papermill", "nbconvert", "sentence_transformers", "asyncio"}
WATCHED = """
import atexit, sys
opened = []
def hear(event, args):
    weights = (".safetensors", ".onnx", ".data", ".bin", ".gguf")
    if event == "open" and isinstance(args[0], str) and args[0].endswith(weights): opened.append(args[0])
sys.addaudithook(hear)
atexit.register(lambda: print("\\nLOADED", sorted(sys.modules), "\\nOPENED", opened))
from distillery.commands.cli import main
main(sys.argv[1:])
"""


def watched(*args: str, cwd: Path) -> tuple[str, set[str], list[str]]:
    "What a command printed, the modules it loaded and the weights it opened."
    done = subprocess.run([sys.executable, "-c", WATCHED, *args], cwd=cwd, capture_output=True, text=True, timeout=300,
                          env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    said, _, rest = done.stdout.partition("\nLOADED ")
    loaded, _, opened = rest.partition("\nOPENED ")
    return said, set(ast.literal_eval(loaded.strip())), ast.literal_eval(opened.strip())


def test_help_loads_the_list_and_nothing_listed(tmp_path):
    said, loaded, opened = watched("--help", cwd=tmp_path)
    assert [name for name in COMMANDS if f"\n  {name} " not in said] == []
    assert not loaded & (HEAVY | {"pydantic", "yaml", "psutil"})
    assert {m for m in loaded if m.startswith("distillery.")} == {
        "distillery.commands", "distillery.commands.cli", "distillery.commands.group", "distillery.core", "distillery.core.errors",
        "distillery.engine", "distillery.engine.child"}
    assert opened == []


def test_help_of_a_command_loads_that_command_only(tmp_path):
    _, loaded, _ = watched("run", "--help", cwd=tmp_path)
    assert {m for m in loaded if m.startswith("distillery.commands.")} == {
        f"distillery.commands.{m}" for m in ("cli", "group", "run", "options", "environment")}
    assert not loaded & HEAVY


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_says_what_the_command_says_of_itself(name):
    command = load_command(name, COMMANDS[name].place, "distillery.commands")
    assert inspect.cleandoc(command.help or "").split("\n")[0] == COMMANDS[name].help


def test_an_unknown_command_is_answered_with_a_near_one(tmp_path):
    done = subprocess.run([sys.executable, "-c", "from distillery.commands.cli import main; main()", "rnu"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "No such command 'rnu'" in done.stderr


@pytest.fixture(scope="module")
def unchanged(tmp_path_factory):
    "A folder in which every stage of a run of documents lies on the shelf under its true key; what the outputs say does not matter here."
    cwd, here = tmp_path_factory.mktemp("unchanged"), Path.cwd()
    (cwd / "docs").mkdir()
    (cwd / "docs/a.md").write_text("# Cutter\n\nThe cutter stands in room 12 of the main hall. It costs 40 euros a day.\n")
    os.chdir(cwd)
    try:
        plan = (request := prepare(None, None, load_config(preset="technical-docs", overrides={"docs": "docs"}))).plan
        done = {}
        for stage in plan.stages:
            key = digest_json(plan.parts(stage, {n: d.digest for n, d in done.items()}))
            with plan.shelf.artifacts.put(stage.name, key) as out: (out / "made.txt").write_text(stage.name)
            done[stage.name] = plan.shelf.found(stage.name, key)
        run = RunFolder(Path("runs") / request.run_id)
        run.write_json("manifest.json", {"pages": pages_key(plan, done)})
        (run.path / "reports").mkdir()
        (run.path / "reports/index.html").touch()
        plan.sources.save()
    finally: os.chdir(here)
    return cwd


def test_an_unchanged_run_loads_no_backend_and_opens_no_weights(unchanged):
    said, loaded, opened = watched("run", "docs", cwd=unchanged)
    assert len(re.findall(r"^\d+/\d+ \S+ +cached", said, re.M)) > 10
    assert "report                 cached" in said
    assert not loaded & (HEAVY - {"sqlite3", "jinja2"})
    stages = {"distillery.training.stages", "distillery.training.logprobs"}
    assert not {m for m in loaded if m.startswith("distillery.training.")} - stages
    assert opened == []


def test_the_watch_notices_what_is_opened(unchanged):
    code = WATCHED.replace("from distillery.commands.cli import main", "open('x.onnx', 'w').close()").replace("main(sys.argv[1:])", "")
    done = subprocess.run([sys.executable, "-c", code], cwd=unchanged, capture_output=True, text=True, check=True)
    assert "x.onnx" in done.stdout.partition("OPENED")[2]
