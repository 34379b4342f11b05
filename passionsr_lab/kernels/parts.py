"""What a value was made of, so that it can serve until one of its parts is another one."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from operator import attrgetter
from typing import NamedTuple

import numpy as np
from torch import Tensor, nn

asked = attrgetter("requires_grad")


class Parts:
    """Modules with all in them, and tensors, at their places in memory; copies of their owner begin without it.

    Args:
        modules, tensors: those and these; None is another part than any.
        settings: what else decides, to compare.
        views: whether arrays look at the tensors, which of memory that is not contiguous would be copies.
    """

    def __init__(
        self, modules: Iterable[nn.Module | None], tensors: Iterable[Tensor | None], settings: tuple, views: bool
    ):
        self.settings, self._given = settings, (*modules, *tensors)
        self.modules = [part for part in self._given if isinstance(part, nn.Module)]
        for part in self.modules:  # which grows meanwhile
            self.modules += [child for child in part._modules.values() if child is not None]
        self._owned = [own for m in self.modules for own in (m._parameters, m._buffers, m._modules)]
        self._parts = [*chain.from_iterable(map(dict.values, self._owned))]  # held, so that no other has its identity
        self._watchers = [found for m in self.modules for found in (m._forward_hooks, m._forward_pre_hooks)]
        self.tensors = [part for part in (*self._parts, *self._given) if isinstance(part, Tensor)]
        self._lasting = not views or all(t.is_contiguous() for t in self.tensors)
        self._state = self._now(self._given)

    def serves(
        self, modules: Iterable[nn.Module | None], tensors: Iterable[Tensor | None], settings: tuple = ()
    ) -> bool:
        """Whether these are the same, with the same in them, their memory is where it was, and nobody watches one."""
        return (
            self._lasting and self.settings == settings and not any(self._watchers)
            and self._state == self._now((*modules, *tensors))
        )  # fmt: skip

    def _now(self, given: tuple) -> tuple:
        return (
            [*map(id, given), *map(id, chain.from_iterable(map(dict.values, self._owned)))],
            *([*map(found, self.tensors)] for found in (Tensor.data_ptr, Tensor.size, Tensor.stride, asked)),
        )

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
