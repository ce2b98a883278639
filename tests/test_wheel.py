"The wheel alone, in an empty folder: it carries its templates, prompts and weights, and runs the whole job."
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = {"machines.md": "# Machines\n\nThe Karvol 74 stands in Hall 3. The Karvol 74 runs at 9,100 sheets per hour.\n",
         "paper.md": "# Paper\n\nThe paper for the Mivel poster is Tanor Gloss. Tanor Gloss weighs 135 grams per square metre.\n"}


@pytest.mark.slow
def test_the_wheel_runs_the_job_in_an_empty_folder(tmp_path):
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path / "dist"), str(ROOT)]
    subprocess.run(command, check=True)
    with zipfile.ZipFile(next((tmp_path / "dist").glob("distillery-*.whl"))) as wheel: wheel.extractall(tmp_path / "site")
    inside = {p.relative_to(tmp_path / "site").as_posix() for p in (tmp_path / "site").rglob("*") if p.is_file()}
    for needed in ("templates/10_quantization.ipynb", "weights/tiny/model.safetensors", "weights/mini/README.md", "data/gold.jsonl",
                   "presets/handbook.yaml", "models/templates.yaml"):
        assert f"distillery/{needed}" in inside
    assert any(name.startswith("distillery/prompts/") for name in inside)
    for name, text in PAGES.items():
        (tmp_path / "docs").mkdir(exist_ok=True)
        (tmp_path / "docs" / name).write_text(text * 3, encoding="utf-8")
    (tmp_path / "empty").mkdir()
    run = ("import distillery, sys; assert distillery.__file__.startswith(sys.path[0]), distillery.__file__; "
           "from distillery.commands.cli import main; main()")
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); {run}", "run", "--docs", "../docs",
         "--set", "sft.epochs=1"],
        cwd=tmp_path / "empty", capture_output=True, text=True, timeout=900,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(tmp_path / "site")})
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "empty/runs/latest/reports/quantization.html").is_file()
