"The key of a stage: what its function reaches by name, and nothing else. Small packages first, then the built-in plan."
import functools
import importlib
import json
import os
import re
import sys
from pathlib import Path

import pytest

from distillery.core.config import load_config
from distillery.core.files import FileDigests, digest_file
from distillery.engine import sources as reading
from distillery.engine.code import code_changes, reached_code
from distillery.workbook.experiment import pages_key, prepare
from distillery.engine.plan import Plan, Stage
from distillery.engine.sources import Place, Sources

SHOP = {
    "__init__.py": "",
    "limits.py": "LOW, HIGH = 1, 9\ndef clip(x): return max(LOW, min(x, HIGH))\n"
                 "def unused(): return LOW\n",
    "facade.py": "from .limits import clip as tidy\n",
    "helper.py": "from . import limits\nfrom .facade import tidy\ndef first(x): return second(x)\n"
                 "def second(x): return limits.clip(tidy(x))\n",
    "tools.py": "class Base:\n    def shared(self): return 1\nclass Tool(Base):\n    limit = 3\n    def __init__(self): self.n = 0\n"
                "    def work(self): return self.shared()\n    def idle(self): return 2\n"
                "    @property\n    def size(self): return self.n\n",
    "foreign.py": "import threading\nclass Worker(threading.Thread):\n    def run(self): return 1\n",
    "registry.py": "from .tools import Tool\ndef one(): return 1\ndef two(): return 2\nMAKERS = {'one': one}\nMAKERS['two'] = two\n",
    "registered.py": "from .marks import mark\n@mark\ndef plugin(): return 7\ndef ask(): return 1\n",
    "marks.py": "SEEN = []\ndef mark(f):\n    SEEN.append(f)\n    return f\ndef twice(f): return lambda job: f(job) * 2\n",
    "child.py": "def main(): return deep()\ndef deep(): return 5\nif __name__ == '__main__': main()\n",
    "rules.py": "def rules(): return open('words.yaml').read()\ndef prompt(): return 'prompts/ask.j2'\n",
    "words.yaml": "a: 1\n", "prompts/ask.j2": "Ask about {{ passage }}.\n",
    "rates.py": "RATE = 2\n", "facade2.py": "from .rates import RATE as rate\n",
    "tables/cups.yaml": "cup: 4\n", "looks/page.html": "{% include 'macros.html' %}{{ order.label }}\n", "looks/macros.html": "{{ 1 }}\n",
    "kinds.py": "from enum import Enum\nclass Kind(Enum):\n    ONE = 1\n    @classmethod\n    def _missing_(cls, value): return cls.ONE\n"
                "class Order:\n    @property\n    def label(self): return 'cup'\n",
    "odd.py": """import re
from functools import partial
from importlib import resources
from jinja2 import Environment, PackageLoader
from typing import TYPE_CHECKING
from .facade2 import rate as price
if TYPE_CHECKING: from .kinds import Order as Lazy
else: from .tools import Base as Lazy
from .kinds import Kind, Order
from .marks import twice
PATTERN = re.compile('cup|mug')
def small(x, n): return n
def large(x, n=price): return n + 1
def chosen(job): return {'small': small, 'large': large}[job](1)
CHOICE = {'small': small, 'large': large}
def from_table(job): return CHOICE[job](1)
def waits(job, seconds=price): return seconds
@twice
def decorated(job): return 1
class Base:
    unit = 'g'
    def weigh(self): return self.unit
class Cup(Base):
    def total(self): return self.weigh()
def weighs(job): return Cup().total()
def matches(job): return PATTERN.match(job)
def listed(job): return [f(1) for f in [partial(small, n=price)]]
def packed(job): return resources.files('shop').joinpath('tables', 'cups.yaml').read_text()
def drawn(job): return Environment(loader=PackageLoader('shop', 'looks')).get_template('page.html').render(order=Order())
def named(job): return Kind(job)
def lazy(job): return Lazy().shared()
def annotated(job: Cup, other: 'list[Cup]' = ()) -> Cup: return 1  # a comment
""",
    "page.py": "from .stage import body\ndef heading(rows): return f'<h1>{len(rows)} cups</h1>'\n",
    "stage.py": '''"""Stages of a shop."""
import subprocess, sys
from collections.abc import Sequence
from functools import partial
from .helper import first
from .marks import mark
from .tools import Tool
from . import registry
MOST = 3

def body(job: Tool) -> Tool:
    "What it does."
    total = MOST  # a comment
    return first(total)

def local(job):
    from .limits import clip
    return clip(1)

def hides(job, first): return first(job)
def uses(job, tool): return tool.work()
def makes(job): return registry.MAKERS[job]()
def spawns(job): return subprocess.run([sys.executable, "-m", "shop.child"])
def spawns_text(job): return subprocess.run([sys.executable, "-c", "from shop.child import deep; deep()"])
def reads(job):
    from .rules import rules
    return rules()
def asks(job):
    from .rules import prompt
    return prompt()
def threads(job):
    from .foreign import Worker
    return Worker().start()
def plugged(job):
    from .registered import ask
    return ask()
def around(rate):
    def inside(job): return first(rate(job))
    return inside
def heading_of(rows):
    from .page import heading
    return heading(rows)
''',
}


