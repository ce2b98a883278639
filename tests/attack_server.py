"A student that is served, with a tokenizer and answers of the test, and raw bytes to and from it. Any edition of the package will do."
import asyncio
import json
import socket
import threading
from contextlib import contextmanager


class Student:
    "A student whose tokenizer and answers the test decides."
    context, identity = 2048, {"digest": "d"}

    def __init__(self): self.chat, self.entered, self.go = self, threading.Event(), threading.Event()

    def encode(self, messages):
        if "wait" in messages[-1].content:
            self.entered.set()
            self.go.wait(20)
        return [1] * len(messages[-1].content.split())


class Engine:
    "Answers at once."

    def __init__(self): self.student = Student()

    def submit(self, queued):
        from distillery.shipping.engine import Answer
        from distillery.teachers.protocol import ChatResult
        for piece in ("it ", "stands "): queued.say(piece)
        queued.done(Answer(ChatResult(queued.request.key, "it stands", "stop", 3, 2, 1.0), []))
        return True


@contextmanager
def served(**changed):
    from distillery.core.config import flatten, load_config
    from distillery.shipping.serve import Service, run_server
    known = flatten(load_config())
    wanted = {"serve.port": 0, "server.port": 0, "serve.read_timeout": 0.6} | {k.replace("__", "."): v for k, v in changed.items()}
    cfg = load_config(overrides={k: v for k, v in wanted.items() if k in known})
    service, up, box = Service("student-q4", Engine(), cfg), threading.Event(), {}

    def run():
        async def go():
            box["loop"], box["stop"] = asyncio.get_running_loop(), asyncio.Event()
            await run_server(service, cfg, lambda url: (box.update(port=int(url.rsplit(":", 1)[1].split("/")[0])), up.set()), box["stop"])
        asyncio.run(go())
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert up.wait(20)
    try: yield box["port"], service
    finally:
        service.engine.student.go.set()
        box["loop"].call_soon_threadsafe(box["stop"].set)
        thread.join(20)
        assert not thread.is_alive()


def talk(port, raw, seconds=20):
    "What a server says to some bytes, until it closes."
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as s:
        s.sendall(raw)
        got = b""
        try:
            while piece := s.recv(65536): got += piece
        except (ConnectionError, TimeoutError): got = got or b"closed"
        return got.decode("utf-8", "replace")


def http(body, host="127.0.0.1", head=""):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return (f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nConnection: close\r\n{head}"
            f"Content-Length: {len(data)}\r\n\r\n").encode() + data


def hello(**more): return {"model": "student-q4", "messages": [{"role": "user", "content": "Where?"}]} | more


def status(said): return int(said.split(" ")[1]) if said.startswith("HTTP") else said
