"The small kept run with the answers of the questions that it was not asked: drawn rows of twelve documents, no model and no training."
import json
import shutil
from pathlib import Path

import numpy as np

from distillery.core.files import read_jsonl, write_jsonl
from distillery.core.records import Slot
from distillery.evaluation.evaluate import EvalRow
from distillery.pairs.account import GroupedRow
from distillery.questions.chunks.cuts import design
from distillery.questions.chunks.stages import ChunkRow, CutFacts
from distillery.questions.distillation.stages import ArmRow
from distillery.questions.domain.stages import SetRow
from distillery.questions.kernels.stages import FlipRow, KernelCost, kernels_of
from distillery.questions.load.trials import Trial
from distillery.questions.prompts.stages import PromptRow
from distillery.questions.rag.stages import RagAnswer
from distillery.questions.subsets import SubsetRow

ITEMS = [{"id": f"s{i}", "doc_id": f"page {i % 12}"} for i in range(60)]
SAID = {"question": "In which of the 3 halls?", "difficulty": "easy"}


class Drawn:
    "Rows of a run, the same each time."

    def __init__(self, run: Path) -> None: self.run, self.rng = run, np.random.default_rng(88)

    def rows(self, name: str, rows: list) -> None:
        (self.run / name).parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(self.run / name, rows)

    def json(self, name: str, value: object) -> None:
        (self.run / name).parent.mkdir(parents=True, exist_ok=True)
        (self.run / name).write_text(json.dumps(value), "utf-8")

    def hit(self, share: float) -> float: return float(self.rng.random() < share)

    def some(self, least: float, most: float) -> float: return round(float(self.rng.uniform(least, most)), 4)

    def answers(self, share: float, name: str) -> list[EvalRow]:
        one = lambda x, i: EvalRow(
            **x, **{**SAID, "difficulty": ("easy", "hard")[i % 2]}, set=name, variant="fp32", family_id=x["id"],
            category="fact", kind="answer", gold="in hall 2", prediction="hall 3", finish_reason="stop",
            answer_match=(right := self.hit(share)), exact_match=right,
            token_f1=self.some(0.2, 0.9), keyword_coverage=1, refusal_accuracy=1, behaviour_accuracy=1, length_compliance=1,
            latency_ms=self.some(20, 60), completion_tokens=7)
        return [one({**x, "id": f"{name}-{x['id']}"}, i) for i, x in enumerate(ITEMS)]


def _prompts(d: Drawn) -> None:
    for pack, share in (("handbook", 0.8), ("technical-docs", 0.6)):
        for again in ("", "~reworded"):
            row = lambda x, share=share: PromptRow(
                **x, **SAID, answer=f"hall {d.rng.integers(9)}", answerable=(held := d.hit(share)),
                reason=None if held else "no evidence: hall 7", domain_relevance=d.some(0.3, 0.9), reference="hall 2", reply="hall 3",
                exact_match=d.hit(0.5), token_f1=d.some(0, 1), bert_f1=d.some(0.4, 1))
            d.rows(f"prompts/{pack}{again}/rows.jsonl", [row(x) for x in ITEMS])
            changed = [{"pack": pack, "prompt": "ask", "was": "Ask 1 question.", "now": "Write 1 question."}]
            d.json(f"prompts/{pack}{again}/facts.json", {"changed": changed if again else []})


def _trials(d: Drawn, name: str, levels: dict[str, float]) -> None:
    def trial(level: str, repeat: int, speed: float) -> Trial:
        lost = repeat == 2 and level == max(levels)
        said = {x["id"]: [["Which hall?", "hall 2"]] for x in ITEMS if d.hit(0.9)}
        return Trial(level=level, repeat=repeat, seconds=d.some(9, 10) / speed, first_s=d.some(0.1, 0.3), requests=120, tokens=2345,
                     outputs=said, start_gib=0.5, peak_gib=d.some(1, 2), samples=[[0, 0.5, 20], [5, 1.2, 90]], batch=8, refused=repeat,
                     limit="resource limits", error="out of memory at 3 GiB" if lost else None)

    d.rows(f"{name}/trials.jsonl", [trial(level, r, speed) for level, speed in levels.items() for r in range(3)])
    slot = lambda x: Slot(slot_id=x["id"], doc_id=x["doc_id"], chunk_id="c", category="fact", difficulty="easy")
    d.rows(f"{name}/slots.jsonl", [slot(x) for x in ITEMS])
    ways = {level: {"gib": None, "teacher.batch_size": int(level)} for level in levels}
    d.json(f"{name}/facts.json", {"cores": 2, "ram_gib": 7.5, "weights_gib": 0.04, "levels": ways})


