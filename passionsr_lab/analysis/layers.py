"""A pipeline's layers: the number that each has in every table and figure, and what a quantized one says of them."""

from __future__ import annotations

from ..pipeline.onestep import OneStepSR
from ..pipeline.streaming import uncompiled
from ..quantization.attention import QuantAttention
from ..quantization.layer import QuantLayer
from ..quantization.place import QuantizedSR, quantized_layers, segment_modules, unquantize
from ..util.names import MODULES
from .cost import count

NUMBERED = ("conv", "linear", "qk")  # kinds of `count`; an attention's product has one number


def layer_numbers(pipe: OneStepSR | QuantizedSR) -> dict[str, int]:
    """The number of every Conv2d, Linear and attention product by its name, from 1, in the order in which they run.

    It depends on the architecture alone: a layer has the same number in every recipe, table and figure, whether it is
    quantized or not.  Cost: one forward without values, a third of a second on the embedded model.

    Example:
        >>> import passionsr_lab as lab
        >>> numbers = layer_numbers(lab.tiny())
        >>> numbers["vae.encoder.conv_in"], numbers["vae.decoder.conv_out"] == len(numbers)
        (1, True)
    """
    plain = uncompiled(unquantize(pipe) if isinstance(pipe, QuantizedSR) else pipe.prune())
    frame = count(plain, plain.multiple)
    names = frame.layer[frame.kind.isin(NUMBERED)].str.removesuffix(".qk")
    return {name: number for number, name in enumerate(names, 1)}


def layer_table(q: QuantizedSR):
    """One row per quantized layer, in the order of `layer_numbers`.

    Columns: number, module, layer, kind, weight_bits, act_bits, shape, low, high.

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
    numbers, rows = layer_numbers(q), []
    for module in MODULES:
        for name, layer in quantized_layers(segment_modules(q, module)).items():
            kind, shape, low, high = "attention", (), float("nan"), float("nan")
            weight, act = None, layer.setting.act_bits
            if isinstance(layer, QuantLayer):
                kind, shape = type(layer.layer).__name__, tuple(layer.layer.weight.shape)
                weight = layer.setting.weight_bits
                if layer.range.known:
                    low, high = layer.range.low.min().item(), layer.range.high.max().item()
            rows.append((numbers[name], module, name, kind, weight, act, shape, low, high))
    columns = ["number", "module", "layer", "kind", "weight_bits", "act_bits", "shape", "low", "high"]
    return pd.DataFrame(sorted(rows), columns=columns).astype({"weight_bits": "Int64"})


def scale_factors(q: QuantizedSR):
    """LET's scale factors of a calibrated pipeline, one row per input channel: number, module, layer, channel, scale.

    Attention products have three rows of channels, `NAME.q`, `NAME.k` and `NAME.v`, at the product's number.  Layers
    without LET have none.
    """
    import pandas as pd

    numbers, rows = layer_numbers(q), []
    for module in MODULES:
        for name, layer in quantized_layers(segment_modules(q, module)).items():
            product = isinstance(layer, QuantAttention)
            if (layer.transform_qk if product else layer.transform) is None:
                continue
            scales = {f"{name}.{k}": 1 / layer.factor(k) for k in "qkv"} if product else {name: layer.transform.scale}
            for own, scale in scales.items():
                rows += [(numbers[name], module, own, i, s) for i, s in enumerate(scale.tolist())]
    frame = pd.DataFrame(rows, columns=["number", "module", "layer", "channel", "scale"])
    return frame.sort_values("number", kind="stable", ignore_index=True)


def branch_ranks(q: QuantizedSR) -> dict[str, int]:
    """The rank of every layer's 16-bit branch, by name, of the layers that have one; of what `calibrate` made."""
    layers = {name: layer for name, layer in q.layers.items() if isinstance(layer, QuantLayer)}
    return {name: layer.branch.rank for name, layer in layers.items() if layer.branch is not None}
