"The RAG card: planted failures are told apart, what was taken away is refused, a threshold is chosen on other documents."
from pathlib import Path
from types import SimpleNamespace

import pytest
from real_documents import audio_docs, needs_data, stories

from distillery.core.config import load_config, restrict
from distillery.core.files import read_jsonl, write_jsonl
from distillery.core.records import Chunk, Pair
from distillery.pairs.dataset import make_example
from distillery.questions.question import NOT_RUN
from distillery.questions.rag.decision import RAG, blame, outcome_table, rag_answers, rag_decision, rag_decisions, refusal_table
from distillery.questions.rag.stages import RagAnswer, Without, ask_with_passages, rag_queries, rag_stages
from distillery.questions.results import Results
from distillery.retrieval.rag import RagCase
from distillery.retrieval.search import Bm25Searcher
from distillery.teachers.extractive import REFUSAL, RuleTeacher

KEPT = Path(__file__).parent / "data/run"
CONFIG = load_config(overrides={"decisions.resamples": 999})


class Reader(RuleTeacher):
    "Answers from the passages it is shown what it knows of their machines; refuses otherwise, if it is honest."
    chat, context = SimpleNamespace(encode=lambda messages: messages[0].content.split()), 10_000

    def __init__(self, sees: int = 99, honest: bool = True) -> None:
        self.name, self.identity, self.sees, self.honest, self.asked = "reader", {"model": "reader"}, sees, honest, []

    def reply(self, request) -> str:
        machine = request.task.question.split()[-1].rstrip("?")
        self.asked.append(request.key)
        shown = [p for p in request.task.passage.split("\n\n")[: self.sees] if f"The {machine} " in p]
        return shown[0].split()[-2] + " months" if shown else REFUSAL if self.honest else "77 months"


def shelf(n: int = 60):
    "Machines with their age, and a question about each."
    texts = {f"p{i}": f"The machine{i} of hall {i % 7} was built and has run for {i + 2} months." for i in range(n)}
    asks = "For how long has run the machine{}?".format
    case = lambda i: RagCase(id=f"q{i}", question=asks(i), golds=[f"{i + 2} months"], relevant={f"p{i}": 1.0}, cluster=f"d{i // 3}")
    cases = [case(i) for i in range(n)]
    return texts, cases


def asked(reader, search=None, ks=(1, 3), n=60):
    "All questions and their twins."
    texts, cases = shelf(n)
    words = Bm25Searcher(list(texts), list(texts.values()))
    return ask_with_passages(reader, {c.id: "test" for c in cases}, cases, search(words) if search else words, words, texts, ks)


def test_retrieval_helps_who_reads_and_one_passage_is_enough():
    rows = asked(Reader())
    made = rag_decision(rows, "test", CONFIG)
    assert made.sentence.startswith("Show it 1 passage on test questions: token F1 1.000")
    assert {c.a: c.diff for c in made.contrasts}["no passages"] == -1
    assert {r.outcome for r in rows if r.taken} == {"refused rightly"}
    assert {r.support for r in rows if r.k and not r.taken} == {1.0}


def test_a_search_that_loses_passages_is_blamed_and_so_is_a_reader_that_sees_the_first_only():
    lossy = lambda words: Without(words, {f"For how long has run the machine{i}?": frozenset({f"p{i}"}) for i in range(0, 60, 2)})
    found = {row["shown"]: row for row in outcome_table(asked(Reader(), lossy), "test", CONFIG)}
    assert str(found["1 passage"]["retrieval failed"]).startswith("0.50 ")
    assert str(found["1 passage"]["reading failed"]).startswith("0.000")
    late = lambda words: SimpleNamespace(ids=words.ids, identity={}, rank=lambda q, k, fresh=False: turned(words.rank(q, 3)))
    rows = asked(Reader(sees=1), late, ks=(3,))
    assert {r.outcome for r in rows if r.k == 3 and not r.taken} == {"reading failed"}
    assert blame(rows, "test", CONFIG)[0].ci_low > 0.5


