"""Attacks as a user's hands do them, on whatever edition of the package is on the path: how each ended, as JSON.
`python tests/attack_programs.py ROW FOLDER`; each attack has a process, a folder, and limits of time and memory of its own."""
import contextlib
import importlib.util
import io
import json
import logging
import os
import resource
import shutil
import signal
import socket
import sys
import threading
import time
import types
import warnings
from collections.abc import Callable
from pathlib import Path

import attack_inputs as given
from attack_server import hello, http, served, status, talk

SECONDS, MIB = 6, 1500  # of CPU and of further memory
ROWS: dict[int, dict[str, Callable[[], object]]] = {}


class Lost(Exception):
    "The attack succeeded."


def row(number: int, inputs):
    "One attack a named input."
    named = inputs.items() if isinstance(inputs, dict) else ((ascii(x)[:60], x) for x in inputs)
    def add(work):
        ROWS.setdefault(number, {}).update({name: (lambda x=x: work(x)) for name, x in named})
        return work
    return add


def of(*names: str):
    "The first module and name that this edition has."
    for name in names:
        module, _, attribute = name.rpartition(":")
        with contextlib.suppress(ModuleNotFoundError, AttributeError):
            return getattr(importlib.import_module(f"distillery.{module}"), attribute)
    raise AttributeError(names)


def ended(work: Callable[[], object]) -> str:
    "How an attack ended: what a person is told is no loss."
    from distillery.core.errors import DistilleryError
    try: work()
    except DistilleryError: return "refused"
    except Lost as e: return f"lost: {e}"
    except SystemExit: return "survived"
    except BaseException as e: return f"lost: {type(e).__name__}: {str(e)[:80]}"
    return "survived"


def tried(work: Callable[[], object], folder: Path) -> str:
    "Run an attack in a fork with limits."
    folder.mkdir(parents=True)
    there, here = os.pipe()
    if not (pid := os.fork()):
        os.chdir(folder)
        for name in ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"): os.environ[name] = str(folder.parent / "home")
        for name in ("DISTILLERY_TRUST", "OPENAI_BASE_URL", "OPENAI_API_KEY", "PYTHONSAFEPATH"): os.environ.pop(name, None)
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + MIB * 2**20,) * 2)
        used = time.process_time()
        resource.setrlimit(resource.RLIMIT_CPU, (int(used) + SECONDS,) * 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(1, 2)
        sys.setrecursionlimit(1000)
        os.write(here, ended(work).encode()[:4000])
        os._exit(0)
    os.close(here)
    until, said = time.monotonic() + 30 * SECONDS, b""  # where it only sleeps
    os.set_blocking(there, False)
    while time.monotonic() < until:
        if os.waitpid(pid, os.WNOHANG)[0]: break
        time.sleep(0.01)
    else:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    with contextlib.suppress(BlockingIOError): said = os.read(there, 4000)
    os.close(there)
    shutil.rmtree(folder, ignore_errors=True)
    return said.decode() or "lost: it does not end"


def typed(*args: str) -> str:
    "What a command prints; a traceback is an error like any other."
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out), contextlib.suppress(SystemExit):
        of("commands.cli:main", "workbook.cli:main")(list(args))
    if "not foreseen" in out.getvalue(): raise Lost(out.getvalue()[:200])
    return out.getvalue()


def small_run(**words: str) -> Path:
    "A run folder, as far as a list of runs looks."
    run = Path("runs/1a2b3c4d")
    (run / "onnx/q4").mkdir(parents=True)
    stages = {words.get("stage", "documents"): {"digest": "a", "cached": False, "seconds": 1.0}}
    (run / "manifest.json").write_text(json.dumps({"ended": 1, "stages": stages, **words}))
    (run / "provenance.json").write_text(json.dumps({"run": "1a2b3c4d", "source": "documents", "teacher": "builtin:tiny", **words}))
    (run / "config.json").write_text("{}")
    of("core.store:RunFolder")(run).make_latest()
    return run


# 1


@row(1, given.REPLIES)
def reply(raw):
    "An answer or a reason; the next run asks no more than once more."
    from teachers_server import Scripted
    teacher, journal, request = of("teachers.openai:OpenAITeacher"), of("teachers.journal:Journal"), of("teachers.protocol:user_request")
    with Scripted(lambda *_: (200, {"Content-Type": "text/event-stream"} if raw.startswith(b"data") else {}, raw)) as server:
        for _ in range(2):
            told = journal(Path("calls.sqlite")).ask(teacher(server.url, "m", max_retries=0), [request("a", "How often?")])["a"]
        json.dumps([told.text, told.error, told.prompt_tokens]).encode()
        if told.ok and not isinstance(told.text, str): raise Lost("an answer that is no text")
        if told.ok and told.prompt_tokens not in (None, 30, 4): raise Lost(f"{told.prompt_tokens!r:.40} tokens")


@row(1, given.FORMS)
def form(text):
    from pydantic import BaseModel
    Form = type("Form", (BaseModel,), {"__annotations__": {"a": int}})
    of("teachers.structured:read_form")(of("teachers.protocol:ChatResult")("k", text, "stop", 1, 1, 1.0), Form)


