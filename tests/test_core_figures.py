"Figures: the same bytes for the same numbers; strangers' names stay text; what is drawn stands where its value is; labels keep clear."
import hashlib
import re
import subprocess
import sys
from importlib import resources
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings, strategies as st

from distillery.core.figures import PALETTE, Axis, FigureRow, figure_rows, interval_plot
from distillery.core.records import Contrast, Estimate
from distillery.questions.plots import TALL, WIDTHS, Point, dominated, label_heights, line_plot, tradeoff_plot

ROWS = [FigureRow("fp32", 0.8, 0.7, 0.9, n=36), FigureRow("q4 & $x_1$ <b>", 0.6, 0.5, 0.7, naive=(0.55, 0.65))]
POINTS = [Point("fp32", 10, 0.8, 0.7, 0.9), Point("q4", 2, 0.7, 0.6, 0.8), Point("bad", 11, 0.6, 0.5, 0.7)]
FIGURES = [interval_plot(ROWS, "share", margin=0.05, threshold=0.6), tradeoff_plot(POINTS, "MB", "share", 0.6), interval_plot([], "share"),
           tradeoff_plot([], "MB", "share"), line_plot({}, "seconds", "bytes", zero=True),
           line_plot({"<b>": [(1, 2, 1, 3), (10, 4, 3, 5)]}, "tokens", "error", {"flat & even": 3}, log=True)]
SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("plot", FIGURES)
def test_a_figure_is_well_formed_and_names_stay_text(plot):
    root = ElementTree.fromstring(plot.svg('what "it" <shows>'))
    assert root.get("role") == "img"
    assert root.get("aria-label") == 'what "it" <shows>'
    assert not root.findall(f".//{SVG}b")
    assert not re.search(r"nan|inf|None|data-src", plot.svg())


def test_bytes_are_the_same_in_another_process():
    code = "import hashlib; from test_core_figures import *; print(hashlib.sha256(FIGURES[0].svg().encode()).hexdigest())"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=__file__.rsplit("/", 1)[0])
    assert other.stdout.strip() == hashlib.sha256(FIGURES[0].svg().encode()).hexdigest()


def test_records_become_rows():
    e = Estimate(level="fp32", mean=0.8, ci_low=0.7, ci_high=0.9, n=36)
    c = Contrast(a="fp32", b="q4", diff=0.1, ci_low=0, ci_high=0.2, ci_naive_low=0.05, ci_naive_high=0.15, p=0.05, mde=0.2, n_items=36)
    assert figure_rows([e, c]) == [FigureRow("fp32", 0.8, 0.7, 0.9, n=36), FigureRow("fp32 − q4", 0.1, 0, 0.2, (0.05, 0.15), 36)]
    assert interval_plot([e], "share") == interval_plot(figure_rows([e]), "share")


def drawn(plot, tag, key):
    found = ElementTree.fromstring(plot.svg()).iter(f"{SVG}{tag}")
    return [float(e.get(key).rstrip("%")) for e in found if e.get(key)]


@settings(max_examples=50)
@given(st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=3, unique=True).map(sorted).filter(lambda v: v[2] - v[0] > 1e-3))
def test_an_interval_stands_where_its_values_are(values):
    low, mean, high = values
    plot = interval_plot([FigureRow("a", mean, low, high)], "x")
    at, = drawn(plot, "circle", "cx")
    left, right = (next(v for v in drawn(plot, "line", key)[::-1]) for key in ("x1", "x2"))
    assert 0 <= left <= at <= right <= 100
    assert at - left == pytest.approx((mean - low) / (high - low) * (right - left), abs=0.05)


@settings(max_examples=50)
@given(st.floats(1e-6, 1e6), st.floats(1.001, 1e6), st.booleans())
def test_round_ticks_lie_on_the_axis(low, times, log):
    axis = Axis.over([low, low * times], 2, 98, log)
    assert len(axis.ticks()) <= 7
    assert all(1.9 <= axis.at(t) <= 98.1 for t in axis.ticks())
    assert axis.at(low) < axis.at(low * times)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(1, 16), st.floats(12, 97), st.floats(40, 40 + TALL)), min_size=2, max_size=5))
def test_labels_keep_clear_of_one_another(places):
    heights = label_heights([("x" * n, x, y) for n, x, y in places])
    for w in WIDTHS:
        spans = [(w * x / 100 - 7 * n - 8, w * x / 100 - 8) if x > 55 else (w * x / 100 + 8, w * x / 100 + 8 + 7 * n) for n, x, _ in places]
        for i, a in enumerate(spans):
            for j in range(i):
                assert a[1] <= spans[j][0] or spans[j][1] <= a[0] or abs(heights[i] - heights[j]) >= 12


def test_dominated_points_are_found():
    assert dominated(POINTS) == [False, False, True]
    assert dominated([POINTS[0], POINTS[0]]) == [False, False]
    assert FIGURES[1].svg().count('class="hollow"') == 1


def contrast_ratio(a, b):
    def light(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        return sum(
            w * (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4) for w, p in zip((0.2126, 0.7152, 0.0722), parts, strict=True)
        )

    high, low = sorted((light(a), light(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_colours_of_series_stand_out_in_the_light_and_in_the_dark():
    css = resources.files("distillery").joinpath("assets/page.css").read_text("utf-8")
    told = dict(re.findall(r"--(s\d|paper): (#\w+)", css.partition("prefers-color-scheme")[2].partition("}")[0]))
    assert [c for c in PALETTE if contrast_ratio(c, "#ffffff") < 4.5] == []
    assert [told[f"s{i}"] for i in range(7) if contrast_ratio(told[f"s{i}"], told["paper"]) < 4.5] == []
