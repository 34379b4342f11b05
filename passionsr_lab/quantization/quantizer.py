"""LBQ: uniform fake quantization between two learned boundaries (PassionSR section 3.3.1, Eq. 3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..kernels.fused import ZERO_POINTS, Bounds, FakeQuantize, Grid, grid_of
from .slots import Slot

__all__ = ["QUANTIZERS", "ZERO_POINTS", "BoundaryQuantizer", "Quantizer", "fake_quantize", "grid_of"]


def fake_quantize(x: Tensor, lower: Tensor, upper: Tensor, bits: int, zero_point: str = "integer") -> Tensor:
    """x rounded to the nearest of 2**bits points between `lower` and `upper`, in x's type.

    x and the bounds broadcast against each other.  Gradients: straight through for x inside the bounds, none outside;
    the bounds receive the exact gradient of the piecewise smooth part (the rounding itself counts as the identity).

    Example:
        >>> fake_quantize(torch.tensor([-1.0, 0.2, 0.9]), torch.tensor(0.0), torch.tensor(1.0), bits=2)
        tensor([0.0000, 0.3333, 1.0000])
    """
    x = x.expand(torch.broadcast_shapes(x.shape, lower.shape, upper.shape))
    return FakeQuantize.apply(x, None, None, lower, upper, Grid(bits, zero_point))


class Quantizer(Slot):
    """What every quantizer has: whole bits, the shape of its parameters, a zero point, and a grid for a range.

    Subclasses give `bounds`; what is quantized has the natural range [low, high], which broadcasts against x.

    Args:
        bits: 2 to 8 in the paper, up to 16 here.
        shape: () for a tensor as a whole, or one that broadcasts, e.g. (Co, 1, 1, 1) for a convolution's weight.
        zero_point: "integer" or "real" (see `grid_of`).

    Raises:
        ValueError: bits or zero point that do not exist.
    """

    def __init__(self, bits: int, shape: tuple[int, ...] = (), zero_point: str = "integer"):
        super().__init__()
        if not 2 <= bits <= 16:
            raise ValueError(f"A quantizer has 2 to 16 bits, not {bits}.")
        if zero_point not in ZERO_POINTS:
            raise ValueError(f"zero_point is one of {ZERO_POINTS}, not {zero_point!r}.")
        self.bits, self.shape, self.zero_point = bits, shape, zero_point

    def start(self, x: Tensor, low: Tensor, high: Tensor) -> None:
        """Initializes the quantizer from data with the natural range [low, high]; boundaries need none."""

    def bounds(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """The boundaries for the natural range [low, high]."""
        raise NotImplementedError

    def grid(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Step and lowest point of the grid for the natural range [low, high]."""
        return grid_of(*self.bounds(low, high), self.bits, self.zero_point)

    def forward(self, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """x, fake-quantized between the boundaries for [low, high]."""
        return fake_quantize(x, *self.bounds(low, high), self.bits, self.zero_point)

    @property
    def plain(self) -> bool:
        """Whether it is `fake_quantize` between its bounds, which the layer's fused function may do in its place."""
        return type(self).forward is Quantizer.forward and not (self._forward_hooks or self._forward_pre_hooks)

    def extra_repr(self) -> str:
        return f"bits={self.bits}, shape={self.shape}, zero_point={self.zero_point}"


class BoundaryQuantizer(Quantizer):
    """LBQ: two trainable boundaries, kept relative to the natural range [low, high] of what is quantized.

    `trim` (2, *shape) is zero at the start, so the boundaries are minimum and maximum; a step of 0.01 moves a boundary
    by 1 % of the range whatever the range is, and when LET changes the range the boundaries follow.  Its learning rate
    is in steps of the grid, so one rate suits every width.
    """

    tag = "bounds"
    cacheable = True

    def __init__(self, bits: int, shape: tuple[int, ...] = (), zero_point: str = "integer"):
        super().__init__(bits, shape, zero_point)
        self.learning_rate_scale = 1 / (2**bits - 1)
        self.trim = nn.Parameter(torch.zeros(2, *shape))

    def bounds(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """The boundaries for the natural range [low, high]."""
        return Bounds.apply(low, high, self.trim, self.zero_point == "integer")


# A quantizer by name; a method may add its own.
QUANTIZERS: dict[str, type[Quantizer]] = {"boundaries": BoundaryQuantizer}
