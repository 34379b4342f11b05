"""LET: the learned equivalent transformation (PassionSR section 3.3.2, Eq. 4 to 7).

An activation is shifted and scaled per channel, x~ = (x - shift) / scale; the weight takes the scale, W~ = W * scale,
and the bias takes what the shift leaves behind, W shift.  The float output does not change.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .slots import Slot


class Scaling(Slot):
    """What `scale` and `shift` (C,), which a subclass has, do to activation and weight."""

    def forward(self, x: Tensor, dim: int) -> Tensor:
        """(x - shift) / scale, with the channels of x along `dim`."""
        shape = [1] * x.ndim
        shape[dim] = -1
        return (x - self.shift.view(shape)) / self.scale.view(shape)

    def of_weight(self, weight: Tensor, groups: int = 1) -> Tensor:
        """W~ of Eq. 5: every input channel of a weight (Co, C / groups, ...) times its scale."""
        scale = self.scale.view(groups, 1, -1, *[1] * (weight.ndim - 2))
        return (weight.view(groups, -1, *weight.shape[1:]) * scale).view_as(weight)


class EquivalentTransform(Scaling):
    """Trainable scale and shift of `channels` channels.

    Parameters `log_scale` and `offset` (C,) are without unit: scale = exp(log_scale), shift = reach * offset, where
    `reach` is the channel's half range; so one learning rate suits every layer.  Without `shift` the offset is fixed.
    """

    tag = "transform"
    cacheable = True

    def __init__(self, channels: int, shift: bool = True):
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(channels))
        if shift:
            self.offset = nn.Parameter(torch.zeros(channels))
        else:
            self.register_buffer("offset", torch.zeros(channels))
        self.register_buffer("reach", torch.ones(channels))

    @property
    def scale(self) -> Tensor:
        """(C,), positive."""
        return self.log_scale.exp()

    @property
    def shift(self) -> Tensor:
        """(C,), in the activation's unit."""
        return self.reach * self.offset

    @torch.no_grad()
    def start(self, low: Tensor, high: Tensor, partner: Tensor, alpha: float, beta: float, centre: bool) -> None:
        """SmoothQuant's start: scale = amax|x|^alpha / amax|w|^beta per channel.

        Args:
            low, high: (C,) smallest and largest value of each channel.
            partner: (C,) largest magnitude of what the channel is multiplied with.
            centre: also start the shift at the middle of each channel's range.
        """
        self.reach.copy_(((high - low) / 2).clamp_min(1e-5))
        middle = (low + high) / 2 if centre else torch.zeros_like(low)
        self.offset.copy_(middle / self.reach)
        amax = torch.maximum((low - middle).abs(), (high - middle).abs()).clamp_min(1e-5)
        log = alpha * amax.log() - beta * partner.clamp_min(1e-5).log()
        self.log_scale.copy_(log - log.mean())

    def extra_repr(self) -> str:
        return f"channels={len(self.log_scale)}"
