"""Grids that run in float where a processor's integers would lose bits.

Without VNNI two products of 8-bit factors are added in 16 bits and saturate, in silence (oneDNN: "int8 computation
aspects").  There such a grid's codes stay float numbers, rounded and clipped alike; the result is the same, not faster.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from ..util.extras import required
from ..util.machine import processor

if TYPE_CHECKING:
    import onnx

WIDE = {"AVX-512 VNNI", "AVX VNNI", "AMX int8"}  # products of bytes added in 32 bits


def adds_widely() -> bool:
    """Whether this processor adds products of bytes in 32 bits."""
    return bool(WIDE & set(processor().flags or ()))


def in_float(model: onnx.ModelProto, grids: Collection[str]) -> onnx.ModelProto:
    """The model, in place, with these grids' QuantizeLinear and DequantizeLinear as float arithmetic."""
    helper, numpy_helper = required("onnx").helper, required("onnx").numpy_helper
    values = {f"{name}.zero" for name in grids}
    zeros = {c.name: int(numpy_helper.to_array(c)) for c in model.graph.initializer if c.name in values}
    nodes = []
    for node in model.graph.node:
        name, _, end = node.name.rpartition(".")
        if name not in grids or end not in ("codes", "x"):
            nodes.append(node)
        elif end == "x":
            nodes.append(helper.make_node("Mul", [f"{name}.codes", f"{name}.step"], [f"{name}.x"], name=node.name))
        else:
            nodes += _rounding(node, name, zeros[f"{name}.zero"], model, helper, numpy_helper)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def _rounding(node, name: str, zero: int, model, helper, numpy_helper) -> list:
    """clip(round(x / step), -zero, 255 - zero)."""
    import numpy as np

    ends = {f"{name}.least": -zero, f"{name}.most": 255 - zero}
    model.graph.initializer.extend(numpy_helper.from_array(np.float32(v), k) for k, v in ends.items())
    return [
        helper.make_node("Div", [node.input[0], f"{name}.step"], [f"{name}.divided"]),
        helper.make_node("Round", [f"{name}.divided"], [f"{name}.rounded"]),
        helper.make_node("Clip", [f"{name}.rounded", *ends], [f"{name}.codes"]),
    ]
