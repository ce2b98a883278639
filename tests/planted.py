"""Planted edits: which stages touch a line when they run, and one-line edits to hold keys against.

A stage touches a line of a function when it runs it, in its own process or in a child. What stands outside of functions runs at
import, whoever asks; so a stage touches a constant of a module when it runs a line that names it, and a data file of the package
when it opens it or touches a line that names it.
"""
import ast
import inspect
import json
import os
import random
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType

PACKAGE = Path(__file__).resolve().parents[1] / "distillery"
Line = tuple[str, int]  # file below the package, line
HOOK = "import os, sys\nsys.path.insert(0, os.environ['PLANTED_TESTS'])\nimport planted\nplanted.watch_child()\n"


class Tracer:
    "Collects the lines of functions of the package that run, and the files of the package that are opened."

    def __init__(self) -> None:
        self.lines, self.files, self.settings = set[Line](), set[str](), set[str]()
        self.codes = dict[CodeType, str | None]()
        self.root = str(PACKAGE.resolve()) + "/"
        sys.addaudithook(self._heard)

    def _heard(self, event, arguments) -> None:
        name = arguments[0] if event == "open" else None
        if not isinstance(name, str) or not name.startswith(self.root) or self._imports(sys._getframe()): return
        self.files.add(name[len(self.root):])

    def _file(self, code: CodeType) -> str | None:
        "The file of a function of the package, below the package; None of everything else."
        if code not in self.codes:
            path = os.path.realpath(code.co_filename)
            self.codes[code] = path[len(self.root):] if path.startswith(self.root) else None
        return self.codes[code]

    def called(self, frame, event, argument):
        code = frame.f_code
        if self._file(code) is None or not code.co_flags & inspect.CO_OPTIMIZED: return None
        return None if self._imports(frame) else self.ran

    def _imports(self, frame) -> bool:
        "Whether a module of the package is being imported: what runs then is no stage's doing."
        while frame := frame.f_back:
            code, main = frame.f_code, frame.f_globals.get("__name__") == "__main__"
            if code.co_name == "<module>" and not main and self._file(code): return True
        return False

    def ran(self, frame, event, argument):
        if event == "line": self.lines.add((self.codes[frame.f_code] or "", frame.f_lineno))
        return self.ran

    def start(self) -> None:
        threading.settrace(self.called)
        sys.settrace(self.called)

    def save(self, path: Path) -> None:
        sys.settrace(None)
        told = {"lines": sorted(self.lines), "files": sorted(self.files), "settings": sorted(self.settings)}
        path.write_text(json.dumps(told))


def watch_child() -> None:
    "Called by the sitecustomize of a child process of a stage."
    import atexit
    tracer = Tracer()
    atexit.register(lambda: tracer.save(Path(os.environ["PLANTED_OUT"], f"{os.getpid()}.json")))
    tracer.start()


def run_traced(plan, out: Path, only: set[str] | None = None) -> None:
    "Run the stages of a plan, each in a fork of its own with cold caches, and write what each touched to `out/STAGE/*.json`."
    from dataclasses import replace

    from distillery.engine.plan import make_stage
    (out / "hook").mkdir(parents=True)
    (out / "hook/sitecustomize.py").write_text(HOOK)
    os.environ |= {"PLANTED_TESTS": str(Path(__file__).parent), "PYTHONPATH": f"{out / 'hook'}{os.pathsep}{PACKAGE.parent}"}
    done = {}
    for stage in plan.stages:
        if only is not None and stage.name not in only: continue
        place = out / stage.name
        place.mkdir()
        for kept in plan.shelf.cache.glob("*.sqlite*"): kept.unlink()  # answers and vectors that another stage asked for
        os.environ["PLANTED_OUT"] = str(place)
        parts = plan.parts(stage, {n: done[n].digest for n in stage.needs})
        made = lambda run, s=stage, p=parts: make_stage(plan.shelf, replace(s, run=run), p, plan.config, {n: done[n].path for n in s.needs},
                                                       lambda event: None)
        if (child := os.fork()) == 0:
            try:
                clear_caches()
                smaller()
                tracer = Tracer()
                made(lambda job, s=stage, t=tracer: traced(s, job, t))
                tracer.save(place / "itself.json")
                os._exit(0)
            except BaseException:
                import traceback
                traceback.print_exc()
                os._exit(1)
        if os.waitpid(child, 0)[1]: raise RuntimeError(f"stage {stage.name} failed in its traced run")
        from distillery.core.store import digest_json
        done[stage.name] = plan.shelf.found(stage.name, digest_json(parts))
        sys.stderr.write(f"{stage.name}: {done[stage.name].seconds:.1f} s\n")


