"A filter's wheel: what it says is what the scorer says, four tamperings, odd texts, and a life without this package and its libraries."
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from distillery.commands.cli import app
from distillery.core.errors import DistilleryError
from distillery.filters.calibrate import Calibration, Curve
from distillery.filters.hashed import HashedEncoder
from distillery.filters.made import make_articles
from distillery.filters.package import package_filter, runtime_code
from distillery.filters.prefilter import Prefilter, Signal
from distillery.filters.promise import Promise
from distillery.filters.runtime import FilterPackage, PackageError, check_fixtures, read_tensors, run_lines
from distillery.filters.scorer import Scorer, encode_articles
from distillery.filters.static import MixedEncoder, StaticEncoder, write_table
from distillery.filters.views import token_counter
from distillery.filters.world import WorldShape, write_world
from distillery.retrieval.embed import model_dir

NAMES = ["reach", "benefit"]
CONTRACT = {"name": "good-news", "version": 3, "scale": [0, 10], "tiers": [{"name": "high", "at": 6}, {"name": "low", "at": 2}],
            "dimensions": {"reach": {"weight": 0.7, "gatekeeper": None},
                           "benefit": {"weight": 0.3, "gatekeeper": {"below": 3, "caps_at": 4}}}}
CALIBRATION = Calibration(dimensions=["reach", "benefit"], curves={"reach": Curve(x=[0, 5, 10], y=[0, 4, 10]), "benefit": Curve()},
                          gains={}, n=9, n_clusters=9, halves={"reach": 1.0, "benefit": 1.0, "weighted": 1.25})
ARTICLES = [a.article for a in make_articles(40, seed=88)]


@pytest.fixture(scope="module")
def static(tmp_path_factory):
    "A table of random numbers with the built-in tokenizer."
    tokenizer = (model_dir("builtin:minilm") / "tokenizer.json").read_text("utf-8")
    table = np.random.default_rng(88).normal(size=(30522, 12)).astype(np.float32)
    return StaticEncoder(write_table(tmp_path_factory.mktemp("t"), table, tokenizer, {"model": "toy"}))


def random_scorer(width: int) -> Scorer:
    rng = np.random.default_rng(88)
    return Scorer(dict.fromkeys(NAMES, (0.0, 10.0)), "head+tail", 256, rng.normal(size=(2, width)).astype(np.float32),
                  3 * rng.normal(size=(2, width)), np.array([5.0, 4.0]), (0.0, 10.0), (1.0, 1.0), {})


def prefilter(static, threshold: float | None = None) -> Prefilter:
    "A signal of random numbers; its threshold is the median of a dozen articles."
    coef, encoder = np.random.default_rng(89).normal(size=44), MixedEncoder(static, HashedEncoder(32))
    if threshold is None: threshold = float(np.median(encoder.encode([a.full_text for a in ARTICLES[:12]]) @ coef)) + 0.5
    promise = Promise(state="promised", sentence="", tier=6, target=0.95, delta=0.1, threshold=threshold, positives=45,
                      positive_clusters=45, needed=45, labels=90)
    return Prefilter(Signal("weighted", coef, 0.5, encoder.identity), promise)


@pytest.fixture(scope="module")
def wheel(static, tmp_path_factory):
    texts, card = [a.full_text for a in ARTICLES], {"promise": "made for a test", "teacher": "https://models.example.org:8000#m"}
    return package_filter(tmp_path_factory.mktemp("dist"), CONTRACT, "d1", random_scorer(12), static, CALIBRATION, texts, card,
                          prefilter(static), kind="static")


