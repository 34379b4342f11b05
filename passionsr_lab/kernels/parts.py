"""What compiled functions of whole layers have in common: arrays that last while a layer is made of the same parts."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor, nn


class Parts:
    """A layer's tensors, whose memory arrays look at; copies of a layer begin without it.

    Args:
        layer: whose they are; settings: what else of it decides what is computed.
    """

    def __init__(self, layer: nn.Module, settings: tuple):
        within = [module for child in layer.children() for module in child.modules()]
        owned = [layer._modules, *(own for m in within for own in (m._parameters, m._buffers, m._modules) if own)]
        self.settings = settings
        self._parts = [(own, key, part) for own in owned for key, part in own.items()]
        self._watchers = [found for m in within for found in (m._forward_hooks, m._forward_pre_hooks)]
        tensors = [part for *_, part in self._parts if isinstance(part, Tensor)]
        self._tensors = [(t, t.data_ptr(), t.requires_grad) for t in tensors]
        self._lasting = all(t.is_contiguous() for t in tensors)  # of others arrays are copies

    def serves(self, settings: tuple) -> bool:
        """Whether all parts of the layer are the same, their memory where it was, and nobody watches one."""
        return (
            self._lasting and self.settings == settings and not any(self._watchers)
            and all(own.get(key) is part for own, key, part in self._parts)
            and all(t.data_ptr() == place and t.requires_grad == asked for t, place, asked in self._tensors)
        )  # fmt: skip

    def __deepcopy__(self, memo) -> None:
        return None

    def __reduce__(self):
        return type(None), ()


class Half(NamedTuple):
    """A quantizer's share: the first channel and the one behind the last, `trim` as (2, 1 or rows), and, found by a
    forward pass, ends of ranges and what gradients need to know of them."""

    first: int
    last: int
    trim: np.ndarray
    ends: np.ndarray
    flags: np.ndarray
