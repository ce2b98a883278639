"The static token table and hashed n-grams: against other readers of the same files, texts of any kind, and what becomes of damage."
import json
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from distillery.core.errors import DistilleryError
from distillery.filters import static as module
from distillery.filters.hashed import HashedEncoder, code_points, hash_grams, hash_texts, is_latin
from distillery.filters.static import LONGEST, MixedEncoder, StaticEncoder, static_folder, token_vectors, write_table
from distillery.retrieval.embed import load_model

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    "A table of random numbers with the built-in tokenizer."
    tokenizer = load_model("builtin:minilm").tokenizer
    table = np.random.default_rng(88).normal(size=(len(tokenizer.get_vocab()), 16)).astype(np.float32)
    return write_table(tmp_path_factory.mktemp("static"), table, tokenizer.backend_tokenizer.to_str(), {"model": "toy"})


def test_sentence_transformers_reads_the_same_files(small):
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    texts = ["Rye bread.", "A loaf from the baker around the corner, of rye.", "x " * 700]
    theirs = StaticEmbedding.load(str(small))
    ids = theirs.tokenize(texts) if hasattr(theirs, "tokenize") else theirs.preprocess(texts)
    vectors = theirs(ids)["sentence_embedding"].detach().numpy()
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert np.allclose(StaticEncoder(small).encode(texts), vectors, atol=1e-5)


def test_a_vector_is_the_sum_of_its_tokens(small):
    encoder = StaticEncoder(small)
    rows = [encoder.table[i] for i in encoder.tokenizer.encode("rye bread", add_special_tokens=False).ids]
    total = np.sum(rows, 0)
    assert np.allclose(encoder.encode(["rye bread"])[0], total / np.linalg.norm(total), atol=1e-6)
    assert encoder.encode([]).shape == (0, 16)
    assert not encoder.encode([""]).any()


ANY = st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(" \n\t\x0b\x1c\x85\u00a0\u2028\u200b\u00adaéиß面.-"))


@given(st.lists(st.text(ANY, max_size=80), max_size=6))
@settings(max_examples=150)
def test_what_was_tokenized_once_is_tokenized_as_ever(small, texts):
    reader = memory_of(small)
    def whole(text): return reader.tokenizer.encode(text, add_special_tokens=False).ids
    assert reader.ids(texts) == [whole(t) for t in texts]
    assert all(len(w) <= LONGEST for w in reader.known)


@cache
def memory_of(folder): return StaticEncoder(folder).reader


def test_what_is_remembered_stays_small(small, monkeypatch):
    monkeypatch.setattr(module, "REMEMBERED", 40)
    encoder, texts = StaticEncoder(small), [f"word{i} of {i % 7} and {'x' * (i % 90)}" for i in range(200)]
    vectors = [encoder.encode([t]) for t in texts]
    assert len(encoder.reader.known) <= 45
    assert np.allclose(np.concatenate(vectors), StaticEncoder(small).encode(texts))


def test_single_tokens_are_those_of_the_model():
    "The mean of the model's own output for a sentence of one token."
    import torch

    model = load_model("builtin:minilm")
    ids = [model.tokenizer.get_vocab()[w] for w in ("bread", "the")]
    tokens = model.tokenizer(["bread", "the"], return_tensors="pt")
    with torch.inference_mode(): theirs = model[0].auto_model(**tokens).last_hidden_state.mean(1).numpy()
    assert np.allclose(token_vectors(model, ids), theirs, atol=1e-4)


def test_a_table_is_made_once_and_again_after_damage(tmp_path, monkeypatch):
    made = []

    def make(spec, dimensions):
        made.append(dimensions)
        return np.ones((3, dimensions), np.float32), load_model(spec).tokenizer.backend_tokenizer.to_str()

    monkeypatch.setattr(module, "make_table", make)
    folder = static_folder(dimensions=4, cache=tmp_path)
    assert static_folder(dimensions=4, cache=tmp_path) == folder
    assert made == [4]
    assert static_folder(dimensions=5, cache=tmp_path) != folder
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    with pytest.raises(DistilleryError, match="damaged"): StaticEncoder(folder)
    assert static_folder(dimensions=4, cache=tmp_path) == folder
    (folder / "config.json").unlink()
    static_folder(dimensions=4, cache=tmp_path)
    assert made == [4, 5, 4, 4]
    assert json.loads((folder / "config.json").read_text())["model_type"] == "model2vec"


def test_no_table_of_an_export(tmp_path):
    (tmp_path / "embedder.json").write_text('{"variant": "int8"}')
    with pytest.raises(DistilleryError, match="no static table can be made"): module.make_table(f"onnx:{tmp_path}")


@given(st.lists(TEXTS, max_size=8))
@settings(max_examples=60)
def test_hashes_do_not_hang_on_the_neighbours(texts):
    whole = hash_texts(texts, 64)
    assert np.allclose(whole, np.stack([hash_texts([t], 64)[0] for t in texts]) if texts else whole)
    lengths = np.linalg.norm(whole, axis=1)
    assert all(np.isclose(n, 1, atol=1e-5) or n == 0 for n in lengths)
    assert np.isfinite(whole).all()


@given(TEXTS, st.integers(1, 5))
@settings(max_examples=60)
def test_runs_have_the_hash_of_their_characters(text, n):
    points = code_points(text)
    codes = hash_grams(points, (n,))[n]
    assert len(codes) == max(0, len(points) - n + 1)
    runs = [tuple(points[i : i + n]) for i in range(len(codes))]
    assert len(set(runs)) == len(set(codes.tolist()))


def test_texts_go_by_their_script(small):
    texts = ["Rye bread", "Ржаной хлеб", "خبز الجاودار", "Roggenbrot, groß", "黑麦面包", "", "🙂"]
    assert [is_latin(t) for t in texts] == [True, False, False, True, False, True, True]
    mixed = MixedEncoder(StaticEncoder(small), HashedEncoder(32))
    vectors = mixed.encode(texts)
    assert vectors.shape == (7, 48)
    assert [bool(v[:16].any()) for v in vectors[:5]] == [True, False, False, True, False]
    assert [bool(v[16:].any()) for v in vectors] == [True] * 5 + [False, True]
    assert mixed.identity != MixedEncoder(StaticEncoder(small), HashedEncoder(64)).identity


@pytest.mark.slow
def test_the_whole_table_keeps_the_order_of_sentences():
    "Pairs of sentences that people compared (STS-B): a rank correlation of .8, where the model itself has .9."
    import gzip
    from pathlib import Path

    path = Path(__file__).resolve().parents[2] / "shared/data/stsb_ccbysa.jsonl.gz"
    if not path.is_file(): pytest.skip("no stsb_ccbysa.jsonl.gz in ../shared/data")
    from scipy.stats import spearmanr

    rows = [json.loads(line) for line in gzip.open(path, "rt")]
    encoder = StaticEncoder(static_folder())
    one, other = (encoder.encode([r[side] for r in rows]) for side in ("sentence1", "sentence2"))
    assert spearmanr((one * other).sum(1), [r["score"] for r in rows]).statistic > 0.78
