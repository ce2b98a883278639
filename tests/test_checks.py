"What a run needs is looked at before the first request: each missing thing is named with its fix, and a counting server hears nothing."
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from warm import run_command

from distillery.core.config import load_config
from distillery.teachers.journal import Journal
from distillery.teachers.protocol import ChatResult, user_request
from distillery.workbook import checks
from distillery.workbook.needs import check_room
from distillery.workbook.experiment import check_request, prepare

DOC = "# Cutter\n\nThe cutter stands in room 12 of the main hall. The default speed of the cutter is 400 sheets.\n"


class Counting(BaseHTTPRequestHandler):
    "A model server that writes down what it is asked to write, and refuses."
    def do_GET(self):
        refused = "stranger" in self.headers.get("Authorization", "")
        self.send_response(401 if refused else 404)
        self.end_headers()

    def do_POST(self):
        self.server.asked.append(self.path)
        self.send_response(500)
        self.end_headers()

    def log_message(self, *args): pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Counting) as it:
        it.asked, it.spec = [], f"http://127.0.0.1:{it.server_port}/v1#m"
        threading.Thread(target=it.serve_forever, daemon=True).start()
        yield it
        it.shutdown()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/a.md").write_text(DOC)
    return tmp_path


def run(*args: str, cwd: Path, code: int, **env: str) -> subprocess.CompletedProcess:
    done = run_command(*args, cwd=cwd, env=env)
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
    return done


def write_sets(folder: Path) -> None:
    (folder / "own").mkdir()
    (folder / "own/mine.jsonl").write_text('{"question": "Where?"}\n')
    (folder / "gold.jsonl").write_text("no JSON\n")
    (folder / "pack").mkdir()
    (folder / "pack/ask.j2").write_text("Ask {{ thing }}")
    (folder / "judged").mkdir()
    (folder / "articles.jsonl").write_text('{"text": "A raven.", "title": "Raven", "quality": 3}\n')


@pytest.mark.parametrize(("args", "words"), [
    (["--set", "student.base=models/nowhere"], "models/nowhere is not on this machine"),
    (["--set", "lora.target_modules=[no_proj]"], "no_proj"),
    (["--set", "decisions.bases=[builtin:tiny, nobody/nothing]"], "nobody/nothing"),
    (["--set", "judge.bert_score_model=nobody/scores"], "nobody/scores"),
    (["--set", "embedder.judged=judged"], "judged"),
    (["--set", "embedder.judged=gone"], "gone"),
    (["--articles", "articles.jsonl"], "articles.jsonl, line 1"),
    (["--articles", "articles.jsonl", "--set", "articles.scores=[beauty]"], "beauty"),
    (["--set", "teacher.api_key_env=NO_SUCH_KEY"], "NO_SUCH_KEY"),
    (["--set", "evaluation.eval_data_dir=own"], "mine.jsonl"),
    (["--set", "evaluation.eval_data_dir=gone"], "gone"),
    (["--set", "dataset.gold=gold.jsonl"], "gold.jsonl"),
    (["--set", "dataset.gold=gone.jsonl"], "gone.jsonl"),
    (["--set", "prompts.pack=pack"], "pack"),
    (["--set", "decisions.prompt_packs=[technical-docs, nowhere]"], "nowhere"),
])
def test_what_is_missing_is_named_before_the_first_request(folder, server, args, words):
    write_sets(folder)
    done = run("run", "docs", "--teacher", server.spec, *args, cwd=folder, code=2)
    assert words in done.stderr
    assert "Fix:" in done.stderr
    assert server.asked == []
    assert not (folder / "runs").exists() or not list((folder / "runs").glob("*/manifest.json"))


def test_a_key_that_the_server_does_not_know(folder, server):
    done = run("run", "docs", "--teacher", server.spec, cwd=folder, code=2, OPENAI_API_KEY="stranger")
    assert "refuses the key" in done.stderr
    assert "OPENAI_API_KEY" in done.stderr
    assert server.asked == []


