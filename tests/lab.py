"""A real JupyterLab on loopback, and a real browser that is moved by mouse and keys (Chrome DevTools protocol).
Run it with a run folder to take the picture of the start notebook: python tests/lab.py runs/latest"""
import base64
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import websocket

import browser

ROOT = Path(__file__).resolve().parents[1]
HANDLE = "document.querySelector('.jp-Notebook .noUi-handle')"  # what a hand takes of a slider
KEYS = {"ArrowRight": 39, "ArrowLeft": 37, "ArrowDown": 40, "Enter": 13, "Tab": 9}


def wait(what: Callable[[], Any], name: str, seconds: float = 120) -> Any:
    "What `what` returns once it is something; time passes, on a slow machine a lot of it."
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := what(): return found
        time.sleep(0.1)
    raise TimeoutError(f"no {name} in {seconds:g} s")


@contextmanager
def running(command: list[str], **how: Any) -> Iterator[subprocess.Popen]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **how)
    try: yield process
    finally:
        process.terminate()
        try: process.wait(20)
        except subprocess.TimeoutExpired: process.kill()


def fetch(url: str, method: str = "GET") -> Any:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=5) as reply: return json.load(reply)
    except OSError: return None


class Page:
    "A tab. Nothing beyond this machine can be reached from it."

    def __init__(self, port: int) -> None:
        tab = fetch(f"http://127.0.0.1:{port}/json/new?about:blank", "PUT")
        self.socket, self.calls = websocket.create_connection(tab["webSocketDebuggerUrl"], timeout=60, suppress_origin=True), 0
        self.call("Page.enable")

    def call(self, method: str, **params: Any) -> dict:
        self.calls += 1
        self.socket.send(json.dumps({"id": self.calls, "method": method, "params": params}))
        while (reply := json.loads(self.socket.recv())).get("id") != self.calls: pass
        if "error" in reply: raise ConnectionError(f"{method}: {reply['error']}")
        return reply["result"]

    def value(self, script: str) -> Any:
        reply = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        if "exceptionDetails" in reply: raise RuntimeError(reply["exceptionDetails"]["exception"].get("description", script))
        return reply["result"].get("value")

    def until(self, script: str, seconds: float = 120) -> Any:
        def look() -> Any:
            try: return self.value(script)
            except ConnectionError: return None  # the page is just being changed for another

        return wait(look, script, seconds)

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.until("location.href != 'about:blank' && document.readyState == 'complete'")

    def place(self, element: str) -> tuple[float, float]:
        "The middle of an element (a script that names it), scrolled into sight."
        self.until(f"!!({element})")
        self.value(f"({element}).scrollIntoView({{block: 'center'}})")
        time.sleep(0.3)
        return tuple(self.value(f"(r => [r.x + r.width / 2, r.y + r.height / 2])(({element}).getBoundingClientRect())"))

    def mouse(self, kind: str, x: float, y: float) -> None:
        self.call("Input.dispatchMouseEvent", type=f"mouse{kind}", x=x, y=y, button="left", buttons=int(kind != "Released"), clickCount=1)

    def click(self, element: str) -> None:
        self.drag(element, 0)

    def drag(self, element: str, right: float) -> None:
        x, y = self.place(element)
        self.mouse("Moved", x, y); self.mouse("Pressed", x, y)
        for step in (0.3, 0.6, 1) if right else (): self.mouse("Moved", x + right * step, y)
        self.mouse("Released", x + right, y)

    def press(self, key: str) -> None:
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=KEYS[key])

    def type(self, text: str) -> None:
        "Keys of letters and digits, one after the other."
        for c in text:
            self.call("Input.dispatchKeyEvent", type="keyDown", key=c, text=c, windowsVirtualKeyCode=ord(c.upper()))
            self.call("Input.dispatchKeyEvent", type="keyUp", key=c, windowsVirtualKeyCode=ord(c.upper()))

    def picture(self, target: Path) -> Path:
        target.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))
        return target