@pytest.fixture
def shop(tmp_path, monkeypatch):
    "A package whose files can be edited, and the function that says what a value reaches in it."
    for name, text in SHOP.items():
        place = tmp_path / "shop" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    module = importlib.import_module("shop.stage")
    reached = lambda value: reached_code(value, sources=Sources(tmp_path / "shop", tmp_path / "memory"))

    def edit(name, old, new):
        place = tmp_path / "shop" / name
        assert old in place.read_text()
        place.write_text(place.read_text().replace(old, new))
    yield module, reached, edit
    for name in [n for n in sys.modules if n.split(".")[0] == "shop"]: del sys.modules[name]


MOVES = [  # what runs, the file, the edit
    ("body", "stage.py", "first(total)", "first(total + 1)"),              # its own body
    ("body", "stage.py", "MOST = 3", "MOST = 4"),                          # a constant of its module
    ("body", "helper.py", "return second(x)", "return second(x) or 0"),    # a helper
    ("body", "helper.py", "limits.clip(tidy", "limits.clip(1 + tidy"),     # a helper's helper
    ("body", "limits.py", "LOW, HIGH = 1, 9", "LOW, HIGH = 1, 8"),         # a constant of an assignment of two
    ("body", "limits.py", "max(LOW", "max(HIGH"),                          # through a module that passes the name on, under another name
    ("local", "limits.py", "max(LOW", "max(HIGH"),                         # through an import inside the function
    ("makes", "registry.py", "return 1", "return 3"),                      # an entry of a registry
    ("makes", "registry.py", "return 2", "return 3"),                      # an entry that was added later
    ("plugged", "registered.py", "return 7", "return 8"),                  # a decorator registers it when the module is imported
    ("spawns", "child.py", "return 5", "return 6"),                        # a module that a text names
    ("spawns_text", "child.py", "return 5", "return 6"),                   # a function that a text imports
    ("reads", "words.yaml", "a: 1", "a: 2"),                               # a table of rules beside the module
    ("asks", "prompts/ask.j2", "Ask", "Tell"),                             # a template
    ("threads", "foreign.py", "return 1", "return 2"),                     # a method that a base from elsewhere calls
    ("heading_of", "page.py", "cups", "mugs"),                             # no name is special: who reaches a page rests on it
]
ODD = [  # the same, of functions in odd.py
    ("waits", "rates.py", "RATE = 2", "RATE = 3"),                         # a default argument, through two names of one constant
    ("chosen", "odd.py", "return n + 1", "return n"),                      # an entry of a table inside the function
    ("from_table", "odd.py", "return n + 1", "return n"),                  # an entry of a table at the top
    ("decorated", "marks.py", "* 2", "* 3"),                               # a decorator
    ("weighs", "odd.py", "unit = 'g'", "unit = 'kg'"),                     # an attribute of a base
    ("weighs", "odd.py", "return self.unit", "return 'g'"),                # a method of a base
    ("matches", "odd.py", "cup|mug", "cup"),                               # a regular expression of the module
    ("listed", "rates.py", "RATE = 2", "RATE = 3"),                        # an argument of a partial in a list
    ("packed", "tables/cups.yaml", "4", "5"),                              # a file that importlib.resources opens
    ("drawn", "looks/macros.html", "1", "2"),                              # a template that a template includes
    ("drawn", "kinds.py", "'cup'", "'mug'"),                               # a property that only a template names
    ("lazy", "tools.py", "return 1", "return 4"),                          # what stands in place of an import for type checkers
    ("named", "kinds.py", "return cls.ONE", "return None"),                # a hook of an enumeration
]
RESTS = [
    ("body", "stage.py", "What it does.", "Something."),                   # a docstring
    ("body", "stage.py", "# a comment", "# another\n"),
    ("body", "stage.py", "MOST = 3\n", "\n\n\nMOST = 3\n"),                # line numbers
    ("body", "limits.py", "return LOW\n", "return HIGH\n"),                # a neighbour in the same module
    ("body", "tools.py", "return 2", "return 3"),                          # what only annotates a parameter
    ("body", "page.py", "cups", "mugs"),                                   # a page
    ("hides", "helper.py", "return second(x)", "return 0"),                # a parameter hides the name
    ("spawns_text", "child.py", "def main(): return deep()", "def main(): return 0"),
    ("annotated", "odd.py", "# a comment", "# another"),
    ("annotated", "odd.py", "job: Cup, other: 'list[Cup]'", "job: Cup, other: 'list[Cup]'  "),
    ("annotated", "odd.py", "return self.unit", "return 'g'"),              # of a class that only annotates
    ("packed", "looks/page.html", "order", "a order"),
]


