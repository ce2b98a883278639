"""A one-line edit runs the stages again that touch the line, and those that rest on them; an edit of a page's words runs none."""
import ast
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import planted
import pytest
from knob_values import another
from planted import PACKAGE, Edit, Line, Touched, edit_line, planned, running

from distillery.core.errors import DistilleryError
from distillery.core.knobs import find_knob, flatten
from distillery.engine.code import PLAIN, reached_code
from distillery.engine.plan import Job, restrict
from distillery.engine.sources import Sources
from distillery.pairs.prompts import COMMON, asked_kinds, prompts_digest

CHEAP = ("documents", "generate", "grouping")  # stages that run in seconds, without a model
RUNS = ("stages", "design", "queries", "trials", "slots")  # what stages run of `questions`
PAGES = [p.relative_to(PACKAGE).as_posix() for folder in ("pages", "workbook", "commands", "questions")
         for p in sorted((PACKAGE / folder).rglob("*.py")) if folder != "questions" or p.stem not in RUNS]
PAGES += [f"core/{name}.py" for name in ("figures", "table", "render")]
SPOTS = ("body", "helper", "rule table", "prompt", "handed function", "closure", "protocol", "registry")  # kinds of edits of a line


def trace(tmp_path, stages=()):
    "What each stage touches when the plan runs."
    command = [sys.executable, planted.__file__, tmp_path / "touched", tmp_path / "cache", *stages]
    told = subprocess.run(command, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr[-3000:]
    return planned(tmp_path / "cache", bool(stages)), Touched(tmp_path / "touched")


def sent(stage, config) -> list[tuple[str, str]]:
    "Pack and kind of the templates that a stage's key holds: those of which its input is the digest."
    pack, digests = stage.run.keywords.get("spec", config.prompts.pack), {stage.inputs.get("prompts"), stage.inputs.get("pack")}
    sets = {asked_kinds(per_call, judge) for per_call in (1, 2) for judge in ("rules", "teacher")}
    sets |= {(*kinds, *COMMON[3:7]) for kinds in sets}
    [kinds] = [kinds for kinds in sets if prompts_digest(pack, kinds) in digests]
    return [(pack, kind) for kind in kinds]


class Keys:
    "Code and prompts of every stage's key, for a copy of the package that can be edited."

    def __init__(self, plan, folder: Path, stages=()) -> None:
        self.plan, self.copy, self.memory = plan, folder / "distillery", folder / "memory"
        self.stages = [s for s in plan.stages if not stages or s.name in stages]
        shutil.copytree(PACKAGE, self.copy, ignore=shutil.ignore_patterns("weights", "__pycache__"))
        self.sent = {s.name: sent(s, plan.config) for s in self.stages if {"prompts", "pack"} & set(s.inputs)}
        self.before = self.read()

    def template(self, pack: str, kind: str) -> str:
        own = self.copy / "prompts" / pack / f"{kind}.j2"
        return (own if own.is_file() else self.copy / "prompts/common" / own.name).read_text("utf-8")

    def read(self) -> dict[str, object]:
        sources = Sources(self.copy, self.memory)
        found = {s.name: (reached_code(s.run, Job, restrict, sources=sources), [self.template(*t) for t in self.sent.get(s.name, [])])
                 for s in self.stages}
        sources.save()
        return found

    def moved(self, edit: Edit) -> set[str]:
        "Stages whose key changes with an edit."
        place = self.copy / edit.file
        old = place.read_text("utf-8")
        place.write_text(edit.text, "utf-8")
        try: after = self.read()
        finally: place.write_text(old, "utf-8")
        return {name for name in after if after[name] != self.before[name]}

    def with_dependents(self, names: set[str]) -> set[str]:
        found = set(names)
        for stage in self.plan.stages:
            if found & set(stage.needs): found.add(stage.name)
        return found & {s.name for s in self.stages}


# Where edits are planted


def innermost(run: Callable) -> Callable:
    while isinstance(run, partial): run = run.func
    return run


def functions(plan, handed: bool) -> set[tuple[str, str]]:
    "File and name of the functions that stages run, or of those that they are handed."
    found = set()
    for stage in plan.stages:
        given = stage.run.keywords.values() if isinstance(stage.run, partial) else ()
        some = [innermost(v) for v in given if callable(v)] if handed else [innermost(stage.run)]
        named = [f for f in some if hasattr(f, "__qualname__")]
        found |= {(f.__module__.removeprefix("distillery.").replace(".", "/") + ".py", f.__qualname__) for f in named}
    return found


def protocol_methods(touched: Touched) -> set[str]:
    "Names of methods that a protocol of the package declares."
    return {m.name for tree in touched.trees.values() for c in ast.walk(tree) if isinstance(c, ast.ClassDef)
            for m in c.body if isinstance(m, ast.FunctionDef | ast.AsyncFunctionDef) and any("Protocol" in ast.unparse(b) for b in c.bases)}


def spots(plan, touched: Touched) -> dict[str, list[Line]]:
    "Lines that stages touch, by kind; of data files line 0."
    found: dict[str, list[Line]] = {kind: [] for kind in SPOTS}
    bodies, handed, methods = functions(plan, False), functions(plan, True), protocol_methods(touched)
    for file, line in sorted(touched.by_line):
        owner = touched.owner(file, line)
        if owner is None:
            table = next((s for s in touched.trees[file].body if s.lineno <= line <= s.end_lineno), None)
            value = getattr(table, "value", None)
            if isinstance(value, ast.Dict) and any(isinstance(v, ast.Name) for v in value.values): found["registry"].append((file, line))
            continue
        kind = "body" if (file, owner) in bodies else "handed function" if (file, owner) in handed else "helper"
        if kind == "helper" and owner.count(".") and owner.split(".")[1] in methods: kind = "protocol"
        if kind == "helper" and touched.nested(file, line): kind = "closure"
        found[kind].append((file, line))
    for file in sorted(touched.by_file):
        if file.endswith(".yaml"): found["rule table"].append((file, 0))
        if file.startswith("prompts/"): found["prompt"].append((file, 0))
    return found


def edit_data(file: str, rng: random.Random) -> Edit:
    "One more word in a line of a data file."
    text = (PACKAGE / file).read_text("utf-8").splitlines()
    line = rng.choice([i for i, words in enumerate(text) if words.strip()])
    text[line] += " indeed"
    return Edit(file, line + 1, "one more word", "\n".join(text) + "\n")


def draw_edits(plan, touched: Touched, n: int, seed: int, kinds=SPOTS) -> list[tuple[Edit, set[str]]]:
    "Edits of what stages touch: one of each kind, the rest of any touched line, with the stages that touch it."
    rng, found, places = random.Random(seed), list[tuple[Edit, set[str]]](), spots(plan, touched)
    assert all(places[kind] for kind in kinds), {kind: len(places[kind]) for kind in kinds}
    for some in places.values(): rng.shuffle(some)
    anywhere = [place for kind in kinds for place in places[kind]]
    rng.shuffle(anywhere)
    for some in [*(places[kind] for kind in kinds), *[anywhere] * (n - len(kinds))]:
        edit = None
        while edit is None:
            file, line = some.pop()
            edit = edit_line(file, line, rng) if line else edit_data(file, rng)
        found.append((edit, touched.by_line[file, line] if line else touched.by_file[file]))
    return found


def draw_wording(touched: Touched, n: int, seed: int) -> list[Edit]:
    "Edits of texts in functions of pages and cards that no stage runs, and of page templates."
    rng, places = random.Random(seed), list[tuple[str, int]]()
    for file in PAGES:
        for f in ast.walk(touched.trees[file]):
            if not isinstance(f, ast.FunctionDef): continue
            if any((file, i) in touched.run_lines for i in range(f.lineno, f.end_lineno + 1)): continue
            if f.name.endswith("_stages"): continue  # makes stages: what it says is about them
            places += [(file, n.lineno) for n in running(f) if isinstance(n, ast.Constant) and isinstance(n.value, str) and " " in n.value]
    templates = sorted(p.relative_to(PACKAGE).as_posix() for p in (PACKAGE / "page_templates").iterdir())
    edits = (edit_line(*rng.choice(places), rng, texts_only=True) for _ in range(9 * n))
    return [*(edit_data(rng.choice(templates), rng) for _ in range(max(1, n // 10))), *(e for e in edits if e)][:n]


# What they must do


def held_against(keys: Keys, edits: list[tuple[Edit, set[str]]]) -> tuple[list[str], list[str], float]:
    "Edits that a key misses, edits that move too many, and the share of stages too many over all edits."
    missing, more, too_many, wanted = list[str](), list[str](), 0, 0
    for edit, stages in edits:
        expected, moved = keys.with_dependents(stages), keys.with_dependents(keys.moved(edit))
        said = f"{edit.file}:{edit.line} {edit.what}"
        if lost := expected - moved: missing.append(f"{said}: {sorted(lost)}")
        if extra := moved - expected: more.append(f"{said}: {sorted(extra)}")
        too_many, wanted = too_many + len(moved - expected), wanted + len(expected)
    return missing, more, too_many / wanted


def not_in_keys(keys: Keys, touched: Touched) -> set[tuple[str, str]]:
    "Every stage and definition of which the stage ran a line, while its key does not hold the definition."
    found = set()
    for file, line in touched.run_lines:
        owner = touched.owner(file, line)
        if owner is None: continue
        module = "distillery." + file.removesuffix(".py").replace("/", ".")
        for stage in touched.by_line[file, line] & keys.before.keys():
            code = keys.before[stage][0]
            if not {f"{module}.{owner}", *([f"{module}.{owner.split('.')[0]}"] if touched.is_hook(file, owner) else [])} & code.keys():
                found.add((stage, f"{module}.{owner}"))
    return found


def data_not_in_keys(keys: Keys) -> list[str]:
    "Numbers and texts handed to a stage's function with a partial that can be changed without its key noticing."
    found, sources = [], Sources(keys.copy, keys.memory)
    for stage in (s for s in keys.stages if isinstance(s.run, partial)):
        for name, value in stage.run.keywords.items():
            if not isinstance(value, PLAIN): continue
            run = partial(stage.run.func, **{**stage.run.keywords, name: "another value"})
            if reached_code(run, Job, restrict, sources=sources) == keys.before[stage.name][0]: found.append(f"{stage.name}: {name}")
    return found


def settings_not_in_keys(tmp_path, plan, touched: Touched, small: bool, n: int, seed: int) -> tuple[list[str], int]:
    "Settings whose change leaves the key of a stage as it was that reads them, and how many settings were tried."
    names = [name for name in sorted(touched.by_setting) if find_knob(name)[0].kind == "result"]
    random.Random(seed).shuffle(names)
    values, missing, tried = flatten(plan.config), list[str](), 0
    before = {s.name: plan.parts(s) for s in plan.stages}
    for name in names:
        if tried == n: break
        try: other = planned(tmp_path / "cache", small, {name: another(find_knob(name)[0], values[name])})
        except DistilleryError: continue  # a value that only goes together with another
        after, tried = {s.name: other.parts(s) for s in other.stages}, tried + 1
        stages = touched.by_setting[name] & after.keys() & before.keys()
        missing += [f"{stage}: {name}" for stage in sorted(stages) if after[stage] == before[stage]]
    return missing, tried


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "n"), [(seed, 16) for seed in (13, 14, 15)])
def test_an_edit_moves_the_cheap_stages_that_touch_it(cheap, seed, n):
    plan, touched, keys, tmp_path = cheap
    missing, more, share = held_against(keys, draw_edits(plan, touched, n, seed))
    assert not missing, missing
    assert share <= 0.1, (share, more)
    assert not [e for e in draw_wording(touched, n // 3, seed) if keys.moved(e)]
    missing, tried = settings_not_in_keys(tmp_path, plan, touched, True, n // 4, seed)
    assert tried == n // 4
    assert not missing, missing


@pytest.mark.slow
def test_whatever_the_cheap_stages_run_and_are_handed_is_in_their_keys(cheap):
    _, touched, keys, _ = cheap
    assert not not_in_keys(keys, touched)
    code = keys.before["grouping"][0]
    lost = code.pop("distillery.questions.grouping.stages._ask_levels")
    assert not_in_keys(keys, touched) == {("grouping", "distillery.questions.grouping.stages._ask_levels")}
    code["distillery.questions.grouping.stages._ask_levels"] = lost
    assert not data_not_in_keys(keys)


@pytest.fixture(scope="module")
def cheap(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("planted")
    plan, touched = trace(tmp_path, CHEAP)
    return plan, touched, Keys(plan, tmp_path / "copy", CHEAP), tmp_path


@pytest.mark.slow
def test_planted_edits(tmp_path):
    plan, touched = trace(tmp_path)
    keys = Keys(plan, tmp_path / "copy")
    assert not not_in_keys(keys, touched)
    assert not data_not_in_keys(keys)
    missing, more, share = held_against(keys, draw_edits(plan, touched, 100, seed=88))
    assert not missing, missing
    assert share <= 0.1, (share, more)
    assert not [(e, moved) for e in draw_wording(touched, 100, seed=88) if (moved := keys.moved(e))]
    missing, tried = settings_not_in_keys(tmp_path, plan, touched, False, 20, seed=88)
    assert tried == 20
    assert not missing, missing
