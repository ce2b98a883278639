"Every shipped preset, as the folder lists them, goes from a small source to its pages under shipped settings; hub names stand for twins."
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from preset_sources import GERMAN, RESUME, TWIN_OF, write_articles, write_hub, write_lines
from test_run import write_pages
from warm import COMMAND

from distillery.core.config import load_config

PRESETS = sorted(p.stem for p in (Path(__file__).resolve().parents[1] / "distillery/presets").glob("*.yaml"))
SOURCES = {"handbook": [], "qa-import": ["--pairs", "qa.jsonl"], "resume": ["resume.md"],
           "articles-decoder": ["--articles", "articles.jsonl"], "articles-finetune": ["--articles", "articles.jsonl"]}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    cwd = tmp_path_factory.mktemp("presets")
    write_pages(cwd / "docs")
    write_lines(cwd / "qa.jsonl", GERMAN)
    write_articles(cwd / "articles.jsonl")
    (cwd / "resume.md").write_text(RESUME)
    write_hub(cwd / "hub")
    return cwd


def test_every_preset_has_weights_that_can_stand_for_its_models():
    named = {m for p in PRESETS for m in (load_config(preset=p).student.base, load_config(preset=p).context.embedder)}
    assert {m for m in named if not m.startswith("builtin:")} == set(TWIN_OF)
    assert len(PRESETS) >= 14


EVERY_TIME = {"qa-import", "resume", "tinyllama-1.1b"}  # pairs of others, one person's page, a twin of a real base; the rest weekly


@pytest.mark.parametrize("preset", [p if p in EVERY_TIME else pytest.param(p, marks=pytest.mark.slow) for p in PRESETS])
def test_a_preset_ends_with_pages(place, preset):
    typed = [*SOURCES.get(preset, ["docs"]), "--preset", preset, "--set", f"workbook.runs_dir=runs-{preset}"]
    command = [sys.executable, "-c", COMMAND, "run", *typed]  # a new interpreter: the hub's library reads its cache when it is loaded
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(place / "hub")}
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=3600, env=env)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    run = place / f"runs-{preset}/latest"
    asked = "context_length" if preset.startswith("articles") else "quantization"
    for page in ("index", asked): assert (run / f"reports/{page}.html").is_file()
    used, said = json.loads((run / "config.json").read_text()), load_config(preset=preset)
    assert used["student.base"] == said.student.base
    assert used["lora.r"] == said.lora.r
    if asked == "quantization": assert len((run / "eval/gates.jsonl").read_text().splitlines()) > 20
