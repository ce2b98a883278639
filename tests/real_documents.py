"Documents of other people, from ../shared/data, as folders that a run reads."
import gzip
import json
import tarfile
from pathlib import Path

import pytest

DATA = Path(__file__).parents[2] / "shared/data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data, which is not part of the project")


def audio_docs(folder: Path) -> Path:
    "Sixty pages about audio programs."
    with tarfile.open(DATA / "audio_docs/audio_docs.tar.gz") as tar: tar.extractall(folder, filter="data")
    return folder


def stories(folder: Path, most: int = 8) -> Path:
    "Long stories, a file each."
    for i, line in zip(range(most), gzip.open(DATA / "squality/docs.jsonl.gz", "rt", encoding="utf-8"), strict=False):
        (folder / f"story-{i}.txt").write_text(json.loads(line)["text"], "utf-8")
    return folder
