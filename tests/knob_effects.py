"What a change of each setting is seen in: recorded calls, requests, splits and verdicts of the product's own functions."
import asyncio
import json
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from distillery.core.config import flatten, load_config
from distillery.core.errors import DistilleryError
from distillery.core.records import Pair
from distillery.core.store import read_jsonl, write_jsonl
from distillery.engine.source import open_source, shipped
from distillery.evaluation.evaluate import draw_suite, score_answer
from distillery.evaluation.gates import student_gates
from distillery.evaluation.summary import find_failures
from distillery.exporting.check import EncodedChat
from distillery.exporting.fidelity import compare_text, fidelity_gates
from distillery.pairs.chunk import chunk_documents
from distillery.pairs.dataset import build_dataset
from distillery.pairs.documents import read_documents
from distillery.pairs.generate import generate_pairs
from distillery.pairs.stages import pairs_stages
from distillery.questions.all import all_questions
from distillery.teachers.journal import Journal
from distillery.teachers.protocol import ChatResult
from distillery.training.toy import toy_examples
from distillery.workbook.experiment import prepare

from pairs_oracle import Oracle

HERE = Path(__file__).parent


class Recorder(Oracle):
    "Writes down every request."

    async def stream(self, requests):
        for r in requests:
            self.asked.append((r.messages, r.temperature, r.max_tokens, r.seed, r.stop))
            yield ChatResult(r.key, self.reply(r) if r.task else "[]", "stop")


def generated(place, config, chunks=2):
    "Requests that generation sends, and the pairs it makes."
    teacher = Recorder(place.facts)
    teacher.asked = []
    pairs, journal = [], Journal(place.folder / f"{len(list(place.folder.iterdir()))}.sqlite")
    with suppress(DistilleryError): pairs = generate_pairs(place.chunks[:chunks], teacher, journal, config).pairs
    return sorted(map(str, teacher.asked)), pairs


def requests(place, config): return generated(place, config)[0]
def splits(place, config):
    made = build_dataset(place.pairs, place.chunks, config)
    return {name: [(e.id, e.passage) for e in rows] for name, rows in made.items()}
def selected(place, config):
    score = lambda i: {"scores": {"evidence": 1 - i % 5 / 10, "relevance": i % 7 / 20}}
    near = [p.model_copy(update=score(i)) for i, p in enumerate(place.pairs)]
    other = lambda p: {"id": f"again {p.id}", "family_id": f"again {p.family_id}", "question": f"{p.question} so"}
    again = [p.model_copy(update=other(p)) for p in near]
    again[5] = again[5].model_copy(update={"answer": "Nora (nora@ulm.de)"})
    (lies := place.folder / "scored").mkdir(exist_ok=True)
    write_jsonl(lies / "pairs.jsonl", [*near, *again])
    stage = next(s for s in pairs_stages(open_source(None, None, None), config, place.folder) if s.name == "select")
    (lies / "chunks.jsonl").write_text("")
    stage.run(SimpleNamespace(config=config, needs={"judge": lies, "documents": lies}, out=lies))
    return [p.id for p in read_jsonl(lies / "selected.jsonl", Pair)]
def read(place, config): return [d.path for d in read_documents(place.folder / "book", config.documents.include).documents]
def cut(place, config): return [c.text for c in chunk_documents(place.documents, config.chunking.max_tokens, config.chunking.min_tokens)]
def suite(place, config): return [e.id for e in draw_suite(toy_examples(400, "test"), config)]
def planned(place, config): return [s.name for s in prepare(None, None, config).plan.stages]
def scorers(place, config):
    "Levels that a filter's scorer is compared with."
    from distillery.filters.contract import parse_contract
    from distillery.questions.scorer_kind.stages import scorer_levels
    text = '{schema: 1, name: fair, version: 1, dimensions: {reach: {weight: 1}}, tiers: [{name: high, at: 7}]}'
    return list(scorer_levels(parse_contract(text), config.decisions.scorers))


def asked(place, config): return [q.requests(open_source(None, None, "builtin"), config) for q in all_questions()]


def opened(place, config):
    "Arguments with which a local model is opened."
    from distillery.teachers import local, open as opening
    with pytest.MonkeyPatch.context() as m:
        m.setattr(local, "TransformersTeacher", lambda *a, **k: (a, k))
        return str(opening.open_teacher("builtin:tiny", config))


def budget(place, config):
    from distillery.teachers.budget import open_journal
    it = open_journal(place.folder, config).budget
    return asdict(it.limits), it.prices, it.discount


