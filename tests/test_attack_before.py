"""Positive controls: attacks that succeeded on the code of before its mend, taken from the history, and fail on today's.
Rows that need two processes or a whole store have theirs in `test_attack_store` (`attack_olden`); row 15 has it in the test itself."""
import io
import json
import os
import subprocess
import sys
import tarfile
from functools import cache
from pathlib import Path

import pytest
from attack_programs import ROWS

HERE = Path(__file__).resolve().parent
BEFORE = {row: "50cd468" if row in (1, 3, 4, 13) else "0d717db" for row in ROWS}  # the last commit before each row's mend


@cache
def edition(commit: str) -> bytes:
    "The package at a commit; empty where this clone has no history."
    return subprocess.run(["git", "archive", commit, "distillery"], cwd=HERE.parent, capture_output=True).stdout


def lost(row: int, package: Path, place: Path) -> set[str]:
    "Names of the attacks of a row that succeed on an edition of the package."
    paths = os.pathsep.join([str(package), str(HERE)])
    done = subprocess.run([sys.executable, str(HERE / "attack_programs.py"), str(row), str(place)], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": paths}, cwd=package)
    assert done.returncode == 0, done.stderr[-2000:]
    return {name for name, how in json.loads(done.stdout).items() if how.startswith("lost")}


@pytest.mark.slow
@pytest.mark.parametrize("row", [pytest.param(r, marks=pytest.mark.attack(row=r)) for r in sorted(ROWS)])
def test_eight_attacks_that_succeeded_before_fail_today(row, tmp_path):
    if not (packed := edition(BEFORE[row])): pytest.skip(f"no history: {BEFORE[row]}")
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar: tar.extractall(tmp_path / "before", filter="data")
    assert len(lost(row, tmp_path / "before", tmp_path / "then")) >= 8
    assert lost(row, HERE.parent, tmp_path / "now") == set()
