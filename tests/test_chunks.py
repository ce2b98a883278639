"The chunks card: a planted best size is found, planted none is a tie; places, duplicates and titles count as said."
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
from real_documents import audio_docs, needs_data, stories

from distillery.core.config import load_config, restrict
from distillery.core.files import read_jsonl, write_jsonl
from distillery.core.records import Chunk, Document, Pair
from distillery.pairs.chunk import chunk_documents
from distillery.pairs.documents import read_documents
from distillery.pairs.generate import generate_pairs
from distillery.questions.chunks import stages
from distillery.questions.chunks.cuts import ChunkQuery, Cut, cut_document, design, pair_evidence
from distillery.questions.chunks.decision import CHUNKS, chunk_decision, chunk_decisions, chunk_rows, factor_contrasts
from distillery.questions.chunks.stages import chunk_stages, compare_cuts, questions_of
from distillery.questions.question import NOT_RUN
from distillery.questions.results import Results
from distillery.retrieval.search import Bm25Searcher
from distillery.teachers.extractive import ExtractiveTeacher
from distillery.teachers.journal import Journal

KEPT = Path(__file__).parent / "data/run"
PARTS = ("seal", "valve", "motor", "filter")


def manual(i: int, said: bool) -> Document:
    "Machines of a page, each named once and then spoken of as `it`, or named in every sentence."
    machines = []
    for m in range(3):
        name = f"Machine{i}x{m}"
        lines = [f"The {name} is a pump of the eastern plant that was built for water and for oil."]
        who = f"The {name}" if said else "It"
        lines += [f"{who} has a {part} which lasts {n + m + i} months and is checked by the shift." for n, part in enumerate(PARTS)]
        machines.append(" ".join(lines))
    return Document(doc_id=f"d{i}", path=f"d{i}.md", title="Pumps", mime="text/markdown", digest="", text="\n\n".join(machines))


def shelf(said: bool) -> tuple[list[Document], list[ChunkQuery]]:
    "Pages, and a question about a part of each machine."
    documents = [manual(i, said) for i in range(24)]
    asked = []
    for i, d in enumerate(documents):
        for m in range(3):
            at = d.text.index(f"The Machine{i}x{m}")
            for part in PARTS[::2]:
                start = d.text.index(f"a {part}", at)
                asked.append(ChunkQuery(id=f"{i}/{m}/{part}", doc_id=d.doc_id, places=[(d.doc_id, start, start + len(part) + 2)],
                                        question=f"How many months lasts the {part} of the Machine{i}x{m}?"))
    return documents, asked


def card(said: bool, tokens: int):
    "The card of three sizes: a sentence, a machine, a page."
    documents, asked = shelf(said)
    rows, cuts = compare_cuts(documents, asked, [Cut(400), Cut(20), Cut(90)], Bm25Searcher, 1)
    return chunk_decision(rows, cuts, load_config(overrides={"decisions.chunk_tokens": tokens, "decisions.resamples": 999})), rows, cuts


def test_a_planted_best_size_is_found():
    made, _, _ = card(said=False, tokens=100)  # a sentence has lost the machine's name, a page is more than is read
    assert made.sentence.startswith("Cut at 90 tokens, shown better than the run's own 400 tokens"), made.sentence
    assert made.n_clusters == 24
    assert {e.level: e.mean > 0.9 for e in made.estimates} == {"400 tokens": False, "20 tokens": False, "90 tokens": True}


def test_planted_none_is_a_tie():
    made, _, _ = card(said=True, tokens=600)  # each sentence names its machine, and a whole page is read
    assert made.verdict.startswith("equivalent"), made.sentence
    assert made.sentence.startswith("Keep the run's own cut, 400 tokens")  # none has fewer passages
    assert {round(e.mean, 3) for e in made.estimates} == {1.0}


def test_a_title_finds_what_a_passage_has_lost():
    documents, asked = shelf(False)
    named = [d.model_copy(update={"title": f"Machines of hall {i}"}) for i, d in enumerate(documents)]
    asked = [q.model_copy(update={"question": f"{q.question} It is in hall {q.doc_id[1:]}."}) for q in asked]
    rows, cuts = compare_cuts(named, asked, design(400, [20], [0.0], [False, True]), Bm25Searcher, 1)
    effect = factor_contrasts(rows, cuts, load_config(overrides={"decisions.chunk_tokens": 200}))
    assert [c.a for c in effect] == ["titled"]
    assert effect[0].ci_low > 0


def test_passages_of_no_overlap_are_those_of_a_run_and_none_grows():
    documents = read_jsonl(KEPT / "documents.jsonl", Document)[:12]
    runs = [(c.doc_id, c.start, c.end) for c in chunk_documents(documents, 90, 20)]
    assert [(p.doc_id, p.start, p.end) for d in documents for p in cut_document(d, Cut(90), 20)] == runs
    shared = [cut_document(d, Cut(90, 0.5), 20) for d in documents]
    assert max(p.tokens for some in shared for p in some) <= 90
    assert any(b.start < a.end for some in shared for a, b in pairwise(some))


