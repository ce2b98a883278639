"""Write the journal that test_old_journal serves from: `python tests/keep_journal.py`, with the code whose answers are to be kept.

A server that follows rules is asked for two small runs: one question a request in plain words, with log probabilities, then four a request
in JSON by schema. The stages that ask a teacher are run, those that train are not; what they made of the answers is kept too.
"""
import json
import random
import shutil
import sqlite3
import tempfile
from pathlib import Path

import yaml
from aiohttp import web
from json_teacher import tasks_of
from teachers_server import Server, whole
from test_teachers_kill import task_of

from distillery.core.config import load_config
from distillery.teachers import extractive
from distillery.teachers.protocol import Task
from distillery.workbook.experiment import prepare

KEPT = Path(__file__).parent / "data/journal"
SETTINGS = yaml.safe_load((KEPT / "settings.yaml").read_text("utf-8"))
MADE = ("pairs.jsonl", "rejected.jsonl", "rows.jsonl", "taught.jsonl")  # what stages make of answers


def run_stages(url: str, place: Path, name: str, **changes: object) -> dict[str, Path]:
    "The stages of a run that ask a teacher, and those that they need, with `place/calls.sqlite` as the journal: stage to its output."
    folders = {"workbook.cache_dir": str(place), "workbook.runs_dir": str(place / "runs"), "teacher.model": f"{url}#m"}
    config = load_config(preset="technical-docs", overrides={**SETTINGS["both"], **SETTINGS[name], **folders, **changes})
    plan = prepare(KEPT / "docs", None, config).plan
    plan.stages = [s for s in plan.stages if s.name.partition("-")[0] in SETTINGS["stages"]]
    return {stage: done.path for stage, done in plan.run().items()}


def words(value: object) -> object:
    "The same without what an embedder measured and without the server's port, which differ from one machine to the next."
    if isinstance(value, list): return [words(v) for v in value]
    if not isinstance(value, dict): return value
    return {k: words(v) for k, v in value.items() if k not in ("scores", "teacher", "domain_relevance", "bert_f1")}


def made(outputs: dict[str, Path]) -> dict[str, object]:
    "What stages made of the answers of teachers."
    read = lambda path: [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return {f"{stage}/{name}": words(read(folder / name)) for stage, folder in outputs.items() if stage != "judge"
            for name in MADE if (folder / name).is_file()}


def by_rule(task: Task, chance: random.Random) -> str:
    "What the teacher that follows rules says."
    if task.kind == "ask": return extractive.ask(task, chance)
    return extractive.rephrase(task, chance) if task.kind == "rephrase" else extractive.answer(task)


class Rules(Server):
    "That teacher behind a socket; asked for several answers it writes JSON."

    async def good(self, request, body):
        prompt, chance = body["messages"][-1]["content"], random.Random(body["seed"])
        items = [{"id": i, "text": by_rule(task, chance)} for i, task in tasks_of(prompt).items()]
        text = json.dumps({"items": items}) if items else by_rule(task_of(prompt), chance)
        weighed = [{"token": "a", "logprob": -0.25}, {"token": "the", "logprob": -1.5}]
        more = {"logprobs": {"content": [{"top_logprobs": weighed} for _ in text.split()]}} if body.get("logprobs") else {}
        usage = {"prompt_tokens": len(prompt.split()), "completion_tokens": len(text.split())}
        return web.json_response(whole(text, **more) | {"usage": usage})


def main() -> None:
    with tempfile.TemporaryDirectory() as work, Rules() as server:
        for name in ("plain", "grouped"):
            found = made(run_stages(server.url, Path(work), name))
            (KEPT / f"{name}.json").write_text(json.dumps(found, sort_keys=True, ensure_ascii=False, indent=0) + "\n", "utf-8")
        db = sqlite3.connect(Path(work) / "calls.sqlite")
        db.execute("pragma wal_checkpoint(truncate)")
        db.close()
        shutil.copyfile(Path(work) / "calls.sqlite", KEPT / "calls.sqlite")


if __name__ == "__main__": main()
