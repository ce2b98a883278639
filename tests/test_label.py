"Labelling: labels that survive, labellers that are blind to each other, and the widget under real keys in a real JupyterLab."
import json
import os
import signal


import browser
import lab
import psutil
import pytest

from distillery.core.errors import DistilleryError
from distillery.pages.label import Session, articles_to_label, label_widget, pairs_to_label
from distillery.filters.articles import Article
from distillery.questions.results import open_results
from distillery.scoring.labels import LabelFile, LabelsError, label_table, labellers

ITEMS = pairs_to_label(open_results(lab.ROOT / "tests/data/run"), 12)
FIELD = "document.querySelector('.jp-Notebook .label-keys input')"
SAID = "[...document.querySelectorAll('.jp-Notebook .finding')].map(e => e.innerText).join()"


def lines(folder, who="ada"): return [json.loads(line) for line in (folder / f"{who}.jsonl").read_text("utf-8").splitlines() if line]


def test_every_label_is_a_line_and_the_last_one_counts(tmp_path):
    ada = Session(ITEMS, tmp_path, "ada")
    for key in "5ar3": assert ada.press(key)
    assert not ada.press("x")
    ada.press("p"); ada.press("p"); ada.press("a")
    told = [(x["verdict"], x["rating"]) for x in lines(tmp_path)]
    assert told == [(None, 5), ("accept", None), ("reject", None), (None, 3), ("accept", None)]
    again = Session(ITEMS, tmp_path, "ada")
    assert (again.done, again.item.id) == (4, ada.items[4].id)


def test_an_edit_keeps_the_words_and_nothing_where_nothing_changed(tmp_path):
    ada = Session(ITEMS, tmp_path, "ada")
    first = next(k for k, i in enumerate(ada.items) if i.says)
    ada.at = first
    ada.press("e"); ada.edit(ada.item.says)
    assert ada.done == 0
    ada.at = first
    ada.press("e"); ada.edit("In other words")
    assert (lines(tmp_path)[0]["verdict"], lines(tmp_path)[0]["answer"]) == ("edit", "In other words")
    assert articles_to_label([Article(id="a", cluster="a", text="Long.")])[0].beside == "Long."


@pytest.mark.parametrize("cut", [1, 9, 40])
def test_a_line_that_was_cut_is_no_label_and_spoils_no_other(tmp_path, cut):
    ada = Session(ITEMS, tmp_path, "ada")
    for key in "543": ada.press(key)
    raw = ada.file.path.read_bytes()
    ada.file.path.write_bytes(raw[:-cut])
    again = Session(ITEMS, tmp_path, "ada")
    assert again.done == (3 if cut == 1 else 2)
    again.press("1")
    assert Session(ITEMS, tmp_path, "ada").done == again.done == (4 if cut == 1 else 3)


def test_two_labellers_see_other_orders_and_nothing_of_each_other(tmp_path):
    for who in ("ada", "ben"):
        session = Session(ITEMS, tmp_path, who)
        for key in "5a4r2": session.press(key)
    ada, ben = (Session(ITEMS, tmp_path, who) for who in ("ada", "ben"))
    assert [i.id for i in ada.items] != [i.id for i in ben.items]
    assert not {p.name for p in tmp_path.iterdir()} - {"ada.jsonl", "ben.jsonl"}
    assert {x["labeller"] for x in lines(tmp_path, "ben")} == {"ben"}
    table = label_table(labellers(tmp_path))
    assert {"item", "ada", "ben"} == set(table[0])
    assert sum(r["ada"] is not None for r in table) == 3  # two of five were verdicts, and others were rated
    with pytest.raises(LabelsError): LabelFile(tmp_path, "../ada")
    with pytest.raises(DistilleryError, match="nothing to label"): Session([], tmp_path, "ada")


def test_nothing_that_would_sway_is_shown(tmp_path):
    run = open_results(lab.ROOT / "tests/data/run")
    teacher = {line["teacher"] for line in map(json.loads, (run.path / "selected.jsonl").read_text("utf-8").splitlines())}
    box = label_widget(ITEMS, "ada", tmp_path)
    for _ in ITEMS:
        shown = box.children[0].value
        assert not [t for t in (*teacher, "relevance", "evidence") if f">{t}<" in shown]
        box.field.value += "n"


@pytest.mark.slow
@pytest.mark.browser
def test_labels_in_a_real_jupyterlab_by_keys_alone(tmp_path):
    "Rate five pairs, kill the server, open again: nothing is lost. Then another labeller, who sees nothing of the first."
    browser.find()
    project = lab.copy(tmp_path / "project")
    (project / "tests/data/run/manifest.json").write_text("{}")

    def at(address): return address.replace("start.ipynb", "label.ipynb")

    def reach(page):
        "The field, by Tab alone."
        for _ in range(80):
            if page.value(f"document.activeElement == {FIELD}"): return
            page.press("Tab")
        raise AssertionError("Tab does not reach the field")

    def count(who, n): return f"{SAID}.includes('{who}: {n} of')"
    before = set(psutil.Process().children(recursive=True))
    with lab.lab(project) as address, lab.tab() as page:
        lab.run_all(page, at(address), FIELD)
        reach(page)
        for n, key in enumerate("54321", 1):
            page.type(key)
            page.until(count("ada", n))
        mine = [p for p in psutil.Process().children(recursive=True) if p not in before and "chrom" not in p.name()]
        for process in mine: os.kill(process.pid, signal.SIGKILL)
        assert [x["rating"] for x in lines(project / "labels")] == [5, 4, 3, 2, 1]
    (project / ".jupyter").rename(project / ".jupyter-1")
    with lab.lab(project) as address, lab.tab() as page:
        lab.run_all(page, at(address), FIELD)
        page.until(count("ada", 5))
        reach(page)
        page.type("a")
        page.until(count("ada", 6))
        page.type("e")
        page.until("document.querySelector('.jp-Notebook .label-item').innerText.includes('Mend the answer')")
        page.until(f"!{FIELD}.value.startsWith('ae')")
        page.type("x")
        page.type("\r")
        page.until(count("ada", 7))
        assert [x["verdict"] for x in lines(project / "labels")[5:]] == ["accept", "edit"]
    text = (project / "nbs/label.ipynb").read_text("utf-8")
    (project / "nbs/label.ipynb").write_text(text.replace('LABELLER = \\"ada\\"', 'LABELLER = \\"ben\\"'))
    (project / ".jupyter").rename(project / ".jupyter-2")
    with lab.lab(project) as address, lab.tab() as page:
        lab.run_all(page, at(address), FIELD)
        page.until(count("ben", 0))
        assert "ada" not in page.value(f"{SAID}")
        reach(page)
        page.type("r")
        page.until(count("ben", 1))
    assert len(lines(project / "labels")) == 7
    assert [(x["labeller"], x["verdict"]) for x in lines(project / "labels", "ben")] == [("ben", "reject")]
