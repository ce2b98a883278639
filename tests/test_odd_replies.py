"What servers send instead of a plain answer: empty replies, odd usage, marks of thought, separators in JSON; and any bytes at all."
import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import example, given, settings, strategies as st

from distillery.pairs.groups import Items
from distillery.teachers.batch import BatchTeacher, BatchPending, batch_line
from distillery.teachers.journal import Journal
from distillery.teachers.openai import OpenAITeacher
from distillery.teachers.protocol import ChatResult, Message, ask_all, user_request
from distillery.teachers.replies import read_result
from distillery.teachers.structured import read_form
from distillery.training.distill_data import read_teacher_answers
from distillery.wire.bounded import BadJson, TooLong, inflate, read_json
from distillery.wire.completion import BadReply, read_ending, read_reply
from distillery.wire.thoughts import split_reasoning

from teachers_server import Scripted

CASES = Path(__file__).resolve().parents[2] / "shared/cases"
ASK = user_request("a", "How often is the plate changed?")
quick = settings(max_examples=60)


def case(name: str) -> list:
    "The files of a case, as parameters; none where the folder is absent."
    return [pytest.param(p.read_bytes(), id=p.stem) for p in sorted((CASES / name).glob("*.json"))]


def body(message, finish="stop", **more) -> bytes:
    return json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": finish}], **more}).encode()


def answer(raw: bytes, kind: str = "application/json") -> ChatResult:
    made = read_result(ASK, raw, kind)
    assert isinstance(made, ChatResult), made
    return made


