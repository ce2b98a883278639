"One table, three faces: whatever a cell holds, no face takes it for markup, and no digit is lost."
import re
from html.parser import HTMLParser
from io import StringIO

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.console import Console

from distillery.core.figures import FigureRow, interval_plot
from distillery.core.numbers import count, difference, estimate, number
from distillery.core.render import render
from distillery.core.table import Column, Table, one_line
from distillery.pages.html import figure

HOSTILE = ["<script>alert(1)</script>", "a|b", "x\n| y |", "`code`", "[a](javascript:b)", "![i](x)", "**b**", "_e_",
           "~~d~~", "&amp;",
           "<!--", "-->", '" onload="x', "' onclick='x", "{{ 7*7 }}", "{% raw %}", "[red]rich[/red]", "[/]", "\x1b[31m",
           "\u202ereversed", "\\", "$x$", "# h", "]]>"]
CELLS = st.one_of(st.sampled_from(HOSTILE), st.text(st.characters(codec="utf-8"), max_size=30), st.none(), st.booleans(), st.integers(),
                  st.floats(), st.builds(number, st.floats(), src=st.sampled_from(HOSTILE)))
KEYS = st.one_of(st.sampled_from(HOSTILE), st.text(st.characters(codec="utf-8"), max_size=12))
ROWS = st.lists(st.dictionaries(KEYS, CELLS, min_size=1, max_size=4), min_size=1, max_size=4)


class Reader(HTMLParser):
    "Tags, attributes and text of a piece of HTML."

    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.text = [], set(), []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data): self.text.append(data)
    def handle_comment(self, data): self.tags.append("comment")
    def handle_decl(self, decl): self.tags.append("declaration")


def read(html):
    reader = Reader()
    reader.feed(str(html))
    reader.close()
    return reader


def printed(table, width=80):
    console = Console(width=width, file=StringIO(), force_terminal=False)
    console.print(table.rich(width))
    return console.file.getvalue()


@given(ROWS, st.sampled_from(["", *HOSTILE]))
@example([{w: w} for w in HOSTILE], HOSTILE[0])
def test_nothing_in_a_cell_becomes_markup_in_html(rows, caption):
    table = Table.of(rows, caption=caption)
    seen = read(table.html())
    assert set(seen.tags) <= {"div", "table", "caption", "thead", "tbody", "tr", "th", "td", "span"}
    assert seen.attributes <= {"class", "scope", "data-src", "data-label"}
    assert seen.tags.count("tr") == len(rows) + 1
    words = "".join(seen.text)
    assert all(cell in words for line in table.cells for cell in line if "\r" not in cell and "\x00" not in cell)


@given(ROWS, st.sampled_from(["", *HOSTILE]))
@example([{w: w} for w in HOSTILE], HOSTILE[0])
def test_nothing_in_a_cell_becomes_markup_in_markdown(rows, caption):
    table = Table.of(rows, caption=caption)
    html = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(table.markdown())
    seen = read(html)
    assert set(seen.tags) <= {"p", "table", "thead", "tbody", "tr", "th", "td"}
    if any(one_line(c.label) for c in table.columns): assert seen.tags.count("tr") == len(rows) + 1


@given(ROWS, st.sampled_from([20, 40, 80, 200]))
@example([{w: w} for w in HOSTILE], 80)
def test_nothing_in_a_cell_becomes_markup_in_a_terminal(rows, width):
    text = printed(Table.of(rows), width)
    assert "\x1b" not in text
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]", text)
    squeezed = re.sub(r"\s", "", text)
    if len(rows[0]) == 1 and len(rows) == 1 and width == 200:
        assert all(re.sub(r"\s", "", one_line(cell)) in squeezed for line in Table.of(rows).cells for cell in line)


@given(st.lists(st.tuples(st.floats(-1, 1), st.floats(1e-3, 0.5)), min_size=1, max_size=5), st.integers(1, 8),
       st.sampled_from([60, 80, 120]))
def test_no_number_is_cut_or_broken_in_a_terminal(values, columns, width):
    shown = [difference(mean, mean - half, mean + half) for mean, half in values]
    rows = [{"a name of a level that is long": "x " * 40, **{f"measure {i}": s for i in range(columns)}} for s in shown]
    text = printed(Table.of(rows), width)
    assert max(map(len, text.splitlines())) <= width
    assert all(text.count(s) >= columns for s in shown)
    assert "…" not in text


