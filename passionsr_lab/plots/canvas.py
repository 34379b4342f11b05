"""The figure class, the only file here that imports matplotlib; it is loaded when the first figure is made."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib.style
import numpy as np
from matplotlib.figure import Figure

from .colours import GREY
from .texts import END, wrapped

STYLE = Path(__file__).parent / "paper.mplstyle"


@contextmanager
def paper() -> Iterator[None]:
    """Within the block matplotlib has the paper's style and none of the user's settings; afterwards as before."""
    with matplotlib.style.context(["default", STYLE]):
        yield


class PaperFigure(Figure):
    """A Figure that is drawn in the paper's style wherever it is drawn, and that a notebook shows by itself.

    pyplot does not know it: nothing stays open, and an inline backend does not draw it a second time.
    """

    def draw(self, renderer) -> None:
        """Draws; ticks are made only here, so the style must hold here too."""
        with paper():
            super().draw(renderer)

    def fix_layout(self) -> None:
        """Places axes, labels and legends now and for good: matplotlib would start the next layout from this one."""
        engine = self.get_layout_engine()
        if engine is not None:
            engine.execute(self)
            if sum(_wrap_labels(ax) for ax in self.axes):
                engine.execute(self)
            self.set_layout_engine("none")
        for ax in self.axes:
            _part_labels(ax)

    def add_caption(self, text: str) -> None:
        """Writes small lines below everything; the figure grows by their height."""
        lines = wrapped(text, 20 * self.get_figwidth())
        old, extra = self.get_figheight(), 0.05 + 0.1 * len(lines)
        new = old + extra
        self.set_figheight(new)
        for ax in self.axes:
            box = ax.get_position(original=True)
            ax.set_position((box.x0, (box.y0 * old + extra) / new, box.width, box.height * old / new))
        for written in self.texts:
            written.set_y((written.get_position()[1] * old + extra) / new)
        for legend in self.legends:
            legend.set_bbox_to_anchor((0, extra / new, 1, old / new), transform=self.transFigure)
        self.text(0.01, 0.03 / new, "\n".join(lines), fontsize=6, color=GREY, va="bottom", linespacing=1.1)

    def savefig(self, *args, **kwargs) -> None:
        """Figure.savefig in the paper's style."""
        with paper():
            super().savefig(*args, **kwargs)

    def _repr_png_(self) -> bytes:
        """What Jupyter shows."""
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=self.dpi, metadata={"Software": None})
        return buffer.getvalue()


def _wrap_labels(ax) -> bool:
    """Breaks the axes' labels and title where they are longer than the axes; whether any was."""
    box, found = ax.get_window_extent(), False
    for text in (ax.xaxis.label, ax.yaxis.label, ax.set_title(ax.get_title("left"))):
        own, upright = text.get_window_extent(), text.get_rotation() == 90
        length, room = (own.height, box.height) if upright else (own.width, box.width)
        if length > room:
            whole = text.get_text().replace("\n", " ")
            text.set_text("\n".join(wrapped(whole, len(whole) * room / length)))
            found = True
    return found


def _part_labels(ax) -> None:
    """Moves the names at the ends of lines up and down, as little as possible, until none touches another."""
    labels = [(t.get_window_extent(), t) for t in ax.texts if t.get_gid() == END]
    labels.sort(key=lambda pair: pair[0].y0)
    if not labels:
        return
    inside, heights = ax.get_window_extent(), np.array([box.height + 1 for box, _ in labels])
    middles = np.array([(box.y0 + box.y1) / 2 for box, _ in labels])
    offsets = np.cumsum(heights) - heights / 2  # of the middles, were all of them stacked
    free, every = middles.clip(inside.y0, inside.y1) - offsets, range(len(labels))
    found = [max(min(free[a : b + 1].mean() for b in every[i:]) for a in every[: i + 1]) for i in every]  # isotonic
    found += offsets + min(0, inside.y1 - found[-1] - offsets[-1] - heights[-1] / 2)
    for (_, text), move in zip(labels, (found - middles) * 72 / ax.figure.dpi):
        text.set_position((text.get_position()[0], move))
