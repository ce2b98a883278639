"Secrets and personal data: planted ones of every kind are found, manuals stay quiet, and what is done about them is what the setting says."
import base64
import json
import random
import string
import tarfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import phonenumbers
import pytest
from stdnum import iban, luhn

from distillery.core.config import load_config
from distillery.core.errors import DistilleryError
from distillery.core.records import Chunk, Pair
from distillery.core.store import read_jsonl, write_jsonl
from distillery.engine.source import open_source
from distillery.pairs.stages import pairs_stages
from distillery.selection.scan import Finding, scan_text

AUDIO = Path(__file__).resolve().parents[2] / "shared/data/audio_docs/audio_docs.tar.gz"
MIXED, LOWER, UPPER = string.ascii_letters + string.digits, string.ascii_lowercase + string.digits, string.ascii_uppercase + string.digits


def drawn(rng, letters, n): return "".join(rng.choices(letters, k=n))


def token(rng):
    "A JSON web token."
    part = lambda value: base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")
    return f"{part({'alg': 'HS256', 'typ': 'JWT'})}.{part({'sub': drawn(rng, LOWER, 9)})}.{drawn(rng, MIXED, 43)}"


KEYS = {
    "AWS key": lambda r: "AKIA" + drawn(r, UPPER, 16), "GitHub token": lambda r: r.choice(["ghp_", "gho_", "ghs_"]) + drawn(r, MIXED, 36),
    "GitLab token": lambda r: "glpat-" + drawn(r, MIXED, 20), "Stripe key": lambda r: r.choice("rs") + "k_live_" + drawn(r, MIXED, 24),
    "Slack token": lambda r: f"xoxb-{drawn(r, string.digits, 12)}-{drawn(r, string.digits, 12)}-{drawn(r, LOWER, 24)}",
    "OpenAI key": lambda r: f"sk-proj-{drawn(r, MIXED, 20)}T3BlbkFJ{drawn(r, MIXED, 20)}",
    "SendGrid key": lambda r: f"SG.{drawn(r, MIXED, 22)}.{drawn(r, MIXED, 43)}", "Twilio key": lambda r: "SK" + drawn(r, LOWER, 32),
    "PyPI token": lambda r: "pypi-AgEIcHlwaS5vcmc" + drawn(r, MIXED, 90), "JSON web token": token,
    "Mailchimp key": lambda r: f"{drawn(r, 'abcdef' + string.digits, 32)}-us{r.randint(1, 20)}",
    "private key": lambda r: f"-----BEGIN {r.choice(['RSA ', 'EC ', 'OPENSSH ', ''])}PRIVATE KEY-----\n{drawn(r, MIXED, 64)}",
    "Azure storage key": lambda r: f"AccountKey={drawn(r, MIXED, 86)}==", "Square token": lambda r: "sq0csp-" + drawn(r, MIXED, 43),
    "login in an address": lambda r: f"https://{drawn(r, LOWER, 5)}:{drawn(r, MIXED, 12)}@host.invalid/x",
    "Hugging Face token": lambda r: "hf_" + drawn(r, string.ascii_letters, 34), "Google key": lambda r: "AIza" + drawn(r, MIXED, 35),
    "Anthropic key": lambda r: f"sk-ant-api03-{drawn(r, MIXED, 80)}",
}


def account(rng):
    country, digits = rng.choice([("DE", 18), ("AT", 16), ("CH", 17)])
    bban = drawn(rng, string.digits, digits)
    whole = country + iban.calc_check_digits(f"{country}00{bban}") + bban
    return rng.choice([whole, " ".join(whole[i : i + 4] for i in range(0, len(whole), 4))])


def card(rng):
    digits = rng.choice(["4", "51", "55", "37"])
    digits += drawn(rng, string.digits, (15 if digits == "37" else 16) - 1 - len(digits))
    digits += luhn.calc_check_digit(digits)
    return digits if len(digits) == 15 else rng.choice([digits, "-".join(digits[i : i + 4] for i in range(0, 16, 4))])


def phone(rng):
    "A valid number of one of eight countries, abroad's way; of four, also as they write it at home."
    country = rng.choice(["US", "GB", "DE", "FR", "ES", "IT", "PL", "JP"])
    while True:
        start = str(phonenumbers.example_number_for_type(country, rng.choice([0, 1])).national_number)
        number = phonenumbers.parse(start[:-5] + drawn(rng, string.digits, 5), country)
        if phonenumbers.is_valid_number(number): break
    home = country in ("US", "GB", "DE", "FR") and rng.random() < .4
    forms = phonenumbers.PhoneNumberFormat
    return phonenumbers.format_number(number, forms.NATIONAL if home else forms.INTERNATIONAL)


def mail(rng): return f"{drawn(rng, LOWER, 6)}.{drawn(rng, LOWER, 4)}@{drawn(rng, LOWER, 8)}.{rng.choice(['de', 'com', 'org', 'co.uk'])}"


PLANTED = {**KEYS, "bank account": account, "payment card": card, "telephone number": phone, "mail address": mail}
AROUND = ("Set it to {} and restart the service.", "The old value ({}) was replaced in May.", "For help: {}",
          "{} is what the form asks for.")


