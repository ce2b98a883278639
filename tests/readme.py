"Make README.md from nbs/index.ipynb."
import re
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
(ROOT / "README.md").write_text(text, encoding="utf-8")
