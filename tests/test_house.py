"The house: notebooks and modules match one to one, folders depend downwards only, and pages keep the shape that reads well."
import ast
import re
import subprocess
import sys
from collections import Counter

import house
import pytest

LIBRARY = house.library()
REPORTS = house.reports()
NUMBERS = {nb.module: int(nb.path.name.split("_")[0]) for nb in LIBRARY}


def said_by(rule):
    "What a rule says of the notebooks that break it."
    return {nb.name: said for nb in LIBRARY if (said := rule(nb))}


def test_there_is_something_to_check():
    assert len(LIBRARY) > 20
    assert REPORTS


def test_notebooks_and_modules_match_one_to_one():
    modules = {nb.module: nb.name for nb in LIBRARY}
    files = {".".join(p.relative_to(house.ROOT / "distillery").with_suffix("").parts) for p in (house.ROOT / "distillery").rglob("*.py")}
    files = {f for f in files if not f.endswith("__init__") and f != "_modidx"}
    assert set(modules) == files
    for nb in LIBRARY:
        folder, name = nb.path.parent.relative_to(house.ROOT / "nbs"), nb.path.stem.split("_", 1)[1]
        assert nb.module == ".".join([*folder.parts, name])
        assert re.fullmatch(r"\d\d_[a-z0-9_]+", nb.path.stem)
        assert name != "utils"


def test_shape(): assert said_by(house.shape) == {}


def test_cells(): assert said_by(house.cells) == {}


def test_imports_go_down(): assert said_by(lambda nb: house.direction(nb, NUMBERS)) == {}


def test_folders_stay_small_and_chains_of_imports_short():
    edges = {nb.module: {t for source in nb.exported for t in house.imports(source)} for nb in LIBRARY}
    sizes = Counter(map(house.folder_of, edges))
    assert {f: n for f, n in sizes.items() if n > house.MAX_MODULES} == {}
    assert {m: n for m, n in house.levels(edges).items() if n > house.MAX_LEVELS} == {}
    assert house.levels({"a.x": set(), "a.y": {"a.x"}, "a.z": {"a.y", "b.w"}, "b.w": {"a.y"}}) == {"a.x": 1, "a.y": 2, "a.z": 3, "b.w": 1}


def test_only_one_list_names_the_questions():
    "A new question is its folder, its template, its settings, one line in questions/all and one test file."
    from distillery.core.config import Config
    from distillery.questions.all import all_questions, questions_of

    names = [q.name for q in all_questions()]
    assert not {"index", "kpis"} & set(names), "pages of every run have these names"
    templates = {nb.path.stem.split("_", 1)[1] for nb in REPORTS if nb.path.stem[0].isdigit()}  # pipeline is no question
    assert {q.name for q in questions_of("pairs")} == templates  # those of filters are cards on the filter's page
    assert all((q.asked_of == ("filter",)) == (q.line == "filters") for q in all_questions())
    sections = set(Config.model_fields)  # a stage that reads settings names these
    listing = [
        path for path in (house.ROOT / "distillery").rglob("*.py")
        if sum(f'"{n}"' in path.read_text("utf-8") for n in set(names) - sections) > 3 and path.name not in ("_modidx.py",)
    ]
    assert listing == []


def test_the_lint_sees_what_it_is_for():
    bad = house.Notebook(house.ROOT / "nbs/core/99_bad.ipynb", [
        {"cell_type": "markdown", "source": "no heading"},
        {"cell_type": "code", "source": "#| default_exp core.bad"},
        {"cell_type": "code", "source": "#| export\nfrom distillery.training.sft import x\nfrom os import *\n" + "a = 1\n" * 50},
        {"cell_type": "code", "source": "print(1)"},
        {"cell_type": "code", "source": "# left over"},
    ])
    assert len(house.shape(bad)) >= 3
    assert {w.split()[0] for w in house.cells(bad)} >= {"exported", "cell"}
    assert "cell 4 is only comments" in house.cells(bad)
    assert house.direction(bad, {}) == ["core imports training.sft, which lies above it"]
    card = house.Notebook(house.ROOT / "nbs/questions/one/10_stages.ipynb", [
        {"cell_type": "code", "source": "#| default_exp questions.one.stages"},
        {"cell_type": "code", "source": "#| export\nfrom distillery.questions.one.decision import x\n"
                                        "from distillery.questions.two.stages import y"},
    ])
    assert [w.split(": ")[1] for w in house.question_rules(card)] == [
        "the wording of a card must not run a stage again", "only questions.all imports the folder of a question"]


