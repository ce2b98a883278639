"Replies: decorations come off, refusals are told from answers, and neither takes longer than its text."
import hashlib
import json
import time
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from distillery.core.metrics import match_form
from distillery.core.reply import clean_answer, clean_question, declines, is_refusal
from distillery.core.script import fold
from distillery.core.sentences import line_sentences, split_sentences
from distillery.pairs.limits import find_span
from distillery.pairs.support import find_support

HERE = Path(__file__).parent
CASES = HERE.parents[1] / "shared/cases/39_decorated_questions_and_answers/lines.jsonl"
REPLIES = [json.loads(line) for line in (HERE / "data/replies.jsonl").read_text("utf-8").splitlines()]
Q = "At which pressure does the valve open?"


def half(row): return int(hashlib.sha256(row["id"].encode()).hexdigest(), 16) % 2  # the wordings were tuned on half 0 alone


def figures(rows):
    "Recall of refusals, share of false ones, share of decorated answers that are read right."
    refusals, others = [r for r in rows if r["kind"] == "refusal"], [r for r in rows if r["kind"] != "refusal"]
    decorated = [r for r in rows if r["kind"] == "decorated"]
    mean = lambda some: sum(some) / len(some)
    return {"recall": mean([is_refusal(r["wrote"]) for r in refusals]), "false": mean([is_refusal(r["wrote"]) for r in others]),
            "read right": mean([clean_answer(r["wrote"]) == r["right"] for r in decorated])}


def test_the_labelled_set_is_large_and_in_six_languages():
    assert len(REPLIES) >= 300
    assert len({r["language"] for r in REPLIES}) == 6
    assert all(sum(half(r) == h and r["kind"] == kind for r in REPLIES) >= 40 for h in (0, 1) for kind in ("refusal", "answer",
        "decorated"))


def test_refusals_and_decorated_answers_of_the_half_that_nothing_was_tuned_on(record_property):
    found = figures([r for r in REPLIES if half(r) == 1])
    for name, value in found.items(): record_property(name, round(value, 3))
    assert found["recall"] >= 0.9
    assert found["false"] <= 0.02
    assert found["read right"] >= 0.95


@pytest.mark.parametrize("language", sorted({r["language"] for r in REPLIES}))
def test_no_language_is_left_behind(language):
    found = figures([r for r in REPLIES if r["language"] == language])
    assert found["recall"] >= 0.9
    assert found["false"] <= 0.03
    assert found["read right"] >= 0.9


@pytest.mark.parametrize("reply", [
    "لا يذكر النص ذلك.", "غير مذكور في النص.", "عذرا، لا يمكنني الإجابة على هذا السؤال.", "原文没有提到。",
    "抱歉，文章没有提供这方面的信息。", "본문에는 언급되어 있지 않습니다.",
    "O texto não diz.", "Il testo non lo dice.", "Sorry: the passage doesn't say."])
def test_refusals_in_further_languages(reply): assert is_refusal(reply)


@pytest.mark.parametrize("reply", ["12 bar. The passage does not say why.", "The manual says that the lid must not be opened.", "", "?",
    "No.", "なし"])
def test_answers_are_no_refusals(reply): assert not is_refusal(reply)


@pytest.mark.skipif(not CASES.exists(), reason="the cases are not here: ../shared/cases is no part of the project")
def test_the_case_of_decorated_lines():
    for row in map(json.loads, CASES.read_text("utf-8").splitlines()):
        assert (clean_question if row["kind"] == "question" else clean_answer)(row["wrote"]) == row["right"]


@pytest.mark.parametrize("wrote", [
    "**Question:** {}", "Q1. {}", "1) Q: {}", "### Question\n{}", "Certainly!\n{}", "- **{}**", "```\n{}\n```\nHope this helps!",
    "{} (Answer: 12 bar)",
    "{}\nAnswer: 12 bar", '{{"question": "{}"}}', "Here is a question: {}", "“{}”", "Question - {}", "Of course. Here is one:\n\n> {}",
    "Question 2/5: {}"])
def test_decorated_questions(wrote): assert clean_question(wrote.format(Q)) == Q


@pytest.mark.parametrize("wrote", [
    "**Answer:** {}", "*Answer:* {}", "Answer: {}.\nExplanation: it says so", "The answer is \"{}\".", "{} (as stated in the passage)",
    "The passage says the valve opens.\nFinal answer: {}", "Answer: {}\nConfidence: high", "({})", "✅ {}", "{}\n---\nSource: p. 3",
    '{{"answer": "{}"}}', "<b>{}</b>",
    "{}【1†source】", "A) {}", "{}\n\nThe passage states this in its second sentence.", "```{}```", "Antwort: „{}“",
    "La réponse est : {}", "答え：{}", "Ответ: «{}»"])
def test_decorated_answers(wrote): assert clean_answer(wrote.format("12 bar")) == "12 bar"


@pytest.mark.parametrize("answer", ["A. Tolan", "3. Mai", "E. coli", "-5 °C", "(a) and (b)", "Yes: always", "“A” and “B”", "f(x)", "C++",
    "12 bar (cold)", "it's",
                                    "http://a.b/c:80", "Mon: open", "5'"])
def test_what_belongs_to_an_answer_stays(answer): assert clean_answer(answer) == answer


