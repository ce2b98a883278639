"Prompts, parallel, memory: the three questions that are put only when asked for, on rules, on a server and on a model."
import json
import re
from html import unescape
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import warm
import teachers_server
from test_run import ATTACK, write_pages as write_documents

from distillery.core.config import flatten, load_config
from distillery.core.store import RunFolder
from distillery.pairs.prompts import load_pack, pack_names
from distillery.teachers.budget import BudgetSpent
from distillery.workbook.assemble import count_records, link_outputs, provenance, write_decisions, write_pages
from distillery.pages.index import open_questions
from distillery.questions.load.stages import in_turns, memory_stages, parallel_stages, parallel_ways
from distillery.questions.load.memory import memory_of, why_no_memory
from distillery.pairs.stages import pairs_stages
from distillery.engine.source import open_source
from distillery.questions.load.parallel import fragmentation, trials_of
from distillery.engine.plan import Plan
from distillery.questions.prompts.decision import alike, packs_of, prompt_rows
from distillery.questions.prompts.stages import changed_lines, pack_levels, prompts_stages, reword, reworded_pack
from distillery.questions.all import reasons
from distillery.questions.load.trials import Trial, gpu_facts, set_budget
from distillery.questions.results import Results, open_results

KEPT = Path(__file__).parent / "data/run"
ASKED = ("prompts", "parallel", "memory")


def run_of(folder, teacher, docs=None, gold=None, **settings):
    "A run of the three questions alone: documents, then what was asked."
    if docs is None: write_documents(docs := folder / "docs")
    small = {"decisions.prompt_slots": 24, "decisions.teacher_slots": 6, "dataset.variations_per_question": 1, "dataset.gold": gold}
    config = load_config(preset="technical-docs", overrides={"teacher.model": teacher, **small, **settings})
    source, cache = open_source(docs, None, gold), folder / "cache"
    asked = [stage for stages in (prompts_stages, parallel_stages, memory_stages) for stage in stages(source, config, cache)]
    stages = [*pairs_stages(source, config, cache)[:1], *asked]
    plan = Plan(stages, config, cache)
    done, run = plan.run(), RunFolder(folder / "run")
    link_outputs(run, stages, done)
    run.write_json("config.json", flatten(config))
    run.write_json("counts.json", count_records(run.path))
    run.write_json("provenance.json", provenance("test", plan, source.kind, source.gold is not None))
    write_decisions(run, config, "test")
    with warm.kernels(): write_pages(run, {name: {} for name in ASKED})
    return open_results(run.path)


def page_of(results, name): return (results.path / f"reports/{name}.html").read_text("utf-8")


def finding_of(page): return re.sub("<.*?>", "", re.search(r'<p class="finding">(.*?)</p>', page, re.S)[1])


@pytest.fixture(scope="module")
def rules(tmp_path_factory):
    packs = {"decisions.prompt_packs": ["handbook", "technical-docs"], "decisions.parallel": [1, 2], "decisions.memory_batches": [1, 4]}
    return run_of(tmp_path_factory.mktemp("rules"), "builtin:extractive", **packs)


# rules: everything is asked, and the pages say that it compares nothing

def test_a_rewording_is_small_is_the_same_every_time_and_changes_every_prompt():
    for name in pack_names():
        pack, again = load_pack(name), reworded_pack(load_pack(name))
        for kind, prompt in pack.items():
            assert prompt.source != again[kind].source == reword(prompt.source)
            assert re.findall(r"\{[{%].*?[}%]\}", prompt.source) == re.findall(r"\{[{%].*?[}%]\}", again[kind].source)
            assert ("The passage does not tell." in prompt.source) == ("The passage does not tell." in again[kind].source)
        assert {row["prompt"] for row in changed_lines(pack)} == set(pack)


@pytest.mark.parametrize("source", ["", "x", "{{ passage }}", "a: b", "{% if x %}:{% endif %}", "Ask one {{ a }}\nAsk one"])
def test_any_template_gets_another_wording(source): assert reword(source) != source


def test_names_of_packs_are_safe_names_of_folders():
    names = pack_levels(["../../etc/passwd", "<b>", "a/b c", "..", "handbook", "x/handbook", "y/handbook"])
    assert len(names) == 7
    assert all(re.fullmatch(r"[\w][\w.-]*", name) for name in names)


def test_the_built_in_run_is_not_asked_and_the_index_says_how_to_ask(tmp_path):
    plain = load_config(preset="handbook")
    source = open_source(None, None, "builtin")
    for stages in (prompts_stages, parallel_stages, memory_stages): assert stages(source, plain, tmp_path) == []
    none = reasons(open_results(KEPT))
    assert set(ASKED) <= set(none)
    rows = {row["question"]: row["state"] for row in open_questions([], none)}
    asked = [state for state in rows.values() if state.startswith("Not run. To run it: `") and "distillery run --set 'decisions." in state]
    assert len(asked) == len(none) >= 12


def test_a_server_has_no_memory_of_ours(tmp_path):
    tried = load_config(overrides={"decisions.memory_batches": [1, 2], "teacher.model": "http://127.0.0.1:9/v1#m"})
    assert memory_stages(open_source(None, None, None), tried, tmp_path) == []


