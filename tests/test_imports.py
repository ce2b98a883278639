"Pairs as other people write them: file formats, shapes, and what becomes of every row."

import gzip
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from distillery.core.config import load_config
from distillery.core.errors import DistilleryError
from distillery.core.knobs import ConfigError
from distillery.pairs.augment import augment_pairs
from distillery.reading.columns import answer_texts, clean_text
from distillery.pairs.dataset import build_dataset, check_leaks
from distillery.pairs.imports import left_out, read_pairs
from distillery.pairs.select import select_pairs
from distillery.pairs.set_notes import what_sets_ask
from distillery.teachers.journal import Journal
from distillery.teachers.protocol import ChatResult

HERE = Path(__file__).parent
CASES = HERE.parents[1] / "shared" / "cases"
CONFIG = load_config(preset="qa-import")
Q, A = "How often is the drum cleaned?", "every 14 days"


def put(path, *rows, indent=None):
    text = json.dumps(rows[0], indent=indent) if indent is not None else "\n".join(map(json.dumps, rows))
    path.write_text(text, encoding="utf-8")
    return path


def said(found):
    return [(p.question, p.answer) for p in found.pairs]


# The shapes of case 24, and further ones

SHAPES = {
    "squad": {"id": "1", "title": "Drum", "context": f"It is cleaned {A}.", "question": Q, "answers": {"text": [A], "answer_start": [14]}},
    "alpaca": {"instruction": Q, "input": "", "output": A},
    "sharegpt": {"conversations": [{"from": "human", "value": Q}, {"from": "gpt", "value": A}]},
    "openai": {
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": Q}, {"role": "assistant", "content": A}]
    },
    "parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": Q}]}, {"role": "assistant", "content": A}]},
    "dolly": {"instruction": Q, "context": "", "response": A, "category": "closed_qa"},
    "prompt": {"prompt": Q, "completion": A},
    "preference": {
        "prompt": Q,
        "chosen": [{"role": "user", "content": Q}, {"role": "assistant", "content": A}],
        "rejected": [{"role": "user", "content": Q}],
    },
    "trivia": {"question": Q, "answer": {"value": A, "aliases": ["fortnightly"]}},
    "choices": {"question": Q, "choices": ["never", A], "answer": 1},
    "letters": {"question": Q, "choices": {"label": ["A", "B"], "text": ["never", A]}, "answer": "B"},
    "arc": {"question": Q, "choices": {"label": ["A", "B"], "text": ["never", A]}, "answerKey": "B"},
    "lettered": {"question": Q, "A": "never", "B": A, "C": "daily", "answer": "B"},
    "rag": {"user_input": Q, "retrieved_contexts": [f"It is cleaned {A}."], "response": "never", "reference": A},
    "traced": {"inputs": {"question": Q}, "outputs": {"answer": A}},
    "parts of gemini": {"contents": [{"role": "user", "parts": [{"text": Q}]}, {"role": "model", "parts": [{"text": A}]}]},
    "speakers": {"conversation": [{"human": Q, "assistant": A}]},
    "batch": {"custom_id": "1", "body": {"messages": [{"role": "user", "content": Q}, {"role": "assistant", "content": A}]}},
    "turns": [{"role": "user", "content": Q}, {"role": "assistant", "content": A}],
    "short": {"q": Q, "a": A}, "camel": {"questionText": Q, "correctAnswer": A},
    "capitals": {"Question": Q, "ANSWER": A, "Notes": "?"},
    "repr": {
        "question": Q,
        "answers": "{'text': array(['" + A + "'], dtype=object), 'answer_start': array([14])}",
        "context": f"It is cleaned {A}.",
    },
}
WRAPPED = {
    "list": [{"question": Q, "answer": A}],
    "data": {"version": 1, "data": [{"question": Q, "answer": A}]},
    "nested": {
        "data": [
            {"title": "D", "paragraphs": [{"context": A, "qas": [{"id": 1, "question": Q, "answers": [{"text": A, "answer_start": 0}]}]}]}
        ]
    },
    "splits": {"train": [{"question": Q, "answer": A}], "test": []},
    "columns": {"question": [Q], "answer": [A]},
    "orient": {"columns": ["question", "answer"], "index": [0], "data": [[Q, A]]},
    "index": {"question": {"0": Q}, "answer": {"0": A}},
    "viewer": {"features": [], "rows": [{"row_idx": 0, "row": {"question": Q, "answer": A}}]},
    "one": {"question": Q, "answer": A},
    "map": {Q: A},
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("pretty", [False, True])
def test_every_shape_is_the_same_pair(tmp_path, name, pretty):
    path = put(tmp_path / "p.json", [SHAPES[name]], indent=1) if pretty else put(tmp_path / "p.jsonl", SHAPES[name])
    assert said(read_pairs(path)) == [(Q, A)]


@pytest.mark.parametrize("name", WRAPPED)
def test_every_wrapper_is_opened(tmp_path, name):
    assert said(read_pairs(put(tmp_path / "p.json", WRAPPED[name], indent=2))) == [(Q, A)]


@pytest.mark.parametrize(
    "file", ["alpaca.jsonl", "list.json", "numeric.jsonl", "openai.jsonl", "sharegpt.jsonl", "squad.jsonl", "squad2.jsonl"]
)
def test_the_case_of_other_peoples_pairs(file):
    path = CASES / "24_pairs_as_others_write_them" / file
    if not path.is_file():
        pytest.skip("../shared/cases is not here")
    (pair,) = read_pairs(path).pairs
    assert pair.kind == ("refusal" if file == "squad2.jsonl" else "answer")
    assert pair.answer == {"numeric.jsonl": "3", "squad2.jsonl": "The passage does not tell."}.get(file, A)


def test_numbers_and_truth_are_answers_and_the_commonest_of_several_counts(tmp_path):
    rows = [
        {"id": 7, "question": "How many?", "answer": 3},
        {"id": 7.0, "question": "How much?", "answer": 2.5},
        {"question": "Is it?", "answer": True},
        {"question": "Which?", "answers": [2, "two", "two"]},
        {"question": "Who?", "answer": "None"},
    ]
    found = read_pairs(put(tmp_path / "p.jsonl", *rows))
    assert [p.answer for p in found.pairs] == ["3", "2.5", "yes", "two", "None"]
    assert found.pairs[0].id == "7"
    assert found.notes == {"questions with several answers: the commonest was taken": 1}


def test_an_empty_list_of_answers_is_a_refusal_only_beside_a_passage(tmp_path):
    rows = [
        {"question": "Who?", "context": "It is.", "answers": {"text": [], "answer_start": []}},
        {"question": "Who?", "answers": []},
        {"question": "Where?", "context": "It is.", "is_impossible": "True", "answer": ""},
        {"question": "Ok?", "answer": "yes"},
    ]
    found = read_pairs(put(tmp_path / "p.jsonl", *rows))
    assert [p.kind for p in found.pairs] == ["refusal", "refusal", "answer"]
    assert list(found.left.values()) == [["line 2"]]
    assert left_out(found, "p.jsonl")[0]["path"] == "p.jsonl: line 2"


# Conversations


def test_each_turn_is_a_pair_with_what_came_before(tmp_path):
    talk = [
        ("system", "Only this talk is about valve 7."),
        ("user", Q),
        ("assistant", A),
        ("user", "And the lid?"),
        ("assistant", "never"),
        ("user", "Why?"),
    ]
    other = [("system", "Be brief."), ("user", "Hello?"), ("tool", "14"), ("assistant", "Yes, 14.")]
    rows = [{"messages": [{"role": r, "content": c} for r, c in t]} for t in (talk, other, [("system", "Be brief."), ("user", "Well?")])]
    found = read_pairs(put(tmp_path / "p.jsonl", *rows))
    texts = {c.chunk_id: c.text for c in found.chunks}
    assert said(found) == [(Q, A), ("And the lid?", "never"), ("Hello?", "Yes, 14.")]
    assert "valve 7" in texts[found.pairs[0].chunk_id]
    assert A in texts[found.pairs[1].chunk_id]
    assert texts[found.pairs[2].chunk_id] == "Tool: 14"
    assert len({p.doc_id for p in found.pairs[:2]}) == 1, "the turns of a conversation stay on one side"
    assert found.notes == {"left out of a conversation: a question that nobody answered": 1, "shared system prompts set aside": 1}
    assert found.left == {"a question that nobody answered": ["line 3"]}
    rows = build_dataset(select_pairs(found.pairs, CONFIG).kept, found.chunks, CONFIG)["train"]
    assert all(e.passage for e in rows), "a follow-up is never asked alone"


# Tables

TABLES = {
    "comma": f"question,answer\n{Q},{A}\n",
    "semicolon": f"sep=;\r\nQuestion;Answer;Extra\r\n{Q};{A};x\r\n;;\r\n",
    "tab": f"question\tanswer\n{Q}\t{A}\n",
    "quotes": f'question,answer\n"{Q}","{A}"\n',
    "lines": f'context,question,answer\n"first\nsecond, with ""quotes""",{Q},{A}\n',
    "spaces": f'question, answer\n"{Q}", "{A}"\n',
    "old": f"question,answer\r{Q},{A}\r",
    "short": f"answer,question,context\n{A},{Q}\n",
}


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
def test_tables_of_spreadsheets(tmp_path, name, encoding):
    (tmp_path / "t.csv").write_bytes(TABLES[name].encode(encoding))
    assert said(read_pairs(tmp_path / "t.csv")) == [(Q, A)]


@pytest.mark.parametrize("text", ["Our questions\n\nQuestion,Answer\n{},{}\n", "FAQ of 2024,,\n,,\nNo.,Question,Answer\n1,{},{}\n",
                                  "| question | answer |\n|---|:--|\n| {} | {} |\n", "Export;;\nQuestion;Answer;\n{};{};\n"])
def test_lines_around_the_heading_of_a_table(tmp_path, text):
    (tmp_path / "p.csv").write_text(text.format(Q, A))
    assert said(read_pairs(tmp_path / "p.csv")) == [(Q, A)]


def test_columns_in_another_language_are_named_in_a_setting(tmp_path):
    path = tmp_path / "fragen.csv"
    path.write_text(f"Nr;Frage;Antwort;Text\n1;{Q};{A};Es wird {A} gereinigt.\n")
    with pytest.raises(DistilleryError) as e:
        read_pairs(path)
    assert all(word in str(e.value) for word in ("CSV with semicolons", "Nr, Frage, Antwort, Text", "--set dataset.columns.question="))
    config = load_config(
        overrides={"dataset.columns.question": "frage", "dataset.columns.answer": "Antwort", "dataset.columns.context": "Text"}
    )
    found = read_pairs(path, config.dataset.columns)
    assert (said(found), found.pairs[0].evidence.text) == ([(Q, A)], A)
    with pytest.raises(ConfigError):
        load_config(overrides={"dataset.columns.colour": "Farbe"})


@pytest.mark.parametrize(
    ("text", "line"),
    [('q,a\n1,2\n"3" x,4\n5,6\n', 3), ('q,a\n1,2\n"3,4\n5,6\n', 3), ('q,a\n"1\n1",2\n"3"x,4\n', 4), ('sep=,\nq,a\n"1"1,2\n', 3)],
)
def test_a_bad_quote_is_reported_where_its_row_begins(tmp_path, text, line):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DistilleryError, match=rf"t\.csv, line {line}:"):
        read_pairs(tmp_path / "t.csv")


