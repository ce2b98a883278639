"Leaks in other words: training questions that a measuring set asks again are left out, with their keeper, and little else."
import gzip
import json
import random
import string
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from distillery.core.config import load_config
from distillery.core.records import Chunk, Example, Pair
from distillery.core.stats import wilson
from distillery.core.store import read_jsonl, write_jsonl
from distillery.engine.source import open_source
from distillery.pairs.stages import pairs_stages
from distillery.selection.meaning import Question, Repeat, same_meaning

STS = Path(__file__).resolve().parents[2] / "shared/data/stsb_ccbysa.jsonl.gz"


@pytest.mark.slow
@pytest.mark.skipif(not STS.is_file(), reason="../shared/data/stsb_ccbysa.jsonl.gz is not there")
def test_planted_leaks_in_other_words_are_found_and_little_else():
    "Sentences that people scored 4.5 or more are planted on two sides with one answer; so are those scored 2 or less."
    from distillery.retrieval.embed import CachedVectors, vectors_of
    with gzip.open(STS, "rt", encoding="utf-8") as file: rows = [json.loads(line) for line in file]
    rows = [r for r in rows if r["score"] >= 4.5 or r["score"] <= 2]
    asked = [Question(f"{i}{side[-1]}", r[side], f"answer {chr(65 + i % 26)}{chr(65 + i // 26)}", rank)
             for i, r in enumerate(rows) for side, rank in (("sentence1", 0), ("sentence2", 2))]
    found = {r.pair: r.keeper for r in same_meaning(asked, CachedVectors(vectors_of("builtin:minilm"), "builtin:minilm").encode, .8)}
    hit = [found.get(f"{i}1") == f"{i}2" for i, r in enumerate(rows) if r["score"] >= 4.5]
    false = [f"{i}1" in found for i, r in enumerate(rows) if r["score"] <= 2]
    print(f"recall {sum(hit)} of {len(hit)} {wilson(sum(hit), len(hit))}")
    print(f"false {sum(false)} of {len(false)} {wilson(sum(false), len(false))}")
    assert np.mean(hit) >= .9
    assert np.mean(false) <= .01


def test_a_training_question_in_other_words_is_left_out_with_its_keeper(tmp_path):
    "Through the stage, with vectors of words: every fact stands in two documents, and is asked in two ways."
    subject = ["press", "drum", "lamp", "valve", "motor", "pump", "cellar", "ladder", "belt", "gauge"]
    pairs, chunks, rng = [], [], random.Random(88)
    for i, what in enumerate(subject * 2):
        form = ("Where does the {} stand?", "Where stands the {}?")[i // 10].format(what)
        text = " ".join(rng.choices(string.ascii_lowercase, k=80))
        chunks.append(Chunk(chunk_id=f"c{i}", doc_id=f"d{i}", heading="", text=text, start=0, end=len(text), category="k"))
        pairs.append(Pair(id=f"p{i}", doc_id=f"d{i}", chunk_id=f"c{i}", family_id=f"f{i}", category="k", difficulty="easy", question=form,
                          answer=f"Hall {chr(65 + i % 10)}" if what != "gauge" else f"Hall {i}", teacher="t"))
    write_jsonl(tmp_path / "selected.jsonl", pairs)
    write_jsonl(tmp_path / "chunks.jsonl", chunks)
    words = sorted({w for p in pairs for w in p.question.lower().replace("does ", "").split()})
    vectors = lambda spec, texts, *how: np.array([[t.lower().replace("stand?", "stands").replace("?", "").split().count(w.strip("?"))
                                                   + (w.strip("?") == "stands") for w in words] for t in texts], np.float32)
    made = {}
    for threshold in (None, .9):
        config = load_config(overrides={"selection.same_meaning": threshold, "dataset.gold": None, "dataset.test_share": .4})
        stage = next(s for s in pairs_stages(open_source(None, None, None), config, tmp_path / "cache") if s.name == "dataset")
        (out := tmp_path / str(threshold)).mkdir()
        run = stage.run if threshold is None else lambda job, stage=stage: stage.run.func(job, **{**stage.run.keywords, "vectors": vectors})
        run(SimpleNamespace(config=config, needs={"documents": tmp_path, "select": tmp_path}, out=out))
        rows = {name: read_jsonl(out / f"{name}.jsonl", Example, allow_empty=True) for name in ("train", "validation", "test")}
        made[threshold] = {name: {e.pair_id for e in some} for name, some in rows.items()}
    found = [Repeat(**r) for r in json.loads((tmp_path / "0.9/repeats.json").read_text("utf-8"))]
    number = lambda name: int(name[1:]) % 10
    assert found
    assert all(number(r.pair) == number(r.keeper) != 9 and r.similarity >= .9 for r in found)
    assert made[.9]["test"] == made[None]["test"]
    crossing = {p for p in made[None]["train"] for q in made[None]["test"] | made[None]["validation"] if number(p) == number(q) != 9}
    assert crossing
    assert made[None]["train"] - made[.9]["train"] == crossing
