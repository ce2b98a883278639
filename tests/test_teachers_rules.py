"""The rules of the extractive teacher: what they ask is grammatical enough to parse back, and its answer stands in the text."""

import random
import re
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distillery.teachers.extractive import REFUSAL, ExtractiveTeacher, answer, ask, questions_of, rephrase, sentences
from distillery.teachers.frames import GROUPS, plain_form, question_wordings
from distillery.teachers.lines import facts_of
from distillery.teachers.protocol import Task, ask_all, user_request
from distillery.teachers.rules import MAX_ANSWER

AUDIO_DOCS = Path(__file__).resolve().parents[2] / "shared" / "data" / "audio_docs" / "audio_docs.tar.gz"
VALUES = {"be": ["is", "are"], "c": ["if", "when", "once"], "m": ["does", "can", "will"], "v": ["use", "press"], "p": ["stored", "written"],
          "prep": ["in", "by", "to"], "o": ["-r", "--remote"], "n": ["#6322", "#17"], "s": ["the pump", "Audacity 3.7", "link.max-buffers"],
          "t": ["shortcut", "description"], "x": ["the clip ends", "you press Stop", "A ____ B"]}


@pytest.mark.parametrize("group", GROUPS, ids=lambda g: g[0])
def test_every_wording_reads_back_as_the_plain_form(group):
    for seed in range(20):
        chance = random.Random(seed)
        question = group[0].format(**{name: chance.choice(values) for name, values in VALUES.items()})
        forms = question_wordings(question)
        assert forms[0] == question
        assert len(set(forms)) >= 5
        assert {plain_form(f) for f in forms} == {plain_form(question)}, forms


PAGES = ["The Raven 74 is a press that stands in Hall 3. It is old.", "If the lamp blinks, press Reset. Press Stop to end the job.",
         "Key | Value\nspeed | 120 pages\ncolour | none",
         "log.level = 2: The default log level.\n\n-h: Show help.\n\n#6322 Fixed a crash on launch of macOS.",
         "<script>alert(1)</script> is a tag. {{ 7*7 }} is a template.",
         "# Title\n\n- Ink is stored in Room 5.\n- Paper was delivered on 3 May 2024."]


@settings(max_examples=150)
@given(st.lists(st.sampled_from(PAGES) | st.text(max_size=120), min_size=1, max_size=5).map("\n\n".join))
def test_answers_are_short_spans_of_their_sentence(page):
    for sentence in sentences(page):
        assert sentence in page
        for fact in facts_of(sentence, page):
            assert fact.answer in sentence
            assert 1 <= len(fact.answer.split()) <= MAX_ANSWER
            assert fact.question.endswith("?")
    for fact in questions_of(page).values():
        assert all(answer(Task("answer", page, question=w)) == fact.answer for w in question_wordings(fact.question))


@pytest.mark.parametrize("sentence", [
    "It is a service.", "This option enables logging.", "You can use the mouse.", "There are two kinds of ink.",
    "If left unset, the port is closed.", "The following steps are described in the manual.",
    "Click here to read more about it.", "These files are stored in the cache."])
def test_what_points_elsewhere_is_not_asked(sentence):
    assert not [f for f in facts_of(sentence, sentence) if f.rule != "gap"]


def test_a_question_with_two_answers_is_not_asked():
    page = "The Gull supports linen. The Gull supports felt."
    assert not questions_of(page)
    assert ask(Task("ask", page, "The Gull supports felt."), random.Random(0)) == ""


def test_seed_decides_and_repeats():
    page = "The Noise Gate effect attenuates any sound quieter than a certain threshold."
    requests = [user_request(str(i), "p", seed=i % 4, task=Task("ask", page, page, difficulty="medium")) for i in range(8)]
    results = [r.text for r in ask_all(ExtractiveTeacher(), requests)]
    assert results[:4] == results[4:]
    assert len(set(results)) > 1


@pytest.mark.skipif(not AUDIO_DOCS.exists(), reason="the real documents are not on this machine")
def test_real_pages_give_hundreds_of_pairs():
    pairs, gaps = [], 0
    with tarfile.open(AUDIO_DOCS) as archive:
        pages = [archive.extractfile(m).read().decode() for m in archive if m.name.endswith(".md")]
    for page in pages:
        for section in re.split(r"\n(?=#)", page):
            for fact in questions_of(section).values():
                pairs.append(fact)
                gaps += fact.rule == "gap"
                reworded = rephrase(Task("rephrase", question=fact.question), random.Random(0))
                assert answer(Task("answer", section, question=reworded)) == fact.answer
                assert fact.answer in section
    assert len(pairs) > 400
    assert gaps < len(pairs) / 2
    assert answer(Task("answer", pages[0], question="What does the Raven 74 cost?")) == REFUSAL