def test_a_server_that_is_not_there_is_named_at_once(folder):
    done = run("run", "docs", "--teacher", "http://127.0.0.1:9/v1#m", cwd=folder, code=2)
    assert "no server answers at http://127.0.0.1:9/v1" in done.stderr
    assert "generate" not in done.stdout


@pytest.mark.parametrize("command", ["estimate", "preview"])
def test_a_sample_needs_the_teacher_too(folder, command):
    assert "no server answers" in run(command, "docs", "--teacher", "http://127.0.0.1:9/v1#m", cwd=folder, code=2).stderr


def test_a_misspelt_teacher_is_a_bad_request(folder):
    assert "tiny or mini" in run("run", "docs", "--teacher", "builtin:tinny", cwd=folder, code=2).stderr


def test_doctor_looks_at_the_same(folder):
    (folder / "distillery.yaml").write_text("docs: docs\npreset: technical-docs\nstudent.base: models/nowhere\n")
    asked = ["--teacher", "http://127.0.0.1:9/v1#m", "--set", "judge.embedder=nobody/embeds"]
    said = run("doctor", *asked, cwd=folder, code=1).stdout
    for gone in ("models/nowhere is not on", "no server answers at http://127.0.0.1:9", "nobody/embeds is not on"): assert gone in said
    assert said.count("fix:") >= 3
    assert said.count("hf download") == 2
    refused = run("estimate", "docs", "--set", "student.base=nobody/nothing", cwd=folder, code=2).stderr
    assert "nobody/nothing is not on this machine" in refused


def test_a_disk_that_cannot_hold_the_variants_is_named():
    assert list(check_room("builtin:tiny", load_config(), 1.0)) == []
    [short] = check_room("builtin:tiny", load_config(), 1e-4)
    assert not short.ok
    assert "export.variants" in short.fix


def test_too_little_disk_stops_a_run_and_little_is_said(folder, monkeypatch):
    monkeypatch.chdir(folder)
    request = prepare(None, None, load_config(preset="technical-docs", overrides={"docs": "docs"}))
    space, said = checks.check_space, []
    for free in (0.4, 3.0):
        monkeypatch.setattr(checks, "check_space", lambda place, free=free: space(place, free))
        found = checks.check_plan(request.source, request.plan)
        if free < 1:
            with pytest.raises(checks.PlanError, match=r"0\.4 GiB free"): checks.require_plan(found)
        else: checks.require_plan(found, said.append)
    assert len([line for line in said if "3.0 GiB free" in line]) == 1


class Kept:
    name, identity = "m at http://127.0.0.1:9/v1", {"model": "m"}

    async def stream(self, requests):
        for r in requests: yield ChatResult(r.key, "yes", "stop", 1, 1)

    async def close(self): pass


def test_answers_that_are_kept_spare_the_server(folder, monkeypatch):
    "A run whose answers are in the journal may need no more of them: it is warned, not stopped."
    monkeypatch.chdir(folder)
    spec, cache = "http://127.0.0.1:9/v1#m", Path(".distillery")
    config = load_config(preset="technical-docs", overrides={"docs": "docs", "teacher.model": spec})
    assert [c.ok for c in checks.check_teacher(spec, config)] == [False]
    cache.mkdir(exist_ok=True)
    Journal(cache / "calls.sqlite").ask(Kept(), [user_request("k", "Is it?")])
    assert [(c.ok, c.warns) for c in checks.check_teacher(spec, config)] == [(True, True)]
    assert [c.ok for c in checks.check_teacher("http://127.0.0.1:9/v1#other", config)] == [False]


def test_a_finished_stage_needs_nothing(folder, monkeypatch):
    monkeypatch.chdir(folder)
    request = prepare(None, None, load_config(preset="technical-docs", overrides={"docs": "docs", "student.base": "models/nowhere"}))
    request.plan.stages = request.plan.stages[:1]
    assert [c.name for c in checks.check_plan(request.source, request.plan) if not c.ok] == []
    request.plan.run()
    assert checks.check_plan(request.source, request.plan) == []
    check_request(request)
