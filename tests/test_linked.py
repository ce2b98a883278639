"Leaks by text: passages that stand twice under other names are found, linked, and never on two sides of a split."

import json
import random
import re
import tarfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from distillery.core.config import load_config
from distillery.core.records import Pair
from distillery.pairs import linked
from distillery.pairs.chunk import chunk_documents
from distillery.pairs.dataset import build_dataset, check_leaks, split_documents
from distillery.pairs.documents import read_documents
from distillery.pairs.imports import read_pairs
from distillery.pairs.linked import find_links, link_documents, link_pairs
from distillery.pairs.passages import CANDIDATES, plain_letters

SHARED = Path(__file__).parents[2] / "shared"
CONFIG = load_config(preset="qa-import")
WORDS = (
    "valve drum lid press hall ink paper roller foreman key shift belt blade motor lamp cellar ladder switch pump filter gauge hose".split()
)


def page(seed, n=60):
    r = random.Random(seed)
    return " ".join(
        f"{r.choice(WORDS).capitalize()} {r.randrange(900)} of {r.choice(WORDS)} {r.choice(WORDS)} needs {r.choice(WORDS)}."
        for _ in range(n // 6)
    )


def reflowed(text):
    return re.sub(r"(\S+ \S+ \S+) ", r"\1\n", text).replace("needs", "NEEDS").replace("press", "pre-\nss")


def edited(text):
    return re.sub(r"\d+", lambda m: str(int(m[0]) + 1) if int(m[0]) % 5 == 0 else m[0], text, count=3).replace("needs", "requires", 1)


def quoted(text):
    return f"As the old book says: {text} So it was, and so it is in our own house."


def half(text):
    return f"{page(text, 6)} {text[: len(text) * 9 // 10]}"


EDITIONS = {"renamed": str, "reflowed": reflowed, "edited": edited, "quoted": quoted, "cut": half}


@pytest.mark.parametrize("edition", EDITIONS)
@pytest.mark.parametrize("n", [4, 12, 60])
def test_planted_editions_are_all_found_and_nothing_else(edition, n):
    texts = [page(i) for i in range(n)]
    planted = range(0, n, 4)
    docs = [f"book {i}" for i in range(n)] + [f"other {i}" for i in planted]
    found = find_links(docs, [*texts, *(EDITIONS[edition](texts[i]) for i in planted)])
    assert {(k.first, k.second) for k in found} == {(i, n + j) for j, i in enumerate(planted)}


def test_editions_that_are_cut_at_other_places_are_linked():
    sentences = [page(i, 18) for i in range(12)]
    one = [" ".join(sentences[i : i + 3]) for i in range(0, 12, 3)]
    two = [" ".join(sentences[max(0, i) : i + 3]) for i in range(-1, 12, 3)]
    found = link_documents(["a"] * 4 + ["b"] * 5 + ["c"], [*one, *two, page(99)], Counter(a=3, b=3, c=9))
    assert found.groups == {"a": "a", "b": "a"}


def test_many_editions_in_a_small_collection_are_linked_and_forms_are_not():
    texts = [page(i) for i in range(3)]
    docs = [f"{y} page {i}" for y in (2021, 2022, 2023, 2024, 2025) for i in range(3)]
    editions = [t if y % 2 else edited(t).replace("lid", f"lid {y}") for y in range(5) for t in texts]
    found = link_documents(docs, editions, Counter(docs))
    assert sorted(Counter(found.groups.values()).values()) == [5, 5, 5]
    assert all(d.rpartition(" ")[2] == h.rpartition(" ")[2] for d, h in found.groups.items())
    form = "Order {0} of firm {1}: we thank you for it and have sent {0}7 rollers of {1} paper on day {2} of the year."
    filled = [form.format(i + 10, w, 40 + i) for i, w in enumerate(WORDS[:12])]
    assert link_documents(docs[:12], filled, Counter(docs[:12])).groups == {}


def test_boilerplate_links_nothing_and_whole_copies_link_however_many_there_are():
    licence = "This page may be copied and changed by anyone, as long as the name of its author and this notice are kept. " * 2
    texts = [page(i) for i in range(40)]
    docs = [f"d{i}" for i in range(40)]
    assert find_links(docs, [f"{t} {licence}" for t in texts]) == []
    assert find_links([d for d in docs for _ in range(2)], [x for t in texts for x in (t, licence)]) == []
    copies = link_documents(docs, texts[:30] + [texts[0]] * 10, Counter(docs))
    assert Counter(copies.groups.values()) == {"d0": 11}


def test_a_group_above_half_of_the_pairs_loses_its_repeats():
    docs, texts = list("abcdefgh"), [page(1)] * 6 + [page(2), page(3)]
    found = link_documents(docs, texts, Counter(docs))
    assert (found.groups, found.repeats) == ({}, {1, 2, 3, 4, 5})
    pairs = [pair(d, f"What is item {i}?", f"thing {i}", chunk=f"c{i}") for i, d in enumerate(docs)]
    assert link_pairs(pairs, {f"c{i}": t for i, t in enumerate(texts)}).repeats == {p.id for p in pairs[1:6]}


def test_templates_that_differ_in_their_figures_are_no_repeats():
    texts = [f"Invoice {i}: the total amount of all the positions in this bill is {i}40 EUR, due in May." for i in range(1, 5)]
    found = link_documents("abcd", texts, Counter("abcd"))
    assert (found.groups, found.repeats) == ({}, set())


def pair(doc, question, answer, chunk="", **more):
    return Pair(
        id=f"{doc}/{question}",
        doc_id=doc,
        chunk_id=chunk,
        family_id=f"{doc}/{question}",
        category="c",
        difficulty="easy",
        question=question,
        answer=answer,
        teacher="imported",
        **more,
    )


def test_bare_pairs_are_linked_by_question_and_answer_together():
    asked = [
        ("At which pressure does valve 1 open?", "10 bar"),
        ("At which pressure does the valve 1 open", "10 bar"),
        ("At which pressure does valve 2 open?", "11 bar"),
        ("Who keeps the key of the cellar?", "the foreman"),
        ("When is the drum cleaned by the shift?", "at noon"),
    ]
    long = "It is opened with the small key, turned twice to the left, and closed again before the shift ends, as the book says."
    pairs = [pair(f"d{i}", q, a) for i, (q, a) in enumerate(asked)] + [
        pair("l1", "How is it opened?", long),
        pair("l2", "Tell me how to open it?", long),
    ]
    assert link_pairs(pairs, {}).groups == {"d0": "d0", "d1": "d0", "l1": "l1", "l2": "l1"}


# The split, and the check after it


def two_editions(n=30):
    rows = []
    for i in range(n):
        text = f"The valve {i} of the press opens at {10 + i} bar and closes after {3 + i} seconds."
        rows += [
            {
                "title": f"manual 2023 page {i}",
                "context": text,
                "question": f"At which pressure does valve {i} open?",
                "answer": f"{10 + i} bar",
            },
            {
                "title": f"manual 2024 page {i}",
                "context": text,
                "question": f"After how many seconds does valve {i} close?",
                "answer": f"{3 + i} seconds",
            },
        ]
    return rows


def sides(found, config=CONFIG):
    splits = build_dataset(found.pairs, found.chunks, config)
    assert check_leaks(splits) == []
    where = {}
    for name in ("train", "validation", "test"):
        for e in splits[name]:
            if e.passage:
                where.setdefault(plain_letters(e.passage), set()).add(name)
    return splits, where


@pytest.mark.parametrize("made", [True, False])
def test_one_passage_under_two_titles_is_on_one_side(tmp_path, made):
    path = SHARED / "cases/27_same_passage_two_titles/pairs.jsonl"
    if made:
        path = tmp_path / "p.jsonl"
        path.write_text("\n".join(map(json.dumps, two_editions())))
    elif not path.is_file():
        pytest.skip("../shared/cases is not here")
    splits, where = sides(read_pairs(path))
    assert len(where) == 30
    assert all(len(names) == 1 for names in where.values())
    assert all(splits[n] for n in ("train", "validation", "test"))


def test_invoices_among_other_pages_are_no_leak_to_the_check_either(tmp_path):
    bill = "Invoice {0}: the total amount of all the positions in this bill is {0}40 EUR, due in May."
    rows = [{"question": "What is the total amount?", "answer": f"{i}40 EUR", "context": bill.format(i)} for i in range(1, 5)]
    rows += [{"question": f"What does page {i} say of the {WORDS[i]}?", "answer": WORDS[i], "context": page(i)} for i in range(3)]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    sides(read_pairs(tmp_path / "p.jsonl"))


def test_a_planted_leak_is_seen_by_the_check_alone(tmp_path):
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, two_editions(12))))
    found = read_pairs(tmp_path / "p.jsonl")
    splits, _ = sides(found)
    row = next(e for e in splits["train"] if e.passage)
    for change in (str, reflowed, edited):
        leak = row.model_copy(
            update={"doc_id": "new", "chunk_id": "new-0", "question": "Is this another question?", "passage": change(row.passage)}
        )
        said = check_leaks({**splits, "test": [*splits["test"], leak]})
        assert any("hold the same passage" in s and "new" in s for s in said), change