class Noted:
    "A stage's settings, which notes the name of each that is read."

    def __init__(self, config, names: set[str], path: str = "") -> None: self.parts = config, names, path

    def __getattr__(self, name):
        config, names, path = object.__getattribute__(self, "parts")
        if name == "_parts": return config._parts
        value, full = getattr(config, name), f"{path}{name}"
        if hasattr(value, "_parts"): return Noted(value, names, f"{full}.")
        names.add(full)
        return value


def traced(stage, job, tracer: Tracer) -> None:
    from dataclasses import replace
    tracer.files.clear()
    tracer.start()
    try: stage.run(replace(job, config=Noted(job.config, tracer.settings), say=lambda *a, **k: None))
    finally:
        sys.settrace(None)
        threading.settrace(None)


SMALL = {
    "documents.include": ["courses-1.md", "customers-1.md", "people-1.md", "products-1.md", "suppliers-1.md", "machines-1.md"],
    "dataset.questions_per_chunk": 2, "dataset.variations_per_question": 1, "decisions.questions_per_call": [1, 3],
    "decisions.prompt_slots": 2,
    "sft.dataloader_num_workers": 0, "teacher.model": "builtin:extractive",
}
WHOLE = {  # all optional questions but `memory`, which runs the trials of `parallel` in other ways
    **SMALL, "teacher.model": "builtin:mini", "teacher.logprobs": 5, "student.extractive": True, "student.extractive_epochs": 1,
    "sft.epochs": 1, "sft.batch_size": 4, "export.gguf": ["f16"], "export.variants": ["fp32", "int8"],
    "decisions.teacher_levels": ["fp32", "int8"], "decisions.teacher_slots": 3,
    "decisions.distill_arms": ["base", "sft", "sequence", "logits", "rag"], "decisions.train_seeds": [1],
    "decisions.bases": ["builtin:mini", "builtin:tiny"], "decisions.temperatures": [0.0, 0.7], "decisions.temperature_slots": 2,
    "decisions.temperature_replicates": 2, "decisions.prompt_packs": ["handbook", "technical-docs"], "decisions.train_shares": [0.25, 0.5],
    "decisions.parallel": [1, 2], "context.budgets": [64, 128], "context.turns": 1,
    "embedder.tune_steps": 2, "embedder.queries": 8, "evaluation.full_samples_per_set": 6,
}


def planned(cache: Path, small: bool, changes=None):
    "The built-in plan with optional questions on, small enough to be run under a trace."
    from distillery.core.config import load_config
    from distillery.workbook.experiment import prepare
    asked = {**(SMALL if small else WHOLE), "workbook.cache_dir": str(cache), **(changes or {})}
    return prepare(None, None, load_config(preset="handbook", overrides=asked)).plan


def clear_caches() -> None:
    "A cached result would hide the lines that make it."
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] != "distillery": continue
        for value in list(vars(module).values()):
            if hasattr(value, "cache_clear"): value.cache_clear()


def smaller() -> None:
    "A sixth of the built-in articles, and each trial once: every line runs, in less time."
    from distillery.filters.made import make_articles
    from distillery.questions.load import stages
    make_articles.__defaults__ = (40, *make_articles.__defaults__[1:])
    stages.REPEATS = 1


# What a trace means


