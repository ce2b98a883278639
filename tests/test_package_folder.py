"A packed variant: whole, described, the same each time, and it answers."
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from distillery.core.numbers import estimate
from distillery.core.errors import DistilleryError
from distillery.exporting.export import build_onnx, variant_bytes
from distillery.shipping.package import model_card, size_table, verify_package
from distillery.training.preflight import licence_of
from distillery.training.toy import toy_base
from distillery.teachers.chat import ChatTokenizer
from distillery.teachers.onnx import OnnxTeacher
from distillery.teachers.protocol import Message, ask_all, user_request
from distillery.commands.cli import app
from distillery.commands.package import licence_file, story_of

KEPT = Path(__file__).parent / "data" / "run"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    "A folder with one finished run: the kept one's figures, a toy's weights."
    place = tmp_path_factory.mktemp("place")
    run = place / "runs" / "abcdef0123"
    shutil.copytree(KEPT, run)
    toy_base(run / "student" / "merged")
    build_onnx(run / "student" / "merged", run / "onnx" / "q4", "q4")
    (run / "manifest.json").write_text("{}")
    (run / "onnx/q4/check.json").write_text(json.dumps({"same_top1": 0.999, "n_positions": 2003}))
    (run / "dataset").mkdir()
    (run / "dataset/recall.jsonl").write_text("")
    (place / "runs" / "latest").symlink_to("abcdef0123")
    return place


def packed(place: Path, monkeypatch, *more: str) -> Path:
    monkeypatch.chdir(place)
    done = CliRunner().invoke(app, ["package", "q4", *more])
    assert done.exit_code == 0, done.output + repr(done.exception)
    return place / (more[more.index("--out") + 1] if "--out" in more else "package-q4")


def test_it_holds_what_somebody_needs(place, monkeypatch):
    folder = packed(place, monkeypatch)
    here = {p.name for p in folder.iterdir()}
    assert {"model.onnx", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json", "genai_config.json",
            "LICENSE", "README.md", "SHA256SUMS"} <= here
    assert "generation %}" not in (folder / "chat_template.jinja").read_text()
    assert "Apache License" in (folder / "LICENSE").read_text()
    text = "\n".join(p.read_text("utf-8", "replace") for p in folder.rglob("*") if p.suffix in (".md", ".json", ".jinja"))
    assert str(place) not in text
    assert "/tmp" not in text


def test_it_answers_as_the_variant_does(place, monkeypatch):
    folder, source = packed(place, monkeypatch), place / "runs/latest/onnx/q4"
    asked = [user_request("1", "Where does the Raven 10 stand?", max_tokens=12)]
    ask = lambda where: [r.text for r in ask_all(OnnxTeacher(where, threads=1), asked)]
    assert ask(folder) == ask(source)
    turns = [Message("user", "a"), Message("assistant", "b"), Message("user", "c")]
    assert ChatTokenizer(folder).render(turns) == ChatTokenizer(source).render(turns)


def test_the_card_tells_figures_with_intervals_and_n(place, monkeypatch):
    card = (packed(place, monkeypatch) / "README.md").read_text()
    m = json.loads((KEPT / "eval/q4/metrics.json").read_text())["sets"]["recall"]["exact_match"]
    assert f"| recall | exact_match | {estimate(m['mean'], m['ci_low'], m['ci_high'], m['n'])} |" in card
    assert card.startswith("---\nlicense: apache-2.0\n")
    assert "not measured: no question without an answer" in card
    assert "0.9990 of 2003 answer positions" in card
    assert "builtin:mini" in card
    assert "## Limits" in card


def test_made_twice_it_is_the_same(place, monkeypatch):
    one, two = packed(place, monkeypatch, "--out", "one"), packed(place, monkeypatch, "--out", "two")
    same = [p.relative_to(one) for p in one.rglob("*") if p.is_file()]
    assert all((one / p).read_bytes() == (two / p).read_bytes() for p in same)
    assert (one / "SHA256SUMS").read_text() == (two / "SHA256SUMS").read_text()