@pytest.mark.slow
def test_rules_read_no_words_and_the_page_says_so(rules):
    rows = prompt_rows(rules)
    assert set(packs_of(rows)) == {"handbook", "technical-docs"}
    assert alike(rows)
    page = page_of(rules, "prompts")
    assert "reads the task, not the words" in page
    assert "Every pack brought the same answers" in finding_of(page)
    for words in ("A trifle changed", "Question -"): assert words in page


@pytest.mark.slow
def test_cards_are_valid_and_count_slots_and_pages(rules):
    cards = {d.name: d for d in rules.decisions()}
    assert set(cards) == {"prompts", "parallel"}
    for d in cards.values():
        assert (d.unit, d.metric) == ("slots", "evidence")
        assert d.n_items >= d.n_clusters > 1
        assert all(c.ci_low <= c.diff <= c.ci_high for c in d.contrasts)
        assert d.sentence in unescape(re.sub("</?span[^>]*>", "", page_of(rules, d.name)))


@pytest.mark.slow
def test_trials_are_whole_processes_from_nothing(rules):
    trials, pages = trials_of(rules)
    assert list(trials) == ["1", "2"]
    assert [len(some) for some in trials.values()] == [3, 3]
    for t in (t for some in trials.values() for t in some):
        assert t.error is None
        assert 0 < t.first_s < t.seconds
        assert t.peak_gib >= t.start_gib > 0.01
        assert set(t.outputs) <= set(pages)
    assert "not measured: no GPU" in page_of(rules, "parallel") or "GPU" in str(trials)
    assert "nothing is ever in flight" in page_of(rules, "parallel")


def test_ways_take_turns():
    ways = parallel_ways(load_config(overrides={"decisions.parallel": [4, 1, 4]}))
    assert [w.level for w, _ in in_turns(ways)] == ["1", "4", "4", "1", "1", "4"]


@pytest.mark.slow
def test_rules_have_no_memory_card_and_the_index_says_why(rules):
    assert "no weights" in why_no_memory(rules)
    assert "no weights" in page_of(rules, "index")
    assert not (rules.path / "reports/memory.html").exists()


@pytest.mark.slow
def test_pages_show_strangers_as_text_and_are_the_same_twice(rules):
    first = {page.stem: page.read_text("utf-8") for page in (rules.path / "reports").glob("*.html")}
    assert {"index", "kpis", "parallel", "prompts"} <= set(first)
    for page in first.values():
        assert not re.search(r"<script|<img[^>]+onerror", page)
        assert str(rules.path.parent) not in page
    assert "document.title" in (rules.path / "chunks.jsonl").read_text("utf-8")
    write_pages(RunFolder(rules.path), {name: {} for name in ASKED})
    assert {name: page_of(rules, name) for name in first} == first


@pytest.mark.slow
def test_hostile_answers_are_text_on_the_page(rules, tmp_path):
    import shutil
    shutil.copytree(rules.path, run := tmp_path / "run")
    path = run / "prompts/technical-docs/rows.jsonl"
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    for row in rows: row |= {"question": ATTACK, "answer": ATTACK, "answerable": 0.0, "reason": f"{ATTACK} no"}
    path.chmod(0o644)
    path.unlink()
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    with warm.kernels(): write_pages(RunFolder(run), {"prompts": {}})
    page = (run / "reports/prompts.html").read_text("utf-8")
    assert "&lt;script&gt;document.title" in page
    assert not re.search(r"<script|<img[^>]+onerror", page)


# a server: words and numbers in flight matter

whole = teachers_server.whole
USAGE = {"prompt_tokens": 900, "completion_tokens": 100}


def reader(body):
    "Reads the handbook pack's words and their rewording; other words confuse it."
    prompt = body["messages"][-1]["content"]
    passage, _, task = prompt.rpartition("\n\n")
    if asked := re.match(r"(?:Ask|Pose) one \w+ question about: (.*)", task):
        return f"What is said of {' '.join(asked[1].split()[:4])}?"
    if asked := re.match(r"Question(?::| -) What is said of (.*)\?", task):
        return " ".join(next((s for s in re.split(r"(?<=\.) |\n+", passage) if s.startswith(asked[1])), "").rstrip(".").split()[4:])
    return "Certainly! I would be glad to help you with that."


