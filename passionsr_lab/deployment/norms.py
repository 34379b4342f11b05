"""Norms and activations into a graph."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .emitter import Emitter

ACTIVATIONS = {"ReLU": "Relu", "GELU": "Gelu", "Mish": "Mish"}


def emit_group_norm(e: Emitter, norm: nn.GroupNorm, name: str, x: str, let=(None, None)) -> str:
    """GroupNorm, and what follows it per channel, x * factor + offset, as one scale and one offset per channel.

    Mean and variance come from sums over places, E[x^2] - E[x]^2, which keep the layout that integer convolutions have;
    engines rearrange x for their own GroupNorm and back, a third of a decoder's time.
    """
    if type(norm) is not nn.GroupNorm:
        raise ValueError(f"{name} is a {type(norm).__name__}, which cannot be deployed.")
    g, groups, each = e.graph, norm.num_groups, norm.num_channels // norm.num_groups
    held = (t.view(1, groups, each) for t in _affine(norm, norm.num_channels, let))
    weight, bias = (g.constant(f"{name}.{key}", t) for key, t in zip(("weight", "bias"), held))
    mean, square = (_of_groups(e, t, groups, each) for t in _moments(e, x))
    variance = g.op("Max", g.op("Sub", square, g.op("Mul", mean, mean)), g.constant("none", 0.0))
    deviation = g.op("Sqrt", g.op("Add", variance, g.constant(f"epsilon_{norm.eps}", norm.eps)))
    scale = g.op("Div", weight, deviation)
    offset = g.op("Sub", bias, g.op("Mul", scale, mean))
    scale, offset = (g.op("Reshape", t, g.whole(0, norm.num_channels, 1, 1)) for t in (scale, offset))
    return g.op("Add", g.op("Mul", x, scale), offset)


def _moments(e: Emitter, x: str) -> tuple[str, str]:
    """(B, C, 1, 1) means of x and of its square over all places."""
    g = e.graph
    places = g.op("Cast", g.op("ReduceProd", g.op("Shape", x, start=2, end=4), keepdims=0), to=1)
    norm = g.op("ReduceL2", x, g.whole(2, 3))
    return g.op("ReduceMean", x, g.whole(2, 3)), g.op("Div", g.op("Mul", norm, norm), places)


def _of_groups(e: Emitter, x: str, groups: int, each: int) -> str:
    """(B, groups, 1) means over the channels of a group."""
    return e.graph.op("ReduceMean", e.graph.op("Reshape", x, e.graph.whole(0, groups, each)), e.graph.whole(2))


def emit_layer_norm(e: Emitter, norm: nn.LayerNorm, name: str, x: str, let=(None, None)) -> str:
    """LayerNorm over the last axis, with what follows it per channel."""
    if type(norm) is not nn.LayerNorm:
        raise ValueError(f"{name} is a {type(norm).__name__}, which cannot be deployed.")
    scale, offset = _affine(norm, norm.normalized_shape[0], let)
    held = e.graph.constant(f"{name}.weight", scale), e.graph.constant(f"{name}.bias", offset)
    return e.graph.op("LayerNormalization", x, *held, epsilon=norm.eps, axis=-1)


def _affine(norm: nn.Module, channels: int, let: tuple[Tensor | None, Tensor | None]) -> tuple[Tensor, Tensor]:
    scale = torch.ones(channels) if norm.weight is None else norm.weight.detach().float()
    offset = torch.zeros(channels) if norm.bias is None else norm.bias.detach().float()
    factor, more = let
    scale, offset = (scale, offset) if factor is None else (scale * factor, offset * factor)
    return scale, offset if more is None else offset + more


def emit_activation(e: Emitter, module: nn.Module, name: str, x: str) -> str:
    """SiLU and a few others; `ValueError` names what is none of them."""
    kind = type(module).__name__
    if kind == "SiLU":
        return e.graph.op("Mul", x, e.graph.op("Sigmoid", x))
    if kind not in ACTIVATIONS:
        raise ValueError(f"{name} is a {kind}, which cannot be deployed.")
    return e.graph.op(ACTIVATIONS[kind], x)
