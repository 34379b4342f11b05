"""The table of a quantized pipeline's layers."""

from __future__ import annotations

from ..quantization.layer import QuantLayer
from ..quantization.place import QuantizedSR, quantized_layers, segment_modules
from ..util.names import MODULES


def layer_table(q: QuantizedSR):
    """One row per quantized layer, in network order: module, layer, kind, weight_bits, act_bits, shape, low, high.

    `low` and `high` are the observed range of the input, NaN before calibration and for attentions, which have no
    weight bits either.

    Raises:
        ValueError: the pipeline is not quantized.

    Example:
        >>> import passionsr_lab as lab
        >>> from passionsr_lab.analysis.layers import layer_table
        >>> layer_table(lab.quantize(lab.tiny(), lab.W6A6)).act_bits.unique().tolist()
        [6, 8]
    """
    import pandas as pd

    if not isinstance(q, QuantizedSR):
        raise ValueError("Only a quantized pipeline has a table of layers; quantize this one first (lab.quantize).")
    rows = []
    for module in MODULES:
        for name, layer in quantized_layers(segment_modules(q, module)).items():
            kind, shape, low, high = "attention", (), float("nan"), float("nan")
            weight, act = layer.setting.weight_bits, layer.setting.act_bits
            if isinstance(layer, QuantLayer):
                kind, shape = type(layer.layer).__name__, tuple(layer.layer.weight.shape)
                if layer.range.known:
                    low, high = layer.range.low.min().item(), layer.range.high.max().item()
            rows.append((module, name, kind, None if kind == "attention" else weight, act, shape, low, high))
    columns = ["module", "layer", "kind", "weight_bits", "act_bits", "shape", "low", "high"]
    return pd.DataFrame(rows, columns=columns).astype({"weight_bits": "Int64"})


def branch_ranks(q: QuantizedSR) -> dict[str, int]:
    """The rank of every layer's 16-bit branch, by name, of the layers that have one; of what `calibrate` made."""
    layers = {name: layer for name, layer in q.layers.items() if isinstance(layer, QuantLayer)}
    return {name: layer.branch.rank for name, layer in layers.items() if layer.branch is not None}