@pytest.mark.parametrize("wrote", [
    "Sure! {}", "Gerne! Die Antwort lautet: {}", "Voici la réponse : {}", "Bien sûr ! La réponse est : « {} »", "当然！答案是“{}”。",
    "好的，答案是：{}",
    "Hier ist die Antwort: {}", "¡Claro! La respuesta es: {}", "答えは{}です。", "Antwoord: {}", "Odpowiedź: {}", "Cevap: {}",
    "उत्तर: {}", "Trả lời: {}",
    "תשובה: {}", "### Answer\n{}", "**Final Answer**\n\n{}", "Q: At which pressure?\nA: {}", "Answer (short): {}",
    "$\\boxed{{\\text{{{}}}}}$", "{}^[1]",
    'Here is the JSON:\n{{"answer": "{}", "quote": "at it"}}', '[{{"answer": "{}"}}]', '["{}"]', "{} — as stated in the passage",
    "<final>{}</final>"])
def test_further_decorated_answers(wrote): assert clean_answer(wrote.format("12 bar")) == "12 bar"


@pytest.mark.parametrize("answer", ["5. March", "2. Weltkrieg", "__init__", "**kwargs", '5"', "<b>", '{"port": "8080"}',
    "klar, farblos", "はい、開きます", "Okay"])
def test_what_looks_like_decoration_stays(answer): assert clean_answer(answer) == answer


@pytest.mark.parametrize("wrote", [
    "Hier ist eine Frage: {}", "Voici une question : {}", "Certainly! {}", "Here's one: {}", "Question (medium): {}", "Reworded: {}",
    "Vraag: {}",
    '{{"question": "{}", "answer": "12 bar"}}', 'Here is the JSON:\n{{"question": "{}"}}', "Soru: {}"])
def test_further_decorated_questions(wrote): assert clean_question(wrote.format(Q)) == Q


@pytest.mark.parametrize("reply", [
    "The answer is not in the passage.", "De tekst vermeldt dit niet.", "Het staat niet in de tekst.", "W tekście nie ma o tym mowy.",
    "Tekst nie zawiera tej informacji.", "Texten nämner inte detta.", "Metinde bu bilgi yok.", "पाठ में इसका उल्लेख नहीं है।", "ข้อความไม่ได้ระบุไว้",
    "Το κείμενο δεν αναφέρει την πίεση.", "У тексті про це не йдеться.", "Đoạn văn không đề cập đến điều này.",
    "הטקסט אינו מציין זאת.", "Text to neuvádí."])
def test_refusals_in_still_further_languages(reply): assert is_refusal(reply)


@pytest.mark.parametrize("reply", [
    "The answer sheet is not given to pupils.", "De tekst wordt niet gedrukt.", "Nie używać rozpuszczalnika.", "Texten skrivs inte ut.",
    "Solvent kullanmayın.", "विलायक का उपयोग न करें।", "ห้ามใช้ตัวทำละลาย", "Δεν χρησιμοποιείται διαλύτης.", "Кришку не відкривають.",
    "Không dùng dung môi.", "אין להשתמש בממס", "Text se netiskne."])
def test_prohibitions_are_no_refusals(reply): assert not is_refusal(reply)


WRAPS = st.sampled_from(["Answer: {}", "**{}**", "> {}", "- {}", '"{}"', "`{}`", "{} [1]", "{}\n\nNote: so.", "Sure!\n\n{}", "«{}»",
    "1) {}"])


@given(st.sampled_from(["12 bar", "alle 14 Tage", "Mira Tolan", "тёплой водой", "乾いた布", "max_tokens", "1/2 inch"]), st.lists(WRAPS,
    max_size=3, unique=True))
@settings(max_examples=80)
def test_any_few_decorations_come_off(answer, wraps):
    said = answer
    for wrap in wraps: said = wrap.format(said) if "\n" not in said else said
    assert clean_answer(said) == answer


@given(st.text(max_size=60))
@settings(max_examples=80)
def test_any_text_is_read(text):
    for clean in (clean_answer, clean_question):
        once = clean(text)
        assert "\n" not in once
        assert len(once) <= len(text)
    assert declines(text) in (True, False)


SHAPES = ["{}. ", ". ", "“{}. ", "{} ", "{}", "- ", "[1]", "(", '"', "1,1", "1 111 ", "A. ", "?\n", "**", "not in the {} ", "` ", "```\n",
    "…", "清掃。", "ไม", "é", "-5 ", "a.b.", "Q: ",
          "100 200 ", "/", "the "]
TOOLS = {"sentences": split_sentences, "loose": lambda t: line_sentences(t, loose=True), "answer": clean_answer,
    "question": clean_question, "refusal": is_refusal,
         "fold": fold, "match": match_form, "span": lambda t: find_span(t, "a 5 mm"), "support": lambda t: find_support("What is it?",
         "it is 5 mm", t, 0.6)}


def cost(tool, text):
    "Processor time of the quickest of three calls."
    found = []
    for _ in range(3):
        began = time.process_time()
        tool(text)
        found.append(time.process_time() - began)
    return min(found)


@given(st.sampled_from(SHAPES), st.sampled_from(["word", "", "x y"]), st.sampled_from(sorted(TOOLS)))
@settings(max_examples=12, derandomize=True)
def test_twice_the_text_costs_little_more_than_twice(shape, filler, name):
    piece = shape.format(filler) or "x"
    tool, short = TOOLS[name], piece * (10_000 // len(piece))
    one, two = cost(tool, short), cost(tool, short * 4)
    assert two <= 4 * 2.3 * max(one, 0.004), (name, piece)


@pytest.mark.parametrize("name", sorted(TOOLS))
def test_a_long_line_comes_to_an_end(name):
    "A megabyte for what documents go through, less for replies. What is quadratic takes many minutes here."
    n = 4 if name in ("sentences", "loose") else 1
    prose, marks = "The drum of press 5 is cleaned every 14 days. " * 1500, "4f2a" * 15_000 + ". " * 15_000
    TOOLS[name]((prose + marks + "a" * 50_000 + " " * 20_000) * n)
