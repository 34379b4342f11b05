"""A layer with LET and learned boundaries as one function of its parameters, by compiled kernels.

    y = op(Q((x - shift) / scale), Q(W scale)) + bias + W shift,    scale = exp(log_scale), shift = reach offset

with the boundaries of both quantizers in the ranges that scale and shift leave.  It is what `quantization.layer`
composes out of `fused`, within rounding: sums are done in another order.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from . import loops
from .compiled import array
from .fused import Convolution, Grid, buffer, no_autocast, products


class Plan(NamedTuple):
    """What does not change while a layer is trained.

    weight, bias: in float, or quantized and whole if `kept`.
    reach, low, high: (C,) of the activation, `reach` None without a transform.
    padded: whether zeros pad x; sizes: the channels of the halves; conv: None is a linear layer.
    act, of_weight: the quantizers' settings.
    """

    weight: Tensor
    bias: Tensor | None
    kept: bool
    reach: Tensor | None
    low: Tensor
    high: Tensor
    padded: bool
    sizes: tuple[int, ...]
    conv: Convolution | None
    act: Grid
    of_weight: Grid


@lru_cache(maxsize=256)
def _halves(sizes: tuple[int, ...]) -> list[tuple[int, int]]:
    """First channel of each half, and first channel behind it."""
    ends = [0, *accumulate(sizes)]
    return list(pairwise(ends))


class QuantizedLayer(torch.autograd.Function):
    """(x, log_scale, offset, `Plan`, *trims) -> y; the trims of the activation's halves, then those of the weight's."""

    @staticmethod
    def forward(ctx, x, log_scale, offset, plan, *trims):
        x = x.contiguous()
        state = ctx.state = State(plan, log_scale, offset, trims)
        seen = state.seen(x)
        weight, bias = state.weight_and_bias()
        ctx.save_for_backward(x, weight, log_scale, offset, *trims)
        if plan.conv is None:
            return F.linear(seen, weight, bias)
        return F.conv2d(seen, weight, bias, *plan.conv[:3], plan.conv.groups)

    @staticmethod
    def backward(ctx, grad):
        (x, weight, *_), state, plan = ctx.saved_tensors, ctx.state, ctx.state.plan
        with no_autocast(grad):
            seen = None if plan.kept else state.seen(x)
            needed = state.bordered or not (plan.kept or plan.reach is None)
            inner, of_weight, of_bias = products(grad, x, seen, weight, plan.conv, (True, not plan.kept, needed))
            of_x, of_scaling, of_trims = state.of_input(inner, x, weight, of_bias, ctx.needs_input_grad[0])
            if not plan.kept:
                of_trims += state.of_weight(of_weight, of_bias, of_scaling)
        if plan.reach is None:
            return of_x, None, None, None, *of_trims
        of_scale, of_shift = torch.from_numpy(of_scaling)
        return of_x, of_scale * torch.from_numpy(state.scale), of_shift * plan.reach, None, *of_trims


class State:
    """What a forward pass leaves to its backward pass beside tensors: numbers of one layer, as arrays."""

    def __init__(self, plan: Plan, log_scale: Tensor | None, offset: Tensor | None, trims: tuple[Tensor, ...]):
        self.plan, self.halves = plan, _halves(plan.sizes)
        kind, channels = array(plan.low).dtype.type, len(plan.low)
        if plan.reach is None:
            self.scale, self.shift = np.ones(channels, kind), np.zeros(channels, kind)
        else:
            self.scale, self.shift = array(log_scale.exp()), array(plan.reach * offset)
        self.trims = [array(t).reshape(2, -1) for t in trims]
        self.levels, self.integer = kind(2**plan.act.bits - 1), plan.act.zero_point == "integer"
        low, high = array(plan.low), array(plan.high)
        self.found = [
            loops.input_bounds(low, high, plan.padded, self.scale, self.shift, *half, trim[:, 0], self.integer)
            for half, trim in zip(self.halves, self.trims)
        ]
        ends = np.array([found[:2] for found in self.found], kind).T  # lower and upper
        self.lower, self.upper = ends if len(self.halves) == 1 else ends.repeat(plan.sizes, 1)
        shifted = plan.reach is not None or not self.integer
        self.bordered = shifted and plan.conv is not None and any(plan.conv.padding)
        self.zero = np.zeros(channels, kind)  # what a zero that pads x is quantized to, where that is not 0
        if self.bordered:
            loops.plane_values(*self._walk(self.zero[None, :, None]), self.zero.copy(), self.zero[None, :, None])

    def _walk(self, x: np.ndarray) -> tuple:
        return x, self.scale, self.shift, self.lower, self.upper, self.levels, self.integer, False

    def _shape(self, x: Tensor) -> tuple[int, ...]:
        return (x.shape[0], x.shape[1], -1) if self.plan.conv else (-1, x.shape[-1])

    def seen(self, x: Tensor) -> Tensor:
        """Q(x~), less what a zero is quantized to, in a buffer of this thread's where there is one."""
        out = buffer(0, x)
        out = torch.empty_like(x) if out is None else out
        kernel = loops.plane_values if self.plan.conv else loops.row_values
        shape = self._shape(x)
        kernel(*self._walk(array(x).reshape(shape)), self.zero, array(out).reshape(shape))
        return out

    def weight_and_bias(self) -> tuple[Tensor, Tensor | None]:
        """The quantized weight, and the bias with what shift and padding leave to it."""
        plan, weight = self.plan, self.plan.weight
        if plan.kept:
            if not self.bordered:
                return weight, plan.bias
            zero = torch.from_numpy(self.zero.repeat(weight[0, 0].numel()))
            more = torch.mv(weight.flatten(1), zero)
            return weight, more if plan.bias is None else plan.bias + more
        rows, out = array(weight).reshape(len(weight), -1), torch.empty(weight.shape, dtype=weight.dtype)
        bias = torch.zeros(len(weight), dtype=weight.dtype) if plan.bias is None else plan.bias.detach().clone()
        self.ends, levels = [], self.scale.dtype.type(2**plan.of_weight.bits - 1)
        for half, trim in zip(self.halves, self.trims[len(self.halves) :]):
            ends, flags = np.empty((4, len(rows)), rows.dtype), np.empty(len(rows), np.uint8)
            loops.weight_values(
                rows, self.scale, self.shift, self.zero, *half, trim, levels, self.integer,
                array(out).reshape(rows.shape), array(bias), ends, flags,
            )  # fmt: skip
            self.ends.append((half, trim, levels, ends, flags))
        return out, bias if self.bordered or plan.bias is not None or plan.reach is not None else None

    def of_input(self, grad: Tensor, x: Tensor, weight: Tensor, of_bias: Tensor | None, wanted: bool) -> tuple:
        """Gradients of x, of (scale, shift) as an array, and of the activation's trims."""
        grad, shape, plan = grad.contiguous(), self._shape(x), self.plan
        out = torch.empty_like(x) if wanted else None
        of_ends, of_scaling = (np.empty((2, len(t)), t.dtype) for t in (self.lower, self.scale))
        arrays = array(grad).reshape(shape), *self._walk(array(x).reshape(shape))
        last = None if out is None else array(out).reshape(shape), of_ends, of_scaling
        if plan.conv:
            around = self.zero[:0]
            if self.bordered:  # as if every channel had the zero's value everywhere
                around = array((of_bias @ weight.flatten(1)).view(len(self.scale), -1).sum(1))
            loops.plane_gradients(*arrays, around, *last)
        else:
            loops.row_gradients(*arrays, *last)
        of_trims = []
        for (a, b), found, trim in zip(self.halves, self.found, self.trims):
            of_lower, of_upper = of_ends[:, a:b].sum(1) if len(self.halves) > 1 else of_ends[:, 0]
            of_trim = np.empty(2, trim.dtype)
            loops.input_bounds_gradients(of_lower, of_upper, found, self.scale, trim[:, 0], of_scaling, of_trim)
            of_trims.append(torch.from_numpy(of_trim))
        return out, of_scaling, of_trims

    def of_weight(self, grad: Tensor, of_bias: Tensor | None, of_scaling: np.ndarray) -> list[Tensor]:
        """Gradients of the weight's trims; adds those of (scale, shift)."""
        weight = self.plan.weight
        rows = array(weight).reshape(len(weight), -1)
        grad = array(grad.contiguous()).reshape(rows.shape)
        of_bias = np.zeros(len(rows), rows.dtype) if of_bias is None else array(of_bias)
        of_trims = []
        for half, trim, levels, ends, flags in self.ends:
            of_trim = np.empty_like(trim)
            loops.weight_gradients(
                grad, of_bias, rows, self.scale, self.zero, *half, trim, levels, self.integer, ends, flags,
                of_scaling, of_trim,
            )  # fmt: skip
            of_trims.append(torch.from_numpy(of_trim).view(2, -1, *[1] * (weight.ndim - 1)))
        return of_trims
