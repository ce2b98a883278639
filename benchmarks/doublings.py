"""What twice the text costs: fragments drawn at random, repeated or nested, as Markdown, HTML, Word, plain text and files of pairs,
until a megabyte or a few seconds are reached. CPU time, the best of three.
Run: OMP_NUM_THREADS=1 python benchmarks/doublings.py [--shapes 60] [--seed N]"""
import argparse
import csv
import gc
import io
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from odd_documents import BOMBS, SENTENCES, cell, para, table, word

LIMIT, LEAST, MOST, TOP = 2.3, 0.1, 1.5, 1_000_000  # ratio; seconds of a doubling that counts, and of the last one; characters
MARKDOWN = ["**a** ", "# a\n", "- a\n", "  - a\n", "> a\n", "a\n: b\n", "| a | b |\n", "```\na\n```\n", "[a](b) ", "[^1] ", "![", "](",
            "[[", "`` ` ", "a*b_c", "<kbd>a</kbd>", "::: tip\na\n:::\n", "~~a~~ ", "<b>a</b> ", "a\\\n", "&amp; ", "<!-- a -->", "ab-\n"]
TAGS = ("p div table tr td th ul li dl dt dd pre sup sub h2 nav main article aside header form select option a b span details math "
        "msup x-y svg button font code ruby rt label center").split()
LOOKS = ["", ' class="menu"', ' id="nav"', ' class="cookie"', ' href="#a"', ' rowspan="9"', " colspan=9", ' style="vertical-align:super"']
PLAIN = ["ab-\n", "a\n", "a\n\n", "A. ", "a. ", "# a\n\n", "a\n===\n\n", "1) a\n", "温度。", "กขค ", "a...", '"a" ', "9", "e.g. ",
         "=\n", "---\n", "\u00ad", "ﬁ"]
CELLS = ["a", "", '"', '""', "a,b", "a;b", "a\nb", "[1, 2]", "{'a': 1}", "array([1])", "=SUM(A1)", "\ufeff", "What is it?", " " * 9]
Shape = Callable[[int], bytes]


def drawn_tag(rng: random.Random) -> str: return f"<{rng.choice(TAGS)}{rng.choice(LOOKS)}>"


