"""A lint of rendered pages: every numeral that a reader sees leads to a stored value that formats to the very same text.

A numeral stands in an element with `data-src` (a file of the run and a JSON pointer), whose value is formatted again here; in a
sentence of the report's own template; in words that somebody else wrote, marked as quoted and found whole in a file of the run; or in
one of the patterns of `EXEMPT`. What stands in a picture is not read.

All pages are held to it: those of the small kept run, and those of the questions that it was not asked, with drawn rows (`asked_run`).
"""
import ast
import json
import random
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
from nbformat.v4 import new_output

from distillery.core import numbers
from distillery.core.config import load_config
from distillery.core.store import RunFolder
from distillery.evaluation.ladder import ROUNDING
from distillery.pages.figures import write_page
from distillery.pages.monitor import TARGETS
from distillery.pages.report import template, templates, to_html
from distillery.questions.all import questions_of, reasons
from distillery.questions.results import open_results, run_command
from distillery.workbook.assemble import write_decisions, write_pages

COVERED = ("index", "kpis", "student", "dataset", "quantization", "kernels", "temperature", "embedder", "vector_index", "chunks", "rag",
           "context_length", "prompts", "parallel", "memory", "grouping", "sizes", "learning_curve", "distillation", "selection", "domain")


# what a page says


BLOCKS = set("p td th li dd dt h1 h2 h3 h4 caption blockquote pre div section main footer body a figcaption".split())
EMPTY = {"meta", "img", "br", "hr", "link", "input"}
UNSEEN = {"head", "style", "script", "svg"}


class Piece(NamedTuple):
    "A text as one element shows it."
    text: str
    src: str  # Address; empty: none
    quoted: bool  # In words of somebody else


@dataclass
class Block:
    "A paragraph, a cell, a heading."
    tag: str
    pieces: list[Piece] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(p.text for p in self.pieces)


class Page(HTMLParser):
    "The blocks of a page, in order."

    def __init__(self, text: str) -> None:
        super().__init__()
        self.blocks, self._open = [Block("body")], list[tuple[str, str, bool]]()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in EMPTY: return
        told, (_, src, quoted) = dict(attrs), self._open[-1] if self._open else ("", "", False)
        self._open.append((tag, told.get("data-src") or src, quoted or "quoted" in (told.get("class") or "").split()))
        if tag in BLOCKS: self.blocks.append(Block(tag))

    def handle_endtag(self, tag: str) -> None:
        if tag in EMPTY: return
        while self._open and self._open.pop()[0] != tag: pass
        if tag in BLOCKS: self.blocks.append(Block("after"))

    def handle_data(self, data: str) -> None:
        if any(tag in UNSEEN for tag, _, _ in self._open) or not data.strip(): return
        _, src, quoted = self._open[-1] if self._open else ("", "", False)
        self.blocks[-1].pieces.append(Piece(data, src, quoted))


# what a run has stored


