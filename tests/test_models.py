"The generator, the shipped handbook, and the pre-training of the built-in models."
import json
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

import distillery
from distillery.models.handbooks import categories, draw_passage
from distillery.models.names import NAMES, VALUES
from distillery.models.questions import REFUSAL, answer_item, chat, draw_conversation, draw_talk, template_questions
from distillery.models.shipped import draw_handbook, gold_rows, write_shipped

from random import Random

HOME = Path(distillery.__file__).parent
SIZES = [size for size in ("tiny", "mini") if (HOME / "weights" / size / "model.safetensors").exists()]


def test_every_category_is_complete():
    assert len(categories()) == 32
    for c in categories().values():
        assert c.kind in NAMES
        assert c.value in VALUES
        for name, templates in c.wordings.items():
            for wording in (w for ws in templates for w in ws):
                assert ("{E}" in wording) == (name != "bridge" and not name.startswith("reverse")), (c.name, wording)
                assert ("{V}" in wording) == (name == "bridge" or name.startswith(("reverse", "said"))), (c.name, wording)
                assert not set("()|") & set(wording), (c.name, wording)


def test_no_held_out_wording_is_trained_on():
    for c in categories().values():
        for name in ("said", "easy", "medium", "reverse"):
            seen = {w for n in ("said", "easy", "medium", "reverse") for ws in c.wordings[n] for w in ws}
            assert not seen & {w for ws in c.wordings[name + "_new"] for w in ws}, (c.name, name)


def test_training_never_draws_a_held_out_template():
    new = {w.split("{E}")[0] for c in categories().values() for n in ("said_new",) for ws in c.wordings[n] for w in ws}
    old = {w.split("{E}")[0] for c in categories().values() for ws in c.wordings["said"] for w in ws}
    only_new = [w for w in new - old if len(w) > 12 and "{" not in w]
    text = "\n".join(m["content"] for i in range(400) for m in draw_conversation(f"train/{i}/0"))
    assert only_new
    assert not [w for w in only_new if f" {w}" in text]


@pytest.mark.parametrize("new", [False, True])
def test_an_answer_is_a_span_or_the_refusal(new):
    kinds = Counter()
    for i in range(600):
        rng = Random(f"span/{i}")
        passage = draw_passage(rng, rng.randint(3, 9), new)
        item = answer_item(passage, rng, new)
        kinds[item.difficulty] += 1
        assert item.reply in passage.text if item.reply != REFUSAL else item.difficulty == "refusal"
    assert set(kinds) == {"easy", "medium", "hard", "refusal"}
    assert 80 < kinds["refusal"] < 160


def test_a_question_has_one_answer_in_its_passage():
    for i in range(200):
        passage = draw_passage(Random(f"one/{i}"), 9)
        answers: dict[str, set[str]] = {}
        for fact in passage.facts:
            for slot, answer in (("easy", fact.value), ("medium", fact.value), ("reverse", fact.entity), ("hard", fact.value)):
                for question in template_questions(fact, slot, passage.facts): answers.setdefault(question, set()).add(answer)
        assert all(len(found) == 1 for found in answers.values())


