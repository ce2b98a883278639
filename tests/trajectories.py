"""Whole trajectories of looks at clustered differences: how often they err, and how much they save. Run: python tests/trajectories.py 2000

Documents hold 1 to 40 questions; what a document gains and loses is drawn for each of them, so that its questions are alike.
"""
import sys
from math import sqrt

import numpy as np

from distillery.core.stats import SHARE, paired_contrast
from distillery.core.verdicts import gate, verdict
from distillery.questions.looks import gate_at, look_at, nominal_levels
from distillery.questions.needed import needed

DOCUMENTS, LIKENESS, DIFFER, MARGIN = 60, 0.2, 0.3, 0.15


def study(rng, mean, documents=DOCUMENTS, likeness=LIKENESS):
    "Differences of right and wrong, one way more often than the other, and the document of each."
    sizes = np.clip(np.round(np.exp(rng.normal(2.0, 0.6, documents))), 1, 40).astype(int)
    shares = rng.dirichlet(np.array([(DIFFER + mean) / 2, (DIFFER - mean) / 2, 1 - DIFFER]) * (1 - likeness) / likeness, documents)
    document = np.repeat(np.arange(documents), sizes)
    u = rng.random(len(document))
    gain, loss = shares[document, 0], shares[document, 1]
    return np.where(u < gain, 1.0, np.where(u < gain + loss, -1.0, 0.0)), document


def trajectory(rng, mean, looks, documents=DOCUMENTS, margin=MARGIN, resamples=9_999):
    "The verdict of a study that is looked at so many times, and the share of its documents that it took."
    d, document = study(rng, mean, documents)
    shares = ()
    for k in range(1, looks + 1):
        n = round(documents * k / looks)
        if n < 6: continue
        shares = (*shares, n / documents)
        kept = document < n
        level = 1 - nominal_levels(shares)[-1]
        c = paired_contrast(np.maximum(d[kept], 0), np.maximum(-d[kept], 0), document[kept], confidence=min(level, 1 - 1e-12),
                            resamples=resamples, seed=int(rng.integers(2**31)), levels=("new", "old"), scale=SHARE)
        word = look_at(c.model_copy(update={"confidence": 0.95}), shares, margin)
        if word != "undecided": return word if word == "equivalent" else f"{word} {'+' if c.diff > 0 else '-'}", n / documents
    return "undecided", 1.0


def gated(rng, mean, looks, documents=DOCUMENTS, margin=MARGIN):
    "A gate that is looked at so many times, the share of documents it took, and a gate on a threshold that is just met, where it stopped."
    d, document = study(rng, mean, documents)
    shares = ()
    for k in range(1, looks + 1):
        n = round(documents * k / looks)
        shares = (*shares, n / documents)
        kept, level = document < n, min(1 - nominal_levels(shares)[-1], 1 - 1e-12)
        if n < 2: continue
        c = paired_contrast(np.maximum(d[kept], 0), np.maximum(-d[kept], 0), document[kept], confidence=level, resamples=99, scale=SHARE)
        state = gate_at(c, margin)
        if state != "undecided": break
    met = gate("share", "new", np.maximum(d[kept], 0), (DIFFER + mean) / 2, "min", document[kept], level).state
    return state, n / documents, met


def gate_errors(looks, simulations, seed=88):
    "Shares of PASS and of FAIL where the loss is the margin, and of PASS and of FAIL against a threshold that is just met."
    found = [gated(np.random.default_rng([seed, 4, i, looks]), -MARGIN, looks) for i in range(simulations)]
    share = lambda at, word: sum(f[at] == word for f in found) / simulations
    return share(0, "PASS"), share(0, "FAIL"), share(2, "PASS"), share(2, "FAIL")


def gate_saving(looks, simulations, seed=88):
    "Mean share of documents that need not be measured where the new one gains the margin: twice the margin from what would fail it."
    return 1 - float(np.mean([gated(np.random.default_rng([seed, 5, i, looks]), MARGIN, looks)[1] for i in range(simulations)]))


def errors(looks, simulations, seed=88):
    "Shares of false verdicts: `better` where nothing differs, `equivalent` where the difference is the margin."
    word = lambda mean, i: trajectory(np.random.default_rng([seed, i, looks]), mean, looks)[0]
    words = {mean: [word(mean, i) for i in range(simulations)] for mean in (0.0, MARGIN)}
    return (sum(w.startswith("better") for w in words[0.0]) / simulations,
            sum(w in ("equivalent", "better -") for w in words[MARGIN]) / simulations)


def detectable(seed=88):
    "The difference that one look at all documents finds four times in five."
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(60):
        d, document = study(rng, 0.0)
        found.append(paired_contrast(np.maximum(d, 0), np.maximum(-d, 0), document, resamples=99, scale=SHARE).mde)
    return float(np.median(found))


def saving(looks, simulations, seed=88):
    "Mean share of documents that need not be measured, at twice the detectable difference."
    effect = min(2 * detectable(), DIFFER - 0.01)
    taken = [trajectory(np.random.default_rng([seed, 1, i, looks]), effect, looks)[1] for i in range(simulations)]
    return 1 - float(np.mean(taken))


def decided(simulations, pilot=36, margin=0.08, seed=88):
    "Shares of studies of the size that `needed` names, from a pilot of their own, which are decided: systems alike, and the margin apart."
    found = {0.0: [], margin: []}
    for i in range(simulations):
        for truth, ends in found.items():
            rng = np.random.default_rng([seed, 2, i])
            n = needed(contrast(*study(rng, 0.0, pilot)), margin).clusters
            c = contrast(*study(rng, truth, n))
            ends.append(not verdict(c, margin)[0].startswith("undecided"))
    return tuple(float(np.mean(ends)) for ends in found.values())


def contrast(d, document):
    "The comparison of a study."
    return paired_contrast(np.maximum(d, 0), np.maximum(-d, 0), document, resamples=999, levels=("new", "old"), scale=SHARE)


def most(simulations, level=0.05):
    "Errors that a level and three Monte Carlo errors allow."
    return level + 3 * sqrt(level * (1 - level) / simulations)


if __name__ == "__main__":
    n = int(sys.argv[1])
    print(f"{n} trajectories a cell, {DOCUMENTS} documents, correlation {LIKENESS}, margin {MARGIN}; at most {most(n):.4f} allowed")
    print("| looks | false `better` | false `equivalent` | documents saved at twice the detectable effect |\n|---|---|---|---|")
    for looks in (5, 10, 20):
        better, alike = errors(looks, n)
        print(f"| {looks} | {better:.4f} | {alike:.4f} | {100 * saving(looks, max(100, n // 5)):.0f} % |", flush=True)
    print(f"\ngates: at most {most(n, 0.025):.4f} allowed\n| looks | PASS at a loss of the margin | FAIL at it | PASS, threshold just met "
          "| FAIL, threshold just met | documents saved at a gain of the margin |\n|---|---|---|---|---|---|")
    for looks in (5, 10, 20):
        shares = " | ".join(f"{share:.4f}" for share in gate_errors(looks, n))
        print(f"| {looks} | {shares} | {100 * gate_saving(looks, max(100, n // 5)):.0f} % |", flush=True)
