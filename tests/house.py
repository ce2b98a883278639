"What the house rules say about notebooks, as functions that return complaints. `test_house.py` runs them; CONTRIBUTING.md explains them."
import ast
import json
import re
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ORDER = ["core", "wire", "reading", "teachers", "engine", "retrieval", "filters", "scoring", "selection", "pairs", "training", "exporting",
         "evaluation", "shipping", "questions", "pages", "workbook", "commands"]  # Lowest first: each imports what stands before it
BELOW = {name: set(ORDER[: i + 1]) for i, name in enumerate(ORDER)}
BELOW["models"] = {"core", "wire", "teachers", "models"}
for name in ("selection", "pairs"): BELOW[name] -= {"filters", "scoring"}
MAX_MODULES, MAX_LEVELS = 26, 7
MAX_CELLS, MAX_CODE, MAX_EXPORTED, MAX_EXPORTED_CELL, MAX_SHOW = 80, 350, 220, 40, 16


@dataclass
class Notebook:
    path: Path
    cells: list[dict] = field(default_factory=list)
    metadata: dict = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "Notebook":
        raw = json.loads(path.read_text("utf-8"))
        cells = [{**c, "source": "".join(c["source"])} for c in raw["cells"]]
        return cls(path, cells, raw["metadata"])

    @property
    def code(self) -> list[dict]: return [c for c in self.cells if c["cell_type"] == "code"]

    @property
    def exported(self) -> list[str]: return [c["source"] for c in self.code if c["source"].startswith("#| export")]

    @cached_property
    def module(self) -> str | None:
        found = re.search(r"^#\| default_exp (\S+)", "\n".join(c["source"] for c in self.code), re.M)
        return found[1] if found else None

    @property
    def name(self) -> str: return str(self.path.relative_to(ROOT / "nbs"))


def lines(source: str) -> int:
    return sum(1 for line in source.splitlines() if line.strip() and not line.startswith("#|"))


