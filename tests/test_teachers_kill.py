"Generation killed with -9 at twenty drawn moments, against a server that counts: no answer is paid for twice but those on their way."
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from aiohttp import web

from distillery.core.files import digest_json
from distillery.teachers import extractive
from distillery.teachers.protocol import Task

sys.path.insert(0, str(Path(__file__).parent))
from pairs_oracle import write_handbook
from teachers_server import Server, whole

CONCURRENCY, KILLS = 4, 20
FILES = ("pairs.jsonl", "rejected.jsonl", "counts.json", "selected.jsonl", "train.jsonl", "validation.jsonl", "test.jsonl")
WORKER = """
import json, sys
from dataclasses import asdict
from pathlib import Path
from distillery.core.config import load_config
from distillery.core.files import atomic_write, write_jsonl
from distillery.pairs.chunk import chunk_documents
from distillery.pairs.dataset import build_dataset, check_leaks
from distillery.pairs.documents import read_documents
from distillery.pairs.generate import generate_pairs
from distillery.pairs.select import select_pairs
from distillery.teachers.journal import Journal
from distillery.teachers.openai import OpenAITeacher
url, docs, journal, out = sys.argv[1], *map(Path, sys.argv[2:])
config = load_config(preset="handbook", overrides={"dataset.questions_per_chunk": 8})
chunks = chunk_documents(read_documents(docs).documents)
made = generate_pairs(chunks, OpenAITeacher(url, "m", concurrency=CONCURRENCY), Journal(journal), config)
out.mkdir(parents=True, exist_ok=True)
write_jsonl(out / "pairs.jsonl", made.pairs)
write_jsonl(out / "rejected.jsonl", [r._asdict() for r in made.rejected])
atomic_write(out / "counts.json", json.dumps(made.counts))
kept = select_pairs(made.pairs, config).kept
write_jsonl(out / "selected.jsonl", kept)
splits = build_dataset(kept, chunks, config)
assert not check_leaks(splits)
for name, examples in splits.items(): write_jsonl(out / f"{name}.jsonl", examples)
""".replace("CONCURRENCY", str(CONCURRENCY))


def task_of(prompt):
    "What a prompt of the handbook pack was rendered from."
    if prompt.startswith("Rephrase: "): return Task("rephrase", question=prompt.removeprefix("Rephrase: "))
    passage, _, last = prompt.rpartition("\n\n")
    if asked := re.fullmatch(r"Ask one (\w+) question about: (.*)", last, re.S): return Task("ask", passage, asked[2], difficulty=asked[1])
    return Task("answer", passage, question=last.removeprefix("Question: "))


class Rules(Server):
    "The teacher that follows rules, behind a socket: it reads the prompt, as any model does."

    def __init__(self, delay):
        super().__init__(delay=delay)
        self.answered = Counter()

    @property
    def completed(self):
        return sum(self.answered.values())

    async def good(self, request, body):
        task, chance = task_of(body["messages"][-1]["content"]), random.Random(body["seed"])
        said = (extractive.ask(task, chance) if task.kind == "ask" else extractive.rephrase(task, chance) if task.kind == "rephrase"
                else extractive.answer(task))
        self.answered[digest_json({k: v for k, v in body.items() if k != "stream"})] += 1
        read = 2 * len(body["messages"][-1]["content"].split())
        return web.json_response(whole(said) | {"usage": {"prompt_tokens": read, "completion_tokens": 9}})


def start(server, docs, folder, out):
    folder.mkdir(exist_ok=True)
    with (folder / "log").open("a") as log:
        return subprocess.Popen([sys.executable, "-c", WORKER, server.url, str(docs), str(folder / "calls.sqlite"), str(folder / out)],
                                stdout=log, stderr=log, start_new_session=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def finish(server, docs, folder, out="out"):
    assert start(server, docs, folder, out).wait(300) == 0, (folder / "log").read_text()
    return {name: (folder / out / name).read_bytes() for name in FILES if (folder / out / name).exists()}


def committed(folder):
    "Answers in the journal; a journal that is not there yet holds none."
    if not (folder / "calls.sqlite").exists(): return 0
    with sqlite3.connect(folder / "calls.sqlite") as db:
        if not db.execute("select count(*) from sqlite_master where name = 'calls'").fetchone()[0]: return 0
        return db.execute("select count(*) from calls where error is null").fetchone()[0]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_kill_9_at_twenty_moments_of_one_generation(tmp_path, seed):
    chance, docs = random.Random(seed), tmp_path / "docs"
    docs.mkdir()
    write_handbook(docs, 6)
    with Rules(delay=0.01) as server:
        whole_run = finish(server, docs, tmp_path / "straight")
        n = server.completed
        assert n > 300
        assert len(server.answered) == n  # nothing is asked twice in an undisturbed run
        assert {"pairs.jsonl", "train.jsonl", "test.jsonl"} <= whole_run.keys()

        server.bodies.clear(), server.answered.clear()
        folder, on_their_way, killed = tmp_path / "killed", 0, 0
        for moment in sorted(chance.sample(range(1, n), KILLS)):
            before, kept, child = len(server.bodies), committed(folder), start(server, docs, folder, "out")
            while child.poll() is None and (len(server.answered) < moment or len(server.bodies) == before): time.sleep(0.001)
            time.sleep(chance.uniform(0, 0.02))
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                killed += 1
            child.wait()
            while server.in_flight: time.sleep(0.01)
            lost = len(server.bodies) - before - (committed(folder) - kept)
            assert 0 <= lost <= CONCURRENCY
            on_their_way += lost
        killed_run = finish(server, docs, folder)
        assert killed == KILLS
        assert on_their_way > 0  # the kills did hit requests
        assert server.completed <= n + on_their_way
        assert len(server.answered) == n
        before = len(server.bodies)
        again = finish(server, docs, folder, "again")
        assert len(server.bodies) == before  # a finished run sends nothing
    assert killed_run == whole_run == again
