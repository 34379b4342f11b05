"""SVDQuant: outliers move into the weight, its largest singular directions stay in 16 bits, the rest is quantized.

Li et al., SVDQuant: Absorbing Outliers by Low-Rank Components for 4-Bit Diffusion Models, ICLR 2025, section 4.2,
Eq. 5 to 8: y = Qa(T x) Qw(T W - up down) + up (down T x), where T divides channels as SmoothQuant does, with the
exponent that leaves the least error of the layer's output; branch and rounded rest are then fitted in turns.

One-step adaptations: convolutions are reshaped to (Co, C kh kw) and have the same branch, so the VAE is quantized too;
weights have a step per output channel and activations one per tensor, as the recipe says, instead of groups of 64; the
attention products, which the paper leaves alone, are smoothed as in LET; the rank is a share of the layer's width (the
paper's 32 is about 1/96 of FLUX's), since the layers of a UNet and a VAE differ in width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..calibration.lowrank import LowRank, rank_of
from ..calibration.method import Method
from ..calibration.searched import InputCrops, search
from ..quantization.filling import LET
from ..quantization.layer import Quantized, QuantLayer


@dataclass(frozen=True)
class SVDQuant(LET):
    """A smoothing scale and a branch for each layer.

    Args:
        shift: no shift is among what the paper does.
        share: the branch's rank, as a share of the smaller side of the (Co, C kh kw) weight; a recipe's rank counts
            before it.
        candidates: exponents a from 0 to 1 that are tried, scale = amax|x|^a / amax|w|^(1 - a).
        rounds: how often branch and rounded rest are fitted in turns; it ends before when the error rises.
    """

    shift: bool = False
    share: float = 1 / 16
    candidates: int = 11
    rounds: int = 20

    def fill(self, layer: Quantized) -> None:
        super().fill(layer)
        if isinstance(layer, QuantLayer) and layer.groups == 1:
            layer.branch = LowRank(layer, rank_of(layer, self.share)).to(layer.layer.weight.device)
            layer.range.watch = InputCrops(layer)

    @torch.no_grad()
    def start(self, layer: Quantized) -> None:
        super().start(layer)
        if isinstance(layer, QuantLayer) and layer.branch is not None:
            search(layer, self.candidates, self.rounds)


METHOD = Method("svdquant", "SVDQuant", "Li et al., ICLR 2025, section 4.2, Eq. 5 to 8", SVDQuant())
