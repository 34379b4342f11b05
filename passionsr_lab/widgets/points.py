"""One point per layer over the network, to click on."""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from anywidget import AnyWidget
from ipywidgets import Layout
from traitlets import List, Unicode

from .. import plots

if TYPE_CHECKING:
    from pandas import DataFrame


class LayerPoints(AnyWidget):
    """A column of a table of layers against their numbers, coloured by module; `chosen` is the layer clicked last."""

    _esm = Path(__file__).with_suffix(".js")
    rows = List().tag(sync=True)
    title = Unicode().tag(sync=True)
    chosen = Unicode().tag(sync=True)

    def __init__(self, table: DataFrame, column: str, chosen: str):
        super().__init__(chosen=chosen, layout=Layout(width="100%", height="150px"))
        self.show(table, column, table.layer)

    def show(self, table: DataFrame, column: str, listed: Collection[str]) -> None:
        """Draws a column of numbers; what is not `listed` is pale, what is not finite is left out."""
        names, listed = table.layer.tolist(), set(listed)
        values = [float(v) if math.isfinite(v) else None for v in table[column]]
        with self.hold_sync():
            self.title = column.replace("_", " ")
            self.rows = [
                {"name": name, "number": int(n), "value": value, "colour": colour, "listed": name in listed}
                for name, n, value, colour in zip(names, table.number, values, map(plots.module_colour, table.module))
            ]