@cache
def imports(source: str) -> set[str]:
    "Modules of ours that a cell imports, each as folder.name."
    found: set[str] = set()
    for node in ast.walk(ast.parse(re.sub(r"^[%!].*$", "", source, flags=re.M))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("distillery"):
            base = (node.module or "").removeprefix("distillery").strip(".")
            found |= {base} if "." in base else {f"{base}.{a.name}".strip(".") for a in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.removeprefix("distillery").strip(".") for a in node.names if a.name.startswith("distillery")}
    return {f for f in found if f}


def library() -> list[Notebook]:
    return [
        Notebook.read(p) for p in sorted((ROOT / "nbs").rglob("[0-9]*_*.ipynb"))
        if p.parent.name != "reports" and ".ipynb_checkpoints" not in p.parts
    ]


def reports() -> list[Notebook]:
    return [Notebook.read(p) for p in sorted((ROOT / "nbs/reports").glob("*.ipynb"))]


def shape(nb: Notebook) -> list[str]:
    first = next(c["source"] for c in nb.cells if c["cell_type"] == "markdown")
    said = []
    if not re.match(r"# .+\n\n> \S", first): said.append("does not open with an H1 and a `>` line")
    if len(nb.cells) > MAX_CELLS: said.append(f"{len(nb.cells)} cells, over {MAX_CELLS}")
    if (n := sum(lines(c["source"]) for c in nb.code)) > MAX_CODE: said.append(f"{n} code lines, over {MAX_CODE}")
    if (n := sum(map(lines, nb.exported))) > MAX_EXPORTED: said.append(f"{n} exported lines, over {MAX_EXPORTED}")
    if (n := len(nb.cells) - len(nb.code)) * 3 < len(nb.code):
        said.append(f"{n} markdown cells for {len(nb.code)} of code: fewer than one in three")
    if not 2 <= (n := sum(c["source"].startswith("## ") for c in nb.cells)) <= 7: said.append(f"{n} second-level headings, not 2 to 7")
    if nb.metadata.get("kernelspec", {}).get("name") != "python3": said.append("no kernelspec python3")
    return said


def cells(nb: Notebook) -> list[str]:
    said = []
    for i, c in enumerate(nb.cells):
        if c["cell_type"] != "code": continue
        src, exported = c["source"], c["source"].startswith("#| export")
        if exported and lines(src) > MAX_EXPORTED_CELL: said.append(f"exported cell {i} has {lines(src)} lines, over {MAX_EXPORTED_CELL}")
        if not exported and "#| hide" not in src and lines(src) > MAX_SHOW:
            said.append(f"cell {i} shows with {lines(src)} lines, over {MAX_SHOW}")
        bare = all(line.startswith("#") for line in src.splitlines() if line) and "#|" not in src
        if src and bare: said.append(f"cell {i} is only comments")
        if re.search(r"^\s*print\(", src, re.M): said.append(f"cell {i} prints")
        if exported and re.search(r"^\s*from \S+ import \*", src, re.M): said.append(f"cell {i} exports a star import")
        if re.search(r"eval:\s*false", src): said.append(f"cell {i} is hidden from the tests by eval: false")
        if place := re.search(MACHINE, json.dumps(c.get("outputs", []))): said.append(f"cell {i} shows a place of one machine: {place[0]}")
    return said


def folder_of(module: str) -> str: return module.rpartition(".")[0]


def direction(nb: Notebook, numbers: dict[str, int]) -> list[str]:
    said, own = [], nb.module or ""
    top = own.split(".")[0]
    for target in sorted({t for c in nb.code for t in imports(c["source"])}):
        there = target.split(".")[0]
        if target == own: said.append("imports the module it defines")
        elif there not in BELOW.get(top, set()): said.append(f"{top} imports {target}, which lies above it")
        elif folder_of(target) == folder_of(own) and numbers.get(target, 0) >= numbers.get(own, 0):
            said.append(f"imports {target}, which comes later in its folder")
    return said + question_rules(nb)


def question_rules(nb: Notebook) -> list[str]:
    "A question's folder imports no other question's; its stages import no card and no table; only `questions.all` imports folders."
    own, said = nb.module or "", []
    for target in sorted({t for source in nb.exported for t in imports(source)}):
        if not target.startswith("questions.") or target.count(".") < 2: continue
        if own == "questions.all": continue
        if folder_of(target) != folder_of(own): said.append(f"{own} imports {target}: only questions.all imports the folder of a question")
        elif own.endswith(".stages") and target.endswith((".decision", ".tables")):
            said.append(f"{own} imports {target}: the wording of a card must not run a stage again")
        elif own.endswith(".decision") and target.endswith(".tables"): said.append(f"{own} imports {target}: tables rest on the decision")
    return said


def levels(edges: dict[str, set[str]]) -> dict[str, int]:
    "Length of the longest chain of imports inside its folder that ends at each module."
    found: dict[str, int] = {}

    def level(module: str) -> int:
        if module not in found:
            found[module] = 0  # a circle stops here; Python refuses it anyway
            near = [t for t in edges[module] if t in edges and t != module and folder_of(t) == folder_of(module)]
            found[module] = 1 + max(map(level, near), default=0)
        return found[module]

    for module in edges: level(module)
    return found


HEAVY = frozenset(  # 20 ms or more, of an extra, or not there on every platform
    "IPython accelerate aiohttp bert_score bm25s charset_normalizer datasets datasketch detect_secrets faiss gguf huggingface_hub "
    "ipywidgets jinja2 mammoth matplotlib mlx mlx_lm nbconvert numpy onnx onnx_ir onnxruntime onnxruntime_genai onnxscript optimum "
    "pandas papermill peft phonenumbers prometheus_client psutil pypdfium2 resource safetensors scipy selectolax "
    "sentence_transformers sklearn tokenizers torch transformers trl".split())
PLANS = "distillery.workbook.experiment"  # what it loads is loaded before anything runs: an unchanged run pays for it
MACHINE = r"/(?:tmp|root|home|work|Users)/[\w.-]+|site-packages"  # what an output must not show: it differs on the next machine
MAKES = re.compile(r"Model\w*\.from_pretrained$|\bSentenceTransformer$")
LAZY = ("distillery.commands.", "distillery.workbook.checks")  # these load what they need when they are called


@cache
def modules() -> dict[str, ast.Module]:
    "Every module of the package, parsed."
    paths = [p for p in sorted((ROOT / "distillery").rglob("*.py")) if p.name not in ("_modidx.py", "__init__.py")]
    return {".".join(p.relative_to(ROOT).with_suffix("").parts): ast.parse(p.read_text("utf-8")) for p in paths}


def targets(node: ast.AST, module: str) -> list[str]:
    "What one import statement may load, in full: the module, and each name that may be a module in it."
    if isinstance(node, ast.Import): return [a.name for a in node.names]
    if not isinstance(node, ast.ImportFrom): return []
    base = module.split(".")[: -node.level] if node.level else []
    whole = ".".join([*base, *([node.module] if node.module else [])])
    return [whole, *(f"{whole}.{a.name}" for a in node.names)]


def heavy_modules(trees: dict[str, ast.Module]) -> set[str]:
    "Modules of ours that load something heavy, by themselves or through what stands at the top of others."
    tops = {module: {t for node in tree.body for t in targets(node, module)} for module, tree in trees.items()}
    found = {module for module, names in tops.items() if any(t.split(".")[0] in HEAVY for t in names)}
    while more := {module for module, names in tops.items() if module not in found and names & found}: found |= more
    return found


def planning(trees: dict[str, ast.Module]) -> set[str]:
    "Modules of ours that are loaded to plan a run."
    found, todo = set(), {PLANS}
    while todo:
        found |= todo
        todo = {t for module in todo for node in trees[module].body for t in targets(node, module) if t in trees} - found
    return found


def made_alone(module: str, tree: ast.Module) -> list[str]:
    "Models that are made while another may be made too: without `LOADS`, or `loading`, which holds it."
    held = [n for w in ast.walk(tree) if isinstance(w, ast.With) and re.search(r"LOADS|loading\(", " ".join(map(ast.unparse, w.items)))
            for n in ast.walk(w)]
    makes = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and MAKES.search(ast.unparse(n.func))]
    return [f"{module} line {n.lineno}: {ast.unparse(n.func)}" for n in makes if n not in held]


def hidden_imports(module: str, tree: ast.Module, heavy: set[str], planned: set[str]) -> list[str]:
    "Imports inside of functions that could stand at the top: what they load is not heavy, and planning a run would not load more."
    said = set()
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef): continue
        for node in ast.walk(function):
            names = targets(node, module)
            later = bool(names) and module in planned and names[0].startswith("distillery.") and not set(names) & planned
            if names and not later and not any(t.split(".")[0] in HEAVY or t in heavy for t in names):
                said.add(f"{function.name} imports {names[0]}, which loads nothing heavy: import it at the top")
    return sorted(said)
