"Distillation: its loss against the online one, lessons and log-probabilities, refusals by name, kills, seeds in the uncertainty."
import html
import json
import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest

from distillery.core.config import load_config
from distillery.core.errors import DistilleryError
from distillery.core.files import write_jsonl
from distillery.core.records import ChatTurn, Chunk, Contrast
from distillery.training.distill import lessons_of, make_distiller, train_student
from distillery.training.distill_data import (
    Target, TeacherAnswers, lesson_key, missing_mass, read_teacher_answers, row_of, row_targets, save_teacher_answers,
    sequence_examples,
    teaching_requests,
)
from distillery.training.distill_loss import dense_kl, sparse_kl
from distillery.training.vocabulary import check_numbers, check_shared, cut_alike, in_words_of, token_bytes
from distillery.training.bases import load_base
from distillery.training.sft import read_log
from distillery.training.toy import toy_base, toy_examples
from distillery.teachers.local import TransformersTeacher
from distillery.teachers.chat import ChatTokenizer, FolderTokens
from distillery.teachers.logprobs import read_logprobs, record_of, tokenizer_digest, write_logprobs
from distillery.teachers.open import builtin_dir, open_teacher
from distillery.teachers.protocol import ChatResult, TopLogprobs, ask_all
from distillery.questions.distillation.stages import ArmRow, arm_stages
from distillery.questions.distillation.decision import (
    arm_rows, arm_table, arms_decision, distillation_decisions, of_set, probability_table,
)
from distillery.questions.seeds import with_seeds
from distillery.engine.source import open_source
from distillery.engine.plan import Plan, Stage
from distillery.questions.results import Results
from distillery.evaluation.stages import student_stages

import warm
from teachers_server import Scripted

torch = pytest.importorskip("torch")
SMALL = {"sft.epochs": 6, "sft.batch_size": 8, "sft.gradient_accumulation": 1, "sft.learning_rate": 5e-3, "sft.dataloader_num_workers": 0,
         "sft.save_strategy": "epoch", "sft.logging_steps": 4, "sft.packing": False, "lora.r": 8, "lora.alpha": 16,
         "generation_limits.answer_max_tokens": 8, "distill.steps": 18}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    place = tmp_path_factory.mktemp("bases")
    return toy_base(place / "student"), toy_base(place / "teacher", hidden=96)


def logprobs_of(teacher, chat, rows):
    "All log-probabilities of a model at the answers of rows, taken with the answers before it."
    found = {}
    for e in rows:
        start, row = row_of(e, chat)
        end = len(row) - 1  # the line end after the stop token is the template's, not the teacher's
        with torch.no_grad(): logits = teacher(torch.tensor([row])).logits[0, start - 1: end - 1].double()
        told = torch.log_softmax(logits, -1).sort(descending=True)
        found[row] = Target(start, told.indices.numpy(), told.values.numpy(), np.zeros(end - start, np.float32))
    return found


def test_offline_with_the_whole_vocabulary_has_the_gradient_of_online(bases, tmp_path):
    chat, teacher = ChatTokenizer(bases[0]), load_base(bases[1])[0]
    train, cfg = toy_examples(8), load_config(overrides={**SMALL, "lora.dropout": 0.0})
    targets = logprobs_of(teacher, chat, train)
    for weight, temperature in ((1.0, 1.0), (0.5, 2.0)):
        trainer = make_distiller(train, [], bases[0], cfg, tmp_path, targets=targets, weight=weight, temperature=temperature)
        model, batch = trainer.model.train(), next(iter(trainer.get_train_dataloader()))
        learns = [p for p in model.parameters() if p.requires_grad]
        offline = torch.autograd.grad(trainer.compute_loss(model, dict(batch)), learns)
        labels, ids = batch["labels"], batch["input_ids"]
        with torch.no_grad(): told = teacher(ids, attention_mask=batch["attention_mask"]).logits
        said = model(ids, attention_mask=batch["attention_mask"]).logits
        wanted = labels[:, 1:]
        ce = torch.nn.functional.cross_entropy(said[:, :-1].flatten(0, 1), wanted.flatten(), reduction="none").view_as(wanted)
        kl = dense_kl(said[:, :-1].flatten(0, 1), told[:, :-1].flatten(0, 1), temperature).view_as(wanted)
        end = torch.tensor([int((line != -100).nonzero().max()) for line in labels])
        known = (wanted != -100) & (torch.arange(wanted.shape[1]) + 1 < end[:, None])
        loss = torch.where(known, (1 - weight) * ce + weight * kl, ce).sum() / (wanted != -100).sum()
        online = torch.autograd.grad(loss, learns)
        assert max(g.abs().max() for g in online) > 1e-3
        apart = max((a - b).abs().max().item() for a, b in zip(offline, online, strict=True))
        assert apart < 1e-6


