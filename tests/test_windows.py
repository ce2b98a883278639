"What a system without Unix's own modules meets: no import of one outside a guard, and memory is still measured."
import ast
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil

from distillery.evaluation.measure import memory_mb
from distillery.workbook.experiment import peak_gib

UNIX = {"resource", "fcntl", "pwd", "grp", "termios", "tty"}
PACKAGE = Path(__file__).resolve().parents[1] / "distillery"


def unguarded(source: str) -> set[str]:
    "Modules of Unix that are imported where nothing catches their absence and no line asks for the system."
    if not any(name in source for name in UNIX): return set()
    guarded = set()
    for node in ast.walk(tree := ast.parse(source)):
        if isinstance(node, ast.Try) and any("ImportError" in ast.unparse(h.type) for h in node.handlers if h.type):
            guarded |= {id(n) for line in node.body for n in ast.walk(line)}
        asks = isinstance(node, ast.FunctionDef) and ("sys.platform" in ast.unparse(node) or "os.name" in ast.unparse(node))
        if asks: guarded |= {id(n) for n in ast.walk(node)}
    found = [n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom) and id(n) not in guarded]
    return UNIX & {name for n in found for name in ([a.name for a in n.names] if isinstance(n, ast.Import) else [n.module or ""])}


def test_no_module_of_unix_is_taken_for_granted():
    found = {p.relative_to(PACKAGE).as_posix(): unguarded(p.read_text("utf-8")) for p in PACKAGE.rglob("*.py")}
    assert len(found) > 200
    assert unguarded("import resource\n" + (PACKAGE / "workbook/experiment.py").read_text("utf-8")) == {"resource"}
    assert {name: modules for name, modules in found.items() if modules} == {}


def test_the_rule_sees_what_it_forbids():
    assert unguarded("def f():\n    import resource\n") == {"resource"}
    assert unguarded("try: import resource\nexcept ImportError: resource = None\n") == set()


def test_memory_is_measured_without_resource(monkeypatch):
    held = SimpleNamespace(rss=3 * 2**20, peak_wset=2**30)
    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.setattr(psutil, "Process", lambda: SimpleNamespace(memory_info=lambda: held))
    monkeypatch.setattr(Path, "exists", lambda path: False)
    assert peak_gib() == 1.0
    assert memory_mb() == (3.0, 1024.0)
