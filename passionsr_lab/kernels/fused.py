"""Transform, fake quantization and the layer's operation as one function, in few passes over memory.

    y = op(Q((x - shift) / scale), weight) + bias

Only x is kept for the backward pass; codes are computed again.  The plain formula stands in the tests.  Gradients are
those of `quantizer.fake_quantize`: straight through for values inside the grid, none outside; the boundaries receive
the exact gradient of the piecewise smooth part.
"""

from __future__ import annotations

import threading
from contextlib import nullcontext
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from . import compiled

ZERO_POINTS = ("integer", "real")
SCRATCH = 2**22  # numbers in the largest buffer that is used again; fresh memory costs more than a pass over it
VIEWS = 256  # of a buffer, that are held to be asked for again
_scratch = threading.local()


def grid_of(lower: Tensor, upper: Tensor, bits: int, zero_point: str = "integer") -> tuple[Tensor, Tensor]:
    """The step and the lowest point of the grid that spans [lower, upper] with 2**bits points.

    "real" is Eq. 3: the grid starts at `lower`.  "integer" moves it by less than half a step so that 0 is exactly on
    it, as integer arithmetic needs; there `lower` counts as at most and `upper` as at least 0.
    """
    if zero_point == "integer":
        lower, upper = lower.clamp_max(0), upper.clamp_min(0)
    step = (upper - lower).clamp_min(1e-8) / (2**bits - 1)
    return step, step * (lower / step).round() if zero_point == "integer" else lower


class Grid(NamedTuple):
    """How a function quantizes: bits, zero point, whether x~ is x * scale (a weight's) or (x - shift) / scale, and how
    many columns side by side share a scale."""

    bits: int
    zero_point: str = "integer"
    multiply: bool = False
    taps: int = 1


class Convolution(NamedTuple):
    """A convolution's settings; padding with zeros, the same on opposite sides."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int


class Sums(NamedTuple):
    """What a backward pass adds up: of the bounds (below, above, rounding) and of the transform (scale, shift)."""

    below: Tensor
    above: Tensor
    rounding: Tensor
    scale: Tensor | None
    shift: Tensor | None


class FakeQuantize(torch.autograd.Function):
    """(x, scale, shift, lower, upper, `Grid`) -> Q(x~); scale and shift may be None; all broadcast against x."""

    @staticmethod
    def forward(ctx, x, scale, shift, lower, upper, grid):
        ctx.grid, ctx.walk = grid, compiled.walk_of(x, scale, shift, lower, upper, grid)
        if ctx.walk is not None:
            ctx.save_for_backward(x, scale, shift, lower, upper)
            return compiled.values(x, ctx.walk)
        step, base = grid_of(lower, upper, grid.bits, grid.zero_point)
        ctx.save_for_backward(x, scale, shift, lower, upper, step, base)
        code = _codes(x, _columns_of(scale, grid), shift, step, base, grid.multiply)
        return _rounded(code, grid.bits).mul_(step).add_(base)

    @staticmethod
    def backward(ctx, grad):
        if ctx.walk is not None:
            x, *few = ctx.saved_tensors
            return *_as_tensors(compiled.gradients(grad, x, ctx.walk, wanted=ctx.needs_input_grad[0]), *few), None
        x, few, shift, lower, upper, step, base = ctx.saved_tensors
        scale = _columns_of(few, ctx.grid)
        code = _codes(x, scale, shift, step, base, ctx.grid.multiply, buffer(0, x))
        error = _rounded(_copy(code, 1), ctx.grid.bits).sub_(code)
        out = torch.empty_like(grad) if ctx.needs_input_grad[0] else buffer(2, x)
        grad_x, sums = _masked(grad, x, code, error, scale, shift, lower, ctx.grid, out)
        of_scale, *of_others = _parameters(sums, scale, shift, lower, upper, step, base, ctx.grid)
        if of_scale is not None and ctx.grid.taps > 1:
            of_scale = of_scale.view(-1, ctx.grid.taps).sum(1).view(few.shape)
        grad_x = _to_input(grad_x, scale, ctx.grid.multiply) if ctx.needs_input_grad[0] else None
        return grad_x, of_scale, *of_others, None


class QuantizedOperation(torch.autograd.Function):
    """(x, weight, bias, scale, shift, lower, upper, `Grid`, `Convolution` or None) -> op(Q(x~), weight) + bias.

    A zero that pads x stands for v = Q((0 - shift) / scale), per channel: the convolution pads Q(x~) - v with zeros,
    and what is missing, the convolution of v everywhere, is one number per output channel.  v is 0 without a shift.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, scale, shift, lower, upper, grid, conv):
        held = ready(weight, bias, scale, shift, lower, upper, grid, conv)
        ctx.grid, ctx.conv, ctx.walk = grid, conv, held.walk(x, conv)
        ctx.save_for_backward(x, weight, scale, shift, lower, upper, held.step, held.base, held.value)
        return operated(x, held, grid, conv)

    @staticmethod
    def backward(ctx, grad):
        with no_autocast(grad):
            backward = _operation_backward if ctx.walk is None else _compiled_backward
            return backward(ctx, grad, *ctx.saved_tensors)