def test_the_gradient_survives_storage_in_half_precision_to_its_precision(tmp_path):
    chance = torch.Generator().manual_seed(5)
    student, teacher = (3 * torch.randn(64, 200, generator=chance, dtype=torch.float64) for _ in range(2))
    told, student = torch.log_softmax(teacher, -1).sort(descending=True), student.requires_grad_()
    record = record_of(TopLogprobs((), tuple(map(tuple, told.values.tolist())), tuple(map(tuple, told.indices.tolist()))), "t")
    write_logprobs(tmp_path / "odds.safetensors", {"all": ("text", record)})
    kept = read_logprobs(tmp_path / "odds.safetensors")
    ids, narrow = torch.tensor(kept.ids.astype(np.int64)), torch.tensor(kept.logprobs.astype(np.float64))
    tail = torch.tensor(kept.tail_mass)
    gradient = lambda loss: torch.autograd.grad(loss.sum(), student)[0]
    online = gradient(dense_kl(student, teacher))
    exact = (gradient(sparse_kl(student, told.indices, told.values, torch.zeros(64))) - online).abs().max().item()
    stored = (gradient(sparse_kl(student, ids, narrow, tail)) - online).abs().max().item()
    assert exact < 1e-6
    assert 1e-6 < stored < 2e-3  # float16 keeps eleven bits: this is what storage costs, and more than rounding in the loss


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("tail", [0.0, 0.3])
def test_the_sparse_loss_is_finite_nonnegative_and_zero_for_a_student_that_agrees(temperature, tail):
    ids = torch.tensor([[4, 1]])
    kept = torch.log(torch.tensor([[0.6, 0.4]]) * (1 - tail))
    strange = sparse_kl(torch.tensor([[9.0, -9, 3, 2, -30, 0]]), ids, kept, torch.tensor([tail]), temperature)
    assert torch.isfinite(strange).all()
    assert strange > 0
    q = torch.full((1, 6), max(tail, 1e-12) / 4).log()
    q[0, [4, 1]] = kept[0]
    assert sparse_kl(q, ids, kept, torch.tensor([tail]), temperature).abs() < 1e-5


def test_a_vocabulary_mismatch_is_refused_by_name_when_the_run_is_planned(tmp_path, bases):
    names = ("builtin:tiny", "builtin:mini")
    said = r"builtin:tiny \(tokenizer \w+\) and the student builtin:mini .* number their tokens differently"
    with pytest.raises(DistilleryError, match=said):
        check_numbers(builtin_dir("tiny"), builtin_dir("mini"), names)
    check_shared(builtin_dir("tiny"), builtin_dir("mini"), names)
    with pytest.raises(DistilleryError, match=r"cut text into different tokens: \d+ of 1536 are shared"):
        check_shared(bases[0], builtin_dir("mini"), ("toy", "builtin:mini"))
    source = open_source(None, None, None)

    def plan(**more):
        config = load_config(preset="handbook", overrides=more)
        return [*student_stages(config, tmp_path), *arm_stages(source, config, tmp_path)]
    with pytest.raises(DistilleryError, match="number their tokens differently"): plan(**{"distill.method": "on_policy"})
    with pytest.raises(DistilleryError, match="no weights here"):
        plan(**{"distill.method": "on_policy", "distill.teacher": "http://h:1/v1#big"})
    with pytest.raises(DistilleryError, match="has no probabilities"):
        plan(**{"distill.method": "logits", "distill.teacher": "builtin:extractive"})
    for more in ({"distill.method": "logits"}, {"distill.method": "context"}, {"distill.method": "sequence"},
                 {"distill.method": "logits", "distill.teacher": "http://h:1/v1#big"}, {"decisions.distill_arms": ["sft", "logits"]}):
        assert {s.name for s in plan(**more)} >= {"teach", "sft"}


# ---- another vocabulary, and a server

