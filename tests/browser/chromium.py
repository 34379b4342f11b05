"""A headless Chromium, driven over its DevTools protocol: pages are read with JavaScript, used with mouse and keys."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from urllib.request import urlopen

import websocket

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = ("--headless=new", "--no-first-run", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
         "--remote-debugging-port=0", "--force-device-scale-factor=1")  # fmt: skip
KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, " ": 32, "PageUp": 33, "PageDown": 34, "End": 35, "Home": 36,
        "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}  # fmt: skip


class Chromium:
    """One window with one page; a context manager that ends the browser and forgets its profile.

    Args:
        width, height: of the window in CSS pixels.

    Raises:
        FileNotFoundError: no Chromium is installed.
    """

    def __init__(self, width: int = 1280, height: int = 1000):
        program = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
        if program is None:
            raise FileNotFoundError("No Chromium was found: install Debian's package `chromium`, or set CHROMIUM.")
        self.profile, self.count, self.events = tempfile.mkdtemp(prefix="chromium-"), 0, []
        flags = [*FLAGS, f"--window-size={width},{height}", f"--user-data-dir={self.profile}"]
        flags += ["--no-sandbox"] if os.geteuid() == 0 else []
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen([program, *flags, "about:blank"], **quiet)
        try:
            self.socket = websocket.create_connection(self._address(), timeout=60, suppress_origin=True)
            for domain in ("Page", "Runtime"):
                self.send(f"{domain}.enable")
            self.size(width, height)
            self.send("Emulation.setFocusEmulationEnabled", enabled=True)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Chromium:
        return self

    def __exit__(self, *_) -> None:
        self.socket.close()
        self.close()

    def close(self) -> None:
        """Ends the browser and removes its profile."""
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(20)
        for _ in range(25):  # its helpers write until they have ended too
            shutil.rmtree(self.profile, ignore_errors=True)
            if not os.path.exists(self.profile):
                return
            time.sleep(0.2)

    def _address(self, seconds: float = 60) -> str:
        port, end = Path(self.profile, "DevToolsActivePort"), time.monotonic() + seconds
        while not (port.is_file() and port.read_text().strip()):
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"Chromium did not start (exit status {self.process.poll()}).")
            time.sleep(0.1)
        with urlopen(f"http://127.0.0.1:{port.read_text().split()[0]}/json/list") as answer:
            pages = [p for p in json.load(answer) if p["type"] == "page"]
        return pages[0]["webSocketDebuggerUrl"]

    # -- the protocol ---------------------------------------------------------------------------------------------

    def send(self, method: str, **params) -> dict:
        """One command and its answer; events that come in between are kept in `events`."""
        self.count += 1
        self.socket.send(json.dumps({"id": self.count, "method": method, "params": params}))
        while True:
            message = json.loads(self.socket.recv())
            if message.get("id") == self.count:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']['message']}")
                return message["result"]
            self.events.append(message)

    def go(self, address: str) -> None:
        """Loads a page; a question whether the present one may be left is answered with yes."""
        self.evaluate("window.onbeforeunload = null")
        self.send("Page.navigate", url=address)

    def evaluate(self, code: str):
        """The value of a JavaScript expression (or of the promise that it is), as JSON."""
        answer = self.send("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise RuntimeError(details.get("exception", {}).get("description", details["text"]))
        return answer["result"].get("value")

    def wait(self, code: str, seconds: float, what: str):
        """The first value of an expression that is true; `TimeoutError` naming `what` after so many seconds."""
        end, trouble = time.monotonic() + seconds, ""
        while time.monotonic() < end:
            try:
                if value := self.evaluate(code):
                    return value
            except RuntimeError as error:  # the page is not there yet
                trouble = f" ({str(error).splitlines()[0]})"
            time.sleep(0.1)
        raise TimeoutError(f"{what}: not within {seconds:.0f} s{trouble}")

    # -- hands and eyes -------------------------------------------------------------------------------------------

    def mouse(self, kind: str, x: float, y: float, **options) -> None:
        """`kind` is moved, pressed or released."""
        pressed = {} if kind == "moved" else {"button": "left", "clickCount": 1}
        self.send("Input.dispatchMouseEvent", type=f"mouse{kind.title()}", x=x, y=y, **pressed, **options)

    def size(self, width: int, height: int) -> None:
        """Makes the window so large, in CSS pixels."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.send("Emulation.setDeviceMetricsOverride", **size)

    def click(self, element: str) -> None:
        """Clicks the middle of the element that a JavaScript expression names."""
        x, y = self.middle(element)
        for kind in ("moved", "pressed", "released"):
            self.mouse(kind, x, y)

    def drag(self, element: str, across: float) -> None:
        """Pulls an element sideways by so many pixels, in ten moves."""
        x, y = self.middle(element)
        self.mouse("moved", x, y)
        self.mouse("pressed", x, y)
        for i in range(1, 11):
            self.mouse("moved", x + across * i / 10, y, button="left", buttons=1)
        self.mouse("released", x + across, y)

    def middle(self, element: str) -> tuple[float, float]:
        """Where an element is in the window; it is scrolled into view first."""
        code = f"""(async () => {{ const e = {element}; e.scrollIntoView({{block: 'nearest'}});
            await new Promise(r => requestAnimationFrame(() => requestAnimationFrame(r)));
            const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; }})()"""
        return tuple(self.evaluate(code))

    def key(self, name: str, modifiers: int = 0) -> None:
        """Presses and releases a key (modifiers: 1 alt, 2 control, 8 shift)."""
        code = KEYS.get(name, ord(name.upper()) if len(name) == 1 else 0)
        options = {"key": name, "code": name, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        text = {"Enter": "\r"}.get(name, name if len(name) == 1 and modifiers in (0, 8) else "")
        self.send("Input.dispatchKeyEvent", type="keyDown", text=text, **options)
        self.send("Input.dispatchKeyEvent", type="keyUp", **options)

    def screenshot(self, path: Path) -> None:
        """The window as a PNG."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))
