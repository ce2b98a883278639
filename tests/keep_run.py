"""Keep the latest built-in run: its pages, executed notebooks and pictures in reports/, and in tests/data/run
what the report templates need to be tested without a run. With `small`: the pages of the latest run, in reports/small."""
import shutil
import sys
from pathlib import Path

import browser
import screens

from distillery.questions.all import all_questions

ROOT = Path(__file__).resolve().parents[1]
KEPT = ["provenance.json", "config.json", "counts.json", "metrics.json", "skipped.json", "rejected.jsonl", "dropped.jsonl",
        "selected.jsonl", "chunks.jsonl", "documents.jsonl", "ledger.json", "decisions/*.json",
        *(pattern for q in all_questions() for pattern in q.kept)]

def keep_pages(run: Path, pages: Path) -> None:
    "The pages of a run and the notebooks that made them, in place of those that are there."
    pages.mkdir(exist_ok=True)
    for path in run.glob("reports/*"):
        if path.suffix in (".html", ".ipynb"): shutil.copyfile(path, pages / path.name)
    for old in pages.glob("*.html"):  # of a question that this run was not asked
        if old.name != "bases.html" and not (run / "reports" / old.name).exists(): old.unlink()


def keep_results(run: Path, small: Path) -> None:
    "What templates read of a run."
    shutil.rmtree(small, ignore_errors=True)
    for pattern in KEPT:
        for path in run.glob(pattern):
            target = small / path.relative_to(run)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


def main() -> None:
    run, pages = (ROOT / "runs/latest").resolve(), ROOT / "reports"
    if sys.argv[1:] == ["small"]: return keep_pages(run, pages / "small")
    keep_results(run, ROOT / "tests/data/run")
    keep_pages(run, pages)
    browser.picture(pages / "index.html", pages / "card.png", "1100,760")
    for name in screens.SCREENS: (pages / f"terminal-{name}.svg").write_text(screens.picture(name), "utf-8")


if __name__ == "__main__": main()
