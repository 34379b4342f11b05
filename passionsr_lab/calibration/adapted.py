"""A filling of slots that methods share: LET, boundaries, a LoRA inside the quantized weight, a 16-bit branch."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..quantization.filling import LET
from ..quantization.layer import Quantized, QuantLayer
from .lowrank import LoRA, LowRank, least_side, rank_of


@dataclass(frozen=True)
class Adapted(LET):
    """Smoothing, boundaries, a LoRA inside the quantized residual, a branch beside it.

    Args:
        shift: whether LET has a shift, too.
        branch: the branch's rank, as a share of the smaller side of the (Co, C kh kw) weight; 0 is no branch.  A
            recipe's rank counts before it.
        lora: the same of the LoRA.
    """

    shift: bool = False
    branch: float = 1 / 32
    lora: float = 1 / 16

    def fill(self, layer: Quantized) -> None:
        super().fill(layer)
        if not isinstance(layer, QuantLayer) or layer.groups > 1:
            return
        device = layer.layer.weight.device
        if self.branch:
            layer.branch = LowRank(layer, rank_of(layer, self.branch), trained=True).to(device)
        if self.lora:
            layer.delta = LoRA(layer, max(1, round(self.lora * least_side(layer)))).to(device)

    @torch.no_grad()
    def start(self, layer: Quantized) -> None:
        super().start(layer)
        if not isinstance(layer, QuantLayer):
            return
        self.factor(layer)
        if layer.branch is not None:
            layer.branch.balance()
        if layer.delta is not None:
            layer.delta.start()

    def factor(self, layer: QuantLayer) -> None:
        """Gives the branch, if there is one, what it begins with."""
        if layer.branch is not None:
            layer.branch.fit(layer.transformed_weight())
