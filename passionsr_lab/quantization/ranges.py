"""The natural range of an activation, per channel, gathered while a model is observed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..kernels.fused import extremes


class Range(nn.Module):
    """Smallest and largest value of each channel, (C,) each; without limit in the other direction before the first.

    A method that starts from more than the range sets `watch`, which is given every (x, dim), too, until `clear`.
    """

    watch: Callable[[Tensor, int], None] | None = None

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("low", torch.full((channels,), torch.inf))
        self.register_buffer("high", torch.full((channels,), -torch.inf))
        self.known = False  # kept outside the tensors, so that asking does not make a GPU wait

    @torch.no_grad()
    def add(self, x: Tensor, dim: int) -> None:
        """Takes in x, whose channels lie along `dim`."""
        if self.watch is not None:
            self.watch(x.detach(), dim)
        low, high = extremes(x.detach(), dim)
        self.set(torch.minimum(self.low, low), torch.maximum(self.high, high))

    @torch.no_grad()
    def set(self, low: Tensor, high: Tensor) -> None:
        """Takes these as the range."""
        self.low, self.high = (torch.broadcast_to(t, self.low.shape).clone() for t in (low, high))
        self.known = True

    def clear(self) -> None:
        """Forgets everything."""
        self.set(torch.full_like(self.low, torch.inf), torch.full_like(self.high, -torch.inf))
        self.known, self.watch = False, None

    def require(self, name: str) -> tuple[Tensor, Tensor]:
        """(low, high); `RuntimeError` when nothing was observed yet."""
        if not self.known:
            raise RuntimeError(f"{name} has no activation range yet: calibrate the model first (lab.calibrate).")
        return self.low, self.high

    @property
    def amax(self) -> Tensor:
        """(C,) largest magnitude."""
        return torch.maximum(self.low.abs(), self.high.abs())
