"""EfficientDM: a low-rank update of the quantized weight, trained under the quantizer and merged into its integers.

He et al., EfficientDM: Efficient Quantization-Aware Fine-Tuning of Low-Bit Diffusion Models, ICLR 2024, section 3.2
(QALoRA, Eq. 5) and 3.3 (scale-aware optimization): y = op(Qa(x), Qw(W0 + B A)), where W0 is the weight after rounding;
a layer's rate for A and B is in parts of its mean weight step.  Nothing of it is left when the model runs.

One-step adaptations: one timestep needs no activation step per timestep; the data are the calibration pairs, since a
one-step model does not start from noise; each module learns from its own output, behind quantized modules; shortcuts,
down-sampling and attention products are quantized as the recipe says.  `PUBLISHED` has the published search and
rates, made for 16,000 updates; `METHOD` begins at a percentile, with rates for hundreds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..calibration.lowrank import LoRA
from ..calibration.method import Method, Stage
from ..calibration.samples import keep_sample
from ..calibration.steps import activations_of, percentiles, searched
from ..quantization.filling import Slots
from ..quantization.layer import Quantized, QuantLayer
from ..quantization.quantizer import QUANTIZERS, fake_quantize


class QALoRA(LoRA):
    """What is added to a weight W before it is quantized: W0 - W + up down, with W0 the rounded weight (Eq. 5).

    Rates are in parts of the mean weight step (section 3.3).
    """

    cacheable = False

    def forward(self) -> Tensor:
        """The difference, of W's shape."""
        layer = self.layer[0]
        weight, bits = layer.transformed_weight(), layer.setting.weight_bits
        halves = layer.weight_halves(weight)
        rounded = [
            fake_quantize(half, *ends, bits, layer.setting.zero_point)
            for half, ends in zip(halves, layer.weight_ranges(halves))
        ]
        return torch.cat(rounded, 1) - weight + super().forward()


@dataclass(frozen=True)
class EfficientDM(Slots):
    """Steps of weights from minimum and maximum, steps and offsets of activations from the data, and a LoRA.

    Args:
        rank: of the LoRA, at most the layer's smaller side; a recipe's rank counts before it, 0 is none.
        clipped: the part of an activation's values beyond either end at the start, times the number of points of the
            grid: 1/16 is 0.1 % at 6 bits; from 0 to below 1.  None is the published search.

    Raises:
        ValueError: another part.
    """

    quantizer: str = "step+offset"
    rank: int = 32
    clipped: float | None = 1 / 16

    def __post_init__(self):
        if self.clipped is not None and not 0 <= self.clipped < 1:
            raise ValueError(f"EfficientDM clips from 0 to below 1, or searches with None, not {self.clipped!r}.")

    def fill(self, layer: Quantized) -> None:
        layer.fill_quantizers(QUANTIZERS[self.quantizer], QUANTIZERS["step"])
        keep_sample(layer)
        if isinstance(layer, QuantLayer):
            for quantizer in layer.weight_quantizers:
                quantizer.tag = "weight step"
            weight, rank = layer.layer.weight, layer.setting.rank
            rank = min(self.rank if rank is None else rank, len(weight), weight[0].numel())
            layer.delta = QALoRA(layer, rank).to(weight.device) if rank else None

    @torch.no_grad()
    def start(self, layer: Quantized) -> None:
        for quantizer, x in activations_of(layer):
            if self.clipped is None:
                quantizer.set_bounds(*searched(x, quantizer))
            else:
                quantizer.set_bounds(*percentiles(x, quantizer, 1 - self.clipped / 2**quantizer.bits))
        if isinstance(layer, QuantLayer):
            halves = layer.weight_halves(layer.transformed_weight())
            for quantizer, ends in zip(layer.weight_quantizers, layer.weight_ranges(halves)):
                quantizer.set_bounds(*ends)
            if layer.delta is not None:
                layer.delta.start()


TAGS = ("lora", "step", "weight step")
METHOD = Method(
    "efficientdm", "EfficientDM", "He et al., ICLR 2024, sections 3.2 and 3.3, Eq. 5", EfficientDM(),
    (Stage("encoder", TAGS, 1.0), Stage("unet", TAGS, 2.0), Stage("decoder", TAGS, 3.0)), "quantized",
    {"lora": 0.2, "step": 1.0, "weight step": 0.2},
)  # fmt: skip
PUBLISHED = replace(
    METHOD, name="efficientdm-published", label="EfficientDM, published settings", slots=EfficientDM(clipped=None),
    rates={"lora": 1 / 2500, "step": 0.5, "weight step": 0.01},
)  # fmt: skip