def _students(d: Drawn) -> None:
    for order, (level, share) in enumerate((("mini", 0.6), ("tiny", 0.75))):
        d.rows(f"sizes/{level}/rows.jsonl", d.answers(share, "test") + d.answers(share, "recall"))
        d.json(f"sizes/{level}/facts.json", {"order": order, "kind": "causal LM", "bytes": 9_876_543 * (order + 1), "parameters": 2_345_678,
                                             "train_seconds": 1234.5})
    whole = read_jsonl(d.run / "eval/fp32/rows.jsonl", EvalRow)
    for share in (0.25, 0.5):
        worse = lambda r, share=share: r.model_copy(update={"answer_match": (r.answer_match or 0.0) * d.hit(share + 0.3)})
        d.rows(f"curve/{share}/rows.jsonl", [worse(r) for r in whole])


def _arms(d: Drawn) -> None:
    for arm, share in (("base", 0.3), ("sft", 0.7), ("logits", 0.72)):
        for seed in (1, 2):
            row = lambda x, name, share=share: ArmRow(
                **{**x, "id": f"{name}-{x['id']}"}, **SAID, set=name, kind="answer", gold="hall 2", prediction="hall 3",
                exact_match=d.hit(share), token_f1=d.some(share - 0.2, share + 0.2), latency_ms=d.some(20, 60),
                prompt_tokens=40, completion_tokens=7)
            d.rows(f"arms/{arm}-{seed}/rows.jsonl", [row(x, name) for name in ("recall", "test") for x in ITEMS])
            odds = {"method": "logits", "k": 16, "positions": 3456, "missing_mean": 0.0123, "missing_max": 0.456, "rows": 90,
                    "rows_with_odds": 88, "weight": 0.5, "temperature": 2.0}
            d.json(f"arms/{arm}-{seed}/arm.json", {"arm": arm, "seed": seed, "tokens": 0 if arm == "base" else 123_456, "seconds": 78.9,
                                                  **({"distillation": odds} if arm == "logits" else {})})


def _chunks(d: Drawn) -> None:
    ways = design(220, [60], [0.0, 0.25], [False, True])
    d.rows("chunks/cuts.jsonl", [CutFacts(level=c.name, size=c.size, overlap=c.overlap, titled=c.titled, passages=34_567 // c.size,
                                          tokens=34_567 + 100 * i) for i, c in enumerate(ways)])
    needed = lambda share: int(d.some(20, 900)) if d.hit(share) else None
    one = lambda x: ChunkRow(**x, question="Which of 3?", stratum="low", needed={c.name: needed(0.7) for c in ways})
    d.rows("chunks/rows.jsonl", [one(x) for x in ITEMS])
    left = {"not self-contained": 7, "ambiguous": 13, "with a duplicate": 4}
    d.json("chunks/facts.json", {"questions_from": "pairs", "left_out": left, "asked": 60, "known": 84, "why_not": None})


