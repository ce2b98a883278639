"nemo-evaluator's clustered interval of every study. Run by benchmarks/intervals.py in nemo-evaluator's own environment."
import json
import sys
from pathlib import Path

from nemo_evaluator.metrics.confidence import clustered_ci

studies = json.loads(Path(sys.argv[1]).read_text("utf-8"))
found = [clustered_ci(s["d"], s["cluster"]) for s in studies]
Path(sys.argv[2]).write_text(json.dumps([[c.ci_lower, c.ci_upper] for c in found]))
