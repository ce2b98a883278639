"Numbers as people read them: what is printed parses back, and no number is spelled in two ways."
import copy
import json
import pickle
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from distillery.core import numbers as nb
from distillery.core import words
from distillery.core.records import Contrast, Estimate

FLOATS = st.floats(-1e9, 1e9, allow_nan=False)
SHARES = st.floats(0, 1)
NOUNS = st.sampled_from(["document", "query", "batch", "process", "analysis", "index", "day", "class", "loss",
                         "half", "more topic", "series"])
NUMERAL = re.compile(r"[+−]?\d[\d,]*(?:\.\d+)?(?:e−?\d+)?")


def parsed(text):
    "The value of a printed number and half a unit of its last digit."
    plain = text.replace(",", "").replace("−", "-")
    mantissa, _, power = plain.partition("e")
    places = len(mantissa.partition(".")[2])
    return float(plain), 0.5 * 10.0 ** (int(power or 0) - places)


def reads_back(text, value):
    read, half = parsed(text)
    return abs(read - value) <= half * (1 + 1e-6) + nb.NOISE


def well_set(text):
    assert not re.search(r"-\d", text)  # a hyphen is no minus sign
    assert not re.search(r"[+−]0(\.0+)?(?![\d.])", text)  # zero has no sign
    assert not re.search(r"\d{4}", re.sub(r"\.\d+", "", text))  # thousands have commas


@given(FLOATS)
@example(-0.0)
@example(-3.44e-17)
@example(9.999)
@example(0.99996)
@example(9_999_999.9)
@example(1e-4)
def test_a_measured_number_reads_back(x):
    text = nb.number(x)
    assert reads_back(text, x)
    well_set(text)


def test_a_perfect_score_has_the_decimals_of_its_neighbours():
    assert [nb.number(x) for x in (0.999, 1.0, 0.05, 1.5, 1000.5)] == ["0.999", "1.000", "0.0500", "1.50", "1,000"]


@given(FLOATS)
def test_a_measured_number_has_three_digits_that_count(x):
    digits = re.sub(r"e.*|[^\d.]", "", nb.number(x))
    at_least = len(digits.replace(".", "").lstrip("0"))
    assert at_least >= 3 or not digits.strip("0.")
    assert "." not in digits or at_least <= 4  # 1.000 has four


@given(st.integers(-10**15, 10**15))
def test_a_whole_number_loses_nothing(n):
    assert int(nb.number(n).replace(",", "").replace("−", "-")) == n
    well_set(nb.number(n))


@given(FLOATS)
def test_a_plus_sign_is_shown_only_where_asked(x):
    assert "+" not in nb.number(x)
    signed = nb.number(x, signed=True)
    assert signed[0] in "+−" or signed == "0"


@given(st.decimals(-1000, 1000, places=4, allow_nan=False))
def test_what_was_set_keeps_its_digits(d):
    assert parsed(nb.exact(float(d)))[0] == float(d)


@given(FLOATS, st.floats(0, 1e6), st.floats(0, 1e6))
@example(-3.44e-17, 0.0, 0.0)
@example(0.9412, 0.00005, 0.00005)
@example(0.0207, 0.0204, 0.0205)
@example(3e-6, 1e-6, 1e-6)
def test_an_estimate_and_its_interval_read_back(mean, below, above):
    low, high = mean - below, mean + above
    text = nb.estimate(mean, low, high)
    found = NUMERAL.findall(text)
    assert len(found) == 3
    assert all(reads_back(t, v) for t, v in zip(found, (mean, low, high), strict=True))
    well_set(text)


@given(st.floats(-1, 1), st.floats(1e-5, 0.5))
def test_no_digit_is_shown_that_the_interval_does_not_bear(mean, half):
    low, high = mean - half, mean + half
    shown = NUMERAL.findall(nb.difference(mean, low, high))
    units = {parsed(t)[1] for t in shown}
    assert (len(shown), len(units)) == (3, 1)
    unit = 2 * units.pop()
    near_zero = min(abs(low), abs(high)) < 5 * unit or min(abs(low), abs(high)) < half / 50  # such an end may need more digits
    assert 0.99 * half <= 100 * unit or near_zero


@given(st.floats(-1, 1), st.floats(1e-4, 1), st.floats(1e-4, 1))
def test_ends_keep_their_side_of_zero(mean, below, above):
    low, high = mean - below, mean + above
    shown = [parsed(t)[0] for t in NUMERAL.findall(nb.interval(low, high))]
    for end, read in zip((low, high), shown, strict=True):
        if abs(end) > 1e-6: assert read * end > 0


def test_every_number_of_a_difference_has_its_sign():
    assert nb.difference(0.029, -0.006, 0.052, n=1400, level=0.9) == "+0.029, 90 % interval [−0.006, +0.052], n = 1,400"
    assert nb.difference(0.0, -0.01, 0.01) == "0.000 [−0.010, +0.010]"
    assert nb.difference(0.5) == "+0.500"
    assert nb.difference(None) == "–"


@given(SHARES)
@example(0.9999999)
@example(1e-7)
@example(0.995)
def test_percentages_read_back_and_never_round_to_all(x):
    text = nb.percent(x)
    assert text.endswith(" %")
    read, half = parsed(text.removesuffix(" %"))
    assert abs(read - 100 * x) <= half * (1 + 1e-6) + nb.NOISE
    assert x >= 1 - 1e-9 or read < 100
    assert "0 %" != text or x < 1e-13