def trained(place, config):
    "Keyword arguments of peft, trl and transformers."
    from distillery.exporting.extractive import extractive_arguments
    from distillery.training.arguments import lora_arguments, sft_arguments
    from distillery.training.distill import _on_policy_arguments
    return [lora_arguments(config), sft_arguments(config, "x"), _on_policy_arguments(config, Path("x"), 64),
            extractive_arguments(config, "x")]


def logit_distillation(place, config):
    "What the distiller is made with."
    from distillery.training import distill
    taught = SimpleNamespace(logprobs=SimpleNamespace(tokenizer="t"))
    with pytest.MonkeyPatch.context() as m:
        m.setattr(distill, "row_targets", lambda *a: {})
        m.setattr(distill, "missing_mass", lambda *a: {})
        m.setattr(distill, "ChatTokenizer", lambda *a: None)
        m.setattr(distill, "tokenizer_digest", lambda *a: "t")
        m.setattr(distill, "cut_alike", lambda *a: 1)
        made, _, _ = distill._logit_distillation("logits", [], taught, Path("base"), config)
    return made.keywords["weight"], made.keywords["temperature"]


def exported(place, config):
    "Calls of the exporters and of the checks."
    from distillery.exporting import check, export, fidelity, optimum, stages
    calls = []
    with pytest.MonkeyPatch.context() as m:
        m.setattr(export, "build_fp32", lambda merged, out, backend: calls.append(("genai", "fp32", [backend])))
        m.setattr(export, "build_onnx", lambda merged, out, v, *how: calls.append(("genai", v, [str(h) for h in how])))
        m.setattr(optimum, "build_optimum", lambda merged, out, v, how: calls.append(("optimum", v)))
        m.setattr(fidelity, "measure_fidelity", lambda *a: None)
        m.setattr(check, "evaluation_texts", lambda examples: [])
        m.setattr(stages, "examples_of", lambda *a: [])
        for stage in stages.exporting_stages(config, place.folder):
            if stage.name == "merge": continue
            if stage.name != "gguf":
                stage.run(SimpleNamespace(config=config, needs={"merge": "m", "dataset": "d"}, out="o", say=lambda *a: None))
    return calls


@cache
def readings():
    rng, found = np.random.default_rng(0), []
    for i in range(40):
        ids = tuple(int(t) for t in rng.integers(0, 30, 9))
        logits = rng.normal(0, 3, (9, 30)).astype(np.float32)
        other = logits + rng.normal(0, 0.3, logits.shape).astype(np.float32)
        found.append(compare_text(EncodedChat(ids, 2, "easy", f"p{i}"), logits, other))
    return found


def limits(place, config): return [fidelity_gates(v, readings(), config) for v in ("fp32", "int8")]


def texts(place, config):
    from distillery.exporting.check import encode_chats
    from distillery.teachers.open import builtin_dir
    return len(encode_chats(toy_examples(12) * 40, builtin_dir("tiny"), config.export.check_positions))


@cache
def rows():
    told = toy_examples(60, "test")
    said = lambda v, e, i: ChatResult(e.id, "no" if i % (3 if v == "q4" else 5) == 0 else e.answer, "stop", latency_ms=5.0 + i)
    placed = lambda i: {"doc_id": f"d{i // 3}", "kind": "refusal" if i % 9 == 0 else "answer"}
    return {v: [score_answer(e, said(v, e, i), v, load_config()).model_copy(update=placed(i)) for i, e in enumerate(told)]
            for v in ("fp32", "q4")}


def gates(place, config):
    half = {"fp32_alignment": 0.8, "token_f1": 0.5, "keyword_coverage": 0.5}
    aligned = {v: [r.model_copy(update=half if i % 2 else {"fp32_alignment": 0.8}) for i, r in enumerate(some)]
               for v, some in rows().items()}
    aligned = {v: some + [r.model_copy(update={"set": "recall"}) for r in some] for v, some in aligned.items()}
    return student_gates(aligned, config), [f["id"] for f in find_failures(aligned["q4"], config)]


def verdicts(place, config):
    from distillery.questions.quantization.decision import quantization_decision
    return quantization_decision(rows(), {"fp32": 9, "q4": 2}, config)


def latency(place, config):
    "Requests in flight, and how many questions are timed."
    from distillery.evaluation import latency as timing
    calls = []
    def timed(student, requests, at_once):
        calls.append((at_once, len(requests), requests[0].max_tokens))
        return [], 1.0
    with pytest.MonkeyPatch.context() as m:
        m.setattr(timing, "time_concurrency", timed)
        m.setattr(timing, "latency_summary", lambda *a, **k: {})
        timing.measure_latency(None, toy_examples(200, "test"), config)
    return calls