@given(st.lists(st.sampled_from([None, 0, 1, 2]), min_size=2, max_size=6))
def test_objects_may_fill_a_line_or_several_in_any_order(tmp_path_factory, ways):
    path = tmp_path_factory.mktemp("o") / "p.json"
    rows = [{"question": f"{Q} {i}", "answer": A} for i in range(len(ways))]
    path.write_text("\n".join(json.dumps(row, indent=way) for row, way in zip(rows, ways, strict=True)))
    assert said(read_pairs(path)) == [(f"{Q} {i}", A) for i in range(len(ways))]
    path.write_text(json.dumps(rows[0]) + "\n" + json.dumps(rows[0]) + '\n{"question": "Where?", \n')
    with pytest.raises(DistilleryError, match=r"p\.json, line 3:"): read_pairs(path)


def test_a_separator_without_quotes_leaves_the_row_out_and_counts_it(tmp_path):
    (tmp_path / "t.csv").write_text(f"question,answer\nWhere, then?,here\n{Q},{A}\n")
    found = read_pairs(tmp_path / "t.csv")
    assert (said(found), found.rows, list(found.left.values())) == ([(Q, A)], 2, [["line 2"]])


# Columns on disk


def test_parquet_arrow_gzip_and_saved_datasets(tmp_path):
    pa = pytest.importorskip("pyarrow")
    datasets = pytest.importorskip("datasets")
    from pyarrow import parquet

    table = pa.table(
        {"question": [Q], "answers": [{"text": [A], "answer_start": [3]}], "context": [f"It {A}."], "picture": [b"\0"], "score": [1.5]}
    )
    parquet.write_table(table, tmp_path / "p.parquet")
    made = datasets.Dataset.from_dict({"question": [Q], "answer": [A]})
    made.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"test": made, "train": made}).save_to_disk(tmp_path / "both")
    (tmp_path / "p.json.gz").write_bytes(gzip.compress(json.dumps([{"question": Q, "answer": A}]).encode()))
    (tmp_path / "hub/data").mkdir(parents=True)
    parquet.write_table(table, tmp_path / "hub/data/train-00000-of-00001.parquet")
    (tmp_path / "hub/README.md").write_text("# A card")
    for name in ("p.parquet", "saved", "p.json.gz", "hub"):
        assert said(read_pairs(tmp_path / name)) == [(Q, A)], name
    assert len(read_pairs(tmp_path / "both").pairs) == 2


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"PK\x03\x04xl/", "Excel workbook"),
        (b"\x80\x04\x95", "a pickle"),
        (b"%PDF-1.7", "a PDF"),
        (b"PAR1xPAR1", "broken Parquet"),
        (b"BZh9", "bzip2"),
        (b"hello there\nworld", "has no|no column `question`"),
        (b'{"text": "a"}', "columns text"),
    ],
)
def test_what_is_no_file_of_pairs_is_named(tmp_path, data, says):
    (tmp_path / "x.bin").write_bytes(data)
    with pytest.raises(DistilleryError, match=says) as e:
        read_pairs(tmp_path / "x.bin")
    assert "mend or delete" not in str(e.value)