@pytest.mark.slow
def test_a_server_that_reads_one_wording_is_faster_with_more_in_flight(tmp_path, monkeypatch):
    monkeypatch.setattr(teachers_server, "answer_of", reader)
    monkeypatch.setattr(teachers_server, "whole", lambda text, **extra: {**whole(text, **extra), "usage": USAGE})
    with teachers_server.Server(delay=0.06) as server:
        settings = {"decisions.prompt_packs": ["handbook", "technical-docs"], "prompts.pack": "handbook", "decisions.parallel": [1, 6],
                    "decisions.teacher_slots": 12, "generation_limits.min_answer_length": 1}
        results = run_of(tmp_path, f"{server.url}#m", **settings)
        assert server.most_in_flight >= 6
    cards = {d.name: d for d in results.decisions()}
    means = {e.level: e.mean for e in cards["prompts"].estimates}
    assert means["handbook"] > 0.7 > 0.1 > means["technical-docs"]
    assert cards["prompts"].sentence.startswith("Keep handbook")
    assert "packs do more than a rewording" in page_of(results, "prompts")
    trials, _ = trials_of(results)
    assert all(t.error is None for some in trials.values() for t in some)
    assert min(t.seconds for t in trials["1"]) > 1.3 * max(t.seconds for t in trials["6"])
    assert [t.outputs for t in trials["1"]] == [t.outputs for t in trials["6"]]
    said = re.sub(r"</?span[^>]*>", "", page_of(results, "parallel"))  # numbers carry the places where they are stored
    assert re.search(r"At 6 it takes 0\.\d+ \[", said)


@pytest.mark.slow
def test_trials_keep_to_the_budget_of_the_run_and_go_on_when_it_is_raised(tmp_path, monkeypatch):
    monkeypatch.setattr(teachers_server, "answer_of", reader)
    monkeypatch.setattr(teachers_server, "whole", lambda text, **extra: {**whole(text, **extra), "usage": USAGE})
    write_documents(docs := tmp_path / "docs")
    with teachers_server.Server() as server:
        asked = {"prompts.pack": "handbook", "decisions.parallel": [1, 4], "generation_limits.min_answer_length": 1}
        asked["budget.prices"] = {f"{server.url}#m": [1000.0, 1000.0]}
        with pytest.raises(BudgetSpent, match="15 USD"): run_of(tmp_path, f"{server.url}#m", docs=docs, **asked, **{"budget.cost": 15.0})
        before = len(server.bodies)
        assert 15 <= before <= 15 + 4  # each costs 1; at most those in flight are too many
        results = run_of(tmp_path, f"{server.url}#m", docs=docs, **asked, **{"budget.cost": 1000.0})
        trials, _ = trials_of(results)
    used = sum(t.requests for some in trials.values() for t in some)
    assert used == sum(round(t.spend) for some in trials.values() for t in some)
    first = next(t for t in trials["1"] if t.repeat == 0)
    assert len(server.bodies) - before <= used - first.requests + 4  # the trial that had ended was kept


# a model: batches and budgets

def test_a_gpu_is_limited_and_read_by_its_allocator(monkeypatch):
    "With a stand-in for PyTorch on a GPU of 80 GiB: this machine has none."
    asked, gib = [], 2**30
    stats = {"allocated_bytes.all.peak": 8 * gib, "reserved_bytes.all.peak": 10 * gib, "inactive_split_bytes.all.peak": gib}
    cuda = SimpleNamespace(is_available=lambda: True, get_device_properties=lambda i: SimpleNamespace(total_memory=80 * gib),
                           set_per_process_memory_fraction=asked.append, memory_stats=lambda: stats)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    assert set_budget(20) == "20 GiB of the GPU, by PyTorch"
    assert asked == [0.25]
    assert gpu_facts() == {"allocated_gib": 8, "reserved_gib": 10, "fragmented": 0.1, "total_gib": 80}
    trial = Trial(level="8", repeat=0, gpu=gpu_facts())
    assert memory_of(trial, {"levels": {"8": {"gib": 20.0}}, "ram_gib": 64}) == (8, 20.0)
    assert fragmentation([trial]) == "0.100"



@pytest.mark.slow
def test_batches_of_a_model_under_a_budget_that_is_kept_and_one_that_nothing_fits(tmp_path):
    settings = {"decisions.memory_batches": [2, 48], "decisions.memory_gib": [3.0, 0.5, 0.1], "decisions.teacher_slots": 48}
    handbook = open_source(None, None, "builtin")
    results = run_of(tmp_path, "builtin:tiny", docs=handbook.path, gold=str(handbook.gold),
                     **settings, **{"generation_limits.min_answer_length": 1, "prompts.pack": "handbook"})
    trials, _ = trials_of(results, "memory")
    assert list(trials) == [f"{batch} in {gib} GiB" for gib in (3, 0.5, 0.1) for batch in (2, 48)]
    assert all(t.error is None and t.tokens > 0 and t.samples and t.batch == 48 for t in trials["48 in 3 GiB"])
    assert all(t.error for t in trials["48 in 0.1 GiB"])
    tight = trials["48 in 0.5 GiB"]  # batches are halved here; where the system counts otherwise they may all fit, or none
    assert all(t.error or t.refused or t.batch == 48 for t in tight)
    assert all(t.error or t.outputs == trials["2 in 3 GiB"][0].outputs for t in tight)
    card = next(d for d in results.decisions() if d.name == "memory")
    assert card.levels[:2] == ["2 in 3 GiB", "48 in 3 GiB"]
    page = page_of(results, "memory")
    for words in ("Trials that failed", "0.1 GiB"): assert words in page
    assert page.count("<figure>") == 3


def test_results_without_a_run_give_reasons(tmp_path):
    assert set(ASKED) <= set(reasons(Results(tmp_path)))
