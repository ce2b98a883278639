"""One-place mutants of a module, and whether its notebook or its tests notice them.

    python tests/mutants.py --seed 13 --how-many 150          drawn over the modules of MODULES
    python tests/mutants.py pairs.limits teachers.pace        all mutants of two modules

The interpreter loads the module and its tests once; every mutant is a fork of it in which one function has other code, and nothing is
written to the tree. A mutant dies when a cell of the notebook or a test fails, or takes far longer than without it. Tests run in the order
of their speed, up to the first that fails.
Tests that start processes of their own run unmutated code there.
"""
import argparse
import ast
import asyncio
import copy
import importlib
import inspect
import json
import os
import pickle
import random
import re
import select
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FunctionType

import pytest

ROOT = Path(__file__).resolve().parents[1]
LISTED = Path(__file__).parent / "data" / "equivalent_mutants.json"
MODULES = {  # Which test files a module answers to; its notebook is named in its own second line
    "core.store": ["test_core_store.py"],
    "core.forecasts": ["test_core_verdicts.py"],
    "core.verdicts": ["test_core_verdicts.py"],
    "pairs.dataset": ["test_pairs_rows.py", "test_sides.py"],
    "pairs.limits": ["test_pairs_limits.py"],
    "pairs.slots": ["test_pairs_slots.py"],
    "teachers.budget": ["test_budget_counts.py"],
    "teachers.call_file": ["test_teachers_journal.py"],
    "teachers.journal": ["test_teachers_journal.py", "test_budget_counts.py"],
    "teachers.pace": ["test_teachers_pace.py"],
}
COMPARE = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
           ast.In: ast.NotIn, ast.NotIn: ast.In}
ARITHMETIC = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult}
SKIPPED = re.compile(r"#\| *(export|default_exp|slow|gpu|net)")


@dataclass(frozen=True)
class Mutant:
    module: str      # folder.name
    definition: str  # function or Class.method
    before: str      # The smallest expression that tells this mutant from the others of the definition
    after: str
    tree: ast.Module = field(repr=False)  # Of the whole module, unchanged
    old: ast.AST = field(repr=False)
    new: ast.AST = field(repr=False)

    @property
    def name(self) -> tuple[str, str, str, str]: return self.module, self.definition, self.before, self.after

    @property
    def code(self) -> CodeType: return compile(replaced(self.tree, self.old, self.new), f"<mutant of {self.module}>", "exec")

    def __str__(self) -> str: return f"{self.module} {self.definition}: {self.before}  ->  {self.after}"


# Making them

def is_text(node: ast.AST) -> bool:
    return any(isinstance(n, ast.JoinedStr) or (isinstance(n, ast.Constant) and isinstance(n.value, str)) for n in ast.walk(node))


def changes(node: ast.AST) -> list[ast.AST]:
    "What may stand in place of a node: another comparison, connective, operation, number or branch."
    match node:
        case ast.Compare(left, ops, values):
            swapped = [[*ops[:i], COMPARE[type(op)](), *ops[i + 1 :]] for i, op in enumerate(ops) if type(op) in COMPARE]
            return [ast.Compare(left, new, values) for new in swapped]
        case ast.BoolOp(op, values): return [ast.BoolOp(ast.Or() if isinstance(op, ast.And) else ast.And(), values)]
        case ast.BinOp(left, op, right) if type(op) in ARITHMETIC and not is_text(node):
            return [ast.BinOp(left, ARITHMETIC[type(op)](), right)]
        case ast.Constant(int(value)) if not isinstance(value, bool): return [ast.Constant(value + 1)]
        case ast.Constant(float(value)): return [ast.Constant(value * 2 or 1.0)]
        case ast.UnaryOp(ast.Not(), operand): return [operand]
        case ast.IfExp(test, body, orelse): return [ast.IfExp(test, orelse, body)]
    return []


def replaced(tree: ast.AST, old: ast.AST, new: ast.AST) -> ast.AST:
    "A copy of a tree in which another node stands in place of one: deepcopy takes `new` for a copy of `old` that it has made before."
    return ast.fix_missing_locations(copy.deepcopy(tree, {id(old): ast.copy_location(new, old)}))


def definitions(tree: ast.Module) -> dict[str, ast.FunctionDef | ast.AsyncFunctionDef]:
    "Functions and methods by name; functions inside of them belong to them."
    functions = ast.FunctionDef, ast.AsyncFunctionDef
    found = {n.name: n for n in tree.body if isinstance(n, functions)}
    for c in tree.body:
        if isinstance(c, ast.ClassDef): found |= {f"{c.name}.{n.name}": n for n in c.body if isinstance(n, functions)}
    return found


