"What the house rules say about notebooks, as functions that return complaints. `test_house.py` runs them; CONTRIBUTING.md explains them."
import ast
import json
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ORDER = ["core", "teachers", "retrieval", "pairs", "student", "filters", "workbook"]
BELOW = {name: set(ORDER[: i + 1]) for i, name in enumerate(ORDER)}
BELOW["models"] = {"core", "teachers", "models"}
BELOW["filters"] -= {"pairs", "student"}
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
    return said


def direction(nb: Notebook, numbers: dict[str, int]) -> list[str]:
    said, own = [], nb.module or ""
    folder = own.split(".")[0]
    for c in nb.code:
        for target in imports(c["source"]):
            there = target.split(".")[0]
            if target == own: said.append("imports the module it defines")
            elif there not in BELOW.get(folder, set()): said.append(f"{folder} imports {target}, which lies above it")
            elif there == folder and numbers.get(target, 0) >= numbers.get(own, 0):
                said.append(f"imports {target}, which comes later in its folder")
    return said
