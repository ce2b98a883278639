"Run folders of earlier versions stay readable: listed, shown, compared, reported, asked (the folder is kept by tests/keep_decisions.py)."
import html
import json
import re
import shutil
from pathlib import Path

import pytest
from typed import distillery

from distillery.core.files import file_entries

KEPT = Path(__file__).parent / "data/run_before"
FACTS = json.loads((KEPT / "provenance.json").read_text("utf-8"))
REPORT = {"distillation_test": "distillation", "sizes-recall": "sizes", "quantization-teacher": "quantization"}
CARDS = [json.loads(path.read_text("utf-8")) for path in sorted(KEPT.glob("decisions/*.json"))]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "A folder in which the old run is the only one and the latest."
    folder = tmp_path_factory.mktemp("old")
    run = folder / "runs" / FACTS["run"]
    shutil.copytree(KEPT, run)
    manifest = json.loads((run / "manifest.json").read_text("utf-8"))
    small = file_entries(run / "onnx")  # a student that was put there in place of the large one
    manifest["files"] |= {f"onnx/{name}": entry for name, entry in small.items()}
    (run / "manifest.json").write_text(json.dumps(manifest))
    (folder / "runs/latest").symlink_to(FACTS["run"])
    return folder


def said(*args: str, cwd: Path) -> str:
    "What a command prints, in one line; it must end well."
    done = distillery(*args, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return " ".join(done.stdout.split())


def test_it_is_listed(place):
    listed = said("runs", "list", cwd=place)
    for words in (FACTS["run"], FACTS["teacher"], FACTS["source"], "before"): assert words in listed


def test_it_is_shown(place):
    shown = said("runs", "show", FACTS["run"], "--all", cwd=place)
    for card in CARDS: assert card["sentence"] in shown
    for stage in json.loads((KEPT / "manifest.json").read_text("utf-8"))["stages"]: assert stage in shown
    gates = [json.loads(line) for line in (KEPT / "eval/gates.jsonl").read_text("utf-8").splitlines()]
    assert sum(shown.count(state) for state in ("PASS", "FAIL", "INCONCLUSIVE")) >= len(gates) > 10


def test_it_is_compared_with_itself(place):
    compared = said("runs", "compare", FACTS["run"], "latest", cwd=place)
    assert "no knob differs" in compared or "no setting differs" in compared
    differences = re.findall(r"([+−-]?\d\.\d+)\s+\[", compared)  # each before its interval
    assert len(differences) == 4 * 2 * 3  # variants, sets, metrics
    assert {float(x.replace("−", "-")) for x in differences} == {0.0}
    assert "better" not in compared


def page(place: Path, name: str) -> str:
    "A page of the old run, without its tags."
    text = (place / "runs" / FACTS["run"] / "reports" / f"{name}.html").read_text("utf-8")
    return html.unescape(re.sub("<style.*?</style>|<.*?>", " ", text, flags=re.S))


def shows(text: str, card: dict) -> bool:
    "Whether a page names every level of a card and has the mean of the first."
    assert [level for level in card["levels"] if not re.search(rf"(?<!\w){re.escape(level)}(?!\w)", text)] == []
    return any(f"{card['estimates'][0]['mean']:.{digits}f}" in text for digits in (2, 3, 4))


def test_a_report_is_built_of_it(place):
    said("report", "sizes", cwd=place)
    assert shows(page(place, "sizes"), next(card for card in CARDS if card["name"] == "sizes"))
    index = page(place, "index")
    assert [card["name"] for card in CARDS if card["question"] not in index] == []


@pytest.mark.slow
def test_all_reports_are_built_of_it(place):
    said("report", "all", cwd=place)
    assert len(CARDS) > 12
    for card in CARDS: assert shows(page(place, REPORT.get(card["name"], card["name"])), card), card["name"]


def test_its_student_answers(place):
    assert said("ask", "q4", "Where does the Raven 74 stand?", cwd=place)
    gone = distillery("ask", "q5", "Where?", cwd=place)
    assert gone.returncode in (1, 2)
    assert "one of: q4" in gone.stderr  # the others were not kept
