"""Attacks at the edges: model folders, the current folder, logins, keys, the terminal, the served student, replies, names, clocks, slips.
`row` numbers the list of what was once lost. A tenth of them runs with every change; the others weekly."""
import ast
import asyncio
import gzip
import io
import json
import os
import random
import re
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import yaml

from attack_inputs import (DEEP, ECHOES, EVIL, FILES, FOLDERS, KEY, LISTS, LOGIN, MAPS, PAYLOADS, PLACES, SHADOWS, SLIPS,
                           STRANGE, TEMPLATES)
from attack_server import hello, http, served, status, talk

from distillery.commands.cli import main
from distillery.core.address import hosts_in, public_address, without_hosts
from distillery.core.config import flatten, load_config, to_yaml
from distillery.core.errors import DistilleryError, hide_secrets, plain

ROOT = Path(__file__).resolve().parents[1] / "distillery"
KEPT = Path(__file__).parent / "data/run"
slow = pytest.mark.slow


def attack(row): return pytest.mark.attack(row=row)


def weekly(cases, quick=1):
    "The first so many cases of each change, the others weekly."
    rows = [c if isinstance(c, tuple) else (c,) for c in cases]
    return [pytest.param(*row, marks=[slow] if i >= quick else [], id=f"{i}") for i, row in enumerate(rows)]


def typed(*args):
    "What a command prints, and its exit code, in this process."
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as left: main(list(args))
    return out.getvalue(), err.getvalue(), left.value.code


@pytest.fixture
def here(tmp_path, monkeypatch):
    "An empty folder, and a home without settings."
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name in ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"): monkeypatch.setenv(name, str(tmp_path / "home"))
    for name in ("DISTILLERY_TRUST", "OPENAI_BASE_URL", "OPENAI_API_BASE", "PYTHONSAFEPATH"): monkeypatch.delenv(name, raising=False)
    return tmp_path / "here"


# 5: a model folder's Python runs

def model_folder_of(files, folder):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


@attack(5)
@pytest.mark.parametrize("files", weekly(FOLDERS, 3))
def test_a_model_folder_runs_nothing_of_its_own(files, here):
    from distillery.retrieval.embed import model_dir
    from distillery.teachers.local import model_folder
    folder = model_folder_of(files, here / "model")
    for load in (lambda: model_folder(folder), lambda: model_dir(str(folder))):
        with pytest.raises(DistilleryError): load()
    assert not list(here.rglob("TAKEN"))


@attack(5)
@slow
@pytest.mark.parametrize("files", FOLDERS, ids=range(len(FOLDERS)))
def test_no_loader_takes_such_a_folder(files, here):
    from distillery.filters.views import token_counter
    from distillery.teachers.checkpoint import loadable
    from distillery.training.preflight import preflight
    from distillery.training.sft import load_base
    folder = model_folder_of(files, here / "model")
    for load in (loadable, load_base, lambda f: preflight(f, load_config()), lambda f: token_counter(str(f))):
        with pytest.raises(DistilleryError): load(folder)
    assert not list(here.rglob("TAKEN"))


@attack(5)
@slow
def test_a_library_told_to_trust_would_run_it(here, monkeypatch):
    "The positive control: the same folder, loaded past the check."
    from transformers import AutoConfig
    monkeypatch.setenv("HF_MODULES_CACHE", str(here / "cache"))
    config = "from transformers import PretrainedConfig\nclass Config(PretrainedConfig): model_type = 'evil'\n"
    named = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}}
    folder = model_folder_of({"config.json": named, "evil.py": f"{EVIL}\n{config}"}, here / "m")
    AutoConfig.from_pretrained(str(folder), trust_remote_code=True)
    assert list(here.rglob("TAKEN"))


LOADERS = ("AutoTokenizer", "AutoConfig", "AutoModel", "SentenceTransformer")


@attack(5)
def test_every_loader_is_told_to_run_nothing():
    said = []
    for path in ROOT.rglob("*.py"):
        if not any(w in path.read_text("utf-8") for w in ("from_pretrained(", "SentenceTransformer(")): continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Call): continue
            name = ast.unparse(node.func)
            loads = name.endswith(".SentenceTransformer") or (name.endswith(".from_pretrained") and any(x in name for x in LOADERS))
            told = any(k.arg == "trust_remote_code" and ast.unparse(k.value) == "False" for k in node.keywords)
            spread = any(k.arg is None for k in node.keywords) and "trust_remote_code" in path.read_text("utf-8")
            if loads and not (told or spread): said.append(f"{path.name}:{node.lineno} {name}")
    assert said == []


