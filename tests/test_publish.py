"Publishing: what would go where, what its card says, and that no key and no path of this machine goes along. Nothing here needs a network."
import contextlib
import io
import json
import re
import shutil
from pathlib import Path

import pytest

from distillery.core.config import load_config
from distillery.core.errors import DistilleryError
from distillery.evaluation.evaluate import score_answer
from distillery.shipping.hub_card import hub_card, public_name
from distillery.training.preflight import front_matter
from distillery.shipping.publish import _holds, find_leaks, parts_of, publish, repo_names, staged
from distillery.core.words import metric_name
from distillery.evaluation.summary import METRICS, write_evaluation
from distillery.training.toy import toy_examples
from distillery.teachers.protocol import ChatResult
from distillery.commands.cli import main

NAMES = {"model.hub_id": "me/handbook", "dataset.hub_id": "me/handbook-pairs", "model.licence": "apache-2.0"}
CFG = load_config(overrides=NAMES)


@pytest.fixture
def run(tmp_path):
    "A finished run in small, with everything a training library leaves behind."
    run = tmp_path / "work/runs/aaaa"
    def put(name, text):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    for name in ("train", "validation", "test", "recall"):
        put(f"dataset/{name}.jsonl", "\n".join(e.to_line() for e in toy_examples(4, name)) + "\n")
    put("dataset/coverage.json", "{}")
    put("student/adapter/adapter_config.json", json.dumps({"r": 8, "base_model_name_or_path": str(tmp_path / "bases/base-7")}))
    put("student/adapter/adapter_model.safetensors", b"\x00weights" * 50)
    put("student/adapter/train_log.jsonl", "{}")
    put("student/adapter/training.json", json.dumps({"base": str(tmp_path)}))
    put("student/merged/config.json", json.dumps({"model_type": "qwen2", "_name_or_path": str(tmp_path / "bases/base-7")}))
    put("student/merged/model.safetensors", b"\x01weights" * 50)
    put("student/merged/tokenizer.json", "{}")
    for v in ("fp32", "q4"):
        put(f"onnx/{v}/model.onnx", b"\x02graph" * 50)
        put(f"onnx/{v}/genai_config.json", "{}")
        put(f"onnx/{v}/tokenizer.json", "{}")
        put(f"onnx/{v}/check.json", json.dumps({"folder": str(tmp_path)}))
        said = lambda i, e: ChatResult(e.id, e.answer if i % 4 else "no", "stop", latency_ms=2.0)
        rows = [score_answer(e, said(i, e), v, CFG) for i, e in enumerate(toy_examples(24, "test"))]
        write_evaluation(run / "eval" / v, v, rows, {"bytes": 300}, CFG)
    put("eval/gates.jsonl", json.dumps({"state": "FAIL", "variant": "q4", "name": "test.token_f1_min"}) + "\n")
    put("provenance.json", json.dumps({"run": "aaaa", "student base": str(tmp_path / "bases/base-7"), "source": "documents", "gold": False,
                                       "teacher": "http://gpu17.corp.example:8080/v1#qwen", "seeds": "dataset 88"}))
    put("config.json", json.dumps({"lora.r": 8, "student.base": str(tmp_path / "bases/base-7")}))
    put("manifest.json", "{}")
    return run


