"Questions of the filters line: asked of a trained filter by name, shown on its page, and never offered to the other line."
import json
import shutil
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from distillery.commands.cli import app
from distillery.core.config import flatten, load_config
from distillery.core.errors import DistilleryError
from distillery.filters.folders import bump_filter, read_filter
from distillery.filters.pool import stream_articles, text_digest
from distillery.filters.static import MixedEncoder
from distillery.filters.world import TRUTH, WorldShape, write_world
from distillery.questions.all import named_questions, questions_of, reasons
from distillery.questions.results import open_results
from distillery.scoring.oracle import Label, LabelStore
from distillery.workbook.filter_run import compare_filters, open_trained, run_filter
from distillery.workbook.runs import rebuild

KEPT = Path(__file__).parent / "data/run"
NAMES = [q.name for q in questions_of("filters")]
QUICK = [name for name in NAMES if name != "scorer_kind"]  # an encoder of its own is read with


def labelled(found, home):
    "Labels of an oracle that errs by half a point, written as the oracle's own would be."
    truth = {row["id"]: row["scores"] for row in map(json.loads, (home / TRUTH).read_text("utf-8").splitlines())}
    dice, store = np.random.default_rng(88), LabelStore(found.folder)
    articles = {text_digest(a): a for a in stream_articles(home / "labelled.jsonl") if a.id in truth}
    facts = {"oracle_digest": "o", "prompt_digest": "p", "rubric_digest": "r", "at": "2026-01-01T00:00:00+00:00"}
    said = lambda scores: {d: float(np.clip(x + dice.normal(0, 0.5), 0, 10)) for d, x in scores.items()}
    store.add(articles, [Label(article_digest=d, article_id=a.id, scores=said(truth[a.id]), **facts) for d, a in articles.items()])
    return found


def filter_at(root, topics=56):
    "A version with labels of an own small draw, whose promise asks for little."
    shape = WorldShape(labelled=2 * topics, gold=5, pool=20, production=5, consent=2, topics=topics)
    home = write_world(root / "filters/builtin", 88, shape)
    contract = home / "v1/filter.yaml"
    text = contract.read_text("utf-8")
    for old, new in (("target_recall: 0.95", "target_recall: 0.8"), ("delta: 0.1", "delta: 0.4"), ("tier: medium", "tier: high"),
                     ("tokens: 512", "tokens: 40")):
        assert old in text
        text = text.replace(old, new)
    contract.write_text(text, "utf-8")
    config = load_config(overrides={"workbook.cache_dir": str(root / "cache"), "workbook.runs_dir": str(root / "runs")})
    return labelled(read_filter(home.parent, "builtin/v1"), home), config


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "Two versions on the same labels: the first trained and asked nothing, the second asked what takes no other model."
    root, known, encode = tmp_path_factory.mktemp("asked"), {}, MixedEncoder.encode

    def read_once(self, texts):
        fresh = [t for t in texts if t not in known]
        if fresh: known.update(zip(fresh, encode(self, fresh), strict=True))
        return np.stack([known[t] for t in texts])

    with pytest.MonkeyPatch.context() as m:
        m.setattr(MixedEncoder, "encode", read_once)
        found, config = filter_at(root)
        first = run_filter(found, config)
        second = bump_filter(root / "filters", "builtin")
        for name in ("labels.jsonl", "labelled.jsonl"): shutil.copy(found.folder / name, second.folder / name)
        yield first, run_filter(second, config, asked=named_questions(QUICK, "filters")), config


@pytest.fixture(scope="module")
def cards(place): return {d.name: d for d in open_results(place[1].index.parents[1]).decisions()}


def test_each_is_answered_from_pairs_in_clusters_by_one_engine(cards):
    assert set(cards) == {*QUICK, "filter_scorer"}
    for card in (cards[name] for name in QUICK):
        assert 1 < card.n_clusters <= card.n_items
        assert card.contrasts
        assert all(c.n_items == card.n_items and c.ci_low <= c.diff <= c.ci_high and c.p_equivalent is not None for c in card.contrasts)
        words = ("undecided", "equivalent", "reject nothing", *(f"{level} better" for level in card.levels))
        assert card.verdict.split(":")[0].split(" (")[0] in words
        assert card.run_id


