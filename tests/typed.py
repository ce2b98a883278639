"The command line as a person types it, wherever its module lies: pyproject.toml says where."
import os
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MODULE, FUNCTION = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["scripts"]["distillery"].split(":")


def distillery(*args: str, cwd: Path, timeout: float = 900, **env: str) -> subprocess.CompletedProcess:
    "Type `distillery ARGS` in a folder."
    command = [sys.executable, "-c", f"from {MODULE} import {FUNCTION}; {FUNCTION}()", *args]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=timeout,
                          env={**os.environ, "HF_HUB_OFFLINE": "1", **env})
