"The embedder card: planted effects, the stages with the real MiniLM, questions of documents without pairs, and the page."
import json
import re
import shutil
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
import pytest
import warm
from first_layer import first_layer
from pairs_oracle import write_handbook

from distillery.core.config import flatten, load_config
from distillery.core.files import read_jsonl, write_jsonl
from distillery.core.records import Chunk, Document, Evidence, Pair
from distillery.core.store import RunFolder
from distillery.models import questions
from distillery.questions.all import question_metrics
from distillery.workbook.assemble import write_pages
from distillery.questions.decide import level_verdicts
from distillery.questions.embedder.decision import (
    confirm_pick, embedder_decision, embedder_decisions, level_points, query_scores, stratum_table, why_no_embedder,
)
from distillery.questions.embedder.tables import answer_embedder, differing_questions
from distillery.questions.embedder.decision import embedder_metrics
from distillery.questions.embedder.stages import EmbedderCost, EmbedderRow, Found, embedder_stages, local_weights
from distillery.questions.embedder.queries import draw_queries, own_questions
from distillery.pairs.stages import pairs_stages
from distillery.engine.source import open_source
from distillery.engine.plan import Plan, Stage
from distillery.pages.report import build_report
from distillery.questions.results import Results, open_results

ATTACK = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\"> ../../etc/passwd"
KEPT = Path(__file__).parent / "data/run"
CONFIG = load_config(preset="handbook")


def rows_of(chances, n=300, seed=3, text="How fast"):
    "Questions about 50 documents; the right passage comes first with the level's chance, else third."
    rng, made = np.random.default_rng(seed), []
    for i in range(n):
        easy, luck = rng.random(), {}
        for level, chance in chances.items():
            p = chance(("low", "middle", "high")[i % 3]) if callable(chance) else chance
            hit = float(easy < p)
            luck[level] = Found(recall_1=hit, recall_5=1.0, mrr=hit or round(1 / 3, 6), ndcg=hit or 0.5)
        made.append(EmbedderRow(id=f"q{i}", doc_id=f"d{i // 6}", question=f"{text} {i}?", difficulty=("easy", "hard")[i % 2],
                                overlap=i % 3 / 2, stratum=("low", "middle", "high")[i % 3], found=luck))
    return made


def costs_of(milliseconds):
    return [EmbedderCost(level=v, what="builtin:minilm" if v == "base" else v, ms_per_query=ms, ms_p95=2 * ms, corpus_s=1.0,
                         passages_timed=96, bytes=10**6) for v, ms in milliseconds.items()]


# what is planted is found

def test_worse_ranks_come_out_worse_and_a_level_against_itself_equivalent():
    rows, costs = rows_of({"base": 0.8, "bm25": 0.5, "twin": 0.8}), costs_of({"base": 9, "bm25": 0.1, "twin": 9})
    made = embedder_decision(rows, costs, CONFIG)
    judged = {v: word for v, (word, _) in level_verdicts(made.contrasts, made.margin, "ndcg", "documents").items()}
    assert judged == {"bm25": "base better", "twin": "equivalent (±0.02)"}
    assert made.sentence.startswith("Keep the base (builtin:minilm)"), "an equal that is no faster changes nothing"
    assert (made.name, made.metric, made.n_items, made.n_clusters, made.margin) == ("embedder", "ndcg", 300, 50, 0.02)
    assert all(c.p_holm is not None and c.mde > 0 for c in made.contrasts)


def test_better_beats_fast_and_fast_beats_equal():
    levels = {"base": 0.6, "base int8": 0.6, "hybrid": 0.75, "tuned": 0.9}
    ms = {"base": 9, "base int8": 3, "hybrid": 9.1, "tuned": 9}
    made = embedder_decision(rows_of(levels), costs_of(ms), CONFIG)
    assert made.verdict == "tuned better"
    assert re.match(r"Use tuned \(tuned\), shown better than the base: .*95 % interval", made.sentence)
    assert confirm_pick(rows_of(levels), costs_of(ms), CONFIG, "tuned").startswith("the same; tuned − base +0.18")
    other = confirm_pick(rows_of(levels), costs_of(ms), CONFIG, "hybrid")
    assert other.startswith("tuned instead: half of the documents shows less than all do")
    del levels["hybrid"], levels["tuned"]
    fast = embedder_decision(rows_of(levels), costs_of(ms), CONFIG)
    assert fast.sentence.startswith("Use base int8 (base int8), the fastest of those shown equivalent to the base")
    assert fast.verdict.startswith("equivalent")
    few = embedder_decision(rows_of({"base": 0.6, "bm25": 0.7}, n=18), costs_of({"base": 9, "bm25": 0.1}), CONFIG)
    assert few.verdict.startswith("undecided")
    assert few.sentence.startswith("Keep the base")
    halves = confirm_pick(rows_of(levels, n=78), costs_of(ms), CONFIG, "base")
    assert halves == "not checked: 14 documents are needed for halves that can show anything, and there are 13"