@given(NOUNS, st.integers(0, 10_000))
def test_counts_agree_with_their_nouns_whichever_number_these_had(noun, n):
    before, _, last = noun.rpartition(" ")
    many = f"{before} {words.plural(last)}".strip()
    assert nb.count(n, noun) == nb.count(n, many)
    assert nb.count(n, noun) == f"{n:,} {noun if n == 1 else many}"


@pytest.mark.parametrize("one", ["query", "batch", "process", "class", "box", "day", "analysis", "index", "person", "topic",
                                 "series", "status"])
def test_a_plural_goes_back_to_its_singular(one):
    assert words.singular(words.plural(one)) == words.singular(one) == one


@given(st.text("abcdefghijklmnopqrstuvwxyz", min_size=3, max_size=9))
def test_one_is_never_followed_by_an_s_that_it_did_not_have(noun):
    if noun.endswith("s"): return
    assert nb.count(1, noun + "s") in (f"1 {noun}", f"1 {words.singular(noun + 's')}")
    assert nb.count(1, noun) == f"1 {noun}" or noun in words.SINGULARS
    assert words.plural(noun) != noun or noun in words.SINGULARS or noun in words.UNCOUNTED


@given(SHARES)
def test_p_values_are_never_zero(p):
    assert re.fullmatch(r"< 0\.001|[01]\.\d{3}", nb.p_value(p))
    assert nb.p_value(p) != "0.000"
    assert re.fullmatch(r"p < 0\.001|p = [01]\.\d{3}", nb.p_value(p, "p"))


@given(st.floats(0, 1e6), st.sampled_from([(nb.seconds, " s"), (nb.milliseconds, " ms")]))
def test_units_follow_a_space(x, way):
    show, unit = way
    assert show(x).endswith(unit)
    assert reads_back(show(x).removesuffix(unit), x)


@given(st.floats(1e-6, 1e6))
def test_a_duration_reads_back_in_its_unit(x):
    figure, unit = nb.duration(x).split(" ")
    assert reads_back(figure, x / {"ms": 1e-3, "s": 1, "min": 60, "h": 3600}[unit])


@given(st.integers(0, 2**42))
def test_a_size_reads_back_in_its_unit(n):
    figure, unit = nb.bytes_(n).split(" ")
    assert reads_back(figure, n / {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}[unit])


MEASURED = [nb.number, nb.exact, nb.percent, nb.p_value, nb.seconds, nb.milliseconds, nb.duration, nb.bytes_, nb.estimate]


@pytest.mark.parametrize("show", MEASURED)
def test_what_was_not_measured_is_a_dash(show):
    assert show(None) == "–"
    assert show(None, src="a.json#/x").src == "a.json#/x"


def test_numpy_scalars_are_numbers_too():
    np = pytest.importorskip("numpy")
    assert nb.number(np.int64(7098)) == "7,098"
    assert nb.text_of(np.float32(0.5)) == "0.500"
    assert nb.text_of(np.float64("nan")) == "–"


def test_infinity_and_nan_have_signs_of_their_own():
    inf = float("inf")
    assert nb.number(-inf) == "−∞"
    assert nb.estimate(0.5, -inf, inf) == "0.500 [−∞, ∞]"
    assert nb.estimate(float("nan"), 0.1, 0.2) == "– [0.100, 0.200]"


@given(st.text(), st.text())
def test_text_and_address_are_escaped_in_html(text, src):
    html = nb.Number(text, src=src).__html__()
    inner = re.fullmatch(r'<span data-src="([^"<>]*)">([^<>]*)</span>', str(html), re.S)
    assert inner
    assert inner[1].replace("&#34;", "").count("&") == sum(src.count(c) for c in "&<>'")


@given(st.text(), st.text())
def test_a_sentence_escapes_all_but_its_numbers(name, before):
    pattern = before.replace("{", "").replace("}", "") + " {name} {x}"
    said = words.sentence(pattern, name=name, x=nb.number(0.5, src="a#/b"))
    assert said == pattern.replace("{name}", name, 1).replace("{x}", "0.500") or "{x}" in name
    assert said.__html__().replace('<span data-src="a#/b">0.500</span>', "", 1).count("<") == 0


def test_a_number_is_plain_text_to_everything_else():
    shown = nb.with_interval(Estimate(mean=0.5, ci_low=0.4, ci_high=0.6, n=10), n=True, src=nb.address("a.json", "x/y", 0, "~"))
    assert json.loads(json.dumps([shown])) == ["0.50 [0.40, 0.60], n = 10"]
    assert shown.src == "a.json#/x~1y/0/~0"
    again = pickle.loads(pickle.dumps(shown))
    assert (again, again.src, again.values) == (shown, shown.src, (0.5, 0.4, 0.6, 10))
    assert copy.deepcopy(shown).src == shown.src


def test_records_are_shown_in_one_call():
    c = Contrast(diff=-0.02868, ci_low=-0.0521, ci_high=-0.0052, ci_naive_low=0, ci_naive_high=0, p=0.01, mde=0.1, n_items=140)
    assert nb.with_interval(c, n=True, level=0.95) == "−0.029, 95 % interval [−0.052, −0.005], n = 140"


@pytest.mark.parametrize(("key", "name"), words.METRIC_NAMES.items())
def test_metric_names_have_no_underscores_and_name_themselves(key, name):
    assert "_" not in words.metric_name(key)
    assert words.metric_name(name) == name
