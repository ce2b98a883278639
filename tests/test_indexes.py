"Indexes: six kinds behind one interface, ties that are no misses, folders that are resumed, mapped and refused, what is worth having."
import json
import time
from pathlib import Path

import numpy as np
import pytest
import warm
from typer.testing import CliRunner

from distillery.commands.search.index import index_app
from distillery.core.files import digest_file, digest_text
from distillery.retrieval.device import TorchIndex
from distillery.retrieval.embed import CachedVectors
from distillery.retrieval.frontier import exact_edge, grown, measure_kind
from distillery.retrieval.kinds import KINDS, FlatIndex, IndexProblem, begin_index, read_index
from distillery.retrieval.stored import INDEX, MANIFEST, StoredSearcher, build_index, grow_index
from distillery.retrieval.ties import metric_alarm, rescored, tied_overlap

D = 48


def unit(x): return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), np.float32)


@pytest.fixture(scope="module")
def corpus():
    "Eight hundred vectors in heaps, a third of them copies; copies stand far from what they copy."
    rng = np.random.default_rng(3)
    some = unit(rng.normal(size=(800, D)) + 3 * rng.normal(size=(20, D))[np.arange(800) % 20])
    return np.concatenate([some, some[:400]])


@pytest.fixture(scope="module")
def queries(corpus): return unit(corpus[:60] + 0.4 * unit(np.random.default_rng(4).normal(size=(60, D))))


def test_exact_equals_flat_to_the_last_tie(corpus, queries):
    "FAISS's flat index names other copies at the edge; the scores are the same ones, and ours stand in the order of the corpus."
    import faiss

    plain = faiss.IndexFlatIP(D)
    plain.add(corpus)
    for k in (1, 3, 10, 1200):
        told, theirs = plain.search(queries, k)
        scores, ours = FlatIndex(corpus).search(queries, k)
        edge = rescored(corpus, queries, ours).min(1)
        assert (tied_overlap(theirs, rescored(corpus, queries, theirs), edge) == 1).all()
        assert np.allclose(scores, told, atol=2e-6)
        pairs = (np.abs(np.diff(scores, axis=1)) < 1e-7) & (np.diff(ours, axis=1) < 0)
        assert not pairs.any(), "equal scores in the order of the corpus"
        double = TorchIndex(corpus, "cpu").search(queries, k)[1]
        assert (tied_overlap(double, rescored(corpus, queries, double), edge) == 1).all(), "the double of the GPU finds the same"
        assert k > 10 or (double == ours).all()


def test_copies_in_another_order_lose_nothing_and_a_lost_passage_does(corpus, queries):
    order = np.random.default_rng(5).permutation(len(corpus))
    shuffled = order[FlatIndex(corpus[order]).search(queries, 10)[1]]
    edge, exact = exact_edge(corpus, queries, 10), FlatIndex(corpus).search(queries, 10)[1]
    by_ids = np.mean([len({*a} & {*b}) / 10 for a, b in zip(exact.tolist(), shuffled.tolist(), strict=True)])
    assert by_ids < 1
    assert (tied_overlap(shuffled, rescored(corpus, queries, shuffled), edge) == 1).all()
    worse = exact.copy()
    worse[:, -1] = [int(np.argmin(corpus @ q)) for q in queries]
    assert np.allclose(tied_overlap(worse, rescored(corpus, queries, worse), edge), 0.9)
    assert np.allclose(tied_overlap(np.repeat(exact[:, :1], 10, 1), rescored(corpus, queries, np.repeat(exact[:, :1], 10, 1)), edge), 0.1)


def test_an_ivf_trained_again_is_told_from_ties(corpus, queries):
    "Two seeds of the same index differ; ties do not explain it."
    edge, found = exact_edge(corpus, queries, 10), []
    for seed in (1, 2):
        index = begin_index("ivf", corpus, len(corpus), seed)
        index.add(corpus)
        found.append(index.search(queries, 10, 1)[1])
    mutual = tied_overlap(found[1], rescored(corpus, queries, found[1]), rescored(corpus, queries, found[0]).min(1))
    assert (found[0] != found[1]).any()
    shares = [tied_overlap(p, rescored(corpus, queries, p), edge) for p in found]
    assert (shares[0] != shares[1]).any(), "other passages, not other copies"
    assert mutual.mean() < 1 or np.mean(shares[0]) < 1


@pytest.mark.parametrize("metric", ["METRIC_L2", "METRIC_L1", "none"])
def test_a_wrong_metric_alarms(corpus, queries, metric):
    import faiss

    wrong = faiss.IndexFlat(D, getattr(faiss, metric, faiss.METRIC_INNER_PRODUCT))
    wrong.add(corpus if metric != "none" else np.random.default_rng(1).permuted(corpus, axis=1))
    told, places = wrong.search(queries, 10)
    true, edge = rescored(corpus, queries, places), exact_edge(corpus, queries, 10)
    assert metric_alarm(told.astype(float), true, tied_overlap(places, true, edge), KINDS["flat"].tolerance, exact=True)


