"""JupyterLab on a free port with a token, over a copy of the notebooks, with nobody's settings."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {
    "@jupyterlab/apputils-extension:notification": {"checkForUpdates": False, "fetchNews": "false"},
    "@jupyterlab/notebook-extension:tracker": {"recordTiming": True, "scrollPastEnd": False},
}


class Server:
    """A running JupyterLab: its address, its token, and the folder it shows."""

    def __init__(self, port: int, token: str, folder: Path):
        self.address, self.token, self.folder = f"http://127.0.0.1:{port}", token, folder

    def page(self, path: str) -> str:
        """The address that opens a file in JupyterLab."""
        return f"{self.address}/lab/tree/{path}?token={self.token}&reset"

    def ask(self, path: str, method: str = "GET"):
        """The answer of the server's own interface, as JSON."""
        request = Request(f"{self.address}/api/{path}", method=method, headers={"Authorization": f"token {self.token}"})
        with urlopen(request, timeout=30) as answer:
            return json.loads(answer.read() or "null")

    def end_kernels(self) -> None:
        """Ends every kernel, so that the next notebook has the machine to itself."""
        for session in self.ask("sessions"):
            self.ask(f"sessions/{session['id']}", "DELETE")


def copied(target: Path, knobs: Sequence[str] = ()) -> None:
    """What a notebook needs of the checkout, with `knobs` turned; the figures that it saves go to the copy."""
    shutil.copytree(ROOT / "notebooks", target / "notebooks", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    shutil.copytree(ROOT / "figures", target / "figures")
    shutil.copy2(ROOT / "pyproject.toml", target)
    for source in (target / "notebooks").glob("*.py"):
        before, parameters, after = source.read_text().partition('tags=["parameters"]')
        own, mark, rest = after.partition("\n\n# %%")
        has = lambda knob, own=own: re.search(rf"^[\w, ]*\b{knob.partition('=')[0].strip()}\b[\w, ]* = ", own, re.M)
        turned = [knob for knob in knobs if has(knob)]
        source.write_text(before + parameters + "\n".join([own, *turned]) + mark + rest)
        os.utime(source.with_suffix(".ipynb"))  # newer than its source, as `make figures` leaves it


@contextmanager
def serving(log: Path, knobs: Sequence[str] = (), seconds: float = 90) -> Iterator[Server]:
    """A JupyterLab for the block; what it says goes to `log`.

    Args:
        log: a file.
        knobs: lines like "EPOCHS = 1" that are added to the notebooks' parameters, where they have such a knob.
        seconds: that it may take to answer.

    Raises:
        RuntimeError: it did not answer within so many seconds.
    """
    with tempfile.TemporaryDirectory(prefix="notebooks-") as place:
        place = Path(place)
        copied(place / "checkout", knobs)
        server = Server(_free_port(), secrets.token_hex(16), place / "checkout")
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as stream:
            process = subprocess.Popen(_command(server), env=_environment(place), stdout=stream, stderr=stream)
            try:
                _answering(server, process, seconds)
                yield server
            finally:
                process.terminate()  # which ends its kernels
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    process.kill()


def _command(server: Server) -> list[str]:
    options = {
        "ServerApp.port": server.address.rpartition(":")[2], "ServerApp.ip": "127.0.0.1", "ServerApp.port_retries": 0,
        "IdentityProvider.token": server.token, "ServerApp.root_dir": server.folder, "ServerApp.open_browser": False,
        "LabApp.expose_app_in_browser": True,
    }  # fmt: skip
    root = ["--allow-root"] * (os.geteuid() == 0)
    return [sys.executable, "-m", "jupyterlab", *root, *(f"--{name}={value}" for name, value in options.items())]


def _environment(place: Path) -> dict[str, str]:
    """Settings, workspaces and history in a folder of their own; the package of this checkout."""
    app = place / "settings"
    for plugin, values in SETTINGS.items():
        extension, _, name = plugin.partition(":")
        path = app / extension / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    own = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime",
           "IPYTHONDIR": "ipython", "JUPYTERLAB_WORKSPACES_DIR": "workspaces"}  # fmt: skip
    folders = {name: str(place / folder) for name, folder in own.items()} | {"JUPYTERLAB_SETTINGS_DIR": str(app)}
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return os.environ | folders | {"PYTHONPATH": path}


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _answering(server: Server, process: subprocess.Popen, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        try:
            server.ask("status")
            return
        except (URLError, OSError):
            time.sleep(0.3)
    raise RuntimeError(f"JupyterLab did not answer within {seconds:.0f} s; see its log.")
