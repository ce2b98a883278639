"Reading grows with the text and no faster, however it is nested: steps and copied characters are counted (benchmarks/doublings.py: times)."
import cProfile
import pstats
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from distillery.core.records import Document
from distillery.pairs.chunk import chunk_documents
from distillery.reading import furniture, html, plain
from distillery.reading.files import read_file
from distillery.reading.html import DEEP, SEAM, fragment_to_text, html_to_text
from distillery.reading.plain import Unreadable, joined, reflow

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
from doublings import LOOKS, MARKDOWN, PLAIN, TAGS

WORDS = "The lid is closed. "


def read(text: str, kind: str) -> None:
    try: title, text, mime = read_file(text.encode(), f"a.{kind}")
    except Unreadable: return
    chunk_documents([Document(doc_id="d", path=f"a.{kind}", title=title, text=text, mime=mime, digest="d")])


def steps(text: str, kind: str) -> int:
    "Calls of functions, built-in ones included."
    profile = cProfile.Profile()
    profile.runcall(read, text, kind)
    return pstats.Stats(profile).total_calls


TAG = st.builds(lambda tag, look: f"<{tag}{look}>", st.sampled_from(TAGS), st.sampled_from(LOOKS))
REST = st.sampled_from([WORDS, "</p>", "</x>", "<table><tr><td>"])
UNITS = {"md": st.sampled_from(MARKDOWN), "txt": st.sampled_from(PLAIN), "html": st.one_of(TAG, TAG, REST)}


@pytest.mark.parametrize("kind", [pytest.param("md", marks=pytest.mark.slow), "txt", "html"])
@pytest.mark.attack(row=3)
def test_four_times_the_text_takes_four_times_the_steps(kind):
    @settings(max_examples=8)
    @given(st.lists(UNITS[kind], min_size=1, max_size=3).map("".join), st.sampled_from(["", WORDS]))
    def check(unit, words):
        once, more = (steps(unit * n + words * n, kind) for n in (250, 1000))  # a passage holds 220 words
        assert more <= 4.6 * once + 2000, (unit, words, once, more)
    read(WORDS, kind)  # what is loaded and compiled once
    check()


PAIRS = [("<table><tr><td>", "</table>"), ("<table><tr><th>", "</table>"), ("<sup>", "</sup>"), ("<pre>", "</pre>")]


@pytest.mark.attack(row=3)
@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("read", [fragment_to_text, html_to_text])
def test_a_text_is_copied_a_bounded_number_of_times_however_deep_it_stands(pair, read, monkeypatch):
    copied, held = [], html.TextOf._held
    monkeypatch.setattr(html.TextOf, "_held", lambda self, tag, text, node: copied.append(len(text)) or held(self, tag, text, node))
    text = read(pair[0] * 300 + WORDS * 100 + pair[1] * 300)
    assert text.replace("^", "").replace("(", "").strip().startswith("The lid is closed.")
    assert sum(copied) <= 2 * DEEP * len(WORDS) * 100


def test_named_boxes_inside_of_one_another_are_not_all_counted(monkeypatch):
    looked, named = [], furniture._named
    monkeypatch.setattr(furniture, "_named", lambda node: looked.append(node) or named(node))
    page = "<body>" + "<div class='menu'>" * 500 + f"<p>{WORDS * 30}" + "</div>" * 500 + "<div class='menu'><a href='/'>Home</a></div>"
    text = html_to_text(page)
    assert len(looked) <= furniture.NESTED + 1
    assert "lid" in text
    assert "Home" not in text


def test_tags_that_are_ignored_do_not_make_one_text_of_all():
    "A parser that appends to a text copies it each time."
    for unit in ("The lid. </th>", "<tr id='nav'>The lid. ", "a</x>"):
        tree = html._parse("<html><body>" + unit * 3000)
        longest = max(len(node.text_content) for opens, node in furniture.walk(tree.body, lambda _: False) if node.is_text_node)
        assert longest <= SEAM + 99, unit
    assert html_to_text("<body><pre>" + "x &lt; y</b>\n" * 900).count("x < y") == 900, "and nothing else changes"


@pytest.mark.parametrize("unit", ["<details>", "<svg>a</x>", "<pre>", "<ul><li>", "<x-y><a@b.c><k><l>", "<span><i><b><u>"])
@pytest.mark.attack(row=4)
def test_what_is_nested_too_deep_is_refused_before_it_is_parsed(unit):
    with pytest.raises(Unreadable, match="nested in one another"): fragment_to_text(unit * 3000 + "x")


@pytest.mark.parametrize("markup", ["<p>a" * 9000, "<table>" + "<tr><td>a" * 9000, "<li>a" * 9000, "<p><br>a" * 9000, "<b>a</b>" * 9000,
                                    "<svg>" + "<path d='M0 0'/><g/>" * 9000 + "</svg><p>a", "Mail <ann@example.org> a " * 5000,
                                    "<script>" + "if (a<b && c<d) x<y;" * 3000 + "</script><p>a", "<!--" + "<div>" * 3000 + "--><p>a"])
def test_what_only_looks_nested_is_read(markup): assert "a" in fragment_to_text(markup)


def test_hyphens_at_every_line_end_join_in_one_pass(monkeypatch):
    ends, seam = [], plain._seam
    monkeypatch.setattr(plain, "_seam", lambda before, after: ends.append(len(before)) or seam(before, after))
    assert reflow("ab-\n" * 2000) == "ab" * 1999 + "ab-"
    assert max(ends) <= 6
    assert joined(["the ser-", "vice of self-", "made A-", "4 lids, 3-", "x"]) == "the service of self-made A-4 lids, 3-x"


def test_the_same_passage_a_thousand_times_has_a_short_name_each_time():
    section = "# A\n\n" + WORDS * 12 + "\n\n"
    chunks = chunk_documents([Document(doc_id="d", path="a.md", title="A", text=section * 1000, mime="text/markdown", digest="d")])
    names = [c.chunk_id for c in chunks]
    assert len(set(names)) == len(names) > 900
    assert max(map(len, names)) < 20
    assert names[1] == names[0] + "x", "as it has always been"
