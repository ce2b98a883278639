"""Asking a server of 32 slots: our client with its journal beside a bare aiohttp loop, curator and distilabel, each in a process and
(the peers) an environment of its own. Run: python benchmarks/teachers.py [--n 5000] [--quick] [--clients ours,bare,curator,distilabel]"""
import argparse
import asyncio
import hashlib
import json
import math
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
HERE, BUILD = Path(__file__).resolve(), ROOT / "build/bench"
SLOTS, MEAN_S, SIGMA, MODEL = 32, 0.2, 0.8, "gpt-4o-mini"
SWEEP = (8, 16, 24, 32, 48, 64)
# The clients and how many requests each may have in flight; distilabel waits for a whole batch before it sends the next.
# All 5,000 in one batch sent nothing in five minutes: its HTTP pool looks through all that wait, each time.
CLIENTS = {"bare": SLOTS, "ours": SLOTS, "curator": SLOTS, "distilabel": SLOTS, "distilabel, batch 500": 500}
NAMES = {"bare": "bare aiohttp loop", "ours": "ours, with journal", "distilabel": f"distilabel, batch {SLOTS}"}
# A clean environment: no key of this machine, no proxy, no telemetry, no viewer, no table of prices from the net.
QUIET = {"TELEMETRY_ENABLED": "false", "CURATOR_VIEWER": "0", "CURATOR_DISABLE_RICH_DISPLAY": "1", "LITELLM_LOCAL_MODEL_COST_MAP": "True",
         "BESPOKE_CURATOR_TRACKER_DISABLED": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1",
         "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "OPENAI_API_KEY": "none",
         "NO_COLOR": "1", "PYTHONWARNINGS": "ignore"}


# --- the server -------------------------------------------------------------------------------------------------------------------------
def service_times(n: int, mean_s: float, sigma: float, seed: int = 88) -> list[float]:
    "n lognormal times whose mean is exactly `mean_s`: the k-th request to begin takes the k-th, whoever sends it."
    draw, mu = random.Random(seed), math.log(mean_s) - sigma**2 / 2
    times = [draw.lognormvariate(mu, sigma) for _ in range(n)]
    return [t * mean_s * n / sum(times) for t in times]


