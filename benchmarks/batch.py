"""Two workers of a batch beside one, on notebooks of twenty seconds: wall time and the ratio."""
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_notebook

COMMAND = "from distillery.commands.cli import main; main()"
WORK = """import time
until = time.process_time() + seconds
n = 0
while time.process_time() < until: n += 1
f'counted for {seconds} s'"""


def main() -> None:
    took = {}
    with tempfile.TemporaryDirectory() as folder:
        nb = new_notebook(cells=[new_code_cell("seconds: float = 1.0  # of one core"), new_code_cell(WORK)],
                          metadata={"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}})
        nb.cells[0].metadata["tags"] = ["parameters"]
        nbformat.write(nb, Path(folder, "work.ipynb"))
        for workers in (1, 2):
            text = f"name: with-{workers}-workers\nnotebook: work.ipynb\ngrid: {{seconds: [20.0, 20.1, 20.2, 20.3]}}\n"
            Path(folder, "grid.yaml").write_text(text)
            began = time.perf_counter()
            subprocess.run([sys.executable, "-c", COMMAND, "batch", "grid.yaml", "--workers", str(workers)], cwd=folder, check=True)
            took[workers] = time.perf_counter() - began
    print(f"one worker {took[1]:.1f} s, two {took[2]:.1f} s: {took[1] / took[2]:.2f} times as fast")


if __name__ == "__main__": main()