@attack(5)
@pytest.mark.parametrize("source", weekly(TEMPLATES, 3))
def test_a_chat_template_ends(source):
    from distillery.wire.template import BoundedTemplate
    turns = [{"role": "user", "content": "word " * 50}] * 200
    tracemalloc.start()
    try:
        with pytest.raises(DistilleryError): BoundedTemplate(source).render(messages=turns, add_generation_prompt=True)
        assert tracemalloc.get_traced_memory()[1] < 200 * 2**20
    finally: tracemalloc.stop()


# 6: files of the working folder run as modules

def shadowed(folder, names=SHADOWS):
    for name in names: (folder / f"{name}.py").write_text(f"open({str(folder / 'TAKEN')!r}, 'w').close()\nraise SystemExit(3)")
    return folder


@attack(6)
@pytest.mark.parametrize(("module", "code"), weekly([("distillery.evaluation.measure", 1), ("distillery.questions.load.trials", 0)]))
def test_a_child_imports_nothing_of_the_current_folder(module, code, here):
    from distillery.engine.child import child_command
    shadowed(here)
    done = subprocess.run(child_command(module, str(here / "nothing")), cwd=here, capture_output=True, text=True, input="")
    assert "TAKEN" not in os.listdir(here)
    assert done.returncode == code, done.stderr[-300:]  # it ran, and had nothing to do


@attack(6)
def test_without_the_switch_it_would(here):
    "The positive control."
    subprocess.run([sys.executable, "-c", "import yaml"], cwd=shadowed(here), capture_output=True)
    assert "TAKEN" in os.listdir(here)


@attack(6)
@slow
@pytest.mark.parametrize("name", SHADOWS)
def test_no_name_is_taken_from_the_current_folder(name, here, monkeypatch):
    from distillery.engine.child import protected_children
    shadowed(here, [name])
    monkeypatch.setenv("PYTHONSAFEPATH", "")
    with protected_children():
        subprocess.run([sys.executable, "-c", f"import {name}"], cwd=here, capture_output=True)
        subprocess.run([sys.executable, "-m", "multiprocessing.resource_tracker"], cwd=here, capture_output=True)
    assert "TAKEN" not in os.listdir(here)


@attack(6)
@slow
def test_a_kernel_imports_nothing_of_the_current_folder(here):
    import nbformat
    from distillery.pages.report import execute
    shadowed(here, [n for n in SHADOWS if n != "distillery"])
    (here / "distillery.py").write_text("raise SystemExit('taken over')")
    cells = [nbformat.v4.new_code_cell("x: int = 1  # a number", metadata={"tags": ["parameters"]}),
             nbformat.v4.new_code_cell("import yaml, distillery.core.errors\nyaml.__name__")]
    kernel = {"kernelspec": {"name": "python3", "display_name": "x"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), here / "10_small.ipynb")
    assert "yaml" in str(execute(here / "10_small.ipynb", {}).cells[-1].outputs)
    assert "TAKEN" not in os.listdir(here)


@attack(6)
@slow
def test_a_page_is_not_made_with_a_template_of_the_current_folder(here):
    import nbformat
    from nbconvert import HTMLExporter
    from distillery.pages.report import to_html
    (here / "basic").mkdir()
    (here / "basic/conf.json").write_text('{"base_template": "base", "mimetypes": {"text/html": true}}')
    (here / "basic/index.html.j2").write_text("TAKEN {{ [].__class__ }}")
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# A page")])
    assert "TAKEN" in HTMLExporter(template_name="basic").from_notebook_node(book)[0]  # the positive control
    assert "TAKEN" not in to_html(book, "A page")


@attack(6)
def test_every_python_that_is_started_has_a_safe_path():
    said = []
    for path in ROOT.rglob("*.py"):
        if "sys.executable" not in path.read_text("utf-8"): continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.List) and "sys.executable" in ast.unparse(node) and "-P" not in ast.unparse(node):
                said.append(f"{path.name}:{node.lineno}")
    assert said == []


# 7: passwords in addresses are published, and so is the internal host

NAMES = set(flatten(load_config()))


@attack(7)
@pytest.mark.parametrize("address", weekly([
    LOGIN.replace("ada:", "ada:x:"), LOGIN, LOGIN.replace("http", "HTTPS"), LOGIN.replace("ada:", ":"), LOGIN.replace("%40", "@"),
    "http://pl4nted-p%40ss@gpu7.corp.invalid/v1#m"]))
