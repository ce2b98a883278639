"What counts as a document: never what programs wrote, our own runs among it; one count for every command."
import json
import re
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from distillery.commands.doctor import documents_of
from distillery.commands.environment import document_folders
from distillery.commands.init import one_corpus
from distillery.core.config import load_config
from distillery.core.errors import DistilleryError
from distillery.engine.plan import Plan
from distillery.engine.source import open_source
from distillery.pairs.documents import read_documents
from distillery.reading.listing import SUFFIXES, digest_documents, list_files, list_inputs
from distillery.pairs.stages import pairs_stages
from distillery.workbook.experiment import prepare

from warm import run_command

CASES = Path(__file__).parents[2] / "shared" / "cases"
PAGE = "# Drum\n\nThe drum of the press is cleaned every {} days by the operator.\n"


def cli(*args: str, cwd: Path, code: int = 0) -> str:
    done = run_command(*args, cwd=cwd, env={"COLUMNS": "200"})
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def put(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def with_runs(root: Path, runs: str = "runs") -> Path:
    "A folder as an earlier run leaves it."
    for name, text in {"distillery.yaml": "teacher:\n  model: builtin:extractive\n",
                       f"{runs}/r1/pairs.jsonl": '{"question": "How often?", "answer": "daily"}\n',
                       f"{runs}/r1/reports/index.html": "<html><body><h1>Card</h1><p>Ship q4: exact match .80 on 30 facts.</p>",
                       f"{runs}/r1/dataset/notes.md": "The run kept thirty facts.", ".distillery/files.json": "{}",
                       "node_modules/pad/README.md": "This package pads strings with spaces.", "env/pyvenv.cfg": "home = x",
                       "env/lib/a.md": "The library is old.",
                       "model/tokenizer.json": "{}", "model/README.md": "The model card is long.", ".git/b.md": "Hidden.",
                       "page/.DS_Store": "x",
                       "page/b.md": PAGE.format(7), "a.md": PAGE.format(14)}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_own_output_is_no_document(tmp_path):
    if found := sorted(CASES.glob("17_*/here")):
        here = tmp_path / "here"
        shutil.copytree(found[0], here, copy_function=shutil.copyfile)
        assert list_files(here) == ["a.md", "b.md"]
    root = with_runs(tmp_path / "mine")
    corpus = read_documents(root)
    assert [d.path for d in corpus.documents] == ["a.md", "page/b.md"]
    assert corpus.skipped == []


@pytest.mark.parametrize("runs", ["runs", "out", "results/of/june"])
def test_runs_under_any_name(tmp_path, runs): assert list_files(with_runs(tmp_path, runs)) == ["a.md", "page/b.md"]


def test_a_folder_called_runs_may_hold_documents(tmp_path):
    assert list_files(put(tmp_path, runs__marathon="", **{"runs__plan.md": "Run daily.",
                                                          "reports__q1.html": "<p>Sales rose."})) == ["reports/q1.html", "runs/plan.md"]


def test_pages_of_ours_are_known_wherever_they_lie(tmp_path):
    page = (Path(__file__).parents[1] / "reports" / "quantization.html").read_text()
    corpus = read_documents(put(tmp_path, **{"shared__page.html": page, "a.md": PAGE.format(3)}))
    assert [d.path for d in corpus.documents] == ["a.md"]
    assert corpus.skipped[0].reason == "a page that a run of ours wrote"


def test_a_run_that_was_cut_short_leaves_nothing_to_read(tmp_path):
    left = {"distillery.yaml": "docs: .", "runs__r1__reports__index.html": "<p>Ship q4.", "runs__r1__eval__q4__summary.md": "It was fine.",
            "a.md": PAGE.format(3)}
    assert list_files(put(tmp_path, **left)) == ["a.md"]


def test_a_second_run_is_the_same_run(tmp_path):
    put(tmp_path, **{"a.md": PAGE.format(14)})
    before = digest_documents(tmp_path)
    stage = lambda: pairs_stages(open_source(tmp_path, None, None), load_config(), tmp_path / ".distillery")[0].inputs
    first = stage()
    with_runs(tmp_path)
    (tmp_path / "page/b.md").unlink()
    (tmp_path / "parts.csv").write_text("id;name\n")
    assert digest_documents(tmp_path) == before
    assert stage() == first
    (tmp_path / "c.md").write_text(PAGE.format(3))
    assert stage() != first


def test_init_estimate_and_doctor_count_as_a_run_does(tmp_path):
    root = with_runs(tmp_path)
    (root / "distillery.yaml").unlink()
    (root / "notes.csv").write_text("a,b\n")
    said = cli("init", cwd=root)
    counted = sum(int(n) for n in re.findall(r"documents in \S+ +(\d+)", said))
    assert counted == 2 == len(list_files(root))
    assert sum(n for _, n in document_folders(root)) == 2
    assert "docs: ." in said
    assert len(read_documents(root).documents) == 2
    assert documents_of(load_config(overrides={"docs": str(root)})) == f"2 in {root}"
    config, cache = load_config(), tmp_path / "cache"
    stages = pairs_stages(open_source(root, None, None), config, cache)[:1]  # what `run` and `estimate` begin with
    read = Plan(stages, config, cache).run()["documents"]
    assert len((read.path / "documents.jsonl").read_text().splitlines()) == 2


def test_other_files_are_passed_over_by_name(tmp_path):
    others = {"drum.rtf": r"{\rtf1 Clean it.}", "package-lock.json": "{}", "parts.csv": "id;name", "mail.eml": "From: a@b.org\n\nClean it.",
              "poetry.lock": "[x]",
              "requirements-dev.txt": "numpy",
              "dev-requirements.txt": "numpy", "Makefile": "all:", "notes": "Clean it.", "data.yaml": "a: 1", "~$a.docx": "x",
              "old.doc": "x"}
    for name, text in {**others, "ok.md": "The lid is closed."}.items(): (tmp_path / name).write_text(text)
    (tmp_path / "x.egg-info").mkdir()
    (tmp_path / "x.egg-info" / "SOURCES.txt").write_text("a.py")
    assert list_files(tmp_path, ["./"]) == list_files(tmp_path)
    corpus = read_documents(tmp_path)
    assert [d.path for d in corpus.documents] == ["ok.md"]
    assert {s.path for s in corpus.skipped} == set(others)
    assert "save it as docx" in next(s.reason for s in corpus.skipped if s.path == "drum.rtf")


def test_several_folders_are_one_corpus_with_relative_ids(tmp_path):
    root = put(tmp_path, **{"guides__a.md": PAGE.format(1), "notes__deep__a.md": PAGE.format(2), "a.md": PAGE.format(3)})
    corpus = read_documents(root)
    assert [d.path for d in corpus.documents] == ["a.md", "guides/a.md", "notes/deep/a.md"]
    assert len({d.doc_id for d in corpus.documents}) == 3
    assert one_corpus(root)[0] == root


@pytest.mark.parametrize(("include", "names"), [
    (["**/*"], ["a.md", "x/b.txt", "x/y/c.md"]), (["*"], ["a.md"]), (["*.md"], ["a.md"]), (["**/*.md"], ["a.md", "x/y/c.md"]), (["x/**"],
        ["x/b.txt", "x/y/c.md"]),
    (["x/*"], ["x/b.txt"]), (["x/**/c.*"], ["x/y/c.md"]), (["[ab].md", "**/b.txt"], ["a.md", "x/b.txt"]), (["x/?/c.md"], ["x/y/c.md"])])
def test_patterns_choose_as_globs_do(tmp_path, include, names):
    root = put(tmp_path, **{"a.md": "A lid.", "x__b.txt": "A drum.", "x__y__c.md": "A hall."})
    assert list_files(root, include) == names


@pytest.mark.parametrize("setup", ["nothing", "only data", "only ours", "missing"])
def test_a_folder_without_documents_is_refused_before_anything_is_spent(tmp_path, setup):
    root = tmp_path / "docs"
    if setup != "missing": root.mkdir()
    if setup == "only data": put(root, **{"parts.csv": "a,b"})
    if setup == "only ours": put(root, **{"distillery.yaml": "docs: .", "runs__r__pairs.jsonl": "{}", "runs__r__reports__a.html": "<p>x"})
    with pytest.raises(DistilleryError): list_files(root)
    with pytest.raises(DistilleryError) as e: prepare(root, None, load_config(overrides={"workbook.cache_dir": str(tmp_path / "cache")}))
    assert e.value.exit_code == 2
    assert e.value.fix


def test_the_command_refuses_it_too(tmp_path):
    put(tmp_path / "docs", **{"parts.csv": "a,b"})
    said = cli("run", "docs", cwd=tmp_path, code=2)
    assert "no documents in docs" in said
    assert "Fix:" in said
    assert not (tmp_path / "runs").exists()


@settings(max_examples=40)
@given(st.dictionaries(st.text("abÄ.-_ ", min_size=1, max_size=6).filter(lambda s: s.strip(". ")), st.sampled_from([*SUFFIXES, ".csv",
    ".json", "", ".RTF", ".MD"]), min_size=1, max_size=6))
def test_every_visible_file_is_listed_once(tmp_path_factory, names):
    root = tmp_path_factory.mktemp("listed")
    files = {f"{stem}{suffix}" for stem, suffix in names.items()}
    for name in files: (root / name).write_text("x")
    listed = list_inputs(root)
    assert sorted(f.path for f in listed) == sorted(n for n in files if not n.startswith("."))
    assert all(bool(f.against) != f.path.lower().endswith(SUFFIXES) for f in listed)
    assert json.dumps([f.path for f in listed])


def test_headings_alone_are_listed_with_the_reason(tmp_path):
    docs = put(tmp_path / "docs", **{"empty.md": "# Only\n\n## Headings\n", "ok.md": PAGE.format(3)})
    config, cache = load_config(), tmp_path / "cache"
    done = Plan(pairs_stages(open_source(docs, None, None), config, cache)[:1], config, cache).run()
    skipped = json.loads((done["documents"].path / "skipped.json").read_text())
    assert skipped == [{"path": "empty.md", "reason": "no sentence in it, only headings"}]