class Ready(NamedTuple):
    """What a quantized operation needs beside x: with the grid's step and base, what padding stands for as `value`
    (None is 0), and what it leaves to the bias."""

    weight: Tensor
    bias: Tensor | None
    scale: Tensor | None
    shift: Tensor | None
    lower: Tensor
    upper: Tensor
    step: Tensor
    base: Tensor
    value: Tensor | None
    seen: compiled.Seen | None

    def walk(self, x: Tensor, conv: Convolution | None) -> compiled.Walk | None:
        """How kernels go through x; None where they are off or do not suit."""
        suits = self.seen is not None and x.dtype == self.lower.dtype and compiled.on(x)
        return self.seen.walk(x, conv is not None) if suits else None


def ready(weight, bias, scale, shift, lower, upper, grid: Grid, conv: Convolution | None) -> Ready:
    """`QuantizedOperation`'s part that does not depend on x."""
    (step, base), value = grid_of(lower, upper, grid.bits, grid.zero_point), None
    if _bordered(shift, grid, conv):
        zero = torch.zeros((1, weight.shape[1] * conv.groups, 1, 1), dtype=step.dtype, device=step.device)
        value = _rounded(_codes(zero, scale, shift, step, base), grid.bits).mul_(step).add_(base)
        bias = _everywhere(value, weight, conv) if bias is None else bias + _everywhere(value, weight, conv)
    channels = weight.shape[1] * (1 if conv is None else conv.groups)
    seen = compiled.seen_by(channels, scale, shift, lower, upper, value, grid, conv is not None)
    return Ready(weight, bias, scale, shift, lower, upper, step, base, value, seen)


def operated(x: Tensor, held: Ready, grid: Grid, conv: Convolution | None) -> Tensor:
    """`QuantizedOperation`'s output."""
    if (walk := held.walk(x, conv)) is not None:
        x = compiled.as_it_lies(x, walk.tiles)
        seen = compiled.values(x, walk, buffer(0, x))
    else:
        base = held.base if held.value is None else held.base - held.value
        seen = _rounded(_codes(x, held.scale, held.shift, held.step, held.base, False, buffer(0, x)), grid.bits)
        seen.mul_(held.step).add_(base)
    if conv is None:
        return F.linear(seen, held.weight, held.bias)
    return F.conv2d(seen, held.weight, held.bias, conv.stride, conv.padding, conv.dilation, conv.groups)


class ScaledRange(torch.autograd.Function):
    """(lows, highs (Co, C), scale (C,) or None) -> (Co,) the least of lows * scale, the greatest of highs * scale."""

    @staticmethod
    def forward(ctx, lows, highs, scale):
        if not ctx.needs_input_grad[2]:
            return (lows if scale is None else lows * scale).amin(1), (highs if scale is None else highs * scale).amax(
                1
            )
        (low, least), (high, greatest) = (lows * scale).min(1), (highs * scale).max(1)
        ctx.save_for_backward(lows, highs, least, greatest)
        return low, high

    @staticmethod
    def backward(ctx, of_low, of_high):
        lows, highs, least, greatest = ctx.saved_tensors
        of_scale = of_low.new_zeros(lows.shape[1])
        for grad, table, where in ((of_low, lows, least), (of_high, highs, greatest)):
            of_scale.index_add_(0, where, grad * table.gather(1, where[:, None]).squeeze(1))
        return None, None, of_scale


