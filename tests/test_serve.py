"A served student: the protocol, bad requests, many clients, hanging up, and leaving in good order."
import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import numpy as np
import pytest

from distillery.core.config import load_config
from distillery.core.errors import DistilleryError
from distillery.shipping.engine import Engine, TextStream
from distillery.shipping.serve import MAX_BODY, Service, run_server, warm_up
from distillery.training.toy import toy_base, toy_examples
from distillery.teachers.onnx import OnnxTeacher
from distillery.teachers.open import open_teacher, server_digest
from distillery.teachers.openai import OpenAITeacher
from distillery.teachers.protocol import ask_all, user_request

NAME = "student-q4"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    pytest.importorskip("onnxruntime_genai")
    from distillery.exporting.export import build_onnx
    folder = tmp_path_factory.mktemp("toy")
    merged = toy_base(folder / "merged")
    for v in ("fp32", "q4"): build_onnx(merged, folder / "onnx" / v, v)
    return folder / "onnx"


@contextmanager
def serving(folder, workers=2, **changed):
    "A server in a thread; yields its URL and the service."
    cfg = load_config(overrides={"serve.port": 0, "inference.max_new_tokens": 12, **{k.replace("__", "."): v for k, v in changed.items()}})
    service = Service(NAME, Engine(OnnxTeacher(folder, 1), workers, cfg.serve.queue), cfg)
    warm_up(service.engine, cfg)
    told, up, box = [], threading.Event(), {}

    def run():
        async def go():
            box["loop"], box["stop"] = asyncio.get_running_loop(), asyncio.Event()
            await run_server(service, cfg, lambda url: (told.append(url), up.set()), box["stop"])
        asyncio.run(go())
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert up.wait(30)
    try: yield told[0], service
    finally:
        box["loop"].call_soon_threadsafe(box["stop"].set)
        thread.join(30)
        service.engine.stop()


@pytest.fixture(scope="module")
def server(exported):
    with serving(exported / "q4") as (url, service): yield url, service


def post(url, body, kind="application/json"):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{url}/chat/completions", data, {"Content-Type": kind}), timeout=60) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error: return error.code, error.read().decode()


def hello(**more):
    return {"model": NAME, "messages": [{"role": "user", "content": "Where does the Raven 10 stand?"}], "max_tokens": 12} | more


def questions(n, tokens=12):
    return [user_request(str(i), f"Where does the Raven {i} stand?", max_tokens=tokens) for i in range(n)]


# The protocol

def test_models_are_listed_and_weights_are_told(server, exported):
    url, _ = server
    listed = json.loads(urllib.request.urlopen(f"{url}/models").read())
    assert [m["id"] for m in listed["data"]] == [NAME]
    assert OpenAITeacher(url, NAME).identity["digest"] == OnnxTeacher(exported / "q4").identity["digest"]
    assert json.loads(urllib.request.urlopen(url.removesuffix("/v1") + "/health").read())["status"] == "ok"


def test_an_answer_has_text_usage_and_a_reason(server, exported):
    status, said = post(server[0], hello())
    asked = user_request("q", hello()["messages"][0]["content"], max_tokens=12)
    reply, alone = json.loads(said), ask_all(OnnxTeacher(exported / "q4"), [asked])[0]
    assert status == 200
    assert reply["choices"][0]["message"] == {"role": "assistant", "content": alone.text}
    assert reply["choices"][0]["finish_reason"] == alone.finish_reason
    assert reply["usage"] == {"prompt_tokens": alone.prompt_tokens, "completion_tokens": alone.completion_tokens,
                              "total_tokens": alone.prompt_tokens + alone.completion_tokens}


def test_pieces_are_the_whole(server):
    whole = json.loads(post(server[0], hello(max_tokens=40))[1])
    body = post(server[0], hello(max_tokens=40, stream=True, stream_options={"include_usage": True}))[1]
    events = [line[6:] for line in body.split("\n\n") if line]
    assert events[-1] == "[DONE]"
    pieces = [json.loads(e) for e in events[:-1]]
    said = "".join(p["choices"][0]["delta"].get("content", "") for p in pieces if p["choices"])
    assert said == whole["choices"][0]["message"]["content"]
    assert len(pieces) > 3
    assert pieces[-1]["usage"] == whole["usage"]
    assert [p["choices"][0]["finish_reason"] for p in pieces if p["choices"]][-1] == whole["choices"][0]["finish_reason"]