# One question about many passages


def bills(n, contexts="Invoice {}: the total amount is {}40 EUR, due in May."):
    return [{"question": "What is the total amount?", "answer": f"{i}40 EUR", "context": contexts.format(i, i)} for i in range(1, n + 1)]


def check_bills(found, n):
    kept = select_pairs(found.pairs, CONFIG).kept
    splits = build_dataset(kept, found.chunks, CONFIG)
    rows = [e for name in ("train", "validation", "test") for e in splits[name]]
    assert len(kept) == len({e.pair_id for e in rows}) == n
    assert all(e.passage for e in rows)
    assert splits["test"]
    assert splits["recall"] == check_leaks(splits) == []


@pytest.mark.parametrize("n", [3, 8, 12, 60])
def test_invoices_do_not_contradict_each_other(tmp_path, n):
    check_bills(read_pairs(put(tmp_path / "b.jsonl", *bills(n))), n)


def test_the_case_of_invoices():
    path = CASES / "26_same_question_many_contexts/invoices.jsonl"
    if not path.is_file():
        pytest.skip("../shared/cases is not here")
    check_bills(read_pairs(path), 8)


def test_yes_and_no_about_many_passages_are_all_kept(tmp_path):
    rows = [
        {
            "question": "Is it paid?",
            "answer": "yes" if i % 3 else "no",
            "context": f"Order {i} of firm {'abcdefghij'[i]} went out on day {i * 7}.",
        }
        for i in range(10)
    ]
    found = read_pairs(put(tmp_path / "p.jsonl", *rows))
    assert len(select_pairs(found.pairs, CONFIG).kept) == 10


