"Embedders by name: a server's vectors are those of its model, heads and cuts go to their own model, a 768-wide twin is one more level."
import json
import threading
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from first_layer import first_layer

from distillery.core.errors import DistilleryError
from distillery.filters.embedders import open_embedder, rests_on
from distillery.questions.embedder.stages import _digest, compare_embedders, local_weights, weights_bytes
from distillery.retrieval import served
from distillery.retrieval.embed import Embedder
from distillery.retrieval.queries import Query, QuerySet
from distillery.retrieval.shorter import pca_matrix, write_head

TEXTS = [f"Press {i} prints {i * 37} sheets an hour." for i in range(150)]


@pytest.fixture(scope="module")
def layer(tmp_path_factory): return first_layer(tmp_path_factory.mktemp("layer") / "model")


@contextmanager
def serving(embedder, faults=(), key=None):
    "A real server with /v1/embeddings; the first requests meet the faults."
    seen, bad = Counter(), list(faults)

    class Reply(BaseHTTPRequestHandler):
        def log_message(self, *args): pass

        def send(self, status, body, **headers):
            self.send_response(status)
            for name, value in headers.items(): self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen["requests"] += 1
            seen["key"] += self.headers.get("Authorization") == f"Bearer {key}"
            fault = bad.pop(0) if bad else ""
            if fault == "busy": return self.send(429, b"{}", Retry_After="0")
            if fault == "cut": return self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{")
            if fault == "refused": return self.send(400, b'{"error": "too long"}')
            if asked["model"] != "layer" or self.path != "/v1/embeddings": return self.send(404, b"{}")
            seen["texts"] += len(asked["input"])
            rows = [{"index": i, "embedding": v.tolist()} for i, v in enumerate(embedder.encode(asked["input"]))]
            if fault == "few": rows.pop()
            return self.send(200, json.dumps({"data": rows[::-1]}).encode())

    server = ThreadingHTTPServer(("127.0.0.1", 0), Reply)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try: yield f"http://127.0.0.1:{server.server_port}/v1#layer", seen
    finally: server.shutdown()


def test_a_servers_vectors_are_those_of_its_model_through_bad_days_and_kept(layer, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-0123456789")
    own = Embedder(str(layer))
    with serving(own, ["busy", "cut", "few"], "sk-0123456789") as (spec, seen):
        far = open_embedder(spec, tmp_path / "v.sqlite")
        assert np.allclose(far.encode(TEXTS), own.encode(TEXTS), atol=1e-5)
        assert seen["key"] == seen["requests"] == 6  # three batches, three faults
        asked = seen["texts"]
        assert np.allclose(open_embedder(spec, tmp_path / "v.sqlite").encode([*TEXTS, "new"]), own.encode([*TEXTS, "new"]), atol=1e-5)
        assert seen["texts"] == asked + 1, "the second time costs what is new"
        assert far.identity["model"] == spec


def test_a_server_that_will_not_is_named_and_gets_no_key_of_others(layer, monkeypatch):
    monkeypatch.setattr(served, "TRIES", 2)
    with serving(Embedder(str(layer)), ["refused"]) as (spec, _):
        with pytest.raises(DistilleryError, match="refuses to embed"): open_embedder(spec).encode(["a"])
        with pytest.raises(DistilleryError, match="knows no model"): open_embedder(spec.replace("layer", "other")).encode(["a"])
    monkeypatch.setenv("OPENAI_API_KEY", "sk-0123456789")
    with pytest.raises(DistilleryError, match="which you have not named"): open_embedder("http://somewhere.example/v1#m")


def test_a_head_and_a_cut_rest_on_their_model_and_no_other(layer, tmp_path):
    base = open_embedder(str(layer), tmp_path / "v.sqlite")
    write_head(tmp_path / "head", pca_matrix(base.encode(TEXTS)), base.spec, base.identity["digest"], "pca")
    short, cut = open_embedder(f"head:64:{tmp_path / 'head'}"), open_embedder(f"cut:64:{layer}")
    whole = base.encode(TEXTS) @ base.encode(TEXTS).T
    off = {e.name: np.abs(e.encode(TEXTS) @ e.encode(TEXTS).T - whole).mean() for e in (short, cut)}
    assert off["pca"] < off["cut"]
    assert short.encode(["a"]).shape == (1, 64)
    assert rests_on(short.spec.replace("pca:64:", "cut:64:")) == str(layer)
    specs = (f"head:64:{tmp_path / 'head'}", f"cut:64:{layer}", str(layer))
    assert len({_digest(s, tmp_path / "files.json") for s in specs}) == 3
    assert all(local_weights(s) == s and weights_bytes(s) > 10**6 for s in specs)
    assert local_weights("cut:64:nobody/has-this") is None
    (tmp_path / "head/head.safetensors").write_bytes(b"x")
    with pytest.raises(DistilleryError, match="damaged"): open_embedder(f"head:64:{tmp_path / 'head'}")


def test_a_768_wide_twin_of_mpnet_is_measured_where_its_folder_is_named(layer, tmp_path):
    from sentence_transformers import SentenceTransformer, models
    from transformers import MPNetConfig, MPNetModel

    tokens, inner = SentenceTransformer(str(layer), device="cpu").tokenizer, tmp_path / "mpnet"
    config = MPNetConfig(vocab_size=len(tokens), hidden_size=768, num_hidden_layers=1, num_attention_heads=12, intermediate_size=768,
                         pad_token_id=0)
    for part in (MPNetModel(config), tokens): part.save_pretrained(inner)
    SentenceTransformer(modules=[models.Transformer(str(inner)), models.Pooling(768)], device="cpu").save(str(tmp_path / "twin"))
    asked = QuerySet("t", tuple(f"p{i}" for i in range(12)), tuple(TEXTS[:12]),
                     tuple(Query(query_id=f"q{i}", text=TEXTS[i], relevant={f"p{i}": 1.0}, cluster=f"d{i}") for i in range(12)))
    found, costs = compare_embedders(asked, str(layer), {"mpnet": ("a twin", str(tmp_path / "twin"))})
    assert Embedder(str(tmp_path / "twin")).encode(["a"]).shape == (1, 768)
    assert [c.level for c in costs] == ["base", "bm25", "hybrid", "mpnet"]
    assert all(f.recall_1 == 1 for f in found["mpnet"].values()), "a text finds itself, even by chance weights"
