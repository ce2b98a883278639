"What the terminal shows fits 80 columns, decisions and failures first, and the pictures of the documents show it."
import re
from pathlib import Path

import pytest
import screens

from distillery.pages.terminal import earlier_seconds, outlook


@pytest.fixture(scope="module")
def shown(): return {name: screens.screen(name).export_text(clear=False) for name in screens.SCREENS}


@pytest.mark.parametrize("name", screens.SCREENS)
def test_no_line_is_wider_than_the_terminal(shown, name):
    assert shown[name].strip()
    assert [line for line in shown[name].splitlines() if len(line.rstrip()) > screens.WIDTH] == []


def test_a_run_says_what_is_to_come_and_ends_with_questions_answers_and_a_next_step(shown):
    text = shown["run"]
    assert "0/?" not in text
    assert "480/1,200" in text
    assert re.search(r"\d+ of \d+ stages; (at least )?[\d.]+ min to go; next: merge", text)
    assert "docs/s" not in text
    end = text[text.index("Is a student good enough to ship?"):]
    assert "no: FAIL" in end
    assert "Next:" in end
    assert "distillery ask" in end


def test_decisions_and_failed_gates_come_first(shown):
    text = shown["runs_show"]
    order = ("Is a student good enough", "Which quantization", "gates of", "FAIL fp32 test.", "longest when made", "Pages: ")
    places = [text.index(words) for words in order]
    assert places == sorted(places)
    asked = len(list((Path(__file__).parent / "data/run/decisions").glob("*.json")))
    assert len(text.splitlines()) <= 7 * asked + 10  # seven lines a question, ten for all else
    assert "`" not in text


def test_a_comparison_sums_up_before_its_tables(shown):
    text = shown["runs_compare"]
    assert text.index("no decision and no gate has another verdict") < text.index("Second run minus first: ") < text.index("variant")


def test_a_tuning_names_its_candidates(shown):
    first, *_ = [line for line in shown["tune"].splitlines() if line.startswith("as it is")]
    assert "the reference" in first
    assert "block_size=16  " in shown["tune"]


def test_runs_are_one_line_each(shown): assert len(shown["runs_list"].strip().splitlines()) == 3


def test_pictures_are_those_of_today():
    for name in screens.SCREENS:
        kept = screens.ROOT / f"reports/terminal-{name}.svg"
        assert kept.read_text("utf-8") == screens.picture(name), f"python tests/screens.py makes {kept.name} again"


def test_what_is_to_come_is_known_from_an_earlier_run(tmp_path):
    screens.project(tmp_path)
    took = earlier_seconds(tmp_path / "runs")
    assert took["sft"] > 10
    assert "to go" not in outlook(["a", "sft"], [], "a", 0, {})
    assert "at least" in outlook(["a", "sft"], [], "a", 0, took)
    assert outlook(["sft"], ["sft"], "", 0, took) == "1 of 1 stage"