def measured(place, config):
    "On what the child that measures a variant opens it, and on what its latency is timed."
    from distillery.evaluation import latency, measure, stages
    from distillery.teachers import onnx
    calls = []

    class Stop(Exception): pass
    def stop(folder, *a, device, **how): calls.append(device); raise Stop
    with pytest.MonkeyPatch.context() as m:
        m.setattr(onnx, "OnnxTeacher", stop)
        m.setattr(stages, "examples_of", lambda *a: toy_examples(2, "test"))
        m.setattr(measure, "measure_variant", lambda *a: ([], {}))
        m.setattr(latency, "measure_latency", lambda *a: [])
        needs = dict.fromkeys(("export-q4", "dataset"), place.folder)
        job = SimpleNamespace(config=config, needs=needs, scratch=place.folder, out=place.folder)
        with pytest.raises(Stop): stages._measure(job, "q4")
    return calls


def answered(place, config):
    "The request of `distillery ask`."
    from distillery.teachers import onnx
    from distillery.workbook import runs
    seen = []
    with pytest.MonkeyPatch.context() as m:
        m.setattr(onnx, "OnnxTeacher", lambda folder: None)
        m.setattr(runs, "open_run", lambda *a: SimpleNamespace(path=place.folder))
        m.setattr(runs, "ask_all", lambda teacher, requests: seen.append(str(requests)) or [ChatResult("q", "x", "stop")])
        (place.folder / "onnx/q4").mkdir(parents=True, exist_ok=True)
        (place.folder / "onnx/q4/model.onnx").touch()
        runs.ask(config, "latest", "q4", "Who?")
    return seen


def served(place, config):
    "Where the server listens and how long it waits; what the engine is asked first."
    from distillery.shipping import serve
    calls, ending = [], asyncio.Event()
    ending.set()

    class Runner:
        server = None
        def __init__(self, app, **how): calls.append(how["shutdown_timeout"])
        async def cleanup(self): pass
    async def start(runner, host, port, most):
        calls.append((host, port, most))
        return SimpleNamespace(close=lambda: None, sockets=[SimpleNamespace(getsockname=lambda: ("", 1))])
    def show_out(server, busy, seconds):
        calls.append(seconds)
        return asyncio.sleep(0)
    engine = SimpleNamespace(ask=lambda request, wait: calls.append(wait) or ChatResult("w", "x", "stop"))
    with pytest.MonkeyPatch.context() as m:
        m.setattr(serve.web, "AppRunner", Runner)
        m.setattr(serve, "_start", start)
        m.setattr(serve, "show_out", show_out)
        m.setattr(serve, "make_app", lambda service: None)
        asyncio.run(serve.run_server(SimpleNamespace(draining=False, in_flight=0, busy=set()), config, calls.append, ending))
        serve.warm_up(engine, config)
    return calls


def door(place, config):
    "By which names a served student may be called, and which token it asks for."
    from distillery.shipping.door import Door
    with pytest.MonkeyPatch.context() as m:
        m.setenv("DISTILLERY_TOKEN", "one")
        m.setenv("OTHER_TOKEN", "two")
        made = Door(config)
    return made.names, made.token


def engine(place, config):
    "What `distillery serve` starts."
    from distillery.exporting import reader
    from distillery.commands import serve
    from distillery.shipping import engine as engines, serve as serving
    from distillery.teachers import onnx
    calls = []
    with pytest.MonkeyPatch.context() as m:
        m.setattr(serve, "settings", lambda *a: config)
        m.setattr(serve, "finished_run", lambda *a: SimpleNamespace(path=place.folder))
        m.setattr(serve, "variant_folder", lambda *a: None)
        m.setattr(serve, "drift_of", lambda *a: "")
        m.setattr(reader, "reader_of", lambda *a: None)
        m.setattr(reader, "readers_of", lambda *a: {})
        m.setattr(onnx, "OnnxTeacher", lambda *a: None)
        m.setattr(engines, "Engine", lambda student, workers, queue: calls.append((workers, queue)))
        m.setattr(serving, "warm_up", lambda *a: None)
        m.setattr(serving, "Service", lambda *a: SimpleNamespace(report=dict))
        async def nothing(*a): pass
        m.setattr(serving, "run_server", nothing)
        serve.serve("q4")
    return calls