# 3


@row(3, given.PROSE)
def prose(text):
    document = of("core.records:Document")(doc_id="d", path="a.txt", title="A", text=text, mime="text/plain", digest="d")
    list(of("pairs.chunk:chunk_documents")([document]))


# 4


@row(4, given.DOCUMENTS)
def document(text):
    "The good file beside it is read."
    name = next(n for n, t in given.DOCUMENTS.items() if t is text)
    Path("docs").mkdir()
    Path("docs", name).write_bytes(text if isinstance(text, bytes) else text.encode())
    Path("docs/zz.md").write_text("# Lid\n\nThe lid is closed.")
    if "zz.md" not in [d.path for d in of("pairs.documents:read_documents")(Path("docs")).documents]: raise Lost("the good file is missing")


# 5


def filled(files) -> Path:
    for name, content in files.items():
        Path("model", name).parent.mkdir(parents=True, exist_ok=True)
        Path("model", name).write_text(content if isinstance(content, str) else json.dumps(content))
    return Path("model")


@row(5, {f"folder {i}": f for i, f in enumerate(given.FOLDERS)})
def folder(files):
    "No library is handed the folder."
    for load in (lambda: of("teachers.local:model_folder")(filled(files)), lambda: of("retrieval.embed:model_dir")(str(filled(files)))):
        with contextlib.suppress(of("core.errors:DistilleryError")):
            load()
            raise Lost("the folder is handed to a library")


@row(5, given.TEMPLATES)
def template(source):
    made = of("wire.template:BoundedTemplate", "teachers.chat:compile_template")(source)
    said = made.render(messages=[{"role": "user", "content": "word " * 50}] * 200, add_generation_prompt=True)
    if len(said) > 10**7: raise Lost(f"{len(said):,} characters")


# 6


@row(6, given.SHADOWS)
def shadow(name):
    Path(f"{name}.py").write_text(f"open({str(Path('TAKEN').resolve())!r}, 'w').close()\nraise SystemExit(3)")
    Path("out").mkdir()
    with contextlib.suppress(of("core.errors:DistilleryError")): of("evaluation.measure:_run_child")("q4", Path("out"), 1, None)
    if Path("TAKEN").exists(): raise Lost("a file of the folder ran")


# 7


@row(7, [*given.PLACES, *given.MAPS, *given.LISTS])
def login(setting):
    cfg, names = of("core.config:load_config"), of("core.config:flatten")
    value = [given.LOGIN] if setting in given.LISTS else given.LOGIN
    if setting in given.MAPS: value = {given.LOGIN: [1.0, 2.0] if setting == "budget.prices" else 2}
    kept = cfg(overrides={setting: value})
    if "pl4nted" in of("core.config:to_yaml")(kept) + json.dumps(names(kept)): raise Lost("the password is in the settings of the run")


@row(7, {"package": "package", "page": "page"})
def host(where):
    address = given.LOGIN.replace("ada:pl4nted-p%40ss@", "")
    run = small_run(teacher=address)
    (run / "config.json").write_text(json.dumps({"teacher.model": address, "student.base": "builtin:mini"}))
    (run / "counts.json").write_text(json.dumps({"documents": 3, "training_rows": 9}))
    said = repr(of("commands.package:story_of")(run, "q4")) if where == "package" else (
        of("pages.figures:write_page")(run / "reports", "index", f"<p>{address}</p>").read_text())
    if "gpu7" in said: raise Lost("the host is told")


@row(7, given.ECHOES)
def echo(raw):
    from teachers_server import Scripted
    os.environ["OPENAI_API_KEY"] = given.KEY
    teacher, journal, request = of("teachers.openai:OpenAITeacher"), of("teachers.journal:Journal"), of("teachers.protocol:user_request")
    with Scripted(lambda *_: (200, {"Content-Type": "text/event-stream"} if raw.startswith(b"data") else {}, raw)) as server:
        told = journal(Path("calls.sqlite")).ask(teacher(server.url, "m", max_retries=0), [request("a", "How often?")])["a"]
    if given.KEY in repr(told): raise Lost("the key is kept")


# 8


@row(8, given.FILES)
def settings_file(teacher):
    import yaml
    for name in ("OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY"): os.environ[name] = "sk-planted-0123456789"
    socket.getaddrinfo = lambda *_, **__: [][0]
    Path("distillery.yaml").write_text(yaml.safe_dump({"teacher": teacher}))
    cfg = of("commands.options:settings")(None, None, None)
    of("teachers.open:open_teacher")(cfg.teacher.model, cfg)
    raise Lost("the key is about to be sent")


# 11


@row(11, given.PAYLOADS)
def words(payload):
    small_run(name=payload, teacher=payload, source=payload, stage=payload)
    for command in (["runs", "list"], ["runs", "show"], ["ask", payload, "x"], ["config", "explain", payload], ["report", payload],
                    ["why", "documents", "--docs", payload], ["config", "show", "-c", f"{payload}.yaml"], ["prompts", "show", payload],
                    ["config", "show", "--preset", payload], ["why", "documents", "--teacher", f"onnx:{payload}"]):
        if payload in typed(*command).replace("\r\n", "\n"): raise Lost(f"{' '.join(command[:2])} shows it")