def spoken(path):
    "An invented fact for each of six questions, as `builtin:tiny` reads and says it."
    return [e.model_copy(update={"passage": f"The {e.question[15:-7]} stands in Hall {i + 3}."}) for i, e in enumerate(toy_examples(6))]


def test_the_built_in_teacher_teaches_the_built_in_student_its_probabilities(tmp_path):
    config = load_config(preset="handbook", overrides={"distill.method": "logits"})
    train, tiny, mini = spoken(tmp_path), builtin_dir("tiny"), builtin_dir("mini")
    results = {r.key: r for r in ask_all(TransformersTeacher(tiny), teaching_requests(train, {}, config, 20))}
    taught = save_teacher_answers(results, tokenizer_digest(tiny), tmp_path, token_bytes(tiny))
    assert taught.words.items() <= token_bytes(tiny).items()
    lessons, chat = sequence_examples(train, taught.answers), ChatTokenizer(mini)
    ours, theirs = in_words_of(mini, taught.words, taught.logprobs), FolderTokens(tiny)
    assert row_targets(lessons, taught.logprobs, chat) == {}, "by number they would be gibberish"
    targets = row_targets(lessons, ours, chat)
    assert len(targets) >= 5
    for i in range(len(ours.ids)):  # the same words at the same odds
        for a, b, p, q in zip(ours.ids[i], taught.logprobs.ids[i], ours.logprobs[i], taught.logprobs.logprobs[i], strict=True):
            if p > -60: assert (p, chat.decode([int(a)], special=True)) == (q, theirs.decode([int(b)], special=True))
    assert (ours.tail_mass >= taught.logprobs.tail_mass - 1e-3).all()
    assert cut_alike(ours, chat) >= 5 > cut_alike(taught.logprobs, chat)


def speaks(chat, told):
    "A chat server that answers in the words of a tokenizer, and tells the odds of each where `told` says so."
    def script(body, turn):
        answer = f"Room {len(body['messages'][0]['content']) % 7}."
        pieces = [chat.decode([i], special=True) for i in chat.after(answer)]
        odds = [{"token": t, "logprob": -0.1, "top_logprobs": [{"token": "quux", "logprob": -3.0}, {"token": t, "logprob": -0.1}][i % 2:]}
                for i, t in enumerate(pieces)]
        choice = {"index": 0, "message": {"role": "assistant", "content": answer}, "finish_reason": "stop"}
        return json.dumps({"choices": [choice | ({"logprobs": {"content": odds}} if told else {})]}).encode()
    return script


def taught_by(server, base, cache, **more):
    "The stages teach and sft of a run whose teacher is a server."
    config = load_config(overrides={**SMALL, "sft.epochs": 1, "student.base": str(base), "teacher.model": f"{server.url}#big",
                                    "distill.method": "logits", "workbook.cache_dir": str(cache), **more})
    stages = [s for s in student_stages(config, cache) if s.name in ("teach", "sft")]
    given = [Stage("documents", lambda job: None), Stage("dataset", lambda job: [
        write_jsonl(job.out / f"{name}.jsonl", toy_examples(12, name)) for name in ("train", "validation")])]
    return {n: d.path for n, d in Plan([*given, *stages], config, cache).run(lambda event: None).items()}


@pytest.mark.slow
def test_a_server_that_tells_log_probabilities_teaches_a_student(bases, tmp_path):
    with Scripted(speaks(ChatTokenizer(bases[0]), told=True)) as server:
        made = taught_by(server, bases[0], tmp_path)
        asked = len(server.bodies)
        assert asked == 12
        assert {(b["logprobs"], b["top_logprobs"], b["temperature"]) for b in server.bodies} == {(True, 20, 0.0)}
        taught_by(server, bases[0], tmp_path, **{"distill.weight": 0.9})
        assert len(server.bodies) == asked, "trained again on answers that the journal has"
    told = json.loads((made["sft"] / "training.json").read_text())["distillation"]
    assert (told["rows_with_odds"], told["rows"], told["cut_alike"]) == (0, 12, 12), "the dataset's answers are not the server's"
    taught = read_teacher_answers(made["teach"])
    lessons, chat = sequence_examples(toy_examples(12), taught.answers), ChatTokenizer(bases[0])
    targets = row_targets(lessons, in_words_of(bases[0], taught.words, taught.logprobs), chat)
    assert set(targets) == {row_of(e, chat)[1] for e in lessons}
    for row, t in targets.items():
        assert row[t.start: t.start + len(t.tail)] == tuple(t.ids[:, 0])
        assert t.tail == pytest.approx(1 - np.exp(np.float16(-0.1)), abs=1e-3), "a word that the student lacks is one of all others"


