"""The pages that need no kernel, used with mouse and keys, the network cut off."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from chromium import Chromium
from notebook import Problem

import passionsr_lab as lab
from passionsr_lab.pages.compare import Comparison

ROOT = "document.querySelector('.compare')"
PART = ROOT + ".querySelector('[data-part={}]')"
PIXEL = "(() => {{ const c = {canvas}; return [...c.getContext('2d').getImageData({x}, 5, 1, 1).data] }})()"


def use_pages(browser: Chromium, folder: Path) -> list[str]:
    """A line for each thing done; what does not behave is a `Problem`."""
    browser.send("Network.enable")
    offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
    browser.send("Network.emulateNetworkConditions", **offline)
    folder.mkdir(parents=True, exist_ok=True)
    return _comparison(browser, folder) + _report(browser, folder)


def _comparison(browser: Chromium, folder: Path) -> list[str]:
    black, white = np.zeros((64, 64, 3)), np.ones((64, 64, 3))
    page = Comparison({"black": black, "white": white}).save(folder / "comparison.html")
    browser.go(page.as_uri())
    browser.wait(f"{ROOT}.dataset.ready", 30, "the comparison")
    canvas, state = PART.format("canvas"), f"{PART.format('state')}.textContent"
    _expect(browser, PIXEL.format(canvas=canvas, x=400), [255] * 4, "right of the line")
    browser.drag(canvas, 200)
    browser.wait(f"{state}.includes('81 %')", 5, "the line follows the pointer")
    _expect(browser, PIXEL.format(canvas=canvas, x=400), [0, 0, 0, 255], "the line was dragged past it")
    browser.evaluate(f"{canvas}.focus()")
    browser.key("ArrowLeft")
    browser.wait(f"{state}.includes('79 %')", 5, "the arrow key moves the line")
    browser.key("+")
    browser.wait(f"{state}.startsWith('1.3')", 5, "the plus key zooms")
    browser.evaluate(
        f"{PART.format('show')}.value = 'difference'; {PART.format('show')}.dispatchEvent(new Event('change'))"
    )
    _expect(browser, PIXEL.format(canvas=canvas, x=400), [255] * 4, "the difference of black and white")
    browser.screenshot(folder / "comparison.png")
    return ["comparison: dragged, moved by keys, zoomed, difference shown"]


def _report(browser: Chromium, folder: Path) -> list[str]:
    pipe, pairs = lab.tiny(), lab.bundled("calibration", 2, 64)
    q = lab.quantize(pipe, "W6A6")
    page = lab.report(q, lab.bundled("test", 2, 128), lab.calibrate(q, pairs, epochs=1)).save(folder / "report.html")
    browser.go(page.as_uri())
    browser.wait(f"{ROOT}?.dataset.ready && document.images.length", 30, "the report")
    broken = browser.evaluate("[...document.images].filter(i => !i.naturalWidth).length")
    if broken:
        raise Problem(f"{broken} pictures of the report are not shown")
    table = "document.querySelector('input[type=search]').parentElement.parentElement.nextElementSibling"
    rows = f"[...{table}.querySelectorAll('tbody tr')].filter(r => !r.hidden)"
    every = browser.evaluate(f"{rows}.length")
    browser.evaluate("document.querySelector('input[type=search]').focus()")
    for letter in "conv_in":
        browser.key(letter)
    browser.wait(f"{rows}.length === 3", 5, "the search leaves the three layers called conv_in")
    browser.evaluate(f"{table}.querySelectorAll('th')[1].click()")
    first = browser.evaluate(f"{rows}[0].cells[1].textContent")
    if first != "unet.conv_in":
        raise Problem(f"sorted by name, the first layer is {first}")
    browser.screenshot(folder / "report.png")
    return [f"report: {every} layers searched and sorted, {page.stat().st_size / 1e6:.1f} MB, without a network"]


def _expect(browser: Chromium, code: str, value, what: str) -> None:
    browser.wait(f"JSON.stringify({code}) === JSON.stringify({value})", 5, what)
