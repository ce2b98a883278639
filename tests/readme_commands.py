"""The commands that README.md shows, as a person would type them, and the folder in which they can be typed.

What stands for something else in README (a run, a stage, a folder) is written here with what it stands for; what needs an account,
a hub or a server of one's own is listed with its reason."""
import json
import re
from pathlib import Path

import yaml
from preset_sources import write_articles

ROOT = Path(__file__).resolve().parents[1]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
PLACES = {"why STAGE": "why sft", "compare-to RUN": "compare-to latest", "compare A B": "compare {0} {0}",
          "judged=DIR": "judged=judged", "hub_id=OWNER/NAME": "hub_id=me/sheets", "trust HOST": "trust teach.example:8080"}
ELSEWHERE = {
    "make ": "the repository's own targets: CI runs `make test`, and `make run` is a run of the built-in handbook",
    "python3 -m venv": "installs from the network", "pip install": "installs from the network",
    "--teacher http": "needs a server with that model at that address", "run ./manuals --preset tinyllama": "needs a base from the hub",
}
ENDS = {"--fail-on-threshold": {0, 4}, "doctor": {0, 1}}  # 4: a gate failed, as was asked to be said; 1: something is missing, and named
ROOMS = ["cutter", "folder", "binder", "plotter", "laminator", "stapler", "press", "scanner"]


def commands(text: str | None = None) -> list[str]:
    "Commands of README in their order, without comments, each once."
    text = (ROOT / "README.md").read_text("utf-8") if text is None else text
    shown = [line for kind, body in FENCE.findall(text) if kind in ("", "bash") for line in body.splitlines()]
    lines = [line.split("  #")[0].split(" # ")[0].strip() for line in shown]
    told = [line for line in lines if re.match(r"(distillery|papermill|make|python3?|pip) ", line)]
    told += re.findall(r"`((?:distillery|papermill|make|pip) [^`]+)`", FENCE.sub("", text))
    return list(dict.fromkeys(told))


def elsewhere(command: str) -> str:
    "Why a command is not typed here; empty where it is."
    return next((why for words, why in ELSEWHERE.items() if words in command), "")


def typed(command: str, runs: list[str]) -> str:
    "A command with what its capital letters stand for; `runs` are there, oldest first."
    for shown, stands in PLACES.items():
        if shown in command: command = command.replace(shown, stands.format(*runs) if "{" in stands else stands)
    return command


def batch_file(text: str | None = None) -> str:
    "The batch file that README shows."
    text = (ROOT / "README.md").read_text("utf-8") if text is None else text
    return next(body for kind, body in FENCE.findall(text) if kind == "yaml")


def write_scores(place: Path) -> None:
    "Scores of two systems on 240 items of 40 documents, the documents of a new study, and what it has seen of them so far."
    score = {"old": lambda i: i % 5 / 5, "new": lambda i: (i % 5 + (i % 3 == 0)) / 5}
    row = lambda i, system: f"item {i},page {i % 40},{system},{score[system](i)}\n"
    head = "item,document,system,score\n"
    for system in score: (place / f"{system}.csv").write_text(head + "".join(row(i, system) for i in range(240)))
    (place / "documents.txt").write_text("".join(f"page {i}\n" for i in range(40)))
    (place / "so-far.csv").write_text(head + "".join(row(i, system) for system in score for i in range(240)))


def folder(place: Path) -> Path:
    "Documents, pairs, articles and a judged set, as small as will do."
    (place / "manuals").mkdir(parents=True)
    pairs, rows, queries = [], [], []
    for i, name in enumerate(ROOMS):
        facts = {"stands in": f"room {10 + i} of the main hall", "costs": f"{40 + i} euros a day", "is cleaned by": "the night crew"}
        body = " ".join(f"The {name} {verb} {what}." for verb, what in facts.items())
        (place / f"manuals/{name}.md").write_text(f"# The {name}\n\n{body}\n")
        ask = f"What does it say of the {name}: it {{}} what?"
        pairs += [{"question": ask.format(verb), "answer": what, "context": body} for verb, what in facts.items()]
        rows.append({"_id": name, "title": name, "text": body})
        queries.append({"_id": f"q{i}", "text": f"Where does the {name} stand?"})
    lines = lambda some: "".join(json.dumps(x) + "\n" for x in some)
    (place / "qa.jsonl").write_text(lines(pairs))
    write_articles(place / "a.jsonl")
    (place / "judged").mkdir()
    (place / "judged/corpus.jsonl").write_text(lines(rows))
    (place / "judged/queries.jsonl").write_text(lines(queries))
    (place / "judged/qrels.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(f"q{i}\t{name}\t1\n" for i, name in enumerate(ROOMS)))
    write_scores(place)
    (place / "ranks.yaml").write_text(batch_file())
    yaml.safe_load(batch_file())
    (place / "nbs").symlink_to(ROOT / "nbs")
    return place