@pytest.mark.slow
def test_kinds_of_scorers_are_compared_and_the_own_one_is_not_fitted_again(tmp_path):
    found, config = filter_at(tmp_path, 40)
    config = load_config(overrides={**flatten(config), "decisions.scorers": ["frozen", "finetune builtin:mini"]})
    made = run_filter(found, config, asked=named_questions(["scorer_kind"], "filters"))
    card = next(d for d in open_results(made.index.parents[1]).decisions() if d.name == "scorer_kind")
    assert card.levels == ["static", "finetune builtin:mini", "frozen"]
    assert card.estimates[0].mean == pytest.approx(made.report.rows[0].mae.mean)
    assert all(card.figures[f"ms an article, {level}"] > 0 for level in card.levels)
    stages = json.loads((made.index.parents[1] / "manifest.json").read_text("utf-8"))["stages"]
    assert {"scorer-static", "scorer-frozen"} < stages.keys()


def test_calibration_is_judged_on_validation_and_says_what_ships(place, cards):
    report = place[1].report
    assert cards["calibration"].n_items == report.calibration.n
    gain = np.mean([c.diff for c in report.calibration.gains.values()])
    assert cards["calibration"].contrasts[0].diff == pytest.approx(gain)
    assert f"{sum(bool(c.x) for c in report.calibration.curves.values())} of " in cards["calibration"].sentence


def test_the_promise_stands_beside_the_rule_and_the_dice(place, cards):
    promise, card = place[1].prefilter.promise, cards["prefilter"]
    assert promise.state == "promised"
    kept = {e.level: e.mean for e in card.estimates}
    assert kept["promise 80%"] == pytest.approx(promise.kept.mean)
    assert card.figures["saved, promise 80%"] == pytest.approx(promise.rejected.mean) == card.figures["saved, as many at random"]
    assert card.n_items == promise.positives
    rules = {r.rule: r for r in place[1].prefilter.rules}
    assert kept["reject below 2.5"] == pytest.approx(rules["reject below 2.5"].kept.mean)


def test_a_version_is_held_against_the_one_before_it(place, cards):
    first, second, _ = place
    expected = compare_filters(second, open_trained(first.found))
    contrast, = cards["incumbent"].contrasts
    assert (contrast.a, contrast.b, contrast.n_items) == (expected.a, expected.b, expected.n_items)
    assert (contrast.diff, contrast.ci_low, contrast.ci_high) == (expected.diff, expected.ci_low, expected.ci_high)


def test_the_page_shows_cards_and_what_was_not_asked(place, cards):
    first, second, _ = place
    text = unescape(second.index.read_text("utf-8"))
    for name in QUICK: assert cards[name].question in text
    assert [name for name in NAMES if f"--ask {name}" in text] == ["scorer_kind"]
    other = unescape(first.index.read_text("utf-8"))
    for name in NAMES: assert f"distillery filter train builtin/v1 --ask {name}" in other
    assert set(reasons(open_results(first.index.parents[1]))) == set(NAMES)


def test_no_question_is_offered_to_the_other_line(place):
    assert not set(reasons(open_results(KEPT))) & set(NAMES)
    assert not any(q.name in reasons(open_results(place[0].index.parents[1])) for q in questions_of("pairs"))
    helped = CliRunner().invoke(app, ["run", "--help"]).output
    assert not any(name in helped for name in NAMES)


@pytest.mark.parametrize(("ask", "said"), [
    ("temperature", "of the pairs line"), ("colour", ", ".join(NAMES)), ("incumbent", "no trained version")])
def test_what_cannot_be_asked_is_refused_before_anything_runs(place, ask, said, monkeypatch):
    first, _, _ = place
    root = first.found.folder.parents[2]
    monkeypatch.chdir(root)
    shutil.copytree(root / "filters/builtin/v1", root / "filters/fair/v1", dirs_exist_ok=True)
    contract = root / "filters/fair/v1/filter.yaml"
    contract.write_text(contract.read_text("utf-8").replace("name: builtin", "name: fair"), "utf-8")
    runs = set((root / "runs").iterdir())
    done = CliRunner().invoke(app, ["filter", "train", "fair/v1", "--ask", ask])
    assert done.exit_code != 0
    assert said in str(done.exception) + done.output
    assert done.exception.exit_code == 2
    assert set((root / "runs").iterdir()) == runs


def test_reports_of_the_other_line_are_not_built_over_its_page(place):
    first, _, config = place
    before = first.index.read_bytes()
    with pytest.raises(DistilleryError, match="run of a filter") as refused: rebuild(config, first.index.parents[1].name, "all", {})
    assert refused.value.fix == "distillery filter train builtin/v1"
    assert first.index.read_bytes() == before
