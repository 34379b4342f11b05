"""The two products of attention, softmax(q k) v, with quantized factors."""

from __future__ import annotations

from typing import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..kernels import compiled
from ..kernels.fused import FakeQuantize, Grid, wide
from ..kernels.parts import Parts
from .layer import Quantized
from .quantizer import BoundaryQuantizer, Quantizer
from .ranges import Range
from .recipe import LayerRecipe
from .transform import EquivalentTransform

SCORES = 2**23  # attention scores that are held at once; where there are more, queries go in chunks
CHUNK = 2**21  # of so many


def attend(
    q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float, mask: Tensor | None = None,
    change: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:  # fmt: skip
    """softmax(q k^T scale + mask) v for (B, N, C) inputs, in chunks of queries where there are many scores; a backward
    pass then computes those of each chunk again.

    Args:
        mask: (B heads, 1 or N, N_k), as diffusers prepares it.
        change: what happens to a chunk of probabilities (B, heads, n, N_k) before they meet v.
    """
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))  # (B, heads, N, d)
    per_query = k.shape[0] * heads * k.shape[2]
    many = per_query * q.shape[2] > SCORES
    again, rows = many and torch.is_grad_enabled(), max(1, CHUNK // per_query) if many else q.shape[2]
    queries = q.split(rows, 2)
    masks = [None] * len(queries)
    if mask is not None:
        masks = mask.unflatten(0, (-1, heads)).expand(-1, -1, q.shape[2], -1).split(rows, 2)

    def chunk(some: Tensor, m: Tensor | None) -> Tensor:
        scores = some @ k.transpose(-1, -2) * scale
        p = (scores if m is None else scores + m).softmax(-1)
        return (p if change is None else change(p)) @ v

    options = {"use_reentrant": False, "preserve_rng_state": False}
    chunks = [checkpoint(chunk, *one, **options) if again else chunk(*one) for one in zip(queries, masks)]
    return torch.cat(chunks, 2).transpose(1, 2).flatten(2)  # (B, N, C)


class QuantAttention(Quantized):
    """An attention processor that fake-quantizes q, k, the probabilities p and v, each per tensor.

    LET: q / s and k * s per channel (foldable into to_q and to_k); v / s_v per channel, the product times s_v again
    (foldable into to_v and to_out).  No scale is tied to a token, so a calibrated model takes images of any size.

    Slots, all empty at first: `quantizers` (of "q", "k", "v" and "p"), `transform_qk` and `transform_v`.
    """

    def __init__(self, original, channels: dict[str, int], name: str, setting: LayerRecipe):
        super().__init__(name, setting)
        self.original, self.channels = original, channels  # the processor before, and the sizes of "q", "k" and "v"
        self.ranges = nn.ModuleDict({key: Range(size) for key, size in (channels | {"p": 1}).items()})
        self.empty()

    @classmethod
    def of(cls, attention: nn.Module, name: str, setting: LayerRecipe) -> QuantAttention:
        """The processor for an attention of diffusers whose projections are not quantized yet."""
        channels = {key: getattr(attention, f"to_{key}").out_features for key in "qkv"}
        return cls(attention.processor, channels, name, setting).to(attention.to_q.weight.device)

    @property
    def place(self) -> torch.device:
        """Where it is."""
        return self.ranges["q"].low.device

    def empty(self) -> None:
        for found in self.ranges.values():
            found.clear()
        self._work: Parts | None = None
        self.quantizers = nn.ModuleDict()
        self.transform_qk: EquivalentTransform | None = None
        self.transform_v: EquivalentTransform | None = None

    def fill_quantizers(self, make: Callable[..., Quantizer], make_weight: Callable[..., Quantizer] | None = None):
        """Fills the quantizer slots with `make(bits, (), zero_point)`."""
        self.quantizers = nn.ModuleDict(
            {key: make(self.setting.act_bits, (), self.setting.zero_point) for key in "qkvp"}
        ).to(self.place)

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
        out = self.product(q, k, v, attn.heads, attn.scale, attention_mask).to(q.dtype)
        out = attn.to_out[1](attn.to_out[0](out))
        if residual.ndim == 4:
            out = out.transpose(1, 2).reshape_as(residual)
        return ((out + residual) if attn.residual_connection else out) / attn.rescale_output_factor

    def product(self, q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float, mask: Tensor | None = None) -> Tensor:
        """softmax(q k^T scale + mask) v for (B, N, C) inputs, quantized or observed by mode."""
        if self.mode == "observe":
            for key, x in zip("qkv", (q, k, v)):
                self.ranges[key].add(x, -1)
            return attend(q, k, v, heads, scale, mask, self._observed)
        q, k, v = (wide(x) for x in (q, k, v))
        if mask is None and (work := self._whole(q, k, v, heads, scale)) is not None:
            return work(q, k, v)
        q, k, v = (self._on_grid(key, x) for key, x in zip("qkv", (q, k, v)))
        out = attend(q, k, v, heads, scale, mask, self._quantized_probabilities)
        return out if self.transform_v is None else out * self.transform_v.scale

    def _whole(self, q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float) -> Parts | None:
        """The products as one compiled function of scales and boundaries; None if they are not."""
        suits = compiled.on(q, k, v) and q.dtype == k.dtype == v.dtype == self.ranges["q"].low.dtype
        if not suits or len(k) * heads * k.shape[1] * q.shape[1] > SCORES:
            return None
        work, settings = self._work, (self.setting, heads, scale)
        if work is None or not work.serves(self._modules.values(), (), settings):
            work = self._work = self._new_work(*settings)
        return work

    def _new_work(self, setting: LayerRecipe, heads: int, scale: float) -> Parts | None:
        from ..kernels.product import Work

        transforms, quantizers = (self.transform_qk, self.transform_v), self.quantizers.items()
        ours = all(type(q) is BoundaryQuantizer and q.plain for _, q in quantizers)
        if not ours or not all(type(t) in (EquivalentTransform, type(None)) for t in transforms):
            return None
        ranges, trims = {k: r.require(self.name) for k, r in self.ranges.items()}, {k: q.trim for k, q in quantizers}
        grid, log_scales = Grid(setting.act_bits, setting.zero_point), [t and t.log_scale for t in transforms]
        return Work(heads, scale, ranges, trims, grid, log_scales, self, (setting, heads, scale))

    def _observed(self, p: Tensor) -> Tensor:
        self.ranges["p"].add(p[None], 0)
        return p

    def _quantized_probabilities(self, p: Tensor) -> Tensor:
        _, high = self.ranges["p"].require(self.name)
        return self.quantizers["p"](p, torch.zeros_like(high[0]), high[0])

    def _on_grid(self, key: str, x: Tensor) -> Tensor:
        """x after LET, quantized."""
        slot, quantizer = self.transform_v if key == "v" else self.transform_qk, self.quantizers[key]
        if slot is None or not isinstance(quantizer, Quantizer) or not quantizer.plain:
            x = x if slot is None else x * slot.scale if key == "k" else x / slot.scale
            return quantizer(x, *self.natural_range(key))
        grid = Grid(quantizer.bits, quantizer.zero_point, multiply=key == "k")
        return FakeQuantize.apply(x, slot.scale, None, *quantizer.bounds(*self.natural_range(key)), grid)

    def natural_range(self, key: str) -> tuple[Tensor, Tensor]:
        """The natural range of "q", "k" or "v" after LET; it follows the transform, gradients included."""
        low, high = self.ranges[key].require(self.name)
        factor = self.factor(key)
        return (low * factor).min(), (high * factor).max()

    def factor(self, key: str) -> Tensor:
        """(C,) what "q", "k" or "v" is multiplied by, channel by channel."""
        slot = self.transform_v if key == "v" else self.transform_qk
        if slot is None:
            return torch.ones_like(self.ranges[key].low)
        return slot.scale if key == "k" else 1 / slot.scale
