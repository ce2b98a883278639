"Models are made in several threads at once, as a server beside its client makes them: PyTorch stays as it was."
from concurrent.futures import ThreadPoolExecutor

import pytest
from first_layer import first_layer

from distillery.exporting.spans import load_qa_model
from distillery.retrieval.embed import load_sentences
from distillery.teachers.memory import load_causal_lm
from distillery.training.bases import base_folder, load_base

torch = pytest.importorskip("torch")


def test_models_made_at_once_leave_pytorch_as_it_was(tmp_path):
    layer, before = str(first_layer(tmp_path / "layer")), torch.nn.init.normal_
    ways = [lambda: load_sentences.__wrapped__(layer), lambda: load_base(base_folder("builtin:tiny"))[0],
            lambda: load_causal_lm(base_folder("builtin:mini"), "cpu"), lambda: load_qa_model(layer, 1)]
    with ThreadPoolExecutor(8) as pool: made = [f.result() for f in [pool.submit(way) for way in ways * 3]]
    assert {p.device.type for model in made for p in model.parameters()} == {"cpu"}
    assert torch.nn.init.normal_ is before
    assert torch.empty(1).device.type == "cpu"
    assert torch.nn.Linear(8, 8).weight.std() > 0.05
