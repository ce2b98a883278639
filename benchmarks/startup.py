"""CPU seconds (user and system) of a process that does next to nothing: `distillery --help`, and a run whose stages are all on the shelf.

    python benchmarks/startup.py                      # help, and what Python, typer, rich and pydantic take by themselves
    python benchmarks/startup.py run ./manuals        # and the second time of that run, in the current folder; the first must have ended
    BESIDE=../before python benchmarks/startup.py     # and the help of another checkout, e.g. of a commit whose seconds a limit was set by

The best of five: on a machine that does something else, time is only ever added.
"""
import os
import resource
import subprocess
import sys
import tomllib
from pathlib import Path

MAIN = "from distillery.commands.cli import main; main()"
TRIES = 5


def cpu_seconds(*args: str) -> float:
    "The least CPU time that a Python process took."
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}  # as a user has it
    taken = []
    for _ in range(TRIES):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *args], check=True, stdout=subprocess.DEVNULL, env=environment)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(taken)


if __name__ == "__main__":
    rows = {"python": ["-c", ""], "typer, rich, pydantic": ["-c", "import typer, rich.console, rich.progress, pydantic"],
            "distillery --help": ["-c", MAIN, "--help"], "distillery run --help": ["-c", MAIN, "run", "--help"]}
    if beside := os.environ.get("BESIDE"):  # what it imports and we do not has to be installed, e.g. with pip --target into that folder
        scripts = tomllib.loads(Path(beside, "pyproject.toml").read_text("utf-8"))["project"]["scripts"]
        module, _, name = scripts["distillery"].partition(":")
        rows[f"--help of {beside}"] = ["-c", f"import sys; sys.path.insert(0, {beside!r}); from {module} import {name}; {name}()", "--help"]
    if sys.argv[1:]: rows["distillery " + " ".join(sys.argv[1:3])] = ["-c", MAIN, *sys.argv[1:]]
    for name, args in rows.items(): print(f"{name:<32}{cpu_seconds(*args):6.2f} s")
