"The start notebook: what is behind its controls, what a hand on them does in a real JupyterLab, and what stays of it without a kernel."
import functools
import json
import re
import shutil
import subprocess
import sys
import time
import tomllib

import browser
import lab
import nbformat
import pytest
from hypothesis import given, settings, strategies as st
from nbclient import NotebookClient
from nbconvert import HTMLExporter

from distillery.core.config import load_config
from distillery.core.errors import DistilleryError
from distillery.core.extras import MissingExtra
from distillery.core.records import Chunk, Document, Evidence, Pair
from distillery.core.store import write_jsonl
from distillery.pairs.chunk import chunk_documents
from distillery.pairs.documents import read_documents
from distillery.pairs.select import select_pairs
from distillery.pages import browse
from distillery.engine.source import shipped
from distillery.questions.results import open_results
from test_pages import ATTACKS
from test_run import QUICK, write_pages
from warm import COMMAND

KEPT = lab.ROOT / "tests/data/run"
START = lab.ROOT / "nbs/start.ipynb"
EVIL = f"Before. {ATTACKS[0]} {ATTACKS[1]} After."


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    "The kept run as a run of one's own: with a manifest, documents and passages, and one pair out of a hostile document before all others."
    root = lab.copy(tmp_path_factory.mktemp("project"), mine=KEPT)
    run, config = root / "runs/mine", load_config(overrides=open_results(KEPT).settings())
    (run / "manifest.json").write_text('{"name": "a name"}')
    documents = read_documents(shipped("handbook"), config.documents.include, config.documents.max_file_mb).documents
    chunks = chunk_documents(documents, config.chunking.max_tokens, config.chunking.min_tokens)
    page = Document(doc_id="evil", path="evil.md", title=ATTACKS[1], text=EVIL, mime="text/markdown", digest="0")
    chunk = Chunk(chunk_id="evil-1", doc_id="evil", heading=ATTACKS[2], text=EVIL, start=0, end=len(EVIL), category="evil")
    start = EVIL.index("<script>")
    near = config.selection.min_relevance + 0.01
    evidence = Evidence(start=start, end=start + len(ATTACKS[0]), text=ATTACKS[0])
    pair = Pair(id="evil-1-1", doc_id="evil", chunk_id="evil-1", family_id="evil", category="evil", difficulty="easy", question=ATTACKS[0],
                answer=ATTACKS[1], evidence=evidence, teacher=ATTACKS[3], scores={"evidence": 1.0, "relevance": near})
    write_jsonl(run / "documents.jsonl", [page, *documents])
    write_jsonl(run / "chunks.jsonl", [chunk, *chunks])
    write_jsonl(run / "selected.jsonl", [pair, *kept_shelf().pairs])
    return root


@functools.cache
def kept_shelf(): return browse.read_run_pairs(open_results(KEPT))


@pytest.fixture(scope="module")
def shelf(project): return browse.read_run_pairs(open_results(project / "runs/mine"))


# What is behind the controls