def test_public_functions_say_what_they_take_and_do():
    silent = []
    for path in (house.ROOT / "distillery").rglob("*.py"):
        if path.name in ("__init__.py", "_modidx.py"): continue
        for node in ast.parse(path.read_text("utf-8")).body:
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or node.name.startswith("_"): continue
            if not ast.get_docstring(node): silent.append(f"{path.name}: {node.name} has no docstring")
            if isinstance(node, ast.FunctionDef) and any(a.annotation is None for a in node.args.args + node.args.kwonlyargs):
                silent.append(f"{path.name}: {node.name} has an argument without a type")
    assert silent == []


def test_import_is_light():
    "Nothing but itself and the standard library is loaded."
    code = "import sys; before = set(sys.modules); import distillery; print(sorted({m.split('.')[0] for m in set(sys.modules) - before}))"
    loaded = ast.literal_eval(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert set(loaded) <= {"distillery", *sys.stdlib_module_names}


def test_command_line_starts_without_torch():
    code = ("import sys; import distillery.commands.cli; "
            "heavy = {'torch', 'transformers', 'onnxruntime', 'matplotlib', 'pandas'} & set(sys.modules); print(sorted(heavy))")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_functions_import_only_what_is_heavy():
    "What is light stands at the top, where a reader looks for it."
    trees = house.modules()
    checked = [m for m in trees if not m.startswith(house.LAZY)]
    assert len(checked) > 150
    heavy, planned = house.heavy_modules(trees), house.planning(trees)
    assert {m: said for m in checked if (said := house.hidden_imports(m, trees[m], heavy, planned))} == {}


def test_models_are_made_one_at_a_time():
    trees = house.modules()
    assert [said for m, tree in trees.items() for said in house.made_alone(m, tree)] == []
    alone = "with LOADS: x = AutoModel.from_pretrained(a)\ny = peft.PeftModel.from_pretrained(x, a)\nz = library.SentenceTransformer(a)"
    assert [said.split(": ")[1] for said in house.made_alone("m", ast.parse(alone))] == [
        "peft.PeftModel.from_pretrained", "library.SentenceTransformer"]
    assert sum(bool(re.search(r"LOADS|loading\(", ast.unparse(tree))) for tree in trees.values()) > 8


def test_planning_a_run_loads_no_numeric_library():
    "An unchanged run is planned and nothing else: what only a running stage needs is imported in its function."
    trees = house.modules()
    loaded = {t.split(".")[0] for m in house.planning(trees) for node in trees[m].body for t in house.targets(node, m)}
    assert loaded & house.HEAVY <= {"psutil"}


def test_the_lint_tells_heavy_imports_from_light_ones():
    source = """
def f():
    import json
    import torch
    from ..teachers.open import open_teacher
    from .errors import DistilleryError
"""
    trees = house.modules()
    heavy, planned = house.heavy_modules(trees), house.planning(trees)
    assert "distillery.core.errors" in planned
    assert "distillery.shipping.publish" not in planned
    lazy = "def f():\n    from ..shipping.publish import publish\n"
    assert house.hidden_imports("distillery.core.config", ast.parse(lazy), set(), planned) == []
    assert [said.split(",")[0] for said in house.hidden_imports("distillery.core.bad", ast.parse(source), heavy, planned)] == [
        "f imports distillery.core.errors", "f imports json"]


def test_no_pickle_no_remote_code():
    for path in (house.ROOT / "distillery").rglob("*.py"):
        text = path.read_text("utf-8")
        assert not re.search(r"^\s*(import|from) (pickle|dill|joblib|shelve)\b", text, re.M), path
        assert not re.search(r"trust_remote_code\s*=\s*True", text), path


@pytest.mark.parametrize("nb", REPORTS, ids=lambda nb: nb.name)
def test_reports_have_one_parameters_cell_first(nb):
    tagged = [i for i, c in enumerate(nb.code) if "parameters" in c["metadata"].get("tags", [])]
    assert tagged == [0]
    for node in ast.parse(nb.code[0]["source"]).body:
        assert isinstance(node, ast.AnnAssign)
        ast.literal_eval(node.value)
    assert not any(c["source"].startswith("#| export") for c in nb.code)
    assert nb.metadata["kernelspec"]["name"] == "python3"


@pytest.mark.parametrize("name", ["start", "decide", "filter", "label"])
def test_a_story_reads_like_the_others_and_exports_nothing(name):
    nb = house.Notebook.read(house.ROOT / f"nbs/{name}.ipynb")
    assert house.shape(nb) + house.cells(nb) == []
    assert nb.exported == []
    assert nb.module is None