def test_a_changed_file_is_named(place, monkeypatch):
    folder = packed(place, monkeypatch, "--out", "changed")
    assert verify_package(folder) == []
    if shutil.which("sha256sum"): assert subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=folder).returncode == 0
    data = bytearray((folder / "model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "model.onnx").write_bytes(data)
    (folder / "LICENSE").unlink()
    (folder / "extra.txt").write_text("x")
    assert sorted(verify_package(folder)) == ["LICENSE is missing", "extra.txt was added", "model.onnx was changed"]
    with pytest.raises(DistilleryError, match="is no package"): verify_package(place)


def test_a_folder_of_somebody_elses_is_left_alone(place, monkeypatch):
    (place / "mine").mkdir()
    (place / "mine" / "notes.txt").write_text("mine")
    monkeypatch.chdir(place)
    done = CliRunner().invoke(app, ["package", "q4", "--out", "mine"])
    assert done.exit_code != 0
    assert [p.name for p in (place / "mine").iterdir()] == ["notes.txt"]


def test_gguf_comes_with_a_modelfile(place, monkeypatch):
    pytest.importorskip("gguf")
    recall = place / "runs/latest/dataset/recall.jsonl"
    from distillery.training.toy import toy_examples
    recall.write_text("".join(e.model_dump_json(by_alias=True) + "\n" for e in toy_examples(12, "recall")))
    folder = packed(place, monkeypatch, "--gguf", "q8_0", "--out", "both")
    assert (folder / "gguf/student-q8_0.gguf").read_bytes()[:4] == b"GGUF"
    assert (folder / "gguf/Modelfile").read_text().startswith("FROM ./student-q8_0.gguf\n")
    assert verify_package(folder) == []
    assert "ollama create" in (folder / "README.md").read_text()


@pytest.mark.parametrize("variant", ["fp32", "int8", "uint8", "q4"])
def test_sizes_agree_with_theory(place, tmp_path, variant):
    folder = build_onnx(place / "runs/latest/student/merged", tmp_path / variant, variant)
    rows = {r.part: r for r in size_table(folder)}
    assert sum(r.file for r in rows.values()) == variant_bytes(folder)
    assert all(r.file == r.theory for r in rows.values() if r.weights)
    expected = {"fp32": {}, "int8": {9.0}, "uint8": {9.25}, "q4": {5.125, 9.25}}[variant]
    assert {r.bits for part, r in rows.items() if "blocks" in part} <= set(expected) or variant == "fp32"
    assert any("blocks" in part for part in rows) == (variant != "fp32")
    assert "| all |" in model_card("student", folder, story_of(KEPT, "q4"))


def test_a_licence_is_never_guessed(tmp_path):
    assert licence_of(tmp_path) == (None, None)
    assert "states no licence" in licence_file(str(tmp_path))
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# Base\n")
    (tmp_path / "LICENSE.txt").write_text("MIT License")
    assert licence_of(tmp_path) == ("mit", licence_file(str(tmp_path))) == ("mit", "MIT License")
    (tmp_path / "README.md").write_text("---\nlicense: [mit\n---\n")  # not YAML
    assert licence_of(tmp_path).name is None


def in_the_cache(place, monkeypatch, card):
    "A hub's cache that holds one revision of org/base."
    folder = place / "hub/models--org--base"
    (folder / "snapshots/4f2a9c").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs/main").write_text("4f2a9c")
    for name, text in card.items(): (folder / "snapshots/4f2a9c" / name).write_text(text)
    monkeypatch.setenv("HF_HUB_CACHE", str(place / "hub"))


def test_the_licence_of_a_hub_base_comes_from_the_cache(tmp_path, monkeypatch):
    in_the_cache(tmp_path, monkeypatch, {"README.md": "---\nlicense: mit\n---\n# A base\n", "LICENSE": "Do as you like.\n"})
    assert licence_of("org/base") == ("mit", "Do as you like.\n")
    assert licence_file("org/base") == "Do as you like.\n"
    assert licence_of("org/other") == (None, None)


@pytest.mark.parametrize(("base", "said"), [("org/base", "`mit`"), ("org/other", "unknown here")])
def test_cards_say_licence_and_revision_of_a_hub_base(tmp_path, monkeypatch, base, said):
    from distillery.core.config import load_config
    from distillery.shipping.hub_card import hub_card

    in_the_cache(tmp_path, monkeypatch, {"README.md": "---\nlicense: mit\n---\n"})
    run = tmp_path / "run"
    run.mkdir()
    facts = {"run": "abc", "student base": base, **({"base revision": "4f2a9c"} if base == "org/base" else {})}
    (run / "provenance.json").write_text(json.dumps(facts))
    (run / "config.json").write_text(json.dumps({"student.base": base}))
    card, story = hub_card("adapter", "me/it", run, load_config(), []), story_of(run, "q4")
    line = next(x for x in card.split("\n") if x.startswith("- base:"))
    assert said in line
    assert ("at revision 4f2a9c" in line) == ("at revision 4f2a9c" in story.base) == (base == "org/base")
    assert story.licence == ("mit" if base == "org/base" else "other")


def test_a_run_remembers_the_revision_of_its_base(tmp_path, monkeypatch):
    from distillery.core.config import load_config
    from distillery.engine.plan import Plan
    from distillery.workbook.assemble import provenance

    in_the_cache(tmp_path, monkeypatch, {})
    plan = lambda base: Plan([], load_config(overrides={"student.base": base}), tmp_path / "cache")
    assert provenance("r", plan("org/base"), "documents", False)["base revision"] == "4f2a9c"
    assert "base revision" not in provenance("r", plan("builtin:mini"), "documents", False)
