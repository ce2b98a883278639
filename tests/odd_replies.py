"Odd replies of a drawn seed: good ones with one thing wrong, from a field of another type to bytes that are no reply at all."
import json
import random
import zlib
from copy import deepcopy
from typing import Any

Sent = tuple[int, dict[str, str], bytes]  # Status, headers, body
JSON, STREAM = {"Content-Type": "application/json"}, {"Content-Type": "text/event-stream"}
ODD_VALUES: list[Any] = [
    None, True, 0, -1, 1.5, 10**30, "", "text", "\ud83d", "\x00", [], [1], {}, {"a": 1}, [[[[]]]], "7" * 5000, {"text": "14"},
    ["14", {"text": 3}],
]
PATHS = [
    ("choices",), ("choices", 0), ("choices", 0, "message"), ("choices", 0, "message", "content"), ("choices", 0, "finish_reason"),
    ("usage",), ("usage", "prompt_tokens"), ("choices", 0, "message", "reasoning_content"), ("choices", 0, "message", "tool_calls"),
    ("choices", 0, "logprobs"), ("choices", 0, "message", "refusal"), ("error",), ("id",), ("choices", 0, "index"),
]
TEXTS = [
    "<think>14?</think>every 14 days", "[THINK]14?", "<|channel|>final<|message|>14<|return|>", "<|channel|>analysis<|message|>14", "",
    " ", "14\u2028days\x85", "half \ud83d", "<think>" * 3000, "</think>" * 3000, "<|channel|>" * 3000, "Question: ", "a" * 300_000,
]
RAW = [
    b"", b"null", b"[]",
    b"[" * 200_000,
    b'{"a":' * 50_000,
    b"<html><title>502 Bad Gateway</title>",
    b"\xff\xfe{\x00",
    b"\x00" * 1000, b"7" * 100_000, b"data: [DONE]\n\n", b"data: " * 20_000,
    b'data: {"choices": [{"delta"',
    b": ping\n" * 1000,
    b'{"choices": [{"message": {"content": "14',
    b"event: error\ndata: {}\n\n", b"\x1f\x8b\x08\x00",
]
HEADERS: list[dict[str, str]] = [
    {"Content-Encoding": "gzip"}, {"Content-Encoding": "br"}, {"Content-Type": "x" * 2000}, {"Content-Type": "text/event-stream"},
    {"Content-Type": "application/json; charset=punycode"}, {"Set-Cookie": "a=b; Domain=.; \u00e4"}, {"Retry-After": "soon"},
]


def good(text: Any = "every 14 days", **more: Any) -> dict[str, Any]:
    return {"id": "x", "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 30, "completion_tokens": 4}, **more}


def changed(draw: random.Random) -> bytes:
    "A good reply with one to three fields of another kind."
    value: Any = good()
    for path in draw.sample(PATHS, draw.randint(1, 3)):
        node = value
        try:
            for step in path[:-1]: node = node[step]
            node[path[-1]] = deepcopy(draw.choice(ODD_VALUES))
        except (KeyError, IndexError, TypeError): continue
    return json.dumps(value).encode()


def streamed(draw: random.Random) -> bytes:
    "A stream with an odd piece, perhaps cut."
    pieces: list[Any] = [
        {"choices": [{"delta": {"content": draw.choice(["every ", "\ud83d", None, 3, ["14"], {"text": "14"}])}}]}
        for _ in range(draw.randint(1, 4))
    ]
    pieces.append(
        draw.choice(
            [{"choices": [{"delta": {}, "finish_reason": draw.choice(["stop", "abort", 3, "length"])}]}, {}, [], None, {"choices": None}]
        )
    )
    end = draw.choice(["data: [DONE]\n\n", "", "\n"])
    gap = draw.choice(["\n\n", "\r\n\r\n", "\n", "\r"])
    return (gap.join("data: " + json.dumps(p) for p in pieces) + gap + end).encode()


def cut(draw: random.Random) -> bytes:
    "The beginning of a good reply, or one with a byte changed."
    raw = bytearray(json.dumps(good()).encode())
    if draw.random() < 0.5: return bytes(raw[: draw.randrange(len(raw))])
    raw[draw.randrange(len(raw))] = draw.randrange(256)
    return bytes(raw)


def odd_reply(seed: int) -> Sent:
    "The odd reply of a seed."
    draw = random.Random(seed)
    kind = draw.randrange(8)
    if kind in (0, 1): return 200, JSON, changed(draw)
    if kind == 2: return 200, draw.choice([JSON, STREAM]), streamed(draw)
    if kind == 3: return 200, JSON, cut(draw)
    if kind == 4: return 200, JSON, json.dumps(good(draw.choice(TEXTS), usage=draw.choice(ODD_VALUES))).encode()
    if kind == 5: return 200, draw.choice([JSON, STREAM]), draw.choice(RAW)
    if kind == 6:
        return (
            200, {**JSON, **draw.choice(HEADERS)},
            draw.choice([json.dumps(good()).encode(), zlib.compress(json.dumps(good()).encode()), b""]),
        )
    return (
        draw.choice([204, 400, 409, 418, 422]), JSON,
        draw.choice([changed(draw), b"", b"seed top_p temperature max_tokens", b"[" * 10_000, zlib.compress(b"x")]),
    )