def test_the_same_passage_with_two_answers_still_contradicts_itself(tmp_path):
    rows = [{"question": "What is it?", "answer": a, "context": "It is red or blue."} for a in ("red", "blue")]
    assert select_pairs(read_pairs(put(tmp_path / "p.jsonl", *rows)).pairs, CONFIG).kept == []


# Bare pairs


def test_bare_pairs_get_a_recall_set_by_rule_and_the_page_says_what_the_test_asks(tmp_path):
    rows = [
        {"question": f"Where is the {n} press?", "answer": f"in the {n} hall"}
        for n in "amber brown coral denim ebony fawn green hazel ivory jade".split()
    ]
    found = read_pairs(put(tmp_path / "p.jsonl", *rows))
    splits = build_dataset(found.pairs, found.chunks, CONFIG)
    asked = {e.question for e in splits["train"]}
    assert len(splits["recall"]) == len(splits["train"]) > 5
    assert not asked & {e.question for e in splits["recall"]}
    assert check_leaks(splits) == []
    notes = what_sets_ask(splits, found.pairs, False)
    assert "nobody taught" in notes["test"]
    assert "by rule" in notes["recall"]


def test_one_title_for_all_rows_still_leaves_something_to_test(tmp_path):
    rows = [
        {"title": "Manual", "context": f"Hall {n} holds the {n} press.", "question": f"Wo steht die Presse {n}?", "answer": f"Hall {n}"}
        for n in "Amsel Drossel Fink Star Meise Kauz".split()
    ]
    found = read_pairs(put(tmp_path / "p.jsonl", *rows))
    assert build_dataset(found.pairs, found.chunks, CONFIG)["test"]
    assert any("one title" in note for note in found.notes)


