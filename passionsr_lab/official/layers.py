"""The released PassionSR code's arithmetic, for its own calibration files: what the method "released" fills in.

It differs from the paper, and from `quantization.layer`, in the points that `corrections.CORRECTIONS` lists.  Bounds
and scales are held as the files hold them, absolute and to the last bit, so that a file that was read is written back
as it was.
These layers run; calibration trains the paper's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..quantization.attention import QuantAttention, attend
from ..quantization.filling import Slots
from ..quantization.layer import QuantLayer
from ..quantization.place import QuantizedSR
from ..quantization.recipe import LayerRecipe
from ..quantization.transform import Scaling


def half_away(x: Tensor) -> Tensor:
    """x rounded to whole numbers, halves away from zero.

    Example:
        >>> half_away(torch.tensor([0.5, -0.5, 1.4]))
        tensor([ 1., -1.,  1.])
    """
    return x.sign() * (x.abs() + 0.5).floor()


def fake_quantize(x: Tensor, lower: Tensor, upper: Tensor, bits: int) -> Tensor:
    """x on the grid step * (zero + 0 ... 2**bits - 1); zero = R(lower / step)."""
    step = (upper - lower) / (2**bits - 1)
    zero = half_away(lower / step)
    return ((half_away(x / step) - zero).clamp(0, 2**bits - 1) + zero) * step


class OfficialQuantizer(nn.Module):
    """`lower` and `upper`, the files' x_min and x_max, in the unit of what is quantized; NaN until a file is read."""

    def __init__(self, bits: int, shape: tuple[int, ...] = (), zero_point: str = "integer"):
        super().__init__()
        self.bits, self.zero_point = bits, zero_point
        self.register_buffer("lower", torch.full(shape, torch.nan))
        self.register_buffer("upper", torch.full(shape, torch.nan))

    def bounds(self, low: Tensor | None = None, high: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The boundaries; unlike `BoundaryQuantizer`'s they do not follow a natural range."""
        return self.lower, self.upper

    def forward(self, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
        return fake_quantize(x, self.lower, self.upper, self.bits)


class OfficialTransform(Scaling):
    """`scale` and `offset` (C,) as in the files; x~ = (x - sign * offset) / scale."""

    def __init__(self, channels: int, sign: int):
        super().__init__()
        self.sign = sign
        self.register_buffer("scale", torch.ones(channels))
        self.register_buffer("offset", torch.zeros(channels))

    @property
    def shift(self) -> Tensor:
        """(C,) what is subtracted from the activation, in its unit."""
        return self.sign * self.offset


class OfficialLayer(QuantLayer):
    """y = Q(x~) * Q(W~) + Q(b) + W offset, with zeros as padding of Q(x~) and of the offset.

    The UNet's Linear layers add the offset where they should subtract it, and where they are split, their input is
    split by tokens.  The VAE's attention projections, Linear in diffusers, are 1x1 convolutions in the released code.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d, name: str, setting: LayerRecipe):
        super().__init__(layer, name, setting)
        self.as_conv = self.conv or name.startswith("vae.")
        channels = len(self.range.low)
        self.sizes = [channels // 2, channels - channels // 2] if len(self.sizes) == 2 else [channels]
        self.transform = OfficialTransform(channels, 1 if self.as_conv else -1)
        self.fill_quantizers(OfficialQuantizer)
        self.bias_quantizer = None if layer.bias is None else OfficialQuantizer(setting.weight_bits)

    def forward(self, x: Tensor) -> Tensor:
        if self.mode != "quantized":
            return self.layer(x)
        x, weight, offset = self.quantized_input(x), self.quantized_weight(), self.transform.offset
        bias = None if self.bias_quantizer is None else self.bias_quantizer(self.layer.bias)
        if not self.conv:
            return F.linear(x, weight, bias) + self.layer.weight @ offset
        plane = offset.view(1, -1, 1, 1).expand(1, -1, *x.shape[2:])
        return self.layer._conv_forward(x, weight, bias) + self.layer._conv_forward(plane, self.layer.weight, None)

    def quantized_input(self, x: Tensor) -> Tensor:
        """Q(x~), not padded."""
        self.range.require(self.name)
        axis = self.dim if self.as_conv else 1
        size = x.shape[axis]
        x = self.transform(x, self.dim)
        halves = x.split([size // 2, size - size // 2], axis) if len(self.sizes) == 2 else [x]
        return torch.cat([q(half) for q, half in zip(self.act_quantizers, halves)], axis)

    def input_ranges(self) -> list[tuple[Tensor, Tensor]]:
        """The boundaries themselves: the files hold no other range."""
        self.range.require(self.name)
        return [q.bounds() for q in self.act_quantizers]

    @torch.no_grad()
    def derive_range(self) -> None:
        """Sets `range` to where each channel of the input clips, which is all that the boundaries tell of it."""
        lower, upper = (torch.stack([getattr(q, key) for q in self.act_quantizers]) for key in ("lower", "upper"))
        scale, shift = self.transform.scale, self.transform.shift
        self.range.set(lower.min() * scale + shift, upper.max() * scale + shift)


class OfficialAttention(QuantAttention):
    """Per tensor, 1 / s on the keys and s on the queries (s per channel of a head); and s per key token on v and p.

    The second ties a calibrated UNet to one number of tokens: to latents of one size.
    """

    def __init__(self, found: QuantAttention, heads: int):
        super().__init__(found.original, found.channels, found.name, found.setting)
        self.fill_quantizers(OfficialQuantizer)
        self.transform_qk = HeadScale(heads, found.channels["q"] // heads)
        self.transform_v = TokenScale()

    def product(self, q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float, mask: Tensor | None = None) -> Tensor:
        """softmax(q k^T scale) v for (B, N, C) inputs, quantized; there is no mask."""
        tokens = self.transform_v.factor
        if not len(tokens):
            raise RuntimeError(f"{self.name} has no scales yet: read a released file into the model (official).")
        if len(tokens) != k.shape[1]:
            raise ValueError(
                f"{self.name} was calibrated for {len(tokens)} key tokens and gets {k.shape[1]}: the released format"
                " ties the UNet to one latent size (64x64). Give it tiles of that size, or load with numerics 'paper'."
            )
        q, k = q / self.transform_qk.scale, k * self.transform_qk.scale
        q, k, v = (self.quantizers[key](x) for key, x in zip("qkv", (q, k, v / self.transform_v.scale)))
        return attend(q, k, v, heads, scale, change=lambda p: self.quantizers["p"](p * tokens))

    @torch.no_grad()
    def derive_range(self) -> None:
        """Sets `ranges` to where q, k, v and the probabilities clip."""
        tokens, qk, bounds = self.transform_v.factor, self.transform_qk.scale, self.quantizers
        for key, factor in (("q", qk), ("k", 1 / qk)):
            self.ranges[key].set(bounds[key].lower * factor, bounds[key].upper * factor)
        self.ranges["v"].set((bounds["v"].lower * tokens).min(), (bounds["v"].upper * tokens).max())
        self.ranges["p"].set((bounds["p"].lower / tokens).min(), (bounds["p"].upper / tokens).max())


class HeadScale(nn.Module):
    """`factor` (d,), shared by all heads: queries times it, keys divided by it."""

    def __init__(self, heads: int, channels: int):
        super().__init__()
        self.heads = heads
        self.register_buffer("factor", torch.ones(channels))

    @property
    def scale(self) -> Tensor:
        """(C,) what the queries are divided by."""
        return (1 / self.factor).repeat(self.heads)


class TokenScale(nn.Module):
    """`factor` (N,), one per key token: probabilities times it, values divided by it; empty until a file is read."""

    def __init__(self):
        super().__init__()
        self.register_buffer("factor", torch.empty(0))

    @property
    def scale(self) -> Tensor:
        """(N, 1) what the values are divided by."""
        return self.factor[:, None]


@dataclass(frozen=True)
class Released(Slots):
    """Official layers in the place of every quantized layer; a released file then fills them."""

    def install(self, q: QuantizedSR) -> None:
        """Swaps the layers; what an earlier calibration left is gone with them."""
        for name, found in q.layers.items():
            if isinstance(found, QuantLayer):
                device = found.layer.weight.device
                q.set_submodule(name, OfficialLayer(found.layer, name, found.setting).to(device))
            else:
                attention = q.get_submodule(name)
                attention.set_processor(OfficialAttention(found, attention.heads).to(found.place))
        del q.layers

    def start(self, layer) -> None:
        raise ValueError("The method 'released' runs released files; calibrate with another, for example 'passionsr'.")
