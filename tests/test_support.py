"Answers in the teacher's own words: right ones are kept, those of another question are not; halves of SQuAD by article."
import gzip
import hashlib
import json
from collections import defaultdict
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings, strategies as st

from distillery.core.config import load_config
from distillery.core.script import language_of
from distillery.core.records import Chunk, Document, Pair, Paraphrase
from distillery.pairs.chunk import chunk_documents
from distillery.pairs.generate import generate_pairs
from distillery.pairs.judge import evidence_score
from distillery.pairs.limits import NOT_THERE, evidence_or_problem
from distillery.pairs.support import find_support, missing_fact, numbers_in, supported
from distillery.teachers.journal import Journal
from distillery.teachers.protocol import ChatResult

SQUAD = Path(__file__).resolve().parents[2] / "shared/data/squad/squad11_dev_qa.jsonl.gz"
PARAPHRASES = [json.loads(line) for line in (Path(__file__).parent / "data/paraphrases.jsonl").read_text("utf-8").splitlines()]
LEAST = load_config().validation.min_support


def half(title): return int(hashlib.sha256(title.encode()).hexdigest(), 16) % 2  # the threshold was chosen on half 0


def cases(rows, seed, n):
    "Right answers, answers of another question about the same document, and about the same passage."
    rng, by_title, by_passage = Random(seed), defaultdict(list), defaultdict(list)
    for r in rows.values():
        by_title[r["title"]].append(r)
        by_passage[r["passage_id"]].append(r)
    found = defaultdict(list)
    for r in rng.sample(list(rows.values()), n):
        other = lambda some, r=r: [x["answers"][0] for x in some if x["question"] != r["question"] and x["answers"][0] not in r["answers"]]
        found["right", half(r["title"])].append((r, r["answers"][0]))
        found["other, same document", half(r["title"])].append((r, rng.choice(other(by_title[r["title"]]))))
        if near := other(by_passage[r["passage_id"]]): found["other, same passage", half(r["title"])].append((r, rng.choice(near)))
    for p in PARAPHRASES: found["paraphrase", half(rows[p["id"]]["title"])].append((rows[p["id"]], p["answer"]))
    return found


@pytest.mark.skipif(not SQUAD.exists(), reason="SQuAD's answers lie outside the repository and are not here")
def test_support_on_squad(record_property, capsys):
    rows = {r["id"]: r for r in map(json.loads, gzip.open(SQUAD, "rt", encoding="utf-8"))}
    share = {key: sum(bool(supported(r["question"], a, r["passage"], LEAST)) for r, a in some) / len(some)
             for key, some in cases(rows, 11, 200).items()}
    for (name, side), value in share.items(): record_property(f"{name}, half {side}", round(value, 3))
    with capsys.disabled(): print({f"{name}, {('tuned', 'held out')[side]}": round(v, 3) for (name, side), v in sorted(share.items())})
    assert share["right", 1] >= 0.7
    assert share["other, same document", 1] <= 0.05
    assert share["other, same passage", 1] <= 0.5  # copied answers of neighbouring sentences: only a reader tells all of them apart
    assert share["paraphrase", 1] >= 0.5
    assert len(PARAPHRASES) >= 60


PASSAGE = ("The drum is cleaned every 14 days with water. The lid must not be opened while it turns. "
           "The roller is wiped each month with a dry cloth.")


@pytest.mark.parametrize(("question", "answer", "kept"), [
    ("How often is the drum cleaned?", "They clean it each 14 days", True), ("How often is the drum cleaned?",
    "They clean it each 15 days", False),
    ("How often is the drum cleaned?", "With a dry cloth each month", False), ("What must not be done while the drum turns?",
    "Nobody may open the lid", True),
    ("What may be done while the drum turns?", "The lid may be opened", False), ("What wipes the roller each month?",
    "Jo Brandt does with a cloth", False),
    ("What is the roller wiped with?", "A cloth that is dry", True), ("What is the roller wiped with?", "", False), ("", "A dry cloth",
    True)])
def test_facts_names_and_negations(question, answer, kept):
    assert bool(supported(question, answer, PASSAGE, LEAST)) == kept
    found = evidence_or_problem(PASSAGE, 100, answer, None, "easy", question, LEAST)
    if question and answer: assert (found != NOT_THERE) == kept
    if isinstance(found, Paraphrase): assert PASSAGE[found.start - 100 : found.end - 100] == found.text


