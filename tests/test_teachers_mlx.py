"""The MLX teacher: the same text as the other engines in full precision, answers in 8 and 4 bits, and forms of a teacher on one card."""

import asyncio
import json
import shutil
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mlx_lm", reason="mlx-lm is not installed: pip install 'distillery[mlx]'")

from distillery.core.config import load_config
from distillery.core.errors import DistilleryError
from distillery.core.extras import MissingExtra
from distillery.core.files import read_jsonl
from distillery.core.records import Chunk
from distillery.exporting.export import build_onnx
from distillery.teachers import mlx
from distillery.teachers.local import TransformersTeacher
from distillery.teachers.mlx import MlxTeacher, check_mlx, convert_mlx, group_size, load_mlx, rope_settings
from distillery.teachers.onnx import OnnxTeacher
from distillery.teachers.open import builtin_dir
from distillery.teachers.protocol import Task, ask_all, user_request
from distillery.pairs.stages import pairs_stages
from distillery.pairs.gold import read_gold
from distillery.engine.source import open_source
from distillery.engine.plan import Plan
from distillery.questions.quantization.decision import teacher_decision
from distillery.pages.report import build_report
from distillery.questions.results import TeacherRow, open_results
from distillery.questions.quantization.stages import reference_slots, teacher_stages
from distillery.teachers.open import teacher_weights

sys.path.insert(0, str(Path(__file__).parent))
from teachers_model import micro_model

TINY, KEPT = builtin_dir("tiny"), Path(__file__).parent / "data/run"
SETTINGS = [{}, {"repetition_penalty": 1.3}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 5}, {"temperature": 0.8, "top_p": 0.7},
            {"temperature": 2.0, "top_k": 50, "top_p": 0.9, "repetition_penalty": 1.1}]
REQUESTS = [user_request(str(i), "The Raven 74 stands in Hall 3. " * (i % 4) + "Where?", seed=i, max_tokens=12 + i, **s)
            for i, s in enumerate(SETTINGS)]


@pytest.fixture(scope="module")
def micro(tmp_path_factory):
    return micro_model(tmp_path_factory.mktemp("micro"))


@pytest.fixture(scope="module")
def forms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("forms")
    return {bits: convert_mlx(TINY, folder / str(bits), bits) for bits in (None, 8, 4)}


@pytest.fixture(scope="module")
def prompts():
    "What a run asks its teacher: 10 slots of the shipped handbook, an answer and a question each, greedy."
    from distillery.pairs.asking import make_request
    from distillery.pairs.prompts import load_pack
    config, source = load_config(preset="handbook"), open_source(None, None, "builtin")
    chunks = read_jsonl(KEPT / "chunks.jsonl", Chunk)
    pack, made = load_pack(config.prompts.pack), []
    for row, chunk in reference_slots(read_gold(source.gold), chunks, 10, 88):
        for task in (Task("answer", passage=chunk.text, question=row["wordings"][0], difficulty=row["difficulty"]),
                     Task("ask", passage=chunk.text, sentence=row["sentence"], difficulty=row["difficulty"])):
            made.append(replace(make_request(f"{row['id']}/{task.kind}", task, pack, config), temperature=0.0))
    return made


def texts(results):
    return [(r.text, r.finish_reason, r.completion_tokens) for r in results]


@pytest.mark.slow
def test_three_engines_write_the_same_greedy_text(prompts, forms, tmp_path):
    onnx = OnnxTeacher(build_onnx(TINY, tmp_path / "fp32", "fp32"), threads=1)
    expected = texts(ask_all(TransformersTeacher(TINY, device="cpu"), prompts))
    assert len(prompts) >= 20
    assert len({text for text, *_ in expected}) > 15
    assert texts(ask_all(onnx, prompts)) == expected
    assert texts(ask_all(MlxTeacher(TINY), prompts)) == expected
    assert texts(ask_all(MlxTeacher(forms[None]), prompts[:6])) == expected[:6]


def test_engines_agree_with_every_setting(micro):
    assert texts(ask_all(MlxTeacher(micro), REQUESTS)) == texts(ask_all(TransformersTeacher(micro, device="cpu"), REQUESTS))


def test_seeds_decide(micro):
    teacher, warm = MlxTeacher(micro), REQUESTS[2]
    once, again, other = ask_all(teacher, [warm, replace(warm, key="again"), replace(warm, key="other", seed=99)])
    assert once.text == again.text != other.text
    assert ask_all(MlxTeacher(micro), [warm])[0].text == once.text


def test_a_stop_text_ends_an_answer(micro):
    teacher, plain = MlxTeacher(micro), ask_all(MlxTeacher(micro), [user_request("x", "Where?", max_tokens=12)])[0]
    cut = ask_all(teacher, [user_request("x", "Where?", max_tokens=12, stop=(plain.text[3:5],))])[0]
    assert (cut.text, cut.finish_reason) == (plain.text[: plain.text.find(plain.text[3:5])].strip(), "stop")


