"Headless Chromium for the page tests: what a reader's browser makes of a page, and what it looks like."
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
QUIET = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--hide-scrollbars"]


def find() -> str:
    "The browser, or a skip; in CI a missing browser is a failure."
    found = next((p for n in NAMES if (p := shutil.which(n))), None)
    if found is None and os.environ.get("CI"): pytest.fail("CI has no Chromium: .ci/run installs it")
    if found is None: pytest.skip("no Chromium on this machine")
    return found


def run(page: Path, *flags: str) -> str:
    with tempfile.TemporaryDirectory() as profile:
        command = [find(), *QUIET, f"--user-data-dir={profile}", "--virtual-time-budget=3000", *flags, page.resolve().as_uri()]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def dom(page: Path) -> str:
    "The page's tree after its scripts, if any, have run."
    return run(page, "--dump-dom")


def picture(page: Path, target: Path, size: str = "1000,1400") -> Path:
    run(page, f"--window-size={size}", f"--screenshot={target.resolve()}")
    return target
