"Batches: what varies is checked before anything starts, a kill loses no finished notebook, and the index compares."
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from warm import COMMAND, run_code

from distillery.core.errors import DistilleryError
from distillery.pages.report import GRAMMARS, notebook_library, pipeline
from distillery.workbook.batch import parameter_sets, read_batch

SLEEPER = ["rate: float = 0.1  # seconds\nfail: bool = False  # whether to stop",
           "import time\nfrom pathlib import Path\nwith Path('asked.txt').open('a') as f: f.write(f'{rate}\\n')\ntime.sleep(rate)",
           "assert not fail, 'told to stop <b>here</b>'\nf'slept {rate}'"]

KERNEL = {"name": "python3", "display_name": "python3", "language": "python"}


def write_notebook(path: Path, cells=SLEEPER) -> None:
    nb = new_notebook(cells=[new_code_cell(c) for c in cells], metadata={"kernelspec": KERNEL})
    nb.cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(nb, path)


@pytest.fixture
def folder(tmp_path):
    write_notebook(tmp_path / "sleep.ipynb")
    return tmp_path


def grid(folder: Path, text: str) -> Path:
    (folder / "grid.yaml").write_text(f"notebook: sleep.ipynb\n{text}\n")
    return folder / "grid.yaml"


def distillery(*args, cwd): return run_code(COMMAND, *args, cwd=cwd)


def test_sets_are_the_product_and_the_list_and_none_comes_twice():
    assert parameter_sets({"x": 1}, {}, []) == [{"x": 1}]
    assert parameter_sets({"x": 1}, {"y": [1, 2]}, [{"y": 2}, {"x": 2}]) == [{"x": 1, "y": 1}, {"x": 1, "y": 2}, {"x": 2}]
    assert parameter_sets({}, {}, [{"y": 2}]) == [{"y": 2}]


@pytest.mark.parametrize(("text", "words"), [
    ("gird: {rate: [1.0]}", "did you mean grid"), ("grid: {rate: 1.0}", "not a list"), ("grid: {rats: [1.0]}", "did you mean rate"),
    ("grid: {rate: [1.0, fast]}", "rate is str, not float"), ("runs: [1]", "not a set of parameters"), ("name: ../up", "cannot be called"),
    ("base: [1]", "base is not a dict"), ("grid: {rate: []}", "not a list"), ("runs: {rate: 1.0}", "runs is not a list")])
def test_a_slip_is_named_before_anything_starts(folder, text, words):
    with pytest.raises(DistilleryError, match=words): read_batch(grid(folder, text))


def test_settings_travel_to_the_pipeline_and_are_checked(tmp_path):
    (tmp_path / "g.yaml").write_text("notebook: pipeline\nbase: {until: documents, lora.alpha: 16}\ngrid: {lora.r: [8, 16]}\n")
    found = read_batch(tmp_path / "g.yaml")
    assert found.notebook == pipeline()
    assert found.varied() == ["lora.r"]
    assert found.asked[1] == {"until": "documents", "settings": {"lora.alpha": 16, "lora.r": 16}}
    (tmp_path / "g.yaml").write_text("notebook: pipeline\ngrid: {lora.rank: [8, 16]}\n")
    with pytest.raises(DistilleryError, match=r"lora\.r"): read_batch(tmp_path / "g.yaml")


def test_workers_load_notebooks_at_the_same_time(monkeypatch):
    "What is hidden while a library loads is hidden once, whoever else is loading."
    monkeypatch.delitem(sys.modules, GRAMMARS, raising=False)
    monkeypatch.setattr("distillery.pages.report.need", lambda *a: time.sleep(0.01) or sys.modules[GRAMMARS])
    with ThreadPoolExecutor(8) as pool: assert list(pool.map(notebook_library, ["papermill"] * 40)) == [None] * 40
    assert GRAMMARS not in sys.modules


@pytest.mark.slow
def test_a_killed_batch_goes_on_and_does_nothing_twice(folder):
    grid(folder, "grid: {rate: [0.01, 0.02, 0.03, 0.04, 3.0, 0.06]}")
    code = [sys.executable, "-c", COMMAND, "batch", "grid.yaml"]
    with subprocess.Popen(code, cwd=folder, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as first:
        until = time.monotonic() + 120
        asked = lambda: (folder / "asked.txt").read_text() if (folder / "asked.txt").is_file() else ""
        while "3.0" not in asked() and time.monotonic() < until: time.sleep(0.05)
        os.killpg(first.pid, signal.SIGKILL)
    done = {p.parent.name: p.stat().st_mtime_ns for p in folder.glob("reports/batch/grid/*/done.json")}
    assert len(done) == 4
    second = distillery("batch", "grid.yaml", cwd=folder)
    assert second.returncode == 0, second.stderr
    assert second.stdout.count(" kept in ") == 4
    assert second.stdout.count(" done in ") == 2
    assert {p.parent.name: p.stat().st_mtime_ns for p in folder.glob("reports/batch/grid/*/done.json")}.items() >= done.items()
    assert sorted(map(float, (folder / "asked.txt").read_text().split())) == [0.01, 0.02, 0.03, 0.04, 0.06, 3.0, 3.0]
    for kind in ("sleep.ipynb", "sleep.html"): assert len(list(folder.glob(f"reports/batch/grid/*/{kind}"))) == 6
    kept = nbformat.read(next(folder.glob("reports/batch/grid/*/sleep.ipynb")), 4)
    assert kept.metadata.papermill.parameters.rate in (0.01, 0.02, 0.03, 0.04, 0.06, 3.0)
    index = (folder / "reports/batch/grid/index.html").read_text()
    assert "6 parameter sets" in index
    assert "slept 0.06" in index


def test_one_that_stops_is_kept_and_tried_again(folder):
    grid(folder, "runs: [{rate: 0.01}, {rate: 0.02, fail: true}]")
    first = distillery("batch", "grid.yaml", "--workers", "2", cwd=folder)
    assert first.returncode == 1
    assert "1 of 2 notebooks failed" in first.stderr
    outcomes = json.loads((folder / "reports/batch/grid/outcomes.json").read_text())
    assert [o["state"] for o in outcomes] == ["done", "failed"]
    assert "told to stop" in (folder / f"reports/batch/grid/{outcomes[1]['id']}/sleep.ipynb").read_text()
    index = (folder / "reports/batch/grid/index.html").read_text()
    assert "&lt;b&gt;here" in index
    assert "<b>here" not in index
    write_notebook(folder / "sleep.ipynb", [*SLEEPER[:2], "f'mended {rate}'"])
    second = distillery("batch", "grid.yaml", cwd=folder)
    assert second.returncode == 0
    assert second.stdout.count(" done in ") == 2  # another notebook: both are made again


@pytest.mark.slow
def test_reports_and_the_pipeline_run_from_anywhere(tmp_path):
    (tmp_path / "g.yaml").write_text("notebook: temperature\n")
    assert distillery("batch", "g.yaml", cwd=tmp_path).returncode == 0
    assert json.loads((tmp_path / "reports/batch/g/outcomes.json").read_text())[0]["finding"]