def cards(place, config):
    from distillery.shipping.hub_card import hub_card
    return [hub_card(kind, "me/it", place.folder, config, []) for kind in ("merged", "dataset")]


def stamped(place, config):
    from distillery.workbook.assemble import hub_stamp
    return hub_stamp(config)


def articles(place, config):
    from distillery.questions.context_length.stages import scored_articles
    file = place.folder / "articles.jsonl"
    one = lambda i: {"text": f"A raven {i}.", "scores": {"clarity": i % 3}, "quality": i, "cluster": f"a{i}", "other": "b"}
    file.write_text("".join(json.dumps(one(i)) + "\n" for i in range(6)))
    some, ends, _ = scored_articles(config, file)
    return [(a.scores, a.cluster) for a in some], ends


def fine_tuned(place, config):
    "How scorers are fine-tuned."
    from distillery.filters import context, predictions, scorer, tune, views
    from distillery.questions.context_length import stages
    seen = []
    with pytest.MonkeyPatch.context() as m:
        m.setattr(stages, "scored_articles", lambda *a: ([], {}, {}))
        m.setattr(views, "token_counter", lambda spec: None)
        m.setattr(scorer, "cut_articles", lambda *a: [SimpleNamespace(tokens=9)])
        m.setattr(tune, "FineTuning", lambda *a: seen.append(a))
        m.setattr(context, "run_level", lambda *a: ([], None))
        m.setattr(context, "add_time", lambda *a, **k: None)
        m.setattr(predictions, "write_predictions", lambda *a: None)
        stages._tuned(SimpleNamespace(config=config, out=None, scratch=None), None, "truncate", 128, 0)
    return seen


def embedders(place, config):
    "Which questions tune and measure embedders, and with what."
    from distillery.questions.embedder import stages
    from distillery.retrieval import export, tune
    from distillery.retrieval.queries import pair_queries
    made, seen = pair_queries(place.pairs, place.chunks), []
    with pytest.MonkeyPatch.context() as m:
        m.setattr(stages, "run_questions", lambda *a: (made, {}, {}))
        m.setattr(tune, "hard_pairs", lambda train, encode: [{"positive": str(i), "negative": "n"} for i in range(9)])
        tuned = lambda pairs, out, base, how: seen.append((len(pairs), [*pairs[0]], base, how.max_steps, how.learning_rate))
        m.setattr(tune, "tune_embedder", tuned)
        m.setattr(export, "export_embedder", lambda base, out: seen.append(base))
        m.setattr(stages, "compare_embedders", lambda asked, base, *a: seen.append((len(asked.queries), base)) or ({}, []))
        m.setattr(stages, "_more", lambda job: ({}, {}))
        m.setattr(stages, "write_jsonl", lambda *a: None)
        job = SimpleNamespace(config=config, out=place.folder, needs={"embedder-tuned": place.folder}, say=lambda *a: None)
        stages._tuned(job, None, place.folder)
        stages._int8(job)
        try: stages._embedder(job, None, place.folder)
        except KeyError: pass  # rows of a comparison that nobody made
    return seen


def headings(place, config):
    from distillery.questions.embedder import queries
    for name, some in (("documents", place.documents), ("chunks", place.chunks), ("selected", place.pairs)):
        write_jsonl(place.folder / f"{name}.jsonl", some)
    job = SimpleNamespace(config=config, needs=dict.fromkeys(("documents", "select"), place.folder))
    return queries.run_questions(job, open_source(place.folder / "book", None, None))[0].name


def judged(place, config):
    "Embedders that are loaded by judging and scoring."
    from distillery.evaluation import bert_score, stages as evaluation
    from distillery.pairs import stages
    calls = []

    class Stop(Exception): pass
    def stop(*a, **how): calls.append(a[:2]); raise Stop
    with pytest.MonkeyPatch.context() as m:
        m.setattr(stages, "CachedVectors", lambda vectors, *a, **how: stop(*a))
        m.setattr(stages, "read_jsonl", lambda *a, **k: [], raising=False)
        job = SimpleNamespace(config=config, needs=dict.fromkeys(("documents", "generate"), place.folder), say=lambda *a: None)
        judge = next(s.run for s in stages.pairs_stages(open_source(None, None, None), config, place.folder) if s.name == "judge")
        with pytest.raises(Stop): judge(job)
        m.setattr(evaluation, "embedder_dir", str)
        m.setattr(evaluation, "align_rows", lambda rows: rows)
        m.setattr(bert_score, "BertScorer", stop)
        with pytest.raises(Stop): evaluation._evaluate(SimpleNamespace(config=config, needs={}, say=lambda *a: None))
    return [str(c) for c in calls]