@pytest.mark.parametrize(("run", "file", "old", "new"), MOVES)
def test_an_edit_that_can_be_reached_changes_the_key(shop, run, file, old, new):
    module, reached, edit = shop
    before = reached(getattr(module, run))
    edit(file, old, new)
    assert reached(getattr(module, run)) != before


@pytest.mark.parametrize(("run", "file", "old", "new"), ODD)
def test_an_edit_by_an_odd_way_changes_the_key(shop, run, file, old, new):
    _, reached, edit = shop
    before = reached(Place("shop.odd", run))
    edit(file, old, new)
    assert reached(Place("shop.odd", run)) != before


@pytest.mark.parametrize(("run", "file", "old", "new"), RESTS)
def test_an_edit_that_cannot_be_reached_changes_nothing(shop, run, file, old, new):
    module, reached, edit = shop
    where = Place("shop.stage" if hasattr(module, run) else "shop.odd", run)
    before = reached(where)
    edit(file, old, new)
    assert reached(where) == before


def test_values_lead_to_code_partials_closures_methods_and_objects(shop):
    module, reached, edit = shop
    from shop import limits, registry, tools
    given = functools.partial(module.uses, tool=tools.Tool())
    nested = functools.partial(module.hides, first=functools.partial(limits.clip))
    values = {"partial": nested, "closure": module.around(limits.clip), "object": given, "method": tools.Tool().work,
              "list": [registry.two]}
    before = {name: reached(value) for name, value in values.items()}
    assert "shop.limits.clip" in before["partial"]
    assert "shop.limits.HIGH" in before["closure"]
    assert {"shop.tools.Tool.work", "shop.tools.Base.shared"} <= before["object"].keys() & before["method"].keys()
    assert "shop.registry.two" in before["list"]
    assert "shop.registry.one" not in before["list"]
    edit("tools.py", "return 2", "return 4")  # nobody says idle
    assert {name: reached(value) for name, value in values.items()} == before
    edit("tools.py", "return 1", "return 4")
    assert {name for name, value in values.items() if reached(value) != before[name]} == {"object", "method"}