def test_every_kind_is_measured_and_says_no_wrong_metric(corpus, queries):
    grew = grown(corpus[:800], 3000)
    for kind in KINDS:
        if kind == "ivfpq": continue
        points = measure_kind(kind, grew, queries, 10)
        assert not any(p.alarm for p in points), (kind, points[0].alarm)
        assert max(np.mean(p.overlap) for p in points) > (0.9 if kind == "int8" else 0.97), kind
        assert all(len(p.overlap) == 60 and p.build_s >= 0 and p.ms > 0 for p in points)
    with pytest.raises(IndexProblem, match="50,000"): measure_kind("ivfpq", grew, queries, 10)


# folders

class Counting(CachedVectors):
    "An embedder of made vectors that writes down what it embeds."

    def __init__(self, folder, log, slow=0.0):
        def vectors(spec, texts, side, batch, half):
            with open(log, "a", encoding="utf-8") as told: told.writelines(f"{t}\n" for t in texts)
            time.sleep(slow)
            return unit(np.stack([np.random.default_rng(int(t.split()[-1])).normal(size=D) for t in texts]))
        super().__init__(vectors, "made", folder / "vectors.sqlite")
        self.weights = lambda: "0" * 32

    def _keys(self, texts, side): return {t: digest_text(t) for t in texts}


