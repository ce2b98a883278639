"The dataset's question: planted faults turn its card red, its page escapes and leaves excerpts out, and one document is refused."
import json
from types import SimpleNamespace

import pytest

from distillery.core.config import load_config, restrict
from distillery.core.files import write_jsonl
from distillery.core.records import Chunk, Pair
from distillery.engine.source import open_source
from distillery.pages.html import Link, table
from distillery.pages.report import LEFT, QUOTE
from distillery.questions.all import questions_of
from distillery.questions.dataset.decision import DATASET, dataset_decisions, target_states
from distillery.questions.dataset.stages import dataset_stages
from distillery.questions.dataset.tables import (
    duplicate_table, example_table, lever_table, measure_table, set_table, split_table, word_table,
)
from distillery.questions.results import Results
from distillery.questions.targets import read_targets
from distillery.pairs.dataset import build_dataset

ATTACK = "<img src=x onerror=alert(1)>"
OPENINGS = ("When was", "Who has", "How long is", "Where lies", "Which hall holds", "What weighs", "Is it true that", "In what year came",
            "From where is", "Since when has", "Tell me of", "Name the site of")


def made(n=96, documents=24, wrong=False, alike=False):
    "Pairs that keep their passages' numbers and names, or do not, in questions that begin in many ways, or in one."
    chunks = [Chunk(chunk_id=f"c{d}", doc_id=f"d{d}", heading="", start=0, end=len(t), category=f"k{d % 3}", text=t)
              for d in range(documents) for t in [f"Press {d} prints {100 + d} sheets. Its belt {d} came from Merton in {1900 + d}."]]
    asked = lambda i: f"{OPENINGS[0 if alike else i % 12]} press {i % documents} number {i}?"
    said = lambda d: f"{900 + d} sheets" if wrong else f"{100 + d} sheets"
    pairs = [Pair(id=f"p{i}", doc_id=f"d{i % documents}", chunk_id=f"c{i % documents}", family_id=f"f{i}", category=f"k{i % 3}",
                  difficulty=("easy", "hard")[i % 2], question=asked(i), answer=said(i % documents), teacher="t",
                  scores={"evidence": 1.0, "relevance": .7}) for i in range(n)]
    return pairs, chunks


def finished(path, pairs, chunks, **settings):
    "A run that measured its dataset."
    path.mkdir(parents=True, exist_ok=True)
    config = load_config(preset="handbook", overrides=settings)
    write_jsonl(path / "selected.jsonl", pairs)
    write_jsonl(path / "chunks.jsonl", chunks)
    for name, some in build_dataset(pairs, chunks, config).items(): write_jsonl(path / f"{name}.jsonl", some)
    stage, = dataset_stages(open_source(None, None, "builtin"), config, path)
    out = path / "measures"
    out.mkdir(exist_ok=True)
    view = restrict(config, stage.reads)
    stage.run(SimpleNamespace(config=view, needs=dict.fromkeys(stage.needs, path), out=out, say=lambda *a: None))
    (path / "config.json").write_text(json.dumps(settings))
    return Results(path), config


@pytest.mark.parametrize(("fault", "red"), [({}, set()), ({"wrong": True}, {"preservation", "quality"}), ({"alike": True}, {"first word"})])
def test_a_planted_fault_turns_its_target_red_and_no_other(tmp_path, fault, red):
    results, config = finished(tmp_path, *made(**fault))
    card, = dataset_decisions(results, config)
    states = target_states({e.level: e for e in card.estimates}, read_targets())
    assert red <= {name for name, state in states.items() if state == "red"} <= red | {"question diversity"}
    assert card.verdict.startswith("no: FAIL" if red else ("yes", "not shown"))
    assert all(name in card.sentence for name in red)
    assert card.n_items == 96
    assert card.n_clusters == 24
    assert {r["state"] for r in measure_table(card, read_targets()) if r["measure"] in red} == ({"red"} if red else set())


def test_one_document_decides_nothing_for_others(tmp_path):
    pairs, chunks = made(documents=1)
    results, config = finished(tmp_path, pairs, chunks, **{"dataset.test_share": 0.0})
    assert "about one document" in DATASET.reason(results)
    assert dataset_decisions(results, config) == []


@pytest.mark.parametrize("population", ["these", "like these"])
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_a_set_of_few_pairs_ends_with_a_card_or_a_reason(tmp_path, n, population):
    "Where one pair is all that a measure knows, nothing bounds it, and it is left out."
    for documents in {1, min(2, n)}:
        results, config = finished(tmp_path / str(documents), *made(n=n, documents=documents), **{"decisions.population": population})
        cards = dataset_decisions(results, config)
        assert cards or DATASET.why_not(results)
        for card in cards:
            assert all(e.ci_low <= e.mean <= e.ci_high for e in card.estimates)
            assert len(measure_table(card, read_targets())) >= len(card.estimates)


def test_tables_add_up_and_name_the_keeper(tmp_path):
    results, _ = finished(tmp_path, *made())
    rows = {r["set"]: int(r["rows"]) for r in set_table(results)}
    for of in ("difficulty", "category"): assert {s: sum(int(r[s]) for r in split_table(results, of)) for s in rows} == rows
    assert split_table(results, "category", 1)[-1]["category"] == "all others"
    assert {r["longest"] for r in word_table(results) if r["words of"] == "answers"} == {"2"}
    dropped = [{"pair_id": "gone", "reason": "repeats p3, similarity 0.97"}, {"pair_id": "low", "reason": "relevance below"}]
    (tmp_path / "dropped.jsonl").write_text("\n".join(map(json.dumps, dropped)))
    (row,) = duplicate_table(results)
    assert (row["removed"], row["keeper"], row["similarity"]) == ("gone", "p3", "0.97")
    assert row["the keeper asks"] == made()[0][3].question


def test_words_of_documents_are_escaped_and_can_be_left_out(tmp_path):
    pairs, chunks = made()
    evil = [p.model_copy(update={"question": f"{ATTACK} {p.question}", "category": ATTACK}) for p in pairs]
    results, _ = finished(tmp_path, evil, chunks)
    page = table(example_table(results)) + table(split_table(results, "category"))
    assert "<img" not in page
    assert "&lt;img" in page
    left = QUOTE.sub(LEFT, page)
    assert "img" not in left
    assert "sheets" not in left


def test_every_lever_leads_to_its_card_or_says_how_to_measure_it(tmp_path):
    results, _ = finished(tmp_path, *made())
    rows = lever_table([], questions_of("pairs"), results, Link)
    assert all(r["measured"] == "no" for r in rows)
    asked = [r["what this run says"] for r in rows if "Not measured" in r["what this run says"]]
    assert any("decisions.train_shares" in said for said in asked)
    assert len(asked) == len(rows) - 1
