"Resampling 300 paired answers 10,000 times: ours beside scipy's, in CPU milliseconds of one process. Run: python benchmarks/stats.py"
import time
from collections.abc import Callable

import numpy as np
from scipy.stats import bootstrap, permutation_test

from distillery.core.stats import bootstrap_means, sign_flip_p

GOAL_MS, N, RESAMPLES, ROUNDS = 50.0, 300, 10_000, 5


def cpu_ms(work: Callable[[], object]) -> float:
    "Median CPU time of a few rounds, after one to warm up."
    work()
    rounds = []
    for _ in range(ROUNDS):
        start = time.process_time()
        work()
        rounds.append(1000 * (time.process_time() - start))
    return float(np.median(rounds))


def main() -> None:
    d = np.random.default_rng(88).choice([-1.0, 0.0, 0.0, 0.0, 1.0], N)
    rows = {
        "bootstrap of the mean": (
            lambda: np.quantile(bootstrap_means(d, resamples=RESAMPLES), [0.025, 0.975]),
            lambda: bootstrap((d,), np.mean, n_resamples=RESAMPLES, method="percentile", random_state=88),
        ),
        "sign-flip permutation test": (
            lambda: sign_flip_p(d, RESAMPLES),
            lambda: permutation_test((d,), np.mean, permutation_type="samples", n_resamples=RESAMPLES, vectorized=True, rng=88),
        ),
    }
    times = {name: (cpu_ms(ours), cpu_ms(theirs)) for name, (ours, theirs) in rows.items()}
    times["both"] = tuple(map(sum, zip(*times.values(), strict=True)))
    print(f"{N} pairs, {RESAMPLES:,} resamples, CPU ms, median of {ROUNDS}")
    print(f"{'':28}{'ours':>8}{'scipy':>8}{'scipy / ours':>14}")
    for name, (ours, theirs) in times.items(): print(f"{name:28}{ours:8.1f}{theirs:8.1f}{theirs / ours:14.1f}")
    print(f"goal: both in at most {GOAL_MS:g} ms: {'met' if times['both'][0] <= GOAL_MS else 'MISSED'}")


if __name__ == "__main__": main()
