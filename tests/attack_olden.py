"""Yesterday's behaviour, put back: no locks, no claims, sizes instead of digests, torn files as they come, `rm` for a collector.
A pytest plugin (`-p attack_olden`): under it the attacks of `test_attack_store` succeed, so each of them can be lost."""
import json
import shutil

import numpy as np

from distillery.core import store
from distillery.questions import results
from distillery.retrieval import vectors
from distillery.teachers import call_file
from distillery.wire import claims, intact, locks
from distillery.workbook import storekeeping


def listing(self, stage, digest): return json.loads((self.place(stage, digest) / "artifact.json").read_text())["files"]


def get(self, stage, digest):
    place = self.place(stage, digest)
    try: whole = all((place / n).stat().st_size == e["size"] for n, e in listing(self, stage, digest).items())
    except (OSError, ValueError, KeyError): return None
    return place if whole else None


def manifest(self):
    "Empty before it was written; torn, it is an error."
    try: return json.loads((self.path / "manifest.json").read_text("utf-8"))
    except FileNotFoundError: return {}


def find_waste(cache, runs_dir, keep=None):
    "What a hand with `rm` takes for waste: all but the newest run, and all that is kept beside runs."
    runs = [p for p in sorted(runs_dir.glob("*")) if p.is_dir() and not p.is_symlink()]
    kept = [("output of " + p.parent.name, p) for p in cache.glob("artifacts/*/*")] + [(p.name, p) for p in cache.glob("*.sqlite")]
    return [storekeeping.Waste(what, p) for what, p in kept + [(f"run {p.name}", p) for p in runs[:-1]]]


def remove_waste(cache, waste):
    for w in waste: shutil.rmtree(w.path) if w.path.is_dir() else w.path.unlink()


store.ArtifactPlaces.listing, store.ArtifactReader.get = listing, get
store.ArtifactReader.verify = lambda self, stage, digest: []
store.RunFolder.manifest = property(manifest)
intact.changed_files = results.changed_files = lambda *names, **how: []
call_file.sound_rows = lambda file, rows: iter(rows)
vectors._sound = lambda key, blob: np.frombuffer(blob[:-8], np.float32) if isinstance(blob, bytes) else None
claims.Claims.take = lambda self, request: None
locks.OwnedLock.acquire = lambda self: True
locks.OwnedLock.release = lambda self: None
locks.OwnedLock.tell = lambda self, *said, **more: None
storekeeping.find_waste, storekeeping.remove_waste = find_waste, remove_waste
