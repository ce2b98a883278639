"Which pairs to train on: equal budgets, a choice on validation that test alone confirms, trainings that a kill does not repeat."
import json
from types import SimpleNamespace

import numpy as np
import pytest

from distillery.core.config import load_config
from distillery.core.files import write_jsonl
from distillery.core.records import Chunk, Evidence, Pair
from distillery.engine.plan import restrict
from distillery.engine.source import Source
from distillery.evaluation.evaluate import EvalRow
from distillery.pairs.dataset import build_dataset
from distillery.questions.domain.decision import (
    DOMAIN, correlations, detectable_correlation, domain_decisions, partial_rank, set_rows, set_table, with_scores)
from distillery.questions.domain import stages as domain
from distillery.questions.domain.stages import NO_GOLD, SetRow, domain_stages, gold_scores, graded_set, grades, references
from distillery.questions.results import Results
from distillery.questions.selection import stages
from distillery.questions.selection.decision import SELECTION, selection_decisions, smallest_as_good, subset_facts, subset_rows
from distillery.questions.selection.stages import Subset, choose, selection_stages, subsets_of
from distillery.questions.subsets import SubsetRow

ASKED = {"decisions.selectors": ["top-k", "quotas"], "decisions.train_seeds": [1, 2, 3], "dataset.splits": "70/20/10", "dataset.gold": None,
         "decisions.selection_shares": [0.5], "decisions.threshold_shares": [0.25]}


def written(path, documents=150):
    "A run up to its dataset: two pairs a document, the better one near its passage."
    chunks = [Chunk(chunk_id=f"c{d}", doc_id=f"d{d}", heading="", start=0, end=len(t), category="k", text=t)
              for d in range(documents) for t in [f"Press {d} prints {100 + d} sheets. Belt {d} came in {1900 + d}."]]
    pairs = [Pair(id=f"p{d}-{i}", doc_id=f"d{d}", chunk_id=f"c{d}", family_id=f"f{d}-{i}", category="k", difficulty=("easy", "hard")[i],
                  question=f"What of press {d}, {i}?", answer=f"{100 + d} sheets", teacher="t", scores={"relevance": 0.2 + 0.6 * i})
             for d in range(documents) for i in range(2)]
    config = load_config(preset="handbook", overrides=ASKED)
    write_jsonl(path / "selected.jsonl", pairs)
    write_jsonl(path / "chunks.jsonl", chunks)
    for name, some in build_dataset(pairs, chunks, config).items(): write_jsonl(path / f"{name}.jsonl", some)
    return config


def student(counts, worth):
    "A learner whose score rests on the pairs it was given."
    def learn(chosen, seed, asked, job, place):
        counts.append((len(chosen), seed))
        if len(counts) == counts_end.get("at"): raise KeyboardInterrupt
        level = worth(chosen) + 0.01 * seed
        score = {"exact_match": 0.0, "keyword_coverage": 1, "refusal_accuracy": 0, "behaviour_accuracy": 1, "length_compliance": 1,
                 "latency_ms": 1}
        keep = {"id", "set", "family_id", "category", "difficulty", "kind", "question", "doc_id"}
        return [EvalRow(**e.model_dump(include=keep), variant="v", gold=e.answer, prediction="", finish_reason="stop",
                        token_f1=level + 0.02 * (i % 5), **score) for i, e in enumerate(asked)]
    return learn


counts_end: dict[str, int] = {}


