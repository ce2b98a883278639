"""Twins of real small bases: their templates write what the families document, and every step reads the same prompt and the same end."""

import json
import re
from pathlib import Path

import pytest
import yaml
from jinja2.sandbox import ImmutableSandboxedEnvironment
from go_template import go
from tokenizers import Tokenizer
from twins import TWINS, write_twin, write_words

from distillery.core.errors import DistilleryError
from distillery.exporting.ollama import _go_template, folder_template, turn_frames
from distillery.teachers.chat import STAMP, ChatTokenizer
from distillery.wire.template import BoundedTemplate
from distillery.teachers.local import TransformersTeacher, finish
from distillery.teachers.protocol import Message, ask_all, user_request
from distillery.teachers.sampling import Sampler

KEPT = yaml.safe_load(Path(__file__).parent.joinpath("data/chats.yaml").read_text("utf-8"))
CHATS = {name: [Message(role, text) for role, text in turns] for name, turns in KEPT.pop("chats").items()}
ROWS = [(family, chat, text) for family, rows in KEPT.items() for chat, text in rows.items()]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: write_words(name, tmp_path_factory.mktemp(name)) for name in TWINS}


def test_every_family_is_in_the_table():
    assert set(KEPT) == set(TWINS)


DOCUMENTED = [pytest.param(*r, id=f"{r[0]}-{r[1]}") for r in ROWS if r[1] != "folded"]


@pytest.mark.parametrize(("family", "chat", "text"), DOCUMENTED)
def test_a_twins_template_writes_what_its_family_documents(family, chat, text):
    marks = TWINS[family].marks
    turns = [{"role": m.role, "content": m.content} for m in CHATS[chat]]
    asked = {"enable_thinking": chat == "thinking", "strftime_now": STAMP.strftime, "bos_token": marks.bos, "eos_token": marks.eos}
    template = BoundedTemplate(TWINS[family].template)

    def written() -> str: return template.render(messages=turns, add_generation_prompt=turns[-1]["role"] != "assistant", **asked)

    if not text.startswith("refused: "): assert written() == text
    else:
        with pytest.raises(DistilleryError, match=re.escape(text.removeprefix("refused: "))): written()


ASKED = [pytest.param(*r, id=f"{r[0]}-{r[1]}") for r in ROWS if r[1] != "thinking" and not r[2].startswith("refused")]


@pytest.mark.parametrize(("family", "chat", "text"), ASKED)
def test_a_student_is_asked_without_thinking_on_one_date_and_told_by_the_user(folders, family, chat, text):
    turns = CHATS["system" if chat == "folded" else chat]
    assert ChatTokenizer(folders[family]).render(turns, turns[-1].role != "assistant") == text


@pytest.mark.parametrize("family", TWINS)
def test_ollama_reads_the_prompt_that_the_student_learnt(folders, family):
    chat, written = ChatTokenizer(folders[family]), _go_template(turn_frames(folders[family]))
    for name in ("plain", "turns", "system"): assert go(written, CHATS[name]) == chat.render(CHATS[name])
    assert {chat.decode([i], special=True) for i in chat.stop_ids} == {*TWINS[family].marks.ends, TWINS[family].marks.eos}


@pytest.mark.parametrize("family", TWINS)
def test_a_template_for_other_programs_asks_no_clock_and_does_not_think(folders, family):
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    env.globals["raise_exception"] = lambda message: pytest.fail(message)
    marks = TWINS[family].marks
    kept = {f"{name}_token": getattr(marks, name) or "" for name in ("bos", "eos", "pad", "unk")}
    template = env.from_string(folder_template(folders[family]))
    for clock in ({}, {"strftime_now": lambda form: "tomorrow", "enable_thinking": True}):
        for name in ("plain", "turns"):
            turns = [{"role": m.role, "content": m.content} for m in CHATS[name]]
            written = template.render(messages=turns, add_generation_prompt=True, **kept, **clock)
            assert written == ChatTokenizer(folders[family]).render(CHATS[name])


@pytest.mark.parametrize("family", TWINS)
def test_a_row_begins_with_the_prompt_and_ends_the_answer_by_a_stop_token(folders, family):
    chat, turns = ChatTokenizer(folders[family]), CHATS["answered"]
    row, first = chat.row(turns)
    assert row[:first] == chat.encode(turns[:1])
    end = next(i for i in range(first, len(row)) if row[i] in chat.stop_ids)
    assert chat.said(row[first:end]) == ("Nora.", "")
    bos = TWINS[family].marks.bos
    assert chat.decode(row, special=True).count(bos) == KEPT[family]["answered"].count(bos) if bos else True