def test_a_server_without_log_probabilities_is_refused_after_one_question(bases, tmp_path):
    with Scripted(speaks(ChatTokenizer(bases[0]), told=False)) as server:
        with pytest.raises(Exception, match="asked for log-probabilities and sent none"): taught_by(server, bases[0], tmp_path)
        assert len(server.bodies) == 1


def test_a_server_that_cuts_text_otherwise_is_refused_by_name(bases, tmp_path):
    class Letters:
        def after(self, text): return list(range(len(text)))
        def decode(self, ids, special): return "ROOM 0123"[ids[0]] if ids[0] < 9 else "?"
    with Scripted(speaks(Letters(), told=True)) as server, pytest.raises(Exception, match="cut none of 12 answers into the same tokens"):
        taught_by(server, bases[0], tmp_path)


def test_a_teacher_that_wrote_the_dataset_is_not_paid_again_for_its_text(tmp_path):
    from distillery.pairs.asking import make_request
    from distillery.pairs.prompts import load_pack
    from distillery.teachers.journal import Journal
    from distillery.teachers.protocol import Task

    train = spoken(tmp_path)
    with Scripted(lambda body, turn: None) as server:
        config = load_config(overrides={"teacher.model": f"{server.url}#big", "teacher.logprobs": 3, "distill.method": "sequence"})
        pack, journal = load_pack(config.prompts.pack), Journal(tmp_path / "calls.sqlite")
        task = lambda e: Task("answer", e.passage, "", e.question, e.difficulty, e.category)
        journal.ask(open_teacher(config.teacher.model, config), [make_request(e.id, task(e), pack, config) for e in train])
        paid = len(server.bodies)
        told = journal.ask(open_teacher(config.teacher.model, config), teaching_requests(train, {}, config))
        assert len(server.bodies) == paid == len(told) == len(train)
        other = load_config(overrides={"teacher.model": "builtin:tiny", "distill.teacher": config.teacher.model})
        journal.ask(open_teacher(config.teacher.model, config), teaching_requests(train, {}, other))
        assert [b["temperature"] for b in server.bodies[paid:]] == [0.0] * len(train), "another teacher is asked, greedily"


def test_packed_rows_are_refused_by_name(bases, tmp_path):
    cfg = load_config(overrides={**SMALL, "sft.packing": True})
    with pytest.raises(DistilleryError, match="packing joins rows"):
        make_distiller(toy_examples(8), [], bases[0], cfg, tmp_path, targets={}, weight=1, temperature=1)


def test_fifty_of_the_vocabulary_report_their_missing_mass(bases, tmp_path):
    train, cfg = toy_examples(12), load_config(overrides={**SMALL, "distill.method": "logits", "sft.epochs": 1})
    results = {r.key: r for r in ask_all(TransformersTeacher(bases[1]), teaching_requests(train, {}, cfg, 50))}
    taught = save_teacher_answers(results, tokenizer_digest(bases[1]), tmp_path)
    lessons = sequence_examples(train, taught.answers)
    train_student(lessons, [], bases[0], cfg, tmp_path / "out", tmp_path / "kept", taught)
    told = json.loads((tmp_path / "out/training.json").read_text())["distillation"]
    tails = [1 - np.exp(np.asarray(row, np.float16).astype(float)).sum() for r in results.values() for row in r.logprobs.logprobs]
    assert (told["k"], told["positions"]) == (50, len(tails))
    assert told["missing_mean"] == pytest.approx(np.mean(tails), abs=1e-4)
    assert told["missing_max"] == pytest.approx(np.max(tails), abs=1e-4)
    assert 0 < told["rows_with_odds"] <= told["rows"] == 12


