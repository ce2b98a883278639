"The whole job on a small folder of real files, through the command line: every stage for real, one broken file, one hostile document."
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import browser
import pytest
from first_layer import first_layer
from preset_sources import GERMAN, RESUME, write_lines
from warm import COMMAND, run_code

QUICK = ["--set", "sft.epochs=1", "--set", "export.check_positions=200",
         "--set", "embedder.tune_steps=2", "--set", "embedder.base=one-layer"]
ATTACK = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
ROOMS = ["cutter", "folder", "binder", "plotter", "laminator", "stapler", "press", "scanner"]


def distillery(*args: str, cwd: Path, timeout: float = 900, first: str = "") -> subprocess.CompletedProcess:
    return run_code(f"{first}\n{COMMAND}", *args, cwd=cwd, timeout=timeout)


def ran(done: subprocess.CompletedProcess) -> list[str]:
    "Stages that were made in this run."
    return re.findall(r"^\d+/\d+ (\S+) +done ", done.stdout, re.M)


def write_pages(folder: Path) -> None:
    folder.mkdir()
    for i, name in enumerate(ROOMS):
        facts = [f"The {name} stands in room {10 + i} of the main hall.", f"The default speed of the {name} is {400 + i} sheets.",
                 f"The {name} costs {40 + i} euros a day.",
                 f"The {name} is cleaned by the night crew.", f"A full service of the {name} takes {2 + i} hours."]
        (folder / f"{name}.md").write_text(f"# The {name}\n\n" + " ".join(facts) + "\n")
    (folder / "broken.pdf").write_bytes(b"%PDF-1.4\nnot really")
    (folder / "hostile.md").write_text(
        f"# {ATTACK} ../../etc/passwd\n\nThe guillotine stands in room {ATTACK} of the cellar. "
        "The guillotine costs 90 euros a day. The guillotine is run by two people.\n")


@pytest.fixture(scope="module", params=["q4", pytest.param("every variant", marks=pytest.mark.slow)])
def quick(request): return [*QUICK, *(["--set", "export.variants=[fp32,q4]"] if request.param == "q4" else [])]


@pytest.fixture(scope="module")
def finished(quick, tmp_path_factory):
    cwd = tmp_path_factory.mktemp("job")
    write_pages(cwd / "docs")
    first_layer(cwd / "one-layer")
    command = [sys.executable, "-c", COMMAND, "run", "--docs", "docs", *quick]  # as a person types it, in a new interpreter
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=900, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    return cwd, done


def test_it_says_what_it_did(finished):
    _, done = finished
    assert len(ran(done)) == int(re.findall(r"^1/(\d+) ", done.stdout, re.M)[0])
    for words in ("documents", "generate", "sft", "export-q4", "measure-q4", "report", "this time", "Open runs", "skipped broken.pdf"):
        assert words in done.stdout
    assert "Warning" not in done.stderr, done.stderr


def test_the_run_folder_holds_the_contract(finished, quick):
    run = (finished[0] / "runs/latest").resolve()
    for name in ("config.json", "manifest.json", "metrics.json", "pairs.jsonl", "selected.jsonl", "dataset/train.jsonl",
                 "student/adapter/adapter_model.safetensors", "student/merged/model.safetensors",
                 "onnx/fp32/model.onnx", "onnx/q4/model.onnx", "eval/fp32/metrics.json", "eval/q4/failures.jsonl",
                 *(["eval/int8/metrics.json", "eval/uint8/failures.jsonl"] if quick == QUICK else []), "eval/q4/summary.md",
                 "decisions/quantization.json", "reports/quantization.html", "reports/index.html"):
        assert (run / name).is_file(), name
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["files"]["selected.jsonl"]["size"] == (run / "selected.jsonl").stat().st_size
    assert not [p for p in run.rglob("*") if p.suffix in (".bin", ".pt", ".pth", ".pkl")]
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["quantization_comparison"]["full_precision"]["bert_f1"] is None
    assert metrics["reasons"]["quantization_comparison"]


