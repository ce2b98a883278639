"""What the terminal shows, 80 columns wide, as pictures for the documents: of the kept run, and of a kept tuning.

`python tests/screens.py` writes them to reports/; `test_screens` makes them and looks at every line."""
import json
import os
import shutil
import tempfile
from contextlib import chdir
from pathlib import Path
from unittest import mock

from rich.console import Console

from distillery.commands import options, run, runs, tune
from distillery.core.store import RunFolder
from distillery.engine.plan import Done, Event
from distillery.pages.terminal import Watcher
from distillery.questions.results import Results
from distillery.workbook.experiment import Finished
from distillery.workbook.tune import Round

ROOT = Path(__file__).resolve().parents[1]
KEPT, TUNED, WIDTH = ROOT / "tests/data/run", ROOT / "tests/data/tune.json", 80


def project(folder: Path) -> Path:
    "The kept run as two runs of a folder, with the times that its ledger has."
    stages = {s["stage"]: {"digest": "", "cached": False, "seconds": s["seconds"]} for s in ledger()}
    for place, name in enumerate(("first", "second")):
        made = RunFolder(Path(shutil.copytree(KEPT, folder / f"runs/{Results(KEPT).json('provenance.json')['run'][:9]}{place}")))
        made.write_json("manifest.json", {"name": name, "ended": 1_790_000_000 + 3600 * place, "stages": stages})
        made.make_latest()
    return folder


def ledger() -> list[dict]: return Results(KEPT).json("ledger.json")["stages"]


def show_run() -> None:
    "A run in the middle of its training, and what is said at its end."
    out, stages = options.console(), ledger()
    with mock.patch("distillery.pages.terminal.Bars.start"): watch = Watcher(out)
    done = {s["stage"]: Done(s["stage"], KEPT, "", False, s["seconds"]) for s in stages}
    watch.plan([*done, "report"], {name: d.seconds for name, d in done.items()})
    for name, d in done.items():
        if name == "sft": break
        watch(Event(name, "done", seconds=d.seconds))
    watch(Event("sft", "progress", "steps", 480, 1200, done["sft"].seconds * 0.4))
    for task in watch._bars.tasks: task.start_time, task.stop_time = 0, 72  # the same picture each time
    watch.show("cpu 97 %  ram 41 % (1.9 GiB)")
    out.print(*watch._bars.get_renderables(), sep="\n")
    out.print()
    latest = Path("runs/latest").resolve()
    facts = {"run": latest.name, **Results(KEPT).json("counts.json")}
    run.show_finished(Finished(latest, latest / "reports/index.html", done, [], [], facts))


def show_tune() -> None:
    "The rounds of a kept tuning."
    for r in json.loads(TUNED.read_text()): options.console().print(tune.round_table(Round(**r)).rich(WIDTH))


SCREENS = {"run": ("distillery run", show_run), "tune": ("distillery tune --step quantization", show_tune),
           "runs_list": ("distillery runs list", runs.runs_list), "runs_show": ("distillery runs show", runs.runs_show),
           "runs_compare": ("distillery runs compare first second", lambda: runs.runs_compare("first", "second"))}


def screen(name: str) -> Console:
    "A console of 80 columns that has been shown something, and remembers it."
    with open(os.devnull, "w") as nowhere:
        seen = Console(file=nowhere, width=WIDTH, record=True, force_terminal=True, force_jupyter=False, color_system="truecolor",
                       highlight=False)
        with tempfile.TemporaryDirectory() as folder, chdir(project(Path(folder))):
            patches = [mock.patch.object(module, "console", return_value=seen) for module in (options, run, runs, tune)]
            for p in patches: p.start()
            try: SCREENS[name][1]()
            finally:
                for p in patches: p.stop()
    return seen


def picture(name: str) -> str:
    "The screen as SVG, the same bytes each time."
    return screen(name).export_svg(title=SCREENS[name][0], unique_id=name)


if __name__ == "__main__":
    for name in SCREENS: (ROOT / f"reports/terminal-{name}.svg").write_text(picture(name), "utf-8")