def test_runs_newest_first_and_the_kept_one_last(project, tmp_path):
    for name, run in (("old", "a1"), ("new", "b2"), ("unfinished", "c3")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text("{}")
        if name != "unfinished": (tmp_path / name / "provenance.json").write_text(json.dumps({"run": run}))
        time.sleep(0.02)
    assert [p.name for p in browse.find_runs(tmp_path, KEPT).values()] == ["new", "old", "run"]
    assert [p.name for p in browse.find_runs(tmp_path, tmp_path / "nowhere").values()] == ["new", "old"]
    assert "a name" in next(iter(browse.find_runs(project / "runs")))
    with pytest.raises(DistilleryError, match="distillery run"): browse.find_runs(tmp_path / "nowhere")


@pytest.mark.parametrize("limit", [0.15, 0.4, 0.9])
def test_a_higher_limit_keeps_what_selection_would(shelf, limit):
    strict = shelf.config.model_copy(update={"selection": shelf.config.selection.model_copy(update={"min_relevance": limit})})
    assert browse.keep_at(shelf.pairs[:600], shelf.config, limit) == select_pairs(shelf.pairs[:600], strict)


@settings(max_examples=30)
@given(st.floats(0.15, 1), st.floats(0, 0.5))
def test_raising_the_limit_only_takes_away(one, more):
    shelf = kept_shelf()
    low, high = (browse.keep_at(shelf.pairs, shelf.config, limit) for limit in (one, one + more))
    assert {p.id for p in high.kept} <= {p.id for p in low.kept}
    assert len(low.kept) + len(low.dropped) == len(shelf.pairs)


def test_every_pair_has_its_evidence_marked(shelf):
    for pair in shelf.pairs:
        shown = browse.marked(shelf.chunks[pair.chunk_id], pair.evidence)
        found = re.findall(r"<mark>(.*?)</mark>", shown, re.S)
        assert len(found) == (pair.kind == "answer"), pair.id
    assert sum(p.kind == "refusal" for p in shelf.pairs) > 0


def test_evidence_that_does_not_fit_is_not_marked(shelf):
    pair = shelf.pairs[1]
    other = next(c for c in shelf.chunks.values() if c.doc_id not in (pair.doc_id, "evil"))
    assert "<mark>" not in browse.marked(other, pair.evidence)
    assert "does not stand" in browse.marked(other, pair.evidence)
    assert f"<mark>{pair.evidence.text}</mark>" in browse.marked(None, pair.evidence)


@pytest.mark.parametrize("part", [browse.cards_part, browse.pairs_part, browse.limit_part])
def test_strangers_text_stays_text(project, part):
    view = part(open_results(project / "runs/mine"))
    widgets = [view.build()]
    for widget in widgets: widgets += getattr(widget, "children", ())
    drawn = view.still + "".join(w.value for w in widgets if type(w).__name__ == "HTML")
    assert not re.search(r"<(script|img|svg|iframe)|</style></title>", drawn.replace("data:image", ""))
    assert part is not browse.pairs_part or "&lt;script&gt;" in drawn


def test_a_run_without_pairs_says_so(tmp_path):
    (tmp_path / "provenance.json").write_text("{}")
    for part in (browse.pairs_part, browse.limit_part): assert "no pairs" in part(open_results(tmp_path)).build().value


def test_another_run_redraws_the_part(project):
    runs = browse.find_runs(project / "runs", KEPT)
    menu = browse.run_menu(runs)
    box = browse.follow(menu, browse.limit_part).build()
    count = lambda: int(re.search(r"of ([\d,]+) pairs", box.children[0].children[-1].value)[1].replace(",", ""))
    mine, menu.value = count(), list(runs.values())[1]
    assert mine == count() + 1


def test_a_missing_widget_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with pytest.raises(MissingExtra, match=re.escape("distillery[lab]")): browse.run_menu({"a": KEPT})


def test_the_laboratory_comes_with_the_development_tools():
    extras = tomllib.loads((lab.ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert any(re.fullmatch(r"distillery\[.*\blab\b.*\]", line) for line in extras["dev"])
    pins = (lab.ROOT / "constraints.txt").read_text().lower()
    for line in extras["lab"]: assert f"\n{re.split('[>=]', line)[0]}==" in pins


# In a browser

def kept_count(page):
    "Of the one line that a reader sees: the limit, how many are kept, of how many."
    seen = page.value("[...document.querySelectorAll('.finding')].filter(e => e.offsetParent).map(e => e.innerText)")
    said = [s for s in seen if "pairs kept" in s]
    assert len(said) == 1, seen
    kept, of, limit = re.search(r"([\d,]+) of ([\d,]+) pairs kept at selection.min_relevance ([\d.]+);", said[0]).groups()
    return float(limit), int(kept.replace(",", "")), int(of.replace(",", ""))


@pytest.mark.browser
@pytest.mark.slow
def test_the_start_notebook_in_a_real_jupyterlab(project, shelf):
    would = lambda limit: len(browse.keep_at(shelf.pairs, shelf.config, limit).kept)
    browser.find()
    with lab.lab(project) as address, lab.tab() as page:
        lab.run_all(page, address)
        low = shelf.config.selection.min_relevance
        assert kept_count(page) == (low, len(shelf.pairs), len(shelf.pairs))
        page.click(lab.HANDLE)
        for _ in range(9): page.press("ArrowRight")
        lab.wait(lambda: kept_count(page)[0] == round(low + 0.09, 2), "limit moved by nine keys")
        by_keys = kept_count(page)
        assert by_keys[1] == would(low + 0.09) < len(shelf.pairs)
        page.drag(lab.HANDLE, 150)
        by_hand = lab.wait(lambda: (now := kept_count(page))[0] > low + 0.3 and now, "limit moved by the mouse")
        assert by_hand[1] == would(by_hand[0]) < by_keys[1]

        assert page.value("document.querySelectorAll('.jp-Notebook section.card .verdict').length") > 4
        assert page.value("[...document.querySelectorAll('mark')].filter(e => e.offsetParent).map(e => e.innerText)") == [ATTACKS[0]]
        assert page.value("document.title").startswith("start")
        assert page.value("document.querySelectorAll('.jp-Notebook mark script, .passage img, .card img').length") == 0
        page.click("document.querySelectorAll('.jp-Notebook select')[1]")
        page.press("ArrowDown"); page.press("Enter")
        first = next(p for p in shelf.pairs if p.doc_id != "evil")
        page.until(f"[...document.querySelectorAll('mark')].some(e => e.offsetParent && e.innerText == {json.dumps(first.evidence.text)})")


@pytest.mark.slow
@pytest.mark.browser
def test_another_setting_is_run_from_the_notebook_and_the_card_changes(tmp_path):
    browser.find()
    project = lab.copy(tmp_path / "project")
    write_pages(project / "docs")
    typed = [sys.executable, "-c", COMMAND, "run", "./docs", *QUICK]
    done = subprocess.run(typed, cwd=project, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr
    verdicts = "[...document.querySelectorAll('.jp-Notebook section.card .verdict')].filter(e => e.offsetParent).map(e => e.innerText)"
    said = "[...document.querySelectorAll('.jp-Notebook .note')].some(e => e.innerText.includes('{}'))"
    button = "[...document.querySelectorAll('.jp-Notebook button')].find(e => e.innerText.trim() == 'Run again')"
    with lab.lab(project) as address, lab.tab() as page:
        lab.run_all(page, address)
        page.until(f"!!({button})")
        before = page.value(verdicts)
        assert not [v for v in before if "±0.9" in v]
        page.click("document.querySelector('.jp-Notebook .widget-textarea textarea')")
        page.call("Input.insertText", text="decisions.margins.answer_match: 0.9")
        page.click("[...document.querySelectorAll('.jp-Notebook .jp-MarkdownCell')].at(-2)")  # a field tells the kernel when it is left
        page.click(button)
        page.until(said.format("the new run is chosen"), 600)
        after = page.until(f"(found => found.some(v => v.includes('±0.9')) && found)({verdicts})")
        assert len(after) == len(before)
        page.until(said.format("Second minus first"))


BLANK = """[...document.querySelectorAll('.jp-OutputArea-output, .output_subarea')].filter(e =>
  e.getBoundingClientRect().height > 1 && !e.innerText.trim() && !e.querySelector('img, svg, canvas'))
  .map(e => e.outerHTML.slice(0, 200))"""


def test_what_is_committed_needs_no_kernel():
    nb = nbformat.read(START, 4)
    assert not nb.metadata.get("widgets")
    assert not any("widget" in kind for c in nb.cells for o in c.get("outputs", ()) for kind in o.data)
    assert sum("text/html" in o.data for c in nb.cells for o in c.get("outputs", ())) == 6


@pytest.fixture(scope="module")
def executed(project):
    "The start notebook as a kernel left it, widgets and their state included."
    nb = nbformat.read(project / "nbs/start.ipynb", 4)
    return NotebookClient(nb, timeout=120, resources={"metadata": {"path": project / "nbs"}}).execute()


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize("how", [pytest.param("committed", marks=pytest.mark.slow), "run and saved", "saved with widget state"])
def test_exported_html_has_no_blank_box(executed, tmp_path, how):
    nb = nbformat.read(START, 4) if how == "committed" else nbformat.from_dict(json.loads(json.dumps(executed)))
    if how == "run and saved": nb.metadata.pop("widgets")
    target = tmp_path / "start.html"
    target.write_text(HTMLExporter().from_notebook_node(nb)[0])
    with lab.tab() as page:
        page.open(target.as_uri())
        assert page.value(BLANK) == []
        seen = page.value("document.body.innerText")
        assert re.search(r"[\d,]+ of [\d,]+ pairs kept at", seen)
        assert page.value("document.querySelectorAll('section.card').length") > 5
        assert [a in seen for a in ATTACKS[:2]] == [how != "committed"] * 2
        assert "owned" not in page.value("document.title")
        assert page.value("[...document.querySelectorAll('mark')].every(e => e.offsetParent && !e.children.length)")
        page.value("document.querySelector('.jp-OutputArea-output').innerHTML = '<p style=height:9px>'")
        assert len(page.value(BLANK)) == 1, "an empty box must be seen, or this test shows nothing"


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
def test_make_lab_opens_the_start_notebook():
    assert lab.lab_command() == ["jupyter", "lab", "nbs/start.ipynb"]
