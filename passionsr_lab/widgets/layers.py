"""What reaches one layer: histogram, grid and channels, before and after LET; and a table to find a layer in."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from ipywidgets import HTML, Checkbox, HBox, Layout, Select, Text

from .. import plots
from ..analysis.observe import Stats, weight_channels
from ..quantization.attention import QuantAttention
from ..quantization.layer import QuantLayer
from ..quantization.place import QuantizedSR
from .picture import Explorer, menu, slider
from .points import LayerPoints

if TYPE_CHECKING:
    from pandas import DataFrame


def boundaries(q: QuantizedSR, layer: str) -> tuple[int, list[tuple[float, float]]]:
    """Bits and (lower, upper) of the quantizers of a calibrated layer's input, after LET; two of them in a split layer.

    Args:
        layer: a name of `Stats.layers`; attentions end in .q, .k or .v.

    Raises:
        ValueError: the layer is not quantized.
        RuntimeError: it is not calibrated.
    """
    found = q.layers
    name, _, key = layer.rpartition(".")
    with torch.no_grad():
        if isinstance(found.get(layer), QuantLayer):
            own = found[layer]
            quantizers, ranges = list(own.act_quantizers), own.input_ranges()
        elif isinstance(found.get(name), QuantAttention) and key in "qkv":
            quantizers, ranges = [found[name].quantizers[key]], [found[name].natural_range(key)]
        else:
            raise ValueError(f"{layer} is not a quantized layer; layer_table lists those.")
        bounds = [a.bounds(*r) for a, r in zip(quantizers, ranges)]
    return quantizers[0].bits, [(lower.item(), upper.item()) for lower, upper in bounds]


def layer_figure(
    stats: Stats,
    layer: str,
    q: QuantizedSR | None = None,
    bits: int | None = None,
    caption: str | Mapping = "",
):
    """One layer's input and weight: histogram, grid and channel ranges; before and after LET where `q` is given.

    Args:
        stats: what `observing` recorded; of `q` itself where that is given.
        layer: a name of `stats.layers()`.
        q: the calibrated pipeline, for the boundaries, for the values after LET and for the weight.
        bits: without `q`, the width of the grid between minimum and maximum (MaxMin) that is drawn; None draws none.
        caption: the small line below.

    Raises:
        ValueError: the layer was not seen, or is not quantized in `q`.
    """
    own = stats.channels(layer)
    name = f"layer {own.number[0]}, {layer}"
    maxmin = (float(own.low.min()), float(own.high.max()))
    if q is None:
        parts = {"": (*stats.histogram(layer), maxmin if bits else None, own)}
        return plots.layer_panels(parts, bits, heading=f"Input of {name}", caption=caption)
    bits, bounds = boundaries(q, layer)
    span = (min(b[0] for b in bounds), max(b[1] for b in bounds))
    after = stats.channels(layer, after=True)
    parts = {
        "before LET": (*stats.histogram(layer), maxmin, own),
        "after LET": (*stats.histogram(layer, after=True), span, after),
    }
    heading = f"Input of {name}: {bits} bits, MaxMin before LET and the quantizer's boundaries after"
    grid = bits if len(bounds) == 1 else None
    return plots.layer_panels(parts, grid, q.recipe.zero_point, heading, _weights(q, layer), caption=caption)


def _weights(q: QuantizedSR, layer: str) -> dict[str, tuple]:
    """The weight before and after LET; nothing for an attention's product."""
    found = q.layers.get(layer)
    if not isinstance(found, QuantLayer):
        return {}
    states = {}
    with torch.no_grad():
        for name, weight in (("before", found.layer.weight), ("after", found.transformed_weight())):
            counts, edges = np.histogram(weight.float().cpu().numpy(), 120)
            channels = weight_channels(q, layer, name == "after", dim=1)
            states[f"weight {name}"] = edges, counts, None, channels
    return states


def layer_rows(
    stats: Stats, q: QuantizedSR | None = None, noise: DataFrame | None = None, ranking: DataFrame | None = None
) -> DataFrame:
    """What is known of every layer, in network order, as the layer explorer lists it.

    Columns: number, layer, module, kind, low and high of the input, outliers (% of its values); of a quantized pipeline
    weight_bits, act_bits, and let: the input's range after LET over that before; and columns of `noise` and `ranking`.

    Args:
        stats, q: as for `layer_figure`.
        noise: what `propagation` returned.
        ranking: what `sensitivity` returned.
    """
    rows = stats.layers()[["number", "module", "layer", "kind", "low", "high", "outlier_share"]].copy()
    rows["layer"] = rows.layer.astype(str)
    rows["outliers"] = 100 * rows.pop("outlier_share")
    if q is not None:
        after = stats.layers(after=True).assign(layer=lambda frame: frame.layer.astype(str)).set_index("layer")
        rows = rows[rows.layer.isin(after.index)]
        owners = rows.layer.where(rows.kind != "attention", rows.layer.str.rpartition(".")[0])
        bits = [q.layers[name].setting for name in owners]
        rows["weight_bits"], rows["act_bits"] = ([getattr(b, n) for b in bits] for n in ("weight_bits", "act_bits"))
        span = (after.high - after.low)[rows.layer].to_numpy()
        rows["let"] = span / (rows.high - rows.low).to_numpy()
    for frame, names in ((noise, ("local_db", "accumulated_db")), (ranking, ("gain_db",))):
        if frame is not None:
            own = frame.assign(layer=frame.layer.astype(str))
            rows = rows.merge(own[["layer", *names]], on="layer", how="left")
    return rows.reset_index(drop=True)