def test_data_handed_over_counts_with_its_value_and_a_path_does_not(shop, tmp_path):
    module, reached, _ = shop
    from shop import limits, tools
    plain = lambda **given: reached(functools.partial(module.uses, **given))
    assert plain(tool=1) != plain(tool=2)
    assert plain(tool={"a": [1, 2]}) == plain(tool={"a": [1, 2]}) != plain(tool={"a": [1, 3]})
    assert plain(tool=tmp_path) == plain(tool=tmp_path / "other")
    assert plain(tool=functools.partial(limits.clip, 1)) != plain(tool=functools.partial(limits.clip, 2))
    one, two = functools.partial(limits.clip, 1), functools.partial(limits.clip, 2)
    assert plain(tool=[one, two]) != plain(tool=[two, two])
    light, heavy = tools.Tool(), tools.Tool()
    heavy.n = 5
    assert plain(tool=light) == plain(tool=tools.Tool()) != plain(tool=heavy)
    assert plain(tool={"b", "a"}) == plain(tool={"a", "b"})
    assert reached(module.around(limits.clip)) == reached(module.around(limits.clip)) != reached(module.around(2))


def test_a_function_from_elsewhere_counts_with_its_bytecode_and_what_it_names(shop):
    module, reached, _edit = shop

    def own(text):
        names = {"__name__": "script", "body": module.body, "stage": module, "RATE": 2}
        exec(compile(text, "script.py", "exec"), names)
        return names["run"]
    plain = "def run(job): return body(RATE)"
    assert reached(own(plain)) == reached(own("\n\n" + plain)) != reached(own("def run(job): return body(RATE + 1)"))
    assert "shop.limits.clip" in reached(own(plain))
    assert "script.RATE" in reached(own(plain))
    assert "shop.rules.rules" in reached(own("def run(job): return stage.reads(job)"))


def test_what_was_read_is_remembered_and_a_torn_memory_heals(shop, tmp_path, monkeypatch):
    module, _, edit = shop
    sources = lambda: Sources(tmp_path / "shop", tmp_path / "memory")
    for place in (tmp_path / "shop").rglob("*"): os.utime(place, (1, 1))
    monkeypatch.setattr("time.time_ns", lambda: 2**62)  # long after
    first = sources()
    before = reached_code(module.body, sources=first)
    first.save()
    with monkeypatch.context() as m:
        m.setattr(reading, "_source", lambda *a: pytest.fail("opened and parsed again"))
        assert reached_code(module.body, sources=sources()) == before
    for name in ("code.json", "files.json"): (tmp_path / "memory" / name).write_text('{"half')
    assert reached_code(module.body, sources=sources()) == before
    edit("limits.py", "max(LOW", "max(HIGH")
    assert reached_code(module.body, sources=sources()) != before


def test_what_a_tool_leaves_in_the_package_moves_no_key(shop, tmp_path):
    "A notebook that runs in the folder of its package, an editor, Python itself."
    module, reached, edit = shop

    def leave(name):
        (tmp_path / "shop" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "shop" / name).write_text("a: 9")
    leave("tables/rates.yaml")
    edit("rules.py", "words.yaml", "rates.yaml")  # found by the end of its path
    before = reached(module.reads)
    assert "tables/rates.yaml" in before
    for name in (".distillery/rates.yaml", "tables/.ipynb_checkpoints/rates.yaml", "__pycache__/rates.yaml", "helper.cpython-311.pyc.140"):
        leave(name)
    assert reached(module.reads) == before
    leave("more/rates.yaml")
    assert reached(module.reads) != before


def test_a_file_of_this_instant_is_not_trusted(tmp_path, monkeypatch):
    place, memory = tmp_path / "weights", tmp_path / "files.json"
    place.write_text("one")
    now = FileDigests(memory)
    now.digest(place)
    assert not now.known
    stat = place.stat()
    monkeypatch.setattr("time.time_ns", lambda: stat.st_mtime_ns + 3 * 10**9)
    later = FileDigests(memory)
    assert later.digest(place) == digest_file(place)
    assert len(later.known) == 1
    later.save()
    assert list(json.loads(memory.read_text())) == [str(place)]


# The built-in plan

