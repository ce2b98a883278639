"Truth of the pages: numerals lead to stored values, altered ones are found, and warnings follow the run's source."
import json
import random
import re
from functools import cache
from math import isclose
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
from asked_run import asked_run
from page_truth import COVERED, EXEMPT, Page, Stored, altered, flaws, rendered, says

from distillery.core.config import load_config
from distillery.core.words import METRIC_NAMES
from distillery.evaluation.gates import TAUGHT, THRESHOLDS
from distillery.evaluation.latency import Timing, latency_summary
from distillery.filters.context import ContextCost, add_time
from distillery.pages.report import templates
from distillery.pages.story import warnings_of
from distillery.questions.context_length.quality import context_table
from distillery.filters.predictions import read_predictions
from distillery.questions.quantization.tables import variant_table
from distillery.questions.results import Results, open_results

KEPT = Path(__file__).parent / "data/run"


OWN = ("index", "kpis", "student", "dataset", "quantization", "temperature", "embedder", "vector_index", "context_length")
weekly = pytest.mark.slow  # the kept run, asked every optional question
every_page = pytest.mark.parametrize(("run", "name"), [
    *(("kept", name) for name in OWN), *(pytest.param("asked", name, marks=weekly) for name in COVERED)], indirect=["run"])
every_run = pytest.mark.parametrize(("run", "names"), [("kept", OWN), pytest.param("asked", COVERED, marks=weekly)], indirect=["run"])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    place = tmp_path_factory.mktemp("truth")
    return cache(lambda which: rendered(asked_run(KEPT, place / "answers") if which == "asked" else KEPT, place / which))


@pytest.fixture(scope="module")
def run(request, made): return made(getattr(request, "param", "kept"))


@pytest.fixture(scope="module")
def stored(run): return Stored(run)


def page_of(run, name): return (run / f"reports/{name}.html").read_text("utf-8")


@every_page
def test_every_numeral_leads_to_a_stored_value(run, stored, name):
    assert flaws(run, name, page_of(run, name), stored) == []


@every_run
def test_the_lint_reads_whole_pages_and_exempts_little(run, names):
    assert set(COVERED) == {"index", "kpis", *templates()}
    assert len(EXEMPT) <= 10
    addressed = {name: sum(bool(p.src) for b in Page(page_of(run, name)).blocks for p in b.pieces) for name in names}
    assert addressed["quantization"] > 500
    assert all(n > 25 for n in addressed.values()), addressed


def raw_names(text):
    "Metrics and gates that a page calls as files do; settings with their section, and code, are called so on purpose."
    shown = re.sub(r"<(style|script|code)[^>]*>.*?</\1>|<[^>]+>", "\n", text, flags=re.DOTALL)
    keys = "|".join(sorted({k for k in METRIC_NAMES if "_" in k} | {*THRESHOLDS, *TAUGHT}, key=len, reverse=True))
    return sorted(set(re.findall(rf"(?<![\w.])(?:(?:recall|test)\.)?(?:{keys})(?:_min|_max|_vs_\w+)?\b", shown)))


@every_page
def test_metrics_and_gates_have_names(run, name):
    assert raw_names(page_of(run, name)) == []


def test_raw_names_are_seen():
    page = "<td>recall.token_f1_min</td><td>bert_f1</td><code>token_f1</code> thresholds.token_f1_min"
    assert raw_names(page) == ["bert_f1", "recall.token_f1_min"]


@every_run
def test_of_a_hundred_altered_numerals_ninety_eight_are_found(run, stored, names):
    pages, rng, missed = {name: page_of(run, name) for name in names}, random.Random(88), []
    for _ in range(100):
        name = rng.choice(names)
        text, done = altered(pages[name], rng)
        if not flaws(run, name, text, stored): missed.append((name, done))
    assert len(missed) <= 2, missed


def test_a_value_says_itself_and_nothing_near_it():
    assert says(0.8567, "0.857")
    assert not says(0.8567, "0.858")
    assert says(0.2640, "26.4 %")
    assert not says(0.2640, "26.5 %")
    assert says([0.5, 0.41, 0.59, 80], "0.500 [0.410, 0.590], n = 80")
    assert not says([0.5, 0.41, 0.59, 80], "0.500 [0.410, 0.590], n = 81")
    assert not says([0.5, 0.41, 0.59], "0.500 [−0.410, 0.590]")
    assert says(12, "12 documents")
    assert not says(12, "12 of 13 documents")


# figures follow from the rows of the run, by other sums than the product's


def figures(run, name):
    found = json.loads((run / f"reports/{name}.json").read_text("utf-8"))["figures"]
    return [f if isinstance(f, list) else [f] for f in found]


def lines(run, name): return [json.loads(line) for line in (run / name).read_text("utf-8").splitlines()]


def means_of(run, name):
    if name == "embedder":
        rows = lines(run, "embedder/rows.jsonl")
        return [fmean(r["found"][level][m] for r in rows) for level in rows[0]["found"] for m in ("recall_1", "recall_5", "mrr", "ndcg")]
    if name == "context_length":
        costs, rows = lines(run, "context/costs.jsonl"), lines(run, "context/predictions.jsonl")
        error = lambda r, i: fmean(abs(t - p) for t, p in zip(r["truth"].values(), r["predicted"][i], strict=True))
        return [fmean(error(r, i) for r in rows if r["side"] == "test" and r["predicted"][i]) for i in range(len(costs))]
    found = []
    for file in sorted(run.glob("temperature/*/rows.jsonl")):
        slots = dict[str, list[float]]()
        for r in lines(run, file.relative_to(run)): slots.setdefault(r["id"], []).append(r["token_f1"])
        found.append(fmean(map(fmean, slots.values())))
    return found


