"""Keep a small run that is asked every question: its decisions and its folder. `python tests/keep_decisions.py`, minutes on one core.

test_same_decisions makes the run again and compares to the digit; test_old_run reads the kept folder through the commands. Trained weights
differ from one processor to another, so the numbers hold on the one they were kept on. To compare two versions elsewhere, run this in a
checkout of the older one and take its files along.
"""
import json
import platform
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from typed import distillery

KEPT, FOLDER = Path(__file__).parent / "data/decisions", Path(__file__).parent / "data/run_before"
LEFT_OUT = ("reports", "student", "model.onnx*", "tokenizer*", "genai_config.json", "chat_template.jinja", "*.safetensors", "*.log",
            "pairs.jsonl", "failures.jsonl", "summary.md")  # pages, weights, and what no command reads
TIMED = ("parallel", "memory")  # their verdict rests on how long trials took


def machine(run: Path) -> dict[str, str]:
    "What numbers may depend on beside the code: the processor, and the packages that compute."
    info = Path("/proc/cpuinfo")
    told = dict(re.findall(r"(.+?)\s*: (.*)", info.read_text().split("\n\n")[0])) if info.is_file() else {}
    model = ", ".join(told[name] for name in ("model name", "cpu family", "model", "stepping") if name in told) or platform.processor()
    versions = json.loads((run / "provenance.json").read_text("utf-8"))["versions"]
    return {"processor": model, "packages": versions.partition(", ")[2]}


def make_run(place: Path) -> Path:
    "Make the run in a folder of its own, on one core; its folder."
    asked = ("--preset", "handbook", "--config", str(KEPT / "settings.yaml"), "--name", "before")
    done = distillery("run", *asked, cwd=place, timeout=3600, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stdout + done.stderr
    return (place / "runs/latest").resolve()


def cards(run: Path) -> dict[str, dict[str, Any]]:
    "The decision cards of a run, by name."
    found = [json.loads(path.read_text("utf-8")) for path in sorted(run.glob("decisions/*.json"))]
    return {card["name"]: card for card in found}


def keep_folder(run: Path, work: Path) -> None:
    "Keep a run folder without its pages and weights; a toy student in the layout of today's exports stands for the variants."
    from distillery.exporting.export import build_onnx
    from distillery.training.toy import toy_base

    shutil.rmtree(FOLDER, ignore_errors=True)
    left_out = shutil.ignore_patterns(*LEFT_OUT)
    shutil.copytree(run, FOLDER, ignore=left_out)
    for path in FOLDER.rglob("*"): path.chmod(0o755 if path.is_dir() else 0o644)
    series = (run / "kpis.jsonl").read_text("utf-8").splitlines(keepends=True)
    (FOLDER / "kpis.jsonl").write_text("".join(series[::4]), "utf-8")  # a quarter of it draws the same lines
    build_onnx(toy_base(work), work / "q4", "q4")
    shutil.copytree(work / "q4", FOLDER / "onnx/q4", dirs_exist_ok=True)


def main() -> None:
    with tempfile.TemporaryDirectory() as work:
        run = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else make_run(Path(work))  # or a finished run of these settings
        kept = {"machine": machine(run), "cards": cards(run)}
        (KEPT / "before.json").write_text(json.dumps(kept, indent=1, sort_keys=True, ensure_ascii=False) + "\n", "utf-8")
        keep_folder(run, Path(work) / "toy")


if __name__ == "__main__": main()
