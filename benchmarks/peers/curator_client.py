"Every prompt of a file through curator's online backend. Run by benchmarks/teachers.py in curator's own environment."
import json
import sys
from pathlib import Path

import litellm.litellm_core_utils.default_encoding  # noqa: F401  points tiktoken at the vocabulary that litellm ships: no download
from bespokelabs import curator


class Ask(curator.LLM):
    "Sends a row's prompt, keeps the answer."

    def prompt(self, row):
        return row["prompt"]

    def parse(self, row, response):
        return {"prompt": row["prompt"], "answer": response}


def main(url: str, prompts: str, work: str, concurrency: int) -> None:
    rows = [{"prompt": p} for p in json.loads(Path(prompts).read_text("utf-8"))]
    limits = {"max_concurrent_requests": concurrency, "max_requests_per_minute": 10**7, "max_tokens_per_minute": 10**12}
    llm = Ask(model_name="gpt-4o-mini", backend="openai", generation_params={"temperature": 0.0, "max_tokens": 64},
              backend_params={"base_url": url, "api_key": "none", **limits})
    made = llm(rows, working_dir=work)
    print(json.dumps({"answered": sum(bool(a) for a in getattr(made, "dataset", made)["answer"])}))


if __name__ == "__main__": main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