class ShiftedRange(torch.autograd.Function):
    """(lows, highs, scale, shift (C,)) -> () the least of (lows - shift) / scale and the greatest for highs."""

    @staticmethod
    def forward(ctx, lows, highs, scale, shift):
        both = torch.stack((lows, highs)).sub_(shift).div_(scale)
        both[1].neg_()
        found, where = both.min(1)
        ctx.save_for_backward(scale, found, where)
        return found[0].clone(), -found[1]

    @staticmethod
    def backward(ctx, of_low, of_high):
        scale, found, where = ctx.saved_tensors
        share = torch.stack((of_low, of_high)).div_(scale[where])
        of_scale, of_shift = scale.new_zeros(2, len(scale)).unbind()
        of_shift.index_add_(0, where, share, alpha=-1)
        share[1].neg_()
        return None, None, of_scale.index_add_(0, where, share.mul_(found), alpha=-1), of_shift


class Bounds(torch.autograd.Function):
    """(low, high, trim (2, ...), integer) -> the boundaries, `trim` of the range inside it; they never cross.

    An integer zero point holds a boundary at 0 that training would push over it (where the range itself is on both
    sides); there `trim` gets only the gradient that draws it back, and the range none.
    """

    @staticmethod
    def forward(ctx, low, high, trim, integer):
        if compiled.on(low, trim):
            lower, upper, ctx.flags = compiled.bounds(low, high, trim, integer)
            ctx.save_for_backward(low, high, trim)
            return lower, upper
        ctx.flags = None
        width, (below, above) = high - low, trim.unbind()
        lower = low + width * below
        upper, least = high - width * above, lower + 1e-3 * width
        apart, held, upper = upper >= least, None, torch.maximum(upper, least)
        if integer:
            held = torch.stack(((lower > 0) & (low < 0), (upper < 0) & (high > 0)))
            lower, upper = lower.masked_fill(held[0], 0), upper.masked_fill(held[1], 0)
        ctx.save_for_backward(trim, width, apart, held)
        return lower, upper

    @staticmethod
    def backward(ctx, of_lower, of_upper):
        if ctx.flags is not None:
            return *compiled.bounds_gradients(of_lower, of_upper, *ctx.saved_tensors, ctx.flags), None
        trim, width, apart, held = ctx.saved_tensors
        drawn = None
        if held is not None:
            drawn = torch.stack((of_lower, -of_upper)).clamp_min_(0).mul_(held).mul_(width)
            of_lower, of_upper = of_lower.masked_fill(held[0], 0), of_upper.masked_fill(held[1], 0)
        own = of_upper * apart
        crossing = of_upper - own
        of_lower = of_lower + crossing
        of_trim = torch.stack((of_lower * width, own * -width))
        of_trim = of_trim if drawn is None else of_trim.add_(drawn)
        if not (ctx.needs_input_grad[0] or ctx.needs_input_grad[1]):
            return None, None, of_trim, None
        of_width = (of_lower * trim[0]).sub_(own * trim[1]).add_(crossing, alpha=1e-3)
        return of_lower - of_width, own + of_width, of_trim, None


# -- passes -----------------------------------------------------------------------------------------------------------


