"""A new question is one folder, one template and one entry of `QUESTIONS`: everything else follows. Here one is put into a copy of the
package, as a contributor would, and asked."""
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from distillery.engine.sources import user_memory
from distillery.questions.all import questions_of

PACKAGE = Path(__file__).resolve().parents[1] / "distillery"
ASKS = "Which sentence of a passage brings a question?"
STAGES = '''
import json
from functools import partial

from ...core.files import atomic_write, read_jsonl
from ...core.records import Chunk
from ...engine.plan import Stage
from ...teachers.budget import open_journal
from ...teachers.extractive import sentences
from ...teachers.open import teacher_digest, teacher_opener
from ...teachers.protocol import Task, user_request


def _ask(job, cache, opener):
    teacher, journal, rows = opener(job.config), open_journal(cache, job.config, job.scratch), []
    chunks = read_jsonl(job.needs["documents"] / "chunks.jsonl", Chunk)
    for level in levels(job.config):
        tasks = {c: Task("ask", c.text, sentences(c.text)[level - 1]) for c in chunks}
        told = journal.ask(teacher, [user_request(c.chunk_id, "Ask.", task=task, seed=level) for c, task in tasks.items()])
        rows += [{"level": str(level), "id": c.chunk_id, "doc_id": c.doc_id, "score": float("?" in told[c.chunk_id].text)} for c in chunks]
    atomic_write(job.out / "rows.json", json.dumps(rows))


def levels(config): return config.decisions.questions_per_call


def toy_stages(source, config, cache):
    if len(levels(config)) < 2: return []
    run = partial(_ask, cache=cache, opener=teacher_opener(config.teacher.model, config))
    inputs = {"teacher": teacher_digest(config.teacher.model, cache)}
    return [Stage("toy", run, ("teacher", "budget", "decisions.questions_per_call"), ("documents",), inputs, "asking twice", place="toy")]


def toy_requests(source, config): return 137 * len(levels(config)) if len(levels(config)) > 1 else 0
'''
DECISION = f'''
from ..decide import decide
from ..question import NOT_RUN, Question
from .stages import toy_requests, toy_stages


def toy_rows(results): return results.json("toy/rows.json", [])


def why_no_toy(results): return None if toy_rows(results) else NOT_RUN


def toy_decisions(results, config):
    rows = toy_rows(results)
    scores = {{level: {{r["id"]: r["score"] for r in rows if r["level"] == level}} for level in ("1", "2")}}
    pages = {{r["id"]: r["doc_id"] for r in rows}}
    return [decide("toy", "{ASKS}", "sentence", scores, pages, "1", "exact_match", ("passages", "pages"), config)]


def toy_metrics(results, config):
    rows = toy_rows(results)
    return {{"toy": {{"answers": len(rows)}}, "reasons": {{}} if rows else {{"toy": "nobody asked"}}}}


TOY = Question(
    name="toy", asks="{ASKS}", needs="two sentences to ask about", ask_with={{"decisions.questions_per_call": "[1, 2]"}},
    stages=toy_stages, why_not=why_no_toy, decisions=toy_decisions, requests=toy_requests, metrics=toy_metrics,
)
'''
REPORT = """from distillery.questions.results import open_results
from distillery.questions.toy.decision import toy_rows
from distillery.pages.html import finding
finding(f"{len(toy_rows(open_results(run_dir)))} questions were tried.")"""
RUN = """import json, sys
from pathlib import Path
from distillery.core.config import load_config
from distillery.workbook.experiment import prepare, run_job
request = prepare(Path("docs"), None, load_config(preset="technical-docs", overrides=json.loads(sys.argv[1])))
request.plan.stages = [s for s in request.plan.stages if s.name in ("documents", "toy")]  # no student: this is about the question
run_job(request)"""
MACHINES = ("cutter", "folder", "binder", "plotter")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    "A folder with the package and one question more, and a few documents."
    home = tmp_path_factory.mktemp("toy")
    package = home / "package/distillery"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("weights"))
    (package / "weights").symlink_to(PACKAGE / "weights")
    if (known := user_memory(home / "none")).is_dir(): shutil.copytree(known, user_memory(home / "none", package), dirs_exist_ok=True)
    folder = package / "questions/toy"
    folder.mkdir()
    for name, text in {"__init__": "", "stages": STAGES, "decision": DECISION}.items(): (folder / f"{name}.py").write_text(text)
    listing = package / "questions/all.py"
    text = listing.read_text("utf-8")
    assert text.count("QUESTIONS: tuple[Question, ...] = (") == 1
    text = text.replace("QUESTIONS: tuple[Question, ...] = (", "from .toy.decision import TOY\nQUESTIONS: tuple[Question, ...] = (TOY,")
    listing.write_text(text, "utf-8")
    where = new_code_cell('run_dir: str = "."  # where', metadata={"tags": ["parameters"]})
    cells = [new_markdown_cell(f"# {ASKS}"), where, new_code_cell(REPORT)]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(new_notebook(cells=cells, metadata=kernel), package / "templates/99_toy.ipynb")
    (home / "docs").mkdir()
    for i, name in enumerate(MACHINES):
        (home / f"docs/{name}.md").write_text(f"# The {name}\n\nThe {name} stands in room {10 + i} of the hall. "
                                              f"The {name} costs {40 + i} euros a day. The speed of the {name} is {400 + i} sheets.\n")
    return home