def test_a_table_stands_side_by_side_as_long_as_its_numbers_fit():
    table = Table.of([{"ms": number(123.4), "MiB": number(5.678)}])
    assert printed(table, 9).splitlines() == [" ms   MiB", "123  5.68"]
    assert printed(table, 8).splitlines()[0].split() == ["ms", "123"]


def test_the_type_belongs_to_the_column():
    rows = [{"level": "8 bits", "mean": estimate(0.857, 0.79, 0.92), "n": 140, "same": True, "state": "PASS", "none": None},
            {"level": "4 bits", "mean": None, "n": 7098, "same": False, "state": "FAIL", "none": None}]
    table = Table.of(rows)
    assert [c.name for c in table.columns if c.kind == "number"] == ["mean", "n"]
    assert [c.kind for c in Table.of([{"x": 1}, {"x": "one"}]).columns] == ["text"]
    html = table.html()
    assert '<td data-label="n"><span data-src="=[7098.0]">7,098</span></td>' in html
    assert '<td class="text FAIL" data-label="state">FAIL</td>' in html
    assert '<th scope="row" class="text">8 bits</th>' in html
    assert "| ---: | ---: |" in table.markdown()


def test_columns_may_be_chosen_ordered_and_explained():
    rows = [{"a": 1, "b": 2.5, "exact_match": 0.5}]
    table = Table.of(rows, ["exact_match", Column("b", "number", "ms", 'time "alone"')], caption="Times")
    assert table.cells == [["0.500", "2.50"]]
    assert '<th scope="col" title="time &#34;alone&#34;">b, ms</th>' in table.html()
    assert '<th scope="col">exact match</th>' in table.html()
    assert table.markdown().startswith("Times\n\n| exact match | b, ms |")


def test_a_key_that_only_later_rows_have_is_a_column_too():
    assert Table.of([{"a": 1}, {"b": 2}]).cells == [["1", "–"], ["–", "2"]]


@pytest.mark.parametrize("word", [w for w in HOSTILE if w.isprintable()])
def test_an_empty_table_shows_a_hostile_caption_as_it_is(word):
    assert printed(Table.of([], caption=word), 200) == f"{word}: no rows.\n"
    assert set(read(Table.of([], caption=word).html()).tags) <= {"p", "code"}


@pytest.mark.parametrize(("caption", "says"), [("", "No rows."), ("Failures.", "Failures: no rows.")])
def test_an_empty_table_says_so_in_one_line(caption, says):
    table = Table.of([], caption=caption)
    assert table.html() == f'<p class="note">{says}</p>'
    assert table.markdown() == says
    assert printed(table) == says + "\n"


def test_a_table_is_the_same_every_time_and_joins_a_page_as_it_is():
    table = Table.of([{"n": count(3, "query", src="counts.json#/queries")}])
    assert table.html() == Table.of([{"n": count(3, "query", src="counts.json#/queries")}]).html()
    page = render("base.html", title="t", body=table.html())
    assert table.html() in page
    assert '<span data-src="counts.json#/queries">3 queries</span>' in page


@pytest.mark.parametrize("word", HOSTILE)
def test_no_template_lets_markup_through(word):
    pieces = [render("note.html", text=word, kind=word), render("finding.html", text=word), render("facts.html", facts={word: word}),
              render("card.html", question=word, verdict=word, sentence=word, facts={word: word}, href=word),
              figure(interval_plot([FigureRow(word, 0.5, 0.4, 0.6)], word), word)]
    allowed = {"p", "dl", "dt", "dd", "section", "h3", "a", "code"} | {"figure", "figcaption", "svg", "style", "rect", "text", "g", "title",
               "line", "circle"}
    for piece in pieces:
        seen = read(piece)
        assert set(seen.tags) <= allowed
        drawn = "svg" in seen.tags  # whose attributes are those of shapes
        assert drawn or seen.attributes <= {"class", "href"}
        assert not [name for name in seen.attributes if name.startswith("on") or name in ("src", "srcset", "xlink:href")]
    page = read(render("base.html", title=word, body=word, facts={word: word}))
    assert not {"script", "comment"} & set(page.tags)
    assert page.tags.count("title") == 1