def test_log_probabilities_lie_on_the_answer_that_the_teacher_wrote_and_on_no_other(bases):
    chat, train = ChatTokenizer(bases[0]), toy_examples(6)
    def taught_with(change):
        found = {}
        for e in train:
            start, row = row_of(e, chat)
            tokens = change(list(row[start: len(row) - 1]))
            top = TopLogprobs((), ((-0.1, -3.0),) * len(tokens), tuple((t, 0) for t in tokens))
            found[lesson_key(e)] = ChatResult(lesson_key(e), e.answer, "stop", logprobs=top)
        return found
    def targets(change, place):
        place.mkdir()
        return row_targets(train, save_teacher_answers(taught_with(change), "t", place).logprobs, chat)
    import tempfile
    with tempfile.TemporaryDirectory() as work:
        same = targets(lambda t: t, Path(work, "a"))
        assert len(same) == 6
        for row, t in same.items(): assert row[t.start: t.start + len(t.tail)] == tuple(t.ids[:, 0])
        assert targets(lambda t: [t[0] + 1, *t[1:]], Path(work, "b")) == {}
        assert targets(lambda t: [*t, *([9] * 90)], Path(work, "c")) == {}


def test_each_method_has_its_own_rows(tmp_path):
    train = [e.model_copy(update={"passage": "Room A10." if i % 2 else None}) for i, e in enumerate(toy_examples(4))]
    refusal = train[0].model_copy(update={"id": "r", "kind": "refusal", "question": "Who?", "passage": "Room A10."})
    rows, cfg = [*train, train[1].model_copy(update={"id": "again", "passage": None}), refusal], load_config()
    answers = {lesson_key(e): f"said {i}" for i, e in enumerate([*train, refusal])}
    answers[lesson_key(train[3])] = "The passage does not tell."
    taught, passages = TeacherAnswers(answers, None), {"c0": "Room A10.", "c1": "Room B11."}
    lessons = {m: lessons_of(m, rows, taught, passages, cfg) for m in ("sft", "sequence", "logits", "context", "on_policy")}
    assert lessons["sft"] == lessons["logits"] == rows
    assert [e.answer for e in lessons["sequence"]] == ["said 0", "said 1", "said 2", "The passage does not tell.", "said 1", "said 4"]
    assert [(e.passage, e.answer) for e in lessons["context"]] == [(None, "said 0"), (None, "said 1"), (None, "said 2")]
    assert all(e.messages[0].content.startswith("Room") for e in lessons["on_policy"])
    chat = [ChatTurn(role="user", content=train[1].question), ChatTurn(role="assistant", content="said 1")]
    assert lessons["context"][1].messages == chat
    requests = teaching_requests(rows, passages, cfg, 3)
    assert [(r.temperature, r.logprobs) for r in requests] == [(0.0, 3)] * 5


KILLED = """
import json, os, signal, sys
from pathlib import Path
from distillery.core.config import load_config
from distillery.training.distill import train_student
from distillery.training.distill_data import read_teacher_answers
from distillery.core.files import read_jsonl
from distillery.core.records import Example
place, base, teacher, knobs = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), json.loads(sys.argv[4])
die = lambda step, total: os.kill(os.getpid(), signal.SIGKILL) if step == 8 else None
train_student(read_jsonl(place / "lessons.jsonl", Example), [], base, load_config(overrides=knobs), place / "out", place / "kept",
              read_teacher_answers(place), teacher, die)
"""


SLOW = [pytest.param(method, marks=pytest.mark.slow) for method in ("sequence", "context", "on_policy")]  # as sft, as logits, its own


@pytest.mark.slow
@pytest.mark.parametrize("method", ["logits", *SLOW])
def test_kill_9_and_resume_ends_where_an_uninterrupted_training_does(bases, tmp_path, method):
    knobs = {**SMALL, "distill.method": method, **({"sft.save_strategy": "steps", "sft.logging_steps": 3} if method == "on_policy" else {})}
    cfg, train = load_config(overrides=knobs), toy_examples(24)
    results = {r.key: r for r in ask_all(TransformersTeacher(bases[1]), teaching_requests(train, {}, cfg, 20))}
    taught = save_teacher_answers(results, tokenizer_digest(bases[1]), tmp_path)
    lessons = lessons_of(method, sequence_examples(train, taught.answers) if method == "logits" else train, taught, {}, cfg)
    write_jsonl(tmp_path / "lessons.jsonl", lessons)
    whole = train_student(lessons, [], bases[0], cfg, tmp_path / "whole", tmp_path / "other", taught, bases[1])
    killed = warm.run_code(KILLED, tmp_path, bases[0], bases[1], json.dumps(knobs), load=("torch", "transformers", "trl", "peft"))
    assert killed.returncode == -signal.SIGKILL
    again = train_student(lessons, [], bases[0], cfg, tmp_path / "out", tmp_path / "kept", read_teacher_answers(tmp_path), bases[1])
    steps = [row["step"] for row in read_log(tmp_path / "out")]
    assert again.resumed_from == 6
    assert again.final_loss == pytest.approx(whole.final_loss, abs=1e-4)
    assert len(steps) - len(set(steps)) <= 8 - 6
    assert set(steps) == set(range(1, whole.steps + 1))
    load = pytest.importorskip("safetensors.torch").load_file
    a, b = (load(tmp_path / place / "adapter_model.safetensors") for place in ("whole", "out"))
    assert max((a[k] - b[k]).abs().max().item() for k in a) < 1e-4