@dataclass
class Stored:
    "The files of a run."
    run: Path

    def __post_init__(self) -> None: self._files, self.seen = dict[str, Any](), dict[Piece, str]()

    def file(self, name: str) -> Any:
        if name not in self._files:
            text = (self.run / name).read_text("utf-8")
            self._files[name] = [json.loads(x) for x in text.split("\n") if x.strip()] if name.endswith(".jsonl") else json.loads(text)
        return self._files[name]

    def get(self, name: str, default: Any) -> Any: return self.file(name) if (self.run / name).is_file() else default

    def at(self, src: str) -> Any:
        "The value at an address; a KeyError, an IndexError or an OSError where there is none."
        name, _, pointer = src.partition("#")
        value = self.file(name)
        for step in pointer.split("/")[1:]:
            value = value[int(step) if isinstance(value, list) else step.replace("~1", "/").replace("~0", "~")]
        return value

    @cached_property
    def texts(self) -> set[str]:
        "Every text in the files of the run but those of its pages."
        files = [p.relative_to(self.run).as_posix() for p in sorted(self.run.rglob("*.json*"))]
        return set(strings([self.file(f) for f in files if not f.startswith("reports/")]))

    def quotes(self, text: str) -> bool:
        "Whether texts of the run, divided by bars, read so; one that was cut ends in three dots."
        whole = lambda part: part in self.texts or (part.endswith("…") and any(t.startswith(part[:-1]) for t in self.texts))
        return all(whole(" ".join(part.split())) for part in text.split(" | "))

    @cached_property
    def names(self) -> re.Pattern[str]:
        "Names of levels, gates, stages and limits, as the run has them; bare numerals are none."
        found = {name for d in self.decisions for name in (*d["levels"], *(c[side] for c in d["contrasts"] for side in "ab"))}
        found |= {g["name"] for g in self.get("eval/gates.jsonl", [])}
        found |= {s["stage"] for s in self.get("ledger.json", {"stages": []})["stages"]}
        longest = sorted((n for n in found if re.search(r"[A-Za-z]", n)), key=len, reverse=True)
        return re.compile("|".join(rf"(?<![\w.]){re.escape(n)}(?![\w])" for n in longest) or r"(?!)")

    @cached_property
    def decisions(self) -> list[dict[str, Any]]:
        return [json.loads(p.read_text("utf-8")) for p in sorted(self.run.glob("decisions/*.json"))]

    @cached_property
    def commands(self) -> list[str]:
        "Commands that ask the questions which this run did not."
        return sorted((q.command(run_command(open_results(self.run))) for q in questions_of("pairs")), key=len, reverse=True)

    @cached_property
    def levels(self) -> tuple[float, ...]:
        "The levels of its intervals: as set, and that of equivalence."
        c = self.file("config.json").get("decisions.confidence", 0.95)
        return c, 2 * c - 1

    @cached_property
    def level_words(self) -> list[str]: return [f"{numbers.percent(level)} interval" for level in self.levels]


def strings(value: Any) -> Iterator[str]:
    "Every text in a JSON value, its keys included."
    if isinstance(value, str): yield " ".join(value.split())
    elif isinstance(value, dict):
        for k, v in value.items(): yield from (k, *strings(v))
    elif isinstance(value, list):
        for v in value: yield from strings(v)


# how a value may be spelt


def of_one(x: float) -> Iterator[str]:
    for signed in (False, True):
        for digits in (3, 2, 1, 4, 5): yield from (numbers.number(x, digits, signed), numbers.percent(x, digits, signed))
    yield from (numbers.exact(x), numbers.plus_minus(x), numbers.p_value(x), numbers.p_value(x, "p"))
    yield from (numbers.duration(x), numbers.bytes_(x))
    if x >= 1e5: yield numbers.number(x / 1e6)  # bytes in MB
    if float(x).is_integer(): yield from (numbers.number(int(x)), numbers.count(int(x)))


def of_interval(mean: float | None, low: float | None, high: float | None, n: int | None, levels: Sequence[float]) -> Iterator[str]:
    for level in (None, *levels):
        for signed in (False, True):
            for told in (None, n): yield numbers.estimate(mean, low, high, told, level, signed)
            if low is not None and high is not None: yield numbers.interval(low, high, level, signed)


def of_record(value: dict[str, Any], levels: Sequence[float]) -> Iterator[str]:
    mean, n = value.get("mean", value.get("diff")), value.get("n", value.get("n_items"))
    named = value.get("level")  # a number where it is that of an interval, the name of a level elsewhere
    level = named if isinstance(named, float) else value.get("confidence", levels[0])
    if "ci_low" in value: yield from of_interval(mean, value["ci_low"], value["ci_high"], n, [level])
    if "se" in value and mean is not None:
        mean, se = (0.0 if abs(x) < ROUNDING else x for x in (mean, value["se"]))
        yield from (f"{numbers.number(mean, d)} ± {numbers.number(se, 1)}" for d in (1, 2, 3, 4, 5))
    if "ci_naive_low" in value:
        yield numbers.interval(value["ci_naive_low"], value["ci_naive_high"], signed=True)


