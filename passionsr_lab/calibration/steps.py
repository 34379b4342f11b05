"""Quantizers with a learned step and zero point of their own, whatever the range is; and a search to start from."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..quantization.attention import QuantAttention
from ..quantization.layer import Quantized
from ..quantization.quantizer import QUANTIZERS, Quantizer, fake_quantize, grid_of
from .samples import take_sample


class StepQuantizer(Quantizer):
    """A grid of 2**bits points, `step` apart, of which number `zero` stands for 0.

    `log_step` (*shape) is trained; `zero` = `origin` + (2**bits - 1) `offset` moves only in `OffsetQuantizer`.  So both
    are in parts of the grid's width, and the learning rate is in steps at its ends, as that of boundaries.
    Gradients are those of LSQ (Eq. 3) and LSQ+ (Eq. 5).
    """

    tag = "step"
    learned_offset = False

    def __init__(self, bits: int, shape: tuple[int, ...] = (), zero_point: str = "integer"):
        super().__init__(bits, shape, zero_point)
        self.learning_rate_scale = 1 / (2**bits - 1)
        self.log_step = nn.Parameter(torch.zeros(shape))
        self.register_buffer("origin", torch.zeros(shape))
        if self.learned_offset:
            self.offset = nn.Parameter(torch.zeros(shape))

    @property
    def step(self) -> Tensor:
        """(*shape) the distance of two points, positive."""
        return self.log_step.exp()

    @torch.no_grad()
    def set(self, step: Tensor, zero: Tensor | float) -> None:
        """Takes these as step and as number of the point that stands for 0."""
        self.log_step.copy_(step.clamp_min(1e-8).log().expand(self.shape))
        self.origin.copy_(torch.as_tensor(zero).expand(self.shape))

    def set_bounds(self, lower: Tensor, upper: Tensor) -> None:
        """Takes the grid between two boundaries."""
        step, base = grid_of(lower, upper, self.bits, self.zero_point)
        self.set(step, -base / step)

    def bounds(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """The ends of the grid, which the range does not change."""
        levels = 2**self.bits - 1
        zero = self.origin + levels * self.offset if self.learned_offset else self.origin
        return -zero * self.step, (levels - zero) * self.step


class OffsetQuantizer(StepQuantizer):
    """A step and an offset, both learned (LSQ+, Eq. 1 to 5)."""

    learned_offset = True


QUANTIZERS |= {"step": StepQuantizer, "step+offset": OffsetQuantizer}


@torch.no_grad()
def searched(
    x: Tensor, quantizer: Quantizer, power: float = 2.4, symmetric: bool = False, candidates: int = 80
) -> tuple[Tensor, Tensor]:
    """Boundaries (*shape) that quantize x best: minimum and maximum, both times 1, 0.99, ...; least mean |error|^power.

    Args:
        x: as a weight (Co, ...) for a quantizer per channel, else of any shape.
        power: Q-Diffusion's code has 2.4; 2 is the squared error.
        symmetric: start from the largest magnitude in both directions, unless no value is negative.
        candidates: how many shares from 1 downwards, 100 at most.
    """
    rows = _rows(x, quantizer)
    low, high = _symmetric(*rows.aminmax(dim=1, keepdim=True), symmetric)
    lower, upper, best = low, high, torch.full_like(low, torch.inf)
    for share in (1 - 0.01 * i for i in range(candidates)):
        error = fake_quantize(rows, low * share, high * share, quantizer.bits, quantizer.zero_point) - rows
        error = error.abs_().pow_(power).mean(1, keepdim=True)
        better = error < best
        best, lower = torch.where(better, error, best), torch.where(better, low * share, lower)
        upper = torch.where(better, high * share, upper)
    return lower.view(quantizer.shape), upper.view(quantizer.shape)


@torch.no_grad()
def percentiles(x: Tensor, quantizer: Quantizer, share: float, symmetric: bool = False) -> tuple[Tensor, Tensor]:
    """Boundaries (*shape) at the percentiles 1 - share and share of x; `symmetric` as for `searched`."""
    rows = _rows(x, quantizer)
    count = rows.shape[1]
    skipped = round((1 - share) * (count - 1))
    found = (rows.kthvalue(k, 1, keepdim=True).values for k in (1 + skipped, count - skipped))
    lower, upper = _symmetric(*found, symmetric)
    return lower.view(quantizer.shape), upper.view(quantizer.shape)


def _rows(x: Tensor, quantizer: Quantizer) -> Tensor:
    """(Co, n) what each of the quantizer's channels has, or (1, n)."""
    return x.reshape(len(x), -1) if quantizer.shape else x.reshape(1, -1)


def _symmetric(low: Tensor, high: Tensor, symmetric: bool) -> tuple[Tensor, Tensor]:
    if not symmetric or (low >= 0).all():
        return low, high
    reach = torch.maximum(-low, high)
    return -reach, reach


def weights_of(layer: Quantized) -> list[tuple[Quantizer, Tensor]]:
    """Every weight quantizer of a layer with the weight that it quantizes; an attention has none."""
    if isinstance(layer, QuantAttention):
        return []
    return list(zip(layer.weight_quantizers, layer.weight_halves(layer.residual_weight())))


def activations_of(layer: Quantized) -> list[tuple[Quantizer, Tensor]]:
    """Every activation quantizer of a layer or attention with a sample (n,) of what it quantizes, without a transform.

    `samples.keep_sample` has it taken.
    """
    if isinstance(layer, QuantAttention):
        return [(layer.quantizers[key], take_sample(found)[0]) for key, found in layer.ranges.items()]
    return list(zip(layer.act_quantizers, take_sample(layer.range)))
