"""LSQ: the steps of all grids are learned by their own gradient (Esser et al., ICLR 2020, section 2, Eq. 1 to 3).

LSQ+ (Bhalgat et al., CVPR Workshops 2020, section 3) adds a learned offset for activations that are not
symmetric about zero, as those behind SiLU are.

One-step adaptations: the weights are not trained (few pairs, no labels); each module learns from its own output, behind
quantized modules, the loss is the distance to full precision; the step is learned in its logarithm, so that Adam's rate
suits every layer where the papers scale its gradient.  Since the weights do not follow, the start counts: weights begin
at the least squared error, activations at a percentile.  `PUBLISHED` begins at LSQ's own 2 <|v|> / sqrt(Q_P), which
clips the wide channels of this kind of model beyond repair.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..calibration.method import Method, Stage
from ..calibration.samples import keep_sample
from ..calibration.steps import StepQuantizer, activations_of, percentiles, searched, weights_of
from ..quantization.filling import Slots
from ..quantization.layer import Quantized
from ..quantization.quantizer import QUANTIZERS

BEGINNINGS = ("percentile", "search", "mean")


@dataclass(frozen=True)
class LSQ(Slots):
    """Steps of signed grids, symmetric about zero, and of unsigned ones where no value is negative.

    Args:
        quantizer: "step", or "step+offset" for LSQ+'s offset of activations.
        begin: of activations: "percentile"; "search", at the least squared error, as LSQ+ has it; or "mean",
            2 <|v|> / sqrt(Q_P), for weights too.
        clipped: the part of the values beyond either percentile, times the number of points of the grid: 1/16 is 0.1 %
            at 6 bits, and less the finer the grid; from 0 to below 1.

    Raises:
        ValueError: another beginning or part.
    """

    quantizer: str = "step"
    begin: str = "percentile"
    clipped: float = 1 / 16

    def __post_init__(self):
        if self.begin not in BEGINNINGS or not 0 <= self.clipped < 1:
            raise ValueError(
                f"LSQ begins at one of {', '.join(BEGINNINGS)}, and clips from 0 to below 1,"
                f" not {self.begin!r} and {self.clipped!r}."
            )

    def fill(self, layer: Quantized) -> None:
        layer.fill_quantizers(QUANTIZERS[self.quantizer], QUANTIZERS["step"])
        keep_sample(layer)

    @torch.no_grad()
    def start(self, layer: Quantized) -> None:
        for quantizer, x in [*weights_of(layer), *activations_of(layer)]:
            self._start(quantizer, x)

    def _start(self, quantizer: StepQuantizer, x: Tensor) -> None:
        symmetric = not quantizer.learned_offset
        if self.begin == "mean":
            zero = 2 ** (quantizer.bits - 1) if (x < 0).any() else 0
            mean = x.abs().mean(tuple(range(1, x.ndim)), keepdim=True) if quantizer.shape else x.abs().mean()
            quantizer.set(2 * mean / (2**quantizer.bits - 1 - zero) ** 0.5, zero)
        elif self.begin == "search" or quantizer.shape:
            quantizer.set_bounds(*searched(x, quantizer, 2.0, symmetric))
        else:
            quantizer.set_bounds(*percentiles(x, quantizer, 1 - self.clipped / 2**quantizer.bits, symmetric))


STAGES = (Stage("encoder", ("step",), 1.0), Stage("unet", ("step",), 2.0), Stage("decoder", ("step",), 3.0))
METHOD = Method(
    "lsq", "LSQ", "Esser et al., ICLR 2020, section 2, Eq. 1 to 3", LSQ(), STAGES, "quantized", {"step": 1.0}
)
PUBLISHED = replace(METHOD, name="lsq-published", label="LSQ, published start", slots=LSQ(begin="mean"))
PLUS = replace(
    METHOD, name="lsq+", label="LSQ+", source="Bhalgat et al., CVPR Workshops 2020, section 3", slots=LSQ("step+offset")
)
