"""The quantized layers: one body for Linear and Conv2d, and the two attention products."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .quantizer import BoundaryQuantizer
from .recipe import Recipe
from .transform import EquivalentTransform

MODES = ("float", "observe", "quantized")


class Range(nn.Module):
    """Smallest and largest value of each channel, gathered while observing."""

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("low", torch.full((channels,), torch.inf))
        self.register_buffer("high", torch.full((channels,), -torch.inf))

    @torch.no_grad()
    def add(self, x: Tensor, dim: int) -> None:
        """Takes in x, whose channels lie along `dim`."""
        rows = x.detach().transpose(0, dim).reshape(x.shape[dim], -1)
        self.low.copy_(torch.minimum(self.low, rows.amin(1)))
        self.high.copy_(torch.maximum(self.high, rows.amax(1)))

    def clear(self) -> None:
        """Forgets everything."""
        self.low.fill_(torch.inf)
        self.high.fill_(-torch.inf)

    def require(self, name: str) -> tuple[Tensor, Tensor]:
        """(low, high); `RuntimeError` when nothing was observed yet."""
        if not torch.isfinite(self.low[0]):
            raise RuntimeError(f"{name} has no activation range yet: calibrate the model first (lab.calibrate).")
        return self.low, self.high

    @property
    def amax(self) -> Tensor:
        """(C,) largest magnitude."""
        return torch.maximum(self.low.abs(), self.high.abs())


class Quantized(nn.Module):
    """What quantized layers and attentions share: a name and a mode."""

    def __init__(self, name: str):
        super().__init__()
        self.name, self.mode = name, "quantized"


class QuantLayer(Quantized):
    """A Linear or Conv2d whose input and weight are fake-quantized after LET.

    y = Q(x~) * Q(W~) + b + W shift.  A padded convolution pads first, with zeros, and transforms then; so the border
    is exact with any shift.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d, name: str, recipe: Recipe):
        super().__init__(name)
        self.layer = layer
        self.conv = isinstance(layer, nn.Conv2d)
        self.dim = 1 if self.conv else -1
        channels = layer.in_channels if self.conv else layer.in_features
        parts = 2 if recipe.splits(name) and channels > 1 and not (self.conv and layer.groups > 1) else 1
        self.sizes = [channels - channels // 2, channels // 2] if parts == 2 else [channels]
        weight_bits, act_bits = recipe.bits(name)
        column = (layer.weight.shape[0],) + (1,) * (layer.weight.ndim - 1)
        self.range = Range(channels)
        self.transform = EquivalentTransform(channels, recipe.shift)
        self.act_quantizers = nn.ModuleList(BoundaryQuantizer(act_bits, (), recipe.zero_point) for _ in self.sizes)
        self.weight_quantizers = nn.ModuleList(
            BoundaryQuantizer(weight_bits, column, recipe.zero_point) for _ in self.sizes
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.mode == "observe":
            self.range.add(x, self.dim)
        if self.mode != "quantized":
            return self.layer(x)
        return self.operate(self.quantized_input(x), self.quantized_weight(), self.bias())

    def operate(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """The layer's own operation on an input that is padded already."""
        if not self.conv:
            return F.linear(x, weight, bias)
        return F.conv2d(x, weight, bias, self.layer.stride, 0, self.layer.dilation, self.layer.groups)

    def pad(self, x: Tensor) -> Tensor:
        """The padding that the convolution would have done itself."""
        if not self.conv or not any(self.layer._reversed_padding_repeated_twice):
            return x
        mode = {"zeros": "constant"}.get(self.layer.padding_mode, self.layer.padding_mode)
        return F.pad(x, self.layer._reversed_padding_repeated_twice, mode=mode)

    def transformed_input(self, x: Tensor) -> Tensor:
        """x~ of Eq. 4, padded."""
        return self.transform(self.pad(x), self.dim)

    def transformed_weight(self) -> Tensor:
        """W~ of Eq. 5: every input channel of the weight times its scale."""
        weight = self.layer.weight
        groups = self.layer.groups if self.conv else 1
        scale = self.transform.scale.view(groups, 1, -1, *[1] * (weight.ndim - 2))
        return (weight.view(groups, -1, *weight.shape[1:]) * scale).view_as(weight)

    def bias(self) -> Tensor:
        """(Co,) the bias with what the shift leaves behind."""
        if self.conv:
            taps = self.layer.weight.sum((2, 3), keepdim=True)
            left = F.conv2d(self.transform.shift.view(1, -1, 1, 1), taps, groups=self.layer.groups).flatten()
        else:
            left = self.layer.weight @ self.transform.shift
        return left if self.layer.bias is None else self.layer.bias + left

    def input_ranges(self) -> list[tuple[Tensor, Tensor]]:
        """The natural range of x~ for each activation quantizer; it follows the transform, gradients included."""
        low, high = self.range.require(self.name)
        if self.conv and any(self.layer._reversed_padding_repeated_twice):
            low, high = low.clamp_max(0), high.clamp_min(0)
        lows, highs = (self.transform(t, 0).split(self.sizes) for t in (low, high))
        return [(a.min(), b.max()) for a, b in zip(lows, highs)]

    def quantized_input(self, x: Tensor) -> Tensor:
        """Q(x~), padded."""
        parts = self.transformed_input(x).split(self.sizes, self.dim)
        done = [q(p, *r) for q, p, r in zip(self.act_quantizers, parts, self.input_ranges())]
        return done[0] if len(done) == 1 else torch.cat(done, self.dim)

    def quantized_weight(self) -> Tensor:
        """Q(W~)."""
        dims = tuple(range(1, self.layer.weight.ndim))
        sizes = self.sizes if len(self.sizes) > 1 else [self.layer.weight.shape[1]]
        parts = self.transformed_weight().split(sizes, 1)
        done = [q(p, p.amin(dims, True), p.amax(dims, True)) for q, p in zip(self.weight_quantizers, parts)]
        return done[0] if len(done) == 1 else torch.cat(done, 1)

    @torch.no_grad()
    def start_transform(self, recipe: Recipe) -> None:
        """LET's start from the observed input and the weight."""
        low, high = self.range.require(self.name)
        weight = self.layer.weight
        groups = self.layer.groups if self.conv else 1
        per_group = weight.view(groups, -1, *weight.shape[1:]).abs()
        amax = per_group.amax(tuple(d for d in range(per_group.ndim) if d not in (0, 2))).flatten()
        self.transform.start(low, high, amax, recipe.alpha, recipe.beta, recipe.centre and recipe.shift)


class QuantAttention(Quantized):
    """An attention processor that fake-quantizes q, k, the probabilities and v, each per tensor.

    LET: q / s and k * s per channel (foldable into to_q and to_k); v / s_v per channel, the product times s_v again
    (foldable into to_v and to_out).  No scale is tied to a token, so a calibrated model takes images of any size.
    """

    def __init__(self, attention: nn.Module, name: str, recipe: Recipe):
        super().__init__(name)
        self.original = attention.processor
        q_channels, v_channels = attention.to_q.out_features, attention.to_v.out_features
        bits = recipe.bits(name)[1]
        self.ranges = nn.ModuleDict(
            {"q": Range(q_channels), "k": Range(q_channels), "v": Range(v_channels), "p": Range(1)}
        )
        self.quantizers = nn.ModuleDict({key: BoundaryQuantizer(bits, (), recipe.zero_point) for key in "qkvp"})
        self.transform_qk = EquivalentTransform(q_channels, shift=False)
        self.transform_v = EquivalentTransform(v_channels, shift=False)

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        """diffusers reads this signature to learn which arguments it may pass."""
        return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, temb)

    def forward(self, attn, hidden_states, encoder_hidden_states, attention_mask, temb):
        if self.mode == "float":
            return self.original(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        residual = hidden_states
        if attn.spatial_norm is not None:
            hidden_states = attn.spatial_norm(hidden_states, temb)
        if residual.ndim == 4:
            hidden_states = hidden_states.flatten(2).transpose(1, 2)  # (B, N, C)
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        if encoder_hidden_states is not None and attn.norm_cross:
            context = attn.norm_encoder_hidden_states(context)
        q, k, v = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)  # (B, N, C)
        attention_mask = attn.prepare_attention_mask(attention_mask, context.shape[1], len(context))
        out = self.product(q, k, v, attn.heads, attn.scale, attention_mask)
        out = attn.to_out[1](attn.to_out[0](out))
        if residual.ndim == 4:
            out = out.transpose(1, 2).reshape_as(residual)
        return ((out + residual) if attn.residual_connection else out) / attn.rescale_output_factor

    def product(self, q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float, mask: Tensor | None = None) -> Tensor:
        """softmax(q k^T scale + mask) v for (B, N, C) inputs, quantized or observed by mode, in chunks of queries."""
        if self.mode == "observe":
            for key, x in zip("qkv", (q, k, v)):
                self.ranges[key].add(x, -1)
        else:
            q = self._quantize("q", q / self.transform_qk.scale, 1 / self.transform_qk.scale)
            k = self._quantize("k", k * self.transform_qk.scale, self.transform_qk.scale)
            v = self._quantize("v", v / self.transform_v.scale, 1 / self.transform_v.scale)
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))  # (B, heads, N, d)
        rows = max(1, 2**23 // (k.shape[0] * heads * k.shape[2]))
        queries = q.split(rows, 2)
        masks = [None] * len(queries)
        if mask is not None:  # (B heads, 1 or N, N_k), as diffusers prepares it
            masks = mask.unflatten(0, (-1, heads)).expand(-1, -1, q.shape[2], -1).split(rows, 2)
        chunks = [self._attend(part, k, v, scale, m) for part, m in zip(queries, masks)]
        out = torch.cat(chunks, 2).transpose(1, 2).flatten(2)  # (B, N, C)
        return out * self.transform_v.scale if self.mode == "quantized" else out

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None) -> Tensor:
        scores = q @ k.transpose(-1, -2) * scale
        p = (scores if mask is None else scores + mask).softmax(-1)
        if self.mode == "observe":
            self.ranges["p"].add(p[None], 0)
        else:
            _, high = self.ranges["p"].require(self.name)
            p = self.quantizers["p"](p, torch.zeros_like(high[0]), high[0])
        return p @ v

    def _quantize(self, key: str, x: Tensor, factor: Tensor) -> Tensor:
        low, high = self.ranges[key].require(self.name)
        return self.quantizers[key](x, (low * factor).min(), (high * factor).max())

    @torch.no_grad()
    def start_transform(self, recipe: Recipe) -> None:
        """s = amax|q|^alpha / amax|k|^beta; s_v = amax|v|, because undoing it costs no precision."""
        (q_low, q_high), (v_low, v_high) = (self.ranges[key].require(self.name) for key in "qv")
        self.transform_qk.start(q_low, q_high, self.ranges["k"].amax, recipe.alpha, recipe.beta, False)
        self.transform_v.start(v_low, v_high, torch.ones_like(v_low), 1.0, 0.0, False)