def passages(n): return ((f"p{i}", f"passage number {i}") for i in range(n))


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_indexes as t
folder = Path(sys.argv[2])
t.build_index(folder / "index", t.passages(2000), t.Counting(folder, folder / "log", 0.05), sys.argv[3])
"""


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_kill_9_while_embedding_embeds_only_what_is_missing(tmp_path, kind):
    child = warm.start(KILLED, [Path(__file__).parent, tmp_path, kind])
    log, deadline = tmp_path / "log", time.monotonic() + 60
    while (not log.exists() or log.read_text("utf-8").count("\n") < 700) and time.monotonic() < deadline: time.sleep(0.005)
    child.kill()
    child.wait()
    before = log.read_text("utf-8").splitlines()
    assert 700 <= len(before) < 2000
    assert not (tmp_path / "index").exists()
    embedder = Counting(tmp_path, log)
    folder = build_index(tmp_path / "index", passages(2000), embedder, kind)
    again = log.read_text("utf-8").splitlines()[len(before):]
    assert len(again) + len(before) <= 2000 + 256, "only the slice in flight is embedded twice"
    assert set(before) | set(again) == {t for _, t in passages(2000)}
    assert StoredSearcher(folder, embedder).near(["passage number 7"], 1)[1].tolist() == [[7]]
    stamp = digest_file(folder / MANIFEST)
    build_index(tmp_path / "index", passages(2000), embedder, kind)
    assert digest_file(folder / MANIFEST) == stamp
    assert len(log.read_text("utf-8").splitlines()) == len(before) + len(again), "the second time is near zero"
    assert [p.name for p in tmp_path.glob(".index*")] == []


def test_a_graph_goes_on_from_its_checkpoint(tmp_path, corpus):
    class Cut(Exception): pass
    def added(self, vectors):
        if len(self) >= 800: raise Cut
        return real(self, vectors)
    from distillery.retrieval import kinds, stored
    real, block = kinds.FaissIndex.add, stored.BLOCK
    with pytest.MonkeyPatch.context() as m:
        m.setattr(stored, "BLOCK", 200)
        m.setattr(kinds.FaissIndex, "add", added)
        with pytest.raises(Cut): grow_index(tmp_path, "hnsw", corpus, "key", checkpoint=400)
        seen = []
        m.setattr(kinds.FaissIndex, "add", lambda self, v: (seen.append(len(v)), real(self, v))[1])
        index = grow_index(tmp_path, "hnsw", corpus, "key", checkpoint=400)
        assert (len(index), sum(seen)) == (1200, 400)
        seen.clear()
        assert len(grow_index(tmp_path, "hnsw", corpus, "another key", checkpoint=400)) == 1200
        assert sum(seen) == 1200, "a checkpoint of something else is not used"
    assert block > 200


@pytest.fixture
def stored(tmp_path):
    embedder = Counting(tmp_path, tmp_path / "log")
    return build_index(tmp_path / "index", passages(300), embedder, "hnsw"), embedder


@pytest.mark.parametrize(("spoil", "said"), [
    (lambda f: flip(f / INDEX), "index.bin .* is damaged"),
    (lambda f: flip(f / "vectors.f32"), "vectors.f32 .* is damaged"),
    (lambda f: flip(f / "passages.jsonl"), "passages.jsonl .* is damaged"),
    (lambda f: (f / "starts.i64").unlink(), "starts.i64 .* is missing"),
    (lambda f: (f / MANIFEST).unlink(), "holds no index"),
    (lambda f: (f / MANIFEST).write_text("[]", "utf-8"), "holds no index"),
    (lambda f: (f / MANIFEST).write_text('{"name": "something else"}', "utf-8"), "not made by distillery"),
    (lambda f: change(f, format=2), "format 2, and this version reads 1"),
    (lambda f: change(f, metric="L2"), "not what was written"),
    (lambda f: change(f, count=-1), "not what was written"),
    (lambda f: change(f, count=10**30), "not what was written"),
    (lambda f: change(f, count=299), "bytes and should have"),
    (lambda f: change(f, kind="ivf"), "no ivf index"),
    (lambda f: change(f, kind="../../etc"), "there is no index"),
    (lambda f: change(f, embedder={"model": "another", "digest": "1" * 32}), "made by the embedder another"),
    (lambda f: change(f, files={"../../etc/passwd": {}}), "not what was written"),
])
def test_corrupt_foreign_and_newer_folders_are_refused_by_reason(stored, spoil, said):
    folder, embedder = stored
    assert StoredSearcher(folder, embedder).near(["passage number 7"], 1)[1].tolist() == [[7]]
    spoil(folder)
    with pytest.raises(IndexProblem, match=said) as told: StoredSearcher(folder, embedder)
    assert told.value.fix


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def change(folder, **values):
    path = folder / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **values}), "utf-8")


def test_a_sound_file_of_another_metric_is_refused(tmp_path, corpus):
    import faiss

    other = faiss.IndexHNSWFlat(D, 8, faiss.METRIC_L2)
    other.add(corpus)
    faiss.write_index(other, str(tmp_path / "index.bin"))
    with pytest.raises(IndexProblem, match="no hnsw index by inner product"): read_index("hnsw", tmp_path / "index.bin", corpus)
    (tmp_path / "rubbish").write_bytes(b"IHNf" + b"\xff" * 400)
    for kind in ("hnsw", "usearch"):
        with pytest.raises(IndexProblem, match=r"cannot be read|no \w+ index"): read_index(kind, tmp_path / "rubbish", corpus)


def test_a_folder_of_somebody_is_never_replaced(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/me.jpg").write_bytes(b"me")
    made = Counting(tmp_path, tmp_path / "log")
    with pytest.raises(IndexProblem, match="is no index"): build_index(tmp_path / "photos", passages(3), made)
    with pytest.raises(IndexProblem, match="two passages"): build_index(tmp_path / "i", [("a", "n 1"), ("a", "n 2")], made)
    with pytest.raises(IndexProblem, match="no passages"): build_index(tmp_path / "i", [], made)
    assert (tmp_path / "photos/me.jpg").read_bytes() == b"me"


def test_a_changed_passage_costs_one_passage_and_nothing_is_pickled(stored, tmp_path):
    folder, embedder = stored
    done = len((tmp_path / "log").read_text("utf-8").splitlines())
    changed = (("p5", "another passage 999") if name == "p5" else (name, text) for name, text in passages(300))
    build_index(folder, changed, embedder, "hnsw")
    assert (tmp_path / "log").read_text("utf-8").splitlines()[done:] == ["another passage 999"]
    search = StoredSearcher(folder, embedder)
    assert isinstance(search.vectors, np.memmap)
    assert search.passage(5) == {"id": "p5", "text": "another passage 999"}
    assert search.ids[:2] == ("p0", "p1")
    assert all(b"\x80\x04" not in p.read_bytes()[:2] for p in folder.iterdir())


# by command

def test_build_search_and_measure_by_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"_id": f"p{i}", "title": "", "text": f"{name} is made in hall {i}. It is loud."} for i, name in enumerate(NAMES)]
    Path("corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    said = lambda *words: CliRunner().invoke(index_app, words, catch_exceptions=False).stdout
    assert "20 passages, usearch" in said("build", "corpus.jsonl", "--out", "halls", "--kind", "usearch")
    found = [json.loads(line) for line in said("search", "halls", "Where is cheese made?", "-k", "3", "--json").splitlines()]
    assert (len(found), found[0]["text"]) == (3, "Cheese is made in hall 2. It is loud.")
    told = said("measure", "halls", "--asked", "100")
    assert "Use flat for 100 questions" in told
    assert "usearch" in told
    assert "ivfpq: not measured: ivfpq learns from 50,000 vectors" in told


NAMES = "Paper Bread Cheese Glass Steel Wine Rope Soap Ink Leather Butter Bricks Silk Clocks Shoes Honey Candles Boats Nails Hats".split()
