"model2vec reads the table and encodes the same texts. Run by benchmarks/static.py in model2vec's own environment."
import json
import sys
import time
from pathlib import Path

import numpy as np
from model2vec import StaticModel

folder, work = Path(sys.argv[1]), Path(sys.argv[2])
texts, model, best = json.loads((work / "texts.json").read_text("utf-8")), StaticModel.from_pretrained(folder), 0.0
for _ in range(3):
    start = time.perf_counter()
    vectors = model.encode(texts, max_length=None)
    best = max(best, len(texts) / (time.perf_counter() - start))
np.save(work / "vectors.npy", vectors)
(work / "rate.json").write_text(json.dumps(best))
