"Work from documents to dataset grows with the pages and no faster: calls are counted, no time is taken (benchmarks/growth.py does)."
import cProfile
import pstats
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from pairs_oracle import Oracle, write_handbook

from distillery.core.config import load_config, restrict
from distillery.core.files import StoreError, stream_jsonl, write_jsonl
from distillery.core.records import Chunk, Pair
from distillery.core.script import fold, fold_places
from distillery.pairs import generate, slots
from distillery.pairs.asked import AskedQuestions
from distillery.pairs.asking import TeacherClient
from distillery.pairs.chunk import chunk_documents
from distillery.pairs.dataset import build_dataset, check_leaks, place_gold
from distillery.pairs.documents import read_documents
from distillery.pairs.fit import fit_rows
from distillery.pairs.room import Room, StudentTokens
from distillery.pairs.select import near_duplicates, select_pairs
from distillery.teachers.extractive import ExtractiveTeacher, answers_of
from distillery.teachers.journal import Journal
from distillery.teachers.lines import facts_of

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
from growth import slope, write_pages

CONFIG = load_config(preset="technical-docs")


def calls(work) -> int:
    "Function calls that something takes."
    profile = cProfile.Profile()
    profile.runcall(work)
    return pstats.Stats(profile).total_calls


def counted(pages: int, folder: Path) -> dict[str, int]:
    "Calls of every stage, and the pairs."
    write_pages(folder / "docs", pages)
    answers_of.cache_clear()
    facts_of.cache_clear()
    made, view = {}, restrict(CONFIG, ["dataset", "generation_limits", "llm_defaults", "teacher", "prompts", "validation", "evaluation"])

    def documents(): made["chunks"] = chunk_documents(read_documents(folder / "docs").documents, 220, 20, Room(CONFIG))
    def generating(): made["pairs"] = generate.generate_pairs(made["chunks"], ExtractiveTeacher(), Journal(folder / "j.sqlite"), view).pairs
    def selecting(): made["kept"] = select_pairs(made["pairs"], CONFIG).kept
    def splitting():
        made["sets"] = build_dataset(made["kept"], made["chunks"], CONFIG)
        assert check_leaks(made["sets"]) == []
    def fitting(): fit_rows(made["sets"], StudentTokens("builtin:mini"), 384)
    return {f.__name__: calls(f) for f in (documents, generating, selecting, splitting, fitting)} | {"pairs": len(made["pairs"])}


@pytest.mark.slow
def test_three_times_the_pages_take_three_times_the_calls(tmp_path, monkeypatch):
    monkeypatch.setattr(slots.slot_windows, "__defaults__", (60,))
    for name in ("warm", "6", "18"): (tmp_path / name).mkdir()
    counted(1, tmp_path / "warm")
    small, large = counted(6, tmp_path / "6"), counted(18, tmp_path / "18")
    assert small["pairs"] > 100
    for stage, n in large.items():
        sizes = [6, 18] if stage in ("documents", "pairs") else [small["pairs"], large["pairs"]]
        assert slope(sizes, [small[stage], n]) <= 1.2, (stage, small[stage], n)  # a square would be 2; the benchmark asks for 1.1


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    folder = tmp_path_factory.mktemp("book")
    return write_handbook(folder, 4), chunk_documents(read_documents(folder).documents)


def test_windows_lose_no_slot_and_repeat_no_question(book, tmp_path, monkeypatch):
    facts, chunks = book
    config = load_config(preset="handbook")
    whole = generate.generate_pairs(chunks, Oracle(facts), Journal(tmp_path / "a.sqlite"), config)
    parts = list(slots.slot_windows(chunks, config, least=20))
    assert len(parts) > 3
    assert [c for some, _ in parts for c in some] == list(chunks)
    assert [s for _, plan in parts for s in plan] == slots.plan_slots(chunks, config)
    monkeypatch.setattr(slots.slot_windows, "__defaults__", (20,))
    streamed = list(generate.stream_pairs(TeacherClient((), Oracle(facts), Journal(tmp_path / "b.sqlite"), config), iter(chunks)))
    assert len(streamed) == len(parts)
    pairs = [p for part in streamed for p in part.pairs]
    answers = [p.question.lower() for p in pairs if p.kind == "answer"]
    assert len(answers) == len(set(answers))
    assert streamed[-1].counts["pairs"] == len(pairs) > 0.95 * len(whole.pairs)
    assert streamed[-1].counts["slots"] == whole.counts["slots"]