@pytest.mark.parametrize("kind", PLANTED)
def test_what_is_planted_is_found(kind):
    "Each kind sixty times, in four sentences: .95 at least; the recall is printed."
    rng, found = random.Random(88), 0
    for i in range(60):
        thing = PLANTED[kind](rng)
        text = AROUND[i % 4].format(thing)
        at = text.index(thing)
        some = [f for f in scan_text(text, "answer") if f.kind == kind]
        found += any(f.start < at + len(thing) and at < f.start + f.length for f in some)
        assert thing not in str(some)
    print(f"{kind}: {found} of 60")
    assert found >= .95 * 60


def test_names_are_counted_and_nothing_is_claimed():
    rng = random.Random(88)
    people = [f"{rng.choice(['Ada', 'Nora', 'Jens', 'Ilse'])} {rng.choice(['Coyle', 'Ulm', 'Brandt', 'Weiss'])}" for _ in range(40)]
    titled = [f"{rng.choice(['Dr.', 'Frau', 'Mr'])} {p}" for p in people]
    found = lambda i, p: any(f.kind == "name" for f in scan_text(AROUND[i % 4].format(p), "answer"))
    share = lambda some: sum(found(i, p) for i, p in enumerate(some)) / len(some)
    print(f"names with a title: {share(titled):.2f} found; without one: {share(people):.2f}")
    assert share(titled) > share(people)


@pytest.mark.slow
@pytest.mark.skipif(not AUDIO.is_file(), reason="../shared/data/audio_docs is not there")
def test_manuals_of_others_stay_quiet():
    "All pages of three projects' documentation: what is found is counted; no key is, and under one page in twenty holds anything."
    found, pages, touched = Counter(), 0, 0
    with tarfile.open(AUDIO) as tar:
        for member in tar:
            if not member.isfile() or not member.name.endswith((".md", ".txt", ".rst", ".html")): continue
            some = scan_text(tar.extractfile(member).read().decode("utf-8", "replace"), member.name)
            found.update(f.kind for f in some)
            pages, touched = pages + 1, touched + bool(some)
            for f in some: print(f.kind, f.place, f.begins, f.length)
    print(pages, "pages,", touched, "touched:", dict(found))
    assert not set(found) & set(KEYS)
    assert touched <= pages / 20


def selected(tmp_path, what):
    made = lambda i, answer, chunk: Pair(id=f"p{i}", doc_id=f"d{i}", chunk_id=chunk, family_id=f"f{i}", category="k", difficulty="easy",
                                         question=f"What is number {i}?", answer=answer, teacher="t")
    pairs = [made(0, "Nora, nora@ulm.de", "c0"), made(1, "The blue one", "c1"), made(2, "The red one", "c2"), made(3, "Neither", "c2")]
    texts = {"c0": "Nora answers.", "c1": "The blue one.", "c2": "Log in with glpat-a1B2c3D4e5F6g7H8i9J0."}
    write_jsonl(tmp_path / "pairs.jsonl", pairs)
    chunk = lambda c, t: Chunk(chunk_id=c, doc_id=f"d{c[1]}", start=0, end=len(t), text=t, heading="", category="k")
    write_jsonl(tmp_path / "chunks.jsonl", [chunk(c, t) for c, t in texts.items()])
    config = load_config(overrides={"selection.secrets": what})
    stage = next(s for s in pairs_stages(open_source(None, None, "builtin"), config, tmp_path) if s.name == "select")
    stage.run(SimpleNamespace(config=config, needs={"judge": tmp_path, "documents": tmp_path}, out=tmp_path))
    dropped = [json.loads(line) for line in (tmp_path / "dropped.jsonl").read_text("utf-8").splitlines()]
    return [p.id for p in read_jsonl(tmp_path / "selected.jsonl", Pair)], dropped, read_jsonl(tmp_path / "findings.jsonl", Finding)


def test_findings_are_listed_or_dropped_with_their_pairs_or_an_error(tmp_path):
    kept, dropped, found = selected(tmp_path, "report")
    assert (kept, dropped) == (["p0", "p1", "p2", "p3"], [])
    assert [(f.kind, f.place) for f in found] == [("GitLab token", "passage c2"), ("mail address", "answer of pair p0")]
    kept, dropped, found = selected(tmp_path, "drop")
    assert kept == ["p1"]
    assert [d["reason"] for d in dropped] == ["holds what must not be taught: mail address",
                                              *["its passage holds what must not be taught: GitLab token"] * 2]
    assert len(found) == 2
    with pytest.raises(DistilleryError, match="hold 1 GitLab token, 1 mail address, first the passage c2") as e:
        selected(tmp_path, "refuse")
    assert "selection.secrets" in e.value.fix
    assert not [p for p in tmp_path.glob("*.jsonl") if p.stem not in ("pairs", "chunks") and "glpat-a1" in p.read_text("utf-8")]


@pytest.mark.slow
@pytest.mark.parametrize("text", ["://" + "a:" * 50_000, "+1" * 50_000, "a." * 50_000 + "@", "AB12" + "ABCD " * 20_000, "4111 " * 20_000])
def test_what_is_made_to_take_long_is_looked_at_in_pieces(text):
    "A hundred thousand characters cost about ten times what ten thousand do."
    from time import process_time
    def took(n):
        began = process_time()
        scan_text(text[:n], "answer")
        return process_time() - began
    took(2000)
    assert took(40_000) < 12 * max(took(10_000), .02)