EMPTY = [
    body({"role": "assistant", "content": ""}, "abort"), body({"role": "assistant", "content": ""}, "error"),
    body({"role": "assistant", "content": None, "reasoning_content": "Let me think"}),
    body({"role": "assistant", "content": None, "refusal": "I cannot help with that."}),
    body({"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]}, "tool_calls"),
    body({"role": "assistant", "content": " \n\t"}), body({"role": "assistant", "content": "<think>14?"}, "length"),
    body({"role": "assistant", "content": [{"type": "thinking", "thinking": "14?"}]}),
    body({"role": "assistant", "content": "every 14"}, "cancelled"), body({"role": "assistant", "content": "14"}, "SAFETY"),
    body({"role": "assistant", "content": "<|channel|>analysis<|message|>The passage says 14.<|end|>"}),
    b'data: {"choices": [{"delta": {"content": ""}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n',
]


@pytest.mark.parametrize("raw", [*EMPTY, *case("30_empty_replies")])
@pytest.mark.attack(row=1)
def test_a_reply_without_an_answer_is_a_failure(raw):
    made = read_result(ASK, raw, "event-stream" if raw.startswith(b"data:") else "")
    assert isinstance(made, BadReply) or (not made.ok and made.text == "" and made.error)


def test_an_empty_reply_is_asked_again_by_the_next_run_and_not_at_once(tmp_path):
    "Once now, once by the next run, and never once it has an answer."
    journal, requests = Journal(tmp_path / "calls.sqlite"), [user_request(str(i), f"p{i}") for i in range(len(EMPTY))]
    lasting = [i for i, raw in enumerate(EMPTY) if isinstance(read_result(ASK, raw), ChatResult)]
    with Scripted(lambda asked, turn: EMPTY[int(asked["messages"][-1]["content"][1:])] if turn < 2 else None) as server:
        teacher = OpenAITeacher(server.url, "m", breaker_wait_s=0.01)
        first = journal.ask(teacher, requests)
        assert [server.seen[f"p{i}"] for i in lasting] == [1] * len(lasting)
        assert not any(r.ok for r in first.values())
        journal.ask(teacher, requests)
        assert all(r.ok for r in journal.ask(teacher, requests).values())
        sent = len(server.bodies)
        journal.ask(teacher, requests)
        assert len(server.bodies) == sent <= 3 * len(EMPTY)
    reasons = journal.db.execute("select error from calls where error is not null").fetchall()
    words = ("only reasoned", "tool", "refused", "empty", "filter", "broke", "tokens")
    assert all(any(word in reason for word in words) for (reason,) in reasons)
    assert "found nothing" not in str(reasons)


ODD_USAGE = [[1], "n/a", None, 3, True, {"prompt_tokens": "300", "completion_tokens": "4"}, {"prompt_tokens": None},
             {"prompt_tokens": 10**30},
             {"prompt_tokens": -1, "completion_tokens": 1.5}, {"prompt_tokens": [300]}, {"prompt_tokens": {"total": 300}}, [[[[]]]]]


@pytest.mark.parametrize("raw", [*(body({"content": "every 14 days"}, usage=usage) for usage in ODD_USAGE), *case("31_odd_usage")])
@pytest.mark.attack(row=1)
def test_odd_usage_costs_no_answer(raw, tmp_path):
    result = answer(raw)
    assert (result.text, result.prompt_tokens, result.completion_tokens) == ("every 14 days", None, None)
    with Scripted(lambda *_: raw) as server: assert Journal(tmp_path / "calls.sqlite").ask(OpenAITeacher(server.url, "m"), [ASK])["a"].ok


@pytest.mark.attack(row=1)
def test_a_number_of_five_thousand_digits_costs_no_answer():
    raw = body({"content": "14"}, usage={"prompt_tokens": 7}).replace(b": 7", b": " + b"7" * 5000)
    assert (answer(raw).text, answer(raw).prompt_tokens) == ("14", None)


@pytest.mark.parametrize("usage", [{"prompt_tokens": 4, "prompt_tokens_details": {"cached_tokens": 200}},
                                   {"prompt_tokens": 4, "prompt_cache_hit_tokens": 200, "prompt_cache_miss_tokens": 4},
                                   {"prompt_tokens": 4, "cache_read_input_tokens": 200}, {"prompt_tokens": 204}])
def test_cached_tokens_are_no_cut_prompt(usage):
    long = user_request("a", "The Raven 74 stands in Hall 3. " * 25)
    assert read_result(long, body({"content": "Hall 3"}, usage=usage)).ok
    assert "cut the prompt" in read_result(long, body({"content": "Hall 3"}, usage={"prompt_tokens": 4})).error
    assert read_result(long, body({"content": "Hall 3"}, usage={"prompt_tokens": 4}, timings={"cache_n": 200, "prompt_n": 4})).ok


THOUGHT, TEXT = "The passage says 14.", "every 14 days"
MARKED = {
    "think": f"<think>{THOUGHT}</think>{TEXT}", "THINK": f"<THINK>\n{THOUGHT}\n</THINK>\n\n{TEXT}",
    "thinking": f"<thinking>{THOUGHT}</thinking>{TEXT}", "thought": f"<thought>{THOUGHT}</thought>{TEXT}",
    "reasoning": f"<reasoning>{THOUGHT}</reasoning>\n{TEXT}", "reflection": f"<reflection>{THOUGHT}</reflection>{TEXT}",
    "brackets": f"[THINK]{THOUGHT}[/THINK]{TEXT}", "named space": f"<seed:think>{THOUGHT}</seed:think>{TEXT}",
    "kimi": f"◁think▷{THOUGHT}◁/think▷{TEXT}",
    "cohere": f"<|START_THINKING|>{THOUGHT}<|END_THINKING|><|START_RESPONSE|>{TEXT}<|END_RESPONSE|>",
    "solution": f"<|begin_of_thought|>{THOUGHT}<|end_of_thought|>\n<|begin_of_solution|>{TEXT}<|end_of_solution|>",
    "no opening": f"{THOUGHT}</think>{TEXT}", "no opening bracket": f"{THOUGHT}[/THINK]{TEXT}",
    "no opening thought": f"{THOUGHT}</thought>\n{TEXT}", "two": f"<think>{THOUGHT}</think><think>{THOUGHT}</think>{TEXT}",
    "attribute": f'<think time="3">{THOUGHT}</think>{TEXT}', "behind": f"{TEXT}<think>{THOUGHT}</think>",
    "preamble": f"<think>\n\n</think>\n{TEXT}",
    "harmony": f"<|channel|>analysis<|message|>{THOUGHT}<|end|><|start|>assistant<|channel|>final<|message|>{TEXT}<|return|>",
    "harmony, three": f"<|channel|>analysis<|message|>{THOUGHT}<|end|><|channel|>commentary<|message|>{THOUGHT}<|call|>"
                      f"<|channel|>final<|message|>{TEXT}",
    "harmony, begun in the prompt": f"{THOUGHT}<|end|><|start|>assistant<|channel|>final <|constrain|>text<|message|>{TEXT}<|end|>",
    "harmony, stripped": f"analysis{THOUGHT}assistantfinal{TEXT}",
    "harmony, all stripped": f"assistantanalysis{THOUGHT}assistantfinal{TEXT}",
}


@pytest.mark.parametrize(
    "raw", [*(pytest.param(body({"content": text}), id=name) for name, text in MARKED.items()), *case("33_other_marks_of_thought")]
)
def test_thoughts_stand_apart(raw):
    result = answer(raw)
    assert result.text == TEXT
    assert THOUGHT in result.reasoning or b"\\n\\n</think>" in raw


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "thinking", "reasoning_details", "thoughts"])
@pytest.mark.parametrize("thought", [THOUGHT, [{"type": "text", "text": THOUGHT}], {"content": THOUGHT}])
def test_thoughts_in_fields_of_their_own(field, thought):
    result = answer(body({"content": [{"type": "text", "text": "every "}, {"type": "output_text", "text": "14 days"}], field: thought}))
    assert (result.text, result.reasoning) == (TEXT, THOUGHT)


