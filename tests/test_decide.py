"Anybody's results: files as four programs wrote them, mistakes that people make, exit codes, plans and looks."
import json
import re
from math import sqrt
from pathlib import Path

import numpy as np
import pytest
import trajectories
from typer.testing import CliRunner

from distillery import card, compare, declare, gate, look
from distillery.commands.cli import app
from distillery.core.errors import DistilleryError
from distillery.core.stats import paired_contrast
from distillery.questions.looks import nominal_levels

KEPT = Path(__file__).parent / "data/results"
ROWS = [{"id": f"q{i}", "system": s, "score": int(i % {"old": 3, "newer": 4}[s] > 0), "doc": f"d{i // 3}"}
        for s in ("old", "newer") for i in range(30)]


def run(*args):
    "Exit code and words of a command; an error of ours as the command line would end."
    done = CliRunner().invoke(app, [str(a) for a in args])
    error = done.exception
    if isinstance(error, DistilleryError): return error.exit_code, f"{error.message}\n{error.fix}"
    if error and not isinstance(error, SystemExit): raise error
    return done.exit_code, done.output


def written(folder, rows, name="r.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


@pytest.mark.parametrize(("files", "items", "clusters"), [
    (["lm_eval"], 24, 8), (["lm_eval/old", "lm_eval/new"], 24, 8), (["inspect_ai"], 24, 8),
    (["inspect_ai/old.json", "inspect_ai/new.eval"], 12, 4), (["promptfoo/results.json"], 12, 4),
    (["ragas/old.csv", "ragas/new.csv"], 24, 24)])
def test_files_of_real_programs_go_through(files, items, clusters):
    found = compare(*[KEPT / f for f in files], margin=0.1)
    assert (found.decision.n_items, found.decision.n_clusters) == (items, clusters)
    assert len(found.unpaired) == (12 if "inspect_ai/old.json" in files else 0)


def test_scores_are_those_that_the_programs_wrote():
    "Means by hand from the raw lines, both filters of lm-evaluation-harness, and epochs averaged within an item."
    raw = [json.loads(line) for line in next((KEPT / "lm_eval/old").glob("*.jsonl")).read_text().splitlines()]
    for name in ("plain", "digits"):
        mine = compare(KEPT / "lm_eval", margin=0.1, score=f"exact_match,{name}", baseline="old").decision.estimates
        assert {e.level: e.mean for e in mine}["old"] == pytest.approx(np.mean([r["exact_match"] for r in raw if r["filter"] == name]))
    results = json.loads((KEPT / "promptfoo/results.json").read_text())["results"]["results"]
    mine = compare(KEPT / "promptfoo/results.json", margin=0.1)
    assert {e.level: e.mean for e in mine.decision.estimates}["new"] == pytest.approx(
        np.mean([r["score"] for r in results if r["provider"]["label"] == "new"]))
    assert any("averaged; n counts items" in note for note in mine.notes)


def test_every_way_in_gives_the_same_card(tmp_path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(ROWS)
    frame.to_csv(tmp_path / "r.csv", index=False)
    frame.to_parquet(tmp_path / "r.parquet")
    wide = {s: [r["score"] for r in ROWS if r["system"] == s] for s in ("old", "newer")}
    ways = [compare(x, margin=0.1).decision for x in (tmp_path / "r.csv", tmp_path / "r.parquet", written(tmp_path, ROWS), frame, ROWS)]
    assert all(d.contrasts == ways[0].contrasts and d.sentence == ways[0].sentence for d in ways)
    direct = paired_contrast(wide["newer"], wide["old"], [r["doc"] for r in ROWS[:30]])
    assert (ways[0].contrasts[0].ci_low, ways[0].contrasts[0].p) == (direct.ci_low, direct.p)
    alone = compare(wide, margin=0.1)
    assert alone.decision.contrasts[0].ci_low == paired_contrast(wide["newer"], wide["old"]).ci_low
    assert "items taken as independent: no column of clusters" in alone.notes


@pytest.mark.parametrize(("change", "said"), [
    (lambda rows: [*rows, rows[3]], "1 duplicate: item 'q3' of system 'old' stands twice: line 4 of r and line 61 of r"),
    (lambda rows: [{**r, "score": float("nan") if r["id"] == "q7" else r["score"]} for r in rows],
     "2 scores missing (NaN), first that of item 'q7'"),
    (lambda rows: [{**r, "score": "good" if r["id"] == "q7" else r["score"]} for r in rows], "is no number: 'good' (line 8 of r)"),
    (lambda rows: [{**r, "score": 100 * r["score"] if r["system"] == "old" else r["score"]} for r in rows], "mixed scales"),
    (lambda rows: [{**r, "score": float("inf") if r["id"] == "q7" else r["score"]} for r in rows], "infinite"),
    (lambda rows: [{**r, "doc": r["doc"] + r["system"]} for r in rows], "lies in two clusters"),
    (lambda rows: [r for r in rows if r["system"] == "old"], "one system only, 'old'"),
    (lambda rows: [{**r, "id": "" if r["id"] == "q7" else r["id"]} for r in rows], "line 8: no item (column 'id')"),
    (lambda rows: [{k: v for k, v in r.items() if k != "score"} for r in rows], "which column is the score cannot be told"),
])
def test_a_mistake_is_one_clear_message(tmp_path, change, said):
    before = written(tmp_path, change(ROWS)).read_bytes()
    code, words = run("decide", tmp_path / "r.jsonl", "--margin", "0.1")
    assert code == 2
    assert said in words
    assert (tmp_path / "r.jsonl").read_bytes() == before


def test_a_wrong_column_and_an_unpaired_item_are_named(tmp_path):
    code, words = run("decide", written(tmp_path, ROWS), "--margin", "0.1", "--score", "skore")
    assert (code, "has no column 'skore'" in words, "name one of: id, system, score, doc" in words) == (2, True, True)
    code, words = run("decide", written(tmp_path, ROWS[:-2]), "--margin", "0.1")
    assert (code, "2 items not measured for newer, left out as unpaired: q28, q29" in words) == (0, True)
    assert "no margin was named" in run("decide", written(tmp_path, ROWS))[1]


def test_exit_codes_and_json(tmp_path):
    path = written(tmp_path, [{**r, "score": 1 if r["system"] == "old" else int(r["id"] in ("q1", "q2"))} for r in ROWS])
    assert run("decide", path, "--margin", "0.1")[0] == 0  # nobody said what may not get worse
    assert run("decide", path, "--margin", "0.1", "--baseline", "old")[0] == 4
    assert run("decide", path, "--margin", "0.1", "--baseline", "newer")[0] == 0
    assert run("decide", path, "--margin", "0.1", "--baseline", "old", "--lower-is-better")[0] == 0
    still = written(tmp_path, ROWS, "open.jsonl")
    assert [run("decide", still, "--margin", "0.01", "--baseline", "old", *flag)[0] for flag in ((), ("--fail-on-inconclusive",))] == [0, 5]
    code, words = run("decide", path, "--margin", "0.1", "--json", "-")
    assert (code, json.loads(words)["schema"], json.loads(words)["verdicts"]) == (0, 1, {"newer": "old better"})
    assert "Open" in run("decide", path, "--margin", "0.1", "--html", tmp_path / "card.html")[1]
    assert "old better" in (tmp_path / "card.html").read_text()


def test_names_of_others_are_escaped(tmp_path):
    rows = [{**r, "system": "<script>x</script>" if r["system"] == "newer" else "old\x1b[31m"} for r in ROWS]
    found = compare(rows, margin=0.1)
    assert "<script" not in str(card(found, tmp_path / "c.html")) + (tmp_path / "c.html").read_text()
    assert "\x1b[31m" not in run("decide", written(tmp_path, rows), "--margin", "0.1")[1]


def test_a_gate_is_that_of_the_engine():
    found = compare(ROWS, margin=0.1, baseline="old")
    assert (gate(found).state, gate(found).bound) == ("INCONCLUSIVE", found.decision.contrasts[0].ci_low)
    with pytest.raises(DistilleryError, match="no gate"): gate(compare(ROWS, margin=0.1))


def test_a_damaged_archive_is_named(tmp_path):
    whole = (KEPT / "inspect_ai/old.eval").read_bytes()
    for part in (whole[:2000], whole[:-200], b"PK\x03\x04" + whole[4:20000]):
        (tmp_path / "bad.eval").write_bytes(part)
        with pytest.raises(DistilleryError, match="no readable log of inspect_ai"): compare(tmp_path / "bad.eval", margin=0.1)


@pytest.mark.parametrize("scale", ["1..0", "nan..1", "0..inf", "0", "0..x", "1..1"])
def test_a_scale_without_two_ends_is_refused(scale):
    with pytest.raises(DistilleryError, match="is no scale"): compare(ROWS, margin=0.1, scale=scale)


def test_a_gate_of_times_turns_the_difference_round():
    found = compare(ROWS, margin=0.1, baseline="old", lower_is_better=True)
    [c] = found.decision.contrasts
    assert (gate(found).value, gate(found).bound) == (pytest.approx(-c.diff), pytest.approx(-c.ci_high))


def test_a_plan_draws_its_power_curve(tmp_path):
    code, said = run("plan", "--margin", "0.1", "--like", KEPT / "lm_eval", "--curve", tmp_path / "curves/power.svg")
    assert code == 0
    assert "decide a margin of 0.1" in said
    drawn = (tmp_path / "curves/power.svg").read_text("utf-8")
    assert drawn.startswith("<?xml")
    assert len(re.findall("<path", drawn)) > 5
    assert run("plan", "--margin", "0.1", "--like", KEPT / "lm_eval", "--curve", tmp_path / "power.exe")[0] == 2


def test_looks_from_the_terminal_to_a_decision(tmp_path):
    (tmp_path / "docs.txt").write_text("\n".join(f"d{k}" for k in range(30)))
    looks = tmp_path / "looks.json"
    assert run("plan", "--margin", "0.1", "--systems", "old,new", "--of", tmp_path / "docs.txt", "--looks", looks)[0] == 0
    order = json.loads(looks.read_text())["order"]
    rows = [{"id": f"{d}-{k}", "doc": d, "system": s, "score": int(s == "new" or k == 0)}
            for d in order for k in range(4) for s in ("old", "new")]
    seen = lambda n: written(tmp_path, rows[: 8 * n])
    assert "go on" in run("decide", seen(8), "--looks", looks)[1]
    assert "nothing new to look at: 8 clusters" in run("decide", seen(8), "--looks", looks)[1]
    assert "were declared with the looks" in run("decide", seen(9), "--looks", looks, "--margin", "0.2")[1]
    gap = written(tmp_path, rows[:64] + rows[72:200])
    assert "nothing new to look at: 8 clusters" in run("decide", gap, "--looks", looks)[1]
    torn = written(tmp_path, rows[:71])  # the last question of the ninth document has no pair yet
    assert "nothing new to look at: 8 clusters" in run("decide", torn, "--looks", looks)[1]
    changed = written(tmp_path, [{**rows[0], "score": 1 - rows[0]["score"]}, *rows[1:160]])
    assert "have changed" in run("decide", changed, "--looks", looks)[1]
    code, words = run("decide", seen(20), "--looks", looks)
    assert (code, "decided, stop here" in words, "new is better" in words) == (0, True, True)
    assert run("decide", seen(30), "--looks", looks)[1] == words


def test_single_items_are_looked_at_where_these_documents_are_all_there_is(tmp_path):
    looks = tmp_path / "looks.json"
    plan = declare(looks, [f"q{i}" for i in range(60)], margin=0.2, systems=["old", "new"], single_items=True)
    done = look(looks, [{"id": i, "old": int(k % 4 == 0), "new": 1} for k, i in enumerate(plan.order[:40])])
    assert (done.looks[0].clusters, done.looks[0].verdicts) == (40, {"new": "new better"})
    declare(tmp_path / "p.json", [f"q{i}" for i in range(60)], margin=0.2, systems=["old", "new"])
    with pytest.raises(DistilleryError, match="no column of them"):
        look(tmp_path / "p.json", [{"id": i, "old": 0, "new": 1} for i in plan.order[:40]])


def test_a_system_is_called_what_a_person_calls_it(tmp_path):
    "The same model twice, before and after: the log's own name says nothing, NAME=FILE does."
    old, new = KEPT / "inspect_ai/old.eval", KEPT / "inspect_ai/new.eval"
    assert set(compare(f"before={old}", f"after={new}", margin=0.1).decision.levels) == {"before", "after"}
    with pytest.raises(DistilleryError, match="one system only"): compare(old, old, margin=0.1)


def test_several_systems_share_one_card_and_are_adjusted():
    rows = [{"id": i, "a": i % 3 > 0, "b": i % 4 > 0, "c": i % 5 > 0} for i in range(60)]
    found = compare(rows, margin=0.05)
    assert list(found.verdicts) == ["b", "c"]
    assert all(c.p_holm >= c.p for c in found.decision.contrasts)
    assert max(c.p_holm for c in found.decision.contrasts) > min(c.p for c in found.decision.contrasts)


def test_levels_of_looks_are_the_published_ones():
    "O'Brien and Fleming's kind of spending at ten looks, and at one, which spends all."
    from statistics import NormalDist

    z = [NormalDist().inv_cdf(1 - p / 2) for p in nominal_levels(tuple(k / 10 for k in range(1, 11)))]
    assert z[4:] == pytest.approx([2.97, 2.68, 2.47, 2.30, 2.17, 2.06], abs=0.06)
    assert nominal_levels((1.0,), 0.05, 2) == pytest.approx((0.05,), abs=1e-4)
    assert nominal_levels((1.0,), 0.05, 1) == pytest.approx((0.05,), abs=1e-4)


def test_a_few_trajectories_err_seldom_and_end_early():
    n = 20
    assert max(trajectories.errors(3, n)) <= trajectories.most(n)
    assert max(trajectories.gate_errors(3, n)) <= trajectories.most(n, 0.025)
    assert trajectories.saving(5, 8) >= 0.3


@pytest.mark.slow
@pytest.mark.parametrize("looks", [5, 10, 20])
def test_trajectories_err_as_seldom_as_one_look(looks):
    n = 1500
    assert max(trajectories.errors(looks, n)) <= trajectories.most(n)
    assert trajectories.saving(looks, n // 5) >= 0.3


@pytest.mark.slow
@pytest.mark.parametrize("looks", [5, 10, 20])
def test_gates_err_as_seldom_as_at_one_look(looks):
    "PASS and FAIL at a loss of exactly the margin, and against a threshold that is just met, at the look where the gate stopped."
    n = 1500
    assert max(trajectories.gate_errors(looks, n)) <= trajectories.most(n, 0.025)
    assert trajectories.gate_saving(looks, n // 5) >= 0.3


@pytest.mark.slow
@pytest.mark.parametrize("pilot", [12, 20, 36])
def test_a_study_of_the_planned_size_decides_four_times_in_five(pilot):
    n = 300
    for share in trajectories.decided(n, pilot): assert 0.75 - 3 * sqrt(0.16 / n) <= share <= 0.9 + 3 * sqrt(0.16 / n)
