"lm-evaluation-harness sample logs of two models that know answers by heart. Run: python make_lm.py OUT"
import json
import sys
from pathlib import Path
import lm_eval
from lm_eval.api.model import LM
from lm_eval.loggers import EvaluationTracker
from lm_eval.tasks import TaskManager
from items import ITEMS, answers
out = Path(sys.argv[1]); here = Path(__file__).parent / "task"; here.mkdir(exist_ok=True)
(here / "rooms.jsonl").write_text("".join(json.dumps(x) + "\n" for x in ITEMS))
(here / "rooms.yaml").write_text(f"""task: rooms
dataset_path: json
dataset_kwargs:
  data_files:
    test: {here / 'rooms.jsonl'}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs:
  until: ["\\n"]
filter_list:
  - name: plain
    filter:
      - function: take_first
  - name: digits
    filter:
      - function: regex
        regex_pattern: "([0-9]+)"
      - function: take_first
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
""")
class Known(LM):
    def __init__(self, name):
        super().__init__(); self.known = {x["question"]: answers(name)[x["id"]] for x in ITEMS}
    def loglikelihood(self, requests): raise NotImplementedError
    def loglikelihood_rolling(self, requests): raise NotImplementedError
    def generate_until(self, requests, **kw): return [self.known[r.args[0]] for r in requests]
for name in ("old", "new"):
    tracker = EvaluationTracker(output_path=str(out))
    r = lm_eval.simple_evaluate(model=Known(name), tasks=["rooms"],
                                task_manager=TaskManager(include_path=str(here), include_defaults=False),
                                log_samples=True, evaluation_tracker=tracker, bootstrap_iters=10)
    samples = r.pop("samples")
    tracker.general_config_tracker.model_name = name; tracker.general_config_tracker.model_name_sanitized = name
    tracker.save_results_aggregated(results=r, samples=samples)
    for task in r["configs"]: tracker.save_results_samples(task_name=task, samples=samples[task])