def test_no_setting_keeps_a_login(address):
    changes = {n: address for n in PLACES if n in NAMES} | {n: {address: 2} for n in MAPS[:2]} | {MAPS[2]: {address: [1.0, 2.0]}}
    for name, value in (changes | {n: [address] for n in LISTS}).items():
        kept = load_config(overrides={name: value})
        text = to_yaml(kept) + json.dumps(flatten(kept))
        assert "pl4nted" not in text, name
        assert "gpu7" in text, name


@pytest.fixture(scope="module")
def told():
    "A run of a server with an internal name, as its folder has it."
    return {"teacher.model": public_address(LOGIN), "student.base": "builtin:mini"}


def run_of(told, folder):
    (folder / "onnx/q4").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(told))
    (folder / "provenance.json").write_text(json.dumps({"run": "1a2b", "teacher": told["teacher.model"], "source": "documents"}))
    (folder / "counts.json").write_text(json.dumps({"documents": 3, "training_rows": 9}))
    return folder


@attack(7)
def test_a_package_names_no_host(told, here):
    from distillery.commands.package import story_of
    story = story_of(run_of(told, here / "run"), "q4")
    assert "qwen at a chat server" in story.data
    assert "gpu7" not in repr(story)


@attack(7)
@pytest.mark.parametrize("text", [
    "by qwen at http://gpu7.corp.invalid:8000/v1", "--teacher http://gpu7.corp.invalid:8000/v1#qwen", "GPU7.corp.invalid is down",
    '{"teacher": "http://gpu7.corp.invalid:8000/v1#qwen"}', "<td>http://gpu7.corp.invalid:8000/v1#qwen</td>", "(gpu7.corp.invalid:8000)",
    "https://gpu7.corp.invalid:8000", "cannot connect to gpu7.corp.invalid:8000: refused"])
def test_no_page_shows_a_host(text, told, here):
    from distillery.pages.figures import write_page
    page = write_page(run_of(told, here / "run") / "reports", "index", f"<p>{text}</p>").read_text()
    assert "gpu7" not in page.lower()
    assert hosts_in(json.dumps(told)) == ["gpu7.corp.invalid:8000"]
    assert without_hosts("http://127.0.0.1:8080/v1#m", hosts_in('"http://127.0.0.1:8080/v1#m"')) == "http://127.0.0.1:8080/v1#m"


@attack(7)
def test_nothing_with_a_host_is_published(told, here):
    from distillery.shipping.publish import find_leaks
    run = run_of(told, here / "run")
    (here / "out").mkdir()
    (here / "out/train.jsonl").write_text('{"by": "http://gpu7.corp.invalid:8000/v1"}')
    assert find_leaks(here / "out", run) == ["train.jsonl holds the host of a server"]


@attack(7)
@slow
def test_no_page_of_a_whole_run_shows_a_host(told, tmp_path):
    from page_truth import rendered
    from distillery.workbook.assemble import write_pages
    from distillery.core.store import RunFolder
    run = rendered(KEPT, tmp_path / "run")
    for name in ("config.json", "provenance.json"):
        file = run / name
        value = json.loads(file.read_text())
        value |= {k: told["teacher.model"] for k in ("teacher.model", "teacher") if k in value}
        file.unlink()
        file.write_text(json.dumps(value))
    write_pages(RunFolder(run), {"quantization": {}, "temperature": {}})
    made = ("index.html", "quantization.html", "temperature.html", "kpis.html")
    pages = [p for p in (run / "reports").rglob("*") if p.is_file() and p.name in made]
    assert len(pages) >= 3
    assert [p.name for p in pages if b"gpu7" in p.read_bytes()] == []


@attack(7)
def test_a_planted_key_and_login_are_in_no_file(here, monkeypatch):
    from teachers_server import Server
    from distillery.teachers.journal import Journal
    from distillery.teachers.open import open_teacher
    from distillery.teachers.protocol import user_request
    key = "sk-planted-0123456789abcdef"
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with Server() as server:
        spec = server.url.replace("http://", "http://ada:pl4nted-pass@") + "#m"
        cfg = load_config(overrides={"teacher.model": spec})
        journal = Journal(here / "calls.sqlite")
        answered = journal.ask(open_teacher(spec, cfg), [user_request(str(i), f"Where is hall {i}?") for i in range(3)])
        (here / "config.json").write_text(json.dumps(flatten(cfg)))
        assert server.headers[0]["Authorization"].startswith("Basic ")
    assert len(answered) == 3
    words = (key.encode(), b"pl4nted-pass", b"YWRhOnBsNG50")
    assert [p.name for p in here.rglob("*") if p.is_file() and any(w in p.read_bytes() for w in words)] == []
    assert key not in hide_secrets(f"Bearer {key}")


