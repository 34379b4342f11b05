"""What is added to a layer's bias: learned, or what quantization shifts the layer's output by in the mean.

Learned: QuantVSR's LBA (arXiv 2508.04485).  Measured: bias correction (Nagel et al., Data-Free Quantization, ICCV 2019,
section 4.2, in its empirical form).  Later layers do not average a constant error out, and the one step amplifies it
(Eq. 9).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..quantization.filling import LET
from ..quantization.layer import Quantized, QuantLayer
from ..quantization.slots import Slot


class Alignment(Slot):
    """What is added to the bias (Co,), zero at the start: `parts` of `unit`, which is about the output's error."""

    tag = "alignment"
    cacheable = True

    def __init__(self, channels: int):
        super().__init__()
        self.parts = nn.Parameter(torch.zeros(channels))
        self.register_buffer("unit", torch.ones(()))

    def forward(self) -> Tensor:
        return self.parts * self.unit


@dataclass(frozen=True)
class CorrectedLET(LET):
    """LET, and biases that are corrected at the start; "alignment" stages train them on."""

    def fill(self, layer: Quantized) -> None:
        super().fill(layer)
        if isinstance(layer, QuantLayer):
            weight = layer.layer.weight
            layer.alignment = Alignment(len(weight)).to(weight.device)

    def settle(self, layers: Sequence[Quantized], run: Callable[[], object]) -> None:
        correct([layer for layer in layers if isinstance(layer, QuantLayer)], run)


@torch.no_grad()
def correct(layers: Sequence[QuantLayer], run: Callable[[], object]) -> None:
    """Takes the mean error of each layer's output off its bias, by its `Alignment`, whose unit is the error's root mean
    square from here on.

    The error is that to the layer itself in float on the same input: what layers before do wrong is theirs.

    Args:
        run: sends pictures through the quantized layers; each counts alike.
    """
    found: dict[QuantLayer, tuple[Tensor, Tensor, int]] = {}

    def watch(layer: QuantLayer, args: tuple, out: Tensor) -> None:
        error = layer.layer(args[0]).float() - out.float()
        error = error.transpose(0, layer.dim).reshape(error.shape[layer.dim], -1)
        total, squares, count = found.get(layer, (0, 0, 0))
        found[layer] = total + error.mean(1), squares + error.square().mean(), count + 1

    hooks = [layer.register_forward_hook(watch) for layer in layers]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    for layer, (total, squares, count) in found.items():
        value = layer.alignment() + total / count
        layer.alignment.unit.copy_((squares / count).sqrt().clamp_min(1e-8))
        layer.alignment.parts.copy_(value / layer.alignment.unit)