def test_every_evidence_span_is_in_its_page(finished):
    run = (finished[0] / "runs/latest").resolve()
    texts = {d["doc_id"]: d["text"] for d in map(json.loads, (run / "documents.jsonl").read_text("utf-8").splitlines())}
    pairs = [json.loads(line) for line in (run / "selected.jsonl").read_text("utf-8").splitlines()]
    spans = [(p["doc_id"], p["evidence"]) for p in pairs if p["evidence"]]
    assert len(spans) > 15
    assert all(texts[d][e["start"]:e["end"]] == e["text"] for d, e in spans)


@pytest.mark.slow
def test_the_first_pages_are_those_that_are_built_again(finished):
    "Nothing that a page reads is written after it."
    folder = (finished[0] / "runs/latest").resolve() / "reports"
    pages = lambda: {p.name: p.read_bytes() for p in folder.glob("*.html")}
    first = pages()
    again = distillery("report", "all", cwd=finished[0])
    assert again.returncode == 0
    assert "index.html" in again.stdout
    assert [name for name, page in pages().items() if page != first[name]] == []


def test_again_nothing_runs(finished, quick):
    cwd, _ = finished
    again = distillery("run", "--docs", "docs", *quick, cwd=cwd)
    assert again.returncode == 0
    assert ran(again) == []
    assert re.search(r"\d report +cached ", again.stdout)


def test_why_names_a_changed_block_size(finished, quick):
    why = distillery("why", "export", "--docs", "docs", *quick, "--set", "quantization.block_size=64", cwd=finished[0]).stdout
    assert "quantization.block_size: 32 -> 64" in why


@pytest.mark.slow
def test_a_changed_block_size_reruns_what_it_can_reach(finished, quick):
    cwd, _ = finished
    again = distillery("run", "--docs", "docs", *quick, "--set", "quantization.block_size=64", cwd=cwd)
    shrunk = ("int8", "uint8", "q4") if quick == QUICK else ("q4",)
    assert set(ran(again)) == {f"{step}-{v}" for step in ("export", "measure") for v in shrunk} | {"evaluate", "report"}


def test_strict_notices_the_broken_file(finished, quick):
    assert distillery("run", "--docs", "docs", *quick, "--strict", cwd=finished[0]).returncode == 3


def test_ask_and_runs(finished):
    cwd = finished[0]
    assert distillery("ask", "q4", "Where does the cutter stand?", cwd=cwd).returncode == 0
    assert "one of: fp32" in distillery("ask", "q5", "Where?", cwd=cwd).stderr
    assert "extractive" in distillery("runs", "list", cwd=cwd).stdout
    shown = distillery("runs", "show", cwd=cwd).stdout
    assert re.search("PASS|FAIL|INCONCLUSIVE", shown), shown


@pytest.mark.browser
def test_the_hostile_title_is_text(finished):
    index = (finished[0] / "runs/latest").resolve() / "reports/index.html"
    seen = browser.dom(index)
    assert "etc/passwd" in seen
    assert "owned" not in re.search(r"<title>(.*?)</title>", seen)[1]
    assert not re.search(r"<script|<img[^>]+onerror", seen)


PLANT = """
import numpy, onnx
from distillery.exporting import export
sound = export.quantize_weights
def worse(file, eight, symmetric, how):
    sound(file, eight, symmetric, how)
    if not symmetric: return  # int8 alone lies around zero
    model = onnx.load(file)
    for t in model.graph.initializer:
        if "layers.1.mlp" in t.name and "scale" in t.name:
            t.CopyFrom(onnx.numpy_helper.from_array(0 * onnx.numpy_helper.to_array(t), t.name))
    onnx.save(model, file)
export.quantize_weights = worse
"""


