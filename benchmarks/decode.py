"""Decoding: every exported variant beside transformers' generate on the model it came from. Greedy, with a key-value cache, the same
prompts, the same number of new tokens and of threads, one process. The clock runs from the first new token to the last.
Run: python benchmarks/decode.py [--model builtin:mini] [--rounds 7] [--prompts 6] [--tokens 64] [--threads 1]"""
import argparse
import os
import platform
import random
import tempfile
import time
from collections.abc import Sequence
from math import exp
from pathlib import Path
from typing import Any

import numpy as np

from distillery.core.stats import spread
from distillery.exporting.export import VARIANTS, build_onnx, variant_bytes
from distillery.teachers.onnx import OnnxTeacher
from distillery.teachers.open import builtin_dir
from distillery.teachers.protocol import user_request
from distillery.teachers.sampling import Sampler

GOAL = 2.0
QUESTION = "{} stands in the hall. It takes {} minutes to warm up and reads {} sheets an hour. How many sheets does it read?"


def asked(n: int) -> list[str]:
    "Prompts of different lengths."
    rng = random.Random(88)
    names = [a + b for a in ("Ra", "Mo", "Ti", "Lu", "Ke", "Zo") for b in ("ven", "rix", "dal", "pon")]
    text = lambda: QUESTION.format(rng.choice(names), rng.randint(2, 30), rng.randint(100, 900))
    return [" ".join(text() for _ in range(1 + i % 3)) for i in range(n)]


class Clock:
    "Notes when each new token came, by the wall and by the processor; transformers calls it a streamer."

    def __init__(self) -> None: self.times: list[tuple[float, float]] = []

    def put(self, value: Any) -> None: self.times.append((time.perf_counter(), time.process_time()))

    def end(self) -> None: pass

    def rates(self, first: int) -> list[float]:
        "Tokens after the first: a second, and a second of processor time, which other people's load does not touch."
        return [(len(self.times) - first - 1) / (b - a) for a, b in zip(self.times[first], self.times[-1], strict=True)]


def torch_rate(model: Any, ids: Sequence[int], tokens: int) -> tuple[list[float], list[int]]:
    "transformers' generate, as it comes."
    import torch

    clock, prompt = Clock(), torch.tensor([list(ids)])
    with torch.inference_mode():
        out = model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, use_cache=True, min_new_tokens=tokens,
                             max_new_tokens=tokens, pad_token_id=0, streamer=clock)
    return clock.rates(1), out[0, len(ids):].tolist()  # the first call brings the prompt


def onnx_rate(teacher: OnnxTeacher, prompt: str, ids: Sequence[int], tokens: int, banned: Sequence[int]) -> tuple[list[float], list[int]]:
    "Our loop, with the sampler that every answer goes through; like `min_new_tokens`, it never picks the end of an answer."
    clock, sampler, written = Clock(), Sampler(user_request("x", prompt), ids), list[int]()
    cache, new, read = teacher.decoder.start(), list(ids), 0
    while len(written) < tokens:
        logits, cache = teacher.decoder.step(new, cache, read)
        last = logits[-1].copy()
        last[list(banned)] = -np.inf
        read, new = read + len(new), [sampler.pick(last)]
        written += new
        clock.put(new)
    return clock.rates(0), written


def interval(ratios: np.ndarray) -> tuple[float, float, float]:
    "Geometric mean of the ratios [rounds, prompts], and its 95 % interval over rounds."
    s = spread(np.log(ratios).mean(1), scale=None)
    low, high = s.interval()
    return exp(s.mean), exp(low), exp(high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="builtin:mini", help="builtin:mini, builtin:tiny or a merged model's folder")
    parser.add_argument("--rounds", type=int, default=7, help="rounds; in each, everybody answers every prompt")
    parser.add_argument("--prompts", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=64, help="new tokens of each answer")
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", 1)))
    args = parser.parse_args()
    import torch
    import transformers

    torch.set_num_threads(args.threads)
    folder = builtin_dir(args.model.removeprefix("builtin:")) if args.model.startswith("builtin:") else Path(args.model)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    prompts = asked(args.prompts)
    with tempfile.TemporaryDirectory() as work:
        teachers = {v: OnnxTeacher(build_onnx(folder, Path(work, v), v), threads=args.threads) for v in VARIANTS}
        sizes = {v: variant_bytes(Path(work, v)) for v in VARIANTS}
        ids = [teachers["fp32"].chat.encode(user_request("x", p).messages) for p in prompts]
        ends = model.generation_config.eos_token_id
        banned = [ends] if isinstance(ends, int) else list(ends or [])
        rates: dict[str, list[list[list[float]]]] = {"PyTorch": [], **{v: [] for v in VARIANTS}}
        wrote: dict[str, list[list[int]]] = {}
        for k in range(-1, args.rounds):  # the first round warms up
            for name in list(rates)[:: -1 if k % 2 else 1]:
                some = [torch_rate(model, i, args.tokens) if name == "PyTorch" else onnx_rate(teachers[name], p, i, args.tokens, banned)
                        for p, i in zip(prompts, ids, strict=True)]
                wrote[name] = [w for _, w in some]
                if k >= 0: rates[name].append([r for r, _ in some])
    base = np.array(rates["PyTorch"])  # [rounds, prompts, 2]
    print(f"{args.model}: {sum(p.numel() for p in model.parameters()):,} parameters, {args.prompts} prompts of {min(map(len, ids))} to "
          f"{max(map(len, ids))} tokens, {args.tokens} new tokens, {args.rounds} rounds, {args.threads} thread(s), {platform.machine()}, "
          f"torch {torch.__version__}, transformers {transformers.__version__}, onnxruntime {teachers['fp32'].decoder.ort.__version__}")
    print(f"{'':10}{'MB':>7}{'tokens/s':>10}{'over PyTorch':>14}   95 % interval   {'per CPU s':>10}{'over PyTorch':>14}   95 % interval")
    print(f"{'PyTorch':10}{'':7}{base[..., 0].mean():10.0f}{1:14.2f}{'':19}{base[..., 1].mean():10.0f}{1:14.2f}")
    goal = ""
    for v in VARIANTS:
        found = np.array(rates[v])
        (wall, low, high), (cpu, cpu_low, cpu_high) = (interval(found[..., i] / base[..., i]) for i in (0, 1))
        print(f"{v:10}{sizes[v] / 1e6:7.2f}{found[..., 0].mean():10.0f}{wall:14.2f}   {low:5.2f} to {high:5.2f}  "
              f"{found[..., 1].mean():10.0f}{cpu:14.2f}   {cpu_low:5.2f} to {cpu_high:5.2f}")
        if v == "fp32": goal = f"goal: decoding over PyTorch, fp32: {wall:.3g}, wanted >= {GOAL:g}: {'met' if low >= GOAL else 'MISSED'}"
    same = np.mean([a == b for one, two in zip(wrote["fp32"], wrote["PyTorch"], strict=True) for a, b in zip(one, two, strict=True)])
    print(f"the same token as PyTorch's, fp32: {same:.3f} of {args.prompts * args.tokens}\n{goal}")


if __name__ == "__main__": main()