# Augmenting


class Clerk:
    "Rewords by rule: a standard answer without its frame, and a question with the name of its invoice."

    name, identity = "clerk", {"model": "clerk"}

    async def stream(self, requests):
        for r in requests:
            yield ChatResult(r.key, self.reply(r.key.split()[0], r.task), "stop")

    def reply(self, form, task):
        number = re.findall(r"\d+", task.passage)
        if task.kind == "answer":
            return f"{number[0]}40 EUR"
        return task.sentence.removeprefix("it is ") if form == "standard_answer" else f"What is the total amount of Invoice {number[0]}?"


def grow(tmp_path, rows, *forms):
    found = read_pairs(put(tmp_path / "p.jsonl", *rows))
    config = load_config(preset="qa-import", overrides={"dataset.augment": list(forms), "generation_limits.min_variation_length": 5})
    made = augment_pairs(found.pairs, found.chunks, Clerk(), Journal(tmp_path / "j.sqlite"), config)
    return found, made, config


def test_a_question_with_many_answers_is_made_clear_and_can_then_be_asked_from_memory(tmp_path):
    found, made, config = grow(tmp_path, bills(8), "context")
    clear = [p for p in made.pairs if p.template == "common/clarify"]
    assert [p.question for p in clear] == [f"What is the total amount of Invoice {i}?" for i in range(1, 9)]
    assert [(p.answer, p.doc_id) for p in clear] == [(p.answer, p.doc_id) for p in found.pairs]
    splits = build_dataset(select_pairs(made.pairs, config).kept, found.chunks, config)
    assert check_leaks(splits) == []
    assert {e.question for e in splits["train"] if e.passage is None} == {e.question for e in splits["train"] if "Invoice" in e.question}


