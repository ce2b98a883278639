"The temperature card: planted effects, the stages with a real model, a kill, a teacher that fails, and the page."
import json
import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import warm

from distillery.core.config import load_config
from distillery.core.files import read_jsonl, write_jsonl
from distillery.core.store import RunFolder
from distillery.teachers.journal import Journal, read_calls
from distillery.teachers.protocol import ChatResult, failed
from distillery.questions.decide import level_verdicts
from distillery.pairs.stages import pairs_stages
from distillery.engine.source import open_source
from distillery.engine.plan import Plan
from distillery.workbook.assemble import write_pages
from distillery.pages.report import build_report
from distillery.questions.results import open_results
from distillery.questions.temperature.decision import (
    by_level_and_difficulty,
    holds,
    interactions,
    seed_check,
    temperature_scores,
    temperature_decision,
    temperature_decisions,
    why_no_temperature,
)
from distillery.questions.temperature.tables import answer_temperature, frozen
from distillery.questions.temperature.decision import temperature_metrics
from distillery.questions.temperature.stages import TemperatureRow, temperature_stages
from distillery.questions.temperature.design import Design
from distillery.questions.slots import asked_slots

ATTACK = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\"> ../../etc/passwd"
KEPT = Path(__file__).parent / "data/run"
CONFIG = load_config(preset="handbook")


def rows_of(wrong, slots=150, replicates=2, seed=3, references=True, text="room 4"):
    "Rows of levels that err with probability `wrong[level](slot, replicate)`; 3 slots a page."
    rng, made = np.random.default_rng(seed), {}
    for level, chance in wrong.items():
        made[level] = []
        for i, k in ((i, k) for i in range(slots) for k in range(replicates)):
            right = float(rng.random() >= chance(i, k))
            against = dict.fromkeys(("exact_match", "token_f1", "bert_f1"), right if references else None)
            made[level].append(TemperatureRow(
                id=f"s{i}", replicate=k, doc_id=f"d{i // 3}", category="c", difficulty=("easy", "medium", "hard")[i % 3],
                question=f"{text}?", reference=text if references else None, answer=text if right else f"{text} {rng.integers(50)}",
                evidence=right, support=right, domain_relevance=0.4, repeats=bool(k), rag_with=right, rag_without=0.0, tokens=4,
                error=None, **against))
    return made


def often(share): return lambda i, k: share


# what is planted is found

def test_a_worse_temperature_comes_out_worse_and_one_against_itself_equivalent():
    worse = temperature_decision(rows_of({"0.3": often(0.1), "0.7": often(0.1), "0.9": often(0.45)}), CONFIG)
    assert worse.verdict.startswith(("0.3 better", "undecided"))
    assert level_verdicts(worse.contrasts, worse.margin, worse.metric, "documents")["0.9"][0] == "0.3 better"
    assert worse.sentence.startswith("Choose 0.3, the lowest that was asked")
    warm = load_config(overrides={"dataset.temperatures.answer": 0.9})
    kept = temperature_decision(rows_of({"0.3": often(0.4), "0.9": often(0.1)}), warm)
    assert [(c.a, c.b) for c in kept.contrasts] == [("0.3", "0.9")]
    assert kept.sentence.startswith("Keep 0.9")
    same = rows_of({"0.3": often(0.1)})
    twin = temperature_decision({"0.3": same["0.3"], "0.9": same["0.3"]}, CONFIG)
    assert twin.verdict == "equivalent (±0.05)"
    assert twin.n_items == 150
    assert twin.n_clusters == 50
    better = temperature_decision(rows_of({"0.3": often(0.4), "0.9": often(0.05)}), CONFIG)
    assert better.verdict == "0.9 better"
    assert better.sentence.startswith("Write answers at 0.9")


@pytest.mark.parametrize("references", [True, False])
def test_the_card_says_what_its_quality_is(references):
    made = temperature_decision(rows_of({"0.3": often(0.1), "0.9": often(0.1)}, references=references), CONFIG)
    assert made.metric == ("token_f1" if references else "evidence")
    assert ("against the reference" if references else "stand in the passage") in made.sentence


def test_replicates_are_averaged_and_do_not_count_as_items():
    rows = rows_of({"0.3": often(0.3), "0.9": often(0.3)}, replicates=4)
    scores, pages = temperature_scores(rows, "token_f1")
    assert len(scores["0.3"]) == len(pages) == 150
    assert scores["0.3"]["s0"] == np.mean([r.token_f1 for r in rows["0.3"] if r.id == "s0"])


