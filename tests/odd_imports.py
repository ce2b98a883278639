"Odd files of pairs, drawn by a seed, and one process that reads them all: `python odd_imports.py COUNT SEED` prints what it saw as JSON."

import gzip
import json
import random
import sys
import tempfile
import time
from pathlib import Path

from distillery.core.errors import DistilleryError
from distillery.core.files import json_line
from distillery.pairs.imports import Imported, left_out, read_pairs
from distillery.pairs.linked import link_pairs

from peak import peak_mib

PAIR = {"question": "How often is the drum cleaned?", "answer": "every 14 days", "context": "The drum is cleaned every 14 days."}
TALK = [{"role": "user", "content": "How often?"}, {"role": "assistant", "content": "every 14 days"}]
ROWS = [
    PAIR,
    {"instruction": "Say it.", "input": "Long.", "output": "L."},
    {"messages": TALK},
    {"question": "Is it?", "answer": True, "id": 7},
    {"conversations": [{"from": "human", "value": "a?"}, {"from": "gpt", "value": "b"}]},
    {"prompt": TALK[:1], "chosen": TALK[1:], "rejected": []},
    {**PAIR, "answers": {"text": ["every 14 days"], "answer_start": [20]}},
    {**PAIR, "answer": None, "answers": [], "is_impossible": True},
    {"question": "Which?", "choices": ["red", "blue"], "answer": 1},
]
VALUES = [
    None,
    True,
    -0.0,
    1e308,
    float("nan"),
    10**400,
    "",
    " ",
    "\ud83d",
    "\x00",
    "a" * 5000,
    [],
    {},
    [[[]]],
    [None],
    {"text": None},
    {"text": {"text": {}}},
    [{"role": "user"}],
    [{"role": None, "content": [{"type": "image_url"}]}],
    {"": ""},
    "{'text': array([",
    "[1, 2",
    "\u2028",
    "\u202e?",
    {"a": {"b": [1]}},
]
BOMB = gzip.compress(b"0" * 2**20) * 300  # unpacks to 300 MiB
MADE = [
    b"",
    b"\n\n",
    b"[]",
    b"{}",
    b"null",
    b"[[]]",
    b"[" * 100_000,
    b'{"a":' * 50_000,
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"PAR1",
    b"PAR1" + b"\0" * 60 + b"PAR1",
    b"ARROW1\0\0" + b"\1" * 40,
    b"\xff\xff\xff\xff\x10\0\0\0",
    b"PK\x03\x04",
    b"\x80\x04.",
    b"\x1f\x8b",
    BOMB,
    b"question,answer\n" + b'"' * 100_001,
    b"question,answer\n" + b"a," * 50_000,
    b"sep=\n",
    b"sep=;\r\nquestion;answer\r\na;b",
    b"question\nonly",
    b'{"question": "a"}\n' * 3,
    b"\0" * 1000,
    b'{"data": [{"paragraphs": [{"qas": [1, {"question": 2}]}, 3]}, null]}',
    b'[{"question": ' + b"9" * 5000 + b', "answer": 1}]',
]


def table(random_: random.Random, rows: list) -> bytes:
    sep, quote = random_.choice(",;\t|"), random_.choice(['"', '"', "'"])
    names = list(dict.fromkeys(k for r in rows for k in r))
    cell = lambda v: quote + str(v).replace(quote, quote * 2) + quote if random_.random() < 0.8 else str(v)
    lines = [
        sep.join(random_.choice((n, n.upper(), f" {n} ")) for n in names),
        *(sep.join(cell(r.get(n, "")) for n in names) for r in rows),
    ]
    return random_.choice(("\n", "\r\n", "\r")).join(lines).encode(random_.choice(("utf-8", "utf-8-sig", "utf-16", "latin-1")), "replace")


def parquet(rows: list) -> bytes:
    import pyarrow as pa
    from pyarrow import parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist([{k: str(v).encode("utf-8", "replace").decode() for k, v in r.items()} for r in rows]), sink)
    return sink.getvalue().to_pybytes()


