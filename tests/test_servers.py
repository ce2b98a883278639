"Servers as they are: parameters that they refuse, Retry-After, proxies, logins, keys, thinking models, and replies that never end."
import json
import os
import time
import zlib
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from distillery.commands.environment import find_servers
from distillery.core.address import login_header, public_address
from distillery.core.config import flatten, load_config, to_yaml
from distillery.core.errors import DistilleryError
from distillery.teachers.batch import batch_line
from distillery.teachers.fallback import FallbackTeacher
from distillery.teachers.journal import Journal, read_calls
from distillery.teachers.open import open_teacher, server_digest, teacher_digest
from distillery.teachers.openai import OpenAITeacher
from distillery.teachers.protocol import ask_all, user_request
from distillery.wire.http import MOST_WAIT, proxy_of, retry_after
from distillery.wire.options import ClientOptions
from distillery.wire.parameters import SPARED, negotiated
from distillery.workbook.checks import check_teacher, server_problem

from peak import peak_mib
from teachers_server import Scripted, Server

CASES = Path(__file__).resolve().parents[2] / "shared/cases"
quick = settings(max_examples=60)
NOW = datetime(2026, 3, 1, tzinfo=UTC)


def file_of(case: str, name: str, otherwise: str) -> str:
    "A file of a case; the same written here where the folder is absent."
    path = CASES / case / name
    return path.read_text("utf-8") if path.is_file() else otherwise


# --- Retry-After --------------------------------------------------------------------------------------------------------------------------
HEADERS = ["Sun Nov  6 08:49:37 2094", "Sun, 06 Nov 2094 08:49:37 -0000", "Sun, 06 Nov 2094 08:49:37 GMT", "0.2", "1m30s"]
MORE = ["Sunday, 06-Nov-94 08:49:37 GMT", "1e400", "nan", "-5", "99999999999999999999", "Sun, 99 Nov 9999999 08:49:37 GMT", "0.1, 0.2",
        "soon", "", "٣"]


def test_every_retry_after_is_waited_for_or_ignored():
    headers = [h if h != "2" else "0.2" for h in file_of("28_retry_after_dates", "headers.txt", "\n".join(HEADERS)).splitlines()] + MORE
    requests = [user_request(str(i), f"p{i}") for i in range(len(headers))]
    shown = lambda i: {"Retry-After": headers[i].encode("ascii", "replace").decode()}
    with Scripted(lambda body, turn: (429, shown(int(body["messages"][-1]["content"][1:])), b"") if turn == 0 else None) as server:
        began = time.monotonic()
        results = ask_all(OpenAITeacher(server.url, "m", concurrency=20), requests)
    assert all(r.ok for r in results)
    assert time.monotonic() - began < 10
    assert set(server.seen.values()) == {2}


def test_a_date_is_a_date_in_every_spelling():
    for said in ("Sun, 01 Mar 2026 00:00:30 GMT", "Sun, 01 Mar 2026 00:00:30 -0000", "Sun Mar  1 00:00:30 2026",
                 "Sun, 01 Mar 2026 01:00:30 +0100"):
        assert retry_after(said, NOW) == 30.0
    assert [retry_after(said, NOW) for said in ("Sat, 28 Feb 2026 00:00:00 GMT", "7", "3601", "inf", None)] == [0.0, 7.0, None, None, None]


def test_what_is_no_number_of_seconds_is_ignored():
    assert [retry_after(said, NOW) for said in ("-5", "5_0", "1e9", "10, 20", "0x10", "9" * 5000, "Sunday, 01-Mar-26 00:00:30 GMT",
    "3")] == [
        None, None, None, None, None, None, 30.0, 3.0]


NUMBERS = st.from_regex(r"-?[0-9]{1,40}(\.[0-9]{0,30})?(e[0-9]{1,4})?", fullmatch=True)
DATES = st.datetimes().map(lambda d: d.strftime("%a, %d %b %Y %H:%M:%S -0000"))


@given(st.text(max_size=60) | NUMBERS | DATES)
@quick
def test_any_retry_after_is_bounded(said):
    wait = retry_after(said, NOW)
    assert wait is None or 0 <= wait <= MOST_WAIT


