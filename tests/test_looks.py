"Pages as people see them: at two widths, light and dark, printed; nothing beyond an edge, nothing too small, too pale or without a name."
from pathlib import Path

import lab
import looks
import pytest
from asked_run import asked_run
from page_truth import COVERED, rendered

from distillery.core.figures import FigureRow, interval_plot
from distillery.pages.html import Html, card, cards, figure, page, table
from distillery.pages.index import index_page
from distillery.pages.story import tell_story, warnings_of
from distillery.questions.all import questions_of, reasons
from distillery.questions.plots import Point, line_plot, tradeoff_plot
from distillery.questions.results import open_results

KEPT = Path(__file__).parent / "data/run"
WAYS = [(1200, False), (1200, True), (400, False), (400, True)]

LONG = "a reader of passages and a language model that was fine-tuned on three hundred pairs"
HARD = [figure(plot, "A figure that is hard to draw") for plot in (
    interval_plot([FigureRow(f"{LONG} − {LONG}", 0.5, 0.2, 0.8, (0.3, 0.7), 12_345), FigureRow("b", 0.5, 0.5, 0.5)], LONG, 0.05, 0.6),
    tradeoff_plot([Point(f"level {i}", 10 + i / 50, 0.8 + i / 999, 0.7, 0.9) for i in range(7)], "MB", LONG, 0.7),
    tradeoff_plot([Point(f"level {i}", 1 + i % 7 / 40 + i / 90, i / 30, i / 30 - 0.1, i / 30 + 0.1) for i in range(21)], "ms", "kept"),
    line_plot({name: [(2.0**i, i + k, i, i + 2) for i in range(6)] for k, name in enumerate("abcdef")}, "tokens", LONG, {LONG[:40]: 3},
              log=True),
    line_plot({"a": [(float(i), 1e5 * i, 0, 0) for i in range(300)]}, "seconds", "bytes", zero=True))]
WIDE = table([{f"column {i} of many": f"0.5{i} [0.1, 0.{i}]" for i in range(14)}] * 3) + table([{"what": LONG * 3, "n": 1}])


@pytest.fixture(scope="module")
def tab():
    with lab.tab() as one: yield one


@pytest.fixture(scope="module")
def hard(tmp_path_factory):
    made = tmp_path_factory.mktemp("hard") / "hard.html"
    one = card("?" * 60, "PASS", LONG, {"rests on": "5 things", "a-name-that-cannot-be-broken": "x" * 90}, "x.html")
    made.write_text(page("Hard", Html("<h1>Hard</h1><h2>Cards</h2>").join(["", cards([one] * 2) + WIDE + Html().join(HARD)])))
    return made


@pytest.mark.browser
@pytest.mark.parametrize(("width", "dark"), [WAYS[0], WAYS[3], *(pytest.param(*way, marks=pytest.mark.slow) for way in WAYS[1:3])])
def test_pieces_that_are_hard_to_place_fit(tab, hard, width, dark):
    assert looks.faults(tab, hard.as_uri(), width, dark) == []


@pytest.mark.browser
def test_pieces_that_are_hard_to_place_are_printed_whole(tab, hard): assert looks.paper(tab, hard.as_uri()) == []


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize(("was", "now", "said"), [
    ("--soft: #57606a", "--soft: #9aa4ae", "color-contrast"), ("font-size: .86rem", "font-size: .6rem", "small letters"),
    ("<main>", "<div>", "landmark-one-main"), (".many td::before", ".many td { min-width: 60rem } .many td::before", "beyond"),
    ("<h2>Cards", "<h4>Cards", "heading-order"), ('aria-label="A figure that is hard to draw"', "", "svg-img-alt")])
def test_a_fault_is_seen(tab, hard, tmp_path, was, now, said):
    text = hard.read_text()
    assert was in text
    (tmp_path / "bad.html").write_text(text.replace(was, now))
    assert any(said in fault for fault in looks.faults(tab, (tmp_path / "bad.html").as_uri(), 400, False))


@pytest.mark.slow
@pytest.mark.browser
def test_what_a_printer_would_lose_is_seen(tab, hard, tmp_path):
    wide = "@page { size: 6cm 20cm } body { width: 60cm; overflow: hidden }</style>"
    (tmp_path / "bad.html").write_text(hard.read_text().replace("</style>", wide, 1))
    assert looks.paper(tab, (tmp_path / "bad.html").as_uri())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    place = tmp_path_factory.mktemp("looks")
    return rendered(asked_run(KEPT, place / "asked"), place / "run")


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize("name", COVERED)
def test_every_page_fits_and_is_printed_whole(tab, run, name):
    url = (run / f"reports/{name}.html").as_uri()
    assert [looks.faults(tab, url, *way) for way in WAYS] == [[]] * 4
    assert looks.paper(tab, url) == []


@pytest.mark.browser
def test_the_index_of_the_kept_run_fits(tab, tmp_path):
    results, made = open_results(KEPT), tmp_path / "index.html"
    told = tell_story(results), warnings_of(results), results.json("provenance.json"), reasons(results)
    made.write_text(index_page("A run", results.decisions(), {q.name: "x.html" for q in questions_of("pairs")}, {}, *told))
    assert looks.faults(tab, made.as_uri(), 400, dark=False) == []
    assert looks.paper(tab, made.as_uri()) == []
