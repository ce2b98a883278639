"""Imported before a run: adds up the CPU time that its process spends in locks, claims and comparisons of digests, the functions that
`tests/attack_olden.py` takes away, and at the end writes it, with that of the whole process, to the file that INTEGRITY_TIMED names."""
import atexit
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from distillery.core import store
from distillery.questions import results
from distillery.retrieval import vectors
from distillery.teachers import call_file
from distillery.wire import claims, intact, locks

INSIDE, SPENT, LOCK = threading.local(), [0.0, 0], threading.Lock()


def timed(work: Callable[..., Any]) -> Callable[..., Any]:
    "The same function, its CPU time counted; what it calls itself is counted once."
    def measured(*args: Any, **more: Any) -> Any:
        if getattr(INSIDE, "now", False): return work(*args, **more)
        INSIDE.now, began = True, time.thread_time()
        try: return work(*args, **more)
        finally:
            INSIDE.now = False
            with LOCK: SPENT[:] = [SPENT[0] + time.thread_time() - began, SPENT[1] + 1]
    return measured


def timed_rows(file: Path, rows: Iterator[Any]) -> Iterator[Any]:
    "Rows that are compared as they are read; reading them is counted too."
    found = SOUND(file, rows)
    while True:
        began, row = time.thread_time(), next(found, None)
        with LOCK: SPENT[:] = [SPENT[0] + time.thread_time() - began, SPENT[1] + 1]
        if row is None: return
        yield row


SOUND = call_file.sound_rows
for owner, names in ((store.ArtifactPlaces, ["listing"]), (store.ArtifactReader, ["get", "verify"]), (claims.Claims, ["take"]),
                     (locks.OwnedLock, ["acquire", "release", "tell"]), (vectors, ["_sound"]), (intact, ["changed_files"])):
    for name in names: setattr(owner, name, timed(getattr(owner, name)))
results.changed_files, call_file.sound_rows = intact.changed_files, timed_rows
store.RunFolder.manifest = property(timed(store.RunFolder.manifest.fget))


@atexit.register
def write() -> None:
    Path(os.environ["INTEGRITY_TIMED"]).write_text(json.dumps({"seconds": SPENT[0], "calls": SPENT[1], "process": time.process_time()}))