def test_logprobs_are_the_models_own(micro):
    request = user_request("x", "Where?", max_tokens=6, logprobs=297, temperature=2.0, repetition_penalty=2.0)
    ours, theirs = (ask_all(t, [request])[0] for t in (MlxTeacher(micro), TransformersTeacher(micro, device="cpu")))
    np.testing.assert_allclose(np.exp(np.array(ours.logprobs.logprobs)).sum(-1), 1, atol=1e-6)  # all 297 tokens of the vocabulary
    np.testing.assert_allclose(ours.logprobs.logprobs, theirs.logprobs.logprobs, atol=1e-3)
    assert len(ours.logprobs.ids) == ours.completion_tokens


@pytest.mark.slow
def test_fewer_bits_answer_and_are_smaller(forms, prompts):
    sizes = {bits: (form / "model.safetensors").stat().st_size for bits, form in forms.items()}
    exact = texts(ask_all(MlxTeacher(forms[None]), prompts[:5]))
    few = {bits: ask_all(MlxTeacher(forms[bits]), prompts[:5]) for bits in (8, 4)}
    assert all(r.ok and r.text for some in few.values() for r in some)
    assert sum(a == b for a, b in zip(texts(few[8]), exact, strict=True)) >= 4
    assert sizes[4] < 0.2 * sizes[None] < sizes[8] < 0.35 * sizes[None]


@pytest.mark.parametrize("bits", [8, 4])
def test_shrinking_while_loading_is_the_conversion(forms, bits):
    ids = list(range(5, 45))
    np.testing.assert_allclose(MlxTeacher(TINY, bits=bits).logits(ids), MlxTeacher(forms[bits]).logits(ids), atol=1e-4)


def test_bytes_engine_and_bits_make_the_identity(forms, tmp_path):
    plain = MlxTeacher(TINY).identity
    copy = Path(shutil.copytree(TINY, tmp_path / "copy"))
    assert MlxTeacher(copy).identity == plain != MlxTeacher(TINY, bits=4).identity
    assert plain["digest"] == TransformersTeacher(TINY, device="cpu").identity["digest"]
    assert plain != TransformersTeacher(TINY, device="cpu").identity
    assert len({MlxTeacher(form).identity["digest"] for form in forms.values()} | {plain["digest"]}) == 4


def test_a_conversion_gives_the_same_bytes_each_time(micro, tmp_path):
    "Or no answer of a shrunk teacher would be found in the journal again."
    for bits in (None, 8, 4):
        one, two = (convert_mlx(micro, tmp_path / f"{bits}-{i}", bits) for i in range(2))
        assert MlxTeacher(one).identity == MlxTeacher(two).identity


def test_a_conversion_keeps_the_tokenizer_and_never_writes_over_anything(forms):
    for form in forms.values():
        assert (form / "tokenizer.json").read_bytes() == (TINY / "tokenizer.json").read_bytes()
        assert not list(form.glob("*.py"))
    with pytest.raises(DistilleryError, match="exists already"): convert_mlx(TINY, forms[8], 8)
    with pytest.raises(DistilleryError, match="few bits already"): convert_mlx(forms[8], forms[8].parent / "again", 4)


def test_positions_are_read_where_newer_checkpoints_keep_them(tmp_path):
    "Without rope_theta at its older place mlx-lm takes a million, silently."
    folder = micro_model(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    del config["rope_theta"]
    (folder / "config.json").write_text(json.dumps(config))
    ids = list(range(5, 65))
    assert np.abs(MlxTeacher(folder).logits(ids) - TransformersTeacher(folder, device="cpu").logits(ids)).max() < 1e-3
    stretched = {"rope_type": "linear", "factor": 2.0}
    assert rope_settings({"rope_parameters": {"rope_theta": 1e4, **stretched}}) == {"rope_theta": 1e4, "rope_scaling": stretched}


def test_programs_beside_the_weights_are_refused(micro, tmp_path):
    folder = Path(shutil.copytree(micro, tmp_path / "copy"))
    (folder / "model.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_file": "model.py"}))
    uses = lambda: load_mlx(folder), lambda: ask_all(MlxTeacher(folder), REQUESTS[:1]), lambda: convert_mlx(folder, tmp_path / "out", 4)
    for use in uses:
        with pytest.raises(DistilleryError, match=r"wants to run .*'model\.py'"): use()
    assert not (tmp_path / "ran").exists()


def test_what_mlx_cannot_load_is_explained(micro, tmp_path):
    folder = Path(shutil.copytree(micro, tmp_path / "copy"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "strange"}))
    with pytest.raises(DistilleryError, match=r"mlx-lm cannot load copy: .*strange"): load_mlx(folder)
    with pytest.raises(DistilleryError, match="no group of 32 or 64"): group_size({"hidden_size": 48, "intermediate_size": 128})
    assert group_size({"hidden_size": 64, "intermediate_size": 96}) == 32