# --- Parameters ---------------------------------------------------------------------------------------------------------------------------
WORDS = {
    "max_tokens": file_of(
        "36_servers_that_refuse_a_parameter", "max_tokens.json",
        '{"error": {"message": "use \'max_completion_tokens\'", "param": "max_tokens", "code": "unsupported_parameter"}}',
    ),
    "temperature top_p": file_of(
        "36_servers_that_refuse_a_parameter", "temperature_and_top_p.json",
        '{"error": {"message": "temperature and top_p cannot both be given for this model"}}',
    ),
    "seed": file_of(
        "36_servers_that_refuse_a_parameter", "seed.json", '{"error": {"message": "extra inputs are not permitted: seed", "param": "seed"}}'
    ),
    "temperature": '{"error": {"message": "Unsupported value: \'temperature\' does not support 0.7 with this model. '
                   'Only the default (1) value is supported."}}',
    "top_p": '{"detail": [{"type": "extra_forbidden", "loc": ["body", "top_p"], "msg": "Extra inputs are not permitted", '
             '"input": {"seed": 1}}]}',
    "seed top_p": "unknown parameters: Top P, seed",
    "response_format": '{"object": "error", "message": "response_format is not available", "code": 400}',
}


def strict(refuses, seen):
    "A server that refuses parameters, each alone or two together."
    def script(body, turn):
        for words, said in refuses.items():
            if all(name in body for name in words.split()):
                seen.append(words)
                return (422 if "detail" in said else 400, {}, said.encode())
        return None
    return script


def ask_strict(tmp_path, refuses, n=6, **options):
    seen = []
    with Scripted(strict(refuses, seen)) as server:
        requests = [user_request(str(i), f"p{i}", temperature=0.7, schema='{"type": "object"}') for i in range(n)]
        journal = Journal(tmp_path / "calls.sqlite")
        results = journal.ask(OpenAITeacher(server.url, "m", concurrency=2, json_mode="object", **options), requests)
        first = len(seen)
        later = journal.ask(OpenAITeacher(server.url, "m", json_mode="object", **options), requests)
        more = journal.ask(
            OpenAITeacher(server.url, "m", json_mode="object", **options), [user_request("z", "new", schema='{"type": "object"}')]
        )
        calls = list(read_calls(journal))
        journal.close()
    assert later.keys() == results.keys()
    assert len(seen) == first, "what was refused once is not sent again, nor by a later run"
    return results, more, server.bodies, seen, calls


@pytest.mark.parametrize("words", sorted(WORDS))
def test_a_refused_parameter_is_left_out_and_remembered(tmp_path, words):
    results, more, bodies, seen, calls = ask_strict(tmp_path, {words: WORDS[words]})
    assert all(r.ok for r in [*results.values(), *more.values()])
    assert len(bodies) == 7 + len(seen) <= 7 + 4, "each is asked once, beside the refusals of those that were under way"
    gone = {name for name in words.split() if name not in bodies[-1]}
    assert gone
    assert all(set(call.request["parameters"]) == gone for call in calls)
    if words == "max_tokens": assert bodies[-1]["max_completion_tokens"] == bodies[0]["max_tokens"]
    if words == "temperature top_p": assert gone == {"top_p"}
    kept = {"temperature", "top_p", "seed", "max_tokens", "response_format", "messages", "model", "stream"} - gone
    assert kept <= bodies[-1].keys()


def test_a_server_that_refuses_nearly_everything_is_asked_in_the_end(tmp_path):
    names = ["max_tokens", "temperature", "top_p", "seed", "response_format"]
    results, more, bodies, *_ = ask_strict(tmp_path, {name: WORDS[name] for name in names})
    assert all(r.ok for r in [*results.values(), *more.values()])
    assert set(bodies[-1]) == {"model", "messages", "stream", "max_completion_tokens"}


@given(
    st.sets(st.sampled_from(["temperature", "top_p", "seed", "max_tokens", "top_k", "repetition_penalty"]), min_size=1),
    st.sampled_from(
        [
            "{0} is not supported", "Unknown field '{0}'", '{{"error": {{"param": "{0}", "message": "no"}}}}',
            "`{0}`: extra fields not permitted", '{{"detail": [{{"loc": ["body", "{0}"], "msg": "extra"}}]}}',
            '{{"message": "{0} cannot be used with this model", "input": "seed"}}',
        ]
    ),
)
@quick
def test_any_set_of_refusals_ends_in_what_is_taken(refused, wording):
    body = {"model": "m", "messages": [], **dict.fromkeys(["temperature", "top_p", "seed", "max_tokens", "top_k", "repetition_penalty"], 1)}
    known, rounds = {}, 0
    while left := sorted(name for name in refused if known.get(name, name) == name):
        known = negotiated(body, known, wording.format(left[0]))
        rounds += 1
        assert known is not None
        assert rounds <= len(SPARED) + 2
    assert {name for name, to in known.items() if to is None} == refused - {"max_tokens"}


