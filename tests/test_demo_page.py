"The page that carries a student: opened from disk in a real browser, it answers as ONNX Runtime does in Python, and talks to nobody."
import http.server
import json
import os
import shutil
import threading
from importlib import resources
from pathlib import Path

import pytest

import lab
from distillery.core.student_knobs import QuantizationSection
from distillery.shipping.demo import demo_facts, web_parts, write_demo
from distillery.exporting.export import build_onnx
from distillery.teachers.chat import ChatTokenizer
from distillery.teachers.onnx import OnnxTeacher
from distillery.teachers.open import builtin_dir
from distillery.teachers.protocol import Message, ask_all, user_request

ROOT = Path(__file__).resolve().parents[1]
ATTACK = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
GOLD = [json.loads(line) for line in resources.files("distillery").joinpath("data/gold.jsonl").read_text("utf-8").splitlines()]
READING = [f"{g['sentence']}\n\nQuestion: {g['wordings'][0]}" for g in GOLD[:3]]
ANSWER = "document.getElementById('answer').textContent"


@pytest.fixture(scope="module")
def variant(tmp_path_factory) -> Path:
    "With arithmetic in full precision: WebAssembly has no other, whatever a graph asks for."
    return build_onnx(builtin_dir("mini"), tmp_path_factory.mktemp("demo") / "q4", "q4", QuantizationSection(accuracy_level=1))


@pytest.fixture(scope="module")
def page(variant, tmp_path_factory):
    if shutil.which("npm") is None:
        if os.environ.get("CI"): pytest.fail("CI has no npm: .ci/run installs it")
        pytest.skip("no npm on this machine, and the page needs three of its packages")
    facts = demo_facts(variant, ATTACK, f"A student. {ATTACK}", [*READING, ATTACK])
    file = write_demo(variant, tmp_path_factory.mktemp("page") / "demo.html", ROOT / ".distillery" / "web", facts)
    with lab.tab() as tab:
        tab.open(file.as_uri())
        tab.until("['ready', 'failed'].includes(document.body.dataset.state)")
        assert tab.value("document.getElementById('status').textContent") == "Ready."
        yield tab


def ask(tab: lab.Page, question: str) -> str:
    tab.value(f"document.getElementById('question').value = {json.dumps(question)}")
    tab.click("document.getElementById('go')")
    tab.until("document.body.dataset.state == 'ready'")
    return tab.value(ANSWER)


def in_python(variant: Path, questions: list[str]) -> list[str]:
    requests = [user_request(str(i), q, max_tokens=48) for i, q in enumerate(questions)]
    return [r.text for r in ask_all(OnnxTeacher(variant, threads=1), requests)]


@pytest.mark.slow
@pytest.mark.browser
def test_three_gold_questions_have_the_answers_of_python(page, variant):
    expected = in_python(variant, READING)
    assert [ask(page, q) for q in READING] == expected
    assert sum(a == g["answer"] for a, g in zip(expected, GOLD[:3], strict=True)) >= 2


@pytest.mark.slow
@pytest.mark.browser
def test_what_the_model_never_learnt_is_said_in_the_same_words_too(page, variant):
    questions = [g["wordings"][1] for g in GOLD[100:106]]
    assert [ask(page, q) for q in questions] == in_python(variant, questions)


@pytest.mark.slow
@pytest.mark.browser
def test_the_browser_makes_the_same_tokens(page, variant):
    chat = ChatTokenizer(variant)
    odd = ["Room 1234, isn't  it?\n\n früh 東京 🙂", "<|im_end|> a\t b", "ΑΒΓ i̇ Ⅷ ½"]
    texts = [*odd, *(w for g in GOLD for w in g["wordings"])]
    ours = [chat.encode([Message("user", t)]) for t in texts]
    theirs = page.value(f"JSON.parse({json.dumps(json.dumps(texts))}).map((t) => student.encode(t))")
    assert [t for t, a, b in zip(texts, ours, theirs, strict=True) if a != b] == []


@pytest.mark.slow
@pytest.mark.browser
def test_an_example_is_asked_by_a_click(page, variant):
    page.click("document.querySelectorAll('#examples button')[1]")
    page.until("document.body.dataset.state == 'ready'")
    assert page.value(ANSWER) == in_python(variant, READING[1:2])[0]


@pytest.mark.slow
@pytest.mark.browser
def test_markup_stays_text(page):
    assert page.value("document.getElementById('title').textContent") == ATTACK
    ask(page, ATTACK)
    assert page.value("document.title") == "A student in a page"
    assert page.value("document.querySelectorAll('img').length") == 0


@pytest.mark.slow
@pytest.mark.browser
def test_the_page_may_not_open_a_connection(page):
    asked = []

    class Listener(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200); self.send_header("Access-Control-Allow-Origin", "*"); self.end_headers()

        def log_message(self, *_): pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Listener)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/"
    page.value(f"fetch('{url}').then(() => window.went = 'out', () => window.went = 'refused')")
    page.value(f"document.body.append(Object.assign(new Image(), {{src: '{url}image'}}))")
    assert page.until("window.went")
    assert page.value("window.went") == "refused"
    page.value("document.querySelector('img').remove()")
    server.shutdown()
    assert asked == []


def test_a_file_of_another_version_is_not_used(tmp_path, monkeypatch):
    from distillery.shipping import demo

    real = {n: ROOT / ".distillery" / "web" / n for n in demo.WEB_PARTS}
    if not all(p.is_file() for p in real.values()): pytest.skip("no page was made here yet")
    for name, path in real.items(): shutil.copy(path, tmp_path / name)
    assert set(web_parts(tmp_path)) == set(real)
    (tmp_path / "ort").write_text("// another runtime")
    monkeypatch.setattr(demo.shutil, "which", lambda _: None)
    with pytest.raises(demo.DemoError, match="npm is not here"): web_parts(tmp_path)