def run_stage(path, config, out):
    stage = selection_stages(Source("documents", path), config, path)[1]  # the decoder's, whose learner stands in here
    job = SimpleNamespace(config=restrict(config, stage.reads), needs=dict.fromkeys(stage.needs, path), out=out, scratch=path / "scratch",
                          say=lambda *a: None)
    (path / "scratch").mkdir(exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    stage.run(job)
    (path / "run/config.json").write_text("{}")
    return Results(path / "run")


def test_every_method_stands_beside_a_random_choice_of_as_many(tmp_path):
    config = written(tmp_path)
    made = subsets_of(config)
    assert [s.name for s in made] == ["all", "random 25%", "top-k 25%", "random 50%", "top-k 50%", "quotas 50%"]
    for name, other in (("decisions.selection_shares", [0.3]), ("decisions.threshold_shares", [0.1, 0.9])):
        changed = subsets_of(load_config(overrides={**ASKED, name: other}))
        assert {s.share for s in changed} >= set(other)
        assert all(Subset("random", s.share) in changed for s in changed if s.method != "all")
    families = [[p] for p in (Pair(id=str(i), doc_id="d", chunk_id="c", family_id=str(i), category="k", difficulty="easy", question="?",
                                   answer="a", teacher="t", scores={"relevance": i / 40}) for i in range(40))]
    assert {len(choose(families, s, 1, None)) for s in made if s.share == 0.5} == {20}
    assert choose(families, Subset("random", 0.5), 1, None) != choose(families, Subset("random", 0.5), 2, None)
    assert choose(families, Subset("top-k", 0.5), 1, None) == choose(families, Subset("top-k", 0.5), 2, None)


def test_trainings_that_ended_are_not_done_again_and_planted_quality_is_found(tmp_path, monkeypatch):
    config, counts = written(tmp_path), []
    quality = lambda chosen: 0.2 + 0.6 * np.mean([p.scores["relevance"] > 0.5 for p in chosen])
    monkeypatch.setattr(stages, "learner", lambda name, config: student(counts, quality))
    counts_end["at"] = 5
    with pytest.raises(KeyboardInterrupt): run_stage(tmp_path, config, tmp_path / "run/selected/decoder")
    counts_end.clear()
    results = run_stage(tmp_path, config, tmp_path / "run/selected/decoder")
    assert len(counts) == 6 * 3 + 1  # the one that was cut, again
    card, fewest = selection_decisions(results, config)
    assert card.verdict.endswith("better")
    assert "Choosing pays: top-k" in card.sentence
    assert {c.b for c in card.contrasts} == {"random 25%", "random 50%"}
    assert fewest.levels == ["all", "top-k 25%"]
    assert "confirmed on test" in fewest.sentence
    assert SELECTION.reason(results) is None


def test_what_is_chosen_on_validation_is_held_against_all_on_test(tmp_path):
    "A subset that was lucky on validation is not confirmed."
    rows = lambda level, part: [SubsetRow(id=f"{part}{i}", set=part, doc_id=f"{part}{i % 15}", seed="1", exact_match=0,
                                          token_f1=level + 0.01 * (i % 7)) for i in range(60)]
    place = tmp_path / "selected/reader"
    place.mkdir(parents=True)
    facts = {name: {"method": name.split()[0], "share": s, "pairs": n, "documents": 9, "least quality": None}
             for name, s, n in (("all", 1.0, 80), ("random 50%", 0.5, 40), ("top-k 50%", 0.5, 40))}
    for name, validation, test in (("all", 0.5, 0.5), ("random 50%", 0.4, 0.4), ("top-k 50%", 0.6, 0.3)):
        f = facts[name]
        write_jsonl(place / f"{f['method']}-{f['share']:g}.jsonl", rows(validation, "validation") + rows(test, "test"))
    (place / "facts.json").write_text(json.dumps({"why_not": None, "subsets": facts}))
    results = Results(tmp_path)
    assert smallest_as_good(subset_rows(results, "reader", "validation"), subset_facts(results, "reader")) == "top-k 50%"
    fewest = selection_decisions(results, load_config())[1]
    assert "refuted on test" in fewest.sentence
    assert fewest.verdict == "all better"


def test_graded_sets_are_alike_in_size_and_unlike_in_scores():
    rng = np.random.default_rng(3)
    scores = rng.normal(size=(300, 2))
    made = [graded_set(scores, g, rng.random(300), [2] * 300, 150) for g in grades(24)]
    assert {len(some) for some in made} == {75}
    means = np.array([scores[some].mean(0) for some in made])
    assert abs(np.corrcoef(means.T)[0, 1]) < 0.4
    assert np.ptp(means, 0).min() > 0.9


def test_references_are_answers_from_the_same_sentence():
    text = "Press 4 prints 104 sheets. Belt 4 came in 1904."
    chunk = Chunk(chunk_id="c", doc_id="d", heading="", start=0, end=len(text), category="k", text=text)
    pair = lambda name, at: Pair(id=name, doc_id="d", chunk_id="c", family_id=name, category="k", difficulty="easy", question="?",
                                 answer="104 sheets", teacher="t", evidence=Evidence(start=at, end=at + 4, text=text[at : at + 4]))
    gold = [{"sentence": "Press 4 prints 104 sheets.", "answer": a} for a in ("104 sheets", "Press 4")]
    told = references([pair("one", 15), pair("other", 42)], gold, [chunk])
    assert told == {"one": ["104 sheets", "Press 4"]}
    alike = SimpleNamespace(score=lambda a, b: (0, 0, [float(x == y) for x, y in zip(a, b, strict=True)]))
    assert gold_scores([pair("one", 15)], told, alike) == {"one": 1.0}


def test_a_run_without_references_says_so(tmp_path):
    config = load_config(preset="handbook", overrides={**ASKED, "decisions.training_sets": 8})
    written(tmp_path)
    stage, = domain_stages(Source("documents", tmp_path), config, tmp_path)
    out = tmp_path / "run/domain"
    out.mkdir(parents=True)
    stage.run(SimpleNamespace(config=restrict(config, stage.reads), needs=dict.fromkeys(stage.needs, tmp_path), out=out, scratch=tmp_path,
                              say=lambda *a: None))
    assert DOMAIN.reason(Results(tmp_path / "run")) == NO_GOLD
    assert domain_decisions(Results(tmp_path / "run"), config) == []


def test_sets_without_a_reference_end_no_run(tmp_path, monkeypatch):
    "Of a hundred pairs two have one: many sets hold neither."
    config, gold = load_config(preset="handbook", overrides={**ASKED, "decisions.training_sets": 24}), tmp_path / "gold.jsonl"
    written(tmp_path)
    write_jsonl(gold, [{"id": "g", "page": "d0", "category": "k", "difficulty": "easy", "answer": "100 sheets",
                        "wordings": ["What of press 0?"], "sentence": "Press 0 prints 100 sheets."}])
    monkeypatch.setattr(domain, "references", lambda pairs, *a: {p.id: ["100 sheets"] for p in pairs[:2]})
    monkeypatch.setattr(domain, "learner", lambda *a: student([], lambda chosen: 0.5))
    scorer = SimpleNamespace(score=lambda said, told: (0, 0, [0.5] * len(said)))
    monkeypatch.setattr("distillery.evaluation.bert_score.BertScorer", lambda *a: scorer)
    stage, = domain_stages(Source("documents", tmp_path, gold=gold), config, tmp_path)
    out = tmp_path / "run/domain"
    out.mkdir(parents=True)
    stage.run(SimpleNamespace(config=restrict(config, stage.reads), needs=dict.fromkeys(stage.needs, tmp_path), out=out, scratch=tmp_path,
                              say=lambda *a: None))
    made = set_rows(Results(tmp_path / "run"))
    assert len(made) == 25
    assert 0 < len(with_scores(made)) < 24
    assert domain_decisions(Results(tmp_path / "run"), config) == [] or len(with_scores(made)) >= 8


def test_too_few_sets_with_a_reference_are_said(tmp_path):
    rows = [SetRow(name=str(i), pairs=9, with_reference=i % 4 == 1, domain=0.5, bert=0.4 if i % 4 == 1 else None, token_f1=i / 30,
                   exact_match=0, questions=9) for i in range(25)]
    (tmp_path / "domain").mkdir()
    write_jsonl(tmp_path / "domain/sets.jsonl", rows)
    (tmp_path / "domain/facts.json").write_text(json.dumps({"why_not": None}))
    results = Results(tmp_path)
    assert len(with_scores(set_rows(results))) == 6
    assert "its 6 training sets are too few" in DOMAIN.reason(results)
    assert domain_decisions(results, load_config()) == []
    assert [str(row["BERTScore F1"]) for row in set_table(set_rows(results))][:3] == ["–", "0.400", "–"]


def sets(rng, slope, n=24):
    domain, bert = rng.normal(size=(2, n))
    gain = slope * domain + rng.normal(size=n)
    return [SetRow(name=str(i), pairs=9, with_reference=9, domain=a, bert=b, token_f1=g, exact_match=0, questions=9)
            for i, (a, b, g) in enumerate(zip(domain, bert, gain, strict=True))]


def coverage(studies, slope, truth):
    rng = np.random.default_rng(5)
    told = [correlations(sets(rng, slope), 0.95)[0][0] for _ in range(studies)]
    return np.mean([e.ci_low <= truth <= e.ci_high for e in told]), np.mean([e.ci_low > 0 for e in told])


@pytest.mark.slow
def test_intervals_and_power_of_two_dozen_training_sets():
    rng = np.random.default_rng(1)
    for slope in (0.0, 0.5, 1.0):
        domain, bert, noise = rng.normal(size=(3, 40_000))
        truth = partial_rank(domain, slope * domain + noise, bert, np.ones(40_000))
        held, found = coverage(1500, slope, truth)
        print(f"slope {slope}: truth {truth:.3f}, held {held:.3f}, found {found:.3f}, detectable {detectable_correlation(24):.3f}")
        assert 0.92 <= held <= 0.98
        if truth >= detectable_correlation(24): assert found >= 0.7
