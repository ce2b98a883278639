"Figures: the same bytes for the same numbers, whatever the user's own settings are."

import hashlib
import subprocess
import sys

import pytest

from distillery.core.figures import PALETTE, Point, FigureRow, dominated, interval_plot, png_bytes, figure_rows, tradeoff_plot, use_style
from distillery.core.records import Contrast, Estimate

matplotlib = pytest.importorskip("matplotlib")
ROWS = [FigureRow("fp32", 0.8, 0.7, 0.9, n=36), FigureRow("q4 & $x_1$ <b>", 0.6, 0.5, 0.7, naive=(0.55, 0.65))]
POINTS = [Point("fp32", 10, 0.8, 0.7, 0.9), Point("q4", 2, 0.7, 0.6, 0.8), Point("bad", 11, 0.6, 0.5, 0.7)]


@pytest.mark.parametrize(
    "draw", [lambda: interval_plot(ROWS, "share", margin=0.05, threshold=0.6), lambda: tradeoff_plot(POINTS, "MB", "share", 0.6)]
)
def test_bytes_do_not_depend_on_time_or_settings(draw):
    first = png_bytes(draw())
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "savefig.dpi": 7}):
        use_style()
        assert matplotlib.rcParams["font.size"] == 9
        assert not matplotlib.rcParams["text.parse_math"]
        assert png_bytes(draw()) == first
    assert 2000 < len(first) < 50_000


def test_bytes_are_the_same_in_another_process():
    code = "import hashlib; from test_core_figures import *; print(hashlib.sha256(png_bytes(interval_plot(ROWS, 'share'))).hexdigest())"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=__file__.rsplit("/", 1)[0])
    assert other.stdout.strip() == hashlib.sha256(png_bytes(interval_plot(ROWS, "share"))).hexdigest()


def test_records_become_rows():
    e = Estimate(level="fp32", mean=0.8, ci_low=0.7, ci_high=0.9, n=36)
    c = Contrast(a="fp32", b="q4", diff=0.1, ci_low=0, ci_high=0.2, ci_naive_low=0.05, ci_naive_high=0.15, p=0.05, mde=0.2, n_items=36)
    assert figure_rows([e, c]) == [FigureRow("fp32", 0.8, 0.7, 0.9, n=36), FigureRow("fp32 − q4", 0.1, 0, 0.2, (0.05, 0.15), 36)]
    assert png_bytes(interval_plot([e], "share")) == png_bytes(interval_plot(figure_rows([e]), "share"))
    assert png_bytes(interval_plot([], "share"))[:4] == b"\x89PNG"


def test_dominated_points_are_found():
    assert dominated(POINTS) == [False, False, True]
    assert dominated([POINTS[0], POINTS[0]]) == [False, False]


def contrast_ratio(a, b):
    def light(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        return sum(
            w * (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4) for w, p in zip((0.2126, 0.7152, 0.0722), parts, strict=True)
        )

    high, low = sorted((light(a), light(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_the_colours_of_intervals_and_thresholds_stand_out():
    assert contrast_ratio(PALETTE[0], "#FFFFFF") > 4.5
    assert contrast_ratio(PALETTE[1], "#FFFFFF") > 3