# 12


def answered(raw) -> int | str:
    logging.disable()
    with served() as (port, _):
        said = status(talk(port, raw, seconds=4))
        if status(talk(port, http(hello()))) != 200: raise Lost("nobody is answered any more")
        return said


@row(12, ["rebound.invalid", "rebound.invalid:8080", "127.0.0.1.rebound.invalid", "localhost.rebound.invalid", "RebounD.invalid.",
          "localhost:80@rebound.invalid", "xn--lcalhost-2ib", "[rebound.invalid]"])
def rebound(name):
    if answered(http(hello(), name)) == 200: raise Lost("a page of another site is answered")


@row(12, {"stop": hello(stop="x" * 900_000), "stops": hello(stop=["x" * 300]), "waits": b""})
def odd_request(body):
    said = answered(http(body) if body else b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n")
    if said == 200: raise Lost("it is computed")
    if said == "closed": raise Lost("it is waited for")


# 13


@row(13, given.ENDLESS)
def endless(piece):
    "A server that never ends; a hundred megabytes are a loss."
    sent, most = [0], 100 * 2**20
    listening = socket.create_server(("127.0.0.1", 0))
    def serve():
        while True:
            s, _ = listening.accept()
            with contextlib.suppress(OSError):
                s.recv(65536)
                kind = "text/event-stream" if piece.startswith((b"data", b":")) else "application/json"
                s.sendall(f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nConnection: close\r\n\r\n".encode())
                while sent[0] < most:
                    s.sendall(piece)
                    sent[0] += len(piece)
            s.close()
    threading.Thread(target=serve, daemon=True).start()
    teacher = of("teachers.openai:OpenAITeacher")(f"http://127.0.0.1:{listening.getsockname()[1]}/v1", "m", max_retries=0)
    of("teachers.journal:Journal")(Path("calls.sqlite")).ask(teacher, [of("teachers.protocol:user_request")("a", "How often?")])
    if sent[0] >= most: raise Lost(f"{sent[0] >> 20} MiB of one reply")


# 14


MODEL = ("model.onnx", "genai_config.json", "tokenizer.json")


@row(14, given.STRANGE)
def variant(name):
    "No file of a model is opened by a path, and nothing is written."
    run, opened = small_run(), []
    for place in (run / "onnx/q4", run / "onnx/fp32", run / "onnx", run, run / "x", Path("outside/model")):
        place.mkdir(parents=True, exist_ok=True)
        for file in MODEL: (place / file).write_text("{}")
    before = sorted(Path().rglob("*"))
    sys.addaudithook(lambda event, said: opened.append(str(said[0])) if event == "open" and said else None)
    for command in (["ask", name, "Who?"], ["package", name], ["serve", name], ["evaluate", "--variant", name]): typed(*command)
    if read := [o for o in opened if o.endswith(MODEL)]: raise Lost(f"{read[0]} is read")
    if made := [p for p in sorted(Path().rglob("*")) if p not in before and ".distillery" not in p.parts]: raise Lost(f"wrote {made[0]}")


# 16


@row(16, {" ".join(s)[:50]: s for s in given.SLIPS})
def slip(args):
    Path("folder").mkdir()
    Path("binary").write_bytes(bytes(range(256)) * 10)
    Path("deep.yaml").write_text(f"docs: {given.DEEP}")
    Path("deep.jsonl").write_text(f"{given.DEEP}\n")
    Path("aliases.yaml").write_text("a: &a [1, 1]\nb: &b [*a, *a]\nc: [*b, *b]\n")
    typed(*args)


def without_purgatory() -> None:
    "The breaker of the oldest edition is no longer installed: one that never opens stands in for it."
    class Open:
        context = types.SimpleNamespace(state="closed", opened_at=None)
        async def __aenter__(self): pass
        async def __aexit__(self, *_): pass

    class Factory:
        def __init__(self, *_, **__): pass
        async def get_breaker(self, _): return Open()

    for name in ("purgatory", "purgatory.domain", "purgatory.domain.model"): sys.modules.setdefault(name, types.ModuleType(name))
    sys.modules["purgatory"].AsyncCircuitBreakerFactory = Factory
    sys.modules["purgatory.domain.model"].OpenedState = type("OpenedState", (Exception,), {})


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    number, place = int(sys.argv[1]), Path(sys.argv[2]).resolve()
    if not importlib.util.find_spec("purgatory"): without_purgatory()
    for module in ("commands.cli", "teachers.openai", "teachers.journal", "pairs.chunk", "pairs.documents", "teachers.structured"):
        with contextlib.suppress(ImportError): importlib.import_module(f"distillery.{module}")
    print(json.dumps({name: tried(work, place / f"{number}-{i}") for i, (name, work) in enumerate(ROWS[number].items())}, indent=1))