def test_the_sentence_elsewhere_counts_and_odd_questions_are_left_out():
    says = "The eastern pump is serviced every six months by the night shift of the plant."
    pages = [Document(doc_id=i, path=f"{i}.md", title=i, mime="text/markdown", digest="", text=t)
             for i, t in (("a", says), ("b", f"Of May. {says} Done."), ("c", "The western pump is new. It is blue."))]
    evidence = {"start": says.index("six"), "end": says.index(" by"), "text": "six months"}
    pair = lambda i, question: Pair(id=i, doc_id="a", chunk_id="x", family_id=i, category="c", difficulty="easy", question=question,
                                    answer="six months", evidence=evidence, teacher="t")
    asked, left, known = pair_evidence([pair("1", "How often is the eastern pump serviced?"), pair("2", "How often is it serviced?"),
                                 pair("3", "What does the passage say of the eastern pump?")], pages, chunk_documents(pages, 90, 1), 9)
    assert known == 1
    assert [q.id for q in asked] == ["1"]
    assert [p[0] for p in asked[0].places] == ["a", "b"]
    assert left["not self-contained"] == 2


def test_documents_ask_for_themselves_where_nobody_asked(tmp_path):
    documents, chunks = (read_jsonl(KEPT / f"{name}.jsonl", kind) for name, kind in (("documents", Document), ("chunks", Chunk)))
    found, told = questions_of(documents, chunks, [], "like these")
    assert told["questions_from"] == "sentences"
    assert 1 < told["asked"] <= stages.ASKED
    words = found[0].question.split()
    doc, start, end = found[0].places[0]
    text = next(d.text for d in documents if d.doc_id == doc)[start:end].lower()
    assert len(words) >= 3
    assert all(w in text for w in words)


def test_the_settings_decide_what_is_cut_and_read(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(stages, "compare_cuts", lambda documents, asked, ways, *rest: seen.append([c.name for c in ways]) or ([], []))
    sets = ({"decisions.chunk_sizes": [60]}, {"decisions.chunk_sizes": [60], "decisions.chunk_overlaps": [0.0]},
            {"decisions.chunk_sizes": [60], "decisions.chunk_titles": [False]})
    for name, kind in (("documents", Document), ("chunks", Chunk), ("selected", Pair)):
        write_jsonl(tmp_path / f"{name}.jsonl", read_jsonl(KEPT / f"{name}.jsonl", kind)[:150])
    for settings in sets:
        config = load_config(overrides=settings)
        stage = chunk_stages(None, config, tmp_path)[0]
        needs = {"documents": tmp_path, "select": tmp_path}
        stage.run(SimpleNamespace(config=restrict(config, stage.reads), needs=needs, out=tmp_path, say=None))
    assert [len(names) for names in seen] == [8, 4, 4]
    assert seen[1] == ["220 tokens", "60 tokens", "60 tokens, titled", "220 tokens, titled"]
    assert chunk_stages(None, load_config(), tmp_path) == []
    assert CHUNKS.why_not(Results(KEPT)) == NOT_RUN
    assert "decisions.chunk_sizes=" in CHUNKS.command()


def test_more_is_found_where_more_is_read():
    few, many = (card(said=False, tokens=n)[0] for n in (40, 400))
    assert all(a.mean <= b.mean for a, b in zip(few.estimates, many.estimates, strict=True))
    assert few.estimates != many.estimates


def compared(folder: Path, out: Path, sizes: list[int]):
    "The stage of a run over a folder, with what rules ask about it."
    config = load_config(overrides={"decisions.chunk_sizes": sizes, "decisions.chunk_overlaps": [0.0, 0.25]})
    documents = read_documents(folder).documents
    chunks = chunk_documents(documents, config.chunking.max_tokens, config.chunking.min_tokens)
    pairs = generate_pairs(chunks, ExtractiveTeacher(), Journal(out / "calls.sqlite"), config).pairs
    for name, rows in (("documents", documents), ("chunks", chunks), ("selected", pairs)): write_jsonl(out / f"{name}.jsonl", rows)
    (out / "chunks").mkdir()
    (stage,), view = chunk_stages(None, config, out), {"needs": {"documents": out, "select": out}, "say": lambda *now: None}
    stage.run(SimpleNamespace(config=restrict(config, stage.reads), out=out / "chunks", **view))
    return Results(out), config


@pytest.mark.slow
@needs_data
@pytest.mark.parametrize(("make", "sizes"), [(audio_docs, [120]), (stories, [60])], ids=["pages", "stories"])
def test_real_documents_have_a_card_without_a_question_that_anybody_wrote(make, sizes, tmp_path):
    (tmp_path / "docs").mkdir()
    results, config = compared(make(tmp_path / "docs"), tmp_path, sizes)
    cards, (_, cuts) = chunk_decisions(results, config), chunk_rows(results)
    assert len(cards) == 1
    assert cards[0].n_items > 50
    assert len(cards[0].levels) == len(cuts) == 8
    assert all(e.ci_low <= e.mean <= e.ci_high for e in cards[0].estimates)
    assert cards[0].sentence.startswith(("Cut at", "Keep the run's own cut"))
