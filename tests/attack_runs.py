"""A plan of three stages of milliseconds, a teacher that counts what it is asked, and a run folder: what `test_attack_store` attacks.
As a program (`warm.start`) it is one run: `work(cache, log, n, pause, offset)`."""
import os
import time
from pathlib import Path

import numpy as np

from distillery.core.config import load_config
from distillery.core.files import digest_json, file_entries
from distillery.core.store import RunFolder
from distillery.engine.plan import Done, Plan, Stage
from distillery.retrieval.embed import VectorStore
from distillery.teachers.journal import Journal
from distillery.teachers.protocol import ChatResult, user_request


class Counted:
    "A teacher that writes down what it is asked, answers after a pause, and has two requests in flight."
    name, identity, lazy, in_flight = "counted", {"model": "counted"}, True, 2

    def __init__(self, log: Path | None = None, pause: float = 0.0) -> None:
        self.log, self.pause, self.asked = log, pause, 0

    async def stream(self, requests):
        import asyncio
        source = iter(requests)

        async def answer(request):
            self.asked += 1
            if self.log:
                with self.log.open("a") as out: out.write(f"{os.getpid()} {request.messages[0].content}\n")
            await asyncio.sleep(self.pause)
            return ChatResult(request.key, request.messages[0].content.upper(), "stop", 3, 2, 1.5)

        waiting = set()
        while True:
            while len(waiting) < self.in_flight and (request := next(source, None)): waiting.add(asyncio.create_task(answer(request)))
            if not waiting: return
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done: yield task.result()

    async def close(self): pass


def plan_of(cache: Path, teacher: Counted, n: int = 12, offset: int = 0) -> Plan:
    "Ask n questions, keep a vector of each answer, and make a model of them."
    def ask(job):
        requests = [user_request(str(i), f"question {i + offset}") for i in range(n)]
        said = Journal(cache / "calls.sqlite").ask(teacher, requests, lambda done, total: job.say("answers", done, total))
        (job.out / "answers.txt").write_text("\n".join(said[r.key].text for r in requests))

    def embed(job):
        store, words = VectorStore(cache / "vectors.sqlite"), (job.needs["ask"] / "answers.txt").read_text().split("\n")
        known = store.get(words)
        store.put({w: np.full(4, len(w), np.float32) for w in words if w not in known})
        (job.out / "sums.txt").write_text(str(sum(float(v.sum()) for v in store.get(words).values())))

    def model(job):
        (job.out / "onnx/q4").mkdir(parents=True)
        (job.out / "onnx/q4/model.onnx").write_bytes((job.needs["embed"] / "sums.txt").read_bytes() * 200)

    stages = [Stage("ask", ask, inputs={"n": str(n), "offset": str(offset)}), Stage("embed", embed, needs=("ask",), place=""),
              Stage("model", model, needs=("embed",), place="")]
    return Plan(stages, load_config(), cache)


def folder_of(runs: Path, done: dict[str, Done], name: str = "4f2a4f2a4f") -> RunFolder:
    "The run folder of a finished plan."
    run = RunFolder(runs / name)
    for stage in ("embed", "model"): run.link(done[stage].path, "")
    for file, value in (("provenance.json", {"run": name, "source": "pairs", "teacher": "counted"}), ("config.json", {"docs": None})):
        run.write_json(file, value)
    stages = {n: {"digest": d.digest, "seconds": d.seconds, "cached": d.cached} for n, d in done.items()}
    kept = {k: v for k, v in file_entries(run.path).items() if k != "manifest.json"}
    run.write_json("manifest.json", {"files": kept, "seal": 1, "stages": stages, "ended": time.time(), "pages": "p"})
    return run


def work(cache: str, log: str, n: int = 12, pause: float = 0.02, offset: int = 0, run: str = "") -> str:
    "One run of a process of its own; returns a digest of what it made."
    plan = plan_of(Path(cache), Counted(Path(log), pause), n, offset)
    plan.shelf.run = run
    said = []
    done = plan.run(lambda event: said.append(f"{event.kind} {event.text}"))
    Path(log).with_name(f"said-{os.getpid()}").write_text("\n".join(said))
    return digest_json({name: d.digest for name, d in done.items()})