@settings(max_examples=15)
@given(st.integers(4, 14), st.lists(st.tuples(st.integers(0, 13), st.sampled_from(sorted(EDITIONS))), max_size=6), st.integers(0, 99))
def test_no_passage_is_ever_on_two_sides(n, planted, seed):
    texts = [page(1000 + i) for i in range(n)]
    texts += [EDITIONS[edition](texts[i % n]) for i, edition in planted]
    pairs = [pair(f"d{i}", f"What does page {i} say of the lamp {i}?", f"lamp {i}", chunk=f"c{i}") for i in range(len(texts))]
    config = load_config(preset="qa-import", overrides={"dataset.seed": seed})
    together = link_pairs(pairs, {f"c{i}": t for i, t in enumerate(texts)})
    where = split_documents([p for p in pairs if p.id not in together.repeats], config, together.groups)
    for j, (i, _) in enumerate(planted):
        a, b = f"d{i % n}", f"d{n + j}"
        if a in where and b in where:
            assert where[a] == where[b]


def test_equal_copies_with_other_editions_between_them_make_no_boilerplate():
    texts = [page(1000 + i) for i in range(8)]
    texts += [EDITIONS[e](texts[1]) for e in ("quoted", "edited", "quoted")]
    groups = link_documents([f"d{i}" for i in range(11)], texts, Counter(f"d{i}" for i in range(11))).groups
    assert groups == dict.fromkeys(("d1", "d8", "d9", "d10"), "d1")


