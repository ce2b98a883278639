"BARGAIN_R's answer on every pool: recall, share kept, labels. Run by benchmarks/prefilter.py in bargain's own environment."
import json
import sys
from pathlib import Path

import numpy as np
from BARGAIN import BARGAIN_R, Oracle, Proxy


class Known(Oracle):
    "Labels that are known, without a thread for each."

    def get_pred(self, data_records, indxs=None):
        for i in indxs: self.preds_dict[int(i)] = True
        return np.array([good[int(r)] for r in data_records])


class Signal(Proxy):
    "Signals that are known, as probabilities."

    def get_preds_and_scores(self, indxs, data_records):
        return np.ones(len(indxs), int), np.array([probability[int(r)] for r in data_records])


pools, found = json.loads(Path(sys.argv[1]).read_text("utf-8")), []
for seed, pool in enumerate(pools):
    good, probability = np.array(pool["good"], int), 1 / (1 + np.exp(-np.array(pool["signal"])))
    oracle = Known(verbose=False)
    method = BARGAIN_R(Signal(verbose=False), oracle, delta=pool["delta"], target=pool["target"], budget=pool["labels"], seed=seed)
    kept = np.array(method.process([str(i) for i in range(len(good))]), int)
    found.append([float(good[kept].sum() / good.sum()), len(kept) / len(good), oracle.get_number_preds()])
Path(sys.argv[2]).write_text(json.dumps(found))