def test_failures_are_results(micro, monkeypatch):
    teacher = MlxTeacher(micro)
    long, short = ask_all(teacher, [user_request("long", "Hall " * 400), user_request("short", "Where?", max_tokens=3)])
    assert "the model reads 256" in long.error
    assert short.ok
    told = ask_all(teacher, [user_request("x", "Hall " * 100, max_tokens=10_000)])[0]
    assert told.prompt_tokens + told.completion_tokens <= 256
    def full(*_): raise RuntimeError("[malloc] Unable to allocate 2 GB")
    monkeypatch.setattr(mlx, "write_mlx", full)
    assert "Unable to allocate" in ask_all(teacher, REQUESTS[:1])[0].error


def test_threads_come_and_go(micro):
    "Inside a running event loop, as in a notebook, every call works in a new thread; streams of MLX belong to threads."
    teacher, found = MlxTeacher(micro), []
    expected = texts(ask_all(TransformersTeacher(micro, device="cpu"), REQUESTS))
    worker = threading.Thread(target=lambda: found.append(texts(ask_all(teacher, REQUESTS))))
    worker.start()
    worker.join()
    async def twice(): return [texts(ask_all(teacher, REQUESTS)) for _ in range(2)]
    assert [*found, *asyncio.run(twice()), texts(ask_all(teacher, REQUESTS))] == [expected] * 4


def test_closing_lets_go_and_asking_loads_again(micro):
    teacher = MlxTeacher(micro)
    once = ask_all(teacher, REQUESTS[:1])
    asyncio.run(teacher.close())
    assert "model" not in teacher.__dict__
    assert texts(ask_all(teacher, REQUESTS[:1])) == texts(once)


# levels of a teacher

LEVELS = {"teacher.model": "builtin:tiny", "decisions.teacher_levels": ["mlx", "mlx-8bit", "mlx-4bit", "fp32"],
          "decisions.teacher_slots": 2, "decisions.resamples": 99}


def test_a_missing_mlx_is_said_before_anything_runs(monkeypatch, tmp_path):
    monkeypatch.setattr(mlx, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra) as caught: check_mlx()
    assert "distillery[mlx]" in caught.value.fix
    source = open_source(None, None, "builtin")
    with pytest.raises(MissingExtra): teacher_stages(source, load_config(preset="handbook", overrides=LEVELS), tmp_path)
    assert [s.name for s in teacher_stages(source, load_config(preset="handbook"), tmp_path)] == ["teacher-fp32", "teacher-int8"]


def test_weights_in_mlx_form_have_levels_too(micro):
    assert teacher_weights(f"mlx:{micro}") == micro
    assert teacher_weights("mlx:no/such-model") is None
    twice = load_config(preset="handbook", overrides={"decisions.teacher_levels": ["mlx", "mlx"]})
    with pytest.raises(DistilleryError, match="names mlx twice"): teacher_stages(open_source(None, None, "builtin"), twice, Path("cache"))


@pytest.mark.slow
def test_levels_come_to_a_card_and_a_page(tmp_path):
    config, source = load_config(preset="handbook", overrides=LEVELS), open_source(None, None, "builtin")
    stages = [pairs_stages(source, config, tmp_path)[0], *teacher_stages(source, config, tmp_path)]
    done = Plan(stages, config, tmp_path).run()
    rows = {level: read_jsonl(done[f"teacher-{level}"].path / "rows.jsonl", TeacherRow) for level in config.decisions.teacher_levels}
    assert [r.prediction for r in rows["mlx"]] == [r.prediction for r in rows["fp32"]]
    assert [r.asked for r in rows["mlx"]] == [r.asked for r in rows["fp32"]]
    sizes = {level: some[0].bytes for level, some in rows.items()}
    assert sizes["mlx-4bit"] < sizes["mlx-8bit"] < sizes["mlx"]
    run = Path(shutil.copytree(KEPT, tmp_path / "run"))
    shutil.rmtree(run / "teacher")
    for level in rows: shutil.copytree(done[f"teacher-{level}"].path, run / "teacher" / level)
    kept = json.loads((run / "config.json").read_text())
    kept["decisions.teacher_levels"] = config.decisions.teacher_levels
    (run / "config.json").write_text(json.dumps(kept))
    card = teacher_decision(open_results(run).teacher_rows(), config)
    assert card.levels == ["mlx", "mlx-8bit", "mlx-4bit", "fp32"]
    assert {c.b for c in card.contrasts} == {"mlx"}
    assert card.question == "May the teacher run at 8 bits in MLX, 4 bits in MLX or full precision?"
    assert card.cost["size"].startswith("mlx ")
    assert card.cost["median answer"].endswith(" ms")
    page = build_report("quantization", run / "reports", {"run_dir": str(run)}).read_text("utf-8")
    assert all(words in page for words in ("full precision in MLX", "8 bits in MLX", "4 bits in MLX", "mlx-4bit − mlx"))
    assert all(d.cached for d in Plan(stages, config, tmp_path).run().values())