def _rag(d: Drawn) -> None:
    def row(x: dict, name: str, k: int, taken: bool) -> RagAnswer:
        right, refused = not taken and bool(d.hit(0.2 + 0.1 * min(k, 5))), bool(d.hit(0.6 if taken else 0.1))
        outcome = ("refused rightly" if refused else "should have refused") if taken else "right" if right else (
            "not remembered" if not k else "reading failed" if d.hit(0.5) else "retrieval failed")
        return RagAnswer(id=f"{name}-{x['id']}", k=k, cluster=x["doc_id"], difficulty="easy", question="Which of 3?", golds=["hall 2"],
                         prediction="hall 3", retrieved=["p"] * k, found=right, refused=refused, exact_match=right, token_f1=d.some(0, 1),
                         outcome=outcome, set=name, taken=taken, score=d.some(0.1, 0.9),
                         support=d.some(0, 1) if k and not refused else None)

    d.rows("rag/rows.jsonl", [row(x, name, k, taken) for name in ("test", "recall") for x in ITEMS for taken in (False, True)
                              for k in (0, 1, 3, 10) if k or not taken])
    left = {"not self-contained": 7, "ambiguous": 13, "with a duplicate": 4}
    d.json("rag/facts.json", {"variant": "fp32", "passages": 345, "left_out": left, "asked": 120, "known": 167, "why_not": None})


def _kernels(d: Drawn) -> None:
    forms = kernels_of([1, 4], [32, 128], [True, False])
    d.rows("kernels/costs.jsonl", [KernelCost(level=k.name, accuracy_level=k.level, block_size=k.block, vocabulary=k.vocabulary,
                                              bytes=9_876_543 + k.block, ms_each=[d.some(1, 4) for _ in range(8)]) for k in forms])
    kept = lambda k: 1 - 0.125 * d.hit(0.4 if k.level == 4 else 0.02)
    one = lambda x: FlipRow(id=x["id"], doc_id=x["doc_id"], positions=8, same={k.name: kept(k) for k in forms})
    d.rows("kernels/rows.jsonl", [one(x) for x in ITEMS])
    none = "level 1, blocks of 256, vocabulary full"
    d.json("kernels/facts.json", {"variant": "int8", "why_not": None, "not_asked": {none: f"{none}: blocks of 256 weights are too long"}})


def _subsets(d: Drawn) -> None:
    arms = (("all", 1.0, 0.6), ("random", 0.5, 0.5), ("top-k", 0.5, 0.55), ("facility", 0.5, 0.52))
    row = lambda x, seed, name, share: SubsetRow(**{**x, "id": f"{name}-{x['id']}"}, set=name, seed=seed, exact_match=d.hit(share),
                                                 token_f1=d.some(share - 0.2, share + 0.2))
    for student in ("reader", "decoder"):
        facts = {}
        for method, share, level in arms:
            facts[method if method == "all" else f"{method} {share:.0%}"] = {
                "method": method, "share": share, "pairs": round(1234 * share), "documents": 30, "least quality": d.some(0.4, 0.6)}
            rows = [row(x, seed, name, level) for seed in ("1", "2") for name in ("validation", "test") for x in ITEMS]
            d.rows(f"selected/{student}/{method}-{share:g}.jsonl", rows)
        d.json(f"selected/{student}/facts.json", {"why_not": None, "subsets": facts})
    graded = lambda i: SetRow(name=str(i) if i else "ungraded", pairs=345, with_reference=210, domain=d.some(0.5, 0.7),
                              bert=d.some(0.6, 0.9), token_f1=d.some(0.4, 0.6), exact_match=d.some(0.2, 0.4), questions=60)
    d.rows("domain/sets.jsonl", [graded(i) for i in range(25)])
    d.json("domain/facts.json", {"why_not": None, "pairs": 1234, "with reference": 876})


def asked_run(kept: Path, run: Path) -> Path:
    "A copy of a finished run to which every question was put; the kept student is the whole of the curve."
    shutil.copytree(kept, run)
    d = Drawn(run)
    _prompts(d)
    _trials(d, "parallel", {"1": 1.0, "4": 3.1})
    _trials(d, "memory", {"1": 1.0, "8": 2.2})
    grouped = lambda n, x: GroupedRow(level=n, slot_id=x["id"], doc_id=x["doc_id"], kept=d.hit(0.9), question="Which of 3?",
                                      answer="hall 2", requests=120 // n)
    d.rows("grouping/rows.jsonl", [grouped(n, x) for n in (1, 4) for x in ITEMS])
    _students(d)
    _arms(d)
    _chunks(d)
    _rag(d)
    _kernels(d)
    _subsets(d)
    return run
