"""Twins of real small bases: their templates write what the families document, and every step reads the same prompt and the same end."""

import json
import re
from pathlib import Path

import pytest
import yaml
from tokenizers import Tokenizer
from twins import TWINS, core_of, write_words

from distillery.core.errors import DistilleryError
from distillery.teachers.chat import STAMP, ChatTokenizer, compile_template, student_template
from distillery.teachers.protocol import Message

KEPT = yaml.safe_load(Path(__file__).parent.joinpath("data/chats.yaml").read_text("utf-8"))
CHATS = {name: [Message(role, text) for role, text in turns] for name, turns in KEPT.pop("chats").items()}
ROWS = [(family, chat, text) for family, rows in KEPT.items() for chat, text in rows.items()]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: write_words(name, tmp_path_factory.mktemp(name)) for name in TWINS}


def test_every_family_is_in_the_table():
    assert set(KEPT) == set(TWINS)


@pytest.mark.parametrize(("family", "chat", "text"), [r for r in ROWS if r[1] != "folded"], ids="-".join)
def test_a_twins_template_writes_what_its_family_documents(family, chat, text):
    marks = TWINS[family].marks
    turns = [{"role": m.role, "content": m.content} for m in CHATS[chat]]
    asked = {"enable_thinking": chat == "thinking", "strftime_now": STAMP.strftime, "bos_token": marks.bos, "eos_token": marks.eos}
    template = compile_template(TWINS[family].template)

    def written() -> str: return template.render(messages=turns, add_generation_prompt=turns[-1]["role"] != "assistant", **asked)

    if not text.startswith("refused: "): assert written() == text
    else:
        with pytest.raises(DistilleryError, match=re.escape(text.removeprefix("refused: "))): written()


@pytest.mark.parametrize(("family", "chat", "text"), [r for r in ROWS if r[1] != "thinking" and not r[2].startswith("refused")], ids="-".join)
def test_a_student_is_asked_without_thinking_on_one_date_and_told_by_the_user(folders, family, chat, text):
    turns = CHATS["system" if chat == "folded" else chat]
    assert ChatTokenizer(folders[family]).render(turns, turns[-1].role != "assistant") == text
