"""Low-rank parts of a weight: one that stays in 16 bits beside the quantized rest, and one that ends inside it."""

from __future__ import annotations

import zlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..quantization.layer import QuantLayer
from ..quantization.slots import Slot


class LowRank(Slot):
    """The branch up (down x~), factors (Co, r) and (r, C kh kw) in 16 bits; a convolution's `up` is 1x1.

    Args:
        rank: columns of `up`; 0 adds nothing, and is also what a rank is that data will decide: a saved state has it.
        trained: factors are float32 that are rounded to float16 where they are used, straight through, so that small
            steps of an optimizer add up; what a model needs of them is 16 bits either way.
    """

    tag = "branch"
    cacheable = True

    def __init__(self, layer: QuantLayer, rank: int, trained: bool = False):
        super().__init__()
        self.layer, self.shape = [layer], layer.layer.weight.shape  # in a list, so that it is no child
        dtype = torch.float32 if trained else torch.float16
        self.up = nn.Parameter(torch.zeros(self.shape[0], rank, dtype=dtype))
        self.down = nn.Parameter(torch.zeros(rank, self.shape[1:].numel(), dtype=dtype))
        self.register_buffer("size", torch.ones(()))

    @property
    def learning_rate_scale(self) -> float:
        """Rates are in parts of the factors' mean magnitude at the start."""
        return self.size.item()

    @property
    def rank(self) -> int:
        """How many directions it has."""
        return self.up.shape[1]

    def resize(self, rank: int) -> None:
        """Takes another rank, with factors of zeros."""
        up, down = self.up.new_zeros(len(self.up), rank), self.down.new_zeros(rank, self.down.shape[1])
        self.up, self.down = (nn.Parameter(t, requires_grad=False) for t in (up, down))

    @torch.no_grad()
    def fit(self, weight: Tensor) -> None:
        """Takes the largest singular directions of a weight (Co, ...)."""
        for own, found in zip((self.up, self.down), low_rank(weight.flatten(1), self.rank)):
            own.copy_(found)

    @torch.no_grad()
    def balance(self) -> None:
        """Gives both factors of every direction the same mean magnitude, and takes that as the unit of rates."""
        if self.rank:
            up, down = self.up.square().mean(0).sqrt(), self.down.square().mean(1).sqrt()
            ratio = (down / up.clamp_min(1e-12)).clamp(1e-6, 1e6).sqrt()
            self.up.mul_(ratio)
            self.down.div_(ratio[:, None])
            self.size.copy_((self.up.abs().mean() + self.down.abs().mean()).clamp_min(1e-8) / 2)

    def factors(self) -> tuple[Tensor, Tensor]:
        """`up` and `down` in float32, with values of float16."""
        return tuple(t + (t.half().float() - t).detach() if t.dtype == torch.float32 else t.float()
                     for t in (self.up, self.down))  # fmt: skip

    def weight(self) -> Tensor:
        """Its share of the layer's weight."""
        up, down = self.factors()
        return (up @ down).view(self.shape)

    def forward(self, x: Tensor) -> Tensor:
        if not self.rank:
            return x.new_zeros(())
        up, down = (t.to(x.dtype) for t in self.factors())
        inner = self.layer[0].operate(x, down.view(-1, *self.shape[1:]), None)
        return F.conv2d(inner, up[..., None, None]) if self.layer[0].conv else F.linear(inner, up)


class LoRA(Slot):
    """What is added to a weight before it is quantized, up down: nothing of it is left when the model runs.

    `up` (Co, r) starts at zero, `down` (r, C kh kw) as Kaiming's uniform does, drawn by the layer's name;
    `mean_step` is that of the weight's quantizers.
    """

    tag = "lora"
    cacheable = True

    def __init__(self, layer: QuantLayer, rank: int):
        super().__init__()
        self.layer, self.shape = [layer], layer.layer.weight.shape  # in a list, so that it is no child
        self.up = nn.Parameter(torch.zeros(self.shape[0], rank))
        self.down = nn.Parameter(torch.zeros(rank, self.shape[1:].numel()))
        self.register_buffer("mean_step", torch.ones(()))

    @property
    def learning_rate_scale(self) -> float:
        """Rates are in parts of the mean step."""
        return self.mean_step.item()

    @torch.no_grad()
    def start(self) -> None:
        """Draws `down` and takes the mean step; the quantizers have started."""
        layer = self.layer[0]
        draw = torch.Generator().manual_seed(zlib.crc32(layer.name.encode()))
        self.down.copy_((2 * torch.rand(self.down.shape, generator=draw) - 1) / self.down.shape[1] ** 0.5)
        self.mean_step.copy_(mean_step(layer))

    def forward(self) -> Tensor:
        """The difference, of the weight's shape."""
        return (self.up @ self.down).view(self.shape)


def rank_of(layer: QuantLayer, share: float) -> int:
    """The rank that a recipe gives a layer, else `share` of the smaller side of its (Co, C kh kw) weight, at least 1.

    None is more than that side, a share of 0 is none, and a layer with groups has none: it has no such matrix.
    """
    least, rank = least_side(layer), layer.setting.rank
    if layer.groups > 1:
        return 0
    return min(rank, least) if rank is not None else max(1, round(share * least)) if share else 0


def least_side(layer: QuantLayer) -> int:
    """The smaller side of its (Co, C kh kw) weight."""
    return min(len(layer.layer.weight), layer.layer.weight[0].numel())


def mean_step(layer: QuantLayer) -> Tensor:
    """The mean of its weight quantizers' mean steps; they have started."""
    steps = [q.grid(*ends)[0].mean() for q, ends in zip(layer.weight_quantizers, layer.weight_ranges())]
    return torch.stack(steps).mean()


def low_rank(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Factors (m, r) and (r, n) of the nearest matrix of this rank to an (m, n) one, by its smaller Gram matrix."""
    if len(weight) > weight.shape[1]:
        up, down = low_rank(weight.T, rank)
        return down.T, up.T
    wide = weight.double()
    directions = torch.linalg.eigh(wide @ wide.T).eigenvectors[:, len(weight) - rank :]
    return directions, directions.T @ wide