def test_stop_texts_end_an_answer_in_both_ways(server):
    text = json.loads(post(server[0], hello(max_tokens=60))[1])["choices"][0]["message"]["content"]
    stop = text[len(text) // 2 : len(text) // 2 + 3]
    cut = json.loads(post(server[0], hello(max_tokens=60, stop=[stop]))[1])["choices"][0]
    assert cut["message"]["content"] == text[: text.index(stop)].strip()
    assert cut["finish_reason"] == "stop"
    events = post(server[0], hello(max_tokens=60, stop=stop, stream=True))[1]
    said = "".join(json.loads(e[6:])["choices"][0]["delta"].get("content", "") for e in events.split("\n\n") if e and "[DONE]" not in e)
    assert said == cut["message"]["content"]


def test_a_seed_repeats_and_a_temperature_varies(server):
    say = lambda **more: json.loads(post(server[0], hello(temperature=1.5, **more))[1])["choices"][0]["message"]["content"]
    assert say(seed=1) == say(seed=1)
    assert len({say(seed=i) for i in range(6)}) > 1


def test_logprobs_are_those_of_the_tokens(server):
    rows = json.loads(post(server[0], hello(logprobs=True, top_logprobs=3))[1])["choices"][0]["logprobs"]["content"]
    assert all(len(r["top_logprobs"]) == 3 and r["top_logprobs"][0]["logprob"] == pytest.approx(r["logprob"], abs=1e-6) for r in rows)
    bare = json.loads(post(server[0], hello(logprobs=True))[1])["choices"][0]["logprobs"]["content"]
    assert {len(r["top_logprobs"]) for r in bare} == {0}
    assert json.loads(post(server[0], hello())[1])["choices"][0]["logprobs"] is None


def test_stream_holds_back_what_may_still_change(exported):
    chat = OnnxTeacher(exported / "q4").chat
    tokens = chat.tokens("café au lait </s> tail")
    stream, said = TextStream(chat, ["</s>"]), []
    for i in range(len(tokens)):
        said.append(stream.feed(tokens[: i + 1]))
        assert "\ufffd" not in said[-1]
        assert "<" not in said[-1]
    assert "".join(said) == "café au lait"


@pytest.mark.parametrize(("body", "status", "words"), [
    (b"", 400, "JSON"), (b"{", 400, "JSON"), (b"[]", 400, "object"), (b"\xff\xfe", 400, ""), ({}, 400, "model"),
    (hello(messages=[]), 400, "messages"), (hello(messages="x"), 400, "messages"),
    (hello(messages=[{"role": "tool", "content": "x"}]), 400, "role"),
    (hello(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}]), 400, "content"),
    (hello(temperature=-1), 400, "temperature"), (hello(max_tokens=0), 400, "max_tokens"), (hello(n=2), 400, "n"),
    (hello(tools=[{"type": "function"}]), 400, "tools"), (hello(response_format={"type": "json_object"}), 400, "response_format"),
    (hello(seed=-1), 400, "seed"), (hello(stop=["a"] * 5), 400, "stop"), (hello(top_logprobs=2), 400, "logprobs"),
    (hello(messages=[{"role": "user", "content": "word " * 4000}]), 400, "tokens"),
    (hello(model="student-int8"), 404, "student-int8"), (hello(model="../../etc/passwd"), 404, "passwd"),
    (hello(messages=[{"role": "user", "content": "x" * (MAX_BODY + 1)}]), 413, ""),
], ids=lambda x: str(x)[:24] if not isinstance(x, int) else str(x))
def test_bad_requests_are_told_what_is_wrong(server, body, status, words):
    got, said = post(server[0], body)
    assert got == status, said
    error = json.loads(said)["error"]
    assert words in error["message"]
    assert error["type"] == "invalid_request_error"
    assert post(server[0], hello())[0] == 200


def test_nulls_parts_and_strangers_are_taken(server):
    parts = [{"role": "developer", "content": "Be short."}, {"role": "user", "content": [{"type": "text", "text": "Where?"}]}]
    nulls = dict.fromkeys(("temperature", "top_p", "seed", "stop", "tools"))
    assert post(server[0], hello(messages=parts, user="u", response_format={"type": "text"}, **nulls))[0] == 200
    assert post(server[0], hello(), kind="text/plain")[0] == 400  # what a web page may send without being asked
    with pytest.raises(urllib.error.HTTPError) as missing: urllib.request.urlopen(server[0] + "/files/../../etc/passwd")
    assert missing.value.code == 404
    assert "error" in json.loads(missing.value.read())


