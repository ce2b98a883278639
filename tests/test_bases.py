"""A base of each kind goes from preflight to answers here; `make bases` takes all of them the whole way."""

import json
import re
from html import unescape

import pytest
from bases import STEPS, Way, go, stored, table_of, write_page

from distillery.core.numbers import percent

pytest.importorskip("onnxruntime_genai")
TO_ANSWERS = ("preflight", "train", "merge", "fp32", "check", "ask")


@pytest.mark.parametrize("name", ["llama3.2", "mistral", "qwen3"])
def test_a_base_goes_from_preflight_to_right_answers(name, tmp_path):
    "Bytes and a date, several ends; SentencePiece, a window that no layer tells of, no system role; a family that thinks."
    cells = go(Way(name, tmp_path, facts=6, variants=("fp32",), epochs=45), TO_ANSWERS)
    assert {step: c.get("why", "ok") for step, c in cells.items()} == dict.fromkeys(TO_ANSWERS, "ok")
    assert cells["merge"]["right"] >= 0.8, cells["merge"]
    assert cells["ask"]["as_torch"] == {"fp32": 1.0}


def test_a_base_that_cannot_go_is_refused_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setitem(STEPS, "train", lambda way: pytest.fail("it was trained"))
    way = Way("olmo2", tmp_path)
    about = json.loads((way.base / "tokenizer_config.json").read_text())
    endless = {"chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}"}
    (way.base / "tokenizer_config.json").write_text(json.dumps(about | endless))
    cells = go(way)
    assert list(cells) == ["preflight"]
    assert cells["preflight"]["state"] == "refused"
    assert "never stop" in cells["preflight"]["why"]
    assert cells["preflight"]["fix"]


def test_the_page_says_what_the_cells_say_and_nothing_else(tmp_path):
    ok = {"state": "ok"}
    whole = {"preflight": ok, "train": ok, "merge": {**ok, "right": 11 / 12}, "fp32": {**ok, "by": "genai"},
             "check": {**ok, "same_top1": {"fp32": 1.0, "int8": 0.99, "uint8": 0.985, "q4": 0.9}},
             "ask": {**ok, "as_torch": {"fp32": 1.0}}, "GGUF": {**ok, "same_top1": {"f16": 1.0, "q8_0": 0.99}}, "package": ok}
    every = {"qwen2.5": whole, "phi-4-mini": {"preflight": {"state": "refused", "why": "export: <b>3</b> of 4"}}}
    html = write_page(every, tmp_path).read_text("utf-8")
    assert stored(every)["summary"] == {"bases": 2, "asked": 1, "refused": 1, "gguf": 1}
    figures, said = json.loads((tmp_path / "bases.json").read_text()), set[str]()
    for src, text in re.findall(r'<span data-src="bases.json#/([^"]+)">([^<]*)</span>', html):
        value = figures
        for step in src.split("/"): value = value[step]
        assert unescape(text) == (percent(value) if isinstance(value, float) else str(value)), src
        said.add(unescape(text))
    assert {"91.7 %", "99 %", "f16, q8_0", "1", "2", "preflight refused: export: <b>3</b> of 4"} <= said
    loose = re.sub(r"<[^>]*>", " ", re.sub(r"<style.*?</style>|<span data-src.*?</span>", "", html, flags=re.S))
    assert re.findall(r"(?<![\w.])\d[\d.]*", unescape(loose)) == []
    assert len(table_of(every).markdown().splitlines()) == 6
