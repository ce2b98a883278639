"""The matrix of bases: a twin of every family goes the whole way of a student. `make bases`, or `python tests/bases.py`.

preflight -> train -> merge -> four variants -> check -> ask -> GGUF -> package. A base that cannot go it is refused by its preflight,
before anything is trained; a step that fails behind the preflight is a defect, and this program ends with 1. What is done is kept by
twin, and not done again while neither the package nor this file nor the twins have changed. The page lies in reports/, the figures
behind it in reports/bases.json.
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from twins import TWINS, write_twin

from distillery.core.config import load_config
from distillery.core.errors import DistilleryError
from distillery.core.files import atomic_write, digest_json, digest_tree
from distillery.core.knobs import Config
from distillery.core.numbers import Number, address, number, percent
from distillery.core.table import Column, Table
from distillery.core.words import sentence
from distillery.exporting.check import evaluation_texts
from distillery.exporting.export import VARIANTS, build_onnx, variant_bytes
from distillery.exporting.fidelity import measure_fidelity
from distillery.exporting.gguf import export_gguf
from distillery.exporting.graph import ExportError
from distillery.exporting.merge import merge_adapter
from distillery.pages.html import finding, note, page, table
from distillery.shipping.package import Story, package_variant, verify_package
from distillery.teachers.chat import ChatTokenizer
from distillery.teachers.local import TransformersTeacher
from distillery.teachers.onnx import OnnxTeacher
from distillery.teachers.protocol import ask_all, user_request
from distillery.training.exporters import sibling_python
from distillery.training.preflight import LENIENT, preflight
from distillery.training.sft import train_adapter
from distillery.training.toy import toy_examples

ROOT = Path(__file__).resolve().parents[1]
QUICK = {"sft.batch_size": 12, "sft.gradient_accumulation": 1, "sft.learning_rate": 1e-2, "sft.packing": False,
         "sft.dataloader_num_workers": 0, "sft.save_strategy": "no", "lora.r": 16, "lora.alpha": 32, "export.check_positions": 120}
JOINED = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]  # as the preflight tells people whose base has no q_proj
ANSWER = 24  # tokens
WIDE = {"qwen2.5": 256}  # the twin that llama.cpp can store in 4 bits


def settings(name: str, base: Path, epochs: int) -> Config:
    "Settings of a twin: a short training; what decides over exports is as shipped."
    joined = {"lora.target_modules": JOINED} if TWINS[name].config == "Phi3Config" else {}
    kinds = ["f16", "q8_0"] + ["q4_k_m"] * (name in WIDE and bool(find_spec("llama_cpp") or sibling_python("llama")))
    return load_config(overrides={**QUICK, **joined, "sft.epochs": epochs, "student.base": str(base), "export.gguf": kinds})


@dataclass
class Way:
    "A twin on its way: its folder, and what each step made of it."
    name: str
    folder: Path
    facts: int = 12
    variants: Sequence[str] = VARIANTS
    epochs: int = 100

    @cached_property
    def base(self) -> Path: return write_twin(self.name, self.folder / "base", hidden=WIDE.get(self.name, 64))

    @cached_property
    def cfg(self) -> Config: return settings(self.name, self.base, self.epochs)

    @cached_property
    def examples(self) -> list[Any]: return toy_examples(self.facts)

    @property
    def merged(self) -> Path: return self.folder / "merged"

    def answers(self, teacher: Any) -> list[str]:
        asked = [user_request(e.id, e.question, max_tokens=ANSWER) for e in self.examples]
        results = ask_all(teacher, asked)
        wrong = [r.error for r in results if r.error]
        if wrong: raise DistilleryError(wrong[0])
        return [r.text for r in results]

    @cached_property
    def said(self) -> list[str]:
        "Greedy answers of the student in PyTorch."
        return self.answers(TransformersTeacher(self.merged, device="cpu"))


def look(way: Way) -> dict[str, Any]:
    found = preflight(way.base, way.cfg, way.cfg.export.backend, way.cfg.export.gguf)
    bad = [f for f in found if not f.ok and f.name not in LENIENT]
    if bad: raise DistilleryError("; ".join(f"{f.name}: {f.found}" for f in bad), "; ".join(f.fix for f in bad))
    return {"parameters": next(f.found for f in found if f.name == "size")}


def train(way: Way) -> dict[str, Any]:
    log = train_adapter(way.examples, [], way.base, way.cfg, way.folder / "adapter", way.folder / "checkpoints")
    return {"steps": log.steps, "loss": round(log.final_loss, 4)}


def merge(way: Way) -> dict[str, Any]:
    merge_adapter(way.base, way.folder / "adapter", way.merged)
    before = way.answers(TransformersTeacher(way.base, device="cpu"))
    changed = sum(a != b for a, b in zip(before, way.said, strict=True)) / len(before)
    if changed < 0.5: raise DistilleryError(f"training changed {changed:.0%} of the answers")
    return {"changed": changed, "right": sum(a == e.answer for a, e in zip(way.said, way.examples, strict=True)) / len(before)}


def variant(kind: str) -> Callable[[Way], dict[str, Any]]:
    def export(way: Way) -> dict[str, Any]:
        out = way.folder / kind
        build_onnx(way.merged, out, kind, None if kind == "fp32" else way.cfg.quantization, way.cfg.export.backend)
        return {"by": json.loads((out / "export.json").read_text()).get("backend", "genai"), "bytes": variant_bytes(out)}
    return export


def check(way: Way) -> dict[str, Any]:
    folders = {v: way.folder / v for v in way.variants if (way.folder / v / "model.onnx").is_file()}
    try: measure_fidelity(way.merged, folders, evaluation_texts(way.examples), way.cfg)
    except ExportError:
        if not json.loads((way.folder / "fp32/check.json").read_text())["ok"]: raise
    told = {v: json.loads((f / "check.json").read_text()) for v, f in folders.items()}
    return {"same_top1": {v: t["same_top1"] for v, t in told.items()}, "positions": told["fp32"]["n_positions"]}


def ask(way: Way) -> dict[str, Any]:
    written = {v: way.answers(OnnxTeacher(way.folder / v)) for v in way.variants if (way.folder / v / "model.onnx").is_file()}
    share = {v: sum(a == b for a, b in zip(texts, way.said, strict=True)) / len(texts) for v, texts in written.items()}
    stops = {v: ChatTokenizer(way.folder / v).stop_ids for v in written}
    if share["fp32"] < 1: raise DistilleryError(f"fp32 answers as PyTorch does in {share['fp32']:.0%} of cases")
    if set(stops.values()) != {ChatTokenizer(way.base).stop_ids}: raise DistilleryError("an answer ends by other tokens in the exports")
    if any("think>" in t for texts in written.values() for t in texts): raise DistilleryError("an answer holds a thought")
    return {"as_torch": share}


def gguf(way: Way) -> dict[str, Any]:
    checks = export_gguf(way.merged, way.folder / "gguf", way.cfg.export.gguf, evaluation_texts(way.examples), way.cfg)
    return {"same_top1": {c.variant.removeprefix("gguf-"): c.same_top1 for c in checks}}


def pack(way: Way) -> dict[str, Any]:
    story = Story(way.name, "none: random weights", "Twelve invented machines.", {}, {"twin": way.name})
    extras = {f"gguf/{p.name}": p for p in (way.folder / "gguf").glob("*") if p.is_file() and p.suffix != ".json"}
    out = package_variant(way.folder / "q4", way.merged, way.folder / "package", story, "none\n", extras)
    wrong = verify_package(out)
    if wrong: raise DistilleryError(wrong[0])
    if way.answers(OnnxTeacher(out)) != way.answers(OnnxTeacher(way.folder / "q4")): raise DistilleryError("the package answers otherwise")
    return {"files": len([p for p in out.rglob("*") if p.is_file()]), "bytes": sum(p.stat().st_size for p in out.rglob("*") if p.is_file())}


STEPS: dict[str, Callable[[Way], dict[str, Any]]] = {
    "preflight": look, "train": train, "merge": merge, **{v: variant(v) for v in VARIANTS}, "check": check, "ask": ask, "GGUF": gguf,
    "package": pack}
NEEDED = ("preflight", "train", "merge", "fp32")


def go(way: Way, steps: Sequence[str] = tuple(STEPS)) -> dict[str, dict[str, Any]]:
    "The steps of a twin: each ok with its figures, or refused or failed with the reason; what cannot be tried is not there."
    cells: dict[str, dict[str, Any]] = {}
    for step in steps:
        try: cells[step] = {"state": "ok", **STEPS[step](way)}
        except DistilleryError as e: cells[step] = {"state": "refused" if step == "preflight" else "failed", "why": e.message, "fix": e.fix}
        except Exception as e: cells[step] = {"state": "failed", "why": f"{type(e).__name__}: {e}".split("\n")[0][:300]}
        if step in NEEDED and cells[step]["state"] != "ok": break
    return cells


def kept(name: str, work: Path, again: bool) -> dict[str, dict[str, Any]]:
    "Cells of a twin: those of an earlier call, or made now."
    folder = work / name
    code = digest_json([digest_tree(ROOT / "distillery"), *(Path(__file__).with_name(f).read_text() for f in ("twins.py", "bases.py"))])
    file = folder / "cells.json"
    if file.is_file() and not again:
        told = json.loads(file.read_text("utf-8"))
        if told["code"] == code: return dict(told["cells"])
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    cells = go(Way(name, folder))
    atomic_write(file, json.dumps({"code": code, "cells": cells}, indent=1) + "\n")
    return cells


# the page

COLUMNS = [Column("base"), Column("student, exporter"), Column("right", "number"), Column("int8", "number"), Column("uint8", "number"),
           Column("q4", "number"), Column("fp32 as PyTorch", "number"), Column("GGUF"), Column("package"), Column("what stopped it")]


def row(name: str, cells: dict[str, dict[str, Any]]) -> dict[str, Any]:
    "What the page says of a twin."
    def at(*path: str) -> str: return address("bases.json", name, *path)

    def share(*path: str) -> Number | None:
        value: Any = cells
        for step in path: value = value.get(step, {}) if isinstance(value, dict) else {}
        return percent(value, src=at(*path)) if isinstance(value, float) else None

    stopped = next(((step, c) for step, c in cells.items() if c["state"] != "ok"), None)
    kinds = cells.get("GGUF", {}).get("same_top1", {})
    return {"base": Number(name, src=at("name")), "student, exporter": cells.get("fp32", {}).get("by"), "right": share("merge", "right"),
            **{v: share("check", "same_top1", v) for v in ("int8", "uint8", "q4")}, "fp32 as PyTorch": share("ask", "as_torch", "fp32"),
            "GGUF": Number(", ".join(kinds), src=at("GGUF", "kinds")) if kinds else None, "package": cells.get("package", {}).get("state"),
            "what stopped it": Number(f"{stopped[0]} {stopped[1]['state']}: {stopped[1]['why']}", src=at("stopped")) if stopped else None}


def stored(every: dict[str, dict[str, dict[str, Any]]]) -> dict[str, Any]:
    "The figures of the page: cells, and the texts in which numerals stand."
    told: dict[str, Any] = {}
    for name, cells in every.items():
        stopped = next((f"{step} {c['state']}: {c['why']}" for step, c in cells.items() if c["state"] != "ok"), None)
        kinds = ", ".join(cells.get("GGUF", {}).get("same_top1", {}))
        told[name] = {**cells, "name": name, "stopped": stopped, "GGUF": {**cells.get("GGUF", {}), "kinds": kinds}}
    asked = [n for n, cells in every.items() if cells.get("ask", {}).get("state") == "ok"]
    written = [n for n, cells in every.items() if {"f16", "q8_0"} <= set(cells.get("GGUF", {}).get("same_top1", {}))]
    return {**told, "summary": {"bases": len(every), "asked": len(asked), "refused": len(every) - len(asked), "gguf": len(written)}}


def table_of(every: dict[str, dict[str, dict[str, Any]]]) -> Table:
    return Table.of([row(name, cells) for name, cells in every.items()], COLUMNS,
                    "Right answers in PyTorch; the likeliest token kept by each small form; fp32 answers equal to PyTorch's")


def write_page(every: dict[str, dict[str, dict[str, Any]]], out: Path) -> Path:
    "Write bases.html and bases.json."
    figures = stored(every)
    atomic_write(out / "bases.json", json.dumps(figures, indent=1) + "\n")
    told = {k: number(v, src=address("bases.json", "summary", k)) for k, v in figures["summary"].items()}
    lead = sentence("{asked} of {bases} bases go from preflight to answers; GGUF in f16 and q8_0 is written of {gguf}.", **told)
    small = ("Twins of the families: their configurations, tokenizers and chat templates at random weights. Each was trained on a few "
             "invented facts, merged, exported, checked, asked, written as GGUF and packaged. What is refused is refused by the preflight, "
             "before anything is trained.")
    return atomic_write(out / "bases.html", page("Bases", "".join([finding(lead), note(small), table(table_of(every))])))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("twins", nargs="*", help=f"some of {', '.join(TWINS)}; all by default, and only then the page is written")
    parser.add_argument("--work", type=Path, default=ROOT / ".distillery/bases", help="where they are made and kept")
    parser.add_argument("--out", type=Path, default=ROOT / "reports", help="where the page goes")
    parser.add_argument("--again", action="store_true", help="make them again")
    told = parser.parse_args()
    every: dict[str, dict[str, dict[str, Any]]] = {}
    for name in told.twins or TWINS:
        began = time.perf_counter()
        every[name] = kept(name, told.work, told.again)
        bad = [f"{step} {c['state']}: {c['why']}" for step, c in every[name].items() if c["state"] != "ok"]
        sys.stdout.write(f"{name}: {'; '.join(bad) or 'all steps'} ({time.perf_counter() - began:.0f} s)\n")
        sys.stdout.flush()
    if not told.twins: write_page(every, told.out)
    sys.stdout.write("\n".join(table_of(every).markdown().splitlines()) + "\n")
    return int(any(c["state"] == "failed" for cells in every.values() for c in cells.values()))


if __name__ == "__main__": sys.exit(main())
