"A Russian, a Japanese, a German and an Arabic page through pairs and through a server: pairs, evidence, F1 and refusals as for English."
import json
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest
from aiohttp import web
from hypothesis import given, settings, strategies as st

from distillery.core.config import load_config
from distillery.core.metrics import answer_match, keyword_coverage, length_compliant, token_f1
from distillery.core.records import Document
from distillery.core.reply import is_refusal
from distillery.core.script import count_words, fold, fold_places, language_of, languages, words
from distillery.core.sentences import split_sentences
from distillery.engine.source import Source
from distillery.pairs.chunk import chunk_documents, count_tokens
from distillery.pairs.generate import generate_pairs
from distillery.pairs.imports import read_pairs
from distillery.pairs.judge import evidence_score
from distillery.pairs.limits import find_span
from distillery.pairs.prompts import closing, refusal_of
from distillery.pairs.slots import focus_sentences
from distillery.teachers.journal import Journal
from distillery.teachers.openai import OpenAITeacher
from distillery.workbook.checks import check_language, source_languages

from teachers_server import Server, whole

CASES = Path(__file__).resolve().parents[2] / "shared/cases/19_documents_in_other_scripts"


class Fact(NamedTuple):
    "A sentence with what a teacher makes of it: question, wording, the answer as it stands and as the teacher writes it, a near miss."
    sentence: str
    question: str
    wording: str
    answer: str
    said: str
    near: str


FACTS = {
    "ru": [Fact("Барабан чистят тёплой водой каждые 14 дней.", "Вопрос: Как часто чистят барабан водой?",
    "Через сколько дней чистят барабан?",
                "каждые 14 дней", "Ответ: «каждые 14 дней»", "каждые 15 дней"),
           Fact("Ролик протирают сухой тканью после каждой смены.", "1. Чем протирают ролик после смены?", "Какой тканью протирают ролик?",
                "сухой тканью", "**сухой тканью**", "мокрой тканью")],
    "ja": [Fact("ドラムは14日ごとにぬるま湯で清掃します。", "質問：ドラムは何日ごとに清掃しますか？", "何日おきにドラムを清掃しますか？",
                "14日ごと", "答え：14日ごと", "15日ごと"),
           Fact("ローラーは毎月乾いた布で拭いてください。", "「ローラーは毎月何で拭きますか？」", "毎月ローラーを拭くものは何ですか？",
                "乾いた布", "「乾いた布」", "濡れた布")],
    "de": [Fact("Die Trommel wird alle 14 Tage mit Wasser gereinigt.", "Frage: Wie oft wird die Trommel gereinigt?",
    "In welchem Abstand reinigt man die Trommel?",
                "alle 14 Tage", "Antwort: alle 14 Tage", "alle 15 Tage"),
           Fact("Überprüfen Sie die Walze nach jeder Schicht mit der Lehre.", "Womit überprüfen Sie die Walze nach der Schicht?",
                "Mit welchem Werkzeug prüft man die Walze?", "mit der Lehre", "„mit der Lehre“", "mit der Waage")],
    "ar": [Fact("تنظف الاسطوانة كل 14 يوما بالماء الدافئ.", "سؤال: كل كم يوم تنظف الاسطوانة؟", "بعد كم يوما يجب تنظيف الاسطوانة؟",
                "كل 14 يوما", "الجواب: كل 14 يوما", "كل 15 يوما"),
           Fact("تمسح البكرة كل شهر بقطعة قماش جافة.", "بماذا تمسح البكرة كل شهر؟", "ما الذي تمسح به البكرة شهريا؟",
                "بقطعة قماش جافة", "«بقطعة قماش جافة»", "بقطعة قماش مبللة")],
}
LOOSE = {"generation_limits.min_answer_length": 4, "prompts.pack": "technical-docs", "dataset.variations_per_question": 2,
         "dataset.refusal_share": 0.3, "dataset.difficulty_mix": {"easy": 1.0, "medium": 0.0, "hard": 0.0}}


class Speaker(Server):
    "A chat server that answers in one language, with the decorations of a chat model."

    def __init__(self, language):
        super().__init__()
        self.language, self.prompts = language, []

    async def good(self, request, body):
        prompt = body["messages"][-1]["content"]
        self.prompts.append(prompt)
        return web.json_response(whole(self.speak(prompt)) | {"usage": {}})

    def speak(self, prompt):
        clean = lambda question: question.split(":", 1)[-1].split("：", 1)[-1].removeprefix("1.").strip(" 「」")
        for f in FACTS[self.language]:
            if "must be answered by this sentence" in prompt and f.sentence in prompt.split("this sentence")[1]: return f.question
        for f in FACTS[self.language]:
            asked = next((q for q in (clean(f.question), f.wording) if q in prompt), None)
            if asked and "Passage:" not in prompt: return f.wording
            if asked: return f.said if f.sentence in prompt else languages()[self.language]["refusal"]
        return "?"


