"`distillery decide` on 10,000 and on 1,000,000 rows: seconds with imports, CPU seconds, peak memory. Run: python benchmarks/decide.py"
import csv
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

GOALS = {10_000: (2.0, 1024), 1_000_000: (20.0, 1024)}  # Rows to seconds and MiB


def write_rows(path: Path, rows: int) -> None:
    "Two systems on the same items, ten items a document."
    rng = np.random.default_rng(88)
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["question_id", "model", "score", "document"])
        for system, share in (("old", 0.70), ("new", 0.71)):
            right = rng.random(rows // 2) < share
            out.writerows((f"q{i:07d}", system, int(r), f"doc{i // 10:06d}") for i, r in enumerate(right))


def main() -> None:
    command = [sys.executable, "-c", "from distillery.commands.cli import main; main()", "decide"]
    with tempfile.TemporaryDirectory() as work:
        for rows, (goal_s, goal_mib) in GOALS.items():
            file = Path(work, f"{rows}.csv")
            write_rows(file, rows)
            for how in ((), ("--cluster", "none")):
                start = time.perf_counter()
                child = subprocess.Popen([*command, str(file), "--margin", "0.02", *how], stdout=subprocess.DEVNULL)
                _, status, used = os.wait4(child.pid, 0)
                child.returncode = os.waitstatus_to_exitcode(status)
                wall, cpu, peak = time.perf_counter() - start, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024
                met = "met" if wall <= goal_s and peak <= goal_mib and not child.returncode else "MISSED"
                print(f"{rows:9,} rows {'independent' if how else 'clustered':11} {wall:6.2f} s  {cpu:6.2f} CPU s {peak:7.0f} MiB  {met}")


if __name__ == "__main__": main()