@contextmanager
def tab(size: str = "1200,1100") -> Iterator[Page]:
    "A tab of a headless Chromium."
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        flags = [f"--user-data-dir={profile}", "--remote-debugging-port=0", f"--window-size={size}",
                 "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"]
        with running([browser.find(), *browser.QUIET, *flags, "about:blank"]):
            said = Path(profile, "DevToolsActivePort")
            port = wait(lambda: said.is_file() and said.read_text().split("\n")[0], "browser")
            yield Page(int(port))


def lab_command() -> list[str]:
    "What `make lab` ends in."
    said = subprocess.run(["make", "--no-print-directory", "-n", "lab"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return said.splitlines()[-1].split()


@contextmanager
def lab(project: Path) -> Iterator[str]:
    "JupyterLab as `make lab` starts it, in a copy of the project; gives the address of what it opens."
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token, own = secrets.token_hex(16), project / ".jupyter"
    places = {f"JUPYTER{k}_DIR": str(own / k) for k in ("_CONFIG", "_DATA", "_RUNTIME", "LAB_SETTINGS", "LAB_WORKSPACES")}
    news = own / "LAB_SETTINGS/@jupyterlab/apputils-extension/notification.jupyterlab-settings"
    news.parent.mkdir(parents=True)
    news.write_text('{"fetchNews": "false", "checkForUpdates": false}')
    whole = own / "LAB_SETTINGS/@jupyterlab/notebook-extension/tracker.jupyterlab-settings"
    whole.parent.mkdir(parents=True)
    whole.write_text('{"windowingMode": "none"}')  # else cells out of sight are no part of the page
    env = {**os.environ, **places, "JUPYTER_TOKEN": token, "IPYTHONDIR": str(own / "ipython"), "OMP_NUM_THREADS": "1",
           "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    command = [*lab_command(), "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0"]
    with running(command, cwd=project, env=env):
        wait(lambda: fetch(f"http://127.0.0.1:{port}/api?token={token}"), "JupyterLab")
        yield f"http://127.0.0.1:{port}/lab/tree/{Path(command[2]).name}?token={token}"


def run_all(page: Page, address: str, until: str = HANDLE) -> None:
    "Open a notebook in JupyterLab and run all of it from the menu, with the mouse; wait for an element."
    item = lambda bar, text: f"[...document.querySelectorAll('{bar}')].find(e => e.innerText.startsWith('{text}'))"
    page.open(address)
    page.until("document.querySelectorAll('.jp-Notebook .jp-CodeCell').length > 0")
    page.until("document.querySelector('.jp-Toolbar-kernelName')?.innerText.startsWith('Python') && "  # before that, what is run is lost
               "document.querySelector('.jp-Notebook-ExecutionIndicator').dataset.status == 'idle'")
    page.click(item(".lm-MenuBar-item", "Run"))
    page.click(item(".lm-Menu-item .lm-Menu-itemLabel", "Run All Cells"))
    page.until(f"!!{until}")


def copy(project: Path, **runs: Path) -> Path:
    "The start notebook and the kept run where they lie in the project, and some runs."
    for name, source in {"tests/data/run": ROOT / "tests/data/run", **{f"runs/{k}": v for k, v in runs.items()}}.items():
        shutil.copytree(source, project / name)
    (project / "nbs").mkdir(exist_ok=True)
    for name in ("start", "label"): shutil.copy(ROOT / f"nbs/{name}.ipynb", project / "nbs")
    return project


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, lab(copy(Path(folder), run=Path(sys.argv[1]))) as address, tab("1000,1240") as page:
        run_all(page, address)
        page.click("document.querySelector('.jp-SideBar [data-id=filebrowser]')")
        page.click(HANDLE)
        for _ in range(35): page.press("ArrowRight")
        page.value("document.querySelectorAll('.jp-Notebook .jp-MarkdownCell')[3].scrollIntoView()")
        time.sleep(2)
        page.picture(ROOT / "reports/start.png")