class Touched:
    "Lines, constants and files that each stage touches."

    def __init__(self, out: Path) -> None:
        self.trees = {p.relative_to(PACKAGE).as_posix(): ast.parse(p.read_text("utf-8")) for p in PACKAGE.rglob("*.py")}
        self.by_line, self.by_file, self.by_setting = dict[Line, set[str]](), dict[str, set[str]](), dict[str, set[str]]()
        self.known, self.memory = set(), {}
        self.data = {p.relative_to(PACKAGE).as_posix() for p in PACKAGE.rglob("*.*") if p.is_file() and p.suffix not in (".py", ".pyc")}
        for folder in sorted(p for p in out.iterdir() if p.name != "hook"):
            for told in (json.loads(p.read_text()) for p in folder.glob("*.json")):
                for file, line in told["lines"]: self.by_line.setdefault((file, line), set()).add(folder.name)
                for name in told["settings"]: self.by_setting.setdefault(name, set()).add(folder.name)
                for file in told["files"]:
                    if not file.endswith((".py", ".pyc")): self.by_file.setdefault(file, set()).add(folder.name)
        self.run_lines = set(self.by_line)
        for (file, line), stages in list(self.by_line.items()): self._named(file, line, frozenset(stages))

    def _statements(self, file: str) -> dict[str, ast.stmt]:
        "Constants of a module, by name."
        found = {}
        for node in self.trees[file].body:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
            for name in (n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)): found[name] = node
        return found

    def _imports(self, file: str) -> dict[str, tuple[str, str]]:
        "Name to file and name, of everything that a module or a function in it imports from the package."
        found, folder = {}, ("distillery/" + file).split("/")[:-1]
        for node in ast.walk(self.trees[file]):
            if not isinstance(node, ast.ImportFrom): continue
            base = [*(folder[: len(folder) - node.level + 1] if node.level else []), *(node.module or "").split(".")]
            if base[0] != "distillery": continue
            for a in node.names:
                whole, part = "/".join([*base[1:], a.name]).strip("/") + ".py", "/".join(b for b in base[1:] if b) + ".py"
                if whole in self.trees: found[a.asname or a.name] = (whole, "")
                elif part in self.trees: found[a.asname or a.name] = (part, a.name)
        return found

    def _named(self, file: str, line: int, stages: frozenset[str]) -> None:
        for node in self.at(file, line):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                for name in (f"{Path(file).parent}/{node.value}", node.value):
                    if name in self.data: self.by_file.setdefault(name, set()).update(stages)
            elif isinstance(node, ast.Name): self._constant(file, node.id, stages)
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                where, name = self.imports(file).get(node.value.id, ("", "."))
                if not name: self._constant(where, node.attr, stages)

    def _constant(self, file: str, name: str, stages: frozenset[str]) -> None:
        if (file, name, stages) in self.known: return
        self.known.add((file, name, stages))
        if (statement := self.statements(file).get(name)) is not None:
            for line in range(statement.lineno, (statement.end_lineno or statement.lineno) + 1):
                self.by_line.setdefault((file, line), set()).update(stages)
                self._named(file, line, stages)
        elif name in self.imports(file): self._constant(*self.imports(file)[name], stages)

    def statements(self, file: str): return self._once(("statements", file), lambda: self._statements(file))

    def imports(self, file: str): return self._once(("imports", file), lambda: self._imports(file))

    def _once(self, key, make):
        if key not in self.memory: self.memory[key] = make()
        return self.memory[key]

    def owner(self, file: str, line: int) -> str | None:
        "The top function, or the class and its method, that a line stands in, e.g. `Table.cells`."
        for node in self.trees[file].body:
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef): continue
            if not node.lineno <= line <= (node.end_lineno or 0): continue
            inner = [m.name for m in node.body if isinstance(m, ast.FunctionDef | ast.AsyncFunctionDef)
                     and m.lineno <= line <= (m.end_lineno or 0)]
            return ".".join([node.name, *inner]) if isinstance(node, ast.ClassDef) else node.name
        return None

    def is_hook(self, file: str, owner: str) -> bool:
        "Whether a method counts with its class."
        from distillery.engine.definitions import split_class
        name, _, method = owner.partition(".")
        node = next(c for c in self.trees[file].body if getattr(c, "name", "") == name)
        return bool(method) and method not in {m.name for m in split_class(node)[1]}

    def nested(self, file: str, line: int) -> bool:
        "Whether a line stands in a function or lambda inside of another."
        def inside():
            found = set[int]()
            for outer in ast.walk(self.trees[file]):
                if not isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef): continue
                for f in ast.walk(outer):
                    if f is not outer and isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                        found |= set(range(f.body.lineno if isinstance(f, ast.Lambda) else f.body[0].lineno, (f.end_lineno or 0) + 1))
            return found
        return line in self._once(("nested", file), inside)

    def at(self, file: str, line: int) -> list[ast.AST]:
        "Expressions of a line that run: annotations and docstrings do not."
        def by_line():
            found: dict[int, list[ast.AST]] = {}
            for node in running(self.trees[file]): found.setdefault(node.lineno, []).append(node)
            return found
        return self._once(("lines", file), by_line).get(line, [])