def python(home, script, *args) -> str:
    "What a script says that imports the copy."
    env = {**os.environ, "PYTHONPATH": str(home / "package"), "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    done = subprocess.run([sys.executable, "-c", script, *args], cwd=home, capture_output=True, text=True, timeout=600, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def command(home, *args, levels="[1, 2]") -> str:
    "What a command says of a run with these levels."
    return python(home, "from distillery.commands.cli import main; main()", *args, "--docs", "docs", "--set",
                  f"decisions.questions_per_call={levels}")


def run_with(home, levels) -> Path:
    python(home, RUN, json.dumps({"decisions.questions_per_call": levels}))
    return (home / "runs/latest").resolve()


@pytest.fixture(scope="module")
def run(home): return run_with(home, [1, 2])


def test_estimate_counts_its_requests(home):
    assert [line for line in command(home, "estimate").splitlines() if ASKS in line and "274" in line]


@pytest.mark.slow
def test_a_question_that_is_not_asked_costs_nothing(home):
    assert ASKS not in command(home, "estimate", levels="[]")


def test_its_stage_runs_and_its_output_lies_in_the_run(run):
    assert "toy" in json.loads((run / "manifest.json").read_text("utf-8"))["stages"]
    rows = json.loads((run / "toy/rows.json").read_text("utf-8"))
    assert len(rows) == 2 * len(MACHINES)
    assert max(r["score"] for r in rows) == 1


def test_its_card_stands_in_the_run_and_first_on_the_index(run):
    card = json.loads((run / "decisions/toy.json").read_text("utf-8"))
    assert (card["question"], card["n_items"]) == (ASKS, len(MACHINES))
    index = (run / "reports/index.html").read_text("utf-8")
    assert index.index(ASKS) < min(index.index(q.asks) for q in questions_of("pairs"))
    assert card["sentence"] in re.sub(r"</?span[^>]*>", "", index)  # its numbers carry the places where they are stored


def test_its_page_is_built_and_linked(run):
    assert f"{2 * len(MACHINES)} questions were tried." in (run / "reports/toy.html").read_text("utf-8")
    assert 'href="toy.html"' in (run / "reports/index.html").read_text("utf-8")


def test_its_part_is_in_the_metrics(run):
    metrics = json.loads((run / "metrics.json").read_text("utf-8"))
    assert metrics["toy"] == {"answers": 2 * len(MACHINES)}
    assert "toy" not in metrics["reasons"]


def test_why_names_what_would_run_its_stage_again(run, home):
    assert "would not run again" in command(home, "why", "toy")
    place = home / "package/distillery/questions/toy/stages.py"
    text = place.read_text("utf-8")
    place.write_text(text.replace('"Ask."', '"Ask a lot."'), "utf-8")
    try: assert "distillery.questions.toy.stages._ask changed" in command(home, "why", "toy")
    finally: place.write_text(text, "utf-8")


def test_a_run_that_was_not_asked_names_the_command_that_asks(run, home):
    other = run_with(home, [])
    assert other != run
    assert not (other / "decisions/toy.json").exists()
    asks = r"Not run\. To run it: <code>distillery run[^<]* --set &#(?:x27|39);decisions\.questions_per_call=\[1, 2\]&#(?:x27|39);</code>"
    rows = (other / "reports/index.html").read_text("utf-8").split("<tr>")
    assert [row for row in rows if ASKS in row and re.search(asks, row)]
    assert not (other / "reports/toy.html").exists()
    assert json.loads((other / "metrics.json").read_text("utf-8"))["reasons"]["toy"] == "nobody asked"
