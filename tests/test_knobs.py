"No dead knobs: each is read by code that makes results, and each result knob enters the key of a stage, each other knob none."
import ast
import json
from pathlib import Path

import pytest

from distillery.core.config import flatten, load_config, result_keys
from distillery.core.knobs import knobs
from distillery.workbook.experiment import prepare

from knob_values import another

ROOT = Path(__file__).resolve().parents[1] / "distillery"
DECLARED = {"core/student_knobs.py", "core/pair_knobs.py", "core/sections.py", "core/knobs.py", "core/config.py"}


def words(path: Path) -> set[str]:
    "Names that a module or the code of a report reads as attributes or holds as texts."
    found, code = set(), path.read_text("utf-8")
    if path.suffix == ".ipynb": code = "\n".join("".join(c["source"]) for c in json.loads(code)["cells"] if c["cell_type"] == "code")
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Attribute): found.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str): found |= {node.value, *node.value.split(".")}
    return found


USED = {
    p.relative_to(ROOT).as_posix(): words(p) for p in [*ROOT.rglob("*.py"), *ROOT.glob("templates/*.ipynb")]
    if p.relative_to(ROOT).as_posix() not in DECLARED and p.name != "_modidx.py"
}
BEFORE = flatten(load_config(preset="handbook"))
ALL = {"student.extractive": True, "export.gguf": ["f16"], "decisions.distill_arms": ["sft", "sequence"]}
PLAN = prepare(None, None, load_config(preset="handbook", overrides=ALL)).plan


@pytest.mark.parametrize("knob", knobs(), ids=lambda k: k.name)
def test_every_knob_is_read(knob):
    *section, name = knob.name.split(".")
    readers = [
        module for module, said in USED.items()
        if name in said and (not section or section[0] in said or section[-1] in said or name in ("r", "alpha"))
    ]
    assert readers, f"nothing reads {knob.name}: a dead knob"


def parts_of(**change):
    config = load_config(preset="handbook", overrides=change)
    return {s.name: result_keys(config, s.reads) for s in PLAN.stages}


@pytest.mark.parametrize("knob", knobs(), ids=lambda k: k.name)
def test_only_result_knobs_change_keys(knob):
    if knob.name in ("thresholds.p95_latency_ms_max", "sft.load_best_model_at_end", "teacher.model", "student.base", "prompts.pack",
                     "dataset.gold"):
        pytest.skip("its values must exist or agree with others; covered where they are used")
    changed, plain = parts_of(**{knob.name: another(knob, BEFORE[knob.name])}), parts_of()
    moved = [name for name, settings in changed.items() if settings != plain[name]]
    only_pages = knob.name.startswith("decisions.")
    assert bool(moved) == (knob.kind == "result") or only_pages, f"{knob.name} is {knob.kind} and moves {moved}"


def test_a_teacher_that_nobody_learns_from_trains_nobody_again():
    plain, other = parts_of(), parts_of(**{"distill.teacher": "builtin:mini", "distill.weight": 0.9})
    assert plain["sft"] == other["sft"] != parts_of(**{"distill.method": "sequence"})["sft"]
    assert {name for name in plain if plain[name] != other[name]} == {n for n in plain if n.startswith("arm-") or n == "teach"}
