"""Grids that run in float where a processor's integers would lose bits.

Without VNNI two products of 8-bit factors are added in 16 bits and saturate, in silence (oneDNN: "int8 computation
aspects").  There such a grid's codes stay float numbers, rounded and clipped alike; the result is the same, not faster.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np

from ..util.extras import required
from ..util.machine import processor

if TYPE_CHECKING:
    import onnx

WIDE = {"AVX-512 VNNI", "AVX VNNI", "AMX int8"}  # products of bytes added in 32 bits


def adds_widely() -> bool:
    """Whether this processor adds products of bytes in 32 bits."""
    return bool(WIDE & set(processor().flags or ()))


def saturating(backend: str) -> bool:
    """Whether an engine's 8-bit products could lose bits here; those of a GPU never do."""
    return backend != "tensorrt" and not adds_widely()


def in_float(model: onnx.ModelProto, grids: Collection[str]) -> onnx.ModelProto:
    """The model, in place, with these grids' whole numbers and the weights that they meet as float arithmetic.

    Weights become float numbers here: an engine that saw 8-bit ones might quantize the input as it likes.
    """
    if not grids:
        return model
    held = {c.name: c for c in model.graph.initializer}
    weights = {f"{name.removesuffix('.act')}.weight" for name in grids}
    nodes, floats = [], {}
    for node in model.graph.node:
        name, _, end = node.name.rpartition(".")
        if name in grids and end == "x":
            nodes.append(_node("Mul", [f"{name}.codes", f"{name}.step"], [f"{name}.x"]))
        elif name in grids and end == "codes":
            nodes += _rounding(node.input[0], name, _array(held[f"{name}.zero"]), floats)
        elif node.op_type == "DequantizeLinear" and (node.input[0] in weights or node.input[0].startswith("ones_")):
            steps, axis = _array(held[node.input[1]]), next((a.i for a in node.attribute if a.name == "axis"), 0)
            whole = _array(held[node.input[0]]).astype(np.float32)
            floats[node.output[0]] = whole * steps.reshape([-1 if i == axis else 1 for i in range(whole.ndim)])
        else:
            nodes.append(node)
    _replace(model, nodes, floats)
    return model


def _replace(model: onnx.ModelProto, nodes: list, floats: dict[str, np.ndarray]) -> None:
    """Takes these nodes, adds these initializers, and drops those that nobody reads any more."""
    read = {name for node in nodes for name in node.input}
    kept = [c for c in model.graph.initializer if c.name in read]
    helper = required("onnx").numpy_helper
    kept += [helper.from_array(value, name) for name, value in floats.items()]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(kept)


def _rounding(x: str, name: str, zero: np.ndarray, floats: dict[str, np.ndarray]) -> list:
    """clip(round(x / step), -zero, 255 - zero)."""
    ends = {f"{name}.least": np.float32(-int(zero)), f"{name}.most": np.float32(255 - int(zero))}
    floats |= {key: np.asarray(value) for key, value in ends.items()}
    return [
        _node("Div", [x, f"{name}.step"], [f"{name}.divided"]),
        _node("Round", [f"{name}.divided"], [f"{name}.rounded"]),
        _node("Clip", [f"{name}.rounded", *ends], [f"{name}.codes"]),
    ]


def _node(kind: str, inputs: list[str], outputs: list[str]):
    return required("onnx").helper.make_node(kind, inputs, outputs, name=outputs[0])


def _array(initializer) -> np.ndarray:
    return required("onnx").numpy_helper.to_array(initializer)
