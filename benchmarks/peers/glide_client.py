"glide-py's clustered PPI++ on every study: weight of the judge, mean, standard error. Run by benchmarks/powered.py in its own environment."
import json
import sys
from pathlib import Path

import numpy as np
from glide.estimators import clustered_ppi

studies, found = json.loads(Path(sys.argv[1]).read_text("utf-8")), []
for study in studies:
    human = np.array([np.nan if x is None else x for x in study["human"]], float)
    judge, cluster = np.array(study["judge"], float), np.array(study["cluster"])
    said = clustered_ppi.ClusteredPPIMeanEstimator().estimate(human, judge, cluster).confidence_interval
    weight = clustered_ppi._compute_tuning_parameter(*clustered_ppi._preprocess(human, judge, cluster), True)  # the result does not tell it
    found.append([float(weight), float(said.mean), float(said.std)])
Path(sys.argv[2]).write_text(json.dumps(found))