def turned(hits):
    "The best passage comes last."
    return type(hits)(hits.ids, hits.places[:, ::-1], hits.scores[:, ::-1])


def test_who_invents_is_unfaithful_and_is_held_back_by_the_score():
    rows = asked(Reader(honest=False))
    assert {r.outcome for r in rows if r.taken} == {"should have refused"}
    assert {r.support for r in rows if r.taken} == {0.0}
    own, by_score = refusal_table([r for r in rows if r.k in (0, 1)], "test", CONFIG)
    assert str(own["refused, nothing fits"]).startswith("0.000")
    assert float(str(by_score["refused, nothing fits"]).split()[0]) > 0.9
    assert float(str(by_score["answered, something fits"]).split()[0]) > 0.9


def test_passages_that_do_not_fit_are_not_shown():
    texts, cases = shelf(12)
    words = Bm25Searcher(list(texts), list(texts.values()))
    short = lambda message: len(message.split()) < 60
    rows = ask_with_passages(Reader(), {c.id: "test" for c in cases}, cases, words, words, texts, (1, 10), room=short)
    assert {len(r.retrieved) for r in rows if r.k == 10 and not r.taken} == {3}
    assert {r.outcome for r in rows if r.k == 10 and not r.taken} == {"right"}


def dataset(folder: Path, most: int = 40) -> Path:
    "Test and recall examples of the kept run."
    pairs = [p for p in read_jsonl(KEPT / "selected.jsonl", Pair) if p.kind == "answer"][:: 40][:most]
    for name, mine in (("test", pairs[::2]), ("recall", pairs[1::2])):
        write_jsonl(folder / f"{name}.jsonl", [make_example(name, p, None) for p in mine])
    return folder


@pytest.fixture
def ask(tmp_path, monkeypatch):
    "Run the stage with some settings and a reader, in a scratch folder."
    monkeypatch.setattr("distillery.teachers.onnx.OnnxTeacher", lambda folder, device: Reader())
    monkeypatch.setattr("distillery.questions.rag.stages.DenseSearcher", lambda ids, texts, embedder: Bm25Searcher(ids, texts))

    def run(settings, scratch="scratch", say=lambda *now: None):
        config = load_config(overrides=settings)
        (stage,) = rag_stages(SimpleNamespace(kind="documents"), config, tmp_path)
        (tmp_path / scratch).mkdir(exist_ok=True)
        needs = {"documents": KEPT, "select": KEPT, "dataset": dataset(tmp_path), "export-fp32": tmp_path}
        stage.run(SimpleNamespace(config=restrict(config, stage.reads), needs=needs, out=tmp_path, scratch=tmp_path / scratch, say=say))
        return read_jsonl(tmp_path / "rows.jsonl", RagAnswer)
    return run


def test_what_was_answered_before_a_kill_is_not_asked_again(ask, monkeypatch):
    asked, plain = [], ask_with_passages
    monkeypatch.setattr("distillery.questions.rag.stages.ask_with_passages",
                        lambda student, sets, cases, *a, **how: asked.append(len(cases)) or plain(student, sets, cases, *a, **how))
    whole, before = ask({"decisions.rag_passages": [1]}, "one"), list(asked)

    def killed(what, done, of):
        if done >= 16: raise KeyboardInterrupt

    asked.clear()
    with pytest.raises(KeyboardInterrupt): ask({"decisions.rag_passages": [1]}, "two", killed)
    assert len(asked) == 2
    assert [r.model_dump() for r in ask({"decisions.rag_passages": [1]}, "two")] == [r.model_dump() for r in whole]
    assert asked == before


