"""A layer with LET and learned boundaries as one function of its parameters, by compiled kernels.

    y = op(Q((x - shift) / scale), Q(W scale)) + bias + W shift,    scale = exp(log_scale), shift = reach offset

with the boundaries of both quantizers in the ranges that scale and shift leave.  It is what `quantization.layer`
composes out of `fused`, within rounding: sums are done in another order.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import loops
from .compiled import Seen, Walk, array, as_it_lies, gradients, values
from .fused import Convolution, Grid, buffer, no_autocast, products, room
from .parts import Half, Parts


class Plan(NamedTuple):
    """What does not change while a layer is trained.

    weight, bias: in float; frozen: whether the weight is quantized as ever, with nothing of it trained.
    reach, low, high: (C,) of the activation, `reach` None without a transform.
    padded: whether zeros pad x; sizes: the channels of the halves; conv: None is a linear layer.
    act, of_weight: the quantizers' settings.
    """

    weight: Tensor
    bias: Tensor | None
    frozen: bool
    reach: Tensor | None
    low: Tensor
    high: Tensor
    padded: bool
    sizes: tuple[int, ...]
    conv: Convolution | None
    act: Grid
    of_weight: Grid


class QuantizedLayer(torch.autograd.Function):
    """(x, log_scale, offset, `Work`, *trims) -> y; the trims of the activation's halves, then those of the weight's."""

    @staticmethod
    def forward(ctx, x, log_scale, offset, work, *trims):
        plan, conv = work.plan, work.plan.conv is not None
        x = as_it_lies(x, work.seen.tiles(x, conv))
        work.settle()
        walk = work.seen.walk(x, conv)
        seen = values(x, walk, buffer(0, x))
        weight, bias = work.weight_and_bias()
        ctx.work, ctx.walk = work, walk
        ctx.save_for_backward(x, log_scale, offset, *trims)
        if not conv:
            return F.linear(seen, weight, bias)
        return F.conv2d(seen, weight, bias, *plan.conv[:3], plan.conv.groups)

    @staticmethod
    def backward(ctx, grad):
        (x, *_), work, plan = ctx.saved_tensors, ctx.work, ctx.work.plan
        with no_autocast(grad):
            weight, seen = work.weight_again(), None if plan.frozen else room(0, x)
            needed = work.bordered or not (plan.frozen or plan.reach is None)
            inner, _, of_bias = products(grad, x, None, weight, plan.conv, (True, False, needed))
            given = (inner, x, ctx.walk, weight, of_bias, seen)
            of_x, of_scaling, of_trims = work.of_input(*given, ctx.needs_input_grad[0])
            if plan.frozen:
                of_trims += [None] * len(of_trims)
            else:
                _, of_weight, _ = products(grad, x, seen, weight, plan.conv, (False, True, False))
                of_trims += work.of_weight(of_weight, of_bias, of_scaling)
        of_logs = None, None
        if plan.reach is not None:
            of_scaling[0] *= work.scale
            of_scaling[1] *= work.reach
            of_logs = torch.from_numpy(of_scaling)
        return of_x, *of_logs, None, *of_trims


class Work(Parts):
    """A layer's numbers as arrays: views of what it is made of, and what a forward pass leaves to its backward pass.

    Args:
        plan, log_scale, offset, trims: as `QuantizedLayer` takes them.
        layer: whose they are; settings: as `Parts` has them.
    """

    def __init__(
        self, plan: Plan, log_scale: Tensor | None, offset: Tensor | None, trims: Sequence[Tensor],
        layer: nn.Module, settings: tuple,
    ):  # fmt: skip
        super().__init__(layer._modules.values(), (), settings, views=True)
        self.plan, self.log_scale, self.offset, self.trims = plan, log_scale, offset, trims
        self.low, self.high = array(plan.low), array(plan.high)
        kind, channels = self.low.dtype.type, len(plan.low)
        self.scales, self.shifts = torch.ones_like(plan.low), torch.zeros_like(plan.low)
        self.scale, self.shift = array(self.scales), array(self.shifts)
        self.reach = None if plan.reach is None else array(plan.reach)
        self.levels, self.integer = kind(2**plan.act.bits - 1), plan.act.zero_point == "integer"
        self.weight_levels = kind(2**plan.of_weight.bits - 1)
        shifted = plan.reach is not None or not self.integer
        self.bordered = shifted and plan.conv is not None and any(plan.conv.padding)
        self.zero = np.zeros(channels, kind)  # what a zero that pads x is quantized to, where that is not 0
        count, rows = len(plan.sizes), len(plan.weight)
        self.lower, self.upper = np.empty((2, 1 if count == 1 else channels), kind)
        self.seen = Seen(self.scale, self.shift, self.zero, self.lower, self.upper, self.levels, self.integer)
        starts = [0, *accumulate(plan.sizes)]
        pairs = [array(t).reshape(2, -1) for t in trims]
        self.halves = [
            Half(*ends, trim, np.empty(2, kind), np.empty(3, np.int64)) for ends, trim in zip(pairwise(starts), pairs)
        ]
        self.weight_halves = [
            Half(*ends, trim, np.empty((4, rows), kind), np.empty(rows, np.uint8))
            for ends, trim in zip(pairwise(starts), pairs[count:])
        ]
        self.rows = array(plan.weight).reshape(rows, -1)
        self.flat = torch.from_numpy(self.rows).view(plan.weight.shape)

    def __call__(self, x: Tensor) -> Tensor:
        return QuantizedLayer.apply(x, self.log_scale, self.offset, self, *self.trims)

    def settle(self) -> None:
        """Scale, shift and boundaries of the activation, as parameters are now."""
        if self.plan.reach is not None:
            torch.exp(self.log_scale, out=self.scales)
            torch.mul(self.plan.reach, self.offset, out=self.shifts)
        for half in self.halves:
            loops.input_grid(
                self.low, self.high, self.plan.padded, self.scale, self.shift, half.first, half.last, half.trim,
                self.levels, self.integer, self.bordered, self.lower, self.upper, self.zero, half.ends, half.flags,
            )  # fmt: skip

    def weight_and_bias(self) -> tuple[Tensor, Tensor | None]:
        """The quantized weight, and the bias with what shift and padding leave to it."""
        plan, weight = self.plan, self.plan.weight
        out = room(1, self.flat)
        bias = torch.zeros(len(weight), dtype=weight.dtype) if plan.bias is None else plan.bias.detach().clone()
        done, of_bias = array(out).reshape(self.rows.shape), array(bias)
        for half in self.weight_halves:
            loops.weight_values(
                self.rows, self.scale, self.shift, self.zero, half.first, half.last, half.trim, self.weight_levels,
                self.integer, done, of_bias, half.ends, half.flags,
            )  # fmt: skip
        return out, bias if self.bordered or plan.bias is not None or plan.reach is not None else None

    def weight_again(self) -> Tensor:
        """The quantized weight of the last forward pass, which nobody kept."""
        out = room(1, self.flat)
        for half in self.weight_halves:
            loops.weight_again(
                self.rows, self.scale, half.first, half.last, self.weight_levels, self.integer,
                array(out).reshape(self.rows.shape), half.ends,
            )  # fmt: skip
        return out

    def of_input(
        self, grad: Tensor, x: Tensor, walk: Walk, weight: Tensor, of_bias: Tensor | None, seen: Tensor | None,
        wanted: bool,
    ) -> tuple:  # fmt: skip
        """Gradients of x, if `wanted`, of (scale, shift) as an array, and of the trims; `seen` takes Q(x~)."""
        around = None
        if self.bordered:  # as if every channel had the zero's value everywhere
            around = array((of_bias @ weight.flatten(1)).view(len(self.scale), -1).sum(1))
        out, of_ends, of_scaling = gradients(grad, x, walk, around, wanted, seen)
        of_scaling = of_scaling.sum(1) if of_scaling.shape[1] > 1 else of_scaling[:, 0]
        of_trims = []
        for half in self.halves:
            of_lower, of_upper = of_ends[:, half.first : half.last].sum(1) if len(self.halves) > 1 else of_ends[:, 0]
            of_trim = np.empty(2, of_ends.dtype)
            loops.input_grid_gradients(
                of_lower, of_upper, half.ends, half.flags, self.scale, half.trim, of_scaling, of_trim
            )
            of_trims.append(torch.from_numpy(of_trim))
        return out, of_scaling, of_trims

    def of_weight(self, grad: Tensor, of_bias: Tensor | None, of_scaling: np.ndarray) -> list[Tensor]:
        """Gradients of the weight's trims; adds those of (scale, shift)."""
        grad, dims = array(grad.contiguous()).reshape(self.rows.shape), self.plan.weight.ndim
        of_bias = np.zeros(len(grad), grad.dtype) if of_bias is None else array(of_bias)
        of_trims = []
        for half in self.weight_halves:
            of_trim = np.empty_like(half.trim)
            loops.weight_gradients(
                grad, of_bias, self.rows, self.scale, self.zero, half.first, half.last, half.trim, self.weight_levels,
                self.integer, half.ends, half.flags, of_scaling, of_trim,
            )  # fmt: skip
            of_trims.append(torch.from_numpy(of_trim).view(2, -1, *[1] * (dims - 1)))
        return of_trims