@pytest.mark.slow
def test_checkpoints_of_other_targets_are_not_continued(bases, tmp_path):
    train, cfg = toy_examples(16), load_config(overrides={**SMALL, "distill.method": "context", "sft.epochs": 1})
    results = {r.key: r for r in ask_all(TransformersTeacher(bases[1]), teaching_requests(train, {}, cfg, 20))}
    (tmp_path / "a").mkdir()
    taught = save_teacher_answers(results, tokenizer_digest(bases[1]), tmp_path / "a")
    lessons = lessons_of("context", train, taught, {}, cfg)
    train_student(lessons, [], bases[0], cfg, tmp_path / "one", tmp_path / "kept", taught)
    taught.logprobs.logprobs[:] = taught.logprobs.logprobs - 0.25
    assert train_student(lessons, [], bases[0], cfg, tmp_path / "two", tmp_path / "kept", taught).resumed_from is None


ON_POLICY = {"distill.method": "on_policy", "distill.beta": 0.0, "sft.learning_rate": 1e-2}


@pytest.mark.slow
def test_a_student_on_policy_learns_nothing_from_itself(bases, tmp_path):
    cfg = load_config(overrides={**SMALL, **ON_POLICY, "distill.steps": 4})
    own = train_student(toy_examples(24), [], bases[0], cfg, tmp_path / "own", tmp_path / "k1", teacher=bases[0])
    assert own.steps == 4
    assert own.final_loss < 1e-5


@pytest.mark.slow
def test_a_student_on_policy_learns_from_another(bases, tmp_path):
    cfg = load_config(overrides={**SMALL, **ON_POLICY, "distill.steps": 24})
    other = train_student(toy_examples(24), [], bases[0], cfg, tmp_path / "other", tmp_path / "k2", teacher=bases[1])
    losses = [row["loss"] for row in read_log(tmp_path / "other")]
    assert other.steps == 24
    assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:4])


def contrast(diff=0.02, se=0.01, df=19.0):
    return Contrast(a="logits", b="sft", diff=diff, ci_low=diff - 2 * se, ci_high=diff + 2 * se, ci_naive_low=0, ci_naive_high=0.1, p=0.01,
                    mde=0.03, se=se, df=df, n_items=40, n_clusters=20)


def test_seeds_widen_an_interval_by_their_own_spread():
    from scipy.stats import t
    c, seeds = contrast(), [0.05, 0.02, -0.01]
    wide, luck = with_seeds(c, seeds), np.var(seeds, ddof=1) / 3
    half = ((t.ppf(0.975, 19) * c.se) ** 2 + t.ppf(0.975, 2) ** 2 * luck) ** 0.5
    assert wide.se == pytest.approx((c.se**2 + luck) ** 0.5)
    assert 2 < wide.df < 19
    assert wide.ci_high - wide.diff == pytest.approx(half) == pytest.approx(t.ppf(0.975, wide.df) * wide.se)
    assert wide.p == pytest.approx(2 * t.sf(0.02 / wide.se, wide.df))
    assert wide.p > c.p
    assert with_seeds(contrast(se=0.0), seeds).df == 2
    assert (wide.ci_naive_low, wide.diff) == (c.ci_naive_low, c.diff)
    assert with_seeds(c, [0.02]) == c == with_seeds(c, [0.02, 0.02, 0.02])


