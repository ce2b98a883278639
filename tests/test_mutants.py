"The tests notice: of one-place mutants of the modules that decide, nine in ten die, and each that lives is listed with its reason."
import subprocess
import sys
from pathlib import Path

import pytest

from mutants import LISTED, MODULES, all_mutants, drawn, in_a_fork, judged, listed, mutants_of, notebook_of

HERE = Path(__file__).parent
SEED, HOW_MANY = 2027, 150
SOURCE = '''
class Scale:
    def up(self, x: float = 2.0) -> float:
        "Twice, but not for 0."
        return x * 2 if x > 0 and not self.off else 0
def text(n): return f"{n}" + "s"
LIMIT = 3 + 4
'''


def test_a_mutant_changes_one_place_of_a_function():
    found = {(m.definition, m.before, m.after) for m in mutants_of("toy", SOURCE)}
    assert found == {
        ("Scale.up", "2.0", "4.0"), ("Scale.up", "x * 2 if x > 0 and (not self.off) else 0", "0 if x > 0 and (not self.off) else x * 2"),
        ("Scale.up", "x * 2", "x / 2"), ("Scale.up", "2", "3"), ("Scale.up", "x > 0", "x >= 0"), ("Scale.up", "x > 0", "x > 1"),
        ("Scale.up", "x > 0 and (not self.off)", "x > 0 or not self.off"), ("Scale.up", "not self.off", "self.off"),
        ("Scale.up", "x * 2 if x > 0 and (not self.off) else 0", "x * 2 if x > 0 and (not self.off) else 1")}


def test_every_mutant_has_a_name_of_its_own_and_is_other_code():
    mutants = all_mutants(list(MODULES))
    assert len({m.name for m in mutants}) == len(mutants) > 400
    assert all(m.before != m.after for m in mutants)
    assert all(m.code.co_code for m in mutants[::29])
    assert [m.name for m in drawn(SEED, 9, list(MODULES))] == [m.name for m in drawn(SEED, 9, list(MODULES))]


def test_modules_answer_to_notebooks_and_test_files_that_exist():
    for module, files in MODULES.items():
        assert notebook_of(module).is_file()
        assert all((HERE / name).is_file() for name in files)


def test_every_listed_mutant_still_exists_and_says_why_it_may_live():
    names, reasons = {m.name for m in all_mutants(list(MODULES))}, listed()
    assert set(reasons) <= names, f"take these out of {LISTED.name}: {sorted(set(reasons) - names)}"
    assert all(len(reason.split()) >= 4 for reason in reasons.values())
    assert len(reasons) <= 0.1 * len(names)


def test_a_function_with_other_code_is_noticed_by_its_notebook_and_a_fork_leaves_ours_alone(monkeypatch):
    import mutants

    monkeypatch.setattr(mutants, "run_tests", lambda module, seconds: mutants.BySpeed(seconds))
    found = {m.name[2:]: m for m in all_mutants(["pairs.slots"]) if m.definition == "carries_fact"}
    planted = found["not sentence.rstrip().endswith(ANNOUNCES)", "sentence.rstrip().endswith(ANNOUNCES)"]
    assert in_a_fork(lambda: judged("pairs.slots", planted, {}), 60)[0].startswith("notebook: AssertionError")
    assert in_a_fork(lambda: judged("pairs.slots", None, {}), 60)[0] == ""
    assert in_a_fork(lambda: __import__("time").sleep(60), 0.2) is None


@pytest.mark.slow
def test_nine_mutants_in_ten_die_and_each_that_lives_is_listed():
    command = [sys.executable, HERE / "mutants.py", "--seed", str(SEED), "--how-many", str(HOW_MANY)]
    said = subprocess.run(command, capture_output=True, text=True, timeout=7200, check=True).stdout.splitlines()
    lived = [line for line in said if "  SURVIVED  " in line]
    allowed = [line for line in said if "  LISTED: " in line]
    assert sum("  killed by " in line for line in said) + len(lived) + len(allowed) == HOW_MANY
    assert not lived, "\n".join(lived)
    assert len(allowed) <= 0.1 * HOW_MANY, "\n".join(allowed)