def supported(place, config):
    "Answers in other words that count as supported."
    from distillery.pairs.judge import stream_scores
    pair = place.pairs[0]
    pair = pair.model_copy(update={"answer": f"the large machine of {pair.answer}", "evidence": None, "kind": "answer"})
    quiet = SimpleNamespace(encode=lambda texts, *a, **k: np.ones((len(texts), 2)) / 2**0.5)
    return [p.scores for p in stream_scores([pair], place.chunks, quiet, least=config.validation.min_support)]


def monitored(place, config):
    "How often a run looks at itself."
    from distillery.workbook import experiment
    seen = []

    class Stop(Exception): pass
    def stop(every, showing): seen.append(every); raise Stop
    with pytest.MonkeyPatch.context() as m:
        m.setattr(experiment, "RunMonitor", stop)
        with pytest.raises(Stop): experiment._run_watched(SimpleNamespace(config=config), lambda e: None, place.folder, SimpleNamespace())
    return seen


def priced(place, config):
    from distillery.workbook.costs import ledger, rows_of
    from distillery.engine.plan import Done
    kept = ledger({"sft": Done("sft", place.folder, "d", False, 90.0)}, load_config(overrides={
        **{k: v for k, v in flatten(config).items() if k.startswith("budget.")}, "workbook.cache_dir": str(place.folder / "none")}))
    return [sorted(map(str, row.items())) for row in rows_of(kept)]


def named(place, config):
    "The folder where a run's pages would lie, where its cache lies, and the name that it gets."
    from distillery.commands import run
    from distillery.workbook import experiment
    seen = []

    class Stop(Exception): pass
    def stop(job, watch, label): seen.append((label, job.config.workbook.runs_dir, str(job.plan.shelf.cache))); raise Stop
    with pytest.MonkeyPatch.context() as m:
        m.chdir(place.folder)
        m.setattr(run, "settings", lambda *a: config)
        m.setattr(experiment, "run_job", stop)
        with pytest.raises(Stop): run.run()
    return seen


def sources(place, config):
    from distillery.engine.source import source_of
    return str(source_of(config))


def imported(place, config):
    from distillery.pairs.imports import read_pairs
    (place.folder / "qa.jsonl").write_text('{"question": "Where is it?", "answer": "In room 7", "Frage": "Wo ist es?"}\n')
    return [p.question for p in read_pairs(place.folder / "qa.jsonl", config.dataset.columns).pairs]


def margins(place, config):
    from distillery.questions.context_length import decision
    seen = []
    with pytest.MonkeyPatch.context() as m:
        m.setattr(decision, "read_predictions", lambda folder: ([], []))
        m.setattr(decision, "context_decision", lambda rows, costs, margin, share, sure: seen.append((margin, share)))
        decision.context_decisions(SimpleNamespace(path=place.folder), config)
    return seen


def stated(place, config):
    "Notes of the context report about what the scores' own account says."
    cells = json.loads((HERE.parent / "distillery/templates/40_context_length.ipynb").read_text("utf-8"))["cells"]
    code = next(text for c in cells if "if stated:" in (text := "".join(c["source"])))
    seen, results = [], SimpleNamespace(json=lambda *a: {})
    exec(compile(code, "report", "exec"), {
        "config": config, "results": results, "display": seen.append, "note": str, "rows": [], "best": "all", "sure": 0.95,
        "stated_sentence": lambda rows, best, stated, *sure: f"{best} against {stated}"})
    return seen


def temperature(place, config):
    from distillery.questions.temperature.design import design_of
    return design_of(config)


def reference(place, config):
    "Which reference questions compare the teacher's forms."
    from distillery.questions.quantization import stages
    gold = [{"id": str(i), "page": p.doc_id, "answer": p.answer, "sentence": "s"} for i, p in enumerate(place.pairs)]
    with pytest.MonkeyPatch.context() as m:
        m.setattr(stages, "place_gold", lambda gold, chunks: [(g, None) for g in gold])
        return [g["id"] for g, _ in stages.reference_slots(gold, [], config.decisions.teacher_slots, config.decisions.seed)]


