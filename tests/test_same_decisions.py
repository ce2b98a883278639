"The same decisions: the cards that an earlier version decided (tests/keep_decisions.py) are decided again, to the digit; words may change."
import copy
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from keep_decisions import KEPT, TIMED, cards, machine, make_run

BEFORE = json.loads((KEPT / "before.json").read_text("utf-8"))
ASKED = {"quantization", "temperature", "embedder", "context_length", "prompts", "parallel", "memory", "grouping", "distillation", "sizes",
         "learning_curve"}
WORDS = ("question", "factor", "unit", "sentence", "cost", "schema", "run_id")  # may be said otherwise
RENAMED = {"exact_match": "answer_match"}  # what decides has a definition of its own since; here the two agree (test_answer_match)
SHAPE = ("levels", "metric", "margin")                                          # the same on every processor
CHOOSING = {"quantization", "temperature", "embedder", "context_length", "prompts", "grouping", "sizes", "sizes-recall"}


def figures(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    "Every number and word of a card with its place, as a flat list."
    if isinstance(value, dict):
        for key, inner in value.items(): yield from figures(inner, f"{place}.{key}" if place else key)
    elif isinstance(value, list):
        for i, inner in enumerate(value): yield from figures(inner, f"{place}.{i}")
    else: yield place, value


def chosen(card: dict[str, Any]) -> str | None:
    "The level that the sentence names first, which is what it recommends."
    found = {level: re.search(rf"(?<![\w.]){re.escape(level)}(?![\w%]|\.\d)", card["sentence"]) for level in card["levels"]}
    named = {level: (at.start(), -len(level)) for level, at in found.items() if at}
    return min(named, key=lambda level: named[level]) if named else None


def decided(card: dict[str, Any]) -> dict[str, Any]:
    "What a card decided, by place: levels, numbers, verdict, choice. Not its words, nor what a clock had a say in."
    kept = {key: value for key, value in card.items() if key not in WORDS and key != "metric_version"}
    kept["metric"] = RENAMED.get(kept["metric"], kept["metric"])
    verdict = re.sub(r"(?<=\d),(?=\d{3})", "", card["verdict"])  # 1,180 is how 1180 is written now
    kept["verdict"] = re.sub(r"(\d+ more) \w+", r"\1", verdict)  # "38 more pages": what they are called is a word
    if card["name"] in TIMED: del kept["verdict"]
    if card["name"] in CHOOSING: kept["chosen"] = chosen(card)
    return dict(figures(kept))


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    "What two sets of cards decided differently, a line each."
    said = [f"{name}: only in one of them" for name in sorted(before.keys() ^ now.keys())]
    for name in sorted(before.keys() & now.keys()):
        old, new = decided(before[name]), decided(now[name])
        changed = [at for at in sorted(old.keys() | new.keys()) if old.get(at) != new.get(at)]
        said += [f"{name}: {at}: {old.get(at)!r} -> {new.get(at)!r}" for at in changed]
    return said


def test_every_question_was_asked():
    assert {re.split("[-]|_test", name)[0] for name in BEFORE["cards"]} == ASKED
    assert all(len(card["levels"]) > 1 and card["estimates"] and card["contrasts"] for card in BEFORE["cards"].values())


def another_digit(card): card["estimates"][0]["mean"] += 1e-9


def another_verdict(card): card["verdict"] = "undecided: 7 more" if card["verdict"] != "undecided: 7 more" else "equivalent"


def another_order(card): card["levels"].reverse()


def a_contrast_less(card): card["contrasts"].pop()


@pytest.mark.parametrize("change", [another_digit, another_verdict, another_order, a_contrast_less])
@pytest.mark.parametrize("name", sorted(BEFORE["cards"]))
def test_a_changed_decision_is_seen(name, change):
    if name in TIMED and change is another_verdict: pytest.skip("a clock had a say in it")
    changed = copy.deepcopy(BEFORE["cards"])
    change(changed[name])
    assert any(line.startswith(f"{name}: ") for line in differences(BEFORE["cards"], changed))


@pytest.mark.parametrize(("name", "level"), [
    ("quantization", "fp32"), ("temperature", "0.3"), ("embedder", "base int8"), ("context_length", "chunks 512"), ("prompts", "handbook"),
    ("grouping", "1"), ("sizes", "mini")])
def test_the_choice_is_read_from_the_sentence(name, level):
    card = BEFORE["cards"][name]
    other = next(x for x in reversed(card["levels"]) if x != level)
    assert chosen(card) == level
    assert differences({name: card}, {name: {**card, "sentence": f"Use {other}: so it is."}}) == [f"{name}: chosen: {level!r} -> {other!r}"]


def test_other_words_are_no_other_decision():
    reworded = copy.deepcopy(BEFORE["cards"])
    for card in reworded.values():
        card.update(question="Otherwise?", factor="other", unit="documents", run_id="x", sentence=f"{card['sentence']} So.",
                    cost={}, verdict=card["verdict"].replace("pages", "documents"))
    assert differences(BEFORE["cards"], reworded) == []


@pytest.fixture(scope="module")
def again(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("again"))


@pytest.mark.slow
def test_the_same_cards_about_the_same_levels(again):
    now = cards(again)
    assert now.keys() == BEFORE["cards"].keys()
    named = lambda card: {**card, "metric": RENAMED.get(card["metric"], card["metric"])}
    shape = lambda some: {name: {key: named(card)[key] for key in SHAPE} for name, card in some.items()}
    assert shape(now) == shape(BEFORE["cards"])


@pytest.mark.slow
def test_the_same_decisions_to_the_digit(again):
    if machine(again) != BEFORE["machine"]:
        pytest.skip(f"the numbers were kept on another machine: {BEFORE['machine']}; see tests/keep_decisions.py")
    assert differences(BEFORE["cards"], cards(again)) == []