ASKED = {"student.extractive": True, "export.gguf": ["f16"], "teacher.model": "builtin:mini", "teacher.logprobs": 5,
         "decisions.distill_arms": ["base", "sft", "sequence", "rag"], "decisions.bases": ["builtin:mini", "builtin:tiny"],
         "decisions.temperatures": [0.0, 0.7], "decisions.prompt_packs": ["handbook", "resume"], "decisions.questions_per_call": [1, 4],
         "decisions.train_shares": [0.25, 0.5], "decisions.parallel": [1, 2], "decisions.memory_batches": [4, 8]}
PAGES = re.compile(r"""distillery\.(
    (pages|workbook|commands|reports|templates)\.
    | core\.(figures|table|render)\.
    | questions\.(?!(slots|measures|subsets)\.)\w+\.(?!(stages|design|queries|trials)\.)
) | page_templates/ | assets/""", re.X)  # what only pages, cards and commands use


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    cache = str(tmp_path_factory.mktemp("plan"))
    return prepare(None, None, load_config(preset="handbook", overrides={**ASKED, "workbook.cache_dir": cache})).plan


@pytest.fixture(scope="module")
def keys(plan): return {s.name: plan.parts(s)["code"] for s in plan.stages}


def test_a_stage_s_own_body_is_in_its_key(plan, keys):
    assert len(keys) > 40
    for stage in plan.stages:
        run = stage.run
        while isinstance(run, functools.partial): run = run.func
        assert f"{run.__module__}.{run.__qualname__}" in keys[stage.name], stage.name


def test_no_stage_s_key_holds_a_page_or_a_card(plan, keys):
    found = {(stage, n) for stage, reached in keys.items() for n in reached if PAGES.match(n)}
    assert found == set()
    assert PAGES.match("distillery.questions.grouping.decision.grouping_decision")
    assert not PAGES.match("distillery.questions.grouping.stages._ask_levels")


def test_no_stage_s_key_holds_the_list_of_settings(keys):
    "A new setting, or other words in the help of one, runs nothing again: what a stage reads stands in its key by value."
    sections = ("core.knobs.Config", "core.config.load_config", "core.sections.EmbedderSection", "core.pair_knobs.TeacherSection")
    assert not {(stage, n) for stage, reached in keys.items() for n in reached if n in {f"distillery.{name}" for name in sections}}


def test_a_backend_counts_only_where_it_is_used(keys):
    others = tuple(f"distillery.teachers.{name}." for name in ("batch", "openai", "mlx"))
    for stage in ("generate", "parallel", "memory"):
        assert "distillery.teachers.local.TransformersTeacher" in keys[stage]
        assert not {n for n in keys[stage] if n.startswith(others)}
    with_server = load_config(overrides={"teacher.model": "http://127.0.0.1:9/v1#m", "teacher.fallback": "builtin:extractive"})
    from distillery.teachers.open import teacher_opener
    backed = reached_code(teacher_opener("http://127.0.0.1:9/v1#m", with_server), sources=Sources())
    assert {"distillery.teachers.openai.OpenAITeacher", "distillery.teachers.extractive.ExtractiveTeacher"} <= backed.keys()
    assert not {n for n in backed if n.startswith("distillery.teachers.local.TransformersTeacher")}


def test_pages_rest_on_cards_and_templates(plan):
    from distillery.workbook.assemble import write_decisions, write_pages
    notebooks = [Place(m) for m, file in plan.sources.modules.items() if file.endswith(".ipynb")]
    assert len(notebooks) >= 10
    reached = reached_code(write_pages, write_decisions, *notebooks, sources=plan.sources)
    wanted = {"pages.html.page", "pages.index.index_page", "questions.grouping.decision.grouping_decision",
              "questions.context_length.decision.context_decision"}
    assert {f"distillery.{n}" for n in wanted} <= reached.keys()
    assert "assets/page.css" in reached
    drawn = reached_code(Place("distillery.core.table", "Table.html"), sources=plan.sources)
    assert {"page_templates/table.html", "page_templates/note.html", "assets/page.css"} <= drawn.keys()
    assert pages_key(plan, {}) == pages_key(plan, {})


