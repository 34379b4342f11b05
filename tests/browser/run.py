"""Tries the notebooks as a new user would: JupyterLab in a headless Chromium, run all, every widget used once.

    python tests/browser/run.py                   # all of notebooks/, and the pages that need no kernel
    python tests/browser/run.py 02 03             # those whose names begin so

It works on a copy; screenshots go to build/browser/.  Needs Chromium (Debian: `apt-get install chromium`).
"""

from __future__ import annotations

import argparse
import signal
import sys
import time

from chromium import Chromium
from notebook import Notebook, Problem
from pages import use_pages
from server import ROOT, Server, serving
from use import use

SHOTS = ROOT / "build" / "browser"


def attempt(browser: Chromium, server: Server, name: str, seconds: float) -> list[str]:
    """Opens, runs and uses one notebook; the problems."""
    problems = []
    try:
        notebook = Notebook(browser, server, f"notebooks/{name}.ipynb", SHOTS)
        notebook.photograph("web")  # the committed outputs, as on a page without a kernel
        say(f"{name}: ran in {notebook.run(seconds):.0f} s")
        notebook.photograph("run")
        problems += [f"{name}, {silent}" for silent in notebook.silent()]
        for index in notebook.widgets():
            try:
                say(*(f"{name}, cell {index + 1}: {line}" for line in use(notebook, index)))
            except (Problem, TimeoutError) as problem:
                notebook.shot(f"cell{index + 1}_problem")
                problems.append(f"{name}, cell {index + 1}: {problem}")
        notebook.dark()
        notebook.saved()
    except (Problem, TimeoutError) as problem:
        problems.append(f"{name}: {problem}")
    return problems


def without_kernel() -> list[str]:
    """Uses the pages that need no kernel; the problems."""
    try:
        with Chromium(1280, 800) as browser:
            say(*use_pages(browser, SHOTS))
    except (Problem, TimeoutError) as problem:
        return [f"pages: {problem}"]
    return []


def say(*lines: str) -> None:
    for line in lines:
        print(line, flush=True)


def main() -> int:
    """0 when no notebook had a problem; each problem is one line on standard error."""
    top = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    top.add_argument("names", nargs="*", help="beginnings of the notebooks' names; by default all")
    top.add_argument("--seconds", type=float, default=900, help="that one notebook may take (default 900)")
    top.add_argument("--knob", action="append", default=[], help="e.g. EPOCHS=1, for a quick try; may be given again")
    options = top.parse_args()
    names = sorted(path.stem for path in (ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    names = [name for name in names if not options.names or name.startswith(tuple(options.names))]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # so that server and browser are ended too
    problems, start = [], time.monotonic()
    if not options.names:
        problems += without_kernel()
    with serving(SHOTS / "server.log", options.knob) as server:
        for name in names:
            with Chromium(1280, 1400) as browser:
                problems += attempt(browser, server, name, options.seconds)
            server.end_kernels()
    for problem in problems:
        print(problem, file=sys.stderr)
    say(f"{len(names)} notebooks, {len(problems)} problems, {time.monotonic() - start:.0f} s; look at {SHOTS.name}/")
    return int(bool(problems) or not names)


if __name__ == "__main__":
    sys.exit(main())
