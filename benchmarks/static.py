"""Static token table: texts a second beside SentenceTransformer.encode in the same process, and beside model2vec on the same files.

The table is made from the built-in embedder on first use (a minute). model2vec runs in an environment of its own, or is "not run".
Run: python benchmarks/static.py [200]
"""
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from intervals import HERE, peer_python

from distillery.filters.made import make_articles
from distillery.filters.static import MixedEncoder, StaticEncoder, static_folder
from distillery.retrieval.embed import load_model


def timed(encode, texts: list[str], rounds: int = 3) -> tuple[float, np.ndarray]:
    "Texts a second, of the best round, and the vectors."
    encode(texts[:8])
    best, vectors = 0.0, None
    for _ in range(rounds):
        start = time.perf_counter()
        vectors = encode(texts)
        best = max(best, len(texts) / (time.perf_counter() - start))
    return best, vectors


def of_model2vec(folder: Path, texts: list[str]) -> tuple[float, np.ndarray] | str:
    "The same of model2vec on the same files, or why there is nothing."
    with tempfile.TemporaryDirectory() as work:
        (Path(work) / "texts.json").write_text(json.dumps(texts))
        try:
            subprocess.run([peer_python("model2vec"), str(HERE / "peers/model2vec_client.py"), str(folder), work],
                           check=True, capture_output=True, timeout=900)
        except (OSError, subprocess.SubprocessError) as e: return f"not run ({type(e).__name__})"
        return json.loads((Path(work) / "rate.json").read_text()), np.load(Path(work) / "vectors.npy", allow_pickle=False)


def main(n: int) -> None:
    texts = [a.article.full_text for a in make_articles(n, seed=88)]
    folder = static_folder()
    static, model = StaticEncoder(folder), load_model("builtin:minilm")
    rates = {"static table": timed(static.encode, texts), "table and hashed n-grams": timed(MixedEncoder(static).encode, texts)}
    rates["SentenceTransformer.encode"] = timed(lambda some: model.encode(some, show_progress_bar=False), texts, 1)
    slow = rates["SentenceTransformer.encode"][0]
    print(f"{n} made articles of {np.mean([len(t) for t in texts]):.0f} characters, one process\n")
    print("| encoder | articles a second | times SentenceTransformer.encode |\n|---|---|---|")
    for name, (rate, _) in rates.items(): print(f"| {name} | {rate:.0f} | {rate / slow:.0f} |")
    peer = of_model2vec(folder, texts)
    if isinstance(peer, str): print(f"| model2vec, the same files | {peer} | |")
    else:
        print(f"| model2vec, the same files | {peer[0]:.0f} | {peer[0] / slow:.0f} |")
        print(f"\nlargest difference of a vector's entry to model2vec's: {np.abs(peer[1] - rates['static table'][1]).max():.1e}")


if __name__ == "__main__": main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