def test_an_effect_on_hard_slots_only_is_an_interaction_and_a_common_effect_is_none():
    hard = rows_of({"0.3": often(0.1), "0.9": lambda i, k: 0.7 if i % 3 == 2 else 0.1}, slots=300)
    found = {(c.a, c.b): c for c in interactions(hard, "token_f1", CONFIG, "0.3")}
    assert found["0.9 on easy", "0.9 on hard"].p_holm < 0.01
    assert found["0.9 on easy", "0.9 on medium"].p_holm > 0.05
    assert "Yes" in answer_temperature(hard, CONFIG)[1]["answer"][:3]
    common = rows_of({"0.3": often(0.1), "0.9": often(0.4)}, slots=300)
    assert answer_temperature(common, CONFIG)[1]["answer"].startswith("Not shown")


def test_an_interaction_is_the_difference_of_the_two_differences():
    rows = rows_of({"0.3": often(0.2), "0.9": often(0.5)})
    within = {d: contrasts[0].diff for d, _, contrasts in by_level_and_difficulty(rows, "token_f1", CONFIG, "0.3")}
    for c in interactions(rows, "token_f1", CONFIG, "0.3"):
        x, y = c.a.split(" on ")[1], c.b.split(" on ")[1]
        assert c.diff == pytest.approx(within[x] - within[y])


def test_intervals_of_interactions_cover_the_truth():
    "Slots of a page share what a temperature does to them; no difficulty differs, and an interval leaves zero out one time in twenty."
    rng, config = np.random.default_rng(0), load_config(overrides={"decisions.resamples": 99})
    plain, missed, drawn = rows_of({"0.3": often(0.0), "0.9": often(0.0)}, slots=60, replicates=1), 0, 60
    for _ in range(drawn):
        gains = np.repeat(rng.normal(0, 0.2, 20), 3) + rng.normal(0, 0.3, 60)
        moved = [r.model_copy(update={"token_f1": 1 + g}) for r, g in zip(plain["0.9"], gains, strict=True)]
        missed += sum(not c.ci_low <= 0 <= c.ci_high for c in interactions({"0.3": plain["0.3"], "0.9": moved}, "token_f1", config, "0.3"))
    assert 1 <= missed <= 0.1 * 3 * drawn


def test_other_seeds():
    steady = rows_of({"0.3": often(0.05), "0.9": often(0.5)})
    assert seed_check(steady, CONFIG)[0] == "held"
    flips = rows_of({"0.3": often(0.5), "0.9": lambda i, k: 0.95 if k else 0.05})
    word, sentence, halves = seed_check(flips, CONFIG)
    assert word == "did not hold"
    assert "0.9 better, then 0.3 better" in sentence
    assert len(halves) == 2
    word, sentence, _ = seed_check(rows_of({"0.3": often(0.3), "0.9": often(0.4)}, slots=24), CONFIG)
    assert word == "undecided"
    assert re.search(r"\d+ more documents?", sentence)
    assert seed_check(rows_of({"0.3": often(0.1), "0.9": often(0.1)}, replicates=1), CONFIG)[2] == []
    assert holds(*halves)[0] == "did not hold"


def test_the_numbers_of_the_takeaway(tmp_path):
    run_folder(tmp_path / "run", rows_of({"0.3": often(0.0), "0.7": often(0.0), "0.9": often(1.0)}))
    told = temperature_metrics(open_results(tmp_path / "run"), CONFIG)
    assert told["reasons"] == {}
    numbers = told["temperature_analysis"]
    assert numbers["conservative_0.3"] == {"avg_quality": 1.0, "uniqueness": 0.5}
    assert numbers["creative_0.9"]["avg_quality"] == 0.0
    assert numbers["creative_0.9"]["uniqueness"] > 0.9
    assert len(answer_temperature(rows_of({"0.3": often(0.0), "0.9": often(1.0)}), CONFIG)) == 3


# the stages

class Drawing:
    "Answers with a number drawn by the seed, out of more the warmer it is; fails on the keys of `fails`, dies after `die` answers."
    name, identity = "drawing", {"model": "drawing"}

    def __init__(self, fails=(), die=None): self.fails, self.die, self.asked = fails, die, []

    async def stream(self, requests):
        for r in requests:
            if self.die is not None and len(self.asked) >= self.die: raise KeyboardInterrupt
            self.asked.append(r)
            drawn = np.random.default_rng(r.seed).integers(1 + round(10 * r.temperature))
            text = f"Where does machine {drawn} stand?" if r.task and r.task.kind == "ask" else f"number {drawn}"
            yield failed(r, TimeoutError("slow")) if r.key in self.fails else ChatResult(r.key, text, "stop", 9, 2)

    async def close(self): ...


