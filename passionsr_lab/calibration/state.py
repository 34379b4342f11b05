"""What calibration changes in a pipeline, as named tensors: copied out, and put back."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..quantization.layer import Quantized
from ..quantization.place import QuantizedSR
from ..quantization.ranges import Range
from ..util.names import uncompiled_name

FLOAT = ("layer.", "original.")  # what a quantized layer holds of the full-precision one


def slot_tensors(q: QuantizedSR) -> dict[str, Tensor]:
    """Everything that quantization added, by name: parameters of slots and observed ranges, not copied."""
    found = {}
    for path, layer in q.named_modules():
        if isinstance(layer, Quantized):
            name = uncompiled_name(path)
            own = {k: v for k, v in layer.state_dict().items() if not k.startswith(FLOAT)}
            found |= {f"{name}.{key}": value for key, value in own.items()}
    return found


def state(q: QuantizedSR) -> dict[str, Tensor]:
    """A copy of everything that calibration changes."""
    return {k: v.detach().clone() for k, v in slot_tensors(q).items()}


@torch.no_grad()
def load_state(q: QuantizedSR, tensors: dict[str, Tensor]) -> None:
    """Puts back what `state` took; `ValueError` names the first tensor that is missing, left over or misshapen."""
    own = slot_tensors(q)
    misshapen = [k for k in own.keys() & tensors.keys() if own[k].numel() and own[k].shape != tensors[k].shape]
    wrong = sorted(own.keys() ^ tensors.keys()) + misshapen
    if wrong:
        raise ValueError(f"The quantization tensors do not fit the model: {wrong[0]} and {len(wrong) - 1} more differ.")
    for key, value in own.items():
        if value.numel():
            value.copy_(tensors[key])
        else:  # its size is in the file only: official scales per token, ranks that data decided
            owner, _, name = key.rpartition(".")
            owner, found = q.get_submodule(owner), tensors[key].to(value.device, copy=True)
            trained = isinstance(getattr(owner, name), nn.Parameter)
            setattr(owner, name, nn.Parameter(found, requires_grad=False) if trained else found)
    for found in (m for layer in q.layers.values() for m in layer.modules() if isinstance(m, Range)):
        found.known = not found.low.is_meta and bool(torch.isfinite(found.low[0]))