def drawn_text(kind: str, rng: random.Random) -> Shape:
    "One to three fragments repeated, with words behind them that make half of the text or none."
    tags = lambda: rng.choice([drawn_tag(rng), drawn_tag(rng), f"</{rng.choice(TAGS)}>", "The lid. ", "<table><tr><td>"])
    marked = lambda: rng.choice([*MARKDOWN, *BOMBS, *(s + "\n" for s in SENTENCES), tags()])
    known = {"md": marked, "html": tags, "txt": lambda: rng.choice(PLAIN)}
    unit, words = "".join(known[kind]() for _ in range(rng.randint(1, 3))), rng.random() < 0.3
    begin = "<!doctype html><html><body>" if kind == "html" else ""

    def make(size: int) -> bytes:
        times = max(1, size // len(unit) // (1 + words))
        return (begin + unit * times + ("The lid is closed. " * (size // 38) if words else " x")).encode("utf-8", "replace")
    make.__doc__ = repr(unit) + " + words" * words
    return make


def drawn_word(rng: random.Random) -> Shape:
    parts = [para("The lid."), table(["a", "b"]), table([cell(table(["in", "ner"])), "x"]), "<w:p/>",
             f"<w:sdt><w:sdtContent>{para('x')}</w:sdtContent></w:sdt>",
             '<w:p><w:pPr><w:pStyle w:val="Heading1"/></w:pPr><w:r><w:t>x</w:t></w:r></w:p>',
             para('<w:r><w:rPr><w:vertAlign w:val="superscript"/></w:rPr><w:t>6</w:t></w:r>'),
             "<w:p><m:oMath><m:r><m:t>x</m:t></m:r></m:oMath></w:p>"]
    unit = "".join(rng.choice(parts) for _ in range(rng.randint(1, 2)))

    def make(size: int) -> bytes: return word(para("x") + unit * max(1, size // len(unit)))
    make.__doc__ = repr(unit)
    return make


def drawn_rows(kind: str, rng: random.Random) -> Shape:
    "Rows of cells, or one row with a long cell or very many columns."
    cells, way = [rng.choice(CELLS) for _ in range(3)], rng.choice(["rows", "long", "wide"])

    def make(size: int) -> bytes:
        n = max(1, size // (20 + sum(map(len, cells))))
        row = ["What is it?", "It is a lid.", *cells]
        rows = {"rows": [row] * n, "long": [[*row[:2], "".join(cells) * n]], "wide": [[*row[:2], *cells * n]]}[way]
        heads = ["question", "answer", *(f"c{i}" for i in range(len(rows[0]) - 2))]
        if kind == "jsonl": return "\n".join(json.dumps(dict(zip(heads, r, strict=True))) for r in rows).encode()
        out = io.StringIO()
        csv.writer(out).writerows([heads, *rows])
        return out.getvalue().encode()
    make.__doc__ = f"{way} {cells!r}"
    return make


def read(data: bytes, kind: str, place: Path) -> None:
    "Read a document and cut it into passages, or import a file of pairs."
    from distillery.core.errors import DistilleryError
    from distillery.core.records import Document
    from distillery.pairs.chunk import chunk_documents
    from distillery.pairs.imports import read_pairs
    from distillery.reading.files import read_file
    from distillery.reading.plain import Unreadable

    try:
        if kind in ("csv", "jsonl"):
            read_pairs(place)
            return
        title, text, mime = read_file(data, f"a.{kind}")
        chunk_documents([Document(doc_id="d", path=f"a.{kind}", title=title, text=text, mime=mime, digest="d")])
    except (Unreadable, DistilleryError): return


def seconds(data: bytes, kind: str, folder: Path, times: int) -> float:
    "CPU time, the best of several."
    place = folder / f"a.{kind}"
    place.write_bytes(data)
    best = float("inf")
    for _ in range(times):
        gc.collect()
        began = time.process_time()
        read(data, kind, place)
        best = min(best, time.process_time() - began)
    return best


def worst(make: Shape, kind: str, folder: Path) -> tuple[float, int, float]:
    "The largest ratio of a doubling that takes long enough to be measured, with its characters and seconds; a large one is measured again."
    size, before, found = 2000, 0.0, (0.0, 0, 0.0)
    while size <= 2 * TOP and before < MOST:
        took = seconds(make(size), kind, folder, 1)
        if took >= LEAST and before and took / before > LIMIT:
            before, took = (seconds(make(s), kind, folder, 3) for s in (size // 2, size))
        if took >= LEAST and before: found = max(found, (took / before, size, took))
        size, before = size * 2, took
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", type=int, default=60, help="of each kind")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--kinds", default="md,html,docx,txt,csv,jsonl")
    args = parser.parse_args()
    print(f"seed {args.seed}")
    met = True
    with tempfile.TemporaryDirectory() as work:
        for kind in args.kinds.split(","):
            rng, rows = random.Random(f"{args.seed}/{kind}"), []
            for _ in range(args.shapes):
                draw = drawn_word(rng) if kind == "docx" else drawn_rows(kind, rng) if kind in ("csv", "jsonl") else drawn_text(kind, rng)
                rows.append((*worst(draw, kind, Path(work)), draw.__doc__))
            rows.sort(reverse=True, key=lambda r: r[0])
            met &= rows[0][0] <= LIMIT
            print(f"{kind}: {len(rows)} shapes, doublings cost at most")
            for ratio, size, took, shape in rows[:3]:
                print(f"  {ratio:5.2f} at {size:,} characters ({took:.2f} s)  {shape[:120]}", flush=True)
    print(f"goal: at most {LIMIT:g}: {'met' if met else 'MISSED'}")


if __name__ == "__main__": main()