class LayerExplorer(Explorer):
    """A table of layers to search and sort, with the column it is sorted by as points, above the picture of the one
    that is chosen in it, or by a click on its point."""

    def __init__(self, draw, rows: DataFrame, layer: str, more: dict):
        self.rows = rows
        chosen = Select(description="Layer", rows=8, layout=Layout(width="100%"), tooltip="The layer that is shown")
        chosen.add_class("layer-table")
        chosen.options = self._options(rows)
        chosen.value = layer
        super().__init__(draw, {"layer": chosen, **more}, 520, "layer explorer")
        self.search = Text(description="Search", placeholder="a part of a row", tooltip="Rows that hold this text")
        columns = [(name.replace("_", " "), name) for name in rows]
        self.sort = menu("Sort by", columns, "number", "The column that rows are sorted by")
        self.falling = Checkbox(False, description="falling", tooltip="The largest first", indent=False)
        for control in (self.search, self.sort, self.falling):
            control.tabbable = True
            control.observe(self._listed, names="value")
        font = HTML("<style>.layer-table select { font-family: monospace; font-size: 11px }</style>")
        self.head = HTML(f"<pre style='margin:0 0 0 92px;font-size:11px'>{self._line(self._cells(rows)[0])}</pre>")
        self.points = LayerPoints(rows, self._measured(), layer)
        self.points.observe(self._clicked, names="chosen")
        chosen.observe(lambda change: change.new and setattr(self.points, "chosen", change.new), names="value")
        top = HBox([self.search, self.sort, self.falling, font])
        self.children = (top, self.points, self.head, *self.children)

    def _listed(self, _) -> None:
        """Lists the rows that are asked for; the chosen one stays where it is among them, and the picture with it."""
        rows = self.rows.sort_values(self.sort.value, ascending=not self.falling.value, kind="stable")
        options = [(text, name) for text, name in self._options(rows) if self.search.value.lower() in text.lower()]
        self.points.show(self.rows, self._measured(), [name for _, name in options])
        control, layer = self.controls["layer"], self.controls["layer"].value
        if not options:
            self.note.value = "<span role='alert'>No row holds this text.</span>"
            return
        with self._holding():
            control.options = options
            control.value = layer if layer in dict(map(reversed, options)) else options[0][1]
        self.note.value = ""
        if control.value != layer:
            self.redraw()

    def _measured(self) -> str:
        """The column that is sorted by, where it is one of measured numbers; else that of outliers."""
        by = self.sort.value
        return by if by != "number" and self.rows[by].dtype.kind in "if" else "outliers"

    def _clicked(self, change) -> None:
        """Chooses the layer; a search that hides it ends."""
        if change.new not in dict(map(reversed, self.controls["layer"].options)):
            self.search.value = ""
        self.controls["layer"].value = change.new

    def _options(self, rows: DataFrame) -> list[tuple[str, str]]:
        return [(self._line(cells), name) for cells, name in zip(self._cells(rows)[1:], rows.layer)]

    def _cells(self, rows: DataFrame) -> list[list[str]]:
        """The texts of all cells, the heading first."""
        short = {"weight_bits": "W", "act_bits": "A", "local_db": "local dB", "accumulated_db": "all dB"}
        short |= {"number": "#", "gain_db": "gain dB", "let": "LET ×", "outliers": "outl. %"}
        texts = [[short.get(name, name) for name in rows]]
        for row in rows.itertuples(index=False):
            texts.append([f"{v:.3g}" if isinstance(v, float) else str(v) for v in row])
        return texts

    @cached_property
    def _widths(self) -> list[int]:
        return [max(map(len, column)) for column in zip(*self._cells(self.rows))]

    def _line(self, cells: list[str]) -> str:
        left = {"layer", "module", "kind"}
        padded = (c.ljust(w) if n in left else c.rjust(w) for c, w, n in zip(cells, self._widths, self.rows))
        return "  ".join(padded).replace(" ", "\N{NO-BREAK SPACE}")


def layer_explorer(
    stats: Stats,
    q: QuantizedSR | None = None,
    layer: str | None = None,
    bits: int = 4,
    noise: DataFrame | None = None,
    ranking: DataFrame | None = None,
    caption: str | Mapping = "",
):
    """Search and sort the layers, pick one, and see `layer_figure` of it.

    Args:
        stats, q, noise, ranking: as for `layer_rows`.
        caption: of the picture, as for `layer_figure`.
        layer: the first one shown; by default the first in the network.
        bits: of the grid, where `q` does not say it; 0 draws none.
    """
    rows = layer_rows(stats, q, noise, ranking)
    tip = "Bits of the grid between minimum and maximum; 0 draws none"
    more = {} if q is not None else {"bits": slider("Bits", bits, 0, 8, tip)}
    return LayerExplorer(lambda **v: layer_figure(stats, q=q, caption=caption, **v), rows, layer or rows.layer[0], more)