def test_a_stream_needs_no_more_passages_than_a_window(book):
    _, chunks = book
    taken = []

    def source():
        for i, chunk in enumerate(chunks):
            taken.append(i)
            yield chunk

    first = next(slots.slot_windows(source(), load_config(preset="handbook"), least=20))
    assert len(taken) == len(first[0]) < len(chunks)


def test_a_hosted_batch_gets_everything_in_one_window(book, tmp_path, monkeypatch):
    class Batch(Oracle): discounted = True

    facts, chunks = book
    monkeypatch.setattr(slots.slot_windows, "__defaults__", (20,))
    config = load_config(preset="handbook")
    windows = lambda kind: len(list(generate.stream_pairs(TeacherClient((), kind(facts), Journal(tmp_path / "j.sqlite"), config), chunks)))
    assert windows(Batch) == 1 < windows(Oracle)


@given(st.lists(st.lists(st.sampled_from("abcdefg"), max_size=6), max_size=5))
def test_asked_questions_are_a_set_over_all_windows(windows):
    asked, before = AskedQuestions(), set()
    for window in windows:
        now = set()
        for q in window:
            assert (f"Is {q}?" in asked) == (q in before | now)
            asked.add(f"is {q}?")
            now.add(q)
        asked.next_window(f"Is {q}?" for q in now)
        before |= now


def test_settings_are_read_once():
    view = restrict(CONFIG, ["dataset", "lora"])
    seen = calls(lambda: [view.dataset.seed for _ in range(1000)])
    assert seen < 200
    mix = view.dataset.difficulty_mix
    mix["easy"] = 5
    assert view.dataset.difficulty_mix == CONFIG.dataset.difficulty_mix


@given(st.text(st.characters(max_codepoint=127), max_size=60) | st.text("ae \u0301ﬁ²³½−“日ｶﾞ\u00a0\u00ad^`\u1100\u1161٣🙂", max_size=12))
def test_a_text_is_folded_as_its_characters_are(text): assert fold(text) == fold_places(text).text.rstrip()


def pair(i: int, question: str, answer: str) -> Pair:
    return Pair(id=f"{i:05}", doc_id="d", chunk_id="c", family_id=str(i), category="m", difficulty="easy", teacher="t",
                question=question, answer=answer)


def test_questions_of_one_template_never_meet():
    many = lambda n: [pair(i, f"What is the default of the option queue.size.{i} in the server?", str(i)) for i in range(n)]
    near_duplicates(many(10), 0.9)
    a, b = (calls(lambda n=n: near_duplicates(many(n), 0.6)) for n in (100, 400))
    assert slope([100, 400], [a, b]) <= 1.1
    three = [pair(0, "Who runs it?", "Ada"), pair(1, "Who runs it", "Ada"), pair(2, "Who runs it", "Bo")]
    assert near_duplicates(three, 0.9) == {"00001": "00000"}


@settings(max_examples=80)
@given(st.lists(st.text("ab .", max_size=50), max_size=6), st.lists(st.text("ab .", max_size=45), max_size=6))
def test_gold_rows_are_found_where_a_search_finds_them(texts, sentences):
    chunks = [Chunk(chunk_id=str(i), doc_id="d", heading="", text=t, start=0, end=len(t), category="m") for i, t in enumerate(texts)]
    slow = [(row, c) for row in ({"sentence": s} for s in sentences) if (c := next((c for c in chunks if row["sentence"] in c.text), None))]
    assert place_gold([{"sentence": s} for s in sentences], chunks) == slow


