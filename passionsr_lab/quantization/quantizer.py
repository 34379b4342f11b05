"""LBQ: uniform fake quantization between two learned boundaries (PassionSR section 3.3.1, Eq. 3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .slots import Slot

ZERO_POINTS = ("integer", "real")


def grid_of(lower: Tensor, upper: Tensor, bits: int, zero_point: str = "integer") -> tuple[Tensor, Tensor]:
    """The step and the lowest point of the grid that spans [lower, upper] with 2**bits points.

    "real" is Eq. 3: the grid starts at `lower`.  "integer" moves it by less than half a step so that 0 is exactly on
    it, as integer arithmetic needs; there `lower` is at most and `upper` at least 0.
    """
    if zero_point == "integer":
        lower, upper = lower.clamp_max(0), upper.clamp_min(0)
    step = (upper - lower).clamp_min(1e-8) / (2**bits - 1)
    return step, step * (lower / step).round() if zero_point == "integer" else lower


def fake_quantize(x: Tensor, lower: Tensor, upper: Tensor, bits: int, zero_point: str = "integer") -> Tensor:
    """x rounded to the nearest of 2**bits points between `lower` and `upper`; same shape and type as x.

    The bounds broadcast against x.  Gradients: straight through for x inside the bounds, none outside; the bounds
    receive the exact gradient of the piecewise smooth part (the rounding itself counts as the identity).

    Example:
        >>> fake_quantize(torch.tensor([-1.0, 0.2, 0.9]), torch.tensor(0.0), torch.tensor(1.0), bits=2)
        tensor([0.0000, 0.3333, 1.0000])
    """
    if zero_point == "integer":
        lower, upper = lower.clamp_max(0), upper.clamp_min(0)
    return _FakeQuantize.apply(x, lower, upper, bits, zero_point)


class _FakeQuantize(torch.autograd.Function):
    """Keeps only x for the backward pass: full-size calibration is bound by memory."""

    @staticmethod
    def forward(ctx, x, lower, upper, bits, zero_point):
        step, base = grid_of(lower, upper, bits, zero_point)
        ctx.save_for_backward(x, lower, upper)
        ctx.options = bits, zero_point
        return ((x - base) / step).round_().clamp_(0, 2**bits - 1).mul_(step).add_(base)

    @staticmethod
    def backward(ctx, grad):
        x, lower, upper = ctx.saved_tensors
        bits, zero_point = ctx.options
        levels = 2**bits - 1
        step, base = grid_of(lower, upper, bits, zero_point)
        code = (x - base) / step
        below, above = code < -0.5, code > levels + 0.5
        inside = ~(below | above)
        grad_x = grad * inside if ctx.needs_input_grad[0] else None
        if not (ctx.needs_input_grad[1] or ctx.needs_input_grad[2]):
            return grad_x, None, None, None, None
        rounding = grad * (code.round() - code) * inside
        shift = (lower - base) / step  # how far the integer zero point moved the grid, in steps
        low, high, mid = (_sum_to(t, lower.shape) for t in (grad * below, grad * above, rounding))
        d_step = mid - shift * (low + high) + levels * high
        return grad_x, low + high - d_step / levels, d_step / levels, None, None


def _sum_to(t: Tensor, shape: torch.Size) -> Tensor:
    return t.sum_to_size(shape) if shape else t.sum()


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

    def extra_repr(self) -> str:
        return f"bits={self.bits}, shape={self.shape}, zero_point={self.zero_point}"


class BoundaryQuantizer(Quantizer):
    """LBQ: two trainable boundaries, kept relative to the natural range [low, high] of what is quantized.

    `trim` (2, *shape) is zero at the start, so the boundaries are minimum and maximum; a step of 0.01 moves a boundary
    by 1 % of the range whatever the range is, and when LET changes the range the boundaries follow.  Its learning rate
    is in steps of the grid, so one rate suits every width.
    """

    tag = "bounds"

    def __init__(self, bits: int, shape: tuple[int, ...] = (), zero_point: str = "integer"):
        super().__init__(bits, shape, zero_point)
        self.learning_rate_scale = 1 / (2**bits - 1)
        self.trim = nn.Parameter(torch.zeros(2, *shape))

    def bounds(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """The boundaries for the natural range [low, high]."""
        width = high - low
        lower = low + width * self.trim[0]
        return lower, torch.maximum(high - width * self.trim[1], lower + 1e-3 * width)


# A quantizer by name; a method may add its own.
QUANTIZERS: dict[str, type[Quantizer]] = {"boundaries": BoundaryQuantizer}