def paths(node: ast.AST, above: tuple[ast.AST, ...] = ()) -> list[tuple[ast.AST, ...]]:
    "Every node below one, with the nodes above it, nearest first."
    found = [(node, *above)]
    for child in ast.iter_child_nodes(node): found += paths(child, (node, *above))
    return found


def texts(path: tuple[ast.AST, ...], new: ast.AST) -> tuple[str, str]:
    "The outermost node of a path before and after its first one is changed."
    return ast.unparse(path[-1]), ast.unparse(replaced(path[-1], path[0], new))


def mutants_of(module: str, source: str) -> list[Mutant]:
    "All one-place mutants of a module's functions; decorators stay as they are."
    tree, made = ast.parse(source), []
    for name, function in definitions(tree).items():
        inside = [path for part in (function.args, *function.body) for path in paths(part)]
        open_, level = [(path, new) for path in inside for new in changes(path[0])], 1
        while open_:  # take in more of the code around a change until no other change reads the same
            said = [texts(path[:level], new) for path, new in open_]
            how_often = Counter(said)
            for (path, new), text in zip(open_, said, strict=True):
                if how_often[text] == 1: made.append(Mutant(module, name, *text, tree, path[0], new))
            open_, level = [found for found, text in zip(open_, said, strict=True) if how_often[text] > 1], level + 1
    return made


def file_of(module: str) -> Path: return ROOT / "distillery" / f"{module.replace('.', '/')}.py"


def all_mutants(modules: list[str]) -> list[Mutant]:
    return [m for module in modules for m in mutants_of(module, file_of(module).read_text("utf-8"))]


# Judging them

def function_of(namespace: dict, definition: str) -> FunctionType:
    "The plain function of a definition, below its decorators."
    owner, _, name = definition.rpartition(".")
    found = vars(namespace[owner])[name] if owner else namespace[name]
    return inspect.unwrap(found.fget if isinstance(found, property) else found)


def plant(mutant: Mutant) -> None:
    "Give the loaded function the mutant's code: whoever has imported it before sees it as well."
    module = importlib.import_module(f"distillery.{mutant.module}")
    scratch = {"__name__": module.__name__, "__package__": module.__package__, "__file__": module.__file__}
    exec(mutant.code, scratch)
    old, new = function_of(vars(module), mutant.definition), function_of(scratch, mutant.definition)
    old.__code__, old.__defaults__, old.__kwdefaults__ = new.__code__, new.__defaults__, new.__kwdefaults__


def notebook_of(module: str) -> Path:
    named = re.search(r"File to edit: \S*?(nbs/\S+\.ipynb)", file_of(module).read_text("utf-8"))
    return ROOT / named[1]


