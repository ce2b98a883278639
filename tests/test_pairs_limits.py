"Limits are inclusive, an answer is found where it stands, and each refusal names the limit that made it."
import pytest
from hypothesis import given, strategies as st

from distillery.core.config import load_config
from distillery.core.records import Evidence
from distillery.pairs import limits
from distillery.pairs.limits import answer_problem, evidence_or_problem, find_span, locate, question_problem, same_answer

CONFIG = load_config()
WORDS = ("Raven", "Heron", "hall", "stands", "7", "mill")


def allowing(skip=0.0, **changes):
    "The settings with other limits."
    loose = {"min_question_length": 0, "min_answer_length": 0, "max_question_words": 99, "max_answer_words": 99, "max_answer_sentences": 9}
    return CONFIG.model_copy(update={"generation_limits": CONFIG.generation_limits.model_copy(update=loose | changes),
                                     "llm_defaults": CONFIG.llm_defaults.model_copy(update={"long_question_skip_prob": skip})})


@given(st.integers(1, 40), st.integers(0, 40), st.integers(0, 40))
def test_a_question_may_be_as_short_as_the_limit_of_its_kind(length, least, least_variation):
    config = allowing(min_question_length=least, min_variation_length=least_variation)
    question = "?".rjust(length, "x")
    assert (question_problem(question, config) is None) == (length >= least)
    assert (question_problem(question, config, variation=True) is None) == (length >= least_variation)
    for variation, name in ((False, "min_question_length"), (True, "min_variation_length")):
        said = question_problem(question, config, variation)
        assert said is None or name in said


@given(st.integers(1, 20), st.integers(1, 20))
def test_a_question_may_have_as_many_words_as_the_limit(words, most):
    question = " ".join(["word"] * words) + "?"
    assert (question_problem(question, allowing(max_question_words=most)) is None) == (words <= most)
    assert question_problem(question, allowing(1.0, max_question_words=most)) is None, "a probability of 1 keeps every long one"


def test_a_probability_of_zero_keeps_no_long_question_however_it_is_drawn(monkeypatch):
    monkeypatch.setattr(limits, "chance", lambda *names: 0.0)
    assert question_problem("one two three?", allowing(max_question_words=2)) == "question longer than generation_limits.max_question_words"


@given(st.integers(0, 30), st.integers(0, 30))
def test_an_answer_may_be_as_short_as_the_limit_but_never_empty(length, least):
    said = answer_problem("x" * length, "Which letter?", allowing(min_answer_length=least))
    assert (said is None) == (length >= max(1, least))
    assert said is None or "min_answer_length" in said


@given(st.integers(1, 12), st.integers(1, 12))
def test_an_answer_may_have_as_many_words_and_sentences_as_the_limits(n, most):
    in_words, in_sentences = " ".join(["word"] * n), " ".join(["The hall is red."] * n)
    assert (answer_problem(in_words, "What?", allowing(max_answer_words=most)) is None) == (n <= most)
    assert (answer_problem(in_sentences, "What?", allowing(max_answer_sentences=most)) is None) == (n <= most)


@given(st.lists(st.sampled_from(WORDS), min_size=1, max_size=9), st.integers(0, 8), st.integers(1, 3), st.integers(0, 500))
def test_an_answer_is_located_where_it_stands_in_the_document(words, first, n, start):
    text, answer = " ".join(words), " ".join(words[first : first + n])
    found = locate(text, start, answer)
    if not answer: assert found is None
    else: assert (text[found.start - start : found.end - start], found.text) == (answer, answer)


some_words = st.lists(st.sampled_from(WORDS), min_size=1, max_size=6)


@given(some_words, some_words, some_words, st.sampled_from(WORDS), st.integers(0, 500))
def test_an_answer_in_the_focus_is_found_there_and_one_elsewhere_only_for_a_hard_question(before, inside, after, answer, start):
    text, at, focus = " ".join([*before, *inside, *after]), len(" ".join(before)) + 1, " ".join(inside)
    sentence = Evidence(start=start + at, end=start + at + len(focus), text=focus)
    found = locate(text, start, answer, sentence)
    easy, hard = (evidence_or_problem(text, start, answer, sentence, level) for level in ("easy", "hard"))
    assert hard == (found or "the answer is not in the passage")
    assert evidence_or_problem(text, start, answer, None, "easy") == (locate(text, start, answer) or "the answer is not in the passage")
    if answer in inside:
        assert sentence.start <= found.start < found.end <= sentence.end
        assert easy == found
    elif found:
        assert found == locate(text, start, answer), "then the first one of the passage"
        assert easy == "the answer lies outside the sentence asked about"


def test_an_answer_that_sticks_out_of_the_sentence_at_either_end_lies_outside():
    text = "Jo Miller built it in Hall 3 of Ames"
    sentence = Evidence(start=110, end=128, text=text[10:28])
    for answer in ("Miller built", "Hall 3 of Ames", text):
        assert evidence_or_problem(text, 100, answer, sentence, "easy") == "the answer lies outside the sentence asked about"
    for answer in ("built", "Hall 3", text[10:28]):
        assert evidence_or_problem(text, 100, answer, sentence, "easy").text == answer


@pytest.mark.parametrize(("other", "same"), [("the Hall 3.", True), ("HALL 3", True), ("Hall 4", False), ("", False)])
def test_answers_are_the_same_but_for_case_articles_and_punctuation(other, same): assert same_answer("Hall 3", other) == same


@pytest.mark.parametrize("answer", ["1,200 kg", "1200 kg", "1 200kg", "1'200 kg"])
def test_a_mark_between_thousands_may_stand_or_not(answer):
    for there in ("1,200 kg", "1200 kg", "1 200 kg", "1200kg"):
        assert find_span(f"The mill weighs {there}.", answer) == (16, 16 + len(there))
    assert find_span("The mill weighs 1201 kg.", answer) is None


def test_a_sign_before_a_point_belongs_to_the_number():
    assert find_span("-.5 bar are read.", ".5 bar") is None
    assert find_span("It reads .5 bar.", ".5 bar") == (9, 15)


def test_a_power_is_one_number_and_what_is_divided_two():
    assert find_span("It takes 10^5 bar.", "10") is None
    assert find_span("Press it at 3 bar/2 h.", "3 bar") == (12, 17)


@pytest.mark.parametrize(("focus", "inside"), [((0, 38), False), ((39, 95), True)])
def test_an_answer_in_other_words_stands_in_the_sentence_asked_about(focus, inside):
    text = "The press prints forty sheets an hour. The mill is cleaned on Monday evening by the night crew."
    sentence = Evidence(start=100 + focus[0], end=100 + focus[1], text=text[slice(*focus)])
    ask = "on the evening of Monday", sentence
    found = evidence_or_problem(text, 100, *ask, "easy", "When is the mill cleaned?", 0.5)
    assert (found == "the answer lies outside the sentence asked about") != inside
    assert evidence_or_problem(text, 100, *ask, "hard", "When is the mill cleaned?", 0.5).said == ask[0]
