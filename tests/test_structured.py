"Structured answers and grouped requests: what is read, what is never read, whose an item is, and what grouping saves."
import json
from collections import Counter

import pytest
from hypothesis import given, settings, strategies as st
from pydantic import BaseModel

from distillery.core.config import load_config
from distillery.pairs.account import grouping_rows
from distillery.pairs.chunk import chunk_documents
from distillery.pairs.documents import read_documents
from distillery.pairs.generate import generate_pairs
from distillery.pairs.groups import Items, group_tasks, match_items
from distillery.pairs.slots import plan_slots
from distillery.teachers.extractive import ExtractiveTeacher
from distillery.teachers.journal import Journal
from distillery.teachers.protocol import ChatResult, Task, failed, user_request
from distillery.teachers.structured import ask_forms, read_form, schema_text
from distillery.questions.grouping.decision import grouped_rows, grouping_decision, grouping_decisions, grouping_table, why_no_grouping
from distillery.questions.grouping.stages import grouping_stages
from distillery.pairs.stages import pairs_stages
from distillery.engine.source import open_source
from distillery.engine.plan import Plan
from distillery.questions.results import Results

from json_teacher import JsonOracle
from pairs_oracle import Oracle, write_handbook

PLAIN = load_config(preset="handbook")


def at(n, **more):
    return load_config(preset="handbook", overrides={"dataset.questions_per_call": n, **more})


class Row(BaseModel):
    name: str
    years: list[int]


def read(text, finish="stop", form=Row):
    return read_form(ChatResult("k", text, finish), form)


GOOD = '{"name": "Ada", "years": [1966, 1970]}'


@pytest.mark.parametrize("text", [GOOD, f"```json\n{GOOD}\n```", f"```\n{GOOD}\n```\n",
                                  f"Here you are:\n\n```json\n{GOOD}\n```\n\nShall I go on?", f"Sure! {GOOD}",
                                  f"{GOOD}\nThat is all.", f"```json {GOOD}```", GOOD.replace(" ", "\n\n")])
def test_what_surrounds_json_is_no_repair(text):
    reading = read(text)
    assert (reading.outcome, reading.value) == ("parsed", Row(name="Ada", years=[1966, 1970]))


@pytest.mark.parametrize("text", [GOOD.replace("]", ",]"), GOOD.replace('"', "'"), GOOD.replace('"name"', "name"),
                                  GOOD.replace("{", "{ // a row\n"),
                                  f"```json\n{GOOD[:-1]},}}\n```"])
def test_a_repair_is_called_a_repair(text):
    reading = read(text)
    assert (reading.outcome, reading.value) == ("repaired", Row(name="Ada", years=[1966, 1970]))


@pytest.mark.parametrize(("text", "said"), [("", "not JSON"), ("I cannot do that.", "not JSON"), ('{"name": "Ada"}', "years"),
                                            ("[1, 2]", "form"), ('{"name": "Ada", "years": ["last"]}', "years.0"),
                                            ('"text"', "form|not JSON"), ("null", "form|not JSON")])
def test_an_invalid_answer_says_what_is_wrong(text, said):
    reading = read(text)
    assert (reading.outcome, reading.value) == ("invalid", None)
    assert any(word in reading.error for word in said.split("|"))


def test_the_reason_of_the_end_comes_first():
    assert read(GOOD, "length").outcome == "cut"
    assert read_form(failed(user_request("k", "?"), TimeoutError("lunch")), Row).outcome == "failed"


@given(st.integers(1, len(GOOD) - 1))
@settings(max_examples=len(GOOD))
def test_no_beginning_of_an_answer_is_an_answer(n):
    for text in (GOOD[:n], f"```json\n{GOOD[:n]}", f"```json\n{GOOD[:n]}\n```"):
        for finish in ("stop", "length"):
            assert read(text, finish).value is None, text


@given(st.text(max_size=60))
@settings(max_examples=150)
def test_any_text_is_read_without_a_fall(text):
    for wrapped in (text, f"{{{text}}}", f"[{text}", json.dumps({"name": text, "years": [1]})):
        reading = read(wrapped)
        assert (reading.value is None) == (reading.outcome in ("invalid", "cut"))
    assert reading.value.name == text


def test_one_more_question_and_not_two():
    said, counts = [], Counter()

    def ask(requests):
        said.append([r.messages for r in requests])
        texts = {"a": GOOD, "b": "{}" if len(said) == 1 else GOOD, "c": "never", "d": GOOD[:20]}
        return {r.key: ChatResult(r.key, texts[r.key], "stop") for r in requests}

    found = ask_forms(ask, [user_request(k, f"row {k}") for k in "abcd"], Row, counts)
    assert [found[k].outcome for k in "abcd"] == ["parsed", "parsed", "invalid", "cut"]
    assert [len(batch) for batch in said] == [4, 2]
    assert [m.role for m in said[1][0]] == ["user", "assistant", "user"]
    assert "years" in said[1][0][2].content
    assert counts == {"parsed": 2, "invalid": 1, "cut": 1, "asked again": 2}


