"""Norms and activations into a graph."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .emitter import Emitter

ACTIVATIONS = {"ReLU": "Relu", "GELU": "Gelu", "Mish": "Mish"}


def emit_group_norm(e: Emitter, norm: nn.GroupNorm, name: str, x: str, let=(None, None)) -> str:
    """GroupNorm, and what follows it per channel, x * factor + offset, within its own scale and offset."""
    if type(norm) is not nn.GroupNorm:
        raise ValueError(f"{name} is a {type(norm).__name__}, which cannot be deployed.")
    scale, offset = _affine(norm, norm.num_channels, let)
    held = e.graph.constant(f"{name}.weight", scale), e.graph.constant(f"{name}.bias", offset)
    return e.graph.op("GroupNormalization", x, *held, epsilon=norm.eps, num_groups=norm.num_groups)


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
