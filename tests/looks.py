"""What a reader's browser makes of a page: at a width, light or dark, and on paper.

`faults` measures in the page what lies beyond an edge, letters under 11 pixels, labels of a figure that cover one another, and asks
axe-core about contrast, landmarks, headings and alternative texts. axe-core comes from npm when a test asks for it."""
import base64
import hashlib
import io
import os
import re
import shutil
import subprocess
import tarfile
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pypdf
import pytest
import unicodedata

AXE, DIGEST = "axe-core@4.10.3", "880970c081707360e64f34cea25ff91892f5bc95675b0776925b9709dd8a68bb"
A4 = 703  # Pixels of a sheet's width, less 12 mm on both sides

MEASURE = """(() => {
  const found = [], root = document.documentElement, width = root.clientWidth;
  if (root.scrollWidth > width) found.push(`the page is ${root.scrollWidth} px wide, the window ${width}`);
  const seen = e => e.getClientRects().length && getComputedStyle(e).visibility != 'hidden' && !e.closest('title, style');
  const say = (e, what) => found.push(`${what}: <${e.tagName}> ${(e.textContent || '').trim().slice(0, 60)}`);
  for (const e of document.querySelectorAll('body *')) {
    if (!seen(e) || ![...e.childNodes].some(n => n.nodeType == 3 && n.data.trim())) continue;
    const box = e.getBoundingClientRect(), style = getComputedStyle(e);
    if (parseFloat(style.fontSize) < 11) say(e, 'small letters');
    if (box.right > width + 1 || box.left < -1) say(e, 'beyond the edge');
    if (e.clientWidth && e.scrollWidth > e.clientWidth + 1 && style.overflowX != 'visible') say(e, 'scrolls aside');
  }
  for (const plot of document.querySelectorAll('svg.plot')) {
    const words = [...plot.querySelectorAll('text')].map(t => [t, t.getBoundingClientRect()]), frame = plot.getBoundingClientRect();
    words.forEach(([t, a], i) => {
      if (a.right > width + 1 || a.bottom > frame.bottom + 3) say(t, 'beyond the figure');
      for (const [u, b] of words.slice(i + 1))
        if (Math.min(a.right, b.right) > 1 + Math.max(a.left, b.left) && Math.min(a.bottom, b.bottom) > 4 + Math.max(a.top, b.top))
          say(t, `covers "${u.textContent}"`);
    });
  }
  return found;
})()"""

RULES = """axe.run(document, {resultTypes: ['violations']}).then(r => r.violations.flatMap(v =>
  v.nodes.map(n => `${v.id}: ${n.target} ${(n.any[0] || n.all[0] || n.none[0] || {}).message || ''}`)))"""

READ = ("[...document.querySelectorAll('main :is(td, th, p, li, dt, dd, h1, h2, h3, text, figcaption, caption)')]"
        ".filter(e => e.getClientRects().length).map(e => e.textContent).join(' ')")


@cache
def axe() -> str:
    "The source of axe-core, from npm; without npm or a connection a skip, in CI a failure."
    npm, stop = shutil.which("npm"), pytest.fail if os.environ.get("CI") else pytest.skip
    if npm is None: stop("no npm on this machine, and axe-core is one of its packages")
    with TemporaryDirectory() as folder:
        done = subprocess.run([npm, "pack", AXE, "--ignore-scripts", "--silent"], cwd=folder, capture_output=True, text=True, timeout=120)
        if done.returncode: stop(f"npm cannot fetch {AXE}: {done.stderr[-200:]}")
        with tarfile.open(next(Path(folder).glob("*.tgz"))) as packed: source = packed.extractfile("package/axe.min.js").read()
    assert hashlib.sha256(source).hexdigest() == DIGEST, f"{AXE} is not the file that was looked at"
    return source.decode()


def show(page, url: str, width: int, media: str, dark: bool) -> None:
    features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    page.call("Emulation.setDeviceMetricsOverride", width=width, height=1000, deviceScaleFactor=1, mobile=False)
    page.call("Emulation.setEmulatedMedia", media=media, features=features)
    page.open(url)


def faults(page, url: str, width: int, dark: bool) -> list[str]:
    "What is wrong with a page in a window."
    page.call("Page.setBypassCSP", enabled=True)  # else the page lets nobody look with a script
    show(page, url, width, "screen", dark)
    page.call("Runtime.evaluate", expression=axe())
    return page.value(MEASURE) + page.call("Runtime.evaluate", expression=RULES, awaitPromise=True, returnByValue=True)["result"]["value"]


def words(text: str) -> list[str]: return re.findall(r"\w+", unicodedata.normalize("NFKC", text))


def paper(page, url: str) -> list[str]:
    "What a page lacks when it is printed on A4: what lies beyond the edge, and words that the PDF does not have."
    show(page, url, A4, "print", dark=True)
    shown, sheet = page.value(READ), {"paperWidth": 8.27, "paperHeight": 11.69, "preferCSSPageSize": True}
    found, pdf = page.value(MEASURE), base64.b64decode(page.call("Page.printToPDF", **sheet)["data"])
    printed = "".join(words("".join(p.extract_text() for p in pypdf.PdfReader(io.BytesIO(pdf)).pages)))
    missing = [w for w in dict.fromkeys(words(shown)) if w not in printed]
    return found + ([f"not on paper: {missing[:10]}"] if missing else [])
