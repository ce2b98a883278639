"inspect_ai logs of two mock models over three epochs. Run: python make_inspect.py OUT"
import sys
from inspect_ai import Task, eval
from inspect_ai.dataset import Sample, MemoryDataset
from inspect_ai.model import get_model, ModelOutput
from inspect_ai.scorer import match
from inspect_ai.solver import solver
from items import ITEMS, answers
out = sys.argv[1]
@solver
def known(name):
    "Answer from memory, without a call to a model."
    said = {x["question"]: answers(name)[x["id"]] for x in ITEMS}
    async def solve(state, generate):
        state.output = ModelOutput.from_content(f"mockllm/{name}", said[state.input_text])
        state.completed = True
        return state
    return solve
for name in ("old", "new"):
    data = MemoryDataset([Sample(id=x["id"], input=x["question"], target=x["answer"], metadata={"page": x["page"]}) for x in ITEMS])
    for fmt, epochs, limit in [("eval", 2, None), *([("json", 1, 12)] if name == "old" else [])]:
        eval(Task(name="rooms", dataset=data, solver=known(name), scorer=match()), model=get_model(f"mockllm/{name}"),
             log_dir=f"{out}/{name}-{fmt}", log_format=fmt, epochs=epochs, limit=limit, display="none")