@pytest.mark.parametrize("name", ["embedder", "context_length", "temperature"])
def test_stored_figures_follow_from_rows(run, name):
    told, means = [f[0] for f in figures(run, name) if isinstance(f[0], float)], means_of(run, name)
    assert len(means) >= 3
    assert not [m for m in means if not any(isclose(m, t, abs_tol=1e-9) for t in told)]


def test_timings_keep_their_rows():
    cost = ContextCost(level="truncate 128", view="truncate", budget=128, fit_seconds=1, train_articles=9, tokens_read=99)
    timed = add_time(cost, [20.0, 25.0, 30.0])
    assert (timed.ms_each, timed.ms_per_article) == ([20.0, 25.0, 30.0], 25.0)
    timing = lambda i: Timing(id=f"q{i}", at_once=1, place=i, prompt_tokens=9, tokens=3, first_token_ms=5 + i / 7,
                              per_token_ms=None if i == 3 else 2 + i / 9)
    asked = [timing(i) for i in range(12)]
    told = json.loads(json.dumps(latency_summary(asked, 9.0)))
    first, further = ([t[key] for t in told["timings"] if t[key] is not None] for key in ("first_token_ms", "per_token_ms"))
    assert told["first_token_ms"]["mean"] == pytest.approx(fmean(first), abs=1e-3)
    assert told["per_token_ms"]["mean"] == pytest.approx(fmean(further), abs=1e-3)
    assert told["p95_first_token_ms"] == pytest.approx(np.quantile(first, 0.95, method="higher"), abs=1e-3)
    assert (len(first), len(further)) == (12, 11)


def test_the_price_of_an_hour_is_a_setting():
    rows, costs = read_predictions(KEPT / "context")
    some, level = [r for r in rows if r.level == "truncate 128"], "cost / 10,000, EUR"
    free, paid = context_table(some, costs), context_table(some, costs, 2.0, "EUR")
    assert "hours / 10,000" in free[0]
    assert not any("cost" in key for key in free[0])
    assert "hours / 10,000" not in paid[0]
    ms = next(c.ms_per_article for c in costs if c.level == "truncate 128")
    assert paid[0][level].values[0] == pytest.approx(2 * ms * 10_000 / 3.6e6)
    assert "price_per_hour" not in templates()["context_length"].read_text("utf-8")


def test_fp32_is_as_fp32_without_an_interval():
    by = {row["variant"]: row["agreement with fp32"] for row in variant_table(open_results(KEPT), "recall")}
    assert (by["fp32"], "[" in by["q4"]) == ("1.000", True)


# what is warned of


def told(tmp_path, *, sets=None, judged=None, rest_on="sets", **facts):
    (tmp_path / "embedder").mkdir(exist_ok=True)
    (tmp_path / "provenance.json").write_text(json.dumps({"student base": "builtin:mini", **facts}))
    (tmp_path / "embedder/facts.json").write_text(json.dumps({"questions_from": judged or "pairs"}))
    if sets:
        (tmp_path / "eval/fp32").mkdir(parents=True)
        (tmp_path / "eval/fp32/rows.jsonl").write_text("")
        (tmp_path / "eval/fp32/metrics.json").write_text(json.dumps({"sets": {name: {"n": n} for name, n in sets.items()}}))
    return " ".join(warnings_of(Results(tmp_path), rest_on))


RULES, NOBODY = "The teacher is a set of rules", "Nobody wrote reference questions"
IMPORTED, BASE = "All questions come from the imported pairs", "built-in model"


@pytest.mark.parametrize(("facts", "said", "unsaid"), [
    ({"source": "documents", "teacher": "builtin:extractive", "gold": False}, [RULES, NOBODY, BASE], [IMPORTED]),
    ({"source": "documents", "teacher": "builtin:extractive", "gold": True}, [RULES, BASE], [NOBODY, IMPORTED]),
    ({"source": "documents", "teacher": "http://host/v1#extractive-qa", "gold": False}, [NOBODY, BASE], [RULES, IMPORTED]),
    ({"source": "pairs", "teacher": "builtin:extractive", "gold": False}, [IMPORTED, BASE], [RULES, NOBODY]),
    ({"source": "pairs", "teacher": "builtin:extractive", "gold": True}, [BASE], [RULES, NOBODY, IMPORTED]),
    ({"source": "articles", "teacher": "builtin:extractive", "gold": False}, [], [RULES, NOBODY, IMPORTED, BASE, "set has"]),
])
def test_warnings_follow_the_source(tmp_path, facts, said, unsaid):
    text = told(tmp_path, **facts)
    assert [w for w in said if w not in text] == []
    assert [w for w in unsaid if w in text] == []


def test_a_page_on_a_judged_set_says_nothing_about_who_asked(tmp_path):
    facts = {"source": "documents", "teacher": "builtin:extractive", "gold": False}
    assert told(tmp_path, judged="nfcorpus", rest_on="queries", **facts) == ""
    assert NOBODY in told(tmp_path, rest_on="queries", **facts)
    assert BASE not in told(tmp_path, rest_on="queries", **facts)


def test_only_sets_that_were_asked_are_called_small(tmp_path):
    text = told(tmp_path, sets={"test": 74, "recall": 349}, source="documents", teacher="x", gold=True)
    assert "The test set has 74 questions" in text
    assert "recall" not in text
    assert "set has" not in told(tmp_path, rest_on="teacher", source="documents", teacher="x", gold=True)


def test_no_set_of_no_questions_is_warned_of(tmp_path):
    assert "set has" not in told(tmp_path, sets={"test": 0}, source="pairs", teacher="x", gold=False)
    assert load_config().embedder.judged is None
