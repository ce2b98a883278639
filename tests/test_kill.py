"The whole run, killed with -9 in every stage, against a real model behind a real server that counts what it is asked."
import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
from aiohttp import web

from distillery.training.sft import read_log
from distillery.teachers.open import builtin_dir
from distillery.teachers.local import TransformersTeacher
from distillery.teachers.protocol import ChatRequest, Message, ask_all

sys.path.insert(0, str(Path(__file__).parent))
from pairs_oracle import write_handbook
from teachers_server import Server, whole

CONCURRENCY = 4
KNOBS = {"prompts.pack": "handbook", "sft.epochs": 12, "sft.save_strategy": "epoch", "sft.batch_size": 8, "sft.packing": False,
         "sft.dataloader_num_workers": 0,
         "sft.logging_steps": 1, "sft.gradient_accumulation": 1, "teacher.concurrency": CONCURRENCY, "dataset.questions_per_chunk": 6,
         "dataset.variations_per_question": 1, "generation_limits.min_answer_length": 1, "evaluation.max_new_tokens": 32,
         "dataset.test_share": 0.3, "export.variants": "[fp32, q4]", "export.check_positions": 100}


class Reader(Server):
    "The shipped tiny model behind the server's socket."

    def __init__(self) -> None:
        super().__init__()
        self.model, self.turn = TransformersTeacher(builtin_dir("tiny"), device="cpu"), asyncio.Lock()

    async def good(self, request, body):
        turns = tuple(Message(m["role"], m["content"]) for m in body["messages"])
        wanted = ChatRequest("r", turns, max_tokens=48, temperature=body.get("temperature", 0.0), seed=body.get("seed", 0))
        async with self.turn: said = await asyncio.to_thread(ask_all, self.model, [wanted])
        usage = {"prompt_tokens": said[0].prompt_tokens, "completion_tokens": said[0].completion_tokens}
        return web.json_response(whole(said[0].text.strip()) | {"usage": usage})


def start(server: Reader, docs: Path, cwd: Path) -> subprocess.Popen:
    cwd.mkdir(exist_ok=True)
    command = [sys.executable, "-c", "from distillery.commands.cli import main; main()", "run", "--docs", str(docs),
               "--teacher", f"{server.url}#tiny", *(x for k, v in KNOBS.items() for x in ("--set", f"{k}={v}"))]
    with (cwd / "log").open("a") as log:
        return subprocess.Popen(command, cwd=cwd, stdout=log, stderr=log, start_new_session=True,
                                env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"})


def kill_when(child: subprocess.Popen, ready, wait: float) -> bool:
    "Kill the whole process group some time after `ready()`; False if the run ended before."
    while not ready():
        if child.poll() is not None: return False
        time.sleep(0.01)
    time.sleep(wait)
    alive = child.poll() is None
    if alive: os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    return alive


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_kill_9_in_every_stage_and_go_on(tmp_path, seed):
    chance, docs, cwd, killed = random.Random(seed), tmp_path / "docs", tmp_path / "killed", []
    shelf = cwd / ".distillery/scratch"
    docs.mkdir()
    write_handbook(docs, 6)
    with Reader() as server:
        assert start(server, docs, tmp_path / "straight").wait() == 0, (tmp_path / "straight/log").read_text()
        n = len(server.bodies)
        for stage in ("generate", "generate", "sft", "export-fp32", "export-q4", "measure-q4", "evaluate"):
            asked, trained = len(server.bodies) + chance.randint(5, n // 3), chance.randint(6, 18)
            ready = {"generate": lambda asked=asked: len(server.bodies) >= asked,
                     "sft": lambda trained=trained: sum(len(read_log(p.parent)) for p in shelf.glob("sft/**/train_log.jsonl")) >= trained,
                     }.get(stage, lambda stage=stage: any((shelf / stage).glob("*")))
            wait = 0.0 if stage in ("generate", "sft") else chance.uniform(0, 0.4)
            if kill_when(start(server, docs, cwd), ready, wait): killed.append(stage)
        assert start(server, docs, cwd).wait() == 0, (cwd / "log").read_text()
        assert {"generate", "sft"} <= set(killed)
        assert len(killed) >= 5
        assert len(server.bodies) - n <= n + CONCURRENCY * killed.count("generate")
    one, two = ((tmp_path / name / "runs/latest").resolve() for name in ("straight", "killed"))
    for name in ("pairs.jsonl", "selected.jsonl", "dataset/train.jsonl"):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    plain, log, begins = read_log(one / "student/adapter"), read_log(two / "student/adapter"), read_log(two / "student/adapter", "start")
    back = [(a["step"], b["step"] - 1) for a, b in pairwise(log) if b["step"] <= a["step"]]
    assert len(back) == 1
    reached, resumed = back[0]
    assert 0 < resumed == begins[1]["step"] <= reached
    assert len(log) - len(plain) == reached - resumed
    assert {r["step"]: r["loss"] for r in log} == pytest.approx({r["step"]: r["loss"] for r in plain}, abs=1e-3)