class Slots:
    "A chat server that works on so many requests at once, lets the others wait, and counts."

    def __init__(self, slots: int, mean_s: float, sigma: float, most_waiting: int) -> None:
        self.slots, self.mean_s, self.sigma, self.most_waiting = slots, mean_s, sigma, most_waiting
        self.free = asyncio.Semaphore(slots)
        self.reset(1)

    def reset(self, n: int) -> None:
        "Count from zero; the next n requests make n times the mean of work."
        self.times, self.begun, self.prompts = service_times(n, self.mean_s, self.sigma), 0, set[bytes]()
        self.counts = dict.fromkeys(("requests", "completed", "refused", "probes", "most_in_flight"), 0)
        self.in_flight, self.first, self.last = 0, 0.0, 0.0

    async def chat(self, request: Any) -> Any:
        "One request: wait for a slot, work, answer."
        from aiohttp import web

        body = await request.json()
        if not body.get("messages"):  # how curator asks for its rate limits
            self.counts["probes"] += 1
            return web.json_response({"error": {"message": "no messages"}}, status=400)
        if self.most_waiting and self.in_flight >= self.slots + self.most_waiting:
            self.counts["refused"] += 1
            return web.json_response({"error": {"message": "busy"}}, status=429, headers={"Retry-After": "0.1"})
        said = str(body["messages"][-1]["content"])
        self.prompts.add(hashlib.sha1(said.encode()).digest())
        self.counts["requests"] += 1
        self.in_flight += 1
        self.counts["most_in_flight"] = max(self.counts["most_in_flight"], self.in_flight)
        self.first = self.first or time.perf_counter()
        try:
            async with self.free:
                wait, self.begun = self.times[self.begun % len(self.times)], self.begun + 1
                await asyncio.sleep(wait)
        finally: self.in_flight -= 1
        self.counts["completed"] += 1
        self.last = time.perf_counter()
        return self.answer(f"Answer to {said[:40]}", 4 * len(said.split()) // 3, bool(body.get("stream")))

    def answer(self, text: str, read: int, stream: bool) -> Any:
        "In the words of the protocol."
        from aiohttp import web

        usage, head = {"prompt_tokens": read, "completion_tokens": 9, "total_tokens": read + 9}, {"id": "c", "created": 1, "model": MODEL}
        if not stream:
            choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            return web.json_response(head | {"object": "chat.completion", "choices": [choice], "usage": usage})
        choices = [{"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": None},
                   {"index": 0, "delta": {}, "finish_reason": "stop"}]
        events = [json.dumps(head | {"object": "chat.completion.chunk", "choices": [c]}) for c in choices]
        events += [json.dumps(head | {"object": "chat.completion.chunk", "choices": [], "usage": usage}), "[DONE]"]
        return web.Response(text="".join(f"data: {e}\n\n" for e in events), content_type="text/event-stream")

    def stats(self) -> dict[str, Any]:
        "What was counted since the last reset."
        return self.counts | {"distinct": len(self.prompts), "in_flight": self.in_flight, "seconds": self.last - self.first}


async def serve(slots: int, mean_s: float, sigma: float, most_waiting: int) -> None:
    "Answer until our standard input ends, which is when whoever started us is gone."
    from aiohttp import web

    server, app = Slots(slots, mean_s, sigma, most_waiting), web.Application()

    async def reset(request: Any) -> Any:
        server.reset(int(request.match_info["n"]))
        return web.json_response({})

    async def models(request: Any) -> Any: return web.json_response({"object": "list", "data": [{"id": MODEL, "object": "model"}]})
    async def stats(request: Any) -> Any: return web.json_response(server.stats())

    app.add_routes([web.post("/v1/chat/completions", server.chat), web.get("/v1/models", models), web.get("/stats", stats),
                    web.post("/reset/{n}", reset)])
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, backlog=2048)
    await site.start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await runner.cleanup()


