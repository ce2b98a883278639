"A teacher that writes JSON when a prompt asks for several answers: an oracle behind the common prompts, with the habits of models."
import json
import re
from collections import Counter

from distillery.teachers.protocol import ChatResult, Task

from pairs_oracle import Oracle

ITEMS = {
    "ask": re.compile(r"^(\d+)\. About (?:passage|part) (\w+), difficulty (\w+)\. .*?answered by this (?:sentence|line): (.+)$", re.M),
    "answer": re.compile(r"^(\d+)\. From passage (\w+): ()(.+)$", re.M),
    "rephrase": re.compile(r"^(\d+)\. ()()(.+)$", re.M),
}


def tasks_of(prompt: str) -> dict[str, Task]:
    "What a common prompt asks for, by number."
    kind = next((k for k, words in (("ask", "Write one question for each task"), ("answer", "Answer each question"),
                                    ("rephrase", "Write each question below")) if words in prompt), None)
    if kind is None: return {}
    passages = dict(re.findall(r"<(?:passage|part) (\w+)>\n(.*?)\n</", prompt, re.S))
    rows = ITEMS[kind].findall(prompt)
    spoken = lambda said: {"sentence" if kind == "ask" else "question": said}
    return {i: Task(kind, passages.get(label, ""), difficulty=level, **spoken(said)) for i, label, level, said in rows}


class JsonOracle(Oracle):
    "Answers groups in JSON; `habit` spoils a list before it is written: a function of the items and of the prompt."
    name, identity = "json oracle", {"model": "json-oracle"}

    def __init__(self, facts, habit=None, **more):
        super().__init__(facts, **more)
        self.habit, self.requests, self.kinds = habit, [], Counter()

    async def stream(self, requests):
        for r in requests:
            self.requests.append(r)
            self.kinds[f"{r.task.kind}" if r.task else "group"] += 1
            if r.task:
                yield ChatResult(r.key, self.reply(r), "stop")
                continue
            texts = {i: self.reply(_Request(t, hash_of(r.seed, i))) for i, t in tasks_of(r.messages[0].content).items()}
            items = [{"id": i, "text": text} for i, text in texts.items()]
            spoiled = self.habit(items, r) if self.habit else {"items": items}
            text, finish = spoiled if isinstance(spoiled, tuple) else (spoiled, "stop")
            yield ChatResult(r.key, text if isinstance(text, str) else json.dumps(text), finish)


def hash_of(seed: int, item: str) -> int:
    return seed * 31 + int(item)


class _Request:
    def __init__(self, task, seed): self.task, self.seed = task, seed