def page_of(language):
    "Each fact on a page of its own."
    return [Document(doc_id=f"{language}-{i}", path=f"{language}/{i}.md", title=str(i), text=f"# {i}\n\n{f.sentence}",
        mime="text/markdown", digest=str(i))
            for i, f in enumerate(FACTS[language])]


@pytest.mark.parametrize("language", FACTS)
def test_a_page_in_another_language_through_a_server(language, tmp_path):
    config = load_config(overrides=LOOSE)
    chunks = chunk_documents(page_of(language), min_tokens=1)
    with Speaker(language) as server:
        made = generate_pairs(chunks, OpenAITeacher(server.url, "m"), Journal(tmp_path / "j.sqlite"), config)
    kinds = Counter(p.kind for p in made.pairs)
    assert kinds["answer"] == 4, made.rejected
    assert kinds["refusal"] >= 1, made.rejected
    text = {c.chunk_id: c for c in chunks}
    for p in made.pairs:
        chunk = text[p.chunk_id]
        if p.kind == "refusal": assert p.answer == languages()[language]["refusal"]
        else:
            assert chunk.text[p.evidence.start - chunk.start : p.evidence.end - chunk.start] == p.answer
            assert p.answer in [f.answer for f in FACTS[language]]
            assert evidence_score(p, chunk) == 1.0
    about = languages()[language]
    assert {prompt.rpartition("\n\n")[2] for prompt in server.prompts} <= {about["ask"], about["answer"]}


@pytest.mark.parametrize("language", FACTS)
def test_a_file_of_pairs_in_another_language(language, tmp_path):
    rows = [{"question": f.wording, "answer": f.answer, "context": f.sentence} for f in FACTS[language]]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), "utf-8")
    found = read_pairs(tmp_path / "pairs.jsonl")
    chunks = {c.chunk_id: c for c in found.chunks}
    assert [p.evidence.text for p in found.pairs] == [f.answer for f in FACTS[language]]
    assert all(evidence_score(p, chunks[p.chunk_id]) == 1.0 for p in found.pairs)
    told = source_languages(Source("pairs", tmp_path / "pairs.jsonl"), load_config())
    assert told == {language: 2}
    check, = check_language("builtin:extractive", told, teaches=True)
    assert not check.ok
    assert languages()[language]["name"] in check.found


@pytest.mark.parametrize("language", FACTS)
def test_scores_in_another_language_are_as_fine_as_in_english(language):
    for f in FACTS[language]:
        assert answer_match(f.answer + ".", f.answer) == answer_match(f"«{f.answer}»", f.answer) == 1
        assert answer_match(f.near, f.answer) == 0
        assert 0 < token_f1(f.near, f.answer) < 1 == token_f1(f.answer, f.answer)
        assert 0 < keyword_coverage(f.near, f.answer) < 1
        assert not length_compliant(f.sentence * 20, 99, 50)
        assert length_compliant(f.sentence, 2, 50)
    assert is_refusal(languages()[language]["refusal"])
    assert not any(is_refusal(f.sentence) for f in FACTS[language])


@pytest.mark.parametrize(("name", "n"), [("ar", 60), ("de", 80), ("el", 60), ("hi", 40), ("ja", 80), ("ko", 40), ("ru", 60), ("th", 40)])
def test_pages_are_cut_into_their_sentences(name, n):
    if not CASES.exists(): pytest.skip("the cases are not here: ../shared/cases is no part of the project")
    text = (CASES / f"{name}.md").read_text("utf-8")
    document = Document(doc_id="d", path="d.md", title="d", text=text, mime="text/markdown", digest="d")
    chunks = chunk_documents([document])
    assert language_of(text) == name
    assert len(split_sentences(text)) == n
    assert max(count_tokens(c.text) for c in chunks) <= 220
    assert all(focus_sentences(c) for c in chunks)


@pytest.mark.parametrize(("text", "n"), [
    ("Am 3. Mai prüft Dr. Kern die Presse. Übrigens, z.B. so! Ändert er sie? Ja.", 4), ("J. R. R. Tolan gibt 1.500 bar an. Er irrt.", 2),
    ("他说：“好。”然后走了。价格是3．5元！真的吗？", 4), ("「はい。」と彼は言った。終わり。", 2), ("यह लाल है। वह नीला है॥ क्यों?", 3),
    ("ما الضغط؟ هو 12 بار. انتهى.", 3), ("Πότε; Κάθε μέρα. Τι είναι;", 3), ("Он родился в 1900 г. в Омске, т.е. давно. Там он жил.", 2),
    ("¿Cuándo? ¡Hoy! «Sí.» Él lo dijo.", 4), ("Версия 2.1 вышла. Да.", 2)])
def test_sentences_of_other_languages(text, n):
    assert len(split_sentences(text)) == n