GROUPED = {"dataset.questions_per_chunk": 6}
PAIR, MIX = {"prompts.pack": "technical-docs"}, {"dataset.refusal_share": 0.5, "dataset.refusal_mix": {"off_topic": 1.0}}
RESUME = {"prompts.pack": "resume"}
COMPARED = {"decisions.prompt_packs": ["handbook", "resume"]}
LOCAL = {"teacher.model": "builtin:mini"}
PROBES = [  # What is looked at, what is set besides, and the settings that it sees
    (sources, {}, "docs pairs articles.file"),
    (read, {}, "documents.include"),
    (cut, {}, "chunking.max_tokens chunking.min_tokens"),
    (opened, {}, "teacher.load_bits teacher.batch_size"),
    (planned, {}, "teacher.model teacher.logprobs export.variants export.gguf student.extractive student.mlx decisions.temperatures "
                  "decisions.distill_arms decisions.train_shares decisions.bases decisions.teacher_levels decisions.prompt_packs "
                  "decisions.questions_per_call decisions.parallel decisions.memory_batches decisions.selectors "
                  "decisions.training_sets context.scorer distill.method"),
    (asked, COMPARED, "decisions.prompt_slots decisions.temperature_slots decisions.temperature_replicates"),
    (asked, LOCAL, "decisions.teacher_slots"),
    (reference, {}, "decisions.seed"),
    (budget, {}, "budget.tokens budget.cost budget.minutes budget.currency budget.prices budget.batch_discount"),
    (priced, {}, "budget.hour_price"),
    (monitored, {}, "monitor.every_s"),
    (requests, {}, "prompts.pack prompts.language dataset.questions_per_chunk dataset.variations_per_question dataset.difficulty_mix "
                   "dataset.refusal_share dataset.temperatures.question dataset.temperatures.answer dataset.temperatures.variation "
                   "dataset.seed "
                   "llm_defaults.temperature llm_defaults.max_tokens llm_defaults.variation_max_tokens llm_defaults.stop_sequences "
                   "generation_limits.question_max_tokens generation_limits.answer_max_tokens dataset.questions_per_call"),
    (requests, {"dataset.refusal_share": 0.5}, "dataset.refusal_mix"),
    (requests, RESUME, "prompts.person_name dataset.include_military dataset.has_recommendations"),
    (splits, {"dataset.gold": None}, "dataset.test_share dataset.passage_share dataset.train_split dataset.recall_share dataset.splits"),
    (imported, {}, "dataset.columns"),
    (selected, {}, "selection.min_evidence selection.min_relevance selection.near_duplicate selection.max_pairs "
               "selection.secrets"),
    (selected, {"selection.max_pairs": 7}, "selection.method"),
    (judged, {}, "judge.embedder judge.bert_score_model judge.bert_score_layers"),
    (supported, {}, "validation.min_support"),
    (trained, {"sft.eval_strategy": "steps", "sft.save_strategy": "steps"}, "sft.load_best_model_at_end"),
    (trained, {}, "lora.r lora.alpha lora.dropout lora.target_modules sft.epochs sft.batch_size sft.gradient_accumulation "
                  "sft.learning_rate "
                  "sft.max_length sft.warmup_ratio sft.weight_decay sft.packing sft.group_by_length sft.eval_strategy sft.seed "
                  "sft.gradient_checkpointing sft.dataloader_num_workers sft.save_strategy sft.save_total_limit sft.logging_steps "
                  "sft.precision "
                  "student.extractive_epochs student.extractive_learning_rate distill.steps distill.beta distill.temperature"),
    (logit_distillation, {}, "distill.weight"),
    (exported, {}, "export.backend quantization.block_size quantization.accuracy_level quantization.symmetric "
                  "quantization.vocabulary quantization.keep8"),
    (limits, {}, "export.max_logit_difference export.same_top1_min export.kl_max export.kl_everywhere_max export.perplexity_ratio_max"),
    (texts, {}, "export.check_positions"),
    (answered, {}, "inference.max_new_tokens inference.repetition_penalty"),
    (suite, {}, "evaluation.suite evaluation.full_samples_per_set"),
    (suite, {"evaluation.suite": "smoke"}, "evaluation.smoke_samples evaluation.seed"),
    (latency, {}, "evaluation.concurrency evaluation.latency_questions evaluation.max_new_tokens"),
    (measured, {}, "evaluation.device"),
    (stamped, {}, "evaluation.hub.model_id evaluation.hub.dataset_id"),
    (gates, {}, "thresholds.exact_match_rate_min thresholds.recall_match_min thresholds.token_f1_min "
                "thresholds.keyword_coverage_min thresholds.refusal_accuracy_min "
                "thresholds.response_length_compliance_min thresholds.behavior_accuracy_min thresholds.fp32_alignment_min "
                "thresholds.case_token_f1_min thresholds.case_keyword_coverage_min thresholds.p95_latency_ms_max"),
    (served, {}, "serve.host serve.port serve.timeout serve.health_check_timeout serve.connections serve.read_timeout"),
    (door, {}, "serve.names serve.token_env"),
    (engine, {}, "serve.workers serve.queue"),
    (cards, {}, "model.licence dataset.licence dataset.hub_id"),
    (articles, {}, "articles.cluster articles.scales articles.scores"),
    (fine_tuned, {"context.scorer": "finetune"}, "context.embedder context.tune_steps context.tune_learning_rate context.tune_rank"),
    (embedders, {}, "embedder.base embedder.queries embedder.train_share embedder.tune_steps embedder.tune_learning_rate "
                     "embedder.hard_negatives"),
    (headings, {}, "embedder.headings"),
    (margins, {}, "decisions.gain_share decisions.margins"),
    (stated, {}, "decisions.stated_correlation"),
    (scorers, {}, "decisions.scorers"),
    (temperature, {}, "decisions.temperature_factor"),
    (verdicts, {}, "decisions.confidence decisions.population decisions.resamples"),
    (named, {}, "workbook.runs_dir workbook.cache_dir workbook.name"),
]
VALUES = {"docs": str(shipped("handbook")), "pairs": "qa.jsonl", "articles.file": "articles.jsonl", "documents.include": ["page-00.md"],
          "dataset.columns": {"question": "Frage"}, "prompts.pack": "technical-docs", "teacher.model": "builtin:extractive",
          "student.base": "builtin:tiny", "dataset.difficulty_mix": {"easy": 1.0}, "chunking.max_tokens": 60, "chunking.min_tokens": 200,
          "selection.near_duplicate": 1.0, "dataset.refusal_share": 0.5, "selection.min_evidence": 0.3,
          "validation.min_support": 0.01, "export.check_positions": 40,
          "export.same_top1_min": {"int8": 0.9999}, "export.kl_max": {"int8": 1e-9}, "export.kl_everywhere_max": {"int8": 1e-9},
          "export.perplexity_ratio_max": {"int8": 0.5}, "articles.cluster": "other", "articles.scores": ["quality"],
          "embedder.queries": 2, "embedder.tune_steps": 1, "decisions.margins": {"mean_absolute_error": 0.5},
          "lora.target_modules": ["v_proj"],
          "export.variants": ["fp32", "q4"], "evaluation.concurrency": [1, 2], "evaluation.suite": "smoke",
          "evaluation.full_samples_per_set": 20,
          "thresholds.case_token_f1_min": 0.99, "thresholds.case_keyword_coverage_min": 0.99, "dataset.test_share": 0.5,
          "decisions.teacher_levels": ["fp32", "q4"], "llm_defaults.stop_sequences": ["END"], "context.embedder": "builtin:tiny"}
