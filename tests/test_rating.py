"A teacher as judge, over a real server: ratings beside the source in a run, duels in both orders by command, and planted bias."
import json
import re
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

import teachers_server
from distillery.commands.cli import app
from distillery.core.config import load_config
from distillery.core.errors import DistilleryError
from distillery.core.records import Chunk, Pair
from distillery.core.store import read_jsonl, write_jsonl
from distillery.engine.source import open_source
from distillery.pairs.stages import pairs_stages
from distillery.scoring.labels import LabelFile, PersonLabel
from distillery.selection.ratings import Rating

DIMENSIONS = ("support", "accuracy", "completeness", "clarity")


def between(prompt, mark): return prompt.split(f"<{mark}>\n")[1].split(f"\n</{mark}>")[0]


def rated(body):
    "Looks the answer up in the source."
    prompt = body["messages"][-1]["content"]
    said = 5 if between(prompt, "answer") in between(prompt, "source") else 1
    return json.dumps({"reason": "I looked it up.", **dict.fromkeys(DIMENSIONS, said)})


def biased(body):
    "Prefers the longer answer; in four of five prompts the one that stands first."
    prompt = body["messages"][-1]["content"]
    number = int(re.search(r"item (\d+)", prompt)[1])
    first, second = len(between(prompt, "first")), len(between(prompt, "second"))
    return json.dumps({"reason": "It reads well.", "winner": "first" if number % 5 or first > second else "second"})


@pytest.fixture
def server(monkeypatch):
    plain = teachers_server.whole
    monkeypatch.setattr(teachers_server, "whole", lambda text: {"choices": plain(text)["choices"]})  # without its count of tokens
    with teachers_server.Server() as made: yield made


@pytest.fixture
def project(tmp_path):
    pairs = [Pair(id=f"p{i}", doc_id=f"d{i // 2}", chunk_id=f"c{i}", family_id=f"p{i}", category="k", difficulty="easy",
                  question=f"Where is machine {i}?", answer=f"Hall {i if i % 3 else i + 50}", teacher="t") for i in range(12)]
    texts = [f"Machine {i} stands in Hall {i} beside the door." for i in range(12)]
    write_jsonl(tmp_path / "pairs.jsonl", pairs)
    chunk = lambda i, t: Chunk(chunk_id=f"c{i}", doc_id=f"d{i // 2}", heading="", text=t, start=0, end=len(t), category="k")
    write_jsonl(tmp_path / "chunks.jsonl", [chunk(i, t) for i, t in enumerate(texts)])
    return tmp_path


def test_a_judge_of_a_run_rates_every_pair_beside_its_source(server, project, monkeypatch):
    monkeypatch.setattr(teachers_server, "answer_of", rated)
    asked = {"judge.model": f"{server.url}#m", "judge.repeats": 2, "judge.temperature": 0.7, "selection.method": "top-k",
             "selection.max_pairs": 8, "selection.min_relevance": -1, "selection.min_evidence": 0}
    for turn in range(2):
        config = load_config(overrides=asked)
        stages = {s.name: s for s in pairs_stages(open_source(None, None, None), config, project / "cache")}
        (out := project / f"out{turn}").mkdir()
        job = SimpleNamespace(config=config, needs={"documents": project, "judge": project}, out=out, say=lambda *a: None,
                              scratch=project / "scratch/rate/key")
        stages["rate"].run(job)
        assert len(server.bodies) == 24  # the second time nothing is asked
    ratings = read_jsonl(out / "ratings.jsonl", Rating)
    assert {b["temperature"] for b in server.bodies} == {0.7}
    assert len({b["seed"] for b in server.bodies}) == 24
    assert {(r.item, r.repeat) for r in ratings} == {(f"p{i}", k) for i in range(12) for k in range(2)}
    assert {r.item for r in ratings if r.score == 0} == {"p0", "p3", "p6", "p9"}
    assert {r.reason for r in ratings} == {"I looked it up."}
    job.needs["rate"] = out
    stages["select"].run(job)
    assert {p.id for p in read_jsonl(out / "selected.jsonl", Pair)} == {f"p{i}" for i in range(12) if i % 3}


@pytest.mark.parametrize(("change", "said"), [
    ({"judge.repeats": 3}, "same thing at temperature 0"), ({"judge.rubric": "style"}, "no rubric 'style'")])
def test_settings_that_cannot_be_are_refused_before_anything_is_asked(server, tmp_path, change, said):
    config = load_config(overrides={"judge.model": f"{server.url}#m", **change})
    with pytest.raises(DistilleryError, match=said): pairs_stages(open_source(None, None, None), config, tmp_path)
    assert server.bodies == []


def test_planted_position_bias_is_found_by_command(server, tmp_path, monkeypatch):
    monkeypatch.setattr(teachers_server, "answer_of", biased)
    monkeypatch.chdir(tmp_path)
    answer = lambda i, s: f"Item {i}{' and more of it' * (s == 'new')}"
    rows = [{"item": f"q{i}", "system": s, "question": f"What of item {i}?", "answer": answer(i, s), "cluster": f"d{i // 2}"}
            for i in range(40) for s in ("old", "new")]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    done = CliRunner().invoke(app, ["judge", "duel", "answers.jsonl", "--teacher", f"{server.url}#m"])
    assert done.exit_code == 0, done.output
    duels = [json.loads(line) for line in (tmp_path / "duels.jsonl").read_text("utf-8").splitlines()]
    assert len(duels) == len(server.bodies) == 80
    assert not [b for b in server.bodies if "old" in b["messages"][-1]["content"].split("Which answer")[0]]  # systems are not named
    said = " ".join(done.output.split())
    assert "new wins 20 %, old wins 0 %; 80 % turn with the order" in said, said
    again = CliRunner().invoke(app, ["judge", "steady", "duels.jsonl"])
    assert again.exit_code == 0, again.output
    assert "0.8" in again.output


def test_ratings_of_a_run_and_labels_of_people_become_one_table(server, project, monkeypatch):
    monkeypatch.setattr(teachers_server, "answer_of", rated)
    monkeypatch.chdir(project)
    run = project / "runs/abc"
    run.mkdir(parents=True)
    for name, to in (("pairs", "selected"), ("chunks", "chunks")): (project / f"{name}.jsonl").rename(run / f"{to}.jsonl")
    (run / "manifest.json").write_text("{}")
    repeated = ["--repeats", "2", "--set", "judge.temperature=0.7"]
    done = CliRunner().invoke(app, ["judge", "rate", "abc", "--teacher", f"{server.url}#m", *repeated])
    assert done.exit_code == 0, done.output
    assert "24 ratings in rated.jsonl" in " ".join(done.output.split())
    for who in ("ada", "ben"):
        file = LabelFile(project / "labels", who)
        for i in range(12): file.put(PersonLabel(item=f"p{i}", labeller=who, rating=4 if i % 3 else 2 - (who == "ben")))
    made = CliRunner().invoke(app, ["judge", "labels", "labels", "--ratings", "rated.jsonl"])
    assert made.exit_code == 0, made.output
    named = ["--human", "by ada,by ben", "--judge", "judge", "--cluster", "cluster"]
    agreed = CliRunner().invoke(app, ["judge", "agree", "labelled.jsonl", *named])
    assert agreed.exit_code == 0, agreed.output
    assert "Spearman" in agreed.output or "spearman" in agreed.output