def test_a_schema_is_strict_and_always_the_same():
    schema = json.loads(schema_text(Items, "schema"))
    assert schema["additionalProperties"] is False
    assert schema["required"] == ["items"]
    assert schema["$defs"]["Item"]["required"] == ["id", "text"]
    assert schema_text(Items, "object") == schema_text(Items, "schema")
    assert schema_text(Items, "prompt") == ""


def test_items_find_their_tasks():
    listed = [{"id": 1, "text": "a"}, {"id": " 2 ", "text": " b "}, {"id": "3"}, {"id": "4", "text": 5}, {"id": "5", "text": "x"},
              {"id": "5", "text": "y"}, {"id": "77", "text": "z"}, {"id": "6", "text": " "}, "loose", None]
    for shape in (listed, {"items": listed}):
        assert match_items(list("ABCDEF"), Items.model_validate(shape)) == {"A": "a", "B": "b"}


@given(st.lists(st.tuples(st.sampled_from("pqrs"), st.sampled_from(["ask", "answer"])), max_size=40), st.integers(2, 7))
@settings(max_examples=80)
def test_groups_hold_every_task_at_most_once(drawn, n):
    for kind in ("ask", "answer"):
        tasks = {str(i): Task(kind, f"passage {p} " * (1 + 40 * (p == "s"))) for i, (p, _) in enumerate(drawn)}
        groups = group_tasks(tasks, n)
        keys = [k for g in groups for k in g]
        assert len(keys) == len(set(keys))
        assert all(2 <= len(g) <= n for g in groups)
        if kind == "answer": assert all(len({tasks[k].passage for k in g}) == 1 for g in groups)
        assert all(len({len(tasks[k].passage) > 100 for k in g}) == 1 for g in groups), "a long passage beside a short one"


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    folder = tmp_path_factory.mktemp("book")
    facts = write_handbook(folder, 6)
    return facts, chunk_documents(read_documents(folder).documents)


def made_at(book, tmp_path, config, habit=None):
    facts, chunks = book
    teacher = JsonOracle(facts, habit)
    journal = Journal(tmp_path / f"{len(list(tmp_path.iterdir()))}.sqlite")
    return generate_pairs(chunks, teacher, journal, config), teacher, journal


@pytest.fixture(scope="module")
def whole(book, tmp_path_factory):
    "What a teacher without bad habits makes in groups of four, and that teacher."
    return made_at(book, tmp_path_factory.mktemp("whole"), at(4))[:2]


def test_grouping_saves_at_least_two_calls_in_five(book, whole, tmp_path):
    alone, one, _ = made_at(book, tmp_path, at(1))
    grouped, many = whole
    assert one.kinds["group"] == 0
    assert len(many.requests) <= 0.6 * len(one.requests), (len(many.requests), len(one.requests))
    families = lambda made: {p.family_id for p in made.pairs if p.kind == "answer"}
    assert len(families(grouped) & families(alone)) >= 0.95 * len(families(alone))
    assert grouped.counts["grouped: requests"] == many.kinds["group"]
    prompts = Counter(p.template for p in grouped.pairs)
    assert prompts["common/ask_many"] > prompts["handbook/ask"]
    assert {r.task for r in many.requests if "JSON" in r.messages[0].content} == {None}


def test_one_question_per_call_sends_what_it_always_sent(book, tmp_path):
    facts, chunks = book
    log = []

    class Listening(Oracle):
        async def stream(self, requests):
            log.extend(requests)
            async for result in super().stream(requests): yield result

    generate_pairs(chunks, Listening(facts), Journal(tmp_path / "a.sqlite"), PLAIN)
    assert all(r.task and not r.schema for r in log)
    assert not any("JSON" in r.messages[0].content for r in log)


def test_a_finished_grouped_run_asks_nothing_and_changes_nothing(book, tmp_path):
    facts, chunks = book
    journal = Journal(tmp_path / "a.sqlite")
    first = generate_pairs(chunks, JsonOracle(facts), journal, at(4))
    asked = journal.asked
    again = JsonOracle(facts)
    assert generate_pairs(chunks, again, journal, at(4)) == first
    assert (again.requests, journal.asked) == ([], asked)


FOUND = '{"items": [{"id": "1", "text": "cut off here'
HABITS = {
    "every third item missing": lambda items, r: {"items": [x for i, x in enumerate(items) if i % 3]},
    "a bare list in a fence": lambda items, r: f"```json\n{json.dumps(items)}\n```",
    "numbers for ids": lambda items, r: {"items": [{**x, "id": int(x["id"])} for x in items]},
    "one id twice": lambda items, r: {"items": [*items, items[0]]},
    "the wrong form at first": lambda items, r: {"items": items} if len(r.messages) > 1 else {"questions": items},
    "every other list cut": lambda items, r: (FOUND, "length") if r.seed % 2 else {"items": items},
    "cut, and says stop": lambda items, r: FOUND if r.seed % 2 else {"items": items},
    "texts that are no texts": lambda items, r: {"items": [{**x, "text": None} if x["id"] == "2" else x for x in items]},
}


