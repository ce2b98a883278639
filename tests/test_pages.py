"Pages: what strangers wrote stays text, in a real browser too; a number leads to the file it was read from."
import re
import shutil
import subprocess
import sys
from pathlib import Path

import browser
import nbformat
import pytest
import warm
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from page_truth import NUMERAL, flaws

from distillery.core.config import load_config
from distillery.core.errors import DistilleryError
from distillery.core.store import RunFolder
from distillery.pages.index import index_page, open_questions
from distillery.pages.html import card, finding, note, page, table
from distillery.questions.all import questions_of, reasons
from distillery.pages.report import build_report, check_parameters, parameters, report_kernel
from distillery.questions.results import open_results
from distillery.pages.story import tell_story
from distillery.workbook.assemble import write_decisions, write_pages

ATTACKS = [
    "<script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "../../etc/passwd\"><svg onload=document.title='owned'>",
    "</style></title><script>document.title='owned'</script>",
    "{{7*7}} ${7*7} <iframe src=javascript:document.title='owned'>",
]


def every_piece(text: str) -> str:
    rows = [{text: text, "state": "PASS"}]
    return "".join([finding(text), note(text), note(text, "warning"), table(rows), card(text, text, text, {text: text}, href=text)])


@pytest.mark.parametrize("attack", ATTACKS)
def test_pieces_escape(attack):
    body = every_piece(attack)
    assert not re.search(r"<(script|img|svg|iframe)", body)
    assert attack not in body


@pytest.mark.browser
def test_a_browser_sees_text_only(tmp_path):
    target = tmp_path / "page.html"
    index = index_page(ATTACKS[0], [], {"a": ATTACKS[1]}, {}, {ATTACKS[2]: [{"x": ATTACKS[3]}]}, ATTACKS, {"run": ATTACKS[4]})
    target.write_text(page("fine", "".join(map(every_piece, ATTACKS)) + index))
    seen = browser.dom(target)
    assert "<title>fine</title>" in seen
    assert "owned'&gt;" in seen or "owned'" in seen
    assert not re.search(r"<(script|svg|iframe)|<img[^>]*onerror", seen)


@pytest.mark.browser
def test_the_policy_stops_what_escaping_would_miss(tmp_path):
    (tmp_path / "hole.html").write_text(page("fine", "<script>document.title='owned'</script>"))
    assert "<title>fine</title>" in browser.dom(tmp_path / "hole.html")
    (tmp_path / "open.html").write_text("<title>fine</title><script>document.title='owned'</script>")
    assert "<title>owned</title>" in browser.dom(tmp_path / "open.html"), "the browser must run scripts, or this test shows nothing"


# the index of the kept run

KEPT = Path(__file__).parent / "data/run"


def test_the_story_accounts_for_every_pair_that_was_written():
    results = open_results(KEPT)
    story, counts = tell_story(results), results.json("counts.json")
    assert sum(row["pairs"] for row in story["Why written pairs were not kept"]) == counts["pairs_written"] - counts["pairs_kept"] > 0
    rejected = story["Why candidates were rejected"]
    assert sum(row["count"] for row in rejected) == len((KEPT / "rejected.jsonl").read_text("utf-8").splitlines())
    assert sum(row["share of rejections"] for row in rejected) == pytest.approx(1)


def test_the_index_shows_choices_by_their_questions_and_says_what_cannot_be_asked():
    results = open_results(KEPT)
    none, context = reasons(results), next(d for d in results.decisions() if d.name == "context_length")
    assert any(c.a == "length alone" for c in context.contrasts)
    names = [question.name for question in questions_of("pairs")]
    text = index_page("A run", results.decisions(), {n: f"{n}.html" for n in ("kpis", *names) if n not in none}, {}, {}, [], {}, none)
    assert "length alone" not in text
    assert "context_length</a>" not in text
    open_, listed = text[text.index("<h2>Questions without"):].split("<h2>Reports")
    assert "How the run went</a>" in listed
    assert re.findall(r'href="(\w+)\.html"', listed) == [*(n for n in names if n not in none), "kpis"]
    assert "`" not in text
    assert open_.count("<code>distillery run ") == sum(reason.startswith("Not run") for reason in none.values()) > 3
    states = {row["question"]: row["state"] for row in open_questions([], none)}
    assert all(state.startswith(("Not run.", "No result: ")) for state in states.values())


# a number leads to the file it was read from

@pytest.fixture(scope="module")
def decided(tmp_path_factory):
    run = tmp_path_factory.mktemp("decided") / "run"
    shutil.copytree(KEPT, run)
    write_decisions(RunFolder(run), load_config(overrides=open_results(run).settings()), "")
    with warm.kernels(): write_pages(RunFolder(run), {"quantization": {}})
    return run


