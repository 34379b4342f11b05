"""The products of attention with LET and learned boundaries as one function of its parameters, by compiled kernels.

    y = (Q(softmax(Q(q / s) Q(k s)^T scale)) Q(v / s_v)) s_v

with boundaries in the ranges that s and s_v leave.  It is what `quantization.attention` composes out of `fused`, within
rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from . import loops
from .compiled import Walk, array, gradients, values
from .fused import Grid, no_autocast
from .parts import Half, Parts

INVERSE = {"q": True, "k": False, "v": True, "p": False}


class QuantizedProduct(torch.autograd.Function):
    """(q, k, v (B, N, C), log s, log s_v (C,) or None, trims of "q", "k", "v", "p", `Work`) -> (B, N, C)."""

    @staticmethod
    def forward(ctx, q, k, v, log_scale, log_scale_v, of_q, of_k, of_v, of_p, work):
        q, k, v = (x.contiguous() for x in (q, k, v))
        work.settle()
        ours, theirs, values = (work.headed(work.quantized(key, x)) for key, x in zip("qkv", (q, k, v)))
        p = (ours @ theirs.transpose(-1, -2)).mul_(work.scale).softmax(-1)
        out = whole(work.quantized("p", p) @ values)
        ctx.work = work
        ctx.save_for_backward(q, k, v, p, out, log_scale, log_scale_v, of_q, of_k, of_v, of_p)
        return out if work.v is None else out * work.v

    @staticmethod
    def backward(ctx, grad):
        (q, k, v, p, out, *_), work = ctx.saved_tensors, ctx.work
        of_s, of_s_v = (np.zeros_like(work.shares[key].scale) for key in "qv")
        with no_autocast(grad):
            if work.v is not None:
                of_s_v += array((grad * out).sum((0, 1)))
                grad = grad * work.v
            grad, values = work.headed(grad), work.headed(work.quantized("v", v))
            seen, ours = torch.empty_like(p), torch.empty_like(q)
            of_p, trim_p = work.gradient("p", grad @ values.transpose(-1, -2), p, None, seen)
            of_v, trim_v = work.gradient("v", whole(seen.transpose(-1, -2) @ grad), v, of_s_v)
            scores = torch.ops.aten._softmax_backward_data(of_p, p, -1, p.dtype).mul_(work.scale)
            theirs = work.headed(work.quantized("k", k))
            of_q, trim_q = work.gradient("q", whole(scores @ theirs), q, of_s, ours)
            of_k, trim_k = work.gradient("k", whole(scores.transpose(-1, -2) @ work.headed(ours)), k, of_s)
        pairs = zip(work.log_scales, (of_s, of_s_v), work.scales)
        of_logs = (None if log is None else torch.from_numpy(of) * scale for log, of, scale in pairs)
        return of_q, of_k, of_v, *of_logs, trim_q, trim_k, trim_v, trim_p, None


def whole(x: Tensor) -> Tensor:
    """(B, heads, N, C / heads) as (B, N, C), in new memory."""
    return x.transpose(1, 2).flatten(2)


class Share(NamedTuple):
    """What kernels take for one of "q", "k", "v" and "p": the range before the scale, the scale, the quantizer's share,
    the boundaries, and whether it is divided by the scale."""

    low: np.ndarray
    high: np.ndarray
    scale: np.ndarray
    half: Half
    bounds: np.ndarray
    inverse: bool


class Work(Parts):
    """An attention's numbers as arrays: views of what it is made of, and what passes find.

    Args:
        heads, scale: of the attention; ranges, trims, grid: of its quantizers by "q", "k", "v" and "p".
        log_scales: of "q" and "k", and of "v"; None without a transform.
        layer: whose they are; settings: as `Parts` has them.
    """

    def __init__(
        self, heads: int, scale: float, ranges: Mapping[str, tuple[Tensor, Tensor]], trims: Mapping[str, Tensor],
        grid: Grid, log_scales: tuple[Tensor | None, Tensor | None], layer: nn.Module, settings: tuple,
    ):  # fmt: skip
        super().__init__(layer._modules.values(), (), settings, views=True)
        self.heads, self.scale, self.log_scales = heads, scale, log_scales
        self.trims = [trims[key] for key in INVERSE]
        kind = array(ranges["q"][0]).dtype.type
        self.levels, self.integer = kind(2**grid.bits - 1), grid.zero_point == "integer"
        both = [torch.ones_like(ranges[key][0]) for key in "qv"]
        self.scales, (_, self.v) = both, [s if log is not None else None for s, log in zip(both, log_scales)]
        by = {"q": array(both[0]), "k": array(both[0]), "v": array(both[1]), "p": np.ones(1, kind)}
        self.shares, self.walks = {}, {}
        for key, inverse in INVERSE.items():
            low, high = (array(t) for t in ranges[key])
            trim = array(trims[key]).reshape(2, 1)
            half = Half(0, len(low), trim, np.empty(2, kind), np.empty(3, np.int64))
            low, shape = (np.zeros_like(low), (1, 1, -1)) if key == "p" else (low, (-1, len(low)))
            bounds, none = np.empty((2, 1), kind), np.zeros_like(by[key])
            self.shares[key] = Share(low, high, by[key], half, bounds, inverse)
            given = (by[key], none, *bounds, self.levels, self.integer, key == "k")
            self.walks[key] = Walk(key == "p", shape, 0, given, none)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return QuantizedProduct.apply(q, k, v, *self.log_scales, *self.trims, self)

    def settle(self) -> None:
        """Scales and boundaries, as parameters are now."""
        for log_scale, scale in zip(self.log_scales, self.scales):
            if log_scale is not None:
                torch.exp(log_scale, out=scale)
        for share in self.shares.values():
            low, high, scale, half, bounds, inverse = share
            loops.factor_grid(low, high, scale, inverse, half.trim, self.integer, bounds, half.ends, half.flags)

    def quantized(self, key: str, x: Tensor) -> Tensor:
        """x after LET, quantized."""
        return values(x, self.walks[key])

    def headed(self, x: Tensor) -> Tensor:
        """(B, N, C) as (B, heads, N, C / heads)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def gradient(
        self, key: str, grad: Tensor, x: Tensor, of_scale: np.ndarray | None, seen: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Gradients of x and of its trim; adds that of the scale; `seen` takes the quantized x on the way."""
        low, high, scale, half, _, inverse = self.shares[key]
        out, of_bounds, of_scaling = gradients(grad, x, self.walks[key], seen=seen)
        of_scaling = of_scaling[:, 0]
        of_trim = np.empty(2, scale.dtype)
        loops.factor_grid_gradients(
            of_bounds, half.ends, half.flags, low, high, scale, inverse, half.trim, of_scaling[0], of_trim
        )
        if of_scale is not None:
            of_scale += of_scaling[0]
        return out, torch.from_numpy(of_trim)