# Real pages, and work


@pytest.mark.slow
def test_real_pages_have_no_false_group_and_planted_ones_are_found(tmp_path):
    archive = SHARED / "data/audio_docs/audio_docs.tar.gz"
    if not archive.is_file():
        pytest.skip("../shared/data is not here")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    chunks = chunk_documents(read_documents(tmp_path).documents, 220, 20)
    docs, texts = [c.doc_id for c in chunks], [c.text for c in chunks]
    plain = link_documents(docs, texts, Counter(docs))
    assert plain.repeats == set()
    assert max(Counter(plain.groups.values()).values(), default=1) <= 0.05 * len(set(docs))
    names = sorted(set(docs) - set(plain.groups))[::7]
    again = [
        (f"again {d}", EDITIONS[e](t))
        for d, e in zip(names, [*EDITIONS] * 2, strict=False)
        for x, t in zip(docs, texts, strict=True)
        if x == d
    ]
    found = link_documents([*docs, *(d for d, _ in again)], [*texts, *(t for _, t in again)], Counter(docs))
    assert all(found.groups.get(f"again {d}") == found.groups.get(d) is not None for d in names[: len({d for d, _ in again})])


@pytest.mark.parametrize("n", [100, pytest.param(400, marks=pytest.mark.slow)])
def test_no_passage_is_compared_with_more_than_a_few(monkeypatch, n):
    compared = []
    original = linked.contained
    monkeypatch.setattr(linked, "contained", lambda index, *ij: compared.append(ij) or original(index, *ij))
    docs = [str(i) for i in range(n)]
    for texts in ([page(1)] * n, [f"{page(i)} {page(n + i % 7)}" for i in range(n)], [page(i) for i in range(n)]):
        compared.clear()
        link_documents(docs, texts, Counter(docs))
        assert len(compared) <= 2 * CANDIDATES * n
    assert len(compared) < n / 4
