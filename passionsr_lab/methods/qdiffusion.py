"""Q-Diffusion: learned rounding and steps, block by block, and two quantizers behind each concatenation.

Li et al., Q-Diffusion: Quantizing Diffusion Models, ICCV 2023, section 4: block reconstruction (BRECQ), rounding as in
AdaRound (Nagel et al., ICML 2020, Eq. 21 to 24), and the split of shortcut layers, whose input is a concatenation of
two unlike parts.  Blocks are ResNet and transformer blocks in the order in which they run; each other layer is a block
of its own.  Weights first, then steps of activations; inputs through quantized blocks, targets without.

One-step adaptations: one timestep has nothing to be sampled (section 4.1); encoder, UNet and decoder follow each other,
and the VAE has no concatenation; activations are quantized while roundings are learned, since otherwise these
would be learned for inputs that the model does not have; the probabilities of attention have the recipe's bits.
The code's 20,000 and 5,000 updates per block are dozens here, so its rates are higher.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..calibration.method import DISTANCES, Loss, Method, Stage
from ..calibration.samples import keep_sample
from ..calibration.steps import activations_of, searched, weights_of
from ..quantization.filling import Slots
from ..quantization.layer import Quantized, QuantLayer
from ..quantization.place import QuantizedSR
from ..quantization.slots import Slot

POWER = 2.4  # of the errors that the search and the second phase weigh
STRETCH = 1.2, -0.1  # AdaRound's rectified sigmoid: h = clip(1.2 sigmoid(V) - 0.1, 0, 1)
DISTANCES["power 2.4"] = lambda x, y: (x - y).abs().pow(POWER).mean()


class AdaRound(Slot):
    """Rounds each weight down or up as learned: floor(W / step) + h(V); soft in a training step, 0 or 1 otherwise."""

    tag = "rounding"

    def __init__(self, shape: torch.Size, regulariser: float):
        super().__init__()
        self.logits, self.regulariser = nn.Parameter(torch.zeros(shape), requires_grad=False), regulariser

    @torch.no_grad()
    def start(self, weight: Tensor, step: Tensor, base: Tensor) -> None:
        """V such that h(V) is what the weight has above the point below it: the start rounds to nearest."""
        code = (weight - base) / step
        self.logits.copy_(((code - code.floor() - STRETCH[1]) / STRETCH[0]).logit())

    def share(self) -> Tensor:
        """h, from 0 (down) to 1 (up)."""
        return (self.logits.sigmoid() * STRETCH[0] + STRETCH[1]).clamp(0, 1)

    def forward(self, weight: Tensor, step: Tensor, base: Tensor, bits: int) -> Tensor:
        soft = self.logits.requires_grad and torch.is_grad_enabled()
        up = self.share() if soft else (self.logits >= 0).to(weight.dtype)
        return base + step * (((weight - base) / step).floor() + up).clamp(0, 2**bits - 1)

    def penalty(self, progress: float) -> Tensor | None:
        """The sum of 1 - |2h - 1|^b, b from 20 to 2 after a fifth of the stage (AdaRound, Eq. 24)."""
        if progress < 0.2:
            return None
        power = 20 - 18 * (progress - 0.2) / 0.8
        return self.regulariser * (1 - (2 * self.share() - 1).abs().pow(power)).sum()


@dataclass(frozen=True)
class QDiffusion(Slots):
    """Steps from a search, learned roundings, and a split of the UNet's shortcuts.

    Args:
        regulariser: the weight of AdaRound's term that drives roundings to 0 or 1.
        shortcuts: whether the two parts of a concatenation have quantizers of their own.
    """

    quantizer: str = "step"
    regulariser: float = 0.01
    shortcuts: bool = True

    def install(self, q: QuantizedSR) -> None:
        super().install(q)
        for layer, size in concatenations(q) if self.shortcuts else ():
            layer.sizes = [size, len(layer.range.low) - size]
            self.fill(layer)

    def fill(self, layer: Quantized) -> None:
        super().fill(layer)
        keep_sample(layer)
        if isinstance(layer, QuantLayer):
            halves = layer.weight_halves(layer.layer.weight)
            roundings = (AdaRound(half.shape, self.regulariser) for half in halves)
            layer.rounding = nn.ModuleList(roundings).to(layer.layer.weight.device)
            for quantizer in layer.weight_quantizers:
                quantizer.tag = ""  # a rounding belongs to one grid

    @torch.no_grad()
    def start(self, layer: Quantized) -> None:
        for quantizer, x in [*weights_of(layer), *activations_of(layer)]:
            quantizer.set_bounds(*searched(x, quantizer, POWER))
        if isinstance(layer, QuantLayer):
            for (quantizer, x), rounding in zip(weights_of(layer), layer.rounding):
                rounding.start(x, *quantizer.grid(None, None))


def concatenations(q: QuantizedSR) -> list[tuple[QuantLayer, int]]:
    """The quantized shortcuts behind the UNet's concatenations, and how many of their channels come from below."""
    found, channels = [], q.unet.mid_block.resnets[-1].out_channels
    for resnet in (r for block in q.unet.up_blocks for r in block.resnets):
        if isinstance(resnet.conv_shortcut, QuantLayer):
            found.append((resnet.conv_shortcut, channels))
        channels = resnet.out_channels
    return found


STAGES = tuple(
    Stage(module, (tag,), epochs, blocks="*", losses=(Loss(distance),))
    for module in ("encoder", "unet", "decoder")
    for tag, epochs, distance in (("rounding", 4.0, "squares"), ("step", 1.0, "power 2.4"))
)
METHOD = Method(
    "q-diffusion", "Q-Diffusion", "Li et al., ICCV 2023, section 4; AdaRound, Eq. 21 to 24", QDiffusion(), STAGES,
    "quantized", {"rounding": 0.03, "step": 0.5},
)  # fmt: skip