@pytest.mark.parametrize(
    "said",
    [
        "context too long: lower max_tokens",
        '{"error": {"message": "This model\'s maximum context length is 4096 tokens, you asked for 64 in max_tokens"}}', "bad request",
        '{"error": {"message": "messages[0].role is wrong"}}',
        "[" * 20_000,
    ],
)
def test_a_refusal_about_something_else_stays_one(tmp_path, said):
    with Scripted(lambda body, turn: (400, {}, said.encode())) as server:
        result = ask_all(OpenAITeacher(server.url, "m"), [user_request("a", "p")])[0]
    assert "status 400" in result.error
    assert ("teacher.parameters" in result.error) == ("max_tokens" in said)
    assert len(server.bodies) == 1


def test_what_led_to_no_answer_is_not_learned():
    "A server that names a parameter and means something else."
    with Scripted(lambda body, turn: (400, {}, b"seed: no") if "bad" in body["messages"][-1]["content"] else None) as server:
        teacher = OpenAITeacher(server.url, "m")
        assert [r.ok for r in ask_all(teacher, [user_request("a", "bad"), user_request("b", "good")])] == [False, True]
    assert teacher.learned == {}
    assert [("seed" in b) for b in server.bodies if b["messages"][-1]["content"] == "bad"] == [True, False]


def test_what_settings_say_is_sent_at_once(tmp_path):
    config = load_config(overrides={"teacher.parameters": {"max_tokens": "max_completion_tokens", "seed": None}})
    with Server() as server:
        journal, requests = Journal(tmp_path / "calls.sqlite"), [user_request("a", "p")]
        plain, own = OpenAITeacher(server.url, "m"), open_teacher(f"{server.url}#m", config)
        assert all(journal.ask(t, requests)["a"].ok for t in (plain, own, own, plain))
    assert len(server.bodies) == 2, "an answer without a seed is another one; each is asked for once"
    assert (server.bodies[1].keys() >= {"max_completion_tokens"}, "seed" in server.bodies[1]) == (True, False)
    line = batch_line(requests[0], "m", parameters=config.teacher.parameters)["body"]
    assert ("seed" in line, line["max_completion_tokens"]) == (False, 64)


def test_an_answer_from_before_the_refusal_is_not_paid_twice(tmp_path):
    refusing = []
    with Scripted(lambda body, turn: (400, {}, b"no seed, please: seed") if refusing and "seed" in body else None) as server:
        journal, asks = Journal(tmp_path / "calls.sqlite"), [user_request("a", "first"), user_request("b", "second")]
        journal.ask(OpenAITeacher(server.url, "m"), asks[:1])
        refusing.append(True)
        journal.ask(OpenAITeacher(server.url, "m"), asks)
        journal.ask(OpenAITeacher(server.url, "m"), asks)
    assert len(server.bodies) == 3


def test_an_error_with_a_good_status_says_as_much(tmp_path):
    said = json.dumps({"error": {"message": "seed is not supported", "param": "seed", "code": 400}}).encode()
    with Scripted(lambda body, turn: said if "seed" in body else None) as server:
        assert ask_all(OpenAITeacher(server.url, "m"), [user_request("a", "p")])[0].ok
    with Scripted(lambda body, turn: b'{"error": {"message": "slow down", "code": 429}}' if turn == 0 else None) as server:
        assert ask_all(OpenAITeacher(server.url, "m"), [user_request("a", "p")])[0].ok


@pytest.mark.parametrize("code", [401, 403, 404, 407, 500, "rate_limit", 10**30, None, [429]])
def test_an_error_in_one_reply_ends_no_run(code):
    said = json.dumps({"error": {"message": "no", "code": code}}).encode()
    with Scripted(lambda body, turn: said if "bad" in body["messages"][-1]["content"] else None) as server:
        teacher = OpenAITeacher(server.url, "m", max_retries=1, breaker_wait_s=0.01)
        assert [r.ok for r in ask_all(teacher, [user_request("a", "bad"), user_request("b", "good")])] == [False, True]


def test_the_question_itself_is_no_parameter():
    with pytest.raises(DistilleryError, match="as they are"): load_config(overrides={"teacher.parameters": {"messages": None}})