# As a teacher and as a reader

@pytest.mark.parametrize("stream", [False, True])
def test_the_real_client_gets_what_the_student_says(server, exported, stream):
    spec = f"{server[0]}#{NAME}"
    teacher = open_teacher(spec, load_config(overrides={"teacher.stream": stream, "teacher.concurrency": 4}))
    said, alone = (ask_all(t, questions(24)) for t in (teacher, OnnxTeacher(exported / "q4")))
    assert [(r.text, r.finish_reason, r.prompt_tokens, r.completion_tokens) for r in said] == [
        (r.text, r.finish_reason, r.prompt_tokens, r.completion_tokens) for r in alone]
    assert server_digest(spec, None) == OnnxTeacher(exported / "q4").identity["digest"]


def test_logprobs_reach_the_real_client(server, exported):
    asked = [user_request("q", "Where does the Raven 10 stand?", max_tokens=8, logprobs=4)]
    far, near = (ask_all(t, asked)[0].logprobs for t in (OpenAITeacher(server[0], NAME), OnnxTeacher(exported / "q4")))
    assert [t[0] for t in far.tokens] == [t[0] for t in near.tokens]
    assert far.logprobs[0] == pytest.approx(near.logprobs[0], abs=1e-4)


def test_a_student_is_the_reader_of_the_next_run(server, exported):
    from distillery.retrieval.rag import RagCase, answer_with_passages
    from distillery.retrieval.search import Hits

    examples = toy_examples(6)
    texts = {e.chunk_id: f"{e.question} {e.answer}" for e in examples}
    cases = [RagCase(id=e.id, question=e.question, golds=[e.answer], relevant={e.chunk_id: 1.0}, cluster=e.doc_id) for e in examples]

    class First:
        def rank(self, queries, k): return Hits(tuple(texts), np.zeros((len(queries), k), int), np.ones((len(queries), k)))
    def seen(text): return text if any(c.isprintable() for c in text) else ""  # control characters alone are no reply of a server
    said = {who: [(r.id, r.k, seen(r.prediction)) for r in answer_with_passages(t, cases, First(), texts, ks=(1,))]
            for who, t in (("far", OpenAITeacher(server[0], NAME)), ("near", OnnxTeacher(exported / "q4")))}
    assert said["far"] == said["near"]
    assert len(said["far"]) == 12


# Many at once

@pytest.mark.parametrize("n", [200, pytest.param(1000, marks=pytest.mark.slow)])
def test_many_requests_of_eight_clients_and_none_is_lost(exported, record_property, n):
    with serving(exported / "q4") as (url, service):
        ids = [f"Where does the Raven {i} stand?" for i in range(n)]
        async def client(session, mine, out):
            for question in mine:
                began = time.perf_counter()
                body = hello(messages=[{"role": "user", "content": question}], max_tokens=8)
                async with session.post(f"{url}/chat/completions", json=body) as reply:
                    said = (await reply.json())["choices"][0]["message"]["content"]
                    out.append((question, reply.status, said, time.perf_counter() - began))
        async def everybody():
            out: list = []
            async with aiohttp.ClientSession() as session: await asyncio.gather(*(client(session, ids[i::8], out) for i in range(8)))
            return out
        out = asyncio.run(everybody())
        report = service.report()
    assert sorted(q for q, *_ in out) == sorted(ids)
    assert {status for _, status, *_ in out} == {200}
    alone = {r.key: r.text for r in ask_all(OnnxTeacher(exported / "q4"), [user_request(q, q, max_tokens=8) for q in ids[::50]])}
    assert {q: text for q, _, text, _ in out if q in alone} == alone
    assert (report["answered"], report["failed"], report["refused"], report["left"]) == (n, 0, 0, 0)
    assert 0 < report["p50_ms"] <= report["p95_ms"]
    record_property("p95_ms", report["p95_ms"])


@pytest.mark.slow
def test_a_full_queue_says_come_again_and_the_client_does(exported):
    with serving(exported / "q4", workers=1, serve__queue=1) as (url, service):
        teacher = OpenAITeacher(url, NAME, concurrency=8, max_retries=40)
        assert all(r.ok for r in ask_all(teacher, questions(40)))
        assert service.report()["answered"] == 40
        assert service.report()["refused"] > 0


