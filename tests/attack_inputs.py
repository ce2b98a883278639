"""What attacks put in: `test_attack_edge` holds today's code to it, `attack_programs` any edition. Knows nothing of the package."""
import json

from odd_documents import para, word


# 5: model folders and chat templates

EVIL = "open('TAKEN', 'w').close()"
MODULES = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
DENSE = [*MODULES, {"idx": 1, "name": "1", "path": "d", "type": "sentence_transformers.models.Dense"}]
FOLDERS = [
    {"modules.json": [{"idx": 0, "name": "0", "path": "", "type": "evil.Module"}], "evil.py": EVIL},
    {"modules.json": [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Dense.torch"}]},
    {"modules.json": [{"idx": 0, "name": "0", "path": "../..", "type": "sentence_transformers.models.Transformer"}]},
    {"modules.json": {"type": "evil.Module"}},
    {"modules.json": MODULES, "router_config.json": {"types": {"query": "evil.Module"}}, "evil.py": EVIL},
    {"modules.json": DENSE, "d/config.json": {"activation_function": "os.getcwd"}},
    {"modules.json": DENSE, "d/pytorch_model.bin": "x"},
    {"modules.json": MODULES, "sentence_bert_config.json": {"model_args": {"trust_remote_code": True}}},
    {"config.json": {"model_type": "evil", "auto_map": {"AutoModel": "evil.Model"}}, "evil.py": EVIL},
    {"config.json": {"model_type": "llama", "model_file": "evil.py"}, "evil.py": EVIL},
    {"config.json": {"model_type": "llama", "attn_implementation": "somebody/kernel"}},
    {"config.json": {"model_type": "llama"}, "pytorch_model.bin": "x"}, {"config.json": {"model_type": "llama"}, "weights.pkl": "x"},
    {"config.json": "[" * 200_000},
    {"config.json": {"model_type": "llama"}, "adapter_config.json": {"peft_type": "LORA", "base_model_name_or_path": "../other"}},
    {"modules.json": MODULES, "sentence_bert_config.json": {"tokenizer_name_or_path": "../other"}},
    {"config.json": {"model_type": "llama", "attn_implementation": {"text_config": "somebody/kernel"}}},
]

GROW = "{% set ns = namespace(x='ab') %}{% for i in range(90) %}%s{% endfor %}{{ ns.x }}"
TEMPLATES = [
    "{{ 'a' * 10**10 }}", "{{ 'a'.ljust(10**10) }}", "{{ '%9999999999d' % 1 }}",
    "{% for i in range(9999) %}{% for j in range(9999) %}x{% endfor %}{% endfor %}",
    "{% macro f(n) %}{{ f(n + 1) if n < 40 }}{{ f(n + 1) if n < 40 }}{% endmacro %}{{ f(0) }}",
    GROW.replace("%s", "{% set ns.x = ns.x ~ ns.x %}"), GROW.replace("%s", "{% set ns.x = ns.x + ns.x %}"),
    GROW.replace("%s", "{% set ns.x = [ns.x, ns.x] %}"),
    GROW.replace("%s", "{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}"),
    "{% set x = 'a' * 100000 %}{{ x.replace('a', x) }}", "{% set x = 'a' * 100000 %}{{ x.join(range(99999)) }}",
    "{% set x = 'a' * 100000 %}{{ range(99999) | join(x) }}", "{{ '{:9999999999}'.format(1) }}",
    "{{ ([[0] * 99999] * 99999) | tojson }}", "{{ lipsum(n=10**9) }}", "{{ ''.__class__.__mro__ }}", "{{ self.__init__.__globals__ }}",
    "{% for a in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}",
    "{{ ('{0}' * 99999).format('a' * 99999) }}", "{{ ('%(a)s' * 99999) % {'a': 'a' * 99999} }}",
    "{{ ('{a}' * 9999).format(a='a' * 99999) }}",
    "{{ ('a' * 99999).translate({97: 'a' * 99999}) }}", "{{ (1).to_bytes(10**10, 'big') }}", "{{ 'a'.encode().ljust(10**10) }}",
    "{% set x = ('a' * 99999).encode() %}{{ x.replace('a'.encode(), x) }}", "{{ ('%s' * 9999).encode() % (('a' * 99999).encode(),) }}",
    "{% set x = 'a' * 999999 %}{% for i in range(99999) %}{% if 'aab' in x %}{% endif %}{% endfor %}",
    "{{ 'a'" + "|replace('a', 'aa')" * 40 + " }}",
    "{% set x = 'a' * 999999 %}{% for i in range(99999) %}{% if x.count('aab') %}{% endif %}{% endfor %}",
    "{% for m in messages %}{% for n in messages %}{% for o in messages %}{{ o.content }}{% endfor %}{% endfor %}{% endfor %}",
]

# 6: names that a working folder may hold as modules

SHADOWS = ("yaml", "numpy", "onnxruntime", "distillery", "json", "logging", "pydantic", "transformers", "pathlib", "subprocess",
           "dataclasses", "tempfile", "hashlib")

# 7: a login and a host in every place that holds an address

LOGIN = "http://ada:pl4nted-p%40ss@gpu7.corp.invalid:8000/v1#qwen"
PLACES = [
    "teacher.model", "teacher.fallback", "distill.teacher", "embedder.base", "context.embedder", "student.base", "workbook.cache_dir",
    "judge.model",
]
MAPS = ["teacher.timeout_of", "teacher.concurrency_of", "budget.prices"]
LISTS = ["decisions.bases", "embedder.others", "decisions.prompt_packs"]

# 8: what a settings file may ask for

FILES = [
    {"model": "https://models.invalid/v1#m"}, {"model": "https://models.invalid/v1#m", "api_key_env": "AWS_SECRET_ACCESS_KEY"},
    {"model": "http://127.0.0.1.models.invalid/v1#m"}, {"model": "http://localhost@models.invalid/v1#m"},
    {"model": "http://127.0.0.1:80@models.invalid/v1#m"}, {"model": "HTTPS://MODELS.invalid./v1#m"},
    {"model": "http://localhost.models.invalid/v1#m"}, {"model": "http://169.254.169.254/v1#m"}, {"model": "http://[2001:db8::1]/v1#m"},
    {"model": "http://models.invalid:80/v1#http://127.0.0.1/v1"},
    {"model": "https://models.invalid/v1#m", "fallback": "builtin:extractive"},
]

# 11: words to a terminal

PAYLOADS = [
    "\x1b[2J", "\x1b]0;title\x07", "\x1b[31m", "\x9b2J", "\x1b]52;c;aGk=\x07", "\u202efdp.exe", "a\rerror: none", "\x08\x08x", "\ud800",
    "\x00", "\u2067x", "\u200fx",
]

# 14: names of variants

STRANGE = ["../../../outside/model", "..", ".", "/etc", "q4/../../x", "q4/", "\0q4", "q4\n", "", "Q4", "*", "fp32/..",
           "../onnx/q4", "./q4", "q4/.", "../x", "../../1a2b3c4d/onnx/q4", "fp32/../../x", "q4//", "fp32/../q4"]

# 16: slips

DEEP = "[" * 20_000
SLIPS = [
    ["config", "show", "--set", "lora.r=["], ["config", "show", "--set", "lora.r"], ["config", "show", "--set", "=1"],
    ["config", "show", "--set", f"lora.r=1{'0' * 400}"], ["config", "show", "--set", f"lora.r=1{'0' * 5000}"],
    ["config", "show", "--set", f"lora.r={DEEP}"], ["config", "show", "--set", "docs=2001-00-00"],
    ["config", "show", "--set", "docs=\0"], ["config", "show", "--set", "docs=\udc80"], ["config", "show", "--set", "lora.dropout=.nan"],
    ["config", "show", "--set", "teacher.timeout_s=.inf"], ["config", "show", "--set", "lora={r: {r: 1}}"],
    ["config", "show", "--set", "budget.prices={[1]: 2}"], ["config", "show", "--set", "budget.prices={a: &x [1, 2], b: *x}"],
    ["config", "show", "--config", "folder"], ["config", "show", "--config", "deep.yaml"], ["config", "show", "--config", "binary"],
    ["config", "show", "-c", "gone.yaml"], ["config", "show", "--config", "aliases.yaml"], ["config", "show", "--preset", "nobody"],
    ["config", "explain", "x" * 100_000], ["config", "diff", "folder", "binary"], ["calls", "list"], ["calls", "export", "folder"],
    ["calls", "export", "gone/calls.jsonl"], ["calls", "list", "--since", "9" * 400 + "d"], ["package", "q4"],
    ["package", "q4", "--out", "binary"], ["package", "q4", "--out", "binary/x"], ["runs", "show", "x" * 5000],
    ["runs", "compare", "a", "b"], ["why", "documents", "--pairs", "deep.jsonl"], ["why", "documents", "--pairs", "binary"],
    ["why", "documents", "--articles", "deep.jsonl"], ["why", "x", "folder"], ["why", "documents", "--teacher", "http://["],
    ["why", "documents", "--teacher", "http://models.invalid/v1"], ["why", "documents", "--teacher", "local:folder"],
    ["why", "documents", "--teacher", "onnx:binary"], ["why", "documents", "--set", "student.base=folder"],
    ["why", "documents", "--set", "student.base=../x\n"], ["trust", "http://[", "x" * 300], ["trust", ""],
    ["prompts", "show", "../../etc"], ["prompts", "diff", "a", "\x1b[2J"], ["serve", "q4", "--port", "9" * 40], ["report", "all"],
    ["report", "../x"], ["ask", "q4", "x"], ["runs", "list", "--config", "binary"], ["--nothing"], ["run", "--nothing"], [""],
    ["x" * 100_000],
]

# 1: one reply (what a server says to one request)


def said(content="every 14 days", **more):
    return json.dumps({"choices": [{"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}],
                       "usage": {"prompt_tokens": 30, "completion_tokens": 4}, **more}).encode()


HALF = "half an \ud83d"
REPLIES = {
    "half a character": said(HALF), "half a character in a thought": said(f"<think>{HALF}</think>14"),
    "half a character in a field of thoughts": said().replace(b'"role"', b'"reasoning_content": "\\ud83d", "role"'),
    "half a character in a stream": b'data: {"choices": [{"delta": {"content": "half \\ud83d"}, "finish_reason": "stop"}]}\n\n'
                                    b'data: [DONE]\n\n',
    "a word for a count": said(usage={"prompt_tokens": "many", "completion_tokens": 4}),
    "thirty digits": said(usage={"prompt_tokens": 10**30, "completion_tokens": 4}),
    "a list for a count": said(usage={"prompt_tokens": [3], "completion_tokens": 4}),
    "an object for a count": said(usage={"prompt_tokens": 4, "completion_tokens": {"n": 4}}),
    "five thousand digits": said().replace(b": 30", b": " + b"7" * 5000), "deep": b"[" * 200_000, "deep objects": b'{"a":' * 100_000,
    "a number for an answer": said(14), "an object for an answer": said({"text": "14"}), "usage that is a list": said(usage=[3]),
    "choices that hold nothing": said(choices=[None]),
    "a message that is a list": said(choices=[{"message": [1], "finish_reason": "stop"}]),
}
FORMS = ['{"pairs": ' + "[" * 200_000, "[" * 100_000 + "]" * 100_000, '{"a": ' * 50_000, '{"a": ' + "7" * 5000 + "}", '["\\ud83d"]']

# 7: what a server makes of the key that it was sent

KEY = "sk-planted-0123456789abcdef"


def escaped(text): return "".join(f"\\u{ord(c):04x}" for c in text).encode()


def events(*pieces):
    chunks = [{"choices": [{"delta": {"content": piece}, "finish_reason": None}]} for piece in pieces]
    chunks.append({"choices": [{"delta": {}, "finish_reason": "stop"}]})
    return "".join(f"data: {json.dumps(c)}\n\n" for c in chunks).encode()


ECHOES = {
    "as it is": said(f"Your key is {KEY}."), "every letter as a number": said("KEY").replace(b"KEY", escaped(KEY)),
    "around a mark": said(f"{KEY[:5]}<think></think>{KEY[5:]}"), "in two pieces": events(KEY[:7], KEY[7:]),
    "letter by letter": events(*KEY),
    "as an error": b'{"error": {"message": "' + escaped(KEY) + b'"}}', "as no answer": b'{"choices": [], "id": "' + escaped(KEY) + b'"}',
    "as a thought": said("<think>KEY</think>14").replace(b"KEY", escaped(KEY)),
    "as a refusal": said(None).replace(b'"role"', b'"refusal": "' + escaped(KEY) + b'", "role"'),
    "in parts": said([{"type": "text", "text": KEY[:9]}, {"type": "text", "text": KEY[9:]}]),
    "as a field": said().replace(b'"role"', b'"reasoning_content": "' + escaped(KEY) + b'", "role"'),
}

# 3: texts that a splitter takes the square of the time for, 200 KB each

UNITS = {
    "prose": "The drum is cleaned every 14 days by the person on duty. ", "underscores": "a_b_c_", "digits": "7",
    "a key": "0123456789abcdef",
    "dots": ".", "an ellipsis": "a... ", "versions": "1.2.3.", "abbreviations": "e.g. i.e. cf. ", "initials": "A. B. C. ",
    "names with dots": "core.store.ArtifactReader.get ", "quotes": '." ', "questions": "?! ", "one line": "The lid is closed. ",
    "one word": "a", "numbers": "3. 4. 5. ", "brackets": ".)]", "letters": "Ab.", "marks": "a.b!c?", "a digit and a gap": "7 a",
}
PROSE = {name: (unit * (200_000 // len(unit) + 1))[:200_000] + "; a. The lid is closed." for name, unit in UNITS.items()}

# 4: one document

NINE = [",".join([f"*{chr(97 + i)}" if i else "x"] * 9) for i in range(9)]
DOCUMENTS = {
    "date.md": "---\ndate: 0000-00-00\n---\nThe drum is cleaned.",
    "time.md": "---\nat: 2001-01-01T99:99:99Z\n---\nThe drum is cleaned.",
    "alias.md": "---\n" + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{x}]\n" for i, x in enumerate(NINE)) + "title: *j\n---\nThe hall.",
    "int.md": f"---\ntitle: {'9' * 5000}\n---\nThe drum is cleaned.",
    "front.md": "---\n" + "[" * 50_000 + "\n---\nThe drum.",
    "map.md": "---\n? [a]\n: b\n---\nThe drum.", "tag.md": "---\ntitle: !!timestamp x\n---\nThe drum.",
    "key.md": "---\n{[a]: 1}\n---\nThe drum.",
    "tags.html": "<a " * 20_000, "nested.html": "<div>" * 20_000 + "x", "lists.html": "<ul><li>" * 10_000 + "x",
    "spans.html": "<b><i>" * 10_000,
    "blank.txt": "The roller turns." + "\n" * 40_000, "quote.md": ">" * 20_000 + " a", "links.md": "[" * 20_000, "stars.md": "*a " * 20_000,
    "span.docx": word('<w:tbl><w:tr><w:tc><w:tcPr><w:gridSpan w:val="100000"/></w:tcPr>' + para("Wide") + "</w:tc></w:tr></w:tbl>"),
    "rows.docx": word("<w:tbl>" + '<w:tr><w:tc><w:tcPr><w:gridSpan w:val="30000"/></w:tcPr><w:p/></w:tc></w:tr>' * 30 + "</w:tbl>"),
    "empty.docx": word("<w:p/>" * 100_000), "deep.docx": word("<w:sdt>" * 3000 + "</w:sdt>" * 3000),
    "zone.md": "---\nat: 2001-01-01 00:00:00 +99:99\n---\nThe drum.",
    "table.html": "<table><tr><td>" * 5_000 + "x", "spaces.md": "a" + " " * 100_000 + "b",
    "cells.md": "|a" * 20_000 + "\n" + "|-" * 20_000,
}

# 13: replies without an end

ENDLESS = {
    "text": b"x" * 65536, "brackets": b"[" * 65536, "spaces": b" " * 65536, "events": b"data: {}\n\n" * 6000, "comments": b":\n" * 30_000,
    "one event": b"data: " + b"x" * 65536, "zeros": b"\0" * 65536,
    "deltas": b'data: {"choices": [{"delta": {"content": "on and on "}}]}\n\n' * 900,
}
