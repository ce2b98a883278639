"A key and a login planted in the environment, the address and the server's replies of a whole run: found in no byte that it leaves."
import base64
import gzip
import io
import json
import sys
import urllib.parse
import zipfile
import zlib
from pathlib import Path

import pytest
from aiohttp import web

sys.path.insert(0, str(Path(__file__).parent))
from attack_inputs import ECHOES, KEY
from pairs_oracle import write_handbook
from test_kill import KNOBS
from test_teachers_kill import Rules
from warm import run_command

LOGIN = ("ada", "pl4nted-p@ss")
OTHER = "wJalrXUtnFEMI-planted-9876543210"  # a key of something else, in the same environment


def shapes(secret: str) -> set[bytes]:
    "A secret as files may hold it: as it is, in an address, in JSON, in base64 at every offset."
    text = {secret, urllib.parse.quote(secret, safe=""), json.dumps(secret)[1:-1], "".join(f"\\u{ord(c):04x}" for c in secret)}
    packed = {base64.b64encode(b"x" * i + secret.encode())[4 if i else 0 : -4] for i in range(3)}
    return {t.encode() for t in text} | packed | {secret.encode("utf-16-le")}


SECRETS = {KEY: shapes(KEY), LOGIN[1]: shapes(LOGIN[1]), ":".join(LOGIN): shapes(":".join(LOGIN)), OTHER: shapes(OTHER)}


def unpacked(data: bytes) -> list[bytes]:
    "The bytes of a file, and those packed inside."
    found = [data]
    if data[:4] == b"PK\x03\x04": found += [z.read(n) for z in [zipfile.ZipFile(io.BytesIO(data))] for n in z.namelist()]
    if data[:2] == b"\x1f\x8b": found.append(gzip.decompress(data))
    if data[:1] == b"\x78":
        try: found.append(zlib.decompress(data))
        except zlib.error: pass
    return found


def leaks(folder: Path) -> list[str]:
    "Files below a folder, their names too, that hold a secret in any shape."
    found = []
    for path in folder.rglob("*"):
        pieces = [str(path).encode(), *(unpacked(path.read_bytes()) if path.is_file() and not path.is_symlink() else [])]
        found += [f"{path}: {secret[:4]}…" for secret, looks in SECRETS.items() if any(look in p for look in looks for p in pieces)]
    return found


@pytest.mark.parametrize("secret", sorted(SECRETS))
def test_a_planted_secret_is_found(secret, tmp_path):
    "The positive control."
    (tmp_path / "plain").write_text(f"Bearer {secret}")
    with zipfile.ZipFile(tmp_path / "zip", "w", zipfile.ZIP_DEFLATED) as z: z.writestr("a", f"x {secret}")
    (tmp_path / "gzip").write_bytes(gzip.compress(secret.encode()))
    for i in range(3): (tmp_path / f"base64-{i}").write_bytes(base64.b64encode(b"y" * i + secret.encode() + b"zz"))
    assert {p.split(":")[0].rsplit("/", 1)[1] for p in leaks(tmp_path)} == {"plain", "zip", "gzip", "base64-0", "base64-1", "base64-2"}


class Talkative(Rules):
    "A server that now and then repeats what it was sent: in errors, answers, streams, thoughts and the names of its models."

    def __init__(self) -> None:
        super().__init__(delay=0.0)
        self.sent = set[str]()

    async def reply(self, request):
        shown = request.headers.get("Authorization", "")
        self.sent.add(shown)
        kind = shown.partition(" ")[2]
        self.listing = {"data": [{"id": "tiny", "meta": {"n_params": kind, "size": shown}}]}
        if len(self.bodies) % 7 == 3:
            await request.read()
            self.bodies.append({})
            raw = list(ECHOES.values())[len(self.bodies) % len(ECHOES)].replace(KEY.encode(), kind.encode())
            return web.Response(body=raw, content_type="text/event-stream" if raw.startswith(b"data") else "application/json")
        if len(self.bodies) % 31 == 5:
            self.bodies.append({})
            return web.Response(status=500, text=f"Traceback: headers {dict(request.headers)}")
        return await super().reply(request)


@pytest.mark.slow
@pytest.mark.attack(row=7)
@pytest.mark.parametrize("how", ["key", "login"])
def test_no_byte_of_a_whole_run_holds_a_secret(how, tmp_path):
    here = {name: tmp_path / name for name in ("home", "tmp", "work", "docs")}
    for folder in here.values(): folder.mkdir()
    write_handbook(here["docs"], 6)
    env = {"OPENAI_API_KEY": KEY, "AWS_SECRET_ACCESS_KEY": OTHER, "TMPDIR": str(here["tmp"]), "HOME": str(here["home"]),
           "XDG_CACHE_HOME": str(here["home"] / "cache"), "XDG_CONFIG_HOME": str(here["home"] / "config"), "OMP_NUM_THREADS": "1"}
    with Talkative() as server:
        address = server.url if how == "key" else server.url.replace("//", f"//{LOGIN[0]}:{urllib.parse.quote(LOGIN[1])}@")
        knobs = KNOBS | {"workbook.name": "planted", "sft.epochs": 1}
        said = [run_command("run", "--docs", str(here["docs"]), "--teacher", f"{address}#tiny",
                            *(x for k, v in knobs.items() for x in ("--set", f"{k}={v}")), cwd=here["work"], env=env, timeout=3000)]
        assert said[0].returncode == 0, said[0].stdout[-1500:] + said[0].stderr[-1500:]
        assert server.sent == {"Bearer " + KEY if how == "key" else "Basic " + base64.b64encode(":".join(LOGIN).encode()).decode()}
        for command in (["package", "q4", "--anyway", "--out", "package"], ["runs", "list"], ["runs", "show"], ["calls", "list"],
                        ["calls", "export", "calls.jsonl"], ["calls", "stats"], ["report", "all"], ["config", "show"],
                        ["estimate", "--docs", str(here["docs"]), "--teacher", f"{address}#tiny"], ["doctor", "--store"]):
            said.append(run_command(*command, cwd=here["work"], env=env))
            assert "Traceback" not in said[-1].stderr, said[-1].stderr
    for i, done in enumerate(said): (tmp_path / f"said-{i}").write_text(done.stdout + done.stderr)
    for name in ("package", "calls.jsonl", ".distillery/calls.sqlite", "runs/latest/reports/index.html"):
        assert (here["work"] / name).exists(), name
    assert len([p for p in here["work"].rglob("*") if p.is_file()]) > 100
    assert leaks(tmp_path) == []