def test_why_names_the_setting_that_an_earlier_stage_reads(tmp_path):
    def kept(job): (job.out / "n").write_text(str(job.config.selection.min_relevance))
    def copied(job): (job.out / "n").write_text((next(iter(job.needs.values())) / "n").read_text())

    def plan(**settings):
        stages = [Stage("select", kept, ("selection.min_relevance",)), Stage("dataset", copied, needs=("select",)),
                  Stage("sft", copied, needs=("dataset",))]
        return Plan(stages, load_config(overrides=settings), tmp_path)
    assert plan().why("dataset") == ["it has not run yet"]
    plan().run()
    assert plan().why("sft") == []
    changed = plan(**{"selection.min_relevance": 0.3})
    sentence = f"setting selection.min_relevance: {load_config().selection.min_relevance!r} -> 0.3"
    assert changed.why("select") == [sentence]
    assert changed.why("dataset") == changed.why("sft") == [f"{sentence} (read by select)"]
    changed.run()
    assert plan().why("sft") == []
    assert changed.why("sft") == []
    assert plan(**{"selection.min_relevance": 0.4}).why("sft") == ["setting selection.min_relevance: 0.3 -> 0.4 (read by select)"]


def test_why_names_what_changed_and_not_what_follows_from_it():
    old, new = {"a": "1", "gone": "1"}, {"a": "2", "new": "1"}
    assert code_changes(old, new) == code_changes(old, new, rest=False) == ["a changed"]
    assert code_changes({**old, "a": "2"}, new) == ["gone is gone", "new is new"]
    assert code_changes({**old, "a": "2"}, new, rest=False) == []
    many = code_changes({f"f{i:02d}": "1" for i in range(20)}, {f"f{i:02d}": "2" for i in range(20)})
    assert len(many) == 9
    assert many[-1] == "12 more definitions differ"


def test_why_names_input_code_and_a_lost_output(tmp_path):
    def made(job): (job.out / "n").write_text("1")
    def other(job): (job.out / "n").write_text("2")

    def plan(run=made, digest="a"):
        stages = [Stage("documents", run, inputs={"documents": digest}), Stage("judge", made, needs=("documents",))]
        return Plan(stages, load_config(), tmp_path)
    plan().run()
    assert plan(digest="b").why("judge") == ["input documents changed (read by documents)"]
    assert any("other is new (run by documents)" in said for said in plan(other).why("judge"))
    import shutil
    shutil.rmtree(tmp_path / "artifacts/documents")
    assert plan().why("judge") == ["the output of documents is gone"]


def test_keys_that_an_earlier_version_left_are_no_reason_to_fail(tmp_path):
    def made(job): (job.out / "n").write_text("1")
    (tmp_path / "last").mkdir()
    (tmp_path / "last/judge.json").write_text(json.dumps({"settings": {}, "inputs": {}, "stages": {}, "code": {"m": {"f": "0"}}}))
    assert Plan([Stage("judge", made)], load_config(), tmp_path).why("judge") == ["it has not run yet"]


def test_a_users_cache_that_cannot_be_used_stops_nothing(tmp_path, monkeypatch):
    "A user without a home, a file where the folder should be, a disk without room."
    from distillery.engine import sources as module

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "user_cache_path", lambda name: Path("~") / name)
    assert module.user_memory(tmp_path / "own") == tmp_path / "own"
    assert not Path("~").exists()
    (tmp_path / "taken").write_text("")
    monkeypatch.setattr(module, "user_cache_path", lambda name: tmp_path / "taken" / name)
    assert module.user_memory(tmp_path / "own") == tmp_path / "own"
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop/price.py").write_text("RATE = 2")

    def full(path, text): raise module.StoreError(f"cannot write {path}", fix="free some disk space")
    monkeypatch.setattr(module, "atomic_write", full)
    read = Sources(tmp_path / "shop", tmp_path / "memory")
    assert "RATE" in read.table("shop.price")["parts"]
    read.save()