def test_an_effect_on_questions_in_other_words_shows_in_their_stratum():
    rows = rows_of({"base": 0.9, "bm25": lambda stratum: 0.3 if stratum == "low" else 0.9}, n=600)
    table = {(r["stratum"], r["level"]): r["against base"] for r in stratum_table(rows, CONFIG)}
    assert list(dict.fromkeys(s for s, _ in table)) == ["low", "middle", "high"]
    assert table["low", "bm25"].startswith("−0.3")
    assert table["high", "bm25"].startswith("0.000")
    assert table["low", "base"] is None
    assert {r["difficulty"] for r in stratum_table(rows, CONFIG, "difficulty")} == {"easy", "hard"}


def test_the_three_questions():
    rows, costs = rows_of({"base": 0.6, "bm25": 0.5, "tuned": 0.9}), costs_of({"base": 9, "bm25": 0.1, "tuned": 9})
    answers = [a["answer"] for a in answer_embedder(rows, costs, CONFIG, {"all-mpnet-base-v2": "needs weights"})]
    assert answers[0] == "Not asked: needs weights."
    assert answers[1].startswith("Yes (tuned better)")
    assert "bm25" in answers[2]
    assert answers[2].endswith("another one is both faster and better by its mean than base.")
    assert [p.x for p in level_points(embedder_decision(rows, costs, CONFIG), costs)] == [9, 0.1, 9]
    assert differing_questions(rows, "tuned", 3)[0]["base"] == "3"


# the stages

def selected(facts, documents, chunks, only=None):
    rng, pairs = Random("ask"), []
    for f in facts:
        d = next(d for d in documents if f.sentence in d.text)
        at = d.text.index(f.sentence)
        c = next((c for c in chunks if c.doc_id == d.doc_id and c.start <= at < c.end), None)
        if c is None or (only and d.doc_id != only(documents)): continue
        question, answer = questions.draw_question(f, "easy", [f], rng)
        held = Evidence(start=at, end=at + len(f.sentence), text=f.sentence)
        pairs.append(Pair(id=f"p{len(pairs)}", doc_id=d.doc_id, chunk_id=c.chunk_id, family_id=f"f{len(pairs)}", category="c",
                          difficulty="easy", question=question, answer=answer, evidence=held, teacher="-"))
    return pairs


def write_selected(job, facts, only):
    documents, chunks = (read_jsonl(job.needs["documents"] / f"{n}.jsonl", k) for n, k in (("documents", Document), ("chunks", Chunk)))
    write_jsonl(job.out / "selected.jsonl", selected(facts, documents, chunks, only))


def run_stages(home, pages=6, only=None, **settings):
    config = load_config(preset="handbook", overrides={"embedder.tune_steps": 1, "embedder.queries": 20, **settings})
    (home / "docs").mkdir(parents=True)
    facts = write_handbook(home / "docs", pages)
    source = open_source(home / "docs", None, None)
    choose = Stage("select", partial(write_selected, facts=facts, only=only), needs=("documents",))
    stages = [pairs_stages(source, config, home / "cache")[0], choose,
              *embedder_stages(source, config, home / "cache")]
    return Plan(stages, config, home / "cache")


def finished(plan, folder):
    "A run folder with what the stages made."
    done = plan.run()
    folder.mkdir()
    (folder / "embedder").symlink_to(done["embedder"].path)
    shutil.copy(KEPT / "provenance.json", folder)
    (folder / "config.json").write_text(json.dumps(flatten(plan.config)))
    return done, open_results(folder)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    home = tmp_path_factory.mktemp("embedder")
    plan = run_stages(home, **{"embedder.base": str(first_layer(home / "all-MiniLM-L6-v2"))})
    return plan, *finished(plan, home / "run")


@pytest.mark.slow
def test_every_level_answers_the_same_held_out_questions(real):
    _, done, results = real
    rows = read_jsonl(done["embedder"].path / "rows.jsonl", EmbedderRow)
    costs = read_jsonl(done["embedder"].path / "costs.jsonl", EmbedderCost)
    facts = results.json("embedder/facts.json")
    levels = ["base", "bm25", "hybrid", "base int8", "tuned"]
    assert [c.level for c in costs] == levels
    assert all(list(r.found) == levels for r in rows)
    assert len(rows) == 20
    assert {r.difficulty for r in rows} == {"easy"}
    assert facts["not_asked"] == {"all-mpnet-base-v2": "needs weights"}
    assert facts["tuning_steps"] == 1
    assert facts["questions_from"] == "pairs"
    found = query_scores(rows, "recall_5")[0]
    assert np.mean(list(found["base"].values())) > 0.5
    size = {c.level: c.bytes for c in costs}
    assert size["base int8"] < 0.3 * size["base"]
    assert size["bm25"] == 0
    assert all(c.ms_per_query > 0 and c.corpus_s > 0 for c in costs)
    assert next(c for c in costs if c.level == "bm25").ms_per_query < next(c for c in costs if c.level == "base").ms_per_query


