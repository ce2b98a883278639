"Studies whose truth is known: documents of unequal sizes, answers that are alike within them, differences that are rare and one-way."
import numpy as np
from scipy.special import ndtri

from distillery.core import differences as tests_of
from distillery.core.clusters import t_quantile, wilson
from distillery.core.differences import Differences, occurrence_design, summarise_differences


def document_sizes(n: int, groups: int, unequal: bool) -> np.ndarray:
    "Cases of each document: all alike, or log-normal with a standard deviation of 1."
    weight = np.exp(np.sort(ndtri((np.arange(groups) + 0.5) / groups))) if unequal else np.ones(groups)
    exact = weight / weight.sum() * n
    sizes = np.maximum(1, np.floor(exact)).astype(int)
    while sizes.sum() < n: sizes[np.argmax(exact - sizes)] += 1
    while sizes.sum() > n: sizes[np.argmax(sizes)] -= 1
    return sizes


def draw_outcomes(rng, sizes: np.ndarray, gains: float, losses: float, icc: float, studies: int) -> tuple[np.ndarray, np.ndarray]:
    "Gains and losses [studies, G] of each document: Dirichlet-multinomial, with the intraclass correlation `icc`."
    shape = (studies, len(sizes))
    if icc == 0: p, q = np.full(shape, gains), np.full(shape, losses)
    else:
        strength = 1 / icc - 1
        parts = [rng.gamma(strength * share, 1, shape) if share > 0 else np.zeros(shape) for share in (gains, losses, 1 - gains - losses)]
        total = np.maximum(sum(parts), 1e-300)
        p, q = parts[0] / total, parts[1] / total
    won = rng.binomial(sizes, np.clip(p, 0, 1))
    lost = rng.binomial(sizes - won, np.clip(np.divide(q, 1 - p, out=np.zeros(shape), where=p < 1), 0, 1))
    return won.astype(float), lost.astype(float)


def differences(won: np.ndarray, lost: np.ndarray, sizes: np.ndarray) -> tuple[Differences, float]:
    "What a study of right and wrong leaves: from the counts of each document."
    n, up, down = int(sizes.sum()), int(won.sum()), int(lost.sum())
    d = np.concatenate([np.ones(up), -np.ones(down), np.zeros(n - up - down)])
    return summarise_differences(d, (won - lost, won + lost, sizes.astype(float)), won + lost, 1.0)


def remember_designs(monkeypatch) -> None:
    "Compute the design effect of where differences occur once for studies in which they occur alike."
    known = dict[tuple, float]()

    def design(differ: np.ndarray, sizes: np.ndarray) -> float:
        there = differ > 0
        key = (len(sizes), sizes.sum(), (sizes**2).sum(), *sorted(zip(differ[there], sizes[there], strict=True)))
        if key not in known: known[key] = occurrence_design(differ, sizes)
        return known[key]

    monkeypatch.setattr(tests_of, "occurrence_design", design)


def students_half(of: Differences, se: float, confidence: float) -> float:
    "Half of the interval before the score test: Student's, or Wilson's at a correlation of .1 where nothing differs."
    z = (1 + confidence) / 2
    if of.same: return wilson(0, of.n / (1 + 0.1 * of.crowd), confidence)[1] * (1 + abs(of.mean))
    return t_quantile(of.df, z) * se


def draw_shares(rng, sizes: np.ndarray, share: float, icc: float, studies: int) -> np.ndarray:
    "Right answers [studies, G] of each document: beta-binomial."
    shape = (studies, len(sizes))
    p = np.full(shape, share) if icc == 0 else rng.beta(share * (1 / icc - 1), (1 - share) * (1 / icc - 1), shape)
    return rng.binomial(sizes, p).astype(float)
