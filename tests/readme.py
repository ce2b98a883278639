"Make README.md from nbs/index.ipynb. With README_CHECK set: only say whether it is up to date."
import os
import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parents[1]
nb = nbformat.read(ROOT / "nbs/index.ipynb", as_version=4)
nb.cells = [c for c in nb.cells if "#| hide" not in c.source]
for c in nb.cells: c.source = re.sub(r"^#\|.*\n", "", c.source)
body = re.sub(r"\n{3,}", "\n\n", MarkdownExporter().from_notebook_node(nb)[0]).strip()
text = f"<!-- Made from nbs/index.ipynb by `make readme`; edit that. -->\n\n{body}\n"
text = text.replace("](../", "](")
readme = ROOT / "README.md"
if os.environ.get("README_CHECK"):
    sys.exit(0 if readme.read_text("utf-8") == text else "README.md is older than nbs/index.ipynb: run make readme")
readme.write_text(text, encoding="utf-8")