def everything(run, cfg=CFG):
    "Every byte that would be sent, by repository and file."
    sent = {}
    for part in parts_of(run, cfg):
        with staged(part, run) as folder:
            sent |= {f"{part.repo}/{p.relative_to(folder).as_posix()}": p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    return sent


def test_each_part_goes_to_a_repository_of_its_own(run):
    assert repo_names(CFG) == {"dataset": "me/handbook-pairs", "adapter": "me/handbook-adapter", "merged": "me/handbook",
                               "onnx": "me/handbook-onnx"}
    assert sorted(everything(run)) == sorted([
        *(f"me/handbook-pairs/{n}" for n in ("README.md", "train.jsonl", "validation.jsonl", "test.jsonl", "recall.jsonl")),
        *(f"me/handbook-adapter/{n}" for n in ("README.md", "adapter_config.json", "adapter_model.safetensors")),
        *(f"me/handbook/{n}" for n in ("README.md", "config.json", "model.safetensors", "tokenizer.json")),
        "me/handbook-onnx/README.md",
        *(f"me/handbook-onnx/{v}/{n}" for v in ("fp32", "q4") for n in ("model.onnx", "genai_config.json", "tokenizer.json"))])
    only_data = load_config(overrides={"dataset.hub_id": "me/pairs"})
    assert [p.kind for p in parts_of(run, only_data)] == ["dataset"]


@pytest.mark.parametrize("bad", ["handbook", "me/../x", "/etc/x", "me/hand book", "a/b/c", "https://hub/x"])
def test_names_are_names(bad):
    with pytest.raises(DistilleryError, match="no name on the hub"): repo_names(load_config(overrides={"model.hub_id": bad}))
    with pytest.raises(DistilleryError, match="nothing says where"): repo_names(load_config())


def test_no_key_and_no_path_goes_along(run, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_SERVICE_KEY", "planted-value-of-a-key-4711")
    sent = everything(run)
    for name, data in sent.items():
        for word in (str(tmp_path), str(run), str(Path.cwd()), f"{Path.home()}/", "planted-value-of-a-key-4711", "corp.example", "gpu17"):
            assert word.encode() not in data, f"{name} holds {word}"
    assert json.loads(sent["me/handbook-adapter/adapter_config.json"]) == {"r": 8, "base_model_name_or_path": "base-7"}
    assert json.loads(sent["me/handbook/config.json"])["_name_or_path"] == "base-7"


LEAKS = {"value": b"planted-value-of-a-key-4711", "hub": b"hf_" + b"a1B2" * 9, "openai": b"sk-proj-" + b"x" * 40,
         "github": b"ghp_" + b"Z" * 36, "aws": b"AKIA" + b"Q" * 16, "pem": b"-----BEGIN RSA PRIVATE KEY-----"}


@pytest.mark.parametrize("leak", [*LEAKS, "path"])
@pytest.mark.parametrize("file", [
    "dataset/train.jsonl", "student/merged/model.safetensors", "onnx/q4/model.onnx", "student/merged/tokenizer.json"])
def test_a_planted_leak_stops_everything_and_is_not_printed(run, monkeypatch, leak, file):
    monkeypatch.setenv("MY_SERVICE_KEY", "planted-value-of-a-key-4711")
    secret = LEAKS.get(leak) or f"{run.resolve()}/notes.txt".encode()
    with (run / file).open("ab") as f: f.write(b'\n{"question": "' + secret + b'"}\n')
    with pytest.raises(DistilleryError, match="should stay here") as stopped: publish(parts_of(run, CFG), run, CFG, dry_run=True)
    assert Path(file).name in stopped.value.message
    assert secret.decode() not in str(stopped.value)


def test_a_leak_across_two_blocks_is_seen(tmp_path):
    (tmp_path / "big").write_bytes(b"x" * 995 + b"hf_secret" + b"y" * 500)
    assert _holds(tmp_path / "big", re.compile(b"hf_secret"), size=1000)
    assert find_leaks(tmp_path, tmp_path) == ["big holds a hub token"]


def test_a_card_says_base_licence_data_figures_and_limits(run):
    cards = {p.kind: p.card for p in parts_of(run, CFG)}
    for kind, card in cards.items():
        for head in ("## Base and licence", "## Data", "## Figures", "## Limits", "## Use"): assert head in card, kind
        assert "base-7 (a local folder)" in card
        assert "`qwen at a chat server`" in card
        assert "4 train" in card
    meta = front_matter(cards["merged"])
    assert (meta["license"], meta["library_name"], meta["datasets"]) == ("apache-2.0", "transformers", ["me/handbook-pairs"])
    assert front_matter(cards["dataset"])["license"] == "other"
    assert "none is stated yet" in cards["dataset"]
    assert all(metric_name(metric) in cards["onnx"] for metric in METRICS)
    assert "0.75 [" in cards["onnx"]
    assert "n = 24" in cards["onnx"]
    assert "FAIL: q4 token F1 on test" in cards["onnx"]


def test_foreign_text_in_a_card_is_text(run):
    facts = json.loads((run / "provenance.json").read_text()) | {"source": "# Owned\n---\n<script>`x`</script>"}
    (run / "provenance.json").write_text(json.dumps(facts))
    card = hub_card("onnx", "me/x", run, CFG, ["q4"])
    assert [line for line in card.splitlines() if line.startswith("# ")] == ["# x"]
    assert card.splitlines().count("---") == 2


def test_names_lose_their_places(tmp_path):
    assert public_name("Qwen/Qwen2.5-0.5B") == "Qwen/Qwen2.5-0.5B"
    assert public_name(str(tmp_path / "x")) == "x (a local folder)"
    assert public_name("onnx:/srv/a/b") == "b (a local folder)"
    assert public_name("batch:/srv/jobs#gpt") == "gpt at a chat server"


class Hub:
    "What is asked of the hub, and nothing sent."
    public = False

    def __init__(self, token): self.token, self.asked = token, []

    def create_repo(self, repo, **how): self.asked.append(("create", repo, how))

    def repo_info(self, repo, **how): return type("Info", (), {"private": not Hub.public})()

    def upload_folder(self, *, repo_id, folder_path, **how):
        self.asked.append(("upload", repo_id, how, sorted(p.name for p in Path(folder_path).rglob("*") if p.is_file())))
        return type("Sent", (), {"commit_url": f"https://hub/{repo_id}"})()


@pytest.fixture
def hub(monkeypatch):
    import huggingface_hub
    made = []
    def api(token):
        made.append(Hub(token))
        return made[-1]
    monkeypatch.setattr(huggingface_hub, "HfApi", api)
    Hub.public = False
    return made


def test_what_is_sent_is_private_and_complete(run, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_only_in_the_environment")
    done = publish(parts_of(run, CFG), run, CFG)
    asked = hub[0].asked
    assert hub[0].token == "hf_only_in_the_environment"
    assert {a[2]["private"] for a in asked if a[0] == "create"} == {True}
    assert {a[1]: a[2]["repo_type"] for a in asked if a[0] == "upload"} == {
        "me/handbook-pairs": "dataset", "me/handbook-adapter": "model", "me/handbook": "model", "me/handbook-onnx": "model"}
    assert [d["url"] for d in done] == [f"https://hub/{d['repo']}" for d in done]
    open_to_all = load_config(overrides={**NAMES, "model.private": False})
    publish(parts_of(run, open_to_all), run, open_to_all)
    assert {a[2]["private"] for a in hub[1].asked if a[0] == "create"} == {False}


def test_a_public_repository_does_not_take_what_shall_be_private(run, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    Hub.public = True
    with pytest.raises(DistilleryError, match="already and public"): publish(parts_of(run, CFG), run, CFG)
    assert not [a for a in hub[0].asked if a[0] == "upload"]


def test_without_a_token_nothing_is_tried_and_errors_hide_it(run, hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(DistilleryError, match="no token"): publish(parts_of(run, CFG), run, CFG)
    assert hub == []
    monkeypatch.setenv("HF_TOKEN", "hf_secret_token_value")
    def refuse(self, repo, **how): raise RuntimeError("401 for hf_secret_token_value")
    monkeypatch.setattr(Hub, "create_repo", refuse)
    with pytest.raises(DistilleryError, match="did not take") as refused: publish(parts_of(run, CFG), run, CFG)
    assert "hf_secret" not in str(refused.value)


def test_the_dry_run_shows_files_sizes_and_cards_and_sends_nothing(run, hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    out = io.StringIO()
    sets = [x for k, v in NAMES.items() for x in ("--set", f"{k}={v}")]
    with contextlib.chdir(run.parents[1]), contextlib.redirect_stdout(out), pytest.raises(SystemExit) as left:
        main(["publish", "--run", "aaaa", "--dry-run", *sets])
    said = out.getvalue()
    assert (left.value.code or 0) == 0
    assert hub == []
    assert "onnx would go to me/handbook-onnx, private" in said
    assert "q4/model.onnx" in said
    assert "300 bytes" in said
    assert "## Limits" in said
    assert str(run.parents[2]) not in said


def test_a_run_without_a_student_is_named(tmp_path):
    (tmp_path / "aaaa").mkdir()
    with pytest.raises(DistilleryError, match="has none of"): parts_of(tmp_path / "aaaa", CFG)


def test_a_real_run_is_clean(tmp_path):
    "The run kept with the tests, as far as it goes: its cards name no place."
    kept = Path(__file__).parent / "data/run"
    shutil.copytree(kept, tmp_path / "run")
    card = hub_card("onnx", "me/x", tmp_path / "run", CFG, ["fp32", "int8", "uint8", "q4"])
    assert "builtin:mini" in card
    assert "licence: `apache-2.0`" in card
    assert str(tmp_path) not in card