def wide(x: Tensor) -> Tensor:
    """x in float32 at least."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def extremes(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """(C,) the smallest and the largest value of every channel; channels lie along `dim`."""
    x, dim = x[None], dim % x.ndim + 1
    if dim == 2 and (tiles := compiled.tiles_of(x[0])):  # rows of few channels alone take torch tens of times as long
        x, dim = x.movedim(2, -1).reshape(-1, tiles, x.shape[2]), 2
        x = torch.stack((x.amin(0), x.amax(0)))
    others = [i for i in range(x.ndim) if i != dim]
    return x.amin(others), x.amax(others)


def no_autocast(t: Tensor):
    kind = t.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def buffer(slot: int, like: Tensor) -> Tensor | None:
    """A buffer of this thread's that lies in memory as a tensor does, whose content the next call with the slot may
    overwrite; None off the CPU, whose allocators keep memory, and for large tensors."""
    if not like.is_cpu or like.numel() > SCRATCH:
        return None
    dtype = like.dtype if like.dtype == torch.float64 else torch.float32
    lies = like.shape, compiled.tiles_of(like) > 0
    held, views = _scratch.__dict__.get((slot, dtype), (None, {}))
    if lies not in views:
        with torch.inference_mode(False), torch.no_grad():
            if held is None or held.numel() < like.numel():
                held, views = _scratch.__dict__[slot, dtype] = torch.empty(like.numel(), dtype=dtype), {}
            elif len(views) == VIEWS:
                views.clear()
            views[lies] = _lying(held[: like.numel()], *lies)
    return views[lies]


def room(slot: int, like: Tensor) -> Tensor:
    """`buffer`, or new memory where there is none."""
    out = buffer(slot, like)
    return torch.empty_like(like) if out is None else out


def _lying(flat: Tensor, shape: torch.Size, last: bool) -> Tensor:
    """Of this shape, with its channels last in memory or not."""
    if not last:
        return flat.view(shape)
    n, channels, height, width = shape
    return flat.view(n, height, width, channels).permute(0, 3, 1, 2)


def _copy(t: Tensor, slot: int) -> Tensor:
    return room(slot, t).copy_(t)


def _codes(x, scale, shift, step, base, multiply: bool = False, out: Tensor | None = None) -> Tensor:
    """(x~ - base) / step, not rounded, in `out` or in a buffer of its own."""
    x = wide(x)
    if scale is None:
        return torch.sub(x, base, out=out).div_(step)
    if multiply:
        return torch.mul(x, scale, out=out).sub_(base).div_(step)
    code = torch.div(x, scale, out=out) if shift is None else torch.sub(x, shift, out=out).div_(scale)
    return code.sub_(base).div_(step)


def _columns_of(scale: Tensor | None, grid: Grid) -> Tensor | None:
    """The scale of every column."""
    return scale if scale is None or grid.taps == 1 else scale.repeat_interleave(grid.taps, -1)


def _rounded(code: Tensor, bits: int) -> Tensor:
    """Whole codes of the grid, in place."""
    return code.round_().clamp_(0, 2**bits - 1)


def _bordered(shift: Tensor | None, grid: Grid, conv: Convolution | None) -> bool:
    """Whether padding may stand for another value than 0."""
    return conv is not None and any(conv.padding) and not (shift is None and grid.zero_point == "integer")


def _everywhere(value: Tensor, weight: Tensor, conv: Convolution) -> Tensor:
    """(Co,) the convolution of a field that has the same value (1, C, 1, 1) in every place."""
    with no_autocast(weight):
        return (_grouped(weight, conv) @ _columns(value, weight, conv)).flatten()


def _grouped(weight: Tensor, conv: Convolution) -> Tensor:
    return weight.view(conv.groups, len(weight) // conv.groups, -1)


def _columns(value: Tensor, weight: Tensor, conv: Convolution) -> Tensor:
    """(groups, K, 1) the value for every column of the grouped weight."""
    taps = weight[0, 0].numel()
    return value.view(-1, 1).expand(-1, taps).reshape(conv.groups, -1, 1)


def _operation_backward(ctx, grad, x, weight, scale, shift, lower, upper, step, base, value) -> tuple:
    """Gradients of all that `QuantizedOperation` takes."""
    grid, conv, needs = ctx.grid, ctx.conv, ctx.needs_input_grad
    code = _codes(x, scale, shift, step, base, False, buffer(0, x))
    rounded, seen = _rounded(_copy(code, 1), grid.bits), None
    if needs[1]:
        seen = torch.mul(rounded, step, out=buffer(2, x)).add_(base if value is None else base - value)
    inputs = any((needs[0], *needs[3:7]))
    inner, of_weight, of_bias = products(grad, x, seen, weight, conv, (inputs, needs[1], needs[2] or value is not None))
    del seen
    of_weight, of_bias = (t if t is None else t.to(code.dtype) for t in (of_weight, of_bias))
    if value is not None and needs[1]:
        column = of_bias.view(conv.groups, -1, 1)
        _grouped(of_weight, conv).baddbmm_(column, _columns(value, weight, conv).transpose(1, 2))
    if not inputs:
        return None, of_weight, of_bias if needs[2] else None, *[None] * 6
    inner = inner.to(code.dtype)
    around = None if value is None else _around(inner, of_bias, weight, conv)
    inner, sums = _masked(inner, x, code, rounded.sub_(code), scale, shift, lower, grid, inner)
    if around is not None:
        zero = torch.zeros_like(around)
        code = _codes(zero, scale, shift, step, base)
        error = _rounded(code.clone(), grid.bits).sub_(code)
        _, more = _masked(around, zero, code, error, scale, shift, lower, grid, None)
        sums = Sums(*(a if a is None else a + b for a, b in zip(sums, more)))
    of_parameters = _parameters(sums, scale, shift, lower, upper, step, base, grid)
    of_x = _to_input(inner, scale, False) if needs[0] else None
    return of_x, of_weight, of_bias if needs[2] else None, *of_parameters, None, None


def _compiled_backward(ctx, grad, x, weight, scale, shift, lower, upper, _, __, value) -> tuple:
    """`_operation_backward` with compiled passes."""
    conv, needs, walk = ctx.conv, ctx.needs_input_grad, ctx.walk
    x = compiled.as_it_lies(x, walk.tiles)
    seen, others, of_weight = room(0, x) if needs[1] else None, [None] * 5, None
    inputs = any((needs[0], *needs[3:7]))
    inner, _, of_bias = products(grad, x, None, weight, conv, (inputs, False, needs[2] or value is not None))
    if inputs:
        around = None
        if value is not None:
            around = compiled.array(_whole_field(of_bias, weight, conv, x.shape[1])).reshape(-1)
        found = compiled.gradients(inner, x, walk, around, needs[0], seen)
        others = _as_tensors(found, scale, shift, lower, upper)
    elif needs[1]:
        compiled.values(x, walk, seen)
    if needs[1]:
        _, of_weight, _ = products(grad, x, seen, weight, conv, (False, True, False))
        if value is not None:
            column = of_bias.view(conv.groups, -1, 1)
            _grouped(of_weight, conv).baddbmm_(column, _columns(value, weight, conv).transpose(1, 2))
    return others[0], of_weight, of_bias if needs[2] else None, *others[1:], None, None


def _as_tensors(gradients: tuple, scale, shift, lower, upper) -> tuple:
    """What `compiled.gradients` gives as gradients of x, scale, shift, lower and upper."""
    of_x, (of_lower, of_upper), of_scaling = gradients
    pairs = *zip(torch.from_numpy(of_scaling).sum(1), (scale, shift)), (of_lower, lower), (of_upper, upper)
    return of_x, *(None if t is None else torch.as_tensor(of).view(t.shape) for of, t in pairs)


def products(grad, x, seen, weight, conv: Convolution | None, mask: tuple[bool, bool, bool]):
    """Gradients of op for its input, its weight and its bias, where the mask asks for them."""
    weight = weight.to(grad.dtype)
    if conv is None:
        rows = grad.reshape(-1, grad.shape[-1])
        of_weight = rows.t() @ seen.to(grad.dtype).view(-1, x.shape[-1]) if mask[1] else None
        return grad @ weight if mask[0] else None, of_weight, rows.sum(0) if mask[2] else None
    if seen is None:  # its shape alone, and how it lies in memory
        seen = x if x.dtype == grad.dtype else grad.new_empty(1).expand(x.shape)
    seen = seen.to(grad.dtype)
    inner, of_weight, _ = torch.ops.aten.convolution_backward(
        grad,
        seen,
        weight,
        None,
        conv.stride,
        conv.padding,
        conv.dilation,
        False,
        [0, 0],
        conv.groups,
        (*mask[:2], False),
    )
    of_weight = of_weight.contiguous() if mask[1] else None
    return inner, of_weight, grad.sum((0, 2, 3)) if mask[2] else None  # oneDNN's would compute the weight's as well


def _around(inner: Tensor, of_bias: Tensor, weight: Tensor, conv: Convolution) -> Tensor:
    """(1, C, 1, 1) the gradient of all that pads a channel: that of the channel everywhere, without that of x."""
    everywhere = _whole_field(of_bias, weight, conv, inner.shape[1])
    return everywhere.to(inner.dtype) - inner.sum((0, 2, 3), True)


def _whole_field(of_bias: Tensor, weight: Tensor, conv: Convolution, channels: int) -> Tensor:
    """(1, C, 1, 1) the gradient of a channel that has the same value everywhere, beyond the borders too."""
    rows = of_bias.view(conv.groups, 1, -1).to(weight.dtype)
    return (rows @ _grouped(weight, conv)).view(1, channels, 1, -1).sum(3, True)


def _masked(grad, x, code, error, scale, shift, lower, grid: Grid, out: Tensor | None) -> tuple[Tensor, Sums]:
    """The gradient inside the grid, written to `out`, and the sums; `code` and `error` are used up."""
    low, high = _edges(grid.bits, code.dtype)
    both, above = _sum_to(grad, lower.shape), torch.ops.aten.threshold_backward(grad, code, high[0])
    above = _sum_to(above, lower.shape)
    out = torch.empty_like(code) if out is None else out
    grad = torch.ops.aten.hardtanh_backward.grad_input(grad, code, low[1], high[1], grad_input=out)
    below = both - _sum_to(grad, lower.shape) - above
    rounding = _sum_to(error.mul_(grad), lower.shape)
    of_scale = None if scale is None else _sum_to(torch.mul(grad, x, out=code), scale.shape)
    of_shift = None if shift is None else _sum_to(grad, shift.shape)
    return grad, Sums(below, above, rounding, of_scale, of_shift)


def _parameters(sums: Sums, scale, shift, lower, upper, step, base, grid: Grid) -> tuple:
    """Gradients of scale, shift, lower and upper."""
    of_scale, of_shift = sums.scale, None
    if scale is not None and not grid.multiply:
        of_shift = None if shift is None else -sums.shift / scale
        of_scale = -(sums.scale if shift is None else sums.scale - shift * sums.shift) / scale.square()
    levels, integer = 2**grid.bits - 1, grid.zero_point == "integer"
    moved = ((lower.clamp_max(0) if integer else lower) - base) / step  # by the integer zero point, in steps
    outside = sums.below + sums.above
    of_upper = (sums.rounding - moved * outside) / levels + sums.above
    of_lower = outside - of_upper
    if integer:  # beyond zero the grid does not follow
        of_lower, of_upper = of_lower * (lower <= 0), of_upper * (upper >= 0)
    return of_scale, of_shift, of_lower, of_upper


def _to_input(grad: Tensor, scale, multiply: bool) -> Tensor:
    """The gradient of x~ as that of x, in place."""
    if scale is None:
        return grad
    return grad.mul_(scale) if multiply else grad.div_(scale)


def _sum_to(t: Tensor, shape: torch.Size) -> Tensor:
    if t.shape == shape:  # its own memory is written to later
        return t.clone()
    return t.sum_to_size(shape) if shape else t.sum()


@lru_cache
def _edges(bits: int, dtype: torch.dtype) -> tuple[tuple[float, float], tuple[float, float]]:
    """Between which codes the grid's ends lie, each with its next neighbour outside."""
    kind = np.float64 if dtype == torch.float64 else np.float32
    low, high = kind(-0.5), kind(2**bits - 0.5)
    return (
        (float(low), float(np.nextafter(low, kind(-np.inf)))),
        (float(high), float(np.nextafter(high, kind(np.inf)))),
    )