@pytest.mark.slow
def test_twelve_german_pairs_end_with_their_page(tmp_path):
    "Shipped settings throughout; so few answers decide nothing, and the page says so."
    cwd = tmp_path
    write_lines(cwd / "qa.jsonl", GERMAN)
    done = distillery("run", "--pairs", "qa.jsonl", "--set", "workbook.runs_dir=german", cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    run = cwd / "german/latest"
    assert json.loads((run / "counts.json").read_text())["pairs_kept"] == len(GERMAN)
    assert json.loads((run / "decisions/quantization.json").read_text())["verdict"].startswith("undecided")
    assert "Ship fp32 for now" in (run / "reports/quantization.html").read_text("utf-8")


@pytest.fixture(scope="module")
def worse(tmp_path_factory):
    "A resume under its preset, with a layer of int8's scales at zero: the run ends."
    cwd, inside = tmp_path_factory.mktemp("worse"), ["--set", "workbook.runs_dir=worse"]
    (cwd / "resume.md").write_text(RESUME)
    done = distillery("run", "resume.md", "--preset", "resume", "--teacher", "builtin:extractive", *inside, cwd=cwd, first=PLANT)
    assert done.returncode == 0, done.stdout + done.stderr
    return (cwd / "worse/latest").resolve()


@pytest.mark.slow
def test_a_worse_small_form_is_reported_and_gated_and_takeaway_1_answered(worse):
    run = worse
    gates = [json.loads(line) for line in (run / "eval/gates.jsonl").read_text().splitlines()]
    failed = {(g["variant"], g["name"]) for g in gates if g["state"] == "FAIL"}
    assert ("int8", "same_top1_min") in failed
    assert json.loads((run / "onnx/int8/check.json").read_text())["ok"] is False
    card = json.loads((run / "decisions/quantization.json").read_text())
    assert not card["sentence"].startswith("Ship int8")
    assert "int8 has drifted beyond its limits" in card["sentence"] or "ALARM: int8" in card["sentence"]
    page = (run / "reports/quantization.html").read_text("utf-8")
    for asked in ("quality drop", "certain difficulty levels", "memory saving worth"): assert asked in page


@pytest.mark.slow
def test_a_worse_small_form_is_not_packed(worse, tmp_path):
    cwd = worse.parents[1]
    (cwd / "pack.yaml").write_text("workbook.runs_dir: worse\n")
    refused = distillery("package", "int8", "--config", "pack.yaml", "--out", str(tmp_path / "box"), cwd=cwd)
    assert refused.returncode == 1
    assert "int8 is not recommended" in refused.stderr
    assert "--anyway" in refused.stderr
    packed = distillery("package", "int8", "--anyway", "--config", "pack.yaml", "--out", str(tmp_path / "box"), cwd=cwd)
    assert packed.returncode == 0, packed.stderr
    assert "although it misses its limits: " in (tmp_path / "box/README.md").read_text("utf-8")


def test_a_full_disk_loses_nothing(finished, tmp_path):
    cwd = finished[0]
    if os.geteuid() != 0 or shutil.which("mount") is None: pytest.skip("mounting a small file system needs root")
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)], capture_output=True).returncode:
        pytest.skip("no tmpfs to fill here")
    begin = ("from distillery.workbook import checks, needs; needs.LEAST_GIB = 0; "
             "checks.check_room = lambda *a: iter(())")  # a disk that is full before the run stops it earlier
    try:
        done = distillery("run", "--docs", str(cwd / "docs"), *QUICK, "--set", f"workbook.cache_dir={small}/cache",
                          "--set", f"workbook.runs_dir={small}/runs", cwd=cwd, first=begin)
        assert done.returncode == 1
        assert "Fix: free some" in done.stderr
        assert "Traceback" not in done.stderr
        assert list((small / "cache/artifacts").glob("documents/*/artifact.json"))
    finally: subprocess.run(["umount", str(small)], check=True)