@pytest.fixture
def unpacked(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as z: z.extractall(tmp_path)
    return tmp_path / "good_news"


def seal_of(folder: Path) -> str: return (folder / "__init__.py").read_text().split('SEAL = "')[1][:64]


def started(folder: Path) -> str:
    "Import it in another process: what it says last."
    done = subprocess.run([sys.executable, "-c", "import good_news"], cwd=folder.parent, capture_output=True, text=True, timeout=120)
    return (done.stderr.strip().splitlines() or ["started"])[-1]


def test_a_package_says_what_the_scorer_says(unpacked, static):
    package, scorer, rule = FilterPackage(unpacked, seal_of(unpacked)), random_scorer(12), prefilter(static)
    encoder, texts = MixedEncoder(static, HashedEncoder(32)), [a.full_text for a in ARTICLES[:12]]
    texts.append("Хлеб и соль на столе. " * 9)
    found, signal = package.score(texts), rule.signal.of(encoder.encode(texts))
    assert [r["rejected"] for r in found] == (signal < rule.promise.threshold).tolist()
    assert len({r["rejected"] for r in found}) == 2
    points = CALIBRATION.apply(scorer.predict(encode_articles(ARTICLES[:12], static, token_counter())))
    for row, p in zip(found, points, strict=False):
        if row["rejected"]: continue
        assert list(row["scores"].values()) == pytest.approx(p.tolist(), abs=5e-3)
        total = p @ [0.7, 0.3]
        total = min(total, 4.0) if p[1] < 3 else total
        assert row["weighted"] == pytest.approx(total, abs=5e-3)
        assert row["tier"] == next((t["name"] for t in CONTRACT["tiers"] if row["weighted"] >= t["at"]), "")
        assert row["in_doubt"] == (min(abs(row["weighted"] - t) for t in (6, 2)) < 1.25)
    assert check_fixtures(package) == []
    assert "example.org" not in "".join((unpacked / n).read_text() for n in ("card.json", "card.html", "package.json"))


@pytest.mark.parametrize(("file", "reason"), [("prefilter.safetensors", "prefilter.safetensors was changed"),
                                              ("calibration.json", "calibration.json was changed"),
                                              ("package.json", "package.json was changed"), ("model.pkl", "may hold a pickle")])
def test_four_tamperings_are_refused_with_their_reason(unpacked, file, reason):
    path = unpacked / file
    if file == "package.json": path.write_text(path.read_text().replace("good-news/v3", "good-news/v4"))
    else: path.write_bytes((path.read_bytes() if path.is_file() else b"\x80\x04.")[:-1] + b"!")
    assert reason in started(unpacked)


def test_what_was_not_touched_starts(unpacked): assert started(unpacked) == "started"


def test_other_changes_are_refused_too(unpacked):
    seal = seal_of(unpacked)
    (unpacked / "note.txt").write_text("x")
    with pytest.raises(PackageError, match=r"note.txt was added"): FilterPackage(unpacked, seal)
    (unpacked / "note.txt").unlink()
    kept = (unpacked / "package.json").read_text()
    (unpacked / "package.json").write_text(kept.replace('"schema": 1', '"schema": 2'))
    with pytest.raises(PackageError, match="schema 2, and this code reads 1"): FilterPackage(unpacked, seal)
    (unpacked / "package.json").write_text(kept)
    (unpacked / "views.py").unlink()
    with pytest.raises(PackageError, match=r"views.py is missing"): FilterPackage(unpacked, seal)


def test_a_file_that_lies_about_its_length_is_refused(tmp_path):
    head = json.dumps({"x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    for raw in (b"", b"\xff" * 8, len(head).to_bytes(8, "little") + head + b"\0" * 8, (10**12).to_bytes(8, "little") + head):
        (tmp_path / "x.safetensors").write_bytes(raw)
        with pytest.raises(PackageError, match="no safetensors file"): read_tensors(tmp_path / "x.safetensors")


def test_odd_lines_are_scored_or_rejected(unpacked):
    import io

    package, out = FilterPackage(unpacked, seal_of(unpacked)), io.StringIO()
    lines = ["[1, 2]\n", '{"text": ""}\n', '{"title": "Only a title"}\n', "🙂\n", "x" * 5000 + "\n", "\n"]
    lines.append(json.dumps({"id": 7, "text": "word " * 3000}) + "\n")
    assert run_lines(package, lines, out) == 0
    rows = [json.loads(line) for line in out.getvalue().splitlines()]
    assert len(rows) == 6
    assert rows[-1]["id"] == 7
    assert all(r["rejected"] or np.isfinite(r["weighted"]) for r in rows)


def test_what_cannot_be_packaged_is_refused(static, tmp_path):
    texts = [a.full_text for a in ARTICLES]
    with pytest.raises(DistilleryError, match="3 texts for 20 fixtures"):
        package_filter(tmp_path, CONTRACT, "d", random_scorer(12), static, CALIBRATION, texts[:3], {}, kind="static")
    with pytest.raises(DistilleryError, match="cannot be packaged yet"):
        package_filter(tmp_path, CONTRACT, "d", random_scorer(12), static, CALIBRATION, texts, {}, kind="finetune")
    none = CALIBRATION.model_copy(update={"dimensions": [], "curves": {}})
    with pytest.raises(DistilleryError, match="other dimensions"):
        package_filter(tmp_path, CONTRACT, "d", random_scorer(12), static, none, texts, {}, kind="static")


def test_the_code_it_carries_needs_three_libraries():
    import ast

    found = set()
    for text in runtime_code().values():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import): found |= {a.name.split(".")[0] for a in node.names}
            if isinstance(node, ast.ImportFrom) and not node.level: found.add(node.module.split(".")[0])
    assert found - set(sys.stdlib_module_names) == {"numpy", "onnxruntime", "tokenizers"}


def empty_environment(tmp_path: Path, wheel: Path) -> Path:
    "Python of an environment with a wheel, onnxruntime, tokenizers and NumPy, and nothing of ours."
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python, run = tmp_path / "venv/bin/python", {"capture_output": True, "text": True, "cwd": tmp_path}
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", str(wheel)], check=True)
    site = Path(subprocess.run([python, "-c", "import site; print(site.getsitepackages()[0])"], **run).stdout.strip())
    ours = Path(np.__file__).parents[1]
    for name in ("numpy", "numpy.libs", "onnxruntime", "tokenizers", "flatbuffers", "google"):
        if (ours / name).exists(): (site / name).symlink_to(ours / name)
    return python


@pytest.mark.slow
def test_a_frozen_filter_lives_in_an_empty_environment(static, tmp_path):
    "The wheel alone, installed without an index; beside it onnxruntime, tokenizers and NumPy, and nothing of ours: 1,000 articles."
    texts = [a.article.full_text for a in make_articles(1000, seed=88)]
    made = package_filter(tmp_path / "dist", CONTRACT, "d1", random_scorer(384), static, CALIBRATION, texts, {}, prefilter(static, -99.0))
    python, run = empty_environment(tmp_path, made), {"capture_output": True, "text": True, "cwd": tmp_path}
    lines = "".join(json.dumps({"id": i, "text": t}) + "\n" for i, t in enumerate(texts))
    env = {"PATH": "/usr/bin:/bin"}
    assert subprocess.run([python, "-c", "import torch"], env=env, **run).returncode != 0
    assert "all fixtures agree" in subprocess.run([python, "-m", "good_news", "--check"], env=env, **run).stdout
    done = subprocess.run([tmp_path / "venv/bin/good_news", "-"], input=lines, env=env, **run)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [r["id"] for r in rows] == list(range(1000)), done.stderr
    assert not any(r["rejected"] for r in rows)
    shutil.rmtree(tmp_path / "venv")


@pytest.mark.slow
def test_a_filter_trained_by_command_says_the_same_in_its_wheel(tmp_path, monkeypatch):
    "Run, score and package by command: the wheel, in an empty environment, gives the rows of `filter score --by filter`."
    monkeypatch.chdir(tmp_path)
    shape = WorldShape(labelled=260, gold=20, pool=120, production=10, consent=5, topics=96)
    home, start = write_world(tmp_path / ".distillery/filters/builtin", 88, shape), CliRunner().invoke
    assert start(app, ["filter", "run", "builtin"]).exit_code in (0, 4)
    for out in ("rows.jsonl", "rows.csv"):
        done = start(app, ["filter", "score", "builtin", "--articles", str(home / "pool.jsonl"), "--by", "filter", "--out", out])
        assert done.exit_code == 0, done.output
    rows = {r["id"]: r for r in map(json.loads, Path("rows.jsonl").read_text().splitlines())}
    assert len(Path("rows.csv").read_text().splitlines()) == len(rows) + 1 > 50
    done = start(app, ["filter", "package", "builtin", "--out", "dist"])
    assert done.exit_code in (0, 4), done.output
    python = empty_environment(tmp_path, next(Path("dist").resolve().glob("*.whl")))
    run = {"capture_output": True, "text": True, "cwd": tmp_path, "env": {"PATH": "/usr/bin:/bin"}}
    assert "all fixtures agree" in subprocess.run([python, "-m", "builtin", "--check"], **run).stdout
    done = subprocess.run([python, "-m", "builtin", str(home / "pool.jsonl")], **run)
    shipped = {r["id"]: r for r in map(json.loads, done.stdout.splitlines())}
    for name, row in rows.items():
        assert shipped[name]["rejected"] == row["rejected"], done.stderr
        if not row["rejected"]: assert shipped[name]["weighted"] == pytest.approx(row["weighted"], abs=5e-3)
