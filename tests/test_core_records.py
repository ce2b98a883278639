"Records: what is written is what is read, and what does not fit is refused."

import json

import pytest
from hypothesis import given, settings, strategies as st
from pydantic import ValidationError

from distillery.core.files import read_jsonl, write_jsonl
from distillery.core.records import (
    SCHEMA,
    Call,
    ChatTurn,
    Chunk,
    Contrast,
    Decision,
    Document,
    Estimate,
    Evidence,
    Example,
    Gate,
    Logprobs,
    Pair,
    Slot,
    slice_of,
)

TEXT = st.text(max_size=30)
NAME = st.text(min_size=1, max_size=12)
NUMBER = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def spans(draw):
    text, start = draw(TEXT), draw(st.integers(0, 500))
    return {"start": start, "end": start + len(text), "text": text}


EVIDENCE = spans().map(lambda s: Evidence(**s))
def record_of(kind, **given):
    "Records of a kind whose required fields are drawn by their annotation; until a record is built, Pydantic hides its signature."
    drawn = {str: NAME, float: NUMBER, int: st.integers(0, 10**6)}
    if kind is Example: drawn[list[ChatTurn]] = st.lists(record_of(ChatTurn), max_size=2)
    needs = {k: f.annotation for k, f in kind.model_fields.items() if f.is_required() and k not in given}
    return st.builds(kind, **{k: drawn[a] if a in drawn else st.from_type(a) for k, a in needs.items()}, **given)


PAIRS = record_of(
    Pair,
    schema_version=st.just(SCHEMA),
    id=NAME,
    question=NAME,
    answer=TEXT,
    evidence=st.none() | EVIDENCE,
    temperature=NUMBER,
    scores=st.dictionaries(NAME, NUMBER, max_size=3),
)
CONTRASTS = record_of(Contrast, **{k: NUMBER for k, f in Contrast.model_fields.items() if f.annotation is float}, p_holm=st.none())
KINDS = [
    PAIRS,
    spans().flatmap(lambda s: record_of(Chunk, schema_version=st.just(SCHEMA), **{k: st.just(v) for k, v in s.items()})),
    record_of(Document, schema_version=st.just(SCHEMA), path=st.just("a/b.md"), text=TEXT),
    record_of(Slot, schema_version=st.just(SCHEMA), focus=st.none() | EVIDENCE),
    record_of(Example, schema_version=st.just(SCHEMA), weight=st.floats(0, 10)),
    record_of(Gate, schema_version=st.just(SCHEMA), value=NUMBER, bound=NUMBER, threshold=NUMBER),
    record_of(
        Decision,
        schema_version=st.just(SCHEMA),
        margin=st.floats(0, 1),
        cost=st.just({"seconds": 3}),
        estimates=st.lists(record_of(Estimate, mean=NUMBER, ci_low=NUMBER, ci_high=NUMBER), max_size=2),
        contrasts=st.lists(CONTRASTS, max_size=2),
    ),
]


@given(st.one_of(KINDS))
@settings(max_examples=300)
def test_a_record_survives_its_line(record):
    line = record.to_line()
    assert "\n" not in line
    assert type(record).model_validate_json(line) == record
    assert json.loads(line)["schema"] == SCHEMA
    assert "schema_version" not in json.loads(line)


@given(st.lists(PAIRS, min_size=1, max_size=5))
@settings(max_examples=60)
def test_records_survive_their_file(tmp_path_factory, pairs):
    path = write_jsonl(tmp_path_factory.mktemp("rows") / "pairs.jsonl", pairs)
    assert read_jsonl(path, Pair) == pairs


@given(st.one_of(KINDS), st.integers(SCHEMA + 1, 99))
@settings(max_examples=50)
def test_a_newer_line_is_refused_whatever_else_it_says(record, version):
    with pytest.raises(ValidationError, match="upgrade distillery"):
        type(record).model_validate({**json.loads(record.to_line()), "schema": version, "new": 1})


@given(TEXT, st.integers(0, 20), st.integers(0, 20))
def test_a_slice_is_a_slice(text, start, length):
    piece = text[start : start + length]
    span = Evidence(start=start, end=start + len(piece), text=piece)
    assert slice_of(span, text)
    if piece:
        assert not slice_of(span, "\0" * (start + len(piece)))


@pytest.mark.parametrize("span", [(-1, 1, "ab"), (3, 4, "ab"), (4, 3, ""), (0, 0, "a")])
def test_a_span_that_does_not_fit_is_refused(span):
    with pytest.raises(ValidationError, match="does not fit"):
        Evidence(start=span[0], end=span[1], text=span[2])


@pytest.mark.parametrize("path", ["/etc/passwd", "C:\\secret.txt", "c:/x"])
def test_a_document_path_is_relative(path):
    with pytest.raises(ValidationError, match="relative"):
        Document(doc_id="d", path=path, title="t", text="", mime="text/plain", digest="0")


def test_numbers_that_json_cannot_hold_are_refused():
    with pytest.raises(ValidationError):
        Estimate(mean=float("nan"), ci_low=0, ci_high=1)
    with pytest.raises(ValidationError):
        Gate(name="g", variant="v", value=1, bound=float("inf"), threshold=1, state="PASS")


def test_a_call_has_one_outcome_and_log_probabilities_one_shape():
    assert Call(key="k", request={}, error="timeout", finish_reason="error").attempt == 1
    for both in ({"response": "a", "error": "b"}, {}):
        with pytest.raises(ValidationError, match="a response or an error"):
            Call(key="k", request={}, finish_reason="stop", **both)
    with pytest.raises(ValidationError, match="agree in shape"):
        Logprobs(tokenizer_digest="0", ids=[[1, 2]], logprobs=[[0.0]], tail_mass=[0.0])
