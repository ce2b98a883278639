"Hosted batch files: rounds that leave and come back, lines that fail, half the price, the same journal."
import json

import pytest

from distillery.core.config import load_config
from distillery.teachers.batch import BatchTeacher, BatchPending
from distillery.teachers.budget import open_journal
from distillery.teachers.calls import open_calls, usage
from distillery.teachers.journal import Journal
from distillery.teachers.open import open_teacher
from distillery.teachers.protocol import user_request


def provider(folder, fails=()):
    "Answer every batch file that has no results yet, last line first; the lines that hold a word of `fails` get an error."
    for file in sorted(folder.glob("*.jsonl")):
        back = folder / f"{file.stem}.results.jsonl"
        if file.name.endswith(".results.jsonl") or back.exists(): continue
        rows = []
        for line in map(json.loads, reversed(file.read_text("utf-8").splitlines())):
            said = line["body"]["messages"][-1]["content"]
            body = {"choices": [{"message": {"content": f"answer to {said}"}, "finish_reason": "stop"}],
                    "usage": {"prompt_tokens": 1000, "completion_tokens": 500}}
            bad = any(word in said for word in fails)
            rows.append({"custom_id": line["custom_id"], "response": {"status_code": 500 if bad else 200, "body": {} if bad else body}})
        back.write_text("".join(json.dumps(r) + "\n" for r in rows), "utf-8")


def test_rounds_leave_and_come_back(tmp_path):
    folder, journal = tmp_path / "batches", Journal(tmp_path / "calls.sqlite")
    requests = [user_request(str(i), f"p{i}") for i in range(20)]
    with pytest.raises(BatchPending, match="20 requests wait"): journal.ask(BatchTeacher(folder, "m"), requests)
    with pytest.raises(BatchPending, match="20 requests wait"): journal.ask(BatchTeacher(folder, "m"), requests)
    assert len(list(folder.iterdir())) == 1, "asking again writes no second file"
    provider(folder, fails=["p7"])
    with pytest.raises(BatchPending, match="1 requests wait"): journal.ask(BatchTeacher(folder, "m"), requests)
    assert len([f for f in folder.glob("*.jsonl") if not f.name.endswith(".results.jsonl")]) == 2, "what failed is asked again, alone"
    provider(folder)
    results = journal.ask(BatchTeacher(folder, "m"), requests)
    assert [results[r.key].text for r in requests] == [f"answer to p{i}" for i in range(20)]
    for file in folder.iterdir(): file.unlink()
    assert all(r.ok for r in journal.ask(BatchTeacher(folder, "m"), requests).values()), "the journal has them now"


def test_answers_of_batches_cost_half(tmp_path):
    config = load_config(overrides={"teacher.model": f"batch:{tmp_path / 'batches'}#m", "budget.prices": {"m": [2.0, 8.0]},
                                    "workbook.cache_dir": str(tmp_path)})
    teacher, requests = open_teacher(config.teacher.model, config), [user_request(str(i), f"p{i}") for i in range(10)]
    with pytest.raises(BatchPending): open_journal(tmp_path, config).ask(teacher, requests)
    provider(tmp_path / "batches")
    open_journal(tmp_path, config).ask(teacher, requests)
    spent = usage(open_calls(tmp_path))
    assert spent.tokens == 15_000
    assert spent.cost == pytest.approx(0.5 * 10 * (1000 * 2 + 500 * 8) / 1e6)


def test_what_came_from_outside_is_passed_over(tmp_path):
    folder = tmp_path / "batches"
    folder.mkdir()
    (folder / "x.results.jsonl").write_bytes(b'\xff\xfe not JSON\n[1, 2]\n{"custom_id": 3}\n{"custom_id": "nobody", "response": null}\n')
    with pytest.raises(BatchPending): Journal(tmp_path / "c.sqlite").ask(BatchTeacher(folder, "m"), [user_request("a", "p")])
    with pytest.raises(Exception, match="does not say which model"): open_teacher("batch:folder", load_config())