@pytest.mark.parametrize(
    "text", ["The tag <think> opens a thought.", "Write [x] and [THANKS].", "analysis of the plate", "5 < think > 4", "Use </b> there."]
)
def test_words_that_look_like_marks_are_words(text):
    assert answer(body({"content": text})).text == text


@pytest.mark.parametrize("text", [
    "Use `<think>` and `</think>` in the prompt.", "```xml\n<think>plan</think>\n```", "The <|channel|> token opens a channel.",
    "Write `[THINK]` first."])
def test_marks_in_code_are_words(text): assert answer(body({"content": text})).text == text


@pytest.mark.parametrize("written", [
    "Thinking...\n{}\n...done thinking.\n\n{}", "Reasoning: {}\n\n{}", "<|channel>thought\n{}<channel|>{}", "<analysis>{}</analysis>{}",
    "[REASONING]{}[/REASONING]{}", "< think >{}</ think >{}", "<think>Not `</thin`. {}</think>\n{}", "<antThinking>{}</antThinking>{}"])
def test_still_other_marks_of_thought(written):
    result = answer(body({"content": written.format(THOUGHT, TEXT)}))
    assert result.text == TEXT
    assert THOUGHT in result.reasoning


@pytest.mark.parametrize(("finish", "ending"), [
    ("content-filter", "filtered"), ("IMAGE_SAFETY", "filtered"), ("guardrail_intervened", "filtered"), ("network_error", "broken"),
    ("engine overloaded", "broken"), ("MALFORMED_FUNCTION_CALL", "broken"), ("model_context_window_exceeded", "length"),
    ("incomplete", "length"),
    ("end_turn", "stop"), ("eos", "stop"), ("", "stop"), (7, "stop"), ("x" * 10**6, "stop")])
def test_an_ending_is_told_by_its_family(finish, ending): assert read_ending(finish) == ending


@pytest.mark.parametrize("text", ["\u200b", "\ufeff \u2060", "\u00ad", "\u3000"])
def test_what_nobody_can_see_is_no_answer(text): assert not read_result(ASK, body({"content": text})).ok


def test_a_stream_whose_lines_end_in_carriage_returns():
    assert answer(events("every ", "14 days", gap="\r\r"), "text/event-stream").text == TEXT


WORDS = (
    st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="<[|◁"), min_size=1, max_size=40).map(str.strip).filter(bool)
)


@given(st.sampled_from(sorted(MARKED)), WORDS, WORDS)
@quick
def test_no_thought_is_taken_for_the_answer(name, thought, text):
    if thought[-1] == text[0] == "`": return  # a mark between backticks is quoted
    if "assistantfinal" in thought + text or (name.startswith("harmony, ") and "stripped" in name and not thought[0].isupper()): return
    written = MARKED[name].replace(THOUGHT, thought).replace(TEXT, text)
    said, reasoning = split_reasoning(written)
    assert said == text
    assert thought in reasoning or name == "preamble"


