"Another value for every knob: the knob accepts it, no preset has it, and it agrees with the other knobs."
from typing import Any

from distillery.core.knobs import Knob

OTHER: dict[str, Any] = {
    "articles.scales": {"clarity": [0.0, 4.0]},
    "budget.cost": 2.5,
    "budget.minutes": 30.0,
    "budget.prices": {"big": [1.0, 2.0]},
    "budget.tokens": 1000,
    "context.scorer": "finetune",
    "context.turns": 3,
    "dataset.augment": ["paraphrase"],
    "dataset.columns": {"question": "Frage"},
    "dataset.difficulty_mix": {"easy": 1.0},
    "dataset.splits": "70/20/10",
    "dataset.refusal_mix": {"off_topic": 1.0},
    "decisions.bases": ["builtin:mini", "builtin:tiny"],
    "decisions.chunk_sizes": [60],
    "decisions.chunk_overlaps": [0.5],
    "decisions.chunk_titles": [False],
    "decisions.confidence": 0.9,
    "decisions.distill_arms": ["base", "sft"],
    "decisions.index_sizes": [100],
    "decisions.kernel_levels": [1, 4],
    "decisions.kernel_blocks": [64],
    "decisions.kernel_vocabularies": [False],
    "decisions.margins": {"ndcg": 0.5},
    "decisions.memory_batches": [4, 8],
    "decisions.memory_gib": [0.5],
    "decisions.parallel": [1, 2],
    "decisions.population": "these",
    "decisions.prompt_packs": ["handbook", "resume"],
    "decisions.questions_per_call": [1, 4],
    "decisions.teacher_levels": ["fp32"],
    "decisions.teacher_reference": "pairs",
    "decisions.rag_passages": [1, 3],
    "decisions.scorers": ["static", "finetune"],
    "decisions.temperature_factor": "question",
    "decisions.selection_shares": [0.3],
    "decisions.selectors": ["top-k", "facility"],
    "decisions.threshold_shares": [0.2, 0.6],
    "decisions.train_shares": [0.25, 0.5],
    "decisions.train_seeds": [1, 2],
    "decisions.training_sets": 9,
    "distill.method": "sequence",
    "distill.teacher": "builtin:mini",
    "export.backend": "optimum",
    "export.gguf": ["q8_0"],
    "evaluation.device": "cpu",
    "evaluation.suite": "smoke",
    "sft.precision": "bf16",
    "sft.wait_policy": "passive",
    "export.same_top1_min": {"int8": 0.5},
    "judge.model": "builtin:extractive",
    "judge.rubric": "question",
    "monitor.prometheus_port": 9105,
    "prompts.json_mode": "schema",
    "prompts.language": "de",
    "quantization.accuracy_level": 1,
    "quantization.block_size": 64,
    "quantization.keep8": ["o_proj"],
    "selection.max_pairs": 7,
    "selection.method": "top-k",
    "selection.same_meaning": 0.8,
    "selection.secrets": "drop",
    "serve.token_env": "OTHER_TOKEN",
    "teacher.concurrency": 3,
    "teacher.concurrency_of": {"m": 2},
    "teacher.load_bits": 8,
    "teacher.parameters": {"seed": None},
    "teacher.timeout_of": {"m": 1800.0},
    "thresholds.p95_latency_ms_max": {"model.onnx": 1.0},
    "validation.judge": "teacher",
}


def another(knob: Knob, value: Any) -> Any:
    "A value that the knob accepts and does not have."
    if knob.name in OTHER and OTHER[knob.name] != value: return OTHER[knob.name]
    if knob.name.endswith("_strategy"): return "epoch" if value != "epoch" else "no"
    if isinstance(value, bool): return not value
    if isinstance(value, dict): return {**value, next(iter(value), "extra"): 0.5}
    if isinstance(value, list): return value[:1] if len(value) > 1 else ["*.md"]
    if isinstance(value, int): return value + 1
    if isinstance(value, float): return value / 2 if value else 0.25
    return "other"
