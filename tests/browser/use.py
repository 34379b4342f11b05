"""Every control of a widget used once, by keyboard and mouse; what a person would stumble over is a `Problem`."""

from __future__ import annotations

import time

from notebook import Notebook, Problem

CHANGE = 30  # seconds that a new picture may take
TABLE = ("Search", "Sort by", "falling", "Python", "JSON")  # they change a list or a text, not the picture
STOP = 90  # seconds from Stop until the widget is ready again
DEPLOY = 120  # seconds that folding, packing, compiling and measuring may take


def use(notebook: Notebook, index: int) -> list[str]:
    """Uses the widget in `lab.widget`; a line for each thing done."""
    browser = notebook.browser
    count = browser.evaluate("lab.controls.length")
    controls = [browser.evaluate(f"lab.about({i})") for i in range(count)]
    done = [_tabs(notebook, controls)]
    browser.evaluate("lab.widget.scrollIntoView({block: 'center'}); lab.watch()")
    notebook.shot(f"cell{index + 1}_before")
    if any(c["name"] == "Stop" for c in controls):
        done += _run_and_stop(notebook, index)
    else:
        done += [_one(notebook, i, c) for i, c in enumerate(controls) if c["name"] not in TABLE]
        if any(c["name"] == "Search" for c in controls):
            done += [_clicked(notebook), _searched(notebook)]
        slider = next((i for i, c in enumerate(controls) if c["kind"] == "slider"), None)
        if slider is not None:
            done.append(_dragged(notebook, slider))
    notebook.shot(f"cell{index + 1}_after")
    heights = browser.evaluate("[...lab.heights]")
    if len(heights) > 1:
        raise Problem(f"the widget's height jumped: {heights} px")
    if any(c["name"] == "Deploy" for c in controls):
        done.append(_deployed(notebook, index))
    return done


def _tabs(notebook: Notebook, controls: list[dict]) -> str:
    """Every enabled control has a label and is reached by the Tab key, in the order in which they stand."""
    nameless = [i for i, c in enumerate(controls) if not c["name"]]
    if nameless:
        raise Problem(f"controls without a label: {nameless}")
    wanted = [i for i, c in enumerate(controls) if not c["disabled"]]
    browser, visited = notebook.browser, [wanted[0]]
    browser.evaluate(f"lab.controls[{wanted[0]}].focus()")
    for _ in range(3 * len(controls)):
        browser.key("Tab")
        here = browser.evaluate("lab.controls.indexOf(document.activeElement)")
        visited += [here] * (here >= 0)
    missed = [controls[i]["name"] for i in wanted if i not in visited]
    if missed or visited[: len(wanted)] != wanted:
        raise Problem(f"the Tab key does not reach {missed}; it went {visited}, not {wanted}")
    return f"{len(wanted)} controls by Tab"


def _one(notebook: Notebook, i: int, control: dict) -> str:
    """One change of a control by keyboard, after which the picture is another one.

    A menu is opened first: JupyterLab takes the arrow keys of a closed one, and of a list, for itself (ipywidgets issue
    3912).
    """
    keys = {"menu": ("ArrowDown", "ArrowUp"), "list": ("PageDown", "PageUp"), "slider": ("ArrowRight", "ArrowLeft")}
    arrows = keys.get(control["kind"], (" ", " "))
    browser = notebook.browser
    before = browser.evaluate("lab.picture()")
    browser.evaluate(f"lab.controls[{i}].focus()")
    last = browser.evaluate(f"lab.about({i}).last")
    keys = [" ", arrows[last], "Enter"] if control["kind"] == "menu" else [arrows[last]]
    seconds = _changed(notebook, before, lambda: [browser.key(key) for key in keys], control["name"])
    return f"{control['name']}: {browser.evaluate(f'lab.about({i}).value') or 'pressed'} in {seconds:.1f} s"


def _searched(notebook: Notebook) -> str:
    """A text that is typed leaves the rows that hold it."""
    browser = notebook.browser
    rows = "lab.controls[lab.number('Layer')].options.length"
    every = browser.evaluate(rows)
    browser.evaluate("lab.controls[lab.number('Search')].focus()")
    for letter in "conv_in":
        browser.key(letter)
    found = browser.wait(f"{rows} < {every} && {rows}", CHANGE, "the search")
    notebook.shot("searched")
    return f"search: {found} of {every} layers"


def _clicked(notebook: Notebook) -> str:
    """A click on the point of another layer shows that layer."""
    browser = notebook.browser
    chosen, points = "lab.controls[lab.number('Layer')].selectedIndex", "lab.widget.querySelectorAll('circle')"
    browser.wait(f"{points}.length", CHANGE, "the points of the layers")
    before, other = browser.evaluate("lab.picture()"), browser.evaluate(f"({chosen} + 20) % {points}.length")
    seconds = _changed(notebook, before, lambda: browser.click(f"{points}[{other}]"), "a click on a point")
    notebook.shot("clicked")
    return f"a click on {browser.evaluate(f'{points}[{other}].dataset.layer')} in {seconds:.1f} s"


