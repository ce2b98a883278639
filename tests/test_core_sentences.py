"One sentence splitter: it says what its slow and plain definition says, and long lines without an end cost no more than others."
import re
import textwrap
from itertools import pairwise

import pytest
from hypothesis import given, strategies as st

from distillery.core.metrics import count_sentences
from distillery.core.records import Document
from distillery.core.sentences import ABBREVIATIONS, line_sentences, split_sentences
from distillery.pairs.chunk import chunk_documents, count_tokens
from distillery.teachers.extractive import sentences

END = re.compile(r"[.!?…]+[\"')\]”’]*(?=\s+[\"'(\[“‘]?[A-Z0-9])")
WORDS = ["a", "I", "J", "e.g", "No", "max", "press", "5", "9", "ü", "_", "Z"]
MARKS = [".", "..", "!", "?", "…", '"', "'", ")", "(", "“", "”", " ", "  ", "\t", "\u00a0"]
PIECES = st.lists(st.sampled_from(WORDS + MARKS), max_size=25).map("".join)


def plain_breaks(line):
    "The definition, without care for time."
    for match in END.finditer(line):
        number, word = re.search(r"(\d\s+)?([\w.]*)$", line[: match.start()]).groups()
        before = word.lower().lstrip(".")
        initial = len(before) == 1 and before.isalpha() and before != "i" and not number
        if line[match.start()] != "." or not (before in ABBREVIATIONS or initial): yield match.end()


@given(PIECES)
def test_it_cuts_where_the_plain_definition_cuts(line):
    edges = [0, *plain_breaks(line), len(line)]
    wanted = [line[a:b].strip() for a, b in pairwise(edges) if line[a:b].strip()]
    assert [line[a:b] for a, b in line_sentences(line)] == wanted


@given(PIECES, st.booleans(), st.booleans())
def test_nothing_is_lost_and_nothing_overlaps(line, loose, units):
    spans = line_sentences(line, loose, units)
    assert "".join("".join(line[a:b] for a, b in spans).split()) == "".join(line.split())
    assert all(b <= c for (_, b), (c, _) in pairwise(spans))


PROSE = "The press in hall 3 prints 7,200 sheets an hour, and nobody has counted them since. " * 2400
HOSTILE = {
    "wrapped": "\n".join(textwrap.wrap(PROSE, 72)), "one line": PROSE[:50_000], "dots": "." * 50_000, "dots and spaces": ". " * 25_000,
    "spaces": "x." + " " * 50_000, "closing quotes": '."' * 25_000, "initials": "A. " * 16_000, "no spaces": "a,b." * 12_000,
    "ellipses": "… " * 25_000}


@pytest.mark.parametrize("name", HOSTILE)
def test_long_texts_come_to_an_end(name):
    "What is quadratic takes minutes here."
    text = HOSTILE[name]
    for split in (split_sentences, sentences, count_sentences): split(text)
    document = Document(doc_id="d", path="a/long.md", title="Long", text=text, mime="text/markdown", digest="d")
    chunks = chunk_documents([document])
    assert all(c.text == text[c.start:c.end] for c in chunks)
    if name in ("wrapped", "one line"): assert max(count_tokens(c.text) for c in chunks) <= 220