@pytest.fixture
def drawn(monkeypatch):
    "A run of the stages with a `Drawing` as teacher and student."
    def run(teacher, home, design, gold=True):
        monkeypatch.setattr("distillery.questions.temperature.stages.teacher_opener", lambda spec, config: lambda told: teacher)
        source = open_source(None, None, "builtin" if gold else None)
        done = Plan([pairs_stages(source, CONFIG, home)[0], *temperature_stages(source, CONFIG, home, design)], CONFIG, home).run()
        return {n.split("-")[1]: read_jsonl(d.path / "rows.jsonl", TemperatureRow) for n, d in done.items() if n != "documents"}
    return run


def test_every_temperature_asks_the_same_slots_with_the_same_seeds(drawn, tmp_path):
    teacher = Drawing()
    rows = drawn(teacher, tmp_path, Design((0.3, 0.9), slots=6, replicates=3))
    keys = {level: [(r.id, r.replicate, r.question) for r in some] for level, some in rows.items()}
    assert keys["0.3"] == keys["0.9"]
    assert Counter(r.difficulty for r in rows["0.3"]) == {"easy": 6, "medium": 6, "hard": 6}
    seeds = {(r.temperature, r.key): r.seed for r in teacher.asked if r.task}
    assert {k: s for (t, k), s in seeds.items() if t == 0.3} == {k: s for (t, k), s in seeds.items() if t == 0.9}
    assert len({s for (t, _), s in seeds.items() if t == 0.3}) == 18
    scores, _ = temperature_scores(rows, "uniqueness")
    assert sum(scores["0.9"].values()) >= sum(scores["0.3"].values())


@pytest.mark.slow
def test_a_kill_loses_nothing_and_nothing_is_asked_twice(drawn, tmp_path):
    design, first, second = Design((0.3, 0.9), slots=5, replicates=3), Drawing(die=11), Drawing()
    with pytest.raises(KeyboardInterrupt): drawn(first, tmp_path, design)
    rows = drawn(second, tmp_path, design)
    assert len(first.asked) + len(second.asked) == 2 * 5 * 3 + 5 * 2
    assert len(rows["0.9"]) == 15
    third = Drawing()
    drawn(third, tmp_path, replace(design, temperatures=(0.3, 0.7, 0.9)))
    assert {r.temperature for r in third.asked} == {0.7}
    calls = Counter(c.key for c in read_calls(Journal(tmp_path / "calls.sqlite")))
    assert set(calls.values()) == {1}


def test_a_request_that_fails_is_no_answer(drawn, tmp_path):
    gold = [json.loads(line) for line in open_source(None, None, "builtin").gold.read_text("utf-8").splitlines()]
    fails = {f"{g['id']}/1" for g in gold}  # the second replicate of every slot
    rows = drawn(Drawing(fails=fails), tmp_path, Design((0.3, 0.9), slots=4, replicates=2))
    assert [r.error is None for r in rows["0.3"]] == [True, False] * 4
    scores, _ = temperature_scores(rows, "token_f1")
    assert len(scores["0.3"]) == 4
    facts = json.loads(next((tmp_path / "artifacts").glob("temperature-0.9/*/facts.json")).read_text())
    assert facts["failed"] == 4


def test_questions_vary_when_they_are_the_factor(drawn, tmp_path):
    teacher = Drawing()
    rows = drawn(teacher, tmp_path, Design((0.3, 0.9), slots=5, replicates=3, factor="question"))
    assert len({r.question for r in rows["0.9"]}) > len({r.question for r in rows["0.3"]}) > 1
    assert all(r.reference is None and r.token_f1 is None for r in rows["0.9"])
    assert {r.temperature for r in teacher.asked if r.task and r.task.kind == "answer"} == {CONFIG.dataset.temperatures.answer}


def test_without_references_the_teacher_asks_once_and_all_temperatures_answer_that(drawn, tmp_path):
    teacher = Drawing()
    rows = drawn(teacher, tmp_path, Design((0.3, 0.9), slots=4, replicates=2), gold=False)
    assert sum(r.task.kind == "ask" for r in teacher.asked if r.task) == 4
    assert [r.question for r in rows["0.3"]] == [r.question for r in rows["0.9"]]