SEPARATORS = ["every\u202814 days", "every\x8514 days", "every\u2029\x0b\x0c\x1c14 days", "every\r14 days", "every 14\ud83d\ude00 days"]


def events(*pieces: str, end: str = "stop", escaped: bool = False, gap: str = "\n\n") -> bytes:
    made = [{"choices": [{"index": 0, "delta": {"content": p}, "finish_reason": None}]} for p in pieces]
    made.append({"choices": [{"index": 0, "delta": {}, "finish_reason": end}]})
    return (gap.join("data: " + json.dumps(e, ensure_ascii=escaped) for e in made) + gap + "data: [DONE]" + gap).encode(
        "utf-8", "surrogatepass"
    )


@pytest.mark.parametrize("text", SEPARATORS[:4])
@pytest.mark.parametrize("gap", ["\n\n", "\r\n\r\n", "\n"])
def test_separators_inside_json_end_nothing(text, gap):
    assert answer(events(text, gap=gap), "text/event-stream").text == text
    assert answer(json.dumps({"choices": [{"message": {"content": text}}]}, ensure_ascii=False).encode()).text == text


def test_the_stream_and_the_batch_of_the_case(tmp_path):
    folder = CASES / "34_line_separators_inside_json"
    if not folder.is_dir(): pytest.skip("../shared/cases is not here")
    assert answer((folder / "stream.txt").read_bytes(), "text/event-stream").text == "every\u20284teen \x85days"
    came = (folder / "batch.results.jsonl").read_text("utf-8").replace('"ID"', json.dumps(batch_line(ASK, "m")["custom_id"]))
    (tmp_path / "0000-x.results.jsonl").write_text(came, "utf-8")
    result = ask_all(BatchTeacher(tmp_path, "m"), [ASK])[0]
    assert result.ok
    assert result.text.split() == ["ten", "seconds"]
    assert len(list(tmp_path.iterdir())) == 1, "it is not asked for again"


@given(st.text(min_size=1, max_size=60).filter(lambda t: t.strip()), st.integers(1, 5), st.booleans())
@example("half \ud83d", 1, True)
@quick
def test_a_stream_says_what_its_pieces_say(text, size, escaped):
    "Cut anywhere, even between the halves of a character."
    units = text.encode("utf-16-le", "surrogatepass")
    pieces = [units[i : i + 2 * size].decode("utf-16-le", "surrogatepass") for i in range(0, len(units), 2 * size)]
    whole = units.decode("utf-16-le", "replace")
    made = read_reply(events(*pieces, escaped=True), "text/event-stream")
    assert made.text == whole
    assert read_reply(events(whole, escaped=escaped), "text/event-stream").text == whole


JSONS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**40), 10**40)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["\ud83d", "stop", "text"]),
    lambda inside: (
        st.lists(inside, max_size=3) | st.dictionaries(st.sampled_from(["text", "content", "type", "token", "error"]), inside, max_size=3)
    ),
    max_leaves=8,
)
PLACES = [
    ("choices",), ("choices", 0), ("choices", 0, "message"), ("choices", 0, "message", "content"), ("choices", 0, "finish_reason"),
    ("usage",), ("choices", 0, "message", "refusal"), ("choices", 0, "message", "tool_calls"), ("choices", 0, "logprobs"),
    ("choices", 0, "logprobs", "content"), ("choices", 0, "logprobs", "content", 0), ("usage", "prompt_tokens"),
    ("choices", 0, "message", "reasoning"), ("error",), ("choices", 0, "index"),
]


def sound(made) -> None:
    "What comes out can be counted, shown and written down."
    assert isinstance(made, ChatResult | BadReply)
    str(made).encode()
    if isinstance(made, BadReply): return
    assert made.ok == bool(made.text)
    assert all(n is None or 0 <= n < 10**9 for n in (made.prompt_tokens, made.completion_tokens))
    f"{made.text}{made.reasoning}{made.error}".encode()
    with closing(sqlite3.connect(":memory:")) as db:
        db.execute("select ?, ?, ?", (made.text, made.reasoning, made.prompt_tokens)).fetchone()


