"""Long files start first, so that all processes of pytest-xdist end at about the same time. Attacks (`make attack`) are counted:
a row of findings that lost one names it."""
import gc
import sys
from collections import defaultdict

import hypothesis
import pytest

sys.modules.setdefault("rfc3987_syntax", None)  # as `pages.report.notebook_library`, for tests that import nbformat themselves
gc.set_threshold(100_000, 20, 100)  # as the command line does
hypothesis.settings.register_profile("untimed", deadline=None)  # a busy machine fails no test
hypothesis.settings.load_profile("untimed")

LONG = ["test_presets", "test_run", "test_cli", "test_checks", "test_student_training", "test_distill", "test_retrieval",
        "test_prompt_injection", "test_filters", "test_reports_teachers", "test_teachers_faults", "test_embedder", "test_teachers_models",
        "test_question", "test_planted_edits", "test_lab", "test_temperature", "test_models"]


def pytest_collection_modifyitems(items):
    place = {name: i for i, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONG)))
    for item in items:
        if mark := item.get_closest_marker("attack"): item.user_properties.append(("attack", mark.kwargs["row"]))


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter, config):
    "Survived and lost attacks of each row, where attacks were asked for (`-m attack`)."
    if "attack" not in config.getoption("markexpr"): return
    rows = defaultdict(lambda: {"survived": 0, "lost": 0, "not tried": 0})
    for outcome, word in (("passed", "survived"), ("failed", "lost"), ("error", "lost"), ("skipped", "not tried")):
        for report in terminalreporter.getreports(outcome):
            for name, row in report.user_properties:
                if name == "attack": rows[row][word] += 1
    terminalreporter.section("attacks")
    for row, said in sorted(rows.items()):
        terminalreporter.line(f"row {row:>2}: " + ", ".join(f"{n} {word}" for word, n in said.items() if n))
    total = {word: sum(r[word] for r in rows.values()) for word in ("survived", "lost", "not tried")}
    terminalreporter.line(f"{total['survived']} survived, {total['lost']} lost, {total['not tried']} not tried")