@attack(7)
@pytest.mark.parametrize("echo", weekly(sorted(ECHOES), 5))
def test_a_key_that_a_server_repeats_is_not_kept(echo, here, monkeypatch):
    "It was looked for in the bytes alone."
    from teachers_server import Scripted
    from distillery.teachers.journal import Journal
    from distillery.teachers.openai import OpenAITeacher
    from distillery.teachers.protocol import user_request
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    raw = ECHOES[echo]
    kind = {"Content-Type": "text/event-stream"} if raw.startswith(b"data") else {}
    with Scripted(lambda *_: (200, kind, raw)) as server:
        got = Journal(here / "calls.sqlite").ask(OpenAITeacher(server.url, "m", max_retries=0), [user_request("a", "Where?")])["a"]
    assert KEY not in repr(got)
    assert [p.name for p in here.rglob("*") if p.is_file() and KEY.encode() in p.read_bytes()] == []


@attack(7)
@pytest.mark.parametrize("listing", [{"n_params": KEY}, {"n_params": 7, "size": f"Bearer {KEY}"}], ids=["alone", "with a word"])
def test_a_key_is_no_digest_of_weights(listing, here, monkeypatch):
    "It stood in servers.json, since a server had told it as the size of a model."
    from teachers_server import Server
    from distillery.teachers.open import server_digest
    from distillery.teachers.openai import OpenAITeacher
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with Server() as server:
        server.listing = {"data": [{"id": "m", "meta": listing}]}
        assert server_digest(f"{server.url}#m", here / "servers.json")
        assert KEY not in repr(OpenAITeacher(server.url, "m").identity)
    assert KEY not in (here / "servers.json").read_text()


# 8: a settings file picks any environment variable and where it goes

@attack(8)
@pytest.mark.parametrize("teacher", weekly(FILES, 4))
def test_a_folder_sends_no_key(teacher, here, monkeypatch):
    from distillery.commands.options import settings
    from distillery.teachers.open import open_teacher
    from distillery.workbook.checks import check_teacher
    for name in ("OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY"): monkeypatch.setenv(name, "sk-planted-0123456789")
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: pytest.fail("something was looked up"))
    Path("distillery.yaml").write_text(yaml.safe_dump({"teacher": teacher}))
    cfg = settings(None, None, None)
    refused = "distillery trust"
    with pytest.raises(DistilleryError, match=refused): open_teacher(cfg.teacher.model, cfg)
    checked = list(check_teacher(cfg.teacher.model, cfg))  # what a run does first: it sent the key before anybody had asked
    assert [c.ok for c in checked] == [False]
    assert re.search(refused, checked[0].found + checked[0].fix)


