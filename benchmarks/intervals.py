"""Intervals of clustered paired differences: ours beside nemo-evaluator's and inspect_ai's, on the same simulated studies.

Each peer runs in an environment of its own, made from peers/*.txt; one that cannot be had is "not run".
Run: python benchmarks/intervals.py [1000]
"""
import json
import shutil
import subprocess
import sys
import tempfile
from math import sqrt
from pathlib import Path

import numpy as np
from scipy.special import ndtri

from distillery.core.stats import SHARE, paired_contrast
from distillery.core.verdicts import noninferiority_gate, verdict

HERE = Path(__file__).resolve().parent
CLUSTERS, MARGIN, LIKENESS = (5, 10, 20, 36), 0.05, 0.2
KINDS = {"gains and losses alike": (0.15, 0.15), "losses only, as large as the margin": (0.0, MARGIN)}
PEERS = {"nemo_evaluator": "python3.12", "inspect_ai": "python3.11"}
OTHERS = {"bargain": "python3.11", "model2vec": "python3.11", "glide": "python3.12"}  # Of other benchmarks


def study(rng: np.random.Generator, clusters: int, gains: float, losses: float) -> tuple[np.ndarray, np.ndarray]:
    "Differences of right and wrong in documents of 1 to 40 questions, and the document of each."
    sizes = np.clip(np.round(np.exp(rng.normal(2.0, 0.6, clusters))), 1, 40).astype(int)
    mean = np.array([max(gains, 1e-9), losses, 1 - gains - losses])
    shares = rng.dirichlet(mean * (1 - LIKENESS) / LIKENESS, clusters)
    document = np.repeat(np.arange(clusters), sizes)
    u = rng.random(len(document))
    return np.where(u < shares[document, 0], 1.0, np.where(u < shares[document, 0] + shares[document, 1], -1.0, 0.0)), document


def peer_python(peer: str) -> str:
    "The interpreter of a peer's environment, made on first use; raises OSError or CalledProcessError where it cannot be had."
    wanted, home = HERE / f"peers/{peer}.txt", HERE.parent / "build/bench/venvs" / peer
    python, mark = home / "bin/python", home / "installed.txt"
    if not mark.is_file() or mark.read_text() != wanted.read_text():
        shutil.rmtree(home, ignore_errors=True)
        found = shutil.which({**PEERS, **OTHERS}[peer])
        subprocess.run([found or sys.executable, "-m", "venv", str(home)], check=True, capture_output=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", "--requirement", str(wanted)], check=True, capture_output=True)
        mark.write_text(wanted.read_text())
    return str(python)


def of_peer(peer: str, studies: list[dict], work: Path) -> list[list[float]] | str:
    "Intervals of a peer, or why there are none."
    (work / "studies.json").write_text(json.dumps(studies))
    try:
        subprocess.run([peer_python(peer), str(HERE / f"peers/{peer}_client.py"), str(work / "studies.json"), str(work / f"{peer}.json")],
                       check=True, capture_output=True, timeout=3000)
    except (OSError, subprocess.SubprocessError) as e: return f"not run ({type(e).__name__})"
    return json.loads((work / f"{peer}.json").read_text())


def ours(studies: list[dict]) -> tuple[list[list[float]], list[bool], list[bool]]:
    "Intervals, whether the verdict was `better`, and whether the gate passed."
    found, better, passed = [], [], []
    for i, s in enumerate(studies):
        d = np.array(s["d"])
        c = paired_contrast(np.maximum(d, 0), np.maximum(-d, 0), s["cluster"], seed=i, levels=("new", "old"), scale=SHARE)
        found.append([c.ci_low, c.ci_high])
        better.append(verdict(c, MARGIN)[0].endswith("better"))
        passed.append(noninferiority_gate("g", "new", c, MARGIN).state == "PASS")
    return found, better, passed


def line(name: str, clusters: int, kind: str, truth: float, ends: np.ndarray, better: np.ndarray, passed: np.ndarray) -> str:
    "One row of the table."
    covered = ((ends[:, 0] <= truth + 1e-12) & (truth - 1e-12 <= ends[:, 1])).mean()
    wrong = better if truth == 0 else passed
    return f"| {kind} | {clusters} | {name} | {covered:.3f} | {wrong.mean():.3f} | {np.median(ends[:, 1] - ends[:, 0]):.3f} |"


def main(n: int) -> None:
    cells = [(kind, g) for kind in KINDS for g in CLUSTERS]
    studies = []
    for k, (kind, g) in enumerate(cells):
        for i in range(n):
            d, document = study(np.random.default_rng([88, k, i]), g, *KINDS[kind])
            studies.append({"d": d.tolist(), "cluster": [f"d{c}" for c in document]})
    with tempfile.TemporaryDirectory() as work: peers = {peer: of_peer(peer, studies, Path(work)) for peer in PEERS}
    mine, better, passed = ours(studies)
    commit = subprocess.run(["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    print(f"{n} studies a cell, intraclass correlation {LIKENESS}, margin {MARGIN}, commit {commit}; "
          f"three Monte Carlo errors of .95 are {-ndtri(0.00135) * sqrt(0.95 * 0.05 / n):.3f}\n")
    print("| differences | clusters | interval | coverage of 95 % | false verdicts | median width |\n|---|---|---|---|---|---|")
    for k, (kind, g) in enumerate(cells):
        truth, here = KINDS[kind][0] - KINDS[kind][1], slice(k * n, (k + 1) * n)
        print(line("ours", g, kind, truth, np.array(mine[here]), np.array(better[here]), np.array(passed[here])))
        for peer, ends in peers.items():
            if isinstance(ends, str): print(f"| {kind} | {g} | {peer} | {ends} | | |")
            else:
                e = np.array(ends[here])
                print(line(peer, g, kind, truth, e, (e[:, 0] > 0) | (e[:, 1] < 0), e[:, 0] >= -MARGIN))


if __name__ == "__main__": main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