def spellings(value: Any, levels: Sequence[float]) -> Iterator[str]:
    "Every text that a formatter makes of a stored value."
    if isinstance(value, str): yield value
    elif isinstance(value, bool): yield "yes" if value else "no"
    elif value is None: yield numbers.NOT_MEASURED
    elif isinstance(value, int | float): yield from of_one(value)
    elif isinstance(value, dict): yield from of_record(value, levels)
    elif len(value) == 2: yield from of_interval(None, value[0], value[1], None, levels)
    elif len(value) in (3, 4): yield from of_interval(value[0], value[1], value[2], int(value[3]) if len(value) == 4 else None, levels)


def says(value: Any, text: str, levels: Sequence[float] = (0.95, 0.9)) -> bool:
    "Whether a text is what a formatter makes of the value; a unit or a noun may follow."
    for spelt in spellings(value, levels):
        if text == spelt: return True
        if text.startswith(f"{spelt} ") and not re.search(r"\d", text[len(spelt):]): return True
    return False


# what needs no address


FIXED = re.compile(r"\b(?:fp32|fp16|u?int8|q[48]|mlx-[48]bit|nDCG@10|recall@(?:10?|5)|(?:BERTScore|token) F1|top-1|p(?:50|95)|BM25|bm25"
                   r"|all-mpnet-base-v2)\b|(?<= / )10,000(?!\d|[.,]\d)")


GOALS = {t.target for t in TARGETS}


def without(text: str, words: Iterable[str]) -> str:
    for word in words: text = text.replace(word, "…")
    return text


EXEMPT: dict[str, Callable[[str, "Stored"], str]] = {  # What, and a text without it; at most ten
    "names of measures, variants and models of the program, and the ten thousand of a heading": lambda text, stored: FIXED.sub("…", text),
    "variants of weights in words, in front of a row": lambda text, stored: re.sub(r"^[84] bits\b", "…", text),
    "levels of confidence, as the run's settings have them": lambda text, stored: without(text, stored.level_words),
    "commands that ask what a run did not ask, as the questions have them": lambda text, stored: without(text, stored.commands),
    "targets of the monitoring page, as the program has them": lambda text, stored: "…" if text.strip() in GOALS else text,
    "names of levels, gates and stages, as the run has them": lambda text, stored: stored.names.sub("…", text),
}  # Beside these: sentences of a template, word for word (`prose_of`), and marked words that a file of the run has (`Stored.quotes`)


def exempt(text: str, stored: Stored) -> str:
    "A text without what needs no address."
    for remove in EXEMPT.values(): text = remove(text, stored)
    return text


class Flaw(NamedTuple):
    "A numeral that leads nowhere, or to another value."
    page: str
    where: str  # The text around it
    why: str


def plain(text: str) -> str:
    return " ".join(re.sub(r"[*`#>_\\]", "", text).split())


@cache
def prose_of(name: str) -> str:
    "The sentences that stand in the template of a report, whatever the run."
    if name not in templates(): return ""
    return "\n".join(plain(c.source) for c in nbformat.read(template(name), as_version=4).cells if c.cell_type == "markdown")


def flaws(run: Path, name: str, text: str, stored: Stored | None = None) -> list[Flaw]:
    "What a page says that no stored value says."
    stored, found, prose = stored or Stored(run), list[Flaw](), prose_of(name)
    for block in Page(text).blocks:
        rest = ""
        for piece in block.pieces:
            if piece.src: found += [Flaw(name, piece.text, why)] if (why := wrong_address(piece, stored)) else []
            elif piece.quoted and not stored.quotes(piece.text): found.append(Flaw(name, piece.text, "quotes no text of the run"))
            rest += "…" if piece.src or piece.quoted else piece.text
        if not re.search(r"\d", rest) or plain(rest) in prose: continue
        if re.search(r"\d", rest := exempt(rest, stored)):
            found.append(Flaw(name, f"<{block.tag}> {rest.strip()}", "a numeral without an address"))
    return found


