"""A teacher that knows the facts of a drawn handbook: what the built-in one should do, without its weights."""
import re
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from random import Random

from distillery.models import handbooks, questions
from distillery.models.handbooks import Fact
from distillery.teachers.protocol import ChatRequest, ChatResult


class Oracle:
    "Asks, answers and rewords from the list of facts; `wrong` is a share of answers that are made up."
    name, identity = "oracle", {"model": "oracle"}
    instant = True  # a commit for each answer would take most of a test's time

    def __init__(self, facts: list[Fact], wrong: float = 0.0, die_after: int | None = None) -> None:
        self.facts, self.wrong, self.die_after, self.seen = facts, wrong, die_after, 0
        self.known: dict[str, tuple[str, Fact, str]] = {}

    async def stream(self, requests: Sequence[ChatRequest]) -> AsyncIterator[ChatResult]:
        for r in requests:
            if self.die_after is not None and self.seen >= self.die_after: raise KeyboardInterrupt
            self.seen += 1
            yield ChatResult(r.key, self.reply(r), "stop")

    async def close(self) -> None: ...

    def reply(self, request: ChatRequest) -> str:
        task, rng = request.task, Random(request.seed)
        if task.kind == "ask":
            fact = next((f for f in self.facts if f.sentence == task.sentence), None)
            if fact is None: return "What is this about?"
            here = [f for f in self.facts if f.sentence in task.passage]
            level = task.difficulty if task.difficulty != "hard" or questions.bridges(fact, here) else "easy"
            return self.learn(*questions.draw_question(fact, level, here, rng), fact, level)
        if task.kind == "rephrase":
            _, fact, level = self.known[task.question]
            return task.question if level == "hard" else self.learn(*questions.draw_question(fact, level, self.facts, rng), fact, level)
        if task.question not in self.known: return questions.REFUSAL
        answer, fact, _ = self.known[task.question]
        if fact.sentence not in task.passage: return questions.REFUSAL
        return "made up" if rng.random() < self.wrong else answer

    def learn(self, question: str, answer: str, fact: Fact, level: str) -> str:
        self.known[question] = (answer, fact, level)
        return question


def write_handbook(folder: Path, pages: int) -> list[Fact]:
    "Write drawn pages of two sections and return their facts."
    rng, facts = Random("tests/handbook"), []
    for i in range(pages):
        drawn = [handbooks.draw_passage(rng, 5) for _ in range(2)]
        facts += [f for p in drawn for f in p.facts]
        sections = (re.sub(r"^# .*\n\n", "", p.text) for p in drawn)
        (folder / f"page-{i:02}.md").write_text(f"# Page {i}\n\n" + "\n\n".join(sections) + "\n", encoding="utf-8")
    return facts