def test_a_standard_answer_takes_the_place_of_its_original_and_has_evidence(tmp_path):
    rows = [{**row, "answer": f"it is {row['answer']}"} for row in bills(4)] + [{"question": "Which hall is it?", "answer": "Hall 3"}]
    found, made, _ = grow(tmp_path, rows, "standard_answer")
    assert [p.id for p in made.pairs] == [p.id for p in found.pairs]
    assert [p.answer for p in made.pairs] == [*(f"{i}40 EUR" for i in range(1, 5)), "Hall 3"]
    assert [p.evidence.text for p in made.pairs[:4]] == [p.answer for p in made.pairs[:4]]
    assert made.counts["added: standard_answer"] == 4


def test_a_name_that_the_passage_does_not_hold_is_no_context(tmp_path):
    _, made, _ = grow(tmp_path, bills(3, "Bill of {}0: the total amount is {}40 EUR."), "context")
    assert not [p for p in made.pairs if p.template == "common/clarify"]
    assert any(r.reason.startswith("names what the passage does not: invoice") for r in made.rejected)


# Whatever comes

texts = st.text(max_size=30)
cells = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda x: st.lists(x, max_size=3) | st.dictionaries(texts, x, max_size=3),
    max_leaves=6,
)
names = st.sampled_from(
    (
        "question",
        "answer",
        "answers",
        "context",
        "messages",
        "instruction",
        "input",
        "output",
        "choices",
        "title",
        "id",
        "is_impossible",
        "x",
    )
)


@settings(max_examples=60)
@given(st.lists(st.dictionaries(names, cells, max_size=6) | cells, min_size=1, max_size=6))
def test_every_row_is_used_or_counted(tmp_path_factory, rows):
    path = put(tmp_path_factory.mktemp("p") / "p.jsonl", *rows, {"question": Q, "answer": A})
    found = read_pairs(path)
    assert 1 <= found.rows - sum(map(len, found.left.values())) <= len(found.pairs)
    assert found.pairs[-1].question == Q
    for pair in found.pairs:
        pair.model_dump_json().encode()


@settings(max_examples=40)
@given(texts.map(clean_text).filter(bool), texts.map(clean_text).filter(bool), st.sampled_from(sorted(SHAPES)), st.booleans())
def test_any_text_comes_back_from_any_shape(tmp_path_factory, question, answer, name, pretty):
    row = json.loads(
        json.dumps(SHAPES[name])
        .replace(json.dumps(Q)[1:-1], json.dumps(question)[1:-1])
        .replace(json.dumps(A)[1:-1], json.dumps(answer)[1:-1])
    )
    if name == "repr" or answer_texts(answer) != [answer] or "never" in answer:
        return
    path = put(tmp_path_factory.mktemp("p") / "p.json", [row], indent=1 if pretty else 0)
    found = read_pairs(path)
    assert said(found) == [(question, answer)]


# Odd files


def odd(count, seed=0):
    done = subprocess.run(
        [sys.executable, HERE / "odd_imports.py", str(count), str(seed)], capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    seen = json.loads(done.stdout)
    assert seen["wrong"] == []
    assert seen["read"] + seen["refused"] == count
    assert seen["read"] > count / 5
    assert seen["slowest"] < 10
    assert seen["peak_mib"] <= 1024


def test_two_hundred_odd_files_end_in_pairs_or_in_a_named_refusal():
    odd(200)


@pytest.mark.slow
def test_two_thousand_odd_files_end_in_pairs_or_in_a_named_refusal():
    odd(2000, seed=1)