SEEN = {  # Settings whose effect takes a server, a training or a run, and the test that looks at it
    **dict.fromkeys("teacher.stream teacher.idle_s teacher.timeout_s teacher.max_retries teacher.breaker_failures teacher.breaker_wait_s "
                    "teacher.api_key_env teacher.concurrency prompts.json_mode".split(),
                    "test_teachers_faults::test_settings_reach_the_server_teacher"),
    "teacher.fallback": "test_servers::test_limits_are_those_of_the_model",
    "teacher.concurrency_of": "test_servers::test_limits_are_those_of_the_model",
    "teacher.timeout_of": "test_servers::test_limits_are_those_of_the_model",
    "teacher.parameters": "test_servers::test_what_settings_say_is_sent_at_once",
    "monitor.prometheus_port": "test_kpis::test_a_watcher_that_can_show_is_shown_and_a_run_can_be_scraped",
    "selection.same_meaning": "test_meaning::test_a_training_question_in_other_words_is_left_out_with_its_keeper",
    **dict.fromkeys("judge.model judge.rubric judge.repeats judge.temperature".split(),
                    "test_rating::test_a_judge_of_a_run_rates_every_pair_beside_its_source"),
    "documents.max_file_mb": "test_pairs_documents::test_large_files_and_pipes",
    "documents.max_seconds": "test_limited::test_bombs_among_good_files",
    "documents.max_memory_mb": "test_limited::test_each_limit_has_its_setting",
    "documents.max_text_mb": "test_limited::test_each_limit_has_its_setting",
    "dataset.samples_per_category": "test_guide_keys::test_samples_per_category_bounds_the_pairs_of_a_category",
    "dataset.augment": "test_pairs_generate::test_a_form_that_a_teacher_cannot_make_is_an_error",
    "dataset.gold": "test_guide_keys::test_the_train_split_moves_documents_to_validation",
    **{f"generation_limits.{k}": f"test_guide_keys::{t}" for k, t in (
        ("min_question_length", "test_short_questions_are_rejected"), ("min_answer_length", "test_short_answers_are_rejected"),
        ("min_variation_length", "test_short_rewordings_are_rejected"),
        ("max_question_words", "test_long_questions_are_rejected_and_the_prompt_says_so"),
        ("max_answer_words", "test_long_answers_are_rejected"), ("max_answer_sentences", "test_answers_of_many_sentences_are_rejected"))},
    "llm_defaults.long_question_skip_prob": "test_guide_keys::test_some_long_questions_are_kept",
    "validation.context_token_warn": "test_guide_keys::test_a_long_passage_is_warned_of_and_counted",
    "validation.judge": "test_support::test_own_words_are_kept_by_rule_and_what_rules_leave_open_by_a_judge",
    "student.base": "test_checks::test_what_is_missing_is_named_before_the_first_request",
    "sft.early_stopping_patience": "test_training_sft::test_training_stops_early_and_keeps_the_best",
    "sft.processes": "test_training_sft::test_two_processes_train_as_one",
    "sft.wait_policy": "test_devices::test_a_child_is_told_its_environment",
    "distill.teacher": "test_distill::test_a_vocabulary_mismatch_is_refused_by_name_when_the_run_is_planned",
    "distill.top_k": "test_distill::test_a_vocabulary_mismatch_is_refused_by_name_when_the_run_is_planned",
    "evaluation.refusal_markers": "test_evaluation::test_markers_of_a_refusal_come_from_the_settings",
    "evaluation.eval_data_dir": "test_evaluation::test_a_run_measures_own_sets_beside_its_own",
    "evaluation.report_output": "test_evaluation::test_every_variant_is_asked_the_same_cases",
    "model.hub_id": "test_publish::test_names_are_names",
    "model.private": "test_publish::test_what_is_sent_is_private_and_complete",
    **dict.fromkeys(("context.budgets", "context.views", "context.turns"), "test_filters::test_another_length_trains_that_length_alone"),
    "filters.dir": "test_filter::test_another_repository_may_hold_the_filters",
    "context.int8": "test_filters::test_the_built_in_run_shares_its_export",
    "embedder.others": "test_embedder::test_a_judged_set_is_asked_instead_and_a_change_of_it_asks_again",
    "embedder.judged": "test_embedder::test_a_judged_set_is_asked_instead_and_a_change_of_it_asks_again",
    "student.extractive_base": "test_sizes::test_asking_adds_stages_and_moves_none",
    "decisions.teacher_reference":
        "test_report_quantization::test_a_hub_teacher_that_was_fetched_has_weights_and_pairs_can_stand_in_for_gold",
    "decisions.memory_gib": "test_reports_teachers::test_batches_of_a_model_under_a_budget_that_is_kept_and_one_that_nothing_fits",
    "decisions.index_sizes": "test_index::test_the_sizes_of_the_settings_are_built",
    "decisions.index_questions": "test_index::test_a_graph_pays_only_where_it_is_asked_often",
    **dict.fromkeys(("decisions.chunk_sizes", "decisions.chunk_overlaps", "decisions.chunk_titles"),
                    "test_chunks::test_the_settings_decide_what_is_cut_and_read"),
    **dict.fromkeys(("decisions.rag_passages", "decisions.rag_questions"), "test_rag_question::test_the_settings_decide_what_is_asked"),
    **dict.fromkeys(("decisions.kernel_levels", "decisions.kernel_blocks", "decisions.kernel_vocabularies"),
                    "test_kernels::test_the_settings_decide_what_is_built"),
    "decisions.chunk_tokens": "test_chunks::test_more_is_found_where_more_is_read",
    "decisions.train_seeds": "test_distill::test_arms_from_the_teacher_to_the_card",
    **dict.fromkeys(("decisions.selection_shares", "decisions.threshold_shares"),
                    "test_selection_question::test_every_method_stands_beside_a_random_choice_of_as_many"),
}
PROBED = {name: (probe, besides) for probe, besides, names in PROBES for name in names.split()}
