"""A lint of rendered pages: every numeral that a reader sees leads to a stored value that formats to the very same text.

A numeral stands in an element with `data-src` (a file of the run and a JSON pointer), whose value is formatted again here; in a sentence of the report's own template;
in words that somebody else wrote, marked as quoted and found whole in a file of the run; or in one of the patterns of `EXEMPT`.
"""
import ast
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
from nbformat.v4 import new_output

from distillery.core import numbers
from distillery.core.records import Contrast
from distillery.core.stats import contrast_interval
from distillery.evaluation.ladder import ROUNDING
from distillery.pages.figures import write_page
from distillery.pages.monitor import TARGETS
from distillery.pages.report import template, templates, to_html
from distillery.questions.all import QUESTIONS
from distillery.questions.results import open_results, run_command

# what a page says


BLOCKS = {"p", "td", "th", "li", "dd", "dt", "h1", "h2", "h3", "h4", "caption", "blockquote", "pre", "div", "section", "main", "footer", "body", "a"}
EMPTY = {"meta", "img", "br", "hr", "link", "input"}
UNSEEN = {"head", "style", "script"}


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

    def __post_init__(self) -> None: self._files = dict[str, Any]()

    def file(self, name: str) -> Any:
        if name not in self._files:
            text = (self.run / name).read_text("utf-8")
            self._files[name] = [json.loads(x) for x in text.split("\n") if x.strip()] if name.endswith(".jsonl") else json.loads(text)
        return self._files[name]

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
        found |= {g["name"] for g in self.file("eval/gates.jsonl")} | {s["stage"] for s in self.file("ledger.json")["stages"]}
        longest = sorted((n for n in found if re.search(r"[A-Za-z]", n)), key=len, reverse=True)
        return re.compile("|".join(rf"(?<![\w.]){re.escape(n)}(?![\w])" for n in longest))

    @cached_property
    def decisions(self) -> list[dict[str, Any]]:
        return [json.loads(p.read_text("utf-8")) for p in sorted(self.run.glob("decisions/*.json"))]

    @cached_property
    def commands(self) -> list[str]:
        "Commands that ask the questions which this run did not."
        return sorted((q.command(run_command(open_results(self.run))) for q in QUESTIONS), key=len, reverse=True)

    @cached_property
    def levels(self) -> tuple[float, ...]:
        "The levels of its intervals: as set, and that of equivalence."
        c = self.file("config.json").get("decisions.confidence", 0.95)
        return c, 2 * c - 1


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
    yield from (numbers.exact(x), numbers.plus_minus(x), numbers.p_value(x), numbers.p_value(x, "p"), numbers.duration(x), numbers.bytes_(x))
    if x >= 1e5: yield numbers.number(x / 1e6)  # bytes in MB
    if float(x).is_integer(): yield from (numbers.number(int(x)), numbers.count(int(x)))


def of_interval(mean: float | None, low: float | None, high: float | None, n: int | None, levels: Sequence[float]) -> Iterator[str]:
    for level in (None, *levels):
        for signed in (False, True):
            for told in (None, n): yield numbers.estimate(mean, low, high, told, level, signed)
            if low is not None and high is not None: yield numbers.interval(low, high, level, signed)


def of_record(value: dict[str, Any], levels: Sequence[float]) -> Iterator[str]:
    mean, n = value.get("mean", value.get("diff")), value.get("n", value.get("n_items"))
    if "ci_low" in value: yield from of_interval(mean, value["ci_low"], value["ci_high"], n, levels)
    if "se" in value and mean is not None:
        mean, se = (0.0 if abs(x) < ROUNDING else x for x in (mean, value["se"]))
        yield from (f"{numbers.number(mean, d)} ± {numbers.number(se, 1)}" for d in (1, 2, 3, 4, 5))
    if "ci_naive_low" in value:
        yield from of_interval(mean, value["ci_naive_low"], value["ci_naive_high"], n, levels)
        contrast = Contrast.model_validate(value)
        for level in levels: yield from of_interval(mean, *contrast_interval(contrast, level), n, levels)


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


EXEMPT: dict[str, str] = {  # Why, and what
    "names of variants, measures and models, which no run changes":
        r"\b(?:fp32|fp16|u?int8|q[48]|mlx-[48]bit|nDCG@\d+|recall@\d+|(?:BERTScore|token) F1|top-1|p(?:50|95)|BM25|bm25|all-mpnet-base-v2)\b|10,000",
    "variants as people read them": r"^(?:8|4) bits\b",
}


def exempt(text: str, stored: Stored) -> str:
    "A text without what needs no address: the patterns, and what is held against the run or the program here."
    for pattern in EXEMPT.values(): text = re.sub(pattern, "…", text)
    for level in stored.levels: text = text.replace(f"{numbers.percent(level)} interval", "…")  # a level of confidence as it is set
    for command in stored.commands: text = text.replace(command, "…")
    if text.strip() in {t.target for t in TARGETS}: return "…"
    return stored.names.sub("…", text)


class Flaw(NamedTuple):
    "A numeral that leads nowhere, or to another value."
    page: str
    where: str  # The text around it
    why: str


def plain(text: str) -> str:
    return " ".join(re.sub(r"[*`#>_\\]", "", text).split())


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
        if plain(rest) and plain(rest) in prose: continue
        rest = exempt(rest, stored)
        if re.search(r"\d", rest): found.append(Flaw(name, f"<{block.tag}> {rest.strip()}", "a numeral without an address"))
    return found


def wrong_address(piece: Piece, stored: Stored) -> str:
    "Why an address is wrong; empty where it is right. A numeral of a decision's sentence stands in the stored sentence."
    try: value = stored.at(piece.src)
    except (KeyError, IndexError, ValueError, TypeError, OSError) as e: return f"{piece.src} leads nowhere: {e!r}"
    if piece.src.endswith("#/sentence") and re.search(rf"(?<![\w.,+−]){re.escape(piece.text)}(?!\w|[.,]\d)", str(value)): return ""
    levels = (*stored.levels, value["equivalence_level"]) if isinstance(value, dict) and "equivalence_level" in value else stored.levels
    return "" if says(value, piece.text, levels) else f"{piece.src} is {str(value)[:300]}"


# pages of a run, made in this process


def render(name: str, run: Path) -> Path:
    "Build a report as `build_report` does, without a kernel of its own."
    nb, shown = nbformat.read(template(name), as_version=4), list[Any]()
    names: dict[str, Any] = {"display": lambda *some: shown.extend(some)}
    for cell in (c for c in nb.cells if c.cell_type == "code"):
        shown.clear()
        tree = ast.parse(cell.source)
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, name, "exec"), names)  # noqa: S102 (a notebook of this package)
        if isinstance(last, ast.Expr): shown.append(eval(compile(ast.Expression(last.value), name, "eval"), names))  # noqa: S307 (the same)
        if "parameters" in cell.metadata.get("tags", []): names["run_dir"] = str(run)
        cell.outputs = [new_output("display_data", {"text/html": str(x._repr_html_())}) for x in shown if x is not None]
    return write_page(run / "reports", name, to_html(nb, name))