@pytest.mark.slow
def test_no_question_about_a_tuning_document_is_asked(real):
    _, done, results = real
    pairs = read_jsonl(done["select"].path / "selected.jsonl", Pair)
    asked = {r.doc_id for r in read_jsonl(done["embedder"].path / "rows.jsonl", EmbedderRow)}
    facts = results.json("embedder/facts.json")
    assert len({p.doc_id for p in pairs}) == 6
    assert len(asked) == 3
    assert facts["tuning_questions"] + facts["held_out_questions"] <= len(pairs)
    assert facts["tuning_questions"] > 5


@pytest.mark.slow
def test_the_card_and_metrics_come_from_a_real_run_and_nothing_runs_twice(real):
    plan, _, results = real
    assert why_no_embedder(results) is None
    card = embedder_decisions(results, plan.config)[0]
    assert card.levels == ["base", "bm25", "hybrid", "base int8", "tuned"]
    numbers = question_metrics(results, plan.config)
    mini = numbers["embedding_model_comparison"]["all_MiniLM_L6_v2"]
    assert 0 < mini["retrieval_accuracy"] <= 1
    assert mini["speed_ms"] > 0
    assert numbers["embedding_model_comparison"]["all_mpnet_base_v2"] == {"retrieval_accuracy": None, "speed_ms": None}
    assert numbers["reasons"]["embedding_model_comparison"] == "all_mpnet_base_v2: not asked: needs weights"
    assert all(d.cached for d in plan.run().values())


@pytest.mark.slow
def test_without_pairs_of_two_documents_the_documents_ask_about_themselves(tmp_path):
    plan = run_stages(tmp_path, only=lambda documents: documents[0].doc_id, **{"embedder.tune_steps": 0})
    plan.stages[2] = Stage("embedder-int8", lambda job: (job.out / "why_not.txt").write_text("left out"))
    done, results = finished(plan, tmp_path / "run")
    facts = results.json("embedder/facts.json")
    assert facts["questions_from"] == "headings"
    assert facts["not_asked"] == {"base int8": "left out", "tuned": "embedder.tune_steps is 0", "all-mpnet-base-v2": "needs weights"}
    rows = read_jsonl(done["embedder"].path / "rows.jsonl", EmbedderRow)
    assert {r.difficulty for r in rows} == {None}
    assert why_no_embedder(results) is None
    assert set(rows[0].found) == {"base", "bm25", "hybrid"}


def test_one_page_says_why_it_has_no_card(tmp_path):
    plan = run_stages(tmp_path, pages=1)
    plan.stages[2] = Stage("embedder-int8", lambda job: (job.out / "why_not.txt").write_text("left out"))
    _, results = finished(plan, tmp_path / "run")
    assert "fewer than two documents" in why_no_embedder(results)
    assert embedder_decisions(results, plan.config) == []
    write_pages(RunFolder(results.path), {"embedder": {}})
    assert "fewer than two documents" in (results.path / "reports/index.html").read_text("utf-8")
    assert "fewer than two" in question_metrics(results, plan.config)["reasons"]["embedding_model_comparison"]