@given(st.lists(st.tuples(st.sampled_from(PLACES), JSONS), min_size=1, max_size=3), st.booleans())
@settings(max_examples=200)
def test_any_value_anywhere_is_read_without_a_fall(changes, streamed):
    value = {
        "choices": [{"index": 0, "message": {"content": "14"}, "finish_reason": "stop", "logprobs": {"content": [{"top_logprobs": []}]}}],
        "usage": {},
    }
    for place, odd in changes:
        node = value
        try:
            for step in place[:-1]: node = node[step]
            node[place[-1]] = odd
        except (KeyError, IndexError, TypeError): continue
    raw = json.dumps(value)
    if streamed: raw = "data: " + raw.replace('"message"', '"delta"') + "\n\ndata: [DONE]\n\n"
    sound(read_result(ASK, raw.encode(), "text/event-stream" if streamed else ""))


@given(
    st.binary(max_size=80)
    | st.sampled_from(
        [b"[" * 200_000, b'{"a":' * 100_000, b"\xef\xbb\xbf", b"1e999", b'"\\ud83d"', b"data: " * 50_000, b"\x1f\x8b\x08", b"7" * 10**5]
    )
)
@settings(max_examples=150)
def test_any_bytes_are_read_without_a_fall(raw):
    for data in (raw, EMPTY[0][:-3] + raw, b'data: {"choices": [' + raw, body({"content": "14"}) + raw):
        for kind in ("application/json", "text/event-stream"): sound(read_result(ASK, data, kind))
    try: read_json(raw)
    except BadJson: pass
    try: assert len(inflate(raw, 1000)) <= 1000
    except (BadJson, TooLong): pass


GROUPS = [
    '{"items": [{"id": "1", "text": "half \\ud83d"}]}',
    "[" * 50_000,
    '{"items": ' * 20_000,
    '{"' * 30_000,
    '{"items": [{"id": ' + "7" * 5000 + ', "text": "a"}]}', '{"items": [{"id": true, "text": "a"}, {"id": "2", "text": "b"}]}',
    '{"items": [{"id": 1e999, "text": "a"}]}', '{"items": [' + '{"id":"1","text":"a\n"},' * 50 + "]}",
]


@pytest.mark.parametrize("text", GROUPS)
def test_group_answers_are_read_without_a_fall(text):
    reading = read_form(ChatResult("a", text, "stop"), Items)
    assert reading.outcome in ("parsed", "repaired", "invalid", "cut")
    if reading.value: json.dumps([item.text for item in reading.value.items], ensure_ascii=False).encode()


def test_separators_in_an_answer_end_no_line_of_a_file(tmp_path):
    rows = [{"key": str(i), "text": text} for i, text in enumerate(SEPARATORS[:4])]
    (tmp_path / "taught.jsonl").write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), "utf-8", newline="\n")
    assert [text.split() for text in read_teacher_answers(tmp_path).answers.values()] == [r["text"].split() for r in rows]


def test_half_a_character_in_a_prompt_is_mended():
    assert Message("user", "page \ud83d of 3").content == "page \ufffd of 3"


ROWS = [
    {"custom_id": "ID", "response": {"status_code": 200, "body": json.loads(EMPTY[2])}}, {"custom_id": "ID", "response": [1]},
    {"custom_id": "ID", "response": {"status_code": "200", "body": body({"content": "14 days"}).decode()}},
    {"custom_id": "ID", "error": {"code": "expired"}},
]


def test_a_batch_keeps_what_was_good_and_asks_for_the_rest_three_times_at_most(tmp_path):
    name = batch_line(ASK, "m")["custom_id"]
    rows = [json.dumps(row).replace("ID", name) + "\n" for row in ROWS]
    (tmp_path / "0001-a.results.jsonl").write_text(rows[2])
    (tmp_path / "0002-b.results.jsonl").write_text(rows[3] + rows[0])
    assert ask_all(BatchTeacher(tmp_path, "m"), [ASK])[0].text == "14 days", "a later failure does not undo it"
    (tmp_path / "0001-a.results.jsonl").write_text("")
    with pytest.raises(BatchPending): ask_all(BatchTeacher(tmp_path, "m"), [ASK])
    (tmp_path / "0003-c.results.jsonl").write_text(rows[1])
    result = ask_all(BatchTeacher(tmp_path, "m"), [ASK])[0]
    assert not result.ok
    assert result.error