def test_the_settings_decide_what_is_asked(ask, tmp_path):
    seen = []
    one = {"decisions.rag_passages": [1]}
    for i, settings in enumerate((one, {"decisions.rag_passages": [1, 3]}, {**one, "decisions.rag_questions": 5})):
        rows = ask(settings, str(i))
        seen.append(({r.k for r in rows}, len({r.id for r in rows})))
    assert [ks for ks, _ in seen] == [{0, 1}, {0, 1, 3}, {0, 1}]
    assert seen[0][1] > 20
    assert seen[2][1] == 10  # five of each set
    assert rag_stages(None, load_config(), tmp_path) == []
    assert RAG.why_not(Results(KEPT)) == NOT_RUN
    assert "decisions.rag_passages=[1, 3, 5, 10]" in RAG.command()


def test_a_question_keeps_its_passage_in_other_words_and_a_passage_its_duplicate():
    row = {"doc_id": "a", "chunk_id": "a1", "family_id": "f", "category": "c", "difficulty": "easy", "teacher": "t"}
    pair = Pair(id="1", question="How often is the eastern pump serviced?", answer="every six months", **row)
    says = "The eastern pump is serviced every six months by the night shift."
    chunk = lambda name, text: Chunk(chunk_id=name, doc_id=name[0], heading="", text=text, start=0, end=len(text), category="c")
    asked, left = rag_queries([make_example("recall", pair, None, question="The eastern pump is serviced how often?")], [pair],
                              [chunk("a1", says), chunk("b1", f"Of May. {says}"), chunk("c1", "The western pump is new.")])
    assert asked.queries[0].relevant == {"a1": 1.0, "b1": 1.0}
    assert left["with a duplicate"] == 1


SMALL = {"decisions.rag_passages": [1, 3], "decisions.rag_questions": 24, "dataset.questions_per_chunk": 3, "sft.epochs": 1,
         "export.variants": ["fp32"], "decisions.teacher_levels": [], "decisions.temperatures": [], "decisions.index_sizes": [],
         "embedder.tune_steps": 0, "embedder.queries": 8, "context.budgets": [], "evaluation.max_new_tokens": 16}


def real_cards(monkeypatch, place: Path, docs: Path | None, settings: dict) -> tuple[Results, dict]:
    "Run folder and cards of a small run, whose student is shown one and three passages."
    from distillery import run

    monkeypatch.chdir(place)
    run(*[docs] * bool(docs), settings={**SMALL, **settings})
    results = Results(next((place / "runs").glob("*/rag")).parent)
    assert {r.k for r in rag_answers(results)} == {0, 1, 3}
    return results, {d.name: d for d in rag_decisions(results, load_config())}


@pytest.mark.slow
def test_a_real_student_has_both_cards(tmp_path, monkeypatch):
    "Pages of the built-in handbook."
    _, cards = real_cards(monkeypatch, tmp_path, None, {"documents.include": ["*-1.md"]})
    assert "rag" in cards


@pytest.mark.slow
@needs_data
@pytest.mark.parametrize(("make", "per_chunk"), [(audio_docs, 2), (stories, 1)], ids=["pages", "stories"])
def test_documents_of_other_people_have_a_card_without_a_question_that_anybody_wrote(make, per_chunk, tmp_path, monkeypatch):
    "What is asked comes from the rules of the built-in teacher, what is found from all passages of the folder."
    (tmp_path / "docs").mkdir()
    rules = {"teacher.model": "builtin:extractive", "dataset.questions_per_chunk": per_chunk, "selection.max_pairs": 300}
    results, cards = real_cards(monkeypatch, tmp_path, make(tmp_path / "docs"), rules)
    assert {name.removesuffix("_recall") for name in cards} == {"rag"}
    for card in cards.values():
        print(card.sentence)
        assert len(card.levels) == 3
        assert all(e.ci_low <= e.mean <= e.ci_high for e in card.estimates)
    assert len({r.id for r in rag_answers(results)}) >= 20
    assert len(read_jsonl(results.path / "chunks.jsonl", Chunk)) > 200