@pytest.mark.slow
@pytest.mark.parametrize("luck", [0.0, 0.03, 0.1, 0.3])
def test_questions_and_seeds_together_are_wrong_in_one_of_twenty_trials_at_most(luck):
    from scipy.stats import t
    chance, wrong, trials = np.random.default_rng(7), 0, 1500
    for _ in range(trials):
        d = chance.normal(0, 0.28, (3, 20, 2)) + chance.normal(0, luck * 2**0.5, (3, 1, 1))
        pages, seeds = d.mean((0, 2)), d.mean((1, 2))
        se = pages.std(ddof=1) / 20**0.5
        c, half = contrast(float(d.mean()), se), t.ppf(0.975, 19) * se
        wide = with_seeds(c.model_copy(update={"ci_low": c.diff - half, "ci_high": c.diff + half}), list(seeds))
        wrong += not wide.ci_low <= 0 <= wide.ci_high
    assert wrong / trials < 0.05 + 3 * (0.05 * 0.95 / trials) ** 0.5


@pytest.mark.slow
def test_arms_from_the_teacher_to_the_card(bases, tmp_path):
    def documents(job):
        told = [f"{e.question[15:-7]} stands {e.answer[:-1].lower()}." for e in toy_examples(24)]
        texts = [f"Page {i}. {' '.join(told[3 * i: 3 * i + 3])}" for i in range(8)]
        write_jsonl(job.out / "chunks.jsonl", [Chunk(chunk_id=f"c{i}", doc_id=f"d{i}", heading="", text=t, start=0, end=len(t), category="")
                                               for i, t in enumerate(texts)])
    def dataset(job):
        for name in ("train", "recall", "test"): write_jsonl(job.out / f"{name}.jsonl", toy_examples(24, name))
    arms = ["base", "sft", "context", "rag"]
    config = load_config(overrides={**SMALL, "decisions.distill_arms": arms, "decisions.train_seeds": [1, 2], "student.base": str(bases[0]),
                                    "distill.teacher": f"local:{bases[1]}", "evaluation.max_new_tokens": 8, "decisions.resamples": 99,
                                    "distill.method": "logits"})
    source, cache = open_source(None, None, None), tmp_path / "cache"
    stages = {s.name: s for s in [*student_stages(config, cache), *arm_stages(source, config, cache)]}
    wanted = [s for name, s in stages.items() if name in ("teach", "sft") or name.startswith("arm-")]
    done = Plan([Stage("documents", documents), Stage("dataset", dataset), *wanted], config, cache).run(lambda event: None)
    assert [n for n in done if n.startswith("arm-")] == [f"arm-{a}-1" for a in arms] + [f"arm-{a}-2" for a in arms[1:3]]
    run = tmp_path / "run"
    for name, d in done.items():
        place = f"arms/{name[4:]}" if name.startswith("arm-") else "student/adapter" if name == "sft" else name
        (run / place).parent.mkdir(parents=True, exist_ok=True)
        os.symlink(d.path, run / place)
    results = Results(run)
    rows = arm_rows(results)
    assert {arm: len(by) for arm, by in rows.items()} == {"base": 1, "sft": 2, "context": 2, "rag": 1}
    assert {frozenset(r.id for r in some) for by in rows.values() for some in by.values()} == {frozenset(r.id for r in rows["sft"]["1"])}
    asked = {arm: np.mean([r.prompt_tokens for r in by["1"]]) for arm, by in rows.items()}
    assert asked["base"] == asked["context"] < asked["rag"] / 2
    tokens = {arm: results.json(f"arms/{arm}-1/arm.json")["tokens"] for arm in arms[1:3]}
    assert max(tokens.values()) < 1.2 * min(tokens.values())
    cards = distillation_decisions(results, config)
    assert [c.name for c in cards] == ["distillation", "distillation_test"]
    assert [c.a for c in cards[0].contrasts] == ["base", "context", "rag"]
    assert {row["training"] for row in probability_table(results)} == {"the student", "arm context"}
    assert all(len(arms_decision(of_set(rows, name), config, name).contrasts) == 3 for name in ("recall", "test"))
    assert "2 seeds a training" in cards[0].sentence


def test_missing_mass_of_nothing_missing():
    from distillery.teachers.logprobs import LogprobFile
    whole = LogprobFile("t", ("a",), ("x",), np.array([0, 2]), np.array([[1, 0], [0, 1]], np.int32),
                        np.log(np.array([[.5, .5], [.5, .5]], np.float16)), np.zeros(2, np.float32))
    assert missing_mass(whole) == {"k": 2, "answers": 1, "positions": 2, "missing_mean": 0.0, "missing_max": 0.0}


