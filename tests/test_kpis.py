"Live figures: scraped over HTTP, sampled under load, told in three voices, and without any part in results."
import io
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, strategies as st
from rich.console import Console
from test_run import ATTACK, write_pages as write_documents

from distillery.core.config import load_config
from distillery.core.errors import DistilleryError
from distillery.teachers.counters import Counters, Counts, counting, run_counters
from distillery.teachers.extractive import ExtractiveTeacher
from distillery.teachers.journal import Journal
from distillery.teachers.protocol import ChatResult, Task, user_request
from distillery.workbook import experiment
from distillery.pages.monitor import LiveTable, kpi_page, summary, target_rows
from distillery.engine.monitor import Sample, RunMonitor, Series, prometheus_port, read_series
from distillery.workbook.costs import ledger_rows
from distillery.questions.results import Results
from distillery.engine.plan import Event, Plan, Stage
from distillery.pages.terminal import Watcher

GOOD, BAD = ChatResult("k", "yes", "stop", 10, 4), ChatResult("k", "", "error", error="TimeoutError: 600 s")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def scrape(port, host="127.0.0.1"): return urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=5).read().decode()


def figures(text): return {k: float(v) for k, v in (line.split() for line in text.splitlines() if line.startswith("distillery_"))}


# counting

@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3), st.integers(0, 99)), max_size=40))
def test_counters_add_up_whatever_happens(items):
    counters = Counters()
    for ok, retries, tokens in items:
        counters.sent()
        for _ in range(retries): counters.retried()
        counters.settled(ChatResult("k", "", "stop", None, tokens) if ok else BAD, 0.5)
    now = counters.read()
    assert now.requests == len(items) == now.answers + now.failures
    assert now.retries == sum(r for _, r, _ in items)
    assert now.completion_tokens == sum(n for ok, _, n in items if ok)
    assert (now.in_flight, now.prompt_tokens, now.spend) == (0, 0, 0.5 * len(items))


def test_many_threads_lose_no_count():
    counters, gate = Counters(), threading.Barrier(8)

    def work(_):
        gate.wait()
        for _ in range(2000): counters.sent(); counters.settled(GOOD, 0.25)
    with ThreadPoolExecutor(8) as pool: list(pool.map(work, range(8)))
    assert counters.read() == Counts(16_000, 16_000, 0, 0, 160_000, 64_000, 0, 4000.0)


def test_what_nobody_waits_for_is_not_in_flight():
    counters = Counters()
    counters.sent(5)
    counters.abandoned(5)
    assert counters.read().in_flight == 0


def ask_some(folder, n, gate, streamed):
    "Count, for one run, `n` questions asked while another run asks its own."
    def request(i):
        task = Task("answer", passage="The Raven 74 stands in Hall 3.", question=f"Where is number {i}?")
        return user_request(str(i), task.question, task=task)

    with counting(Counters()) as counters:
        journal, teacher = Journal(folder / f"calls-{n}.sqlite"), ExtractiveTeacher()
        gate.wait()
        if streamed: list(journal.stream(teacher, map(request, range(n))))
        else: journal.ask(teacher, [request(i) for i in range(n)])
        return counters.read()


@pytest.mark.parametrize("streamed", [False, True])
def test_two_runs_in_one_process_do_not_mix_their_figures(tmp_path, streamed):
    gate = threading.Barrier(2)
    with ThreadPoolExecutor(2) as pool: first, second = pool.map(lambda n: ask_some(tmp_path, n, gate, streamed), (30, 70))
    assert (first.requests, first.answers, second.requests, second.answers) == (30, 30, 70, 70)


def test_what_no_run_asks_for_is_counted_for_nobody():
    run_counters().sent(5)
    assert run_counters().read() == Counts()


# sampling

def test_a_sampler_under_load_sees_all_of_it_and_keeps_its_time():
    counters, heard = Counters(), []
    counters.add(requests=7, answers=7, completion_tokens=1000)  # an earlier run of this process
    began = time.monotonic()
    with RunMonitor(0.05, [heard.append], counters) as sampler:
        sampler.hear(Event("generate", "start"))
        with ThreadPoolExecutor(4) as pool:
            for _ in range(4): pool.submit(lambda: [(counters.sent(), counters.settled(GOOD), time.sleep(0.001)) for _ in range(300)])
    took = time.monotonic() - began
    assert heard[-1].answers == 1200
    assert heard[-1].tokens == 4800
    assert [s.t for s in heard] == sorted(s.t for s in heard)
    assert 0.2 * took / 0.05 < len(heard) <= took / 0.05 + 2
    seen = sum(s.tokens_per_s * (s.t - before) for s, before in zip(heard, [0.0, *(s.t for s in heard)], strict=False))
    assert seen == pytest.approx(4800, rel=0.1)


