"""A chat server on loopback for the tests, with a fault for every bad day."""

import asyncio
import json
import random
import threading
import time
from collections import Counter

from aiohttp import web

STREAM = "text/event-stream"
CHAOS = ["busy", "full", "error", "malformed", "cut", "short", "empty", "wrong", "stall", "loris"]


def answer_of(body):
    return "answer to " + body["messages"][-1]["content"]


def whole(text, **extra):
    return {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"} | extra],
            "usage": {"prompt_tokens": 5, "completion_tokens": 3}}


class Server:
    """Answers `answer to <prompt>`; `faults` names what happens instead, request by request, per prompt.

    With `chaos`, that share of all requests meets a fault at random; those numbered in `burst` meet an error, and from request
    `outage[0]` on everything does, for `outage[1]` seconds.
    """

    def __init__(self, faults=(), delay=0.0, always_stream=False, chaos=0.0, burst=range(0), outage=(0, 0.0), digest=None, seed=1):
        self.outage, self.out_since = outage, None
        self.listing = {"data": [{"id": "m"}]}
        self.faults, self.delay, self.always_stream = list(faults), delay, always_stream
        self.chaos, self.burst, self.digest, self.chance, self.met = chaos, burst, digest, random.Random(seed), Counter()
        self.answered = Counter()
        self.bodies, self.headers, self.seen = [], [], Counter()
        self.in_flight = self.most_in_flight = 0
        self._started = threading.Event()

    def __enter__(self):
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), daemon=True)
        self._thread.start()
        assert self._started.wait(20)
        return self

    def __exit__(self, *_):
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/v1"

    async def _main(self):
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self.reply)
        app.router.add_get("/api/tags", self.tags)
        app.router.add_get("/v1/models", self.models)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]
        self._started.set()
        await self._stop.wait()
        await runner.cleanup()

    async def reply(self, request):
        body = await request.json()
        prompt = body["messages"][-1]["content"]
        turn = self.seen[prompt]
        self.seen[prompt] += 1
        self.bodies.append(body)
        number = len(self.bodies)  # its own, however many arrive while it waits
        self.headers.append(dict(request.headers))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(self.delay)
            fault = self.fault_now(turn, number)
            self.met[fault] += 1
            return await (getattr(self, f"fault_{fault}")(request, body) if fault else self.good(request, body))
        finally:
            self.in_flight -= 1

    def fault_now(self, turn, number):
        if number in self.burst: return "error"
        if self.outage[0] and number >= self.outage[0]:
            self.out_since = self.out_since or time.monotonic()
            if time.monotonic() - self.out_since < self.outage[1]: return "outage"
        if self.chance.random() < self.chaos: return self.chance.choice(CHAOS)
        return self.faults[turn] if turn < len(self.faults) else None

    async def tags(self, request):
        models = [{"name": "m:latest", "model": "m:latest", "digest": self.digest}] if self.digest else []
        return web.json_response({"models": models}, status=200 if self.digest else 404)

    async def models(self, request):
        return web.json_response(self.listing)

    async def good(self, request, body):
        self.answered[body["messages"][-1]["content"]] += 1
        if not self.always_stream: return web.json_response(whole(answer_of(body)))
        events = [{"choices": [{"delta": {"content": word + " "}, "finish_reason": None}]} for word in answer_of(body).split()]
        events.append({"choices": [{"delta": {}, "finish_reason": "stop"}]})
        return web.Response(text="".join(f"data: {json.dumps(e)}\n\n" for e in events), content_type=STREAM)

    async def fault_busy(self, request, body):
        return web.Response(status=429, headers={"Retry-After": "0.2"})

    async def fault_full(self, request, body):
        return web.Response(status=429)

    async def fault_empty(self, request, body):
        return web.json_response({"choices": []})

    async def fault_wrong(self, request, body):
        return web.json_response({"choices": [{"message": "a text where an object should be"}], "usage": [3]})

    async def fault_stall(self, request, body):
        await asyncio.sleep(60)

    async def fault_loris(self, request, body):
        response = web.StreamResponse(headers={"Content-Type": STREAM})
        await response.prepare(request)
        for _ in range(300):
            if request.transport is None or request.transport.is_closing(): break
            await response.write(b":")
            await asyncio.sleep(0.2)
        return response

    async def fault_outage(self, request, body):
        return web.Response(status=502, text="bad gateway")

    async def fault_error(self, request, body):
        return web.Response(status=500, text="internal error")

    async def fault_malformed(self, request, body):
        return web.Response(text='{"choices": [{"mess', content_type="application/json")

    async def fault_cut(self, request, body):
        response = web.StreamResponse(headers={"Content-Type": STREAM})
        await response.prepare(request)
        await response.write(b'data: {"choices": [{"delta": {"content": "half an"}}]}\n\n')
        request.transport.abort()
        return response

    async def fault_short(self, request, body):
        return web.Response(text='data: {"choices": [{"delta": {"content": "half an"}}]}\n\n', content_type=STREAM)

    async def fault_slow(self, request, body):
        await asyncio.sleep(5)
        return await self.good(request, body)

    async def fault_refused(self, request, body):
        return web.json_response({"error": {"message": "context too long"}}, status=400)

    async def fault_key(self, request, body):
        return web.Response(status=401, text="bad key")

    async def fault_model(self, request, body):
        return web.Response(status=404, text="no such model")


class Scripted(Server):
    """Answers what a script says: `script(body, turn)` returns a body, or (status, headers, body); None is a good answer.

    `turn` counts the requests with the same prompt. A body of None never ends.
    """

    def __init__(self, script, **more):
        super().__init__(**more)
        self.script = script

    async def reply(self, request):
        raw = await request.read()
        body = json.loads(raw)
        prompt = body["messages"][-1]["content"]
        turn = self.seen[prompt]
        self.seen[prompt] += 1
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        said = self.script(body, turn)
        if said is None: said = json.dumps(whole(answer_of(body))).encode()
        status, headers, content = said if isinstance(said, tuple) else (200, {}, said)
        if content is None: return await self.endless(request)
        return web.Response(status=status, headers={"Content-Type": "application/json", **headers}, body=content)

    async def endless(self, request):
        response = web.StreamResponse(headers={"Content-Type": STREAM})
        await response.prepare(request)
        try:
            while True: await response.write(b'data: {"choices": [{"delta": {"content": "on and on "}}]}\n\n' * 5000)
        except (ConnectionError, asyncio.CancelledError): return response