@pytest.mark.slow
def test_a_judged_set_is_asked_instead_and_a_change_of_it_asks_again(tmp_path):
    judged = tmp_path / "judged"
    judged.mkdir()
    words = ["ink", "glue", "foil", "felt", "wire", "wax"]
    lines = {"corpus": [{"_id": w, "title": f"page {i // 2}", "text": f"The {w} costs {i} euros."} for i, w in enumerate(words)],
             "queries": [{"_id": f"q{w}", "text": f"What does {w} cost?"} for w in words]}
    for name, rows in lines.items(): (judged / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (judged / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(f"q{w}\t{w}\t1\n" for w in words))
    change = {"embedder.judged": str(judged), "embedder.tune_steps": 0, "embedder.others": []}

    plan = run_stages(tmp_path, **change)
    plan.stages[2] = Stage("embedder-int8", lambda job: (job.out / "why_not.txt").write_text("left out"))
    done, results = finished(plan, tmp_path / "run")
    facts = results.json("embedder/facts.json")
    assert (facts["questions_from"], facts["passages"]) == ("judged", 6)
    rows = read_jsonl(done["embedder"].path / "rows.jsonl", EmbedderRow)
    assert {r.question for r in rows} < {q["text"] for q in lines["queries"]}

    def again():
        new = embedder_stages(open_source(tmp_path / "docs", None, None), plan.config, tmp_path / "cache")
        return Plan([*plan.stages[:3], *new[1:]], plan.config, tmp_path / "cache").run()["embedder"]

    assert again().cached
    (judged / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(f"q{w}\t{w}\t1\n" for w in words[1:]))
    assert not again().cached


def test_descriptions_are_asked_and_a_changed_file_is_not_read(tmp_path):
    from distillery.pairs.chunk import chunk_documents
    from distillery.pairs.documents import read_documents
    (tmp_path / "a.md").write_text("---\ndescription: How to oil it\n---\n# A\n\n## Oil\n\nTwo drops a day.\n")
    source, documents = open_source(tmp_path, None, None), read_documents(tmp_path).documents
    ask = lambda: [q.text for q in own_questions(source, documents, chunk_documents(documents, 50, 1), ["**/*"]).queries]
    assert ask() == ["Oil", "How to oil it"]
    (tmp_path / "a.md").write_text("---\ndescription: Read later\n---\n# A\n")
    assert ask() == ["Oil"]


@pytest.mark.slow
def test_questions_are_drawn_by_their_names(real):
    from distillery.retrieval.queries import pair_queries
    _, done, _ = real
    chunks = read_jsonl(done["documents"].path / "chunks.jsonl", Chunk)
    pairs = read_jsonl(done["select"].path / "selected.jsonl", Pair)
    some = draw_queries(pair_queries(pairs, chunks), 9).query_ids
    assert sorted(some) == sorted(draw_queries(pair_queries(pairs[::-1], chunks), 9).query_ids)
    assert set(some) <= set(draw_queries(pair_queries(pairs, chunks), 14).query_ids)


def test_weights_that_are_not_here_are_not_fetched(monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *a: pytest.fail("asked the network"))
    assert local_weights("no-such-owner/no-such-model-88") is None
    assert local_weights("builtin:minilm") == "builtin:minilm"


# the page

def run_folder(folder, text):
    rows = rows_of({"base": 0.7, "bm25": 0.5, "tuned": 0.9}, n=120, text=text)
    (folder / "embedder").mkdir(parents=True)
    write_jsonl(folder / "embedder/rows.jsonl", rows)
    write_jsonl(folder / "embedder/costs.jsonl", costs_of({"base": 9, "bm25": 0.1, "tuned": 9}))
    facts = {"base": text, "why_not": None, "not_asked": {"all-mpnet-base-v2": "needs weights"}, "questions_from": "pairs", "passages": 96,
             "tuning_questions": 50, "tuning_steps": 5, "held_out_questions": 150, "asked": 120}
    (folder / "embedder/facts.json").write_text(json.dumps(facts))
    known = json.loads((KEPT / "provenance.json").read_text())
    (folder / "provenance.json").write_text(json.dumps({**known, "inputs": text}))
    (folder / "config.json").write_text(json.dumps(flatten(CONFIG)))
    return folder


@pytest.mark.slow
def test_the_page_answers_first_is_the_same_twice_and_shows_hostile_text_as_text(tmp_path):
    one, two = (run_folder(tmp_path / name / "run", ATTACK) for name in ("one", "two"))
    with warm.kernels(): page = build_report("embedder", one / "reports", {"run_dir": str(one)})
    again = build_report("embedder", two / "reports", {"run_dir": str(two)})
    assert page.read_bytes() == again.read_bytes()
    text = page.read_text("utf-8")
    assert str(tmp_path) not in text
    first = text.index('class="finding"')
    assert first < text.index("<h2")
    assert re.search(r"Use tuned .*95 % interval", text[first:first + 500])
    assert "all-mpnet-base-v2: not asked: needs weights" in text
    headings = [re.sub("<.*?>", "", h) for h in re.findall(r"<h2[^>]*>(.*?)</h2>", text)]
    assert headings == ["The embedders", "Accuracy and speed", "The differences", "By shared words", "The questions this began with",
                        "Questions on which they differ", "Method"]
    assert text.count("<figure") == 2
    assert "&lt;script&gt;document.title" in text
    assert "<script" not in text
    assert "<img src=x" not in text


def test_a_run_without_the_comparison_says_so():
    empty = Results(Path("no such run"))
    assert why_no_embedder(empty) == "it compared no embedders"
    told = embedder_metrics(empty, CONFIG)
    assert told["embedding_model_comparison"]["all_MiniLM_L6_v2"] == {"retrieval_accuracy": None, "speed_ms": None}
    assert told["reasons"] == {"embedding_model_comparison": "it compared no embedders"}
