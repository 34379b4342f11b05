"""What reaches one layer: its histogram, its grid and its channels, before and after LET."""

from __future__ import annotations

import torch

from .. import plots
from ..analysis.observe import Stats
from ..quantization.attention import QuantAttention
from ..quantization.layer import QuantLayer
from ..quantization.place import QuantizedSR
from .picture import Explorer, menu, slider


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


def layer_figure(stats: Stats, layer: str, q: QuantizedSR | None = None, bits: int | None = None):
    """One layer's input: histogram, grid and channel ranges; before and after LET where `q` is given.

    Args:
        stats: what `observing` recorded; of `q` itself where that is given.
        layer: a name of `stats.layers()`.
        q: the calibrated pipeline, for the boundaries and for the values after LET.
        bits: without `q`, the width of the grid between minimum and maximum (MaxMin) that is drawn; None draws none.

    Raises:
        ValueError: the layer was not seen, or is not quantized in `q`.
    """
    own = stats.channels(layer)
    maxmin = (float(own.low.min()), float(own.high.max()))
    if q is None:
        parts = {"": (*stats.histogram(layer), maxmin if bits else None, own)}
        return plots.layer_panels(parts, bits, heading=f"Input of {layer}")
    bits, bounds = boundaries(q, layer)
    span = (min(b[0] for b in bounds), max(b[1] for b in bounds))
    after = stats.channels(layer, after=True)
    parts = {
        "before LET": (*stats.histogram(layer), maxmin, own),
        "after LET": (*stats.histogram(layer, after=True), span, after),
    }
    heading = f"Input of {layer}: {bits} bits, MaxMin before LET and the quantizer's boundaries after"
    return plots.layer_panels(parts, bits if len(bounds) == 1 else None, q.recipe.zero_point, heading)


def layer_explorer(stats: Stats, q: QuantizedSR | None = None, layer: str | None = None, bits: int = 4):
    """Pick a layer, in network order, and see `layer_figure` of it.

    Args:
        stats, q: as for `layer_figure`.
        layer: the first one shown; by default the first in the network.
        bits: of the grid, where `q` does not say it; 0 draws none.
    """
    names = [str(name) for name in stats.layers(after=q is not None).layer]
    names = [str(name) for name in stats.layers(after=q is not None).layer]
    options = [(f"{i}: {name}", name) for i, name in enumerate(names, 1)]
    tip = "The layer whose input is shown, in network order"
    controls = {"layer": menu("Layer", options, layer or names[0], tip, "560px")}
    if q is None:
        controls["bits"] = slider("Bits", bits, 0, 8, "Bits of the grid between minimum and maximum; 0 draws none")
    return Explorer(lambda **v: layer_figure(stats, q=q, **v), controls, 520, "layer explorer")
