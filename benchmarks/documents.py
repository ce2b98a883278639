"""Sentences that a person counts in real documents, and how many of them a reader gives back whole: ours beside markitdown's.

    python benchmarks/documents.py                        # markitdown is taken where it is installed, here or named by MARKITDOWN
    MARKITDOWN=/some/venv/bin/markitdown python benchmarks/documents.py

`tests/data/hand_counted.json` holds what was counted on three files of each kind: headings, rows (of tables, and lines of code) and
sentences, each as its first and last words and their number. Whole: a heading, row or sentence of the output has the same words.
Noise: one of the output, of two words or more, that nobody counted. Both outputs are cut by the same splitter, and markitdown's Markdown
is read as Markdown first, so that its marks cost it nothing.
"""
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections import defaultdict
from pathlib import Path

from distillery.core.sentences import split_sentences
from distillery.pairs.documents import read_document
from distillery.reading.markdown import markdown_to_text

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
COUNTED = json.loads((ROOT / "tests" / "data" / "hand_counted.json").read_text("utf-8"))
KINDS = ("sentences", "headings", "rows")


def short(text: str) -> str:
    "A unit as it stands in the file of counts."
    words = re.findall(r"\w+", text.casefold())
    return " ".join(words) if len(words) <= 5 else f"{' '.join(words[:3])} … {' '.join(words[-2:])} ({len(words)})"


def units(text: str) -> dict[str, set[str]]:
    "Headings, and everything else, of a text in the plain shape."
    found: dict[str, set[str]] = {"headings": {short(m[1]) for m in re.finditer(r"^#{1,6} (.+)$", text, re.M)}}
    found["others"] = {short(text[a:b]) for a, b in split_sentences(text)} - {""}
    return found


def score(text: str, counted: dict[str, list[str]]) -> dict[str, int]:
    "How many of the counted units are there whole, and how many others."
    found = units(text)
    there = {kind: sum(unit in found["headings" if kind == "headings" else "others"] for unit in set(counted[kind])) for kind in KINDS}
    known = {unit for kind in KINDS for unit in counted[kind]}
    return there | {"noise": sum(" " in unit and unit not in known for unit in found["headings"] | found["others"])}


def markitdown() -> str | None:
    "The command, where it is installed."
    beside = Path(sys.executable).with_name("markitdown")
    return os.environ.get("MARKITDOWN") or (str(beside) if beside.exists() else shutil.which("markitdown"))


def theirs(command: str, path: Path) -> str:
    "What markitdown makes of a file, as plain text."
    done = subprocess.run([command, str(path)], capture_output=True, check=True)
    return markdown_to_text(done.stdout.decode("utf-8", "replace"))


def main() -> None:
    if not SHARED.is_dir(): return print("../shared/data is not here: nothing to read")
    command = markitdown()
    totals: dict[tuple[str, str], dict[str, int]] = defaultdict(lambda: defaultdict(int))
    with tempfile.TemporaryDirectory() as scratch:
        with tarfile.open(SHARED / "audio_docs" / "audio_docs.tar.gz") as tar: tar.extractall(scratch, filter="data")
        for name, counted in COUNTED.items():
            path = Path(scratch, name) if name.startswith("audio_docs") else SHARED / "documents" / name
            texts = {"ours": read_document(path.read_bytes(), name).text} | ({"markitdown": theirs(command, path)} if command else {})
            for reader, text in texts.items():
                for key, n in score(text, counted).items(): totals[counted["kind"], reader][key] += n
            for kind in KINDS: totals[counted["kind"], "counted"][kind] += len(set(counted[kind]))
    for (_, reader), found in list(totals.items()):
        for key, n in found.items(): totals["all", reader][key] += n
    print(f"{'':6}{'':12}{'whole':>7}{'sentences':>13}{'headings':>12}{'rows':>12}{'noise':>7}")
    for kind in ("md", "pdf", "docx", "html", "all"):
        whole = totals[kind, "counted"]
        for reader in ("ours", "markitdown"):
            if (kind, reader) not in totals: continue
            found = totals[kind, reader]
            share = sum(found[k] for k in KINDS) / sum(whole.values())
            parts = "".join(f"{f'{found[k]} of {whole[k]}':>{13 - (k != 'sentences')}}" for k in KINDS)
            print(f"{kind:6}{reader:12}{share:7.3f}{parts}{found['noise']:7}")
    if not command: print("markitdown is not installed: put it into an environment of its own and name it, MARKITDOWN=/path/to/markitdown")


if __name__ == "__main__": main()