def made_arms(run, seeds=3):
    "Arms with made-up answers: sequence a little better than sft, base far worse."
    chance = np.random.default_rng(11)
    for arm, level in {"base": 0.1, "sft": 0.6, "sequence": 0.62, "logits": 0.6, "rag": 0.7}.items():
        for seed in range(88, 88 + (1 if arm in ("base", "rag") else seeds)):
            folder = run / "arms" / f"{arm}-{seed}"
            folder.mkdir(parents=True)
            write_jsonl(folder / "rows.jsonl", [ArmRow(
                id=f"{name}{i}", set=name, doc_id=f"d{i // 4}", difficulty="easy", kind="answer", question="Who <b>leads</b>?", gold="x",
                prediction="y", exact_match=float(chance.random() < level), token_f1=float(np.clip(chance.normal(level, 0.2), 0, 1)),
                prompt_tokens=90 if arm == "rag" else 12, completion_tokens=4, latency_ms=9.0)
                for name in ("recall", "test") for i in range(48)])
            kept = {"k": 50, "positions": 900, "missing_mean": 0.0012, "missing_max": 0.25, "rows": 200, "rows_with_odds": 180,
                    "weight": 0.5, "temperature": 1.0}
            facts = {"method": arm, **(kept if arm == "logits" else {})}
            trained = arm not in ("base", "rag")
            (folder / "arm.json").write_text(json.dumps({"arm": arm, "seed": seed, "tokens": 9000 * trained, "seconds": 30.0 * trained,
                                                         "bytes": 1, **({"distillation": facts} if trained else {})}))


@pytest.mark.slow
def test_the_page_shows_every_arm_its_cost_and_what_was_not_kept(tmp_path):
    import shutil

    from distillery.pages.report import build_report

    shutil.copytree(Path(__file__).parent / "data/run", tmp_path / "run")
    made_arms(tmp_path / "run")
    config = load_config(overrides=Results(tmp_path / "run").settings())
    recall, test = distillation_decisions(Results(tmp_path / "run"), config)
    assert [c.a for c in recall.contrasts] == ["base", "sequence", "logits", "rag"]
    assert {c.b for c in recall.contrasts} == {"sft"}
    assert recall.contrasts[0].p_holm < 0.05
    with warm.kernels(): text = build_report("distillation", tmp_path / "out", {"run_dir": str(tmp_path / "run")}).read_text("utf-8")
    plain = html.unescape(re.sub(r"</?span[^>]*>", "", text))  # numbers carry the places where they are stored
    for said in (recall.sentence, test.sentence): assert said in plain
    for said in ("0.00120", "0.250", "180", "prompt tokens", "3 seeds a training", "94.0", "training tokens"): assert said in plain
    assert "<b>leads" not in text
    assert "learned from odds" not in text
    for folder in (tmp_path / "run/arms").glob("logits-*"): shutil.rmtree(folder)  # the arms that the page suggests
    with warm.kernels(): fewer = build_report("distillation", tmp_path / "fewer", {"run_dir": str(tmp_path / "run")}).read_text("utf-8")
    assert "No training of this run learned from odds" in fewer
    assert "No rows." not in fewer


def test_exact_match_has_an_interval_of_pages_and_seeds(tmp_path):
    made_arms(tmp_path)
    rows = of_set(arm_rows(Results(tmp_path)), "recall")
    scattered = {s: [r.model_copy(update={"exact_match": (i % 2) * n / 5}) for i, r in enumerate(some)]  # seeds apart, pages alike
                 for n, (s, some) in enumerate(rows["sft"].items(), start=1)}
    def sft(part, confidence):
        config = load_config(overrides={"decisions.confidence": confidence, "decisions.resamples": 99})
        cell = next(row["exact match"] for row in arm_table(part, arms_decision(part, config, "recall"), config) if row["arm"] == "sft")
        return [float(x) for x in re.findall(r"[-\d.]+", cell)]
    mean, low, high = sft(rows, 0.95)
    assert mean == pytest.approx(np.mean([r.exact_match for some in rows["sft"].values() for r in some]), abs=5e-4)
    _, lower, higher = sft(rows, 0.8)
    assert low < lower < mean < higher < high
    mean, low, high = sft({**rows, "sft": scattered}, 0.95)
    half = 4.303 * 0.1 / 3 ** 0.5  # Student's t of two degrees of freedom over means of 0.1, 0.2 and 0.3
    assert mean == 0.2
    assert half < high - mean < 1.5 * half  # the questions add a little
    assert low == 0  # no share lies below