def test_who_hangs_up_frees_the_place(exported):
    with serving(exported / "q4", workers=1) as (url, service):
        slow = hello(max_tokens=240, temperature=1.9)

        async def impatient():
            async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=0.05)) as session:
                with pytest.raises(TimeoutError):
                    async with session.post(f"{url}/chat/completions", json=slow) as reply: await reply.read()
        long = _seconds(lambda: post(url, slow))
        if long < 0.2: pytest.skip("this machine answers before anybody can hang up")
        asyncio.run(impatient())
        deadline = time.time() + 20
        while service.in_flight and time.time() < deadline: time.sleep(0.01)
        assert service.in_flight == 0
        assert service.report()["left"] == 1
        assert post(url, hello())[0] == 200


def _seconds(work):
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def test_an_answer_that_takes_too_long_is_given_up(exported):
    with serving(exported / "q4", serve__timeout=0.001) as (url, _): assert post(url, hello(max_tokens=200, temperature=1.9))[0] == 504


def test_a_port_that_is_taken_is_named(server):
    port = int(re.search(r":(\d+)/", server[0])[1])
    cfg = load_config(overrides={"serve.port": port})
    with pytest.raises(DistilleryError, match="something else does"):
        asyncio.run(run_server(server[1], cfg, print, asyncio.Event()))


# Leaving

@pytest.fixture
def process(exported, tmp_path):
    "The command as a person types it."
    import shutil
    run = tmp_path / "runs/aaaa"
    shutil.copytree(exported, run / "onnx")
    for name in ("provenance.json", "manifest.json", "config.json"): (run / name).write_text("{}")
    command = [sys.executable, "-c", "from distillery.commands.cli import main; main()", "serve", "q4", "--run", "aaaa", "--port", "0",
               "--set", "serve.workers=1"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    child = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    first = child.stdout.readline()
    assert "student-q4 at http" in first, child.stderr.read()
    yield child, first.split(" at ")[1].strip()
    if child.poll() is None: child.kill()
    child.communicate()


@pytest.mark.parametrize("how", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_ctrl_c_finishes_what_is_in_flight_and_takes_nothing_new(process, how):
    child, url = process
    async def go():
        async with aiohttp.ClientSession() as session:
            async def ask(i):
                async with session.post(f"{url}/chat/completions", json=hello(max_tokens=200, temperature=1.9, seed=i)) as reply:
                    return reply.status, await reply.json()
            waiting = [asyncio.create_task(ask(i)) for i in range(12)]
            health = url.removesuffix("/v1") + "/health"
            for _ in range(2000):
                async with session.get(health) as reply:
                    if (await reply.json())["waiting"] == 12: break
                await asyncio.sleep(0.002)
            child.send_signal(how)
            late = []
            for _ in range(3000):
                try:
                    async with session.get(health) as reply:
                        if (await reply.json())["status"] == "draining":
                            late.append((await ask(99))[0])
                            break
                except aiohttp.ClientError:
                    late.append("closed")
                    break
                await asyncio.sleep(0.002)
            return await asyncio.gather(*waiting), late
    done, late = asyncio.run(go())
    assert [status for status, _ in done] == [200] * 12
    assert all(reply["choices"][0]["message"]["content"] for _, reply in done)
    assert late in (["closed"], [503])
    assert child.wait(30) == 0
    said = child.stdout.read()
    assert re.search(r"answered\s+12", said)
    assert "p95_ms" in said
    with pytest.raises(urllib.error.URLError): urllib.request.urlopen(f"{url}/models", timeout=5)


def test_only_variants_that_are_there_are_served(tmp_path, exported):
    from distillery.questions.results import variant_folder
    (tmp_path / "onnx").symlink_to(exported)
    (tmp_path / "genai_config.json").write_text("{}")
    for strange in ("..", ".", "../onnx/q4", "/etc", "q4/../fp32"):
        with pytest.raises(DistilleryError, match="no variant"): variant_folder(tmp_path, strange, "genai_config.json")


def test_a_thought_is_not_streamed(tmp_path):
    from twins import write_words

    from distillery.teachers.chat import ChatTokenizer

    chat = ChatTokenizer(write_words("qwen3", tmp_path))
    for wrote, said in (("<think>\n\n</think>\n\nHall 3.", "Hall 3."), ("<thinking>Raven?</thinking>Hall 3.", "Hall 3."),
                        ("Hall < 3 and [4]", "Hall < 3 and [4]"), ("<5 mm", "<5 mm")):
        tokens, stream = chat.tokens(wrote), TextStream(chat)
        pieces = [stream.feed(tokens[: i + 1]) for i in range(len(tokens))]
        assert "".join(pieces) + stream.rest(chat.said(tokens)[0].strip()) == said