def test_shipped_files_are_made_again_to_the_byte(tmp_path):
    assert write_shipped(tmp_path) == 512
    made = {p.relative_to(tmp_path): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    shipped = [*(HOME / "data" / "handbook").glob("*.md"), HOME / "data" / "gold.jsonl"]
    kept = {p.relative_to(HOME / "data"): p.read_bytes() for p in shipped}
    assert made == kept
    assert len(kept) == 49


def test_gold_agrees_with_the_pages():
    rows = [json.loads(line) for line in (HOME / "data" / "gold.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) >= 480
    assert len({r["category"] for r in rows}) == 32
    for r in rows:
        page = (HOME / "data" / "handbook" / r["page"]).read_text(encoding="utf-8")
        assert r["sentence"] in page
        assert r["answer"] in page
        assert len(set(r["wordings"])) >= 4
    shares = {k: n / len(rows) for k, n in Counter(r["difficulty"] for r in rows).items()}
    assert shares == pytest.approx({"easy": 0.417, "medium": 0.5, "hard": 0.083}, abs=0.002)
    assert gold_rows(draw_handbook()) == rows


def micro():
    pytest.importorskip("torch")
    from distillery.models.network import RECIPES
    from distillery.models.vocabulary import build_tokenizer
    recipe = replace(RECIPES["mini"], hidden=64, inner=96, vocab=400, steps=12, batch=4, warmup=4)
    return recipe, build_tokenizer(400, texts=100)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_killed_run_resumes_on_the_same_curve(tmp_path, dtype):
    from distillery.models.pretrain import train
    recipe, tokenizer = micro()
    recipe = replace(recipe, dtype=dtype)
    curves = {}
    train(recipe, tmp_path / "a", tokenizer, report=lambda s: curves.update(straight=[list(s["losses"]), s["hints"]]))
    train(recipe, tmp_path / "b", tokenizer, stop=6)
    train(recipe, tmp_path / "b", tokenizer, report=lambda s: curves.update(resumed=[list(s["losses"]), s["hints"]]))
    assert len(curves["straight"][0]) == 12
    assert {kind: len(figures) for kind, figures in curves["straight"][1].items()} == dict.fromkeys(["bind", "name", "place", "copy"], 12)
    assert curves["straight"] == curves["resumed"]


@pytest.mark.slow
def test_a_kill_while_saving_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    import distillery.models.training as training
    from distillery.models.pretrain import train
    recipe, tokenizer = micro()
    train(recipe, tmp_path, tokenizer, stop=4)
    def killed(*args): raise KeyboardInterrupt
    monkeypatch.setattr(training.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt): train(recipe, tmp_path, tokenizer, stop=8)
    monkeypatch.undo()
    steps = []
    train(recipe, tmp_path, tokenizer, stop=6, report=lambda s: steps.append(s["step"]))
    assert steps == [5, 6]


def test_batches_follow_from_their_step_alone():
    from distillery.models.pretrain import batches
    recipe, tokenizer = micro()
    def lists(batch): return [x.tolist() for x in (batch.ids, batch.weights, *batch.pairs.values())]
    whole = [lists(batch) for batch in batches(recipe, tokenizer)]
    assert [lists(batch) for batch in islice(batches(recipe, tokenizer, start=9), 3)] == whole[9:]


def test_hints_point_at_the_answer_and_never_ahead():
    from distillery.models.guidance import question_target, hints
    from distillery.models.vocabulary import encode
    _, tokenizer = micro()
    copied = 0
    for i in range(150):
        passage, items = draw_talk(f"hint/{i}")
        row = encode([chat(passage, items)], tokenizer, 0.1)[0]
        pairs = hints(row, passage, items)
        assert all(key <= query < len(row.ids) for some in pairs.values() for query, key in some)
        shown, places = items[0].task != "rephrase", dict(pairs["place"])
        about = [question_target(x, passage) for x in items if shown]
        assert len(pairs["name"]) == sum(x is not None for x in about)
        assert len(pairs["bridge"]) == sum(x is not None and x.bridge is not None for x in about)
        refused = sum(x.reply == REFUSAL for x in items if shown)
        assert list(places.values()).count(0) == refused == [key for _, key in pairs["copy"]].count(0)
        assert len(places) == len(pairs["name"]) + refused
        for query, key in [(q, k) for q, k in pairs["copy"] if k]:
            said, source = (row.text[slice(*row.offsets[t])] for t in (query + 1, key))
            assert said.strip().lower() == source.strip().lower() or query in dict(pairs["name"])
            copied += 1
        for query, _ in pairs["name"]: assert row.text[: row.offsets[query][1]].endswith("assistant\n")
    assert copied > 500


@pytest.mark.slow
def test_hints_change_the_gradients_and_not_the_loss(tmp_path):
    from distillery.models.pretrain import train
    recipe, tokenizer = micro()
    first, last = {}, {}
    for name, guidance in (("with", 0.4), ("without", 0.0)):
        def note(s, name=name):
            first.setdefault(name, s["losses"][0])
            last[name] = s["hints"]["bind"][-1]
        train(replace(recipe, guidance=guidance, dtype="float32"), tmp_path / name, tokenizer, report=note)
    assert first["with"] == first["without"]
    assert last["with"] < last["without"]


def test_processes_share_a_batch_without_changing_it():
    import numpy as np
    import torch
    from distillery.models.guidance import Guide, guided_copy
    from distillery.models.network import build_model, loss_of
    from distillery.models.pretrain import batches
    recipe, tokenizer = micro()
    recipe = replace(recipe, dtype="float32")
    batch = next(batches(recipe, tokenizer))
    model = build_model(recipe, tokenizer)
    copied = guided_copy(model, recipe)
    totals = {kind: int((x[..., 0] >= 0).sum()) for kind, x in batch.pairs.items()}
    def figures(rank, world):
        part = [torch.from_numpy(x[rank::world]) for x in (batch.ids, batch.weights, *batch.pairs.values())]
        guide = Guide(recipe.guides, dict(zip(batch.pairs, part[2:], strict=True)), totals)
        loss = loss_of(model, copied, part[0], part[1], float(batch.weights[:, 1:].sum()), guide=guide)
        return np.array([x.item() for x in (loss, *guide.losses.values())])
    assert figures(0, 2) + figures(1, 2) == pytest.approx(figures(0, 1), rel=1e-4)


def test_the_command_refuses_to_overwrite(tmp_path):
    from typer.testing import CliRunner
    from distillery.models.pretrain import app
    (tmp_path / "state.json").write_text("{}")
    assert "--resume" in str(CliRunner().invoke(app, ["--out", str(tmp_path / "new"), "--checkpoints", str(tmp_path)]).exception)
    assert "no recipe" in str(CliRunner().invoke(app, ["--out", str(tmp_path / "new"), "--size", "huge"]).exception)


def test_weights_stay_under_ten_megabytes():
    if not SIZES: pytest.skip("no weights in this checkout")
    files = [p for size in SIZES for p in (HOME / "weights" / size).rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= 10_000_000
    assert not [p.name for p in files if p.suffix in {".bin", ".pt", ".pkl", ".pth"}]


@pytest.mark.parametrize("size", SIZES)
def test_shipped_weights_load_wide_and_speak(size):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer
    model = AutoModelForCausalLM.from_pretrained(HOME / "weights" / size)
    tokenizer = AutoTokenizer.from_pretrained(HOME / "weights" / size)
    assert model.dtype == torch.float32
    assert tokenizer.padding_side in ("left", "right")
    text = tokenizer.apply_chat_template([{"role": "user", "content": "A"}, {"role": "assistant", "content": "B"}], tokenize=False)
    assert text == "<|im_start|>user\nA<|im_end|>\n<|im_start|>assistant\n B<|im_end|>\n"


@pytest.mark.slow
@pytest.mark.skipif("tiny" not in SIZES, reason="no weights in this checkout")
def test_tiny_reads():
    from distillery.models.reading import evaluate_tiny
    share = {r["measure"]: r["share"] for r in evaluate_tiny(HOME / "weights" / "tiny", n=300)}
    assert share["answer, seen"] >= 0.9
    assert share["answer, held-out"] >= 0.8
    assert share["refusal, seen"] >= 0.9
    assert share["false refusals, seen"] <= 0.05