def test_a_sampler_costs_little():
    sampler, began = RunMonitor(60), time.process_time()
    for _ in range(20): sampler.sample()
    assert (time.process_time() - began) / 20 < 0.1


def test_errors_and_retries_are_shares_of_items():
    counters = Counters()
    sampler = RunMonitor(60, (), counters)
    for result in [GOOD] * 6 + [BAD] * 2: counters.sent(); counters.settled(result)
    for _ in range(4): counters.retried()
    now = sampler.sample()
    assert (now.error_rate, now.retry_rate) == (0.25, 0.5)
    assert "25.0% failed" in str(now)


def test_a_sink_that_fails_is_dropped_and_the_others_go_on():
    heard = []
    def full_disk(sample): raise OSError(28, "no space left")
    with RunMonitor(0.01, [full_disk, heard.append], Counters()) as sampler:
        sampler.hear(Event("x", "start"))
        time.sleep(0.05)
    assert len(heard) >= 2
    assert len(sampler.lost) == 1
    assert "no space left" in sampler.lost[0]


def test_nothing_is_told_before_a_stage_really_runs(tmp_path):
    series = Series(tmp_path)
    with RunMonitor(0.01, [series], Counters()) as sampler:
        sampler.hear(Event("documents", "cached"))
        time.sleep(0.05)
    assert series.written == 0
    assert list(tmp_path.iterdir()) == []


# the port

def test_prometheus_is_answered_over_http_on_loopback_only_and_only_meanwhile():
    pytest.importorskip("prometheus_client")
    counters, port = Counters(), free_port()
    with RunMonitor(0.02, (), counters) as sampler, prometheus_port(sampler, port):
        sampler.hear(Event("generate", "start"))
        for result in [GOOD] * 9 + [BAD]: counters.sent(); counters.settled(result, 0.1)
        counters.sent(3)
        time.sleep(0.2)
        now = figures(scrape(port))
        known = [a[4][0] for a in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)]
        for own in (a for a in known if not a.startswith("127.")):
            with pytest.raises((ConnectionRefusedError, TimeoutError)): socket.create_connection((own, port), timeout=1).close()
    assert now["distillery_answers_total"] == 9
    assert now["distillery_failures_total"] == 1
    assert now["distillery_in_flight"] == 3
    assert now["distillery_error_rate"] == 0.1
    assert now["distillery_spend_total"] == pytest.approx(1.0)
    assert now["distillery_rss_gib"] > 0
    with pytest.raises(urllib.error.URLError): scrape(port)


def test_a_port_in_use_is_named_before_anything_runs():
    pytest.importorskip("prometheus_client")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        port = s.getsockname()[1]
        with pytest.raises(DistilleryError, match=f"port {port}"), prometheus_port(RunMonitor(60), port): raise AssertionError("it ran")


# voices

def test_a_terminal_has_one_line_under_its_bars_and_a_log_has_none():
    for terminal in (True, False):
        with Watcher(Console(file=(out := io.StringIO()), width=70, force_terminal=terminal)) as watch:
            watch(Event("generate", "start"))
            watch.show(Sample(tokens_per_s=812, failures=1))
        assert ("812 tokens/s" in out.getvalue()) is terminal


def test_a_series_survives_a_torn_line_and_goes_on_in_a_second_session(tmp_path):
    first = Series(tmp_path, log_every_s=30)
    for t in (0.0, 2.0, 29.0, 31.0): first(Sample(t=t, stage="generate", answers=4))
    with (tmp_path / "kpis.jsonl").open("a") as f: f.write('{"session": 0, "t":')
    with (tmp_path / "kpis.jsonl").open("a") as f: f.write("\n")
    Series(tmp_path)(Sample(t=1.0))
    assert [(s["session"], s["t"]) for s in read_series(tmp_path)] == [(0, 0.0), (0, 2.0), (0, 29.0), (0, 31.0), (1, 1.0)]
    assert len((tmp_path / "kpis.log").read_text().splitlines()) == 3


def test_a_live_table_shows_strangers_as_text():
    live = LiveTable()
    live(Event(ATTACK, "start"))
    live.show(Sample(t=1.0, stage=ATTACK, requests=4, error_rate=0.5, ram=50.0))
    assert "&lt;script&gt;" in live.html
    assert "<script" not in live.html
    assert "red" in live.html
    assert live._repr_mimebundle_()["text/html"] == str(live.html)


# targets

