"README's commands: each is understood by the program of today; weekly each is typed, in order, in a folder of documents."
import shlex
import signal
import subprocess
import sys
import time
import urllib.request

import pytest
import readme_commands as readme
from distillery.commands.cli import COMMANDS
from distillery.commands.group import load_command

COMMAND = [sys.executable, "-c", "from distillery.commands.cli import main; main()"]
SMALL = "\nsft:\n  epochs: 1\nembedder:\n  tune_steps: 2\n"  # what a first try in a small folder may say


def test_the_commands_are_found():
    told = readme.commands()
    assert len(told) > 25
    assert {c.split()[1] for c in told if c.startswith("distillery ")} >= {"init", "run", "estimate", "preview", "batch", "serve", "tune"}
    assert any(c.startswith("papermill ") for c in told)
    text = "```\ndistillery run --set a=1   # why\n```\nor `distillery why STAGE`, and `x`."
    assert readme.commands(text) == ["distillery run --set a=1", "distillery why STAGE"]
    assert {words for words in readme.ELSEWHERE if not any(words in c for c in told)} == set()
    assert {shown for shown in readme.PLACES if not any(shown in c for c in told)} == set()


@pytest.mark.parametrize("command", [c for c in readme.commands() if c.startswith("distillery ")])
def test_each_is_understood(command):
    words = shlex.split(readme.typed(command, ["a", "b"]))[1:]
    known, name = load_command(words[0], COMMANDS[words[0]].place, "distillery.commands"), words[0]
    rest = words[1:]
    while hasattr(known, "commands") and rest and rest[0] in known.commands: known, rest = known.commands[rest[0]], rest[1:]
    known.make_context(name, list(rest))  # an unknown option or a missing argument ends here


def test_an_option_that_is_gone_is_noticed():
    with pytest.raises(Exception, match="No such option"): test_each_is_understood("distillery run --within-reason 5m")


# Typed, in the order of README: what one leaves behind is what the next works on


@pytest.fixture(scope="module")
def place(tmp_path_factory): return readme.folder(tmp_path_factory.mktemp("readme") / "project")


def type_in(command, place, timeout=1800):
    ids = sorted((p for p in place.glob("runs/*/manifest.json") if not p.parent.is_symlink()), key=lambda p: p.stat().st_mtime)
    words = shlex.split(readme.typed(command, [p.parent.name for p in ids]))
    program = [*COMMAND, *words[1:]] if words[0] == "distillery" else [sys.executable, "-m", *words]
    return subprocess.run(program, cwd=place, capture_output=True, text=True, timeout=timeout)


def serve(command, place):
    "It answers, and Ctrl-C ends it."
    words = [*COMMAND, *shlex.split(command)[1:]]
    with subprocess.Popen(words, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        said, until = "", time.monotonic() + 120
        while "http://" not in said and time.monotonic() < until: said += server.stdout.readline()
        address = next(word for word in said.split() if word.startswith("http://")).rstrip(".,;/").removesuffix("/v1")
        with urllib.request.urlopen(f"{address}/v1/models", timeout=60) as reply: assert reply.status == 200
        server.send_signal(signal.SIGINT)
        assert server.wait(60) in (0, 130)


@pytest.mark.slow
@pytest.mark.parametrize("command", readme.commands())
def test_each_does_what_it_says(place, command):
    if why := readme.elsewhere(command): pytest.skip(why)
    if " serve " in command: return serve(command, place)
    done = type_in(command, place)
    if " init " in command: (place / "distillery.yaml").open("a").write(SMALL)
    allowed = next((codes for words, codes in readme.ENDS.items() if words in command), {0})
    assert done.returncode in allowed, done.stdout[-2000:] + done.stderr[-2000:]
    assert "Traceback" not in done.stderr
