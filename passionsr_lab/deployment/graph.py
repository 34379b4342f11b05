"""An ONNX graph that grows node by node, with its constants beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from ..util.extras import required

if TYPE_CHECKING:
    import onnx

OPSET, IR = 21, 10
DOMAIN = "passionsr_lab"


class Graph:
    """Nodes and constants; every method returns the name of what it made.

    Attributes:
        constants: arrays by name, in the order in which they came.
    """

    def __init__(self, name: str):
        self.name, self.nodes, self.constants = name, [], {}
        self._onnx, self._count = required("onnx"), 0

    def op(self, kind: str, *inputs: str, name: str = "", outputs: int = 1, **attributes):
        """Adds a node; the name of its output, or a list of several."""
        self._count += 1
        name = name or f"{kind}_{self._count}"
        made = [name] if outputs == 1 else [f"{name}.{i}" for i in range(outputs)]
        self.nodes.append(self._onnx.helper.make_node(kind, list(inputs), made, name=name, **attributes))
        return made[0] if outputs == 1 else made

    def constant(self, name: str, value: Tensor | np.ndarray | list | float, dtype=np.float32) -> str:
        """Adds an array under a name of its own; an equal one that is there already is used again."""
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
        array = np.ascontiguousarray(array.astype(dtype)).reshape(array.shape)
        held = self.constants.setdefault(name, array)
        if held is not array and not (held.dtype == array.dtype and np.array_equal(held, array)):
            raise ValueError(f"Two different constants are called {name}.")
        return name

    def whole(self, *values: int) -> str:
        """A constant of whole numbers, such as a shape."""
        return self.constant("whole_" + "_".join(map(str, values)), list(values), np.int64)

    def model(self, source: str, channels: int, target: str, out_channels: int) -> onnx.ModelProto:
        """The ONNX model from input `source` (B, channels, H, W) to `target`, without values of its constants."""
        helper, floats = self._onnx.helper, self._onnx.TensorProto.FLOAT
        ends = [
            helper.make_tensor_value_info(name, floats, ["batch", size, *axes])
            for name, size, axes in (
                (source, channels, ("height", "width")),
                (target, out_channels, ("height_out", "width_out")),
            )
        ]
        graph = helper.make_graph(self.nodes, self.name, ends[:1], ends[1:])
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR, producer_name=DOMAIN
        )


def with_constants(model: onnx.ModelProto, constants: dict[str, np.ndarray]) -> onnx.ModelProto:
    """The model with these arrays as its initializers, in place."""
    helper = required("onnx").numpy_helper
    del model.graph.initializer[:]
    model.graph.initializer.extend(helper.from_array(array, name) for name, array in constants.items())
    return model