def damaged(random_: random.Random, data: bytes) -> bytes:
    kind, at = random_.randrange(7), random_.randrange(len(data) + 1)
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + bytes(random_.randrange(256) for _ in range(random_.randrange(1, 9))) + data[at:]
    if kind == 2:
        return data[:at] + data[at + random_.randrange(1, 20) :]
    if kind == 3:
        return data + data[at:]
    if kind == 4:
        return data.replace(b'"', b"'", random_.randrange(1, 4))
    return data


def odd_file(seed: int) -> tuple[str, bytes]:
    "A name and the bytes of one odd file."
    random_ = random.Random(seed)
    if seed < len(MADE):
        return random_.choice(("a.jsonl", "a.json", "a.csv", "a.parquet", "a.csv.gz")), MADE[seed]
    rows = [dict(random_.choice(ROWS)) for _ in range(random_.randrange(1, 8))]
    for row in rows:
        if random_.random() < 0.5:
            row[random_.choice([*row, "title", "id", "context", "answers", "is_impossible"])] = random_.choice(VALUES)
    kind = random_.randrange(6)
    if kind == 0:
        data = "\n".join(map(json.dumps, rows)).encode("utf-8", "surrogatepass")
    elif kind == 1:
        data = json.dumps(rows, indent=random_.choice((None, 1, 2))).encode()
    elif kind == 2:
        data = json.dumps({random_.choice(("data", "train", "rows", "x")): rows, "version": 1}, indent=1).encode()
    elif kind == 3:
        data = table(random_, rows)
    elif kind == 4:
        data = parquet(rows)
    else:
        data = gzip.compress("\n".join(map(json.dumps, rows)).encode())
    return random_.choice(("a.jsonl", "a.json", "a.csv", "a.txt", "a")), damaged(random_, data)


def account(found: Imported) -> str:
    "What does not add up; empty where all is well."
    used = found.rows - sum(map(len, found.left.values()))
    if not 1 <= used <= len(found.pairs):
        return f"{used} rows made {len(found.pairs)} pairs"
    if "conversations" not in found.kind and used != len(found.pairs):
        return f"{used} rows made {len(found.pairs)} pairs"
    if len({p.id for p in found.pairs}) < len(found.pairs):
        return "two pairs share an id"
    for row in [*found.documents, *found.chunks, *found.pairs, *left_out(found, "a")]:
        json_line(row)
    texts = {d.doc_id: d.text for d in found.documents}
    if any(texts[c.doc_id][c.start : c.end] != c.text for c in found.chunks):
        return "a chunk is not its document's text"
    link_pairs(found.pairs, {c.chunk_id: c.text for c in found.chunks})
    return ""


def main(count: int, seed: int) -> dict:
    seen: dict = {"files": count, "read": 0, "refused": 0, "wrong": [], "slowest": 0.0}
    with tempfile.TemporaryDirectory() as folder:
        for i in [*range(min(len(MADE), count)), *range(10_000 * (seed + 1), 10_000 * (seed + 1) + max(0, count - len(MADE)))]:
            name, data = odd_file(i)
            path = Path(folder, name)
            path.write_bytes(data)
            began = time.monotonic()
            try:
                if said := account(read_pairs(path)):
                    seen["wrong"].append((i, said))
                seen["read"] += 1
            except DistilleryError as e:
                seen["refused"] += 1
                if not e.fix or "mend or delete" in str(e) or len(str(e)) > 2000:
                    seen["wrong"].append((i, str(e)[:200]))
            except Exception as e:
                seen["wrong"].append((i, f"{type(e).__name__}: {e}"[:200]))
            seen["slowest"] = max(seen["slowest"], time.monotonic() - began)
            path.unlink()
    return seen | {"peak_mib": round(peak_mib())}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(int(sys.argv[1]), int(sys.argv[2]))))
