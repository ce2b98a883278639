"The command line as a person types it, wherever its module lies: pyproject.toml says where."
import subprocess
import tomllib
from pathlib import Path

from warm import run_code

ROOT = Path(__file__).resolve().parents[1]
MODULE, FUNCTION = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["scripts"]["distillery"].split(":")


def distillery(*args: str, cwd: Path, timeout: float = 900, **env: str) -> subprocess.CompletedProcess:
    "Type `distillery ARGS` in a folder."
    return run_code(f"from {MODULE} import {FUNCTION}; {FUNCTION}()", *args, cwd=cwd, timeout=timeout, env=env)
