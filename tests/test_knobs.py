"No dead knobs: each changes something that is recorded (a call, a request, a split, a verdict), and only result knobs move keys."
import ast
import json
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest

from distillery.core.config import flatten, load_config, result_keys
from distillery.core.knobs import knobs
from distillery.pairs.chunk import chunk_documents
from distillery.pairs.documents import read_documents
from distillery.workbook.experiment import prepare

from knob_effects import PROBED, SEEN, VALUES, generated
from knob_values import another
from pairs_oracle import write_handbook

HERE = Path(__file__).parent
BEFORE = flatten(load_config(preset="handbook"))
ALL = {"student.extractive": True, "export.gguf": ["f16"], "decisions.distill_arms": ["sft", "sequence"]}
PLAN = prepare(None, None, load_config(preset="handbook", overrides=ALL)).plan


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "Six pages of a handbook, as documents, passages and pairs."
    folder = tmp_path_factory.mktemp("knobs")
    (folder / "book").mkdir()
    facts = write_handbook(folder / "book", 6)
    documents = read_documents(folder / "book").documents
    chunks = chunk_documents(documents)
    made = SimpleNamespace(folder=folder, facts=facts, documents=documents, chunks=chunks)
    made.pairs = generated(made, load_config(preset="handbook", overrides={"dataset.questions_per_chunk": 4}), 99)[1]
    return made


def test_every_knob_is_looked_at_once():
    assert not set(PROBED) & set(SEEN)
    assert set(PROBED) | set(SEEN) == set(BEFORE)


@pytest.fixture(scope="module")
def plain(place): return cache(lambda probe, besides: probe(place, load_config(preset="handbook", overrides=dict(json.loads(besides)))))


@pytest.mark.parametrize("name", PROBED)
def test_a_change_of_a_knob_is_seen(name, place, plain, monkeypatch):
    monkeypatch.chdir(place.folder)
    (place.folder / "qa.jsonl").write_text('{"question": "Where is it?", "answer": "In room 7"}\n')
    (place.folder / "articles.jsonl").write_text('{"text": "A raven.", "scores": {"clarity": 1}}\n')
    (probe, besides), knob = PROBED[name], next(k for k in knobs() if k.name == name)
    value = VALUES[name] if name in VALUES else another(knob, {**BEFORE, **besides}[name])
    config = load_config(preset="handbook", overrides={**besides, name: value})
    assert probe(place, config) != plain(probe, json.dumps(besides)), f"{name}: nothing changes where {probe.__name__} looks"


@pytest.mark.parametrize("name", SEEN)
def test_an_effect_that_is_seen_elsewhere_has_its_test(name):
    file, test = SEEN[name].split("::")
    tree = ast.parse((HERE / f"{file}.py").read_text("utf-8"))
    found = next((n for n in tree.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef) and n.name == test), None)
    assert found, f"{SEEN[name]} is gone"
    assert not [d for d in map(ast.unparse, found.decorator_list) if "mark.skip" in d]


def parts_of(**change):
    config = load_config(preset="handbook", overrides=change)
    return {s.name: result_keys(config, s.reads) for s in PLAN.stages}


PLAIN = parts_of()


def test_only_result_knobs_change_keys():
    agree = {"thresholds.p95_latency_ms_max", "sft.load_best_model_at_end", "teacher.model", "student.base", "prompts.pack",
             "dataset.gold"}  # their values must exist or agree with others; covered where they are used
    for knob in (k for k in knobs() if k.name not in agree):
        changed = parts_of(**{knob.name: another(knob, BEFORE[knob.name])})
        moved = [name for name, settings in changed.items() if settings != PLAIN[name]]
        only_pages = knob.name.startswith("decisions.")
        assert bool(moved) == (knob.kind == "result") or only_pages, f"{knob.name} is {knob.kind} and moves {moved}"


def test_a_teacher_that_nobody_learns_from_trains_nobody_again():
    plain, other = parts_of(), parts_of(**{"distill.teacher": "builtin:mini", "distill.weight": 0.9})
    assert plain["sft"] == other["sft"] != parts_of(**{"distill.method": "sequence"})["sft"]
    assert {name for name in plain if plain[name] != other[name]} == {n for n in plain if n.startswith("arm-") or n == "teach"}