def test_a_row_is_what_transformers_makes_of_the_same_file_where_it_reads_it_rightly(folders):
    from transformers import PreTrainedTokenizerFast
    for family, folder in folders.items():
        theirs, turns = PreTrainedTokenizerFast.from_pretrained(folder), CHATS["answered"]
        text = ChatTokenizer(folder).render(turns, unanswered=False)
        assert ChatTokenizer(folder).row(turns)[0] == theirs(text, add_special_tokens=False)["input_ids"], family


PROMPTED = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1].strip() }}<|im_end|>{% endfor %}"


def test_a_template_that_opens_a_thought_is_taught_to_close_it(tmp_path):
    folder = write_words("qwen3", tmp_path)
    about = json.loads((folder / "tokenizer_config.json").read_text())
    opens = PROMPTED + "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
    (folder / "tokenizer_config.json").write_text(json.dumps(about | {"chat_template": [{"name": "tools", "template": "no"},
                                                                                       {"name": "default", "template": opens}]}))
    chat = ChatTokenizer(folder)
    row, first = chat.row(CHATS["answered"])
    assert chat.decode(row[first:], special=True) == "\n</think>\n\nNora.<|im_end|>"
    assert chat.lesson([CHATS["plain"][0], Message("assistant", "e")])[1] == "\n</think>\n\ne<|im_end|>"
    assert chat.said(chat.tokens("Let me see.\n</think>\n\nNora.")) == ("Nora.", "Let me see.")
    assert chat.said(chat.tokens("Let me see, and see")) == ("", "Let me see, and see")


def test_marks_of_thought_that_are_control_tokens_are_told_from_the_answer(tmp_path):
    folder = write_words("mistral", tmp_path)
    core = Tokenizer.from_file(str(folder / "tokenizer.json"))
    core.add_special_tokens(["[THINK]", "[/THINK]"])
    core.save(str(folder / "tokenizer.json"))
    chat = ChatTokenizer(folder)
    assert chat.said(chat.tokens("[THINK]Hm.[/THINK]Nora.</s>")) == ("Nora.", "Hm.")


def test_the_end_of_a_turn_ends_an_answer_though_no_file_names_it(tmp_path):
    folder = write_words("gemma2", tmp_path)
    (folder / "generation_config.json").unlink()
    chat = ChatTokenizer(folder)
    assert {chat.decode([i], special=True) for i in chat.stop_ids} == {"<eos>", "<end_of_turn>"}


BROKEN = ["{% if %}", "{{ messages[9].content }}", "{{ 1 / 0 }}", "{{ ''.__class__.__mro__ }}", "{{ tools.x() }}"]


@pytest.mark.parametrize("template", BROKEN)
def test_a_broken_template_is_refused_and_ends_nothing(tmp_path, template):
    folder = write_words("qwen2.5", tmp_path)
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(DistilleryError, match="chat template"): ChatTokenizer(folder).render(CHATS["plain"])


LONG = "Raven 74, Mordal 12 and Kebek 15 stand in the halls of the old mill, beside the stairs. " * 3  # longer than a twin's window


@pytest.mark.parametrize("family", ["mistral", "phi-3", "gemma3"])
def test_answers_of_a_batch_are_those_of_one_prompt_alone(family, tmp_path):
    torch = pytest.importorskip("torch")
    teacher = TransformersTeacher(write_twin(family, tmp_path), device="cpu")
    machines = ("Raven 74", "Mordal", "Kebek of Hall 15")
    asked = [user_request(name, f"{LONG}Where does the {name} stand?", max_tokens=12) for name in machines]
    ends = sorted(teacher.chat.stop_ids)
    for request, result in zip(asked, ask_all(teacher, asked), strict=True):
        ids = teacher.chat.encode(request.messages)
        assert len(ids) > 60
        with torch.inference_mode():
            new = teacher.model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False, eos_token_id=ends, temperature=None,
                                         repetition_penalty=1.0)[0, len(ids):].tolist()
        assert result.text == teacher.chat.said([i for i in new if i not in teacher.chat.stop_ids])[0].strip()


@pytest.mark.parametrize("thought", ["<think>\n\n</think>\n\n", "<think>\nThe halls...\n</think>\n\n", ""])
def test_a_block_of_thought_is_taken_off_an_answer_and_its_mark_kept_apart(folders, thought):
    chat = ChatTokenizer(folders["qwen3"])
    request = user_request("q", "Where?")
    tokens = [*chat.tokens(f"{thought}Hall 3.<|im_end|>"), 7]
    result = finish(request, chat, Sampler(request, []), tokens, 5, 1.0)
    assert (result.text, result.finish_reason, result.reasoning) == ("Hall 3.", "stop", "The halls..." if "halls" in thought else "")