def test_a_report_finds_nothing_of_the_one_before_it(tmp_path):
    "Two reports in one kernel are those of two kernels, names and imports included."
    first, second = (toy(tmp_path / f"10_{name}.ipynb", code) for name, code in (
        ("first", "import math; left = 1; run_dir"), ("second", "sorted({'left', 'math', 'In'} & set(globals()))")))
    with report_kernel() as kernel:
        build_report(str(first), tmp_path / "one", {}, kernel)
        build_report(str(second), tmp_path / "one", {}, kernel)
    with warm.kernels(): build_report(str(second), tmp_path / "two", {})
    assert (tmp_path / "one/second.ipynb").read_bytes() == (tmp_path / "two/second.ipynb").read_bytes()
    assert "'left'" not in str(nbformat.read(tmp_path / "one/second.ipynb", 4).cells[-1].outputs)


def test_a_question_without_an_answer_has_no_page(decided, tmp_path):
    run = shutil.copytree(decided, tmp_path / "run")
    (run / "reports/prompts.html").write_text("of an earlier version")
    with warm.kernels(): write_pages(RunFolder(run), {"prompts": {}})
    assert not (run / "reports/prompts.html").exists()
    assert 'href="prompts.html"' not in (run / "reports/index.html").read_text("utf-8")


@pytest.mark.parametrize("name", ["index", "quantization"])
def test_every_numeral_leads_to_a_stored_value(decided, name):
    assert flaws(decided, name, (decided / f"reports/{name}.html").read_text("utf-8")) == []


def test_numbers_of_cards_and_gates_have_addresses(decided):
    index, report = ((decided / f"reports/{name}.html").read_text("utf-8") for name in ("index", "quantization"))
    facts = re.findall(r"<dd>(.*?)</dd>", index[:index.index("</section>\n</div>")])
    assert len(facts) > 20
    assert not [fact for fact in facts if re.search(r"\d", re.sub("<.*?>", "", fact)) and "data-src" not in fact]
    gates = report[report.index("<h2 id=\"Gates"):]
    cells = re.findall(r"<td[^>]*>(.*?)</td>", gates[:gates.index("</table>")])
    assert len(cells) > 100
    assert not [cell for cell in cells if re.search(NUMERAL, cell) and "data-src" not in cell]


def toy(path: Path, body: str, params: str = 'run_dir: str = "toy"  # where') -> Path:
    cells = [new_markdown_cell("# Toy"), new_code_cell(params, metadata={"tags": ["parameters"]}), new_code_cell(body)]
    nb = new_notebook(cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}})
    nbformat.write(nb, path)
    return path


def test_reports_are_the_same_bytes_from_two_places(tmp_path):
    for side in "ab":
        (tmp_path / side).mkdir()
        (tmp_path / side / "n.txt").write_text("7")
    nb = toy(tmp_path / "10_toy.ipynb", "from pathlib import Path\nfrom distillery.pages.html import finding\n"
                                        "finding('n is ' + Path(run_dir, 'n.txt').read_text())")
    pages = [build_report(str(nb), tmp_path / side, {"run_dir": str(tmp_path / side)}).read_bytes() for side in "ab"]
    assert pages[0] == pages[1]
    assert b"n is 7" in pages[0]
    assert (tmp_path / "a/toy.ipynb").read_bytes() == (tmp_path / "b/toy.ipynb").read_bytes()


def test_a_report_that_fails_names_itself(tmp_path):
    with pytest.raises(DistilleryError, match="10_toy stopped: ZeroDivisionError"):
        build_report(str(toy(tmp_path / "10_toy.ipynb", "1/0")), tmp_path, {})


@pytest.mark.parametrize(("asked", "word"), [
    ({"run": "x"}, "run_dir"), ({"run_dir": 3}, "not str"), ({"a b": 1}, "no parameter"), ({"__import__('os')": 1}, "no parameter"),
])
def test_wrong_parameters_never_reach_a_kernel(tmp_path, asked, word):
    with pytest.raises(DistilleryError, match=word): check_parameters(toy(tmp_path / "10_toy.ipynb", "1"), asked)


@pytest.mark.parametrize("params", ["x = 1", "x: int = 1 + 1", "x: str = open('f')"])
def test_parameters_are_typed_literals(tmp_path, params):
    with pytest.raises((DistilleryError, ValueError)): parameters(toy(tmp_path / "10_toy.ipynb", "1", params))


def test_reports_build_without_any_network(tmp_path):
    nb = toy(tmp_path / "10_toy.ipynb", "run_dir")
    code = f"""from pathlib import Path
from distillery.pages.report import build_report
build_report({str(nb)!r}, Path({str(tmp_path)!r}), {{}})"""
    alone = ["unshare", "--net", sys.executable, "-c", code]
    if shutil.which("unshare") is None or subprocess.run(["unshare", "--net", "true"], capture_output=True).returncode:
        pytest.skip("this user may not make a network namespace")
    done = subprocess.run(alone, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "toy.html").is_file()