def test_slots_do_not_depend_on_the_order_of_the_corpus(tmp_path):
    source = open_source(None, None, None)
    done = Plan(pairs_stages(source, CONFIG, tmp_path)[:1], CONFIG, tmp_path).run()
    from distillery.core.records import Chunk
    chunks = read_jsonl(done["documents"].path / "chunks.jsonl", Chunk)
    names = [s.id for s in asked_slots(chunks, None, CONFIG, 30)]
    assert sorted(names) == sorted(s.id for s in asked_slots(chunks[::-1], None, CONFIG, 30))
    assert names[:10] == [s.id for s in asked_slots(chunks, None, CONFIG, 10)]


@pytest.mark.slow
def test_with_a_real_small_teacher(tmp_path):
    "The shipped mini answers, the shipped mini reads; a second run asks nobody."
    config = load_config(preset="handbook", overrides={"teacher.model": "builtin:mini"})
    source = open_source(None, None, "builtin")
    stages = lambda: [pairs_stages(source, config, tmp_path)[0], *temperature_stages(source, config, tmp_path, Design((0.3, 1.5), 5, 2))]
    done = Plan(stages(), config, tmp_path).run()
    cool, warm = (read_jsonl(done[f"temperature-{t}"].path / "rows.jsonl", TemperatureRow) for t in ("0.3", "1.5"))
    assert all(r.error is None and r.bert_f1 is not None and r.rag_with is not None for r in cool + warm)
    assert not frozen({"0.3": cool, "1.5": warm})
    assert all(d.cached for d in Plan(stages(), config, tmp_path).run().values())
    shutil.rmtree(tmp_path / "artifacts")
    before = len(list(read_calls(Journal(tmp_path / "calls.sqlite"))))
    again = Plan(stages(), config, tmp_path).run()
    assert len(list(read_calls(Journal(tmp_path / "calls.sqlite")))) == before
    assert {n: d.digest for n, d in again.items()} == {n: d.digest for n, d in done.items()}


def test_rules_do_not_sample():
    rules = load_config(overrides={"teacher.model": "builtin:extractive"})
    assert temperature_stages(open_source(None, None, None), rules, Path("cache")) == []


# the page

def run_folder(folder, rows, **facts):
    folder.mkdir(parents=True)
    for name in ("config.json", "provenance.json"): shutil.copy(KEPT / name, folder / name)
    known = json.loads((folder / "provenance.json").read_text())
    (folder / "provenance.json").write_text(json.dumps({**known, **facts}))
    for level, some in rows.items():
        write_jsonl(folder / "temperature" / level / "rows.jsonl", some)
        (folder / "temperature" / level / "facts.json").write_text(json.dumps({"factor": "answer", "temperature": float(level)}))
    return folder


@pytest.mark.slow
def test_the_page_answers_first_is_the_same_twice_and_shows_hostile_text_as_text(tmp_path):
    rows = rows_of({"0.3": often(0.1), "0.7": often(0.1), "0.9": often(0.6)}, slots=60, text=ATTACK)
    one, two = (run_folder(tmp_path / name / "run", rows, inputs=ATTACK) for name in ("one", "two"))
    with warm.kernels(): page = build_report("temperature", one / "reports", {"run_dir": str(one)})
    again = build_report("temperature", two / "reports", {"run_dir": str(two)})
    assert page.read_bytes() == again.read_bytes()
    card = temperature_decisions(open_results(one), CONFIG)[0]
    assert (card.name, card.unit, card.levels) == ("temperature", "slots", ["0.3", "0.7", "0.9"])
    assert card.cost["with other seeds"] in ("held", "undecided")
    text = page.read_text("utf-8")
    assert str(tmp_path) not in text
    first = text.index('class="finding"')
    assert first < text.index("<h2")
    assert re.match(r"Choose 0\.3.*95 % interval", re.sub("<.*?>", "", text[first:text.index("</p>", first)].partition(">")[2]))
    headings = [re.sub("<.*?>", "", h) for h in re.findall(r"<h2[^>]*>(.*?)</h2>", text)]
    assert headings == ["The temperatures", "The differences", "With other seeds", "By difficulty", "RAG improvement and uniqueness",
                        "The questions this began with", "Answers that changed", "Method"]
    assert "naive interval" in text
    assert text.count("<figure") == 5
    assert "&lt;script&gt;document.title" in text
    assert "<script" not in text
    assert "<img src=x" not in text


def test_a_run_of_rules_says_why_it_has_no_card(tmp_path):
    run = run_folder(tmp_path / "run", {}, teacher="builtin:extractive")
    assert "does not sample" in why_no_temperature(open_results(run))
    assert temperature_decisions(open_results(run), CONFIG) == []
    write_pages(RunFolder(run), {"temperature": {}})
    assert "does not sample" in (run / "reports/index.html").read_text("utf-8")
