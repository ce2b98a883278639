"inspect_ai's clustered interval of every study. Run by benchmarks/intervals.py in inspect_ai's own environment."
import json
import sys
from pathlib import Path

from inspect_ai.scorer import SampleScore, Score, ci

interval = ci(cluster="document")
studies, found = json.loads(Path(sys.argv[1]).read_text("utf-8")), []
for s in studies:
    scores = [SampleScore(score=Score(value=d), sample_metadata={"document": c}) for d, c in zip(s["d"], s["cluster"], strict=True)]
    ends = interval(scores)
    found.append([ends["lower"], ends["upper"]])
Path(sys.argv[2]).write_text(json.dumps(found))