class Server:
    "The server in a process of its own."

    def __init__(self, slots: int = SLOTS, mean_s: float = MEAN_S, sigma: float = SIGMA, most_waiting: int = 0) -> None:
        self.settings = [str(x) for x in (slots, mean_s, sigma, most_waiting)]

    def __enter__(self) -> "Server":
        self.process = subprocess.Popen([sys.executable, str(HERE), "--serve", *self.settings], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        self.base = f"http://127.0.0.1:{int(self.process.stdout.readline())}"
        self.url = f"{self.base}/v1"
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate()

    def _call(self, path: str, method: str) -> dict[str, Any]:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(urllib.request.Request(f"{self.base}{path}", method=method), timeout=20) as reply: return json.load(reply)

    def stats(self) -> dict[str, Any]:
        "Counts since the last reset."
        return self._call("/stats", "GET")

    def reset(self, n: int) -> None:
        "Count from zero, when nothing is left from before."
        while self.stats()["in_flight"]: time.sleep(0.05)
        self._call(f"/reset/{n}", "POST")


# --- our clients ------------------------------------------------------------------------------------------------------------------------
def ask_ours(url: str, prompts: Sequence[str], work: Path, concurrency: int) -> int:
    "Through the journal in `work`; 0 lets the teacher find the concurrency."
    from distillery.teachers.journal import Journal
    from distillery.teachers.openai import OpenAITeacher
    from distillery.teachers.protocol import user_request

    journal, teacher = Journal(work / "calls.sqlite"), OpenAITeacher(url, MODEL, concurrency=concurrency or None)
    return sum(r.ok for r in journal.ask(teacher, [user_request(str(i), p) for i, p in enumerate(prompts)]).values())


async def ask_bare(url: str, prompts: Sequence[str], work: Path, concurrency: int) -> int:
    "The least that an aiohttp client does: nothing is checked, nothing is kept."
    import aiohttp

    answers, turn = list[str](), asyncio.Semaphore(concurrency)
    async with aiohttp.ClientSession() as session:
        async def ask(prompt: str) -> None:
            body = {"model": MODEL, "messages": [{"role": "user", "content": prompt}], "temperature": 0.0, "max_tokens": 64}
            async with turn, session.post(f"{url}/chat/completions", json=body) as reply:
                answers.append((await reply.json())["choices"][0]["message"]["content"])
        await asyncio.gather(*map(ask, prompts))
    return len(answers)


# --- one run of one client --------------------------------------------------------------------------------------------------------------
@dataclass
class Run:
    "What a client did and what the server saw of it."
    client: str
    n: int
    answered: int = 0      # Answers it came home with
    cpu_s: float = 0.0     # Of its process and those it waited for
    wall_s: float = 0.0
    in_flight: int = 0     # At the server, when the kill came
    error: str = ""
    server: dict[str, Any] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        "Requests per second, from the first that came in to the last that was answered: starting up is not counted."
        return self.server["completed"] / self.server["seconds"] if self.server.get("seconds") else 0.0


def make_prompts(n: int) -> list[str]:
    "n distinct prompts of about 60 words."
    words = "the press keeps a list of every order with its paper colour number and date so that the shop knows what to print next".split()
    draw = random.Random(88)
    return [f"Passage {i}: {' '.join(draw.choices(words, k=50))}. Which order is the passage about?" for i in range(n)]


def environment(client: str) -> tuple[str | None, str]:
    "The interpreter that runs a client, or why there is none; made on first use from peers/<client>.txt."
    peer = client.split(",")[0]
    if peer in ("ours", "bare"): return sys.executable, ""
    wanted, home = HERE.parent / "peers" / f"{peer}.txt", BUILD / "venvs" / peer
    python, mark = home / "bin/python", home / "installed.txt"
    if mark.is_file() and mark.read_text() == wanted.read_text(): return str(python), ""
    print(f"installing {peer} into {home.relative_to(ROOT)}", flush=True)
    shutil.rmtree(home, ignore_errors=True)
    steps = [[sys.executable, "-m", "venv", str(home)], [str(python), "-m", "pip", "install", "--quiet", "--requirement", str(wanted)]]
    for step in steps:
        done = subprocess.run(step, capture_output=True, text=True)
        if done.returncode: return None, f"cannot be installed: {(done.stderr.strip().splitlines() or ['?'])[-1][:120]}"
    mark.write_text(wanted.read_text())
    return str(python), ""


def command(client: str, python: str, url: str, prompts: Path, work: Path, concurrency: int) -> list[str]:
    "How a client is started."
    peer, rest = client.split(",")[0], [url, str(prompts), str(work), str(concurrency)]
    if peer in ("ours", "bare"): return [python, str(HERE), "--client", peer, *rest]
    return [python, str(HERE.parent / "peers" / f"{peer}_client.py"), *rest]


def run_client(client: str, server: Server, prompts: Sequence[str], work: Path, concurrency: int | None = None, kill_at: int = 0,
               fresh: bool = True, limit_s: float = 1800) -> Run:
    "Run a client over the prompts; with `kill_at`, kill -9 all of its processes once so many were answered."
    work.mkdir(parents=True, exist_ok=True)
    run, file = Run(client, len(prompts)), work / "prompts.json"
    python, run.error = environment(client)
    if python is None: return run
    file.write_text(json.dumps(list(prompts)), "utf-8")
    if fresh: server.reset(len(prompts))
    print(f"  {time.strftime('%H:%M:%S')}  {client}: {len(prompts):,} rows in {work.name}", file=sys.stderr, flush=True)
    env = {"PATH": os.environ["PATH"], "HOME": str(work), "LANG": "C.UTF-8", "HF_HOME": str(work / "hf"), **QUIET}
    began, deadline = time.monotonic(), time.monotonic() + limit_s
    with (work / "out").open("w") as out, (work / "err").open("w") as err:
        started = command(client, python, server.url, file, work, CLIENTS[client] if concurrency is None else concurrency)
        child = subprocess.Popen(started, stdout=out, stderr=err, stdin=subprocess.DEVNULL, env=env, cwd=ROOT, start_new_session=True)
        try:
            while True:
                pid, status, usage = os.wait4(child.pid, os.WNOHANG)
                if pid: break
                late, seen = time.monotonic() > deadline, server.stats() if kill_at else {}
                if late or (kill_at and seen["completed"] >= kill_at):
                    os.killpg(child.pid, signal.SIGKILL)
                    run.error, run.in_flight = f"no end in {limit_s:.0f} s" if late else "", seen.get("in_flight", 0)
                time.sleep(0.02)
        except BaseException:  # Ctrl-C reaches us only: the child has a session of its own
            os.killpg(child.pid, signal.SIGKILL)
            raise
    child.returncode = os.waitstatus_to_exitcode(status)
    run.cpu_s, run.wall_s, run.server = usage.ru_utime + usage.ru_stime, time.monotonic() - began, server.stats()
    said = [line for line in (work / "out").read_text("utf-8", "replace").splitlines() if line.startswith('{"answered"')]
    if said: run.answered = json.loads(said[-1])["answered"]
    elif not kill_at and not run.error:
        lines = [x for x in (work / "err").read_text("utf-8", "replace").splitlines() if x.strip()] or ["?"]
        run.error = f"failed ({child.returncode}): {lines[-1][:160]}"
    return run


# --- what is measured -------------------------------------------------------------------------------------------------------------------
@dataclass
class Rates:
    "One client asked everything from nothing, once a round."
    runs: list[Run]
    start_cpu_s: float = 0.0  # What the same client needs for one prompt: starting up

    @property
    def error(self) -> str:
        "Of the first run that failed."
        return next((r.error for r in self.runs if r.error), "")

    @property
    def rate(self) -> float:
        "Requests per second, median of the rounds."
        return statistics.median(r.rate for r in self.runs)

    @property
    def cpu_ms(self) -> float:
        "CPU of one request without starting up, median of the rounds."
        return statistics.median(1000 * (r.cpu_s - self.start_cpu_s) / max(1, r.n - 1) for r in self.runs)

    def beside(self, other: "Rates") -> list[float]:
        "Our rate over another's, round by round."
        return [a.rate / b.rate for a, b in zip(self.runs, other.runs, strict=False)]


def measure_rates(clients: Sequence[str], server: Server, prompts: Sequence[str], work: Path, rounds: int) -> dict[str, Rates]:
    "Each asks one prompt, which warms the caches of the disk; then all ask in turn, the other way round every second time."
    ones = {c: run_client(c, server, prompts[:1], work / c / "one") for c in clients}
    made = {c: Rates([one] if one.error else [], one.cpu_s) for c, one in ones.items()}
    for k in range(rounds):
        for c in clients[:: -1 if k % 2 else 1]:
            if made[c].error or (k and c.startswith("distilabel")): continue  # minutes each, and far away from its goal
            made[c].runs.append(run_client(c, server, prompts, work / c / f"round {k + 1}"))
    return made


@dataclass
class Counts:
    "How often a client asks again for what it has."
    client: str
    n: int
    again: Run | None = None    # A second run over the same rows
    added: Run | None = None    # A run with one row more
    broken: Run | None = None   # A run that was killed at half
    killed: Run | None = None   # Finishing it; the server's counts are of both together
    error: str = ""             # Why there is nothing else


def count_requests(client: str, server: Server, prompts: Sequence[str], work: Path, patience: float = 4) -> Counts:
    "A finished run again, a finished run with one row more, a run killed at half and finished; none may take `patience` times the first."
    rows, made = list(prompts[:-1]), Counts(client, len(prompts) - 1)
    first = run_client(client, server, rows, work / "done")
    if first.error: made.error = first.error; return made
    limit = max(60.0, patience * first.wall_s)
    made.again = run_client(client, server, rows, work / "done", limit_s=limit)
    made.added = run_client(client, server, prompts, work / "done", limit_s=limit)
    made.broken = run_client(client, server, rows, work / "killed", kill_at=len(rows) // 2, limit_s=limit)
    made.killed = run_client(client, server, rows, work / "killed", fresh=False, limit_s=limit)
    return made


# --- the page ---------------------------------------------------------------------------------------------------------------------------
def verdict(name: str, value: float, goal: str, met: bool) -> str:
    "One goal and whether it is met."
    return f"goal: {name}: {value:.3g}, wanted {goal}: {'met' if met else 'MISSED'}"


def show_rates(rates: dict[str, Rates], ideal: float) -> list[str]:
    "Rates, CPU and what stood in line, then the goals."
    heads = f"{'CPU ms':>8}{'to bare':>9}{'in flight':>11}{'answered':>10}{'start-up s':>12}   rounds, req/s"
    print(f"\n{'':28}{'of ideal':>9}{'req/s':>8}{'to ours':>9}{heads}")
    fine = {c: r for c, r in rates.items() if not r.error}
    ours, bare = fine.get("ours"), fine.get("bare")
    for client, r in rates.items():
        name = NAMES.get(client, client)
        if r.error: print(f"{name:28}  {r.error}"); continue
        to_ours = f"{r.rate / ours.rate:9.2f}" if ours else " " * 9
        to_bare = f"{r.cpu_ms / bare.cpu_ms:9.2f}" if bare and bare.cpu_ms > 0 else " " * 9
        flying = max(x.server["most_in_flight"] for x in r.runs)
        print(f"{name:28}{r.rate / ideal:9.1%}{r.rate:8.1f}{to_ours}{r.cpu_ms:8.2f}{to_bare}{flying:11}"
              f"{min(x.answered for x in r.runs):10}{r.start_cpu_s:12.2f}   {', '.join(f'{x.rate:.1f}' for x in r.runs)}")
    goals = list[str]()
    if not ours: return goals
    goals.append(verdict("rate, share of the ideal", ours.rate / ideal, ">= 0.9", ours.rate >= 0.9 * ideal))
    for peer, least in (("curator", 1.0), ("distilabel", 4.0)):
        if peer not in fine: continue
        times = ours.beside(fine[peer])
        said = f"rate beside {NAMES.get(peer, peer)}, {len(times)} rounds from {min(times):.3f} to {max(times):.3f}, median"
        goals.append(verdict(said, statistics.median(times), f">= {least:g}", statistics.median(times) >= least))
    if bare: goals.append(verdict("CPU beside the bare loop's", ours.cpu_ms / bare.cpu_ms, "<= 2.5", ours.cpu_ms <= 2.5 * bare.cpu_ms))
    return goals


def show_sweep(sweep: dict[str, Run], ideal: float) -> list[str]:
    "The number of slots hidden: found by ours, beside every fixed number."
    print("\nslots hidden: ours finds its concurrency, beside fixed numbers in flight")
    for name, run in sweep.items():
        if run.error: print(f"{name:>28}  {run.error}"); continue
        counted = f"   most in flight {run.server['most_in_flight']:4}   refused {run.server['refused']}"
        print(f"{name:>28}{run.rate / ideal:9.1%}{run.rate:8.1f} req/s{counted}")
    found, best = sweep["found"], max(run.rate for name, run in sweep.items() if not name.startswith("found"))
    if found.error or not best: return [f"goal: slots hidden: not measured: {found.error or 'no fixed number was'}"]
    return [verdict("slots hidden, share of the best fixed", found.rate / best, ">= 0.9", found.rate >= 0.9 * best)]


def sent(run: Run | None) -> str:
    "Requests and answers of a run, or that it never ended."
    if run is None or not run.server: return "?"
    return f"{run.server['requests']:,} for {run.answered:,}" if not run.error else f"{run.server['requests']:,}: {run.error}"


def show_counts(counts: Sequence[Counts]) -> list[str]:
    "Requests sent for what is known, and the answers that the client came home with."
    heads = f"{'one row more':>18}{'killed at half, finished':>28}{'in flight at kill':>19}"
    print(f"\n{'requests for answers':28}{'rows':>7}{'run again':>18}{heads}")
    goals = []
    for c in counts:
        name = NAMES.get(c.client, c.client)
        if c.error: print(f"{name:28}  {c.error}"); continue
        flying = c.broken.in_flight if c.broken else 0
        print(f"{name:28}{c.n:7,}{sent(c.again):>18}{sent(c.added):>18}{sent(c.killed):>28}{flying:19}")
        if c.client != "ours" or not c.added or not c.killed: continue
        one, spent = c.added.server["requests"], c.killed.server["requests"] - c.n
        goals.append(verdict("one row more, requests sent", one, "1", one == 1 and c.added.answered == c.n + 1))
        fine = 0 <= spent <= SLOTS and c.killed.answered == c.n
        goals.append(verdict("killed and finished, requests beyond the rows", spent, f"<= {SLOTS} in flight", fine))
    return goals


def start_client(arguments: Sequence[str]) -> None:
    "Be one of our own clients."
    peer, url, prompts, work, concurrency = arguments
    given = (url, json.loads(Path(prompts).read_text("utf-8")), Path(work), int(concurrency))
    print(json.dumps({"answered": ask_ours(*given) if peer == "ours" else asyncio.run(ask_bare(*given))}))


def main() -> None:
    if sys.argv[1:2] == ["--client"]: return start_client(sys.argv[2:])
    if sys.argv[1:2] == ["--serve"]:
        slots, mean_s, sigma, most_waiting = sys.argv[2:]
        return asyncio.run(serve(int(slots), float(mean_s), float(sigma), int(most_waiting)))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=5000, help="requests of each measured run")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the clients that are close to each other")
    parser.add_argument("--quick", action="store_true", help="640 requests, a shorter sweep: to see that it works")
    parser.add_argument("--clients", default="bare,ours,curator,distilabel", help="which clients")
    parser.add_argument("--parts", default="rates,hidden,counts", help="which tables")
    args = parser.parse_args()
    n, chosen, parts = 640 if args.quick else args.n, args.clients.split(","), args.parts.split(",")
    clients = [c for c in CLIENTS if c.split(",")[0] in chosen]
    prompts, ideal, goals = make_prompts(n), SLOTS / MEAN_S, list[str]()
    few = make_prompts(max(60, n // 5) + 1)
    page: dict[str, Any] = {"n": n, "slots": SLOTS, "mean_s": MEAN_S, "sigma": SIGMA, "ideal_per_s": ideal}
    print(f"{n:,} requests, {SLOTS} slots, lognormal service times, mean {MEAN_S:g} s, sigma {SIGMA:g}: at best {ideal:g}/s", flush=True)
    BUILD.mkdir(parents=True, exist_ok=True)
    with Server() as server, tempfile.TemporaryDirectory(dir=BUILD) as folder:
        work = Path(folder)
        if "rates" in parts:
            rates = measure_rates(clients, server, prompts, work / "rates", 1 if args.quick else args.rounds)
            goals += show_rates(rates, ideal)
            page["rates"] = {c: asdict(r) | {"rate": r.rate, "cpu_ms": r.cpu_ms} for c, r in rates.items()}
        if "hidden" in parts:
            numbers = {"found": 0} | {f"fixed {k}": k for k in (SWEEP[3:5] if args.quick else SWEEP)}
            sweep = {name: run_client("ours", server, prompts, work / "sweep" / name, k) for name, k in numbers.items()}
            with Server(most_waiting=8) as strict:
                sweep["found, 429 when 8 wait"] = run_client("ours", strict, prompts, work / "strict", 0)
            goals += show_sweep(sweep, ideal)
            page["hidden"] = {name: asdict(run) | {"rate": run.rate} for name, run in sweep.items()}
        if "counts" in parts:
            counts = [count_requests(c, server, few, work / "counts" / c) for c in clients if c in ("ours", "curator", "distilabel")]
            goals += show_counts(counts)
            page["counts"] = [asdict(c) for c in counts]
    if n < 5000: goals.append(f"these goals are meant for 5,000 requests: with {n:,}, finding the pace and the last stragglers weigh more")
    print("\n" + "\n".join(goals))
    place = BUILD / "teachers.json"
    place.write_text(json.dumps(page | {"goals": goals}, indent=1), "utf-8")
    print(f"written: {place.relative_to(ROOT)}")


if __name__ == "__main__": main()