@pytest.mark.parametrize(("passage", "question", "right", "wrong"), [
    ("Die Trommel wird alle 14 Tage gereinigt. Der Deckel bleibt zu.", "Wie oft wird die Trommel gereinigt?",
    "Man reinigt sie alle 14 Tage", "Man reinigt sie alle 15 Tage"),
    ("Барабан чистят каждые 14 дней. Крышку не открывают.", "Как часто чистят барабан?", "Раз в каждые 14 дней", "Раз в каждые 15 дней"),
    ("ドラムは14日ごとに清掃します。ふたは開けません。", "ドラムはいつ清掃しますか？", "14日ごとの清掃です", "15日ごとの清掃です")])
def test_support_in_other_languages(passage, question, right, wrong):
    assert supported(question, right, passage, 0.5)
    assert not supported(question, wrong, passage, 0.5)


WORDS = st.lists(st.sampled_from(["drum", "lid", "14", "3.5 mm", "not", "Raven", "清掃", "тканью", "cleaned", "."]), min_size=1,
    max_size=12).map(" ".join)


@given(WORDS, WORDS, WORDS)
@settings(max_examples=80)
def test_what_is_supported_has_its_numbers_there(question, answer, text):
    found = supported(question, answer, text, LEAST)
    if found:
        assert numbers_in(answer) <= numbers_in(text[found.start : found.end])
        assert missing_fact(answer, text[found.start : found.end], language_of(text)) is None
    best = find_support(question, answer, text, LEAST)
    assert best is None or (0 <= best.score <= 1 and -1 <= best.link <= 0)


def test_a_stored_answer_in_other_words_scores_as_evidence():
    chunk = Chunk(chunk_id="c", doc_id="d", heading="h", text=PASSAGE, start=0, end=len(PASSAGE), category="k")
    pair = Pair(id="p", doc_id="d", chunk_id="c", family_id="f", category="k", difficulty="easy", question="How often is the drum cleaned?",
                answer="They clean it each 14 days", kind="answer", teacher="t", template="")
    assert (evidence_score(pair, chunk, LEAST), evidence_score(pair, chunk)) == (1.0, 0.0)
    assert evidence_score(pair.model_copy(update={"answer": "It has wheels", "scores": {"judged": 1.0}}), chunk, LEAST) == 1.0


class Talker:
    "A teacher that answers in its own words, declines in a way of its own, and says yes when it is asked to judge."
    name, identity = "talker", {"model": "talker"}
    instant = True

    def __init__(self, verdict="yes"): self.verdict, self.judged = verdict, []

    async def stream(self, requests):
        for r in requests: yield ChatResult(r.key, self.reply(r), "stop")

    def reply(self, request):
        prompt = request.messages[0].content
        if "yes or no" in prompt:
            self.judged.append(prompt)
            return self.verdict
        task, unknown = request.task, "Hm, no such thing in these lines."
        if task.kind == "ask": return "How often is the drum cleaned?" if "drum" in task.sentence else "How heavy is the big press?"
        if "drum" in task.question: return "They do it each 14 days" if "drum" in task.passage else unknown
        return "As much as a whole house" if "press" in task.passage else unknown

    async def close(self): ...


@pytest.mark.parametrize(("judge", "verdict", "answers", "refusals"), [("rules", "yes", 1, 0), ("teacher", "yes", 2, 2), ("teacher",
    "No.", 1, 0)])
def test_own_words_are_kept_by_rule_and_what_rules_leave_open_by_a_judge(judge, verdict, answers, refusals, tmp_path):
    config = load_config(overrides={"validation.judge": judge, "dataset.variations_per_question": 1, "dataset.refusal_share": 0.49,
        "prompts.pack": "technical-docs",
                                    "dataset.difficulty_mix": {"easy": 1.0, "medium": 0.0, "hard": 0.0}})
    texts = ["The drum is cleaned every 14 days with water.", "The big press weighs nine tonnes in all, as heavy as elephants."]
    documents = [Document(doc_id=str(i), path=f"{i}.md", title=str(i), text=t, mime="text/markdown", digest=str(i)) for i,
        t in enumerate(texts)]
    teacher = Talker(verdict)
    made = generate_pairs(chunk_documents(documents, min_tokens=0), teacher, Journal(tmp_path / "j.sqlite"), config)
    kinds = [p.kind for p in made.pairs]
    assert bool(teacher.judged) == (judge == "teacher")
    assert kinds.count("answer") >= answers if answers > 1 else kinds.count("answer") == answers
    assert bool(kinds.count("refusal")) == bool(refusals)
    first = next(p for p in made.pairs if p.kind == "answer")
    assert (first.answer, first.evidence.text) == ("They do it each 14 days", texts[0])