@pytest.mark.parametrize(("text", "n"), [
    ("გაწმინდეთ დოლი. არ გამოიყენოთ. კარგი.", 3), ("ရေဖြင့်ဆေးပါ။ အဝတ်ဖြင့်သုတ်ပါ။", 2), ("ከበሮው ይጸዳል። ለምን፧ ስለዚህ።", 3),
    ("Raven 74を清掃します。Use water only.布で拭く。OK?はい。", 5), ("清洗一次.每月擦拭.", 2),
    ("Il dit : « Oui. » Puis il part. « Et ? » dit-elle.", 3),
    ("Am 3. 5. 2024 kam er. Gut.", 2), ("डॉ. शर्मा ने रु. 500 दिए। ठीक।", 2), ("Zob. rozdz. 3, tj. Wstęp. Łatwe.", 2),
    ("EE. UU. es grande. Sí.", 2), ("Šroub č. 5 tzv. Imbus. Žádný.", 2), ("Gelb, z. B. Öl, u. a. Fett, d. h. alles. Gut.", 2),
    ("Ver.2.5を使う。No.5です。1.5mm。", 3), ("¿Qué? ¡Ya! İki kişi. Şimdi!", 4), ("Wait... Then? It is at https://a.b/c.d?x=1.", 3)])
def test_sentences_of_still_other_languages(text, n):
    assert len(split_sentences(text)) == n


@pytest.mark.parametrize(("text", "code"), [
    ("Trống được làm sạch 14 ngày một lần.", "vi"), ("Bęben czyści się wodą. Łatwo to zrobić.", "pl"),
    ("Şimdi düğmeyi çevirin, ışık yanar.", "tr"),
    ("Buben čistěte vlhkým hadříkem, šrouby utáhněte.", "cs"),
    ("A dobot két hetente tisztítani kell, és nem szabad olajozni, hogy ne csússzon.", "hu"),
    ("Rumpu on puhdistettava ja se ei ole öljyttävä.", "fi"), ("Łukasz Dąbrowski is the owner of the press.", "en"), ("Łódź", "en")])
def test_a_language_without_its_commonest_words_is_known_by_its_letters(text, code):
    assert language_of(text) == code


@pytest.mark.parametrize(("text", "code"), [
    ("Die Pumpe ist nicht für den Betrieb mit Öl und wird von der Firma geprüft.", "de"),
    ("La pompe est dans le local et ne doit pas être ouverte.", "fr"),
    ("La bomba no se debe abrir y está en el sótano con los filtros.", "es"), ("The pump is in the cellar and must not be opened.", "en"),
    ("Насос стоїть у підвалі, і його не відкривають.", "uk"), ("펌프는 지하실에 있습니다.", "ko"), ("泵在地下室。", "zh"),
    ("ปั๊มอยู่ในห้องใต้ดิน", "th"),
    ("12 bar", "en"), ("", "en"), ("Raven 74 GmbH", "en")])
def test_the_language_of_a_text(text, code):
    assert language_of(text) == code


def test_english_prompts_have_no_last_line():
    assert closing("ask", "en") == closing("answer", "en") == ""
    assert refusal_of("The drum is cleaned every 14 days.") == "The passage does not tell."
    assert "Burmese" in closing("ask", "my")


SCRIPTS = st.sampled_from(["ab", "éü", "жд", "λς", "سم", "कि", "清", "か", "가", "ไม", "1", " ", ".", "。", "؟", "-", "–", "’", "ﬁ",
    "\u00ad", "e\u0301"])
TEXTS = st.lists(SCRIPTS, max_size=30).map("".join)


@given(TEXTS)
@settings(max_examples=80)
def test_every_script_keeps_its_places(text):
    "Sentences hold all that is written, folded text knows where it came from, and what is quoted is found."
    spans = split_sentences(text)
    assert "".join("".join(text[a:b] for a, b in spans).split()) == "".join(text.removeprefix("- ").split())
    folded = fold_places(text)
    assert all(fold(text[a:b])[-1:] == c.strip() or c == " " or not fold(text[a:b]) or c in fold(text[a:b]) for c, a, b in zip(*folded,
        strict=True))
    assert fold(fold(text)) == fold(text)
    assert bool(words(text)) == any(c.isalnum() for c in fold(text))
    assert count_words(text) <= len(text)
    chunk = chunk_documents([Document(doc_id="d", path="d", title="d", text=text, mime="", digest="d")], max_tokens=5, min_tokens=0)
    assert all(text[c.start : c.end] == c.text for c in chunk)


@given(st.sampled_from([f.answer for some in FACTS.values() for f in some]), TEXTS, TEXTS)
@settings(max_examples=60)
def test_an_answer_set_off_by_spaces_is_found_in_any_surroundings(answer, before, after):
    text = f"{before} | {answer} | {after}"
    a, b = find_span(text, answer)
    assert fold(text[a:b]).lower() == fold(answer).lower()
