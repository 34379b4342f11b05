"""A sample of the values that pass while a model is observed, for starts that need more than their range."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..quantization.layer import Quantized, QuantLayer
from ..quantization.ranges import Range


class Reservoir:
    """A `watch` of a range that keeps up to `count` of all values seen, every one with the same chance.

    Args:
        count: how many.
        sizes: channels of each part that has a sample of its own; None keeps one of all.

    Example:
        >>> sample = Reservoir(100)
        >>> for part in torch.arange(6000.0).split(1500):
        ...     sample(part, 0)
        >>> len(sample.values[0]), bool((sample.values[0].mean() - 3000).abs() < 1000)
        (100, True)
    """

    def __init__(self, count: int, sizes: Sequence[int] | None = None):
        self.count, self.sizes, self.seen = count, sizes, 0
        self.values = [torch.empty(0)] * len(sizes or [0])

    def __call__(self, x: Tensor, dim: int) -> None:
        self.seen += x.numel()
        share, draw = x.numel() / self.seen, torch.Generator().manual_seed(self.seen)
        for i, part in enumerate(x.split(self.sizes, dim) if self.sizes else [x]):
            new = _some(part.flatten(), round(self.count * share), draw)
            self.values[i] = torch.cat([_some(self.values[i].to(new), self.count - len(new), draw), new])


def _some(values: Tensor, count: int, draw: torch.Generator) -> Tensor:
    if len(values) <= count:
        return values
    return values[torch.randint(len(values), (count,), generator=draw).to(values.device)]


def keep_sample(layer: Quantized, count: int = 2**14) -> None:
    """Lets every range of a layer or attention keep a sample of `count` values of what it sees."""
    for found in (m for m in layer.modules() if isinstance(m, Range)):
        found.watch = Reservoir(count, layer.sizes if isinstance(layer, QuantLayer) else None)


def take_sample(found: Range) -> list[Tensor]:
    """The values (n,) that a range kept, of each part, in float32; it keeps none from now on."""
    values, found.watch = found.watch.values, None
    return [v.float() for v in values]
