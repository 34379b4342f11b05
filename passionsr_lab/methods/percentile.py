"""Percentile: grids between percentiles of the values seen instead of their extremes; nothing is trained.

Wu et al., Integer Quantization for Deep Learning Inference (2020), section 3.3, compare 99.9 to 99.9999 % for
activations; weights keep their extremes there.  Values are sampled while the model is observed, from all pairs alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..calibration.method import Method
from ..calibration.samples import keep_sample
from ..calibration.steps import activations_of, percentiles, weights_of
from ..quantization.filling import Slots
from ..quantization.layer import Quantized


@dataclass(frozen=True)
class Percentile(Slots):
    """Percentiles are given as shares: 0.999 leaves out 0.1 % at each end.

    Args:
        activations: above 0.5 and below 1.
        weights: above 0.5; 1 keeps minimum and maximum.

    Raises:
        ValueError: another share.
    """

    quantizer: str = "step"
    activations: float = 0.999
    weights: float = 1.0

    def __post_init__(self):
        if not (0.5 < self.activations < 1 and 0.5 < self.weights <= 1):
            raise ValueError(
                "Percentiles are shares above 0.5, for activations below 1 and for weights up to 1,"
                f" not {self.activations!r} and {self.weights!r}."
            )

    def fill(self, layer: Quantized) -> None:
        super().fill(layer)
        keep_sample(layer, 2**16)

    @torch.no_grad()
    def start(self, layer: Quantized) -> None:
        for share, found in ((self.weights, weights_of(layer)), (self.activations, activations_of(layer))):
            for quantizer, x in found:
                quantizer.set_bounds(*percentiles(x, quantizer, share))


METHOD = Method("percentile", "Percentile", "Wu et al., arXiv 2004.09602 (2020), section 3.3", Percentile())
