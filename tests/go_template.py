"""The part of Go's templates that our Modelfiles use, as Ollama renders it."""
import re
from collections.abc import Sequence

from distillery.teachers.protocol import Message


def go(template: str, turns: Sequence[Message]) -> str:
    "Render a Modelfile's template for some turns."
    lead, body, end = re.fullmatch(r"(.*?)\{\{ range \.Messages \}\}(.*)\{\{ end \}\}\{\{ end \}\}(.*)", template, re.S).groups()
    lead = re.sub(r"\{\{ if not \.System \}\}(.*)\{\{ end \}\}", "" if any(t.role == "system" for t in turns) else r"\1", lead, flags=re.S)
    lead, declared = lead.removesuffix("{{ $told := false }}"), "{{ $told := false }}" in lead
    branches = dict(re.findall(r'\{\{ (?:else )?if eq \.Role "(\w+)" \}\}(.*?)(?=\{\{ else|\Z)', body, re.S))
    written, told = lead, False
    for t in turns:
        assert declared or "$told" not in branches[t.role]
        shown = re.sub(r"\{\{ if not \$told \}\}(.*)\{\{ end \}\}", "" if told else r"\1", branches[t.role], flags=re.S)
        for value in re.findall(r"\{\{ \$told = (\w+) \}\}", shown): told = value == "true"
        written += re.sub(r"\{\{ \$told = \w+ \}\}", "", shown).replace("{{ .Content }}", t.content)
    return written + end
