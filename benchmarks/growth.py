"""How work grows with documents: drawn handbooks of 100, 400 and 1,600 pages from documents to dataset, 6,400 without judging.
Each stage of each size runs in a process of its own, with builtin:extractive as its teacher: CPU time and peak memory of each,
and the slopes in log-log. Run: OMP_NUM_THREADS=1 python benchmarks/growth.py [--sizes 100,400,1600] [--long 6400] [--plot FILE.svg]"""
import argparse
import json
import math
import resource
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

STAGES = ("documents", "generate", "judge", "select", "dataset")
FLAT = ("documents", "generate")
CPU, RSS, MOST, MINUTES = 1.1, 0.3, 1.5, 10.0
STEP = 8.0  # MiB: smaller differences between two processes are the allocator's
BOOK = 48  # pages: in one drawn handbook no name comes twice, so a larger corpus is several of them


def write_pages(folder: Path, pages: int) -> None:
    "Draw handbooks until there are so many pages; each has a title of its own."
    from distillery.models.shipped import draw_handbook, render_page

    folder.mkdir(parents=True)
    for book in range(-(-pages // BOOK)):
        drawn = list(draw_handbook(f"growth/{book}").items())[: pages - book * BOOK]
        for name, sections in drawn:
            named = f"book {book} {name}"
            (folder / named.replace(" ", "-")).write_text(render_page(named, sections), encoding="utf-8")


def copy_unjudged(job) -> None:
    "Pairs without scores, where judging is left out."
    shutil.copyfile(job.needs["generate"] / "pairs.jsonl", job.out / "pairs.jsonl")


def cpu() -> float:
    "CPU seconds of this process and of the children it waited for."
    return sum(u.ru_utime + u.ru_stime for u in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))


def run_stage(place: Path, stage: str, judged: bool) -> dict[str, float]:
    "Run one stage, the earlier ones being there: its CPU seconds, the process's peak memory, the lines it wrote."
    from distillery.core.config import load_config
    from distillery.engine.plan import Plan
    from distillery.engine.source import open_source
    from distillery.pairs.stages import pairs_stages

    config = load_config(preset="technical-docs", overrides={"workbook.cache_dir": str(place / "cache")})
    stages = pairs_stages(open_source(place / "docs", None, None), config, place / "cache")
    if not judged: stages = [replace(s, run=copy_unjudged) if s.name == "judge" else s for s in stages]
    began = {}

    def watch(event):
        if event.stage == stage and event.kind in ("start", "done"): began[event.kind] = cpu()

    done = Plan(stages[: STAGES.index(stage) + 1], config, place / "cache").run(watch)[stage]
    peak = max(resource.getrusage(w).ru_maxrss for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 2**10
    rows = sum(sum(1 for _ in p.open("rb")) for p in done.path.glob("*.jsonl"))
    return {"cpu": began["done"] - began["start"], "peak": peak, "rows": rows}


def measure(pages: int, judged: bool, work: Path) -> dict[str, dict[str, float]]:
    "All stages of one size, each in a process of its own."
    place = work / str(pages)
    write_pages(place / "docs", pages)
    found = {}
    for stage in STAGES:
        command = [sys.executable, __file__, "--stage", stage, "--place", str(place), *([] if judged else ["--unjudged"])]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found[stage] = json.loads(done.stdout.splitlines()[-1])
        f = found[stage]
        print(f"{pages:>6} pages  {stage:10}{f['cpu']:9.2f} s CPU{f['peak']:9.0f} MiB{f['rows']:10,} rows", flush=True)
    shutil.rmtree(place)
    return found


def slope(sizes: list[int], values: list[float]) -> float:
    "Exponent: slope of the least-squares line in log-log."
    x, y = [math.log(s) for s in sizes], [math.log(max(v, 1e-6)) for v in values]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)


def draw(found: dict[int, dict[str, dict[str, float]]], path: Path) -> None:
    "CPU time and peak memory by pages, in log-log."
    import matplotlib as mpl
    mpl.use("svg")
    mpl.rcParams.update({"svg.hashsalt": "growth", "svg.fonttype": "none"})
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for axis, kind, label in zip(axes, ("cpu", "peak"), ("CPU time, seconds", "peak memory, MiB"), strict=True):
        for stage in STAGES:
            shown = [n for n in found if n > 1 and (stage != "judge" or not found[n][stage].get("unjudged"))]
            axis.plot(shown, [found[n][stage][kind] for n in shown], marker="o", label=stage)
        axis.set(xscale="log", yscale="log", xlabel="pages", ylabel=label)
        axis.grid(alpha=0.3)
    axes[0].legend(frameon=False)
    figure.savefig(path, metadata={"Date": None, "Creator": None})


def report(found: dict[int, dict[str, dict[str, float]]], sizes: list[int], long: int) -> bool:
    "The exponents beside their goals."
    met = True
    for stage in STAGES:
        asked = [n for n in sizes if n > 1] + ([long] if long and stage != "judge" else [])
        exponent = slope(asked, [found[n][stage]["cpu"] for n in asked])
        line = f"{stage:10} CPU exponent {exponent:5.2f}"
        met &= exponent <= CPU
        if stage in FLAT:
            above = [found[n][stage]["peak"] - found[1][stage]["peak"] for n in asked]
            memory = slope(asked, [max(STEP, a) for a in above])
            met &= memory <= RSS
            line += f", peak memory above a one-page run {' '.join(f'{a:.0f}' for a in above)} MiB, exponent {memory:5.2f}"
        print(line)
    top = max(sizes)
    peak = max(f["peak"] for f in found[top].values()) / 2**10
    minutes = sum(f["cpu"] for stage, f in found[top].items() if stage != "judge") / 60  # of one core, whoever else is at work
    print(f"at {top:,} pages: at most {peak:.2f} GiB, {minutes:.1f} minutes without judging")
    met &= peak <= MOST and minutes <= MINUTES
    print(f"goal: CPU exponents at most {CPU:g}, memory of {' and '.join(FLAT)} at most {RSS:g}, {MOST:g} GiB, {MINUTES:g} minutes: "
          f"{'met' if met else 'MISSED'}")
    return met


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="100,400,1600", help="pages, from documents to dataset")
    parser.add_argument("--long", type=int, default=6400, help="pages of one more size without judging; 0 leaves it out")
    parser.add_argument("--plot", type=Path, help="SVG file to write")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--unjudged", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stage:
        print(json.dumps(run_stage(args.place, args.stage, not args.unjudged)))
        return
    sizes = [1, *map(int, args.sizes.split(","))]
    with tempfile.TemporaryDirectory() as work:
        found = {n: measure(n, True, Path(work)) for n in sizes}
        if args.long:
            found[args.long] = measure(args.long, False, Path(work))
            found[args.long]["judge"]["unjudged"] = 1.0
    if args.plot: draw(found, args.plot)
    report(found, sizes, args.long)


if __name__ == "__main__": main()
