"Splits that stay: documents that come move nothing, and no family and no linked passage stands on two sides."
import random

import pytest

from distillery.core.config import load_config
from distillery.core.records import Chunk, Pair
from distillery.pairs.dataset import build_dataset, check_leaks, settled, split_documents
from distillery.pairs.linked import link_pairs
from distillery.selection.sides import SHARES

WORDS = "valve drum lid press hall ink paper roller foreman key shift belt blade motor lamp cellar ladder switch pump filter".split()


def prose(rng): return " ".join(f"{rng.choice(WORDS).capitalize()} {rng.randrange(900)} of {rng.choice(WORDS)} {rng.choice(WORDS)} "
                                f"needs {rng.choice(WORDS)}." for _ in range(5))


def corpus(rng, first, n, before=()):
    "Documents of one to three passages, some of them copied from others; families of questions, some over two documents."
    chunks, copies, pairs = list(before), [], []
    for d in range(first, first + n):
        for c in range(rng.randint(1, 3)):
            source = rng.choice(chunks) if chunks and rng.random() < .25 else None
            if source and sum(o.text == source.text for o in chunks) > 2: source = None  # in more documents it would be boilerplate
            text = source.text if source else prose(rng)
            chunks.append(Chunk(chunk_id=f"d{d}-{c}", doc_id=f"d{d}", heading="", text=text, start=0, end=len(text), category="k"))
            if source and source.doc_id != f"d{d}": copies.append((source.chunk_id, f"d{d}-{c}"))
    for c in chunks[len(before):]:
        for q in range(rng.randint(1, 2)):
            family = f"shared-{rng.randrange(4)}" if rng.random() < .05 else f"{c.chunk_id}-{q}"
            pairs += [Pair(id=f"{c.chunk_id}-{q}-{w}", doc_id=c.doc_id, chunk_id=c.chunk_id, family_id=family, category="k",
                           difficulty=rng.choice(["easy", "hard"]), question=f"What of {c.chunk_id} and {q}, asked the way {w}?",
                           answer=f"{c.chunk_id} {q}", teacher="t") for w in range(rng.randint(1, 3))]
    return chunks, copies, pairs


def split(pairs, chunks, shares):
    config = load_config(overrides={"dataset.splits": shares})
    linked = settled(link_pairs(pairs, {c.chunk_id: c.text for c in chunks}), pairs, config)
    rows = build_dataset(pairs, chunks, config, linked=linked)
    assert check_leaks(rows, linked) == []
    assert rows == build_dataset(pairs, chunks, config)
    return rows, split_documents(pairs, config)


def stands(rows, of):
    "Where things stand: the sides of each, recall counted as training."
    found = {}
    for name, some in rows.items():
        for e in some: found.setdefault(of(e), set()).add("train" if name == "recall" else name)
    return found


def hold(seeds):
    crossing = 0
    for seed in seeds:
        rng, shares = random.Random(seed), list(SHARES)[seed % 2]
        chunks, copies, pairs = corpus(rng, 0, rng.randint(8, 16))
        more, others, new = corpus(rng, 100, rng.randint(1, 6), chunks)
        rows, sides = split(pairs, chunks, shares)
        now, after = split([*pairs, *new], more, shares)
        assert sides.items() <= after.items()  # no document moves
        for made, linked in ((rows, copies), (now, copies + others)):
            assert all(len(where) == 1 for of in (lambda e: e.family_id, lambda e: e.chunk_id) for where in stands(made, of).values())
            at = stands(made, lambda e: e.chunk_id)
            assert not [pair for pair in linked if len(at.get(pair[0], set()) | at.get(pair[1], set())) > 1]
            crossing += sum(len({after[a.split("-")[0]], after[b.split("-")[0]]}) > 1 for a, b in linked
                            if {a.split("-")[0], b.split("-")[0]} <= after.keys())
        before, then = stands(rows, lambda e: e.pair_id), stands(now, lambda e: e.pair_id)
        assert all(then[p] == where for p, where in before.items() if p in then)  # no pair moves
        assert {p for p, where in before.items() if where == {"test"}} <= then.keys() | {p.id for p in new}  # a test question stays
    return crossing


def test_added_documents_move_nothing_and_nothing_crosses():
    assert hold(range(4)) > 3  # copies that would have crossed


@pytest.mark.slow
def test_two_hundred_random_corpora(): assert hold(range(200)) > 200


def test_balanced_splits_are_as_they_were():
    chunks, _, pairs = corpus(random.Random(3), 0, 20)
    config = load_config()
    linked = link_pairs(pairs, {c.chunk_id: c.text for c in chunks})
    assert settled(linked, pairs, config) is linked
    assert set(split_documents(pairs, config, linked.groups).values()) == {"train", "validation", "test"}
