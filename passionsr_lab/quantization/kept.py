"""What is computed from parameters once and used again until one of them changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from ..kernels import compiled
from ..kernels.parts import Parts
from .ranges import Range
from .slots import Slot

LARGE = 2**12  # numbers of a tensor of which two sums are compared, not all of them


class Kept:
    """One value that a function makes from modules and tensors; empty in a copy.

    It is made anew when one of them is another object or holds other numbers (also written through `.data`; of a large
    tensor two weighted sums then differ).  It is never kept where gradients are asked for, off the CPU (where comparing
    would wait), while compiling, under autocast, or from slots that are not `cacheable`.
    """

    def __init__(self):
        self._found: _Found | None = None

    def get(self, modules: Iterable, tensors: Iterable, make: Callable, settings: tuple = ()):
        """`make()`, or what it gave the last time; `settings` are what else decides, to compare."""
        if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
            return make()
        found = self._found
        if found is None or not found.serves(modules, tensors, settings):
            found = self._found = _Found(modules, tensors, settings, views=False)
        return found.value(make)

    def clear(self) -> None:
        """Forgets the value."""
        self._found = None

    def __deepcopy__(self, memo) -> Kept:
        return Kept()

    def __reduce__(self):
        return Kept, ()


class _Found(Parts):
    """A value with the numbers that it was made from."""

    def __init__(self, *parts, **options):
        super().__init__(*parts, **options)
        self._trained = any(t.requires_grad for t in self.tensors)
        self._keeps = all(t.is_cpu and not t.is_inference() for t in self.tensors) and all(map(_steady, self.modules))
        self._held: tuple | None = None  # numbers and value, at once: another thread may look
        if self._keeps:
            self._slots = [part for part in self.modules if isinstance(part, Slot)]
            small = [t for t in self.tensors if t.numel() <= LARGE and t.is_contiguous()]
            large = [t for t in self.tensors if t.numel() > LARGE or not t.is_contiguous()]
            self._small = [t.detach().flatten().view(torch.uint8).numpy() for t in small]  # their memory
            self._large = [(t, compiled.words(t)) for t in large]

    def value(self, make: Callable):
        if not self._keeps or (self._trained and torch.is_grad_enabled()):
            return make()
        numbers, held = self._numbers(), self._held
        if held is None or held[0] != numbers:
            with torch.inference_mode(False), torch.no_grad():
                held = self._held = numbers, make()
        return held[1]

    def _numbers(self) -> tuple:
        return b"".join(self._small), [_sums(*t) for t in self._large], [slot.extra_repr() for slot in self._slots]


def _sums(t: Tensor, words: np.ndarray | None) -> tuple[float, float]:
    """Two sums over all values, weighted differently by place: other values or another order differ."""
    if words is not None and compiled.on():
        return compiled.marks(words)
    rows = t.detach().float().reshape(len(t), -1)
    return tuple((_ramps(len(rows)) @ (rows @ _ramps(rows.shape[1])[1])).tolist())


@lru_cache(maxsize=64)
def _ramps(count: int) -> Tensor:
    """(2, count) ones, and from 1 to 2."""
    with torch.inference_mode(False):
        return torch.stack((torch.ones(count), 1 + torch.arange(count) / count))


def _steady(part: nn.Module) -> bool:
    return part.cacheable if isinstance(part, Slot) else isinstance(part, (Range, nn.ModuleList, nn.Linear, nn.Conv2d))