def run_notebook(module: str) -> None:
    "Run the cells that are not exported, with the module's names."
    names = dict(vars(importlib.import_module(f"distillery.{module}"))) | {"__name__": "__main__", "display": lambda *a: None}
    for cell in json.loads(notebook_of(module).read_text("utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] != "code" or SKIPPED.match(source): continue
        waiting = eval(compile(source, "cell", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), names)
        if inspect.iscoroutine(waiting): asyncio.run(waiting)


def stop_after(usual: float | None) -> None:
    "End this process where something takes far longer than usual; None: whenever it ends."
    signal.setitimer(signal.ITIMER_REAL, 0 if usual is None else 10 + 10 * usual)


class BySpeed:
    "A pytest plugin: the fastest tests first; it remembers how long each takes and which failed."

    def __init__(self, seconds: dict[str, float]) -> None: self.known, self.seconds, self.failed = seconds, Counter(), ""

    def pytest_collection_modifyitems(self, items): items.sort(key=lambda item: self.known.get(item.nodeid, 0.0))

    def pytest_runtest_setup(self, item): stop_after(None)  # a shared fixture is set up for whichever test comes first

    def pytest_runtest_call(self, item): stop_after(self.known.get(item.nodeid))

    def pytest_runtest_logreport(self, report):
        self.seconds[report.nodeid] += report.duration
        if report.failed: self.failed = self.failed or report.nodeid


def run_tests(module: str, seconds: dict[str, float]) -> BySpeed:
    speed = BySpeed(seconds)
    code = pytest.main(["-q", "-x", "-p", "no:cacheprovider", *(str(ROOT / "tests" / name) for name in MODULES[module])], plugins=[speed])
    if code and not speed.failed: speed.failed = f"pytest ended with {code!r}"
    return speed


def judged(module: str, mutant: Mutant | None, seconds: dict[str, float]) -> tuple[str, dict[str, float]]:
    "What killed a mutant, or nothing; and the time of each test."
    began = time.monotonic()
    stop_after(seconds.get("cells"))
    try:
        if mutant: plant(mutant)
        run_notebook(module)
    except BaseException as error: return f"notebook: {type(error).__name__} {error}".replace("\n", " ")[:120], {}
    cells = {"cells": time.monotonic() - began}
    speed = run_tests(module, seconds)
    return speed.failed, cells | speed.seconds


def in_a_fork(work, limit: float):
    "The result of a function that a forked process calls, or None when it takes longer than the limit or dies."
    ours, theirs = os.pipe()
    pid = os.fork()
    if not pid:
        os.setsid()
        os.close(ours)
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2): os.dup2(nowhere, stream)
        try:
            with open(theirs, "wb") as out: out.write(pickle.dumps(work()))
        finally: os._exit(0)
    os.close(theirs)
    with open(ours, "rb") as told:
        said = told.read() if select.select([told], [], [], limit)[0] else b""
    try: os.killpg(pid, signal.SIGKILL)  # also what it started
    except ProcessLookupError: pass
    os.waitpid(pid, 0)
    return pickle.loads(said) if said else None


class Jury:
    "Loads modules and tests once, and judges mutants in forks."

    def __init__(self, modules: list[str]) -> None:
        from hypothesis import settings

        settings.register_profile("mutants", derandomize=True, database=None, deadline=None)
        settings.load_profile("mutants")  # before tests are loaded: the same verdicts each time
        os.chdir(ROOT)
        sys.path.insert(0, str(ROOT))
        for module in modules: importlib.import_module(f"distillery.{module}")
        files = sorted({name for module in modules for name in MODULES[module]})
        if pytest.main(["-q", "--collect-only", "-p", "no:cacheprovider", "--no-summary", *(str(ROOT / "tests" / f) for f in files)]):
            raise RuntimeError("the tests cannot be collected")
        self.seconds = {module: self.whole(module) for module in modules}

    def whole(self, module: str) -> dict[str, float]:
        "Times without a mutant, where everything must pass."
        found = in_a_fork(lambda: judged(module, None, {}), 900)
        if found is None or found[0]: raise RuntimeError(f"{module} fails without a mutant: {found}")
        return found[1]

    def judge(self, mutant: Mutant) -> str:
        "What killed a mutant; empty where nothing did."
        usual = self.seconds[mutant.module]
        found = in_a_fork(lambda: judged(mutant.module, mutant, usual), 900)
        return "no answer in time" if found is None else found[0]


def listed() -> dict[tuple[str, str, str, str], str]:
    "Mutants that no test can tell from the code, each with its reason."
    rows = json.loads(LISTED.read_text("utf-8"))
    return {(r["module"], r["definition"], r["before"], r["after"]): r["reason"] for r in rows}


def drawn(seed: int, how_many: int, modules: list[str]) -> list[Mutant]:
    return random.Random(seed).sample(all_mutants(modules), how_many)


def main() -> None:
    ask = argparse.ArgumentParser(description="Judge one-place mutants.")
    ask.add_argument("modules", nargs="*", default=[])
    ask.add_argument("--seed", type=int)
    ask.add_argument("--how-many", type=int, default=150)
    asked = ask.parse_args()
    modules = asked.modules or list(MODULES)
    mutants = all_mutants(modules) if asked.seed is None else drawn(asked.seed, asked.how_many, modules)
    jury, reasons, lived, began = Jury(modules), listed(), [], time.monotonic()
    for module, seconds in jury.seconds.items(): print(f"{module}: {len(seconds) - 1} tests, {sum(seconds.values()):.1f} s", flush=True)
    for m in mutants:
        at = time.monotonic()
        killer = jury.judge(m)
        if not killer: lived.append(m)
        said = f"killed by {killer}" if killer else f"LISTED: {reasons[m.name]}" if m.name in reasons else "SURVIVED"
        print(f"{m}  {said}  ({time.monotonic() - at:.1f} s)", flush=True)
    for module in modules:
        of, alive = (sum(m.module == module for m in group) for group in (mutants, lived))
        print(f"{module}: {of} mutants, {alive} survived, {sum(m.module == module and m.name in reasons for m in lived)} of them listed")
    print(f"{len(mutants)} mutants, {len(mutants) - len(lived)} died, {len(lived)} survived, {time.monotonic() - began:.0f} s")


if __name__ == "__main__": main()
