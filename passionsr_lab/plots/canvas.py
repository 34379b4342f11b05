"""The figure class, the only file here that imports matplotlib; it is loaded when the first figure is made."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib.style
from matplotlib.figure import Figure

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
        """Places axes, labels and legends now and for good."""
        if self.get_layout_engine() is not None:
            self.get_layout_engine().execute(self)
            self.set_layout_engine("none")

    def savefig(self, *args, **kwargs) -> None:
        """Figure.savefig in the paper's style."""
        with paper():
            super().savefig(*args, **kwargs)

    def _repr_png_(self) -> bytes:
        """What Jupyter shows."""
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=self.dpi, metadata={"Software": None})
        return buffer.getvalue()
