"""One notebook in JupyterLab as a person uses it: opened, run with the menu, its widgets used, its pages looked at."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from chromium import Chromium

PROGRESS, NOTICE = 60, 150  # seconds from which a cell has to show what is left, and to say that it is a long one
HELPERS = """
window.lab = {
  seen: new Set(), warned: new Set(),  // cells that showed how much time was left, and that it was much
  panel: () => [...jupyterapp.shell.widgets('main')].find(w => w.context?.path === lab.path),
  cells: () => lab.panel().content.widgets.map((cell, index) => ({cell, index})),
  code: () => lab.cells().filter(({cell}) => cell.model.type === 'code'),
  outputs: ({cell}) => cell.model.outputs.toJSON(),
  kernel: () => lab.panel().sessionContext.session?.kernel?.status,
  ready: () => lab.panel()?.content?.widgets?.length > 1 && lab.panel().context.isReady && lab.kernel() === 'idle',
  left: () => lab.code().filter(({cell}) => cell.model.executionCount === null && cell.model.sharedModel.source).length,
  failed: () => lab.code().some(c => lab.outputs(c).some(o => o.output_type === 'error')),
  done: () => (lab.left() === 0 && lab.kernel() === 'idle') || lab.failed() || lab.kernel() === 'dead',
  held: () => lab.code().filter(c => lab.outputs(c).some(o => o.data?.['application/vnd.jupyter.widget-view+json']))
                        .map(c => c.index),
  said: name => lab.code().flatMap(c => lab.outputs(c).filter(o => o.name === name || o.output_type === name)
                     .map(o => `cell ${c.index + 1}: ` + (o.text ?? o.evalue ?? '').toString().trim())),
  times: () => lab.code().map(c => { const t = c.cell.model.metadata.execution ?? {};
    return [c.index, (new Date(t['shell.execute_reply']) - new Date(t['iopub.execute_input'])) / 1000] })
    .filter(([, seconds]) => seconds > 0),
  look: () => { lab.code().forEach(c => { const said = JSON.stringify(lab.outputs(c));
      if (said.includes(' left')) lab.seen.add(c.index);
      if (said.includes('More than two minutes')) lab.warned.add(c.index) }); return lab.done() },
  outer: () => lab.panel().content.outerNode ?? lab.panel().content.node,
  menu: text => [...document.querySelectorAll('.lm-MenuBar-itemLabel, .lm-Menu-itemLabel')]
                  .find(e => e.textContent.trim() === text && e.offsetParent),
  dialog: () => document.querySelector('.jp-Dialog'),
  root: index => [...lab.panel().content.widgets[index].node.querySelectorAll('.jupyter-widgets')]
                   .find(e => !e.parentElement.closest('.jupyter-widgets')),
  use: index => { lab.widget = lab.root(index);
    lab.controls = [...lab.widget.querySelectorAll('select, .noUi-handle, button.jupyter-button, input')]
      .filter(e => e.offsetParent); return lab.controls.length },
  name: e => (e.closest('label')?.textContent ||
              e.closest('.jupyter-widgets')?.querySelector('label')?.textContent || e.textContent ||
              e.getAttribute('aria-label') || '').trim(),
  kind: e => e.matches('select') ? (e.size > 1 ? 'list' : 'menu') : e.matches('.noUi-handle') ? 'slider'
           : e.matches('button') ? 'button' : e.type,
  about: i => { const e = lab.controls[i], n = k => parseFloat(e.getAttribute('aria-value' + k));
    return {name: lab.name(e), kind: lab.kind(e), disabled: e.disabled ?? e.closest('[disabled]') !== null,
      tab: e.tabIndex >= 0, last: e.matches('select') ? e.selectedIndex === e.options.length - 1 : n('now') >= n('max'),
      value: e.matches('select') ? e.value : e.getAttribute('aria-valuetext')} },
  number: name => lab.controls.findIndex(e => lab.name(e) === name),
  text: () => [...lab.widget.querySelectorAll('.widget-html-content')].map(e => e.textContent.trim()).join(' ').trim(),
  picture: async () => { const images = [...lab.widget.querySelectorAll('img')];
    const bytes = await Promise.all(images.map(async i => (await fetch(i.src)).arrayBuffer()));
    const sums = await Promise.all(bytes.map(b => crypto.subtle.digest('SHA-1', b)));
    return images.length ? sums.map(s => [...new Uint8Array(s)].join()).join(' ') : lab.widget.innerHTML },
  watch: () => { lab.heights = new Set(); const widget = lab.widget;
    const look = () => { if (lab.widget === widget) { lab.heights.add(Math.round(widget.offsetHeight));
      requestAnimationFrame(look) } }; look() },
}
"""


class Problem(Exception):
    """Something a person would have stumbled over."""


class Notebook:
    """A notebook that is open in the browser.

    Args:
        browser, server: running.
        path: of the .ipynb, in the folder that the server shows.
        shots: the folder of the screenshots.
    """

    def __init__(self, browser: Chromium, server, path: str, shots: Path):
        self.browser, self.server, self.path, self.shots, self.pages = browser, server, path, shots, 0
        browser.go(server.page(path))
        browser.wait("window.jupyterapp !== undefined", 90, "JupyterLab")
        browser.evaluate(f"{HELPERS}; lab.path = {path!r}")
        browser.wait("lab.ready() || lab.dialog()", 90, "the notebook and its kernel")
        if said := browser.evaluate("lab.dialog()?.textContent"):
            self.shot("dialog")
            raise Problem(f"a dialog instead of the notebook: {said}")

    def shot(self, name: str) -> None:
        """The window as it is now."""
        self.browser.screenshot(self.shots / f"{Path(self.path).stem}_{name}.png")

    def photograph(self, name: str, overlap: int = 60) -> None:
        """The whole notebook, a window at a time."""
        top, page = 0, 0
        self.browser.evaluate("lab.outer().scrollTop = 0")
        while True:
            time.sleep(0.4)  # pictures are decoded while they come into view
            self.shot(f"{name}_{page:02d}")
            height, whole = self.browser.evaluate("[lab.outer().clientHeight, lab.outer().scrollHeight]")
            if top + height >= whole:
                return
            top, page = top + height - overlap, page + 1
            self.browser.evaluate(f"lab.outer().scrollTop = {top}")

    def choose(self, menu: str, item: str) -> None:
        """Clicks an item of JupyterLab's menu bar."""
        for text in (menu, item):
            self.browser.wait(f"lab.menu({text!r}) !== undefined", 20, f"the menu entry {text}")
            self.browser.click(f"lab.menu({text!r})")

    def run(self, seconds: float) -> float:
        """Clears all outputs and runs all cells from the menus; seconds that it took.

        Raises:
            Problem: a cell failed or wrote to standard error, or the kernel died.
            TimeoutError: it takes longer.
        """
        self.choose("Edit", "Clear Outputs of All Cells")
        self.browser.wait("lab.left() === lab.code().length", 20, "clearing the outputs")
        start = time.monotonic()
        self.choose("Run", "Run All Cells")
        self.browser.wait("lab.look()", seconds, "running all cells")
        said = [*self.browser.evaluate("lab.said('error')"), *self.browser.evaluate("lab.said('stderr')")]
        if said or self.browser.evaluate("lab.kernel()") == "dead":
            self.photograph("failed")
            raise Problem("; ".join(said) or "the kernel died")
        return time.monotonic() - start

    def silent(self) -> list[str]:
        """The cells that took long without saying how much time was left, or without saying that it is much."""
        seen, warned, times = (self.browser.evaluate(f"[...lab.{name}]") for name in ("seen", "warned", "times()"))
        lines = [f"cell {i + 1} took {s:.0f} s without progress" for i, s in times if s > PROGRESS and i not in seen]
        return lines + [f"cell {i + 1} took {s:.0f} s unannounced" for i, s in times if s > NOTICE and i not in warned]

    def widgets(self) -> Iterator[int]:
        """The cells that hold a widget, each in turn brought into view as `lab.widget`."""
        for index in self.browser.evaluate("lab.held()"):
            self.browser.evaluate(f"lab.panel().content.scrollToItem({index}, 'start')")
            self.browser.wait(f"lab.root({index}) && lab.use({index})", 30, f"the widget of cell {index + 1}")
            time.sleep(1)
            yield index

    def dark(self) -> None:
        """The whole notebook in JupyterLab's dark theme and in a small window."""
        self.browser.size(1280, 800)
        self.browser.evaluate("jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})")
        self.browser.wait("document.body.dataset.jpThemeLight === 'false'", 30, "the dark theme")
        self.photograph("dark")

    def saved(self) -> None:
        """Saves with the keyboard; `Problem` when the file then holds widget state.

        The last cell is clicked first: ipywidgets keeps the keys that are pressed in a text field to itself.
        """
        self.browser.click("lab.cells().at(-1).cell.node.querySelector('.jp-InputArea-prompt')")
        self.browser.key("s", 2)
        self.browser.wait("!lab.panel().context.model.dirty", 30, "saving")
        content = self.server.ask(f"contents/{self.path}")["content"]
        if "widgets" in content["metadata"]:
            raise Problem("the saved file holds widget state")
