"""What is added to a layer's bias: learned, or what quantization shifts the layer's output by in the mean.

Learned: QuantVSR's LBA (arXiv 2508.04485).  Measured: bias correction (Nagel et al., Data-Free Quantization, ICCV 2019,
section 4.2, in its empirical form).  Later layers do not average a constant error out, and the one step amplifies it
(Eq. 9).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..quantization.layer import QuantLayer
from ..quantization.slots import Slot


class Alignment(Slot):
    """What is added to the bias (Co,), zero at the start; rates are in parts of `unit`, about the output's error."""

    tag = "alignment"
    cacheable = True

    def __init__(self, channels: int):
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(channels))
        self.register_buffer("unit", torch.ones(()))

    @property
    def learning_rate_scale(self) -> float:
        """Its unit."""
        return self.unit.item()

    def forward(self) -> Tensor:
        return self.offset


@torch.no_grad()
def correct(layers: Sequence[QuantLayer], run: Callable[[], object]) -> None:
    """Takes the mean error of each layer's output off its bias, by its `Alignment`.

    The error is that to the layer itself in float on the same input: what layers before do wrong is theirs.

    Args:
        run: sends pictures through the quantized layers; each counts alike.
    """
    found: dict[QuantLayer, tuple[Tensor, int]] = {}

    def watch(layer: QuantLayer, args: tuple, out: Tensor) -> None:
        error = layer.layer(args[0]).float() - out.float()
        error = error.transpose(0, layer.dim).reshape(error.shape[layer.dim], -1).mean(1)
        total, count = found.get(layer, (0, 0))
        found[layer] = total + error, count + 1

    hooks = [layer.register_forward_hook(watch) for layer in layers]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    for layer, (total, count) in found.items():
        layer.alignment.offset.add_(total / count)
