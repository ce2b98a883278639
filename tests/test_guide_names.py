"Every name of the knob guide: a setting with its default, a difference with a reason, or a refusal that names what does its work."
import re
from pathlib import Path

import pytest
import yaml

from distillery.core.config import ConfigError, find_knob, flatten, load_config
from distillery.core.knobs import GUIDE

TABLE = yaml.safe_load((Path(__file__).parent / "data/guide.yaml").read_text("utf-8"))
SETTINGS, RENAMED, ANSWERED, DIFFERENCES = (TABLE[part] for part in ("settings", "renamed", "answered", "differences"))
TEXT = Path(__file__).resolve().parents[2] / "shared/seeds"
DEFAULTS = flatten(load_config())


def default_of(name):
    knob, inner = find_knob(name)
    return DEFAULTS[knob.name] if inner is None else DEFAULTS[knob.name][inner]


@pytest.mark.parametrize("name", [n for n in SETTINGS if n not in {**RENAMED, **ANSWERED, **DIFFERENCES}])
def test_a_name_of_the_guide_is_a_setting_with_its_default(name):
    find_knob(name)
    if SETTINGS[name] is not None: assert default_of(name) == SETTINGS[name]


@pytest.mark.parametrize("name", DIFFERENCES)
def test_another_default_has_a_reason_and_is_still_another(name):
    ours, reason = DIFFERENCES[name]
    assert default_of(name) == ours != SETTINGS[name]
    assert len(reason) > 40


@pytest.mark.parametrize(("name", "does"), [*ANSWERED.items(), *RENAMED.items()])
@pytest.mark.parametrize("sections", [True, False])
def test_a_name_that_is_no_setting_is_answered_with_the_one_that_is(tmp_path, name, does, sections):
    section, _, last = name.rpartition(".")
    tree = {section: {last: 1}} if sections and section else {name: 1}
    (tmp_path / "distillery.yaml").write_text(yaml.safe_dump(tree))
    for how in ({"path": tmp_path / "distillery.yaml"}, {"overrides": tree}):
        with pytest.raises(ConfigError) as refused: load_config(**how)
        assert does in refused.value.fix
        assert name in refused.value.message


def test_what_an_answer_names_is_a_setting():
    named = {word for fix in GUIDE.values() for word in re.findall(r"\b[a-z]+\.[a-z_]+\b", fix)} - {"config.yaml"}
    assert named
    for name in named: find_knob(name)
    assert set(GUIDE) >= set(ANSWERED) | set(RENAMED)


def test_the_table_is_the_guides():
    found = sorted(TEXT.glob("002_*.txt")) if TEXT.is_dir() else []
    if not found: pytest.skip("the guide is not here: ../shared/seeds is no part of the project")
    rows = re.findall(r"^\|\s*(`[^|]*`)\s*\|([^|]*)\|", found[0].read_text("utf-8"), re.M)
    told = {name: default.strip() for names, default in rows for name in re.findall("`([^`]+)`", names)}
    assert set(told) == set(SETTINGS)
    for name, default in told.items():
        if not (literal := re.fullmatch("`([^[].*)`", default)): continue
        value = yaml.safe_load(literal[1])
        try: value = float(value)
        except (TypeError, ValueError): pass
        assert SETTINGS[name] == value, name