def running(tree: ast.AST) -> Iterator[ast.expr]:
    "Expressions that are evaluated, without annotations and docstrings."
    for name, value in ast.iter_fields(tree):
        if name in ("annotation", "returns", "type_comment"): continue
        for node in value if isinstance(value, list) else [value]:
            if not isinstance(node, ast.AST): continue
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant): continue
            if isinstance(node, ast.expr): yield node
            yield from running(node)


# Edits


@dataclass(frozen=True)
class Edit:
    "One changed line of one file."
    file: str
    line: int
    what: str
    text: str  # The whole file, changed


def changed(node: ast.expr) -> ast.expr | None:
    "Another expression in the place of one, or None."
    if isinstance(node, ast.Constant):
        v = node.value
        if isinstance(v, bool): return ast.Constant(not v)
        if isinstance(v, int | float): return ast.Constant(v + 1)
        if isinstance(v, str) and v: return ast.Constant(v + " indeed")
    if isinstance(node, ast.Compare):
        swap = {ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.Gt: ast.LtE, ast.LtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.In: ast.NotIn,
                ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is}
        return ast.Compare(node.left, [swap[type(node.ops[0])](), *node.ops[1:]], node.comparators)
    if isinstance(node, ast.BoolOp): return ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub):
        return ast.BinOp(node.left, ast.Sub() if isinstance(node.op, ast.Add) else ast.Add(), node.right)
    if isinstance(node, ast.Call): return ast.Tuple([node], ast.Load())
    return None


def edit_line(file: str, line: int, rng: random.Random, texts_only: bool = False) -> Edit | None:
    "Change one expression of a line; None where there is nothing to change."
    tree = ast.parse((PACKAGE / file).read_text("utf-8"))
    inside = {id(v) for f in ast.walk(tree) if isinstance(f, ast.JoinedStr) for v in ast.walk(f)}
    fine = [n for n in running(tree) if n.lineno == line and id(n) not in inside and changed(n) is not None]
    if texts_only: fine = [n for n in fine if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    if not fine: return None
    old = rng.choice(fine)
    new = changed(old)

    class Swap(ast.NodeTransformer):
        def visit(self, node): return new if node is old else self.generic_visit(node)

    before, same = ast.unparse(old), ast.dump(tree)
    text = ast.unparse(ast.fix_missing_locations(Swap().visit(tree)))
    if ast.dump(ast.parse(text)) == same: return None  # `with f():` and `with (f(),):` are one
    return Edit(file, line, f"{before[:60]} -> {ast.unparse(new)[:60]}", text)


if __name__ == "__main__":  # OUT CACHE [STAGE ...]
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    stages = set(sys.argv[3:])
    if not stages:
        import peft, sentence_transformers, torch, transformers, trl  # noqa: E401, F401
    run_traced(planned(Path(sys.argv[2]), bool(stages)), Path(sys.argv[1]), stages or None)
