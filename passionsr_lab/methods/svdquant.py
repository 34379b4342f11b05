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
from torch import Tensor

from ..calibration.lowrank import LowRank, rank_of
from ..calibration.method import Method
from ..quantization.filling import LET
from ..quantization.layer import Quantized, QuantLayer

CROPS, EDGE, ROWS = 4, 8, 64  # inputs that a layer is searched on: crops of so many outputs, or rows of a Linear's


class InputCrops:
    """A `watch` of a layer's range that keeps crops of its first inputs, padded as the layer pads them."""

    def __init__(self, layer: QuantLayer):
        self.layer, self.kept = layer, []

    def __call__(self, x: Tensor, dim: int) -> None:
        if len(self.kept) == CROPS:
            return
        draw = torch.Generator().manual_seed(len(self.kept))
        if not self.layer.conv:
            rows = x.flatten(0, -2)
            self.kept.append(rows[torch.randint(len(rows), (ROWS,), generator=draw).to(x.device)])
            return
        x, kernel = self.layer.pad(x), self.layer.layer.kernel_size
        for d, k in zip((2, 3), kernel):
            edge = min(x.shape[d], EDGE + k - 1)
            x = x.narrow(d, int(torch.randint(x.shape[d] - edge + 1, (), generator=draw)), edge)
        self.kept.append(x.clone())


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
        if isinstance(layer, QuantLayer) and not (layer.conv and layer.layer.groups > 1):
            layer.branch = LowRank(layer, rank_of(layer, self.share)).to(layer.layer.weight.device)
            layer.range.watch = InputCrops(layer)

    @torch.no_grad()
    def start(self, layer: Quantized) -> None:
        super().start(layer)
        if isinstance(layer, QuantLayer) and layer.branch is not None:
            inputs, layer.range.watch = layer.range.watch.kept, None
            targets = [layer.operate(x, layer.layer.weight, None) for x in inputs]
            exponents = [i / (self.candidates - 1) for i in range(self.candidates)]
            smooth(layer, min(exponents, key=lambda a: output_error(smooth(layer, a), inputs, targets)))
            refine(layer, self.rounds)


def smooth(layer: QuantLayer, exponent: float) -> QuantLayer:
    """The layer with scale = amax|x|^a / amax|w|^(1 - a) and the branch of that weight."""
    layer.transform.start(*layer.range.require(layer.name), layer.channel_amax(), exponent, 1 - exponent, False)
    layer.branch.fit(layer.transformed_weight())
    return layer


def output_error(layer: QuantLayer, inputs: list[Tensor], targets: list[Tensor]) -> float:
    """The squared error of the layer's outputs, of inputs that are padded already."""
    weight, total = layer.quantized_weight(), 0.0
    for x, target in zip(inputs, targets):
        seen = layer.transform(x, layer.dim)
        ours = layer.operate(layer.quantized(seen), weight, None) + layer.branch(seen)
        total += (ours - target).square().sum().item()
    return total


def refine(layer: QuantLayer, rounds: int) -> list[float]:
    """Fits branch and rounded rest in turns while the weight's squared error falls; the errors (section 4.2)."""
    weight, branch = layer.transformed_weight(), layer.branch
    errors = [weight_error(layer)]
    for _ in range(rounds):
        before = {k: v.clone() for k, v in branch.state_dict().items()}
        branch.fit(weight - layer.quantized_weight())
        errors.append(weight_error(layer))
        if errors[-1] >= errors[-2]:
            branch.load_state_dict(before)
            return errors[:-1]
    return errors


def weight_error(layer: QuantLayer) -> float:
    """The squared error of rounding what the branch leaves."""
    return (layer.quantized_weight() - layer.residual_weight()).square().sum().item()


METHOD = Method("svdquant", "SVDQuant", "Li et al., ICLR 2025, section 4.2, Eq. 5 to 8", SVDQuant())