@pytest.mark.parametrize("habit", HABITS, ids=list(HABITS))
def test_what_a_list_lacks_is_asked_for_alone(book, whole, tmp_path, habit):
    made, _, _ = made_at(book, tmp_path, at(4), HABITS[habit])
    families = lambda some: {p.family_id for p in some.pairs if p.kind == "answer"}
    assert len(families(made) & families(whole[0])) >= 0.95 * len(families(whole[0]))
    assert not any("cut off here" in p.question + p.answer for p in made.pairs)
    c = made.counts
    assert c["grouped: answers"] > 0
    if habit == "the wrong form at first": assert c["grouped: asked again"] > 0
    if "cut" in habit: assert c["grouped: cut"] > 0
    if habit not in ("a bare list in a fence", "numbers for ids", "the wrong form at first"): assert c["grouped: sent again alone"] > 0


def test_two_ids_swapped_make_no_wrong_pair(book, tmp_path):
    "The checks of single answers hold for grouped ones: a question under another sentence's number is rejected, not kept."
    turned = lambda items: [{**x, "id": items[-i - 1]["id"]} for i, x in enumerate(items)]
    swap = lambda items, r: {"items": turned(items) if "each task" in r.messages[0].content else items}
    _, chunks = book
    made, _, _ = made_at(book, tmp_path, at(4), swap)
    assert made.counts["answer: the answer lies outside the sentence asked about"] > 0
    sentences = {s.slot_id: s.focus for s in plan_slots(chunks, at(4)) if s.focus}
    for p in made.pairs:
        if p.kind == "answer" and p.difficulty != "hard":
            assert sentences[p.family_id].start <= p.evidence.start < sentences[p.family_id].end


def test_a_teacher_that_writes_no_json_is_asked_no_more_of_it(book, tmp_path):
    _, chunks = book
    alone, made = (generate_pairs(chunks, ExtractiveTeacher(), Journal(tmp_path / f"{n}.sqlite"), at(n)) for n in (1, 4))
    assert [p.id for p in made.pairs] == [p.id for p in alone.pairs]
    assert made.counts["grouped: requests"] == made.counts["grouped: failed"] == 4
    assert made.counts["grouped: answers"] == 0


def test_json_mode_puts_the_schema_beside_the_prompt(book, tmp_path):
    facts, chunks = book
    for mode in ("prompt", "object", "schema"):
        _, teacher, _ = made_at((facts, chunks[:3]), tmp_path, at(4, **{"prompts.json_mode": mode}))
        groups = [r for r in teacher.requests if r.task is None]
        assert {bool(r.schema) for r in groups} == {mode != "prompt"}
        assert not any(r.schema for r in teacher.requests if r.task)
        assert all(r.stop == () for r in groups), "a stop sequence would cut a list"


def test_the_paired_check_finds_a_teacher_that_suffers_from_grouping(book, tmp_path):
    facts, chunks = book
    slots = plan_slots(chunks, PLAIN)
    blunt = lambda items, r: {"items": [{**x, "text": "What is this about?"} if int(x["id"]) > 2 else x for x in items]}
    for habit, suffers in ((None, False), (blunt, True)):
        rows = grouping_rows(chunks, slots, JsonOracle(facts, habit), Journal(tmp_path / f"{suffers}.sqlite"), PLAIN, (1, 4))
        found, = grouping_decision(rows, PLAIN).contrasts
        requests = {r.level: r.requests for r in rows}
        assert requests[4] < 0.6 * requests[1]
        assert (found.n_items, found.n_clusters) == (len(rows) // 2, 6)
        assert (found.ci_high < 0) == suffers


def test_the_stage_asks_the_levels_and_the_card_says_what_they_save(tmp_path, monkeypatch):
    docs = tmp_path / "docs"
    docs.mkdir()
    facts = write_handbook(docs, 8)
    teacher = JsonOracle(facts)
    monkeypatch.setattr("distillery.questions.grouping.stages.teacher_opener", lambda spec, config: lambda told: teacher)
    config = at(1, **{"decisions.questions_per_call": [4, 1], "decisions.prompt_slots": 40, "dataset.gold": None})
    source, cache = open_source(docs, None, None), tmp_path / "cache"
    stages = [pairs_stages(source, config, cache)[0], *grouping_stages(source, config, cache)]
    done = Plan(stages, config, cache).run(lambda event: None)
    run = tmp_path / "run"
    (run / "grouping").mkdir(parents=True)
    (run / "grouping/rows.jsonl").write_bytes((done["grouping"].path / "rows.jsonl").read_bytes())
    results = Results(run)
    assert why_no_grouping(results) is None
    card, = grouping_decisions(results, config)
    assert (card.levels, card.n_items) == (["1", "4"], 40)
    assert [row["questions per call"] for row in grouping_table(grouped_rows(results), config)] == ["1", "4"]
    sent = {r.level: r.requests for r in grouped_rows(results)}
    assert len(teacher.requests) <= sum(sent.values()), "what is left over at one level may be known from another"
    assert sent[4] < 0.6 * sent[1]
    assert "Not run" in why_no_grouping(Results(tmp_path))
    assert grouping_stages(source, at(1), cache) == []