def wrong_address(piece: Piece, stored: Stored) -> str:
    if piece not in stored.seen: stored.seen[piece] = _wrong_address(piece, stored)
    return stored.seen[piece]


def _wrong_address(piece: Piece, stored: Stored) -> str:
    "Why an address is wrong; empty where it is right. A numeral of a decision's sentence stands in the stored sentence."
    try: value = stored.at(piece.src)
    except (KeyError, IndexError, ValueError, TypeError, OSError) as e: return f"{piece.src} leads nowhere: {e!r}"
    if piece.src.endswith("#/sentence") and re.search(rf"(?<![\w.,+−]){re.escape(piece.text)}(?!\w|[.,]\d)", str(value)): return ""
    return "" if says(value, piece.text, stored.levels) else f"{piece.src} is {str(value)[:300]}"


# numerals altered


TEXT = re.compile(r"(?<=>)[^<>]+(?=<)")
NUMERAL = re.compile(r"(?<![\w#&.,])[+−±]?\d[\d,.]*\d|(?<![\w#&.,])[+−±]?\d")


def numerals(text: str) -> list[tuple[int, int]]:
    "Where the numerals stand that a reader sees."
    start, drawn = text.index("<main>"), [m.span() for m in re.finditer("<svg.*?</figure>", text, re.S)]
    found = [(m.start() + n.start(), m.start() + n.end()) for m in TEXT.finditer(text, start) for n in NUMERAL.finditer(m[0])]
    return [(a, b) for a, b in found if not any(begin < a < end for begin, end in drawn)]


def altered(text: str, rng: random.Random) -> tuple[str, str]:
    "A page with a digit changed, a sign flipped or two numerals swapped, and what was done."
    places = numerals(text)
    a, b = rng.choice(places)
    word, way = text[a:b], rng.choice(("digit", "digit", "sign", "swap"))
    if way == "digit":
        i = rng.choice([i for i, c in enumerate(word) if c.isdigit()])
        new = word[:i] + rng.choice([d for d in "0123456789" if d != word[i]]) + word[i + 1:]
    elif way == "sign": new = word.translate(str.maketrans("+−", "−+")) if word[0] in "+−" else f"−{word.removeprefix('±')}"
    else:
        (a, b), (c, d) = sorted([(a, b), rng.choice([p for p in places if text[slice(*p)] != word])])
        return text[:a] + text[c:d] + text[b:c] + text[a:b] + text[d:], f"{text[a:b]} and {text[c:d]} swapped"
    return text[:a] + new + text[b:], f"{word} became {new} in {text[max(0, a - 60):b + 40]!r}"


# pages of a run, made in this process


def render(name: str, run: Path) -> Path:
    "Build a report as `build_report` does, without a kernel of its own."
    nb, shown = nbformat.read(template(name), as_version=4), list[Any]()
    names: dict[str, Any] = {"display": lambda *some: shown.extend(some)}
    for cell in (c for c in nb.cells if c.cell_type == "code"):
        shown.clear()
        tree = ast.parse(cell.source)
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, name, "exec"), names)
        if isinstance(last, ast.Expr): shown.append(eval(compile(ast.Expression(last.value), name, "eval"), names))
        if "parameters" in cell.metadata.get("tags", []): names["run_dir"] = str(run)
        cell.outputs = [new_output("display_data", {"text/html": str(x._repr_html_())}) for x in shown if x is not None]
    return write_page(run / "reports", name, to_html(nb, name))


def rendered(kept: Path, run: Path) -> Path:
    "A copy of a finished run, decided anew, with all its pages."
    shutil.copytree(kept, run)
    write_decisions(RunFolder(run), load_config(overrides=open_results(run).settings()), "")
    none = reasons(open_results(run))
    for name in templates():
        if name not in none: render(name, run)
    write_pages(RunFolder(run), {name: {} for name in none})
    return run