def _dragged(notebook: Notebook, i: int) -> str:
    browser = notebook.browser
    before, about = browser.evaluate("lab.picture()"), browser.evaluate(f"lab.about({i})")
    across = browser.evaluate(f"""(() => {{ const h = lab.controls[{i}].getBoundingClientRect(),
        b = lab.controls[{i}].closest('.noUi-target').getBoundingClientRect();
        return h.x + h.width / 2 < b.x + b.width / 2 ? 40 : -40 }})()""")
    seconds = _changed(
        notebook, before, lambda: browser.drag(f"lab.controls[{i}]", across), f"{about['name']}, dragged"
    )
    return f"{about['name']} dragged to {browser.evaluate(f'lab.about({i}).value')} in {seconds:.1f} s"


def _changed(notebook: Notebook, before: str, act, name: str) -> float:
    """Seconds until the picture is another one."""
    browser, start = notebook.browser, time.monotonic()
    act()
    while browser.evaluate("lab.picture()") == before:
        if time.monotonic() - start > CHANGE:
            text = browser.evaluate("lab.text()")
            raise Problem(f"{name}: the picture is the same {CHANGE} s later; the widget says {text!r}")
        time.sleep(0.05)
    if trouble := browser.evaluate("lab.widget.querySelector('[role=alert]')?.textContent"):
        raise Problem(f"{name}: {trouble}")
    return time.monotonic() - start


def _run_and_stop(notebook: Notebook, index: int) -> list[str]:
    """Settings by keyboard, then the first button; when pictures have come, Stop; then Continue, and Interrupt Kernel.
    After both all is as before."""
    browser = notebook.browser
    start = browser.evaluate("lab.controls.findIndex(e => lab.kind(e) === 'button')")
    stop = browser.evaluate("lab.number('Stop')")
    slider = browser.evaluate("lab.controls.findIndex(e => lab.kind(e) === 'slider')")
    browser.evaluate(f"lab.controls[{slider}].focus()")
    browser.key("ArrowRight")
    before, begun = browser.evaluate("lab.picture()"), time.monotonic()
    browser.evaluate(f"lab.controls[{start}].focus()")
    first = _changed(notebook, before, lambda: browser.key(" "), "the first button")
    if browser.evaluate(f"lab.controls[{stop}].disabled"):
        raise Problem("Stop cannot be pressed while it runs")
    second = _changed(notebook, browser.evaluate("lab.picture()"), lambda: None, "the running picture")
    notebook.shot(f"cell{index + 1}_running")
    running = browser.evaluate("lab.text()")
    if "left" not in running:
        raise Problem(f"no time left is shown while it runs: {running!r}")
    browser.click(f"lab.controls[{stop}]")
    pressed = time.monotonic()
    browser.wait(f"lab.controls[{stop}].disabled && !lab.controls[{start}].disabled", STOP, "stopping")
    took, said = time.monotonic() - pressed, browser.evaluate("lab.text()")
    if "Stopped" not in said:
        raise Problem(f"after Stop the widget says {said!r}")
    further = browser.evaluate("lab.number('Continue')")
    browser.click(f"lab.controls[{further}]")
    browser.wait(f"!lab.controls[{stop}].disabled", CHANGE, "going on")
    _changed(notebook, browser.evaluate("lab.picture()"), lambda: None, "the picture after Continue")
    notebook.choose("Kernel", "Interrupt Kernel")
    interrupted = time.monotonic()
    browser.wait(f"lab.controls[{stop}].disabled && !lab.controls[{start}].disabled", STOP, "the interrupt")
    return [
        f"first picture after {first:.1f} s, the next {second:.1f} s later: {running}",
        f"stopped in {took:.1f} s, {pressed - begun:.0f} s after the start: {said}",
        f"continued, and interrupted in {time.monotonic() - interrupted:.1f} s: {browser.evaluate('lab.text()')}",
    ]


def _deployed(notebook: Notebook, index: int) -> str:
    """Deploy, after which a line can be moved between full precision and the model in integers, which has seconds."""
    browser = notebook.browser
    browser.click("lab.controls[lab.number('Deploy')]")
    browser.wait("/Deployed|Error/.test(lab.text())", DEPLOY, "deploying")
    if trouble := browser.evaluate("lab.widget.querySelector('[role=alert]')?.textContent"):
        raise Problem(f"Deploy: {trouble}")
    page = "lab.widget.querySelector('iframe').contentDocument.querySelector('.compare')"
    browser.wait(f"{page}.dataset.ready", CHANGE, "the line between the pictures")
    names = browser.evaluate(f"[...{page}.querySelector('[data-part=right]').options].map(o => o.value)")
    wrong = [name for name in names if ("simulated" in name) == name.endswith(" s")]
    if wrong or not any("deployed" in name for name in names):
        raise Problem(f"full precision and deployed models have seconds, others none: {names}")
    browser.evaluate(f"{page}.scrollIntoView({{block: 'end'}})")
    notebook.shot(f"cell{index + 1}_deployed")
    return f"deployed: {', '.join(names)}"
