"ragas tables of two systems, scored without a model. Run: python make_ragas.py OUT"
import sys
from pathlib import Path
from ragas import EvaluationDataset, SingleTurnSample, evaluate
from ragas.metrics import ExactMatch, NonLLMStringSimilarity
from items import ITEMS, answers
out = Path(sys.argv[1]); out.mkdir(exist_ok=True)
for name in ("old", "new"):
    said = answers(name)
    data = EvaluationDataset(samples=[SingleTurnSample(user_input=x["question"], response=said[x["id"]],
                                                       reference=x["answer"],
                                                       retrieved_contexts=[f"{x['page']}: machine {x['id'][1:]}"]) for x in ITEMS])
    found = evaluate(data, metrics=[ExactMatch(), NonLLMStringSimilarity()], show_progress=False)
    found.to_pandas().to_csv(out / f"{name}.csv", index=False)