@attack(8)
@pytest.mark.parametrize("code", weekly([307, 301, 302, 303, 308]))
def test_a_key_does_not_go_where_a_server_points(code, here):
    "The check before a run followed, and urllib takes the key along."
    from http.server import BaseHTTPRequestHandler, HTTPServer
    from distillery.workbook.checks import server_problem
    seen = []

    class Points(BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append(self.path)
            self.send_response(code if len(seen) == 1 else 200)
            self.send_header("Location", f"http://localhost:{self.server.server_port}/elsewhere")
            self.end_headers()

        def log_message(self, *_): pass

    with HTTPServer(("127.0.0.1", 0), Points) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert server_problem(f"http://127.0.0.1:{server.server_port}/v1", "sk-planted-0123456789") == ""
        server.shutdown()
    assert seen == ["/v1/models"]


@attack(8)
def test_a_person_can_say_so(here, monkeypatch):
    from distillery.wire.trust import may_have_key, trust_file
    monkeypatch.setenv("OPENAI_API_KEY", "sk-planted-0123456789")
    url = "https://models.invalid/v1"
    assert not may_have_key(url)
    assert typed("trust", "models.invalid")[2] == 0
    assert may_have_key(url)
    assert trust_file().stat().st_mode & 0o777 == 0o600
    trust_file().chmod(0o666)
    with pytest.raises(DistilleryError, match="others may write"): may_have_key(url)
    trust_file().chmod(0o600)
    assert typed("trust", "--remove", url)[2] == 0
    assert not may_have_key(url)
    assert "no host" in typed("trust", "a b")[1]
    typed("config", "show", "--set", f"teacher.model={url}#m")
    assert may_have_key(url)
    assert may_have_key("http://localhost:1/v1")


# 11: escape sequences reach the terminal

@attack(11)
@pytest.mark.parametrize("payload", PAYLOADS, ids=ascii)
def test_nothing_that_is_shown_drives_the_terminal(payload, capsys):
    from rich.text import Text
    from distillery.commands.cli import PlainStream, say
    from distillery.commands.options import PlainConsole
    from distillery.pages.terminal import facts_table
    screen = io.StringIO()
    out = PlainConsole(file=screen, force_terminal=True, width=80)
    for shown in (Text(f"skipped {payload}.md"), facts_table({f"k{payload}": payload}), payload): out.print(shown, markup=False)
    left = screen.getvalue()
    for own in ("\x1b[1m", "\x1b[0m"): left = left.replace(own, "")
    assert payload not in left
    stream = io.StringIO()
    PlainStream(stream).write(f"warning: {payload}")
    say(f"no model {payload}", f"name {payload}")
    assert payload not in capsys.readouterr().err
    assert (payload in stream.getvalue()) == ("\r" in payload)  # the start of a line is let through to bars of downloads
    assert plain(plain(payload)) == plain(payload)


@attack(11)
@pytest.mark.parametrize("payload", weekly(PAYLOADS[:8], 2))
def test_a_tampered_run_drives_no_terminal(payload, here):
    run = here / "runs/1a2b3c4d"
    run.mkdir(parents=True)
    stages = {payload: {"digest": "a", "cached": False, "seconds": 1.0}}
    (run / "manifest.json").write_text(json.dumps({"name": payload, "ended": 1, "stages": stages}))
    (run / "provenance.json").write_text(json.dumps({"teacher": payload, "source": payload, payload: payload}))
    for command in (["runs", "list"], ["runs", "show"], ["ask", payload, "x"], ["report", payload], ["config", "explain", payload],
                    ["runs", "show", payload], ["config", "show", "--set", f"workbook.name={json.dumps(payload)}"]):
        out, err, _ = typed(*command)
        assert payload not in out + err.replace("\r\n", "\n"), command


# 12: the served student

@pytest.fixture(scope="module")
def student():
    with served() as (port, service): yield port, service


@attack(12)
@pytest.mark.parametrize("host", ["rebound.invalid", "rebound.invalid:8080", "127.0.0.1.rebound.invalid", "localhost.rebound.invalid",
                                  "RebounD.invalid.", "localhost:80@rebound.invalid", "xn--lcalhost-2ib", "[rebound.invalid]"])
def test_a_rebound_name_is_not_answered(host, student):
    assert status(talk(student[0], http(hello(), host))) in (400, 403)
    assert status(talk(student[0], http(hello(), "localhost:8080"))) == 200


ODD = [
    hello(stop="x" * 900_000), hello(stop=["x" * 300]), hello(temperature=float("nan")), hello(temperature=1e300),
    hello(seed=10**400), hello(top_p=0), hello(repetition_penalty=1e-320), b'{"model": "student-q4", "messages": ' + b"[" * 100_000,
    b"\xff" * 100, b'{"temperature": 1e999, ' + json.dumps(hello()).encode()[1:],
    hello(messages=[{"role": "user", "content": "\ud800"}]),
]


@attack(12)
@pytest.mark.parametrize("body", ODD, ids=[str(i) for i in range(len(ODD))])
def test_an_odd_request_is_a_bad_request(body, student): assert status(talk(student[0], http(body))) == 400


@attack(12)
@pytest.mark.parametrize("more", [
    {"temperature": 1e-320}, {"temperature": 5e-324}, {"temperature": 1e-9, "top_p": 1e-320}, {"temperature": 2, "top_p": 1e-300},
    {"top_k": 10**30}, {"max_tokens": 10**300}, {"repetition_penalty": 0.01}, {"repetition_penalty": 100}], ids=str)
def test_small_and_large_numbers_are_sampled(more, student):
    import numpy as np
    from distillery.shipping.wire import read_request, to_request
    from distillery.teachers.sampling import Sampler
    assert status(talk(student[0], http(hello(**more)))) == 200
    request = to_request(read_request(json.dumps(hello(**more)).encode()), "k", 8)
    with np.errstate(all="raise", under="ignore"): token = Sampler(request, [1, 2]).pick(np.array([1.0, 5.0, -3.0, 700.0, -700.0]))
    assert 0 <= token < 5


@attack(12)
def test_slow_clients_are_shown_out(student):
    port, service = student
    waiting = [b"", b"POST /v1/chat/completions HTTP/1.1\r\nHost: x", http(hello())[:-5],
               b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"]
    for raw in waiting: talk(port, raw)  # each ends, since the server closes it
    assert status(talk(port, http(hello()))) == 200
    assert not service.busy


@attack(12)
def test_more_connections_than_there_is_room_for():
    with served(serve__connections=5, serve__read_timeout=30.0) as (port, _):
        kept = [socket.create_connection(("127.0.0.1", port), timeout=5) for _ in range(5)]
        time.sleep(0.2)
        assert all(talk(port, http(hello())) in ("closed", "") for _ in range(5))
        for s in kept: s.close()
        for _ in range(50):
            if status(talk(port, http(hello()))) == 200: break
            time.sleep(0.1)
        else: pytest.fail("no room again")


@attack(12)
def test_a_slow_tokenizer_keeps_nobody_waiting(student):
    port, service = student
    pupil = service.engine.student
    slow_one = threading.Thread(target=talk, args=(port, http(hello(messages=[{"role": "user", "content": "wait"}]))))
    slow_one.start()
    assert pupil.entered.wait(10)
    assert status(talk(port, b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")) == 200  # while it counts tokens
    pupil.go.set()
    slow_one.join(20)


@attack(12)
@pytest.mark.parametrize("raw", [
    http(hello())[:60] + b"\r\nTransfer-Encoding: chunked\r\n\r\n" + b"fffff\r\n" * 3,
    b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: " + b"a" * 100_000 + b"\r\n\r\n", b"\x16\x03\x01" * 50, b"GET " + b"a" * 100_000,
    b"BREW /pot HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"])
def test_nonsense_fills_no_log(raw, student, caplog):
    from distillery.shipping.door import LINES
    with caplog.at_level("DEBUG"):
        for _ in range(3): talk(student[0], raw)
    assert "Traceback" not in caplog.text
    assert len([r for r in caplog.records if r.name == "distillery.serve"]) <= LINES


@attack(12)
def test_clients_that_vanish_leave_no_word(student, caplog):
    for stream in (True, False) * 10:
        s = socket.create_connection(("127.0.0.1", student[0]), timeout=5)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        s.sendall(http(hello(stream=stream)))
        s.close()
    assert status(talk(student[0], http(hello()))) == 200
    assert "Traceback" not in caplog.text
    assert "Error" not in caplog.text


@attack(12)
@pytest.mark.parametrize("head", ["", *(f"Authorization: {said}\r\n" for said in (
    "Bearer wrong", "Basic dG9rZW4=", "Bearer", "tok-en", "Bearer TOK-EN", "Bearer tok-en2")), "X-Api-Key: tok-en\r\n"])
def test_beyond_this_machine_a_token_is_demanded(head, monkeypatch):
    from distillery.shipping.door import Door
    monkeypatch.delenv("DISTILLERY_TOKEN", raising=False)
    with pytest.raises(DistilleryError, match="no token"): Door(load_config(overrides={"serve.host": "0.0.0.0"}))
    monkeypatch.setenv("DISTILLERY_TOKEN", "tok-en")
    with served(serve__host="0.0.0.0") as (port, _):
        assert status(talk(port, http(hello(), head=head))) == 401
        assert status(talk(port, http(hello(), head="Authorization: Bearer tok-en\r\n"))) == 200


# 13: unlimited reply size

class Endless:
    "A reply of aiohttp that goes on."

    def __init__(self, piece, packed="identity", times=10**6):
        self.headers, self.content, self.piece, self.times, self.read = {"Content-Encoding": packed}, self, piece, times, 0

    async def iter_any(self):
        for _ in range(self.times):
            self.read += len(self.piece)
            yield self.piece


@attack(13)
@pytest.mark.parametrize(("piece", "packed", "times"), [
    (b"x" * 65536, "identity", 10**6), (b"[" * 10, "identity", 10**9), (b" " * 4096, "identity", 10**6),
    (b"data: {}\n\n" * 1000, "identity", 10**6),
    (gzip.compress(b"0" * 10**7, 1), "gzip", 1), (gzip.compress(b"0" * 10**7, 1), "x-gzip", 1), (b"\0" * 8192, "deflate", 10**6),
    (gzip.compress(gzip.compress(b"0" * 10**7, 1)) + b"\0" * 2_000_000, "gzip", 10**6)], ids=range(8))
def test_a_reply_has_an_end(piece, packed, times):
    from distillery.wire.bounded import BadJson, TooLong
    from distillery.wire.http import read_body
    reply = Endless(piece, packed, times)
    with pytest.raises((TooLong, BadJson)): asyncio.run(read_body(reply, 10**6))
    assert reply.read < 10**6 + 2 * len(piece) + 10**6


# 14: variant names as paths

@attack(14)
@pytest.mark.parametrize("name", STRANGE, ids=ascii)
def test_a_variant_is_a_name(name, here):
    run = here / "runs/1a2b3c4d"
    for place in (run / "onnx/q4", here / "outside/model", here / "x"):
        place.mkdir(parents=True)
        for file in ("model.onnx", "genai_config.json", "tokenizer.json"): (place / file).write_text("{}")
    (run / "manifest.json").write_text("{}")
    (run / "provenance.json").write_text("{}")
    before = sorted(here.rglob("*"))
    for command in (["ask", name, "Who?"], ["package", name], ["serve", name], ["evaluate", "--variant", name], ["report", name]):
        _, err, code = typed(*command)
        assert code in (1, 2), (command, err)
        assert not [w for w in ("Traceback", "not foreseen") if w in err], (command, err)
    assert [p for p in sorted(here.rglob("*")) if p not in before and ".distillery" not in p.parts] == []


@attack(14)
@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "latest", "deadbeef", "x" * 200, "-n", "a\nb", "\x1b[2J"], ids=ascii)
def test_a_run_is_named_by_a_name(name, here):
    from distillery.core.store import check_name
    with pytest.raises(DistilleryError): check_name(name)


# 15: a clock that is set back

@attack(15)
@pytest.mark.parametrize("step", [-10**6, -3600, -60, -1, 1, 60, 3600, 10**6])
def test_the_breaker_does_not_look_at_the_clock_on_the_wall(step, monkeypatch):
    from distillery.wire.breaker import Breaker
    now = [100.0]
    monkeypatch.setattr(time, "time", lambda: 1e9 + step * now[0])
    breaker = Breaker(1, 10, lambda e: True)
    breaker.record(failed=True)
    wall = Breaker(1, 10, lambda e: True, clock=time.time)  # the positive control: such a breaker waits for ever, or not as long
    wall.record(failed=True)
    now[0] = 103.0
    assert 9 < breaker.wait() <= 10
    assert not 9 < wall.wait() <= 10


STAMPS = {  # when something was, for people and for the ages of files
    "shipping/wire.py", "workbook/experiment.py", "teachers/call_file.py", "teachers/journal.py", "commands/calls.py", "wire/locks.py",
    "workbook/storekeeping.py", "workbook/filter_run.py",
}


@attack(15)
def test_no_time_that_is_waited_for_is_read_off_the_wall():
    found = {p.relative_to(ROOT).as_posix() for p in ROOT.rglob("*.py") if "time.time()" in p.read_text("utf-8")}
    assert found <= STAMPS


@attack(15)
@slow
@pytest.mark.parametrize("away", [0.5, 2.0, 6.0, 12.0])
def test_a_server_that_is_back_is_asked_within_fifteen_seconds(away):
    from teachers_server import Server
    from distillery.teachers.openai import OpenAITeacher
    from distillery.teachers.protocol import run_async, user_request

    async def ask(url):
        seen = []
        teacher = OpenAITeacher(url, "m")
        asked = [user_request(str(i), f"q{i}") for i in range(12)]
        async for result in teacher.stream(asked): seen.append((time.monotonic(), result.error))
        return seen

    with Server(outage=(3, away)) as server:
        began = time.monotonic()
        seen = run_async(lambda: ask(server.url))
        assert [e for _, e in seen if e] == []
        assert max(t for t, _ in seen) - began < away + 15


# 16: tracebacks for slips

@pytest.fixture
def odd(here):
    (here / "folder").mkdir()
    (here / "binary").write_bytes(bytes(range(256)) * 10)
    (here / "deep.yaml").write_text(f"docs: {DEEP}")
    (here / "deep.jsonl").write_text(f"{DEEP}\n")
    (here / "aliases.yaml").write_text("a: &a [1, 1]\nb: &b [*a, *a]\nc: [*b, *b]\n")
    return here


def slipped(args):
    "What is wrong with how a command ended; empty: nothing."
    out, err, code = typed(*args)
    if "Traceback" in out + err or "not foreseen" in err: return f"{str(args)[:200]}: {err[-300:]}"
    return "" if code in (0, 1, 2) else f"{str(args)[:200]}: exit {code}"


@attack(16)
@pytest.mark.parametrize("args", weekly([(s,) for s in SLIPS], 24))
def test_a_slip_is_named(args, odd): assert slipped(args) == ""


VALUES = [
    "1", "-1", "null", "[]", "{}", "[1, 2]", "{a: 1}", "true", "x", "''", "1e400", ".nan", "-.inf", "9" * 30, "9" * 5000, "[[", "&a *a",
    "!!python/object:os.system x", "2001-13-45", "\0", "\udc80", "\x1b[2J", "../../x", "http://a:b@c.invalid/v1#m", "http://[",
    "builtin:none", "local:/", "x" * 70_000, "é\u202e", "0x1F", "1_0", "~", "? a",
]
WORDS = [
    "--set", "--config", "--preset", "--run", "--teacher", "--out", "-c", "-p", "latest", "q4", "folder", "binary", "deep.yaml",
    "deep.jsonl", "--", "-", "--help", "*",
]
COMMANDS = [
    ["config", "show"], ["config", "explain"], ["config", "diff"], ["runs", "list"], ["runs", "show"], ["runs", "compare"], ["ask"],
    ["report"], ["calls", "list"], ["calls", "show"], ["calls", "stats"], ["calls", "export"], ["prompts", "list"], ["prompts", "show"],
    ["prompts", "diff"], ["trust"], ["package"], ["why", "documents"],
]


def vectors(seed, n):
    chance, names = random.Random(seed), sorted(flatten(load_config()))
    for _ in range(n):
        args = list(chance.choice(COMMANDS))
        for _ in range(chance.randrange(4)):
            setting = f"{chance.choice(names)}{chance.choice(['=', '=', '=', '', '.x='])}{chance.choice(VALUES)}"
            word, value = chance.choice(WORDS), chance.choice(VALUES)
            args += chance.choice([["--set", setting], [word], [value], [word, value]])
        lines = [(chance.choice(names if chance.random() < 0.8 else VALUES), chance.choice(VALUES)) for _ in range(chance.randrange(3))]
        file = "".join(f"{name}: {value}\n" for name, value in lines)
        yield args, file


def fuzzed(seed, n):
    said = []
    for args, file in vectors(seed, n):
        Path("distillery.yaml").write_text(file, "utf-8", "surrogateescape")
        said += filter(None, [slipped(args)])
    return said


@attack(16)
def test_no_line_that_is_typed_ends_in_a_traceback(odd): assert fuzzed(1, 50) == []


@attack(16)
@slow
@pytest.mark.parametrize("seed", range(10))
def test_no_line_of_a_thousand_ends_in_a_traceback(seed, odd): assert fuzzed(f"weekly {seed}", 100) == []


@attack(16)
def test_what_nobody_foresaw_is_two_lines_and_a_report(monkeypatch, here):
    monkeypatch.setenv("SOME_API_KEY", "sk-planted-0123456789")
    monkeypatch.setenv("TMPDIR", str(here))
    monkeypatch.setattr("tempfile.tempdir", None)

    def fail(*_): raise ZeroDivisionError("sk-planted-0123456789 of http://ada:pw@host.invalid \x1b[2J")
    monkeypatch.setattr("distillery.commands.cli.app", fail)
    _, err, code = typed("run")
    assert (code, len(err.splitlines())) == (1, 2)
    report = next(here.glob("distillery-error-*.txt"))
    assert report.stat().st_mode & 0o077 == 0
    for text in (err, report.read_text()):
        assert not [w for w in ("planted", "ada", "\x1b", str(here.parent)) if w in text.replace(str(report), "")]
    assert "test_attack_edge.py" in report.read_text()
    assert "ZeroDivisionError" in err


@attack(16)
@slow
def test_a_gz_of_three_gigabytes_has_an_end(here):
    from distillery.core.files import read_text
    from distillery.reading.row_files import read_rows
    piece = gzip.compress(b'{"question": "a", "answer": "b"}\n' * 2_000_000)
    with open("large.jsonl.gz", "wb") as f:
        for _ in range(50): f.write(piece)
    for read in (read_text, read_rows):
        with pytest.raises(DistilleryError, match="MiB"): read(Path("large.jsonl.gz"))