def test_bodies_to_ordinary_servers_are_as_they_were():
    with Server() as server: ask_all(OpenAITeacher(server.url, "m"), [user_request("a", "p", temperature=0.5, seed=3)])
    assert json.dumps(server.bodies[0]) == (
        '{"model": "m", "messages": [{"role": "user", "content": "p"}], "stream": false, "temperature": 0.5, '
        '"top_p": 1.0, "max_tokens": 64, "seed": 3}'
    )


# --- Proxies, logins, keys ----------------------------------------------------------------------------------------------------------------
@pytest.fixture
def bare(monkeypatch):
    "An environment without proxies."
    for name in list(os.environ):
        if name.lower().endswith("_proxy"): monkeypatch.delenv(name)
    return monkeypatch


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "HTTP_PROXY without scheme"])
def test_the_proxy_of_the_environment_is_used(bare, variable):
    written = file_of("37_proxy_from_the_environment", "env.txt", "HTTP_PROXY=http://127.0.0.1:P\nNO_PROXY=127.0.0.1,localhost")
    env = dict(line.split("=", 1) for line in written.splitlines())
    with Server() as proxy:
        place = env["HTTP_PROXY"].replace("P", str(proxy.port)) if "HTTP" in env["HTTP_PROXY"] else f"http://127.0.0.1:{proxy.port}"
        bare.setenv(variable.split()[0], place.removeprefix("http://") if "without" in variable else place)
        bare.setenv("NO_PROXY", env["NO_PROXY"])
        result = ask_all(OpenAITeacher("http://model.invalid/v1", "m"), [user_request("a", "p")])[0]
        assert server_problem("http://model.invalid/v1", "") == ""
    assert result.text == "answer to p"
    assert proxy.headers[0]["Host"] == "model.invalid"


@pytest.mark.parametrize(("listed", "url", "direct"), [
    ("a.example:80", "http://a.example/", True), ("a.example:443", "https://a.example/v1", True), ("b.example a.example",
    "http://a.example/", True),
    ("192.168.*", "http://192.168.1.1/", True), ("A.EXAMPLE", "http://a.example./", True), ("a.example:8080", "http://a.example/", False),
    ("a.example", "http://ba.example/", False), ("", "http://a.example/", False), ("*", "https://a.example/", True), (".example",
    "http://a.example/", True)])
def test_every_spelling_of_no_proxy(bare, listed, url, direct):
    bare.setenv("ALL_PROXY", "http://user:pass@p.example:1")
    bare.setenv("NO_PROXY", listed)
    assert proxy_of(url) == (None if direct else "http://user:pass@p.example:1")


@pytest.mark.parametrize("proxy", ["http://[::", "http://p.example:99999", "http://", "socks5h://p.example:1"])
def test_a_proxy_that_cannot_be_one_is_named(bare, proxy):
    bare.setenv("http_proxy", proxy)
    with pytest.raises(DistilleryError, match="no HTTP proxy"): proxy_of("http://a.example/v1")


def test_loopback_and_no_proxy_go_direct(bare):
    bare.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with Server() as server:
        assert ask_all(OpenAITeacher(server.url, "m"), [user_request("a", "p")])[0].ok
        assert server_problem(server.url, "") == ""
        assert [s.url for s in find_servers([server.port])] == [server.url]
    with pytest.raises(DistilleryError, match=r"through the proxy http://127\.0\.0\.1:9"):
        ask_all(OpenAITeacher("http://model.invalid/v1", "m"), [user_request("a", "p")])
    bare.setenv("HTTP_PROXY", "socks5://127.0.0.1:9")
    with pytest.raises(DistilleryError, match="NO_PROXY"): ask_all(OpenAITeacher("http://model.invalid/v1", "m"), [user_request("a", "p")])


@given(
    st.sampled_from(["127.0.0.1", "127.9.8.7", "[::1]", "localhost", "m.localhost", "a.inside.test", "inside.test", "10.1.2.3", "0.0.0.0"]),
    st.sampled_from(["", ":8000"]), st.sampled_from(["http", "https"]),
)
@quick
def test_what_is_near_is_never_asked_through_a_proxy(host, port, scheme):
    before = dict(os.environ)
    os.environ.update({"HTTP_PROXY": "http://p:1", "HTTPS_PROXY": "http://p:1", "NO_PROXY": "x, .inside.test,10.0.0.0/8 ,"})
    try:
        assert proxy_of(f"{scheme}://{host}{port}/v1") is None
        assert proxy_of(f"{scheme}://a{host.strip('[]').replace(':', '')}.test{port}/v1") == "http://p:1" or "inside" in host
    finally:
        os.environ.clear()
        os.environ.update(before)


