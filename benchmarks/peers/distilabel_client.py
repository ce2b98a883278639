"Every prompt of a file through a distilabel pipeline. Run by benchmarks/teachers.py in distilabel's own environment."
import json
import sys
from pathlib import Path

from distilabel.models import OpenAILLM
from distilabel.pipeline import Pipeline
from distilabel.steps import LoadDataFromDicts
from distilabel.steps.tasks import TextGeneration


def main(url: str, prompts: str, work: str, batch: int) -> None:
    rows = [{"instruction": p} for p in json.loads(Path(prompts).read_text("utf-8"))]
    with Pipeline(name="bench", cache_dir=work) as pipeline:
        llm = OpenAILLM(model="gpt-4o-mini", base_url=url, api_key="none", timeout=600,
                        generation_kwargs={"temperature": 0.0, "max_new_tokens": 64})
        LoadDataFromDicts(data=rows, batch_size=batch) >> TextGeneration(llm=llm, input_batch_size=batch)
    made = pipeline.run(use_cache=True)["default"]["train"]
    print(json.dumps({"answered": sum(bool(a) for a in made["generation"])}))


if __name__ == "__main__": main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