@pytest.mark.parametrize(("key", "value", "state"), [
    ("documents_per_s", 0.5, "green"), ("documents_per_s", 0.35, "yellow"), ("documents_per_s", 0.1, "red"),
    ("error_percent", 1.9, "green"), ("error_percent", 4.0, "yellow"), ("error_percent", 5.1, "red"),
    ("ram", 74.9, "green"), ("ram", 95.0, "red"), ("cpu", 75.0, "green"),
    ("cpu", 99.0, "yellow"), ("cpu", 10.0, "red"), ("first_answer_s", 29.0, "green"), ("seconds_per_document", 150.0, "yellow"),
])
def test_targets_have_three_colours(key, value, state):
    rows = {row["state"] for row in target_rows({key: value})}
    assert rows == {state, "not measured"}


def test_a_run_in_figures_adds_up_its_sessions():
    from dataclasses import asdict
    series = [{"session": s, **asdict(Sample(t=float(t), requests=10 * t, answers=9 * t, failures=t, ram=40.0 + s, cpu=50.0))}
              for s in (0, 1) for t in (0, 1, 2)]
    found = summary(series, documents=10, seconds=40.0)
    assert found["error_percent"] == pytest.approx(10.0)
    assert [found[k] for k in ("ram", "documents_per_s", "seconds_per_document", "first_answer_s")] == [41.0, 0.25, 4.0, 1.0]
    assert summary([])["error_percent"] is None


# no part in results

@pytest.fixture
def job(tmp_path, monkeypatch):
    "A run of two short stages through `run_job`, with its pages."
    monkeypatch.chdir(tmp_path)
    write_documents(tmp_path / "docs")

    def start(**settings):
        own = {"teacher.model": "builtin:extractive", "monitor.every_s": 0.02, **settings}
        config = load_config(preset="technical-docs", overrides=own)
        request = experiment.prepare(tmp_path / "docs", None, config)

        def slow(job):
            time.sleep(0.2)
            (job.out / "x.txt").write_text("x")
        stages = [*request.plan.stages[:1], Stage("slow", slow)]
        return experiment.Request(request.source, config, Plan(stages, config, Path(config.workbook.cache_dir)), "same")
    return start


def results_of(run):
    "Every file of a run but its figures, their page, and the manifest, which has clock times."
    apart = ("kpis.jsonl", "kpis.log", "reports/kpis.html", "reports/kpis.json", "manifest.json", "config.json")
    return {str(p.relative_to(run)): p.read_bytes() for p in sorted(run.rglob("*")) if p.is_file() and str(p.relative_to(run)) not in apart}


def test_figures_lie_beside_the_results_and_change_none_of_them(job):
    one = experiment.run_job(job(**{"workbook.runs_dir": "one"}))
    assert len(read_series(one.run)) >= 3
    assert {s["stage"] for s in read_series(one.run)} >= {"slow"}
    assert (one.run / "kpis.log").is_file()
    two = experiment.run_job(job(**{"workbook.runs_dir": "two"}))  # the same store: nothing runs, nothing is measured
    assert all(d.cached for name, d in two.done.items() if name != "report")
    assert read_series(two.run) == []
    assert "Nothing was measured" in (two.run / "reports/kpis.html").read_text()
    assert results_of(one.run) == results_of(two.run)
    assert {n: d.digest for n, d in one.done.items() if n != "report"} == {n: d.digest for n, d in two.done.items() if n != "report"}


def test_a_second_run_adds_nothing_and_a_page_rebuilt_is_the_same(job):
    first = experiment.run_job(job())
    series, page = (first.run / "kpis.jsonl").read_bytes(), (first.run / "reports/kpis.html").read_bytes()
    footer = page.split(b'class="footer"')[1]
    assert f'<dt>run</dt><dd><span data-src="provenance.json#/run">{first.run.name}</span></dd>'.encode() in footer
    manifest = (first.run / "manifest.json").read_bytes()
    again = experiment.run_job(job())
    assert (again.run / "kpis.jsonl").read_bytes() == series
    assert (again.run / "manifest.json").read_bytes() == manifest
    assert kpi_page(again.run, more={"What each stage cost": ledger_rows(Results(again.run))}).read_bytes() == page
    listed = json.loads(manifest)["files"]
    assert listed["kpis.jsonl"]["size"] == len(series)
    assert listed["reports/kpis.html"]["size"] == len(page)


def test_a_watcher_that_can_show_is_shown_and_a_run_can_be_scraped(job):
    pytest.importorskip("prometheus_client")
    shown, scraped, port = [], [], free_port()

    class Watch:
        def __call__(self, event):
            if event.stage != "slow" or event.kind != "start": return
            threading.Timer(0.1, lambda: scraped.append(figures(scrape(port)))).start()
        def show(self, sample): shown.append(sample)
    experiment.run_job(job(**{"monitor.prometheus_port": port}), Watch())
    assert len(shown) >= 3
    assert scraped[0]["distillery_ram"] > 0