def test_a_login_works_and_is_written_nowhere(bare, tmp_path):
    with Server(digest="sha256:aa") as server:
        spec = f"http://ada:s3cret%40pass@127.0.0.1:{server.port}/v1#m"
        config = load_config(
            overrides={"teacher.model": spec, "teacher.fallback": spec, "distill.teacher": spec, "workbook.cache_dir": str(tmp_path)}
        )
        journal, teacher = Journal(tmp_path / "calls.sqlite"), open_teacher(spec, config)
        assert journal.ask(teacher, [user_request("a", "p")])["a"].ok
        teacher_digest(spec, tmp_path)
        checks = list(check_teacher(config.teacher.model, config))
        journal.close()
    assert isinstance(teacher, FallbackTeacher)
    assert server.headers[0]["Authorization"] == "Basic " + "YWRhOnMzY3JldEBwYXNz"
    shown = [to_yaml(config), str(flatten(config)), teacher.name, teacher.second.name, repr(checks), repr(teacher.options)]
    assert not any("s3cret" in text or "ada:" in text for text in shown)
    assert all(b"s3cret" not in p.read_bytes() and b"YWRhOnMz" not in p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
    assert all(c.ok for c in checks)


def test_a_login_that_a_server_repeats_is_hidden(bare, tmp_path):
    echo = json.dumps({"error": {"message": "no: s3cretpass YWRhOnMzY3JldHBhc3M="}}).encode()
    with Scripted(lambda body, turn: (400, {}, echo)) as server:
        result = ask_all(OpenAITeacher(f"http://ada:s3cretpass@127.0.0.1:{server.port}/v1", "m"), [user_request("a", "p")])[0]
        with pytest.raises(DistilleryError) as caught:
            ask_all(OpenAITeacher("http://eve:s3cretpass@127.0.0.1:9/v1", "m"), [user_request("a", "p")])
    assert "s3cret" not in result.error + str(caught.value)
    assert "YWRh" not in result.error


NAMES = st.text(
    st.characters(min_codepoint=33, max_codepoint=0x2FFF, blacklist_characters="/?#@:%[]\\", blacklist_categories=["Cs", "Z", "C"]),
    min_size=1, max_size=12,
)


@given(
    NAMES, NAMES.map(lambda p: p + "@"), st.sampled_from(["h.invalid", "127.0.0.1:8000", "[::1]:8000"]),
    st.sampled_from(["", "/v1", "/v1/"]),
)
@quick
def test_any_login_leaves_the_address(user, password, host, path):
    import base64

    spec = f"https://{user}:{password}@{host}{path}#m"
    assert public_address(spec) == f"https://{host}{path}#m"
    assert base64.b64decode(login_header(f"https://{host}{path}")["Authorization"].split()[1]).decode() == f"{user}:{password}"
    assert public_address(f"https://{host}{path}#m") == f"https://{host}{path}#m"


@pytest.mark.parametrize("key", ["sk-very-secret\n", " sk-very-secret\r\n", "\tsk-very-secret"])
def test_a_key_ends_where_its_line_does(monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with Server() as server:
        assert ask_all(OpenAITeacher(server.url, "m"), [user_request("a", "p")])[0].ok
        assert server_problem(server.url, os.environ["OPENAI_API_KEY"]) == ""
    assert server.headers[0]["Authorization"] == "Bearer sk-very-secret"


@pytest.mark.parametrize("key", ["sk\nX-Evil: 1", "sk-“quoted”", "sk\x00"])
def test_a_key_that_no_header_carries_is_named_by_its_variable(monkeypatch, key):
    if "\x00" in key: monkeypatch.setattr(os, "environ", {**os.environ, "OPENAI_API_KEY": key})
    else: monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(DistilleryError, match="OPENAI_API_KEY") as caught: ClientOptions().headers()
    assert key not in str(caught.value)


# --- Limits -------------------------------------------------------------------------------------------------------------------------------
def test_limits_are_those_of_the_model():
    config = load_config(overrides={"teacher.timeout_of": {"thinker": 1800, "http://h:1/v1#m": 7}, "teacher.concurrency_of": {"thinker": 2},
                                    "teacher.concurrency": 9, "teacher.fallback": "http://h:2/v1#thinker"})
    first = open_teacher("http://h:1/v1#m", config)
    assert (first.options.timeout_s, first.options.concurrency) == (7, 9)
    assert (first.second.options.timeout_s, first.second.options.concurrency, first.second.pace.limit) == (1800, 2, 2)
    assert first.second.options.limits().total == first.second.options.idle_s == 1800
    assert first.options.idle_s == 120
    assert open_teacher("http://h:3/v1#m", config).options.timeout_s == 600
    for name, low in (("timeout_of", 0), ("concurrency_of", -1)):
        with pytest.raises(DistilleryError, match="above 0"): load_config(overrides={f"teacher.{name}": {"m": low}})


def test_a_slow_thinker_is_waited_for_and_another_is_not():
    with Server(delay=0.6) as server:
        config = load_config(overrides={"teacher.timeout_s": 0.2, "teacher.max_retries": 0, "teacher.timeout_of": {"thinker": 30}})
        slow, quick_one = (open_teacher(f"{server.url}#{m}", config) for m in ("thinker", "m"))
        assert ask_all(slow, [user_request("a", "p")])[0].ok
        assert "TimeoutError" in ask_all(quick_one, [user_request("a", "q")])[0].error


@pytest.mark.parametrize("reply", ["endless", "a bomb", "long"])
def test_a_reply_that_never_ends_is_a_failure_and_is_asked_for_once(reply):
    reply = {"a bomb": lambda: zlib.compress(bytes(3 * 10**8), 1), "endless": lambda: None,
             "long": lambda: b'{"choices": [{"message": {"content": "' + b"x" * (20 << 20)}[reply]()
    before = peak_mib()
    headers = {"Content-Encoding": "deflate"} if reply and reply[:1] == b"\x78" else {}
    began = time.monotonic()
    with Scripted(lambda body, turn: (200, headers, reply) if "long" in body["messages"][-1]["content"] else None) as server:
        results = ask_all(OpenAITeacher(server.url, "m"), [user_request("a", "long"), user_request("b", "short")])
    assert [r.ok for r in results] == [False, True]
    assert "more than 16,777,216 bytes" in results[0].error
    assert server.seen["long"] == 1
    assert time.monotonic() - began < 10
    assert peak_mib() - before < 500


@pytest.mark.parametrize(("coding", "packed"), [("gzip", True), ("deflate", True), ("br", False)])
def test_a_packed_reply_is_unpacked(coding, packed):
    good = json.dumps({"choices": [{"message": {"content": "14 days"}, "finish_reason": "stop"}]}).encode()
    pack = zlib.compressobj(9, zlib.DEFLATED, 31 if coding == "gzip" else 15)
    data = pack.compress(good) + pack.flush()
    with Scripted(lambda body, turn: (200, {"Content-Encoding": coding}, data)) as server:
        result = ask_all(OpenAITeacher(server.url, "m", max_retries=1), [user_request("a", "p")])[0]
    assert (result.text == "14 days") == packed == result.ok
    assert server.headers[0]["Accept-Encoding"] == "gzip, deflate"


@pytest.mark.parametrize("listing", [3, None, [1], {"data": 3}, {"data": [{"id": "m", "meta": [1]}]}, {"data": [{"id": {}}, None]},
                                     {"data": [{"id": "m", "meta": {"size": {"a": "\ud83d"}}}]},
                                     {"data": [{"id": "m", "meta": {"size": "7" * 5000}}]}])
def test_any_listing_of_models_is_read(listing, tmp_path):
    with Server() as server:
        server.listing = listing
        identity = OpenAITeacher(server.url, "m").identity
        teacher_digest(f"{server.url}#m", tmp_path)
    assert len(json.dumps(identity, ensure_ascii=False).encode()) < 400


def test_a_torn_memory_of_digests_heals(tmp_path):
    for torn in (b"", b"{", b"[1]", b'{"http://127.0.0.1:9/v1#m": {"a": 1}}', b"\xff\x00"):
        (tmp_path / "servers.json").write_bytes(torn)
        assert server_digest("http://127.0.0.1:9/v1#m", tmp_path / "servers.json") == ""


def test_a_server_is_asked_again_within_fifteen_seconds():
    "The wait of the breaker, and a trial, by default."
    assert load_config().teacher.breaker_wait_s == ClientOptions().breaker_wait_s <= 15


def test_a_clock_that_is_set_back_lengthens_no_wait(monkeypatch):
    with Server(burst=range(1, 4)) as server:
        monkeypatch.setattr(time, "time", lambda: 0.0)
        began = time.monotonic()
        teacher = OpenAITeacher(server.url, "m", concurrency=1, breaker_wait_s=0.3)
        assert all(r.ok for r in ask_all(teacher, [user_request(str(i), f"p{i}") for i in range(4)]))
    assert time.monotonic() - began < 8