def test_a_stream_of_records_names_the_line(tmp_path):
    rows = [pair(i, "Where?", "There") for i in range(3)]
    write_jsonl(tmp_path / "pairs.jsonl", rows)
    assert list(stream_jsonl(tmp_path / "pairs.jsonl", Pair)) == rows
    with (tmp_path / "pairs.jsonl").open("a") as f: f.write("{}\n")
    stream = stream_jsonl(tmp_path / "pairs.jsonl", Pair)
    assert [next(stream) for _ in range(3)] == rows
    with pytest.raises(StoreError, match="line 4"): next(stream)


def test_packed_vectors_are_the_librarys():
    from distillery.pairs.judge import score_pairs
    from distillery.retrieval.embed import Embedder, compute_vectors, load_model, packed_model

    rng, words = np.random.default_rng(88), "the press prints sheets of paper in hall three 日本語 Ünïcode 7,200 — when cold".split()
    texts = [" ".join(rng.choice(words, int(n))) for n in (1, 2, 2, 9, 9, 30, 400, 17)] + ["", " ", "x"]
    assert packed_model("builtin:minilm")
    theirs = np.asarray(load_model("builtin:minilm").encode(texts, show_progress_bar=False))
    assert np.abs(compute_vectors("builtin:minilm", texts) - theirs).max() < 1e-5
    assert compute_vectors("builtin:minilm", []).shape == (0, 384)
    half = compute_vectors("builtin:minilm", texts, half=True)
    assert 1e-5 < np.abs(half @ half.T - theirs @ theirs.T).max() < 0.005, "half precision turns no verdict that is not on the edge"
    encoded = []

    class Counts(Embedder):
        def _compute(self, some, side):
            encoded.extend(some)
            return super()._compute(some, side)

    text = "The Raven 74 stands in Hall 3. It is red."
    chunk = Chunk(chunk_id="c", doc_id="d", heading="", text=text, start=0, end=len(text), category="m")
    score_pairs([pair(i, f"Where is it, {i % 3}?", "Hall 3") for i in range(9)], [chunk], Counts())
    assert len(encoded) == len(set(encoded)) == 4, "each distinct text once"


def test_vectors_of_half_precision_are_kept_apart(tmp_path):
    from distillery.retrieval.embed import Embedder

    halves, wholes = (Embedder(cache=tmp_path / "v.sqlite", half=half) for half in (True, False))
    one, other = halves.encode(["The lid is closed."]), wholes.encode(["The lid is closed."])
    assert 0 < np.abs(one - other).max() < 0.01
    assert (halves.encode(["The lid is closed."]) == one).all()
    assert halves.identity != wholes.identity


@pytest.mark.parametrize("tiles", [True, False])
def test_the_judge_takes_half_precision_where_the_cpu_has_tiles_and_its_key_says_so(tiles, tmp_path, monkeypatch):
    from distillery.engine.plan import Plan
    from distillery.engine.source import open_source
    from distillery.pairs import stages

    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/a.md").write_text("# Lid\n\nThe lid of the press is closed by hand every day at noon.")
    asked = []
    monkeypatch.setattr(stages, "has_bf16_tiles", lambda: tiles)
    monkeypatch.setattr(stages, "CachedVectors", lambda vectors, spec, cache, half: asked.append(half) or Fixed())
    monkeypatch.setattr(stages, "stream_scores", lambda pairs, *_, **__: pairs)
    config = load_config(preset="technical-docs", overrides={"workbook.cache_dir": str(tmp_path / "cache")})
    source, cache = open_source(tmp_path / "docs", None, None), tmp_path / "cache"
    plan = lambda: Plan(stages.pairs_stages(source, config, cache)[:3], config, cache)
    plan().run()
    assert asked == [tiles]
    monkeypatch.setattr(stages, "has_bf16_tiles", lambda: not tiles)
    plan().run()
    assert asked == [tiles, not tiles], "on another machine it is judged again"


class Fixed: pass
