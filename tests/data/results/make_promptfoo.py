"""Configuration and providers for promptfoo. Run: python make_promptfoo.py OUT, then in OUT
`promptfoo eval -c promptfooconfig.json -o results.json --no-cache --repeat 2 --filter-first-n 12`."""
import json
import sys
from pathlib import Path

from items import ITEMS, answers

out = Path(sys.argv[1])
out.mkdir(exist_ok=True)
tests = [{"vars": {"question": x["question"], "page": x["page"]}, "assert": [{"type": "equals", "value": x["answer"]}]} for x in ITEMS]
providers = [{"id": f"file://{name}.js", "label": name} for name in ("old", "new")]
config = {"description": "rooms", "prompts": ["{{question}}"], "providers": providers, "tests": tests}
(out / "promptfooconfig.json").write_text(json.dumps(config, indent=1))
for name in ("old", "new"):
    known = json.dumps({x["question"]: answers(name)[x["id"]] for x in ITEMS})
    (out / f"{name}.js").write_text(
        f"const known = {known};\nmodule.exports = class {{ id() {{ return '{name}'; }}"
        " async callApi(prompt) { return { output: known[prompt] }; } };\n")
