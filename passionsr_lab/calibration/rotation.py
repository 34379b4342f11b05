"""Random-sign Hadamard rotations of an input's channels: outliers are spread over all of them, the product stays."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

from ..quantization.layer import QuantLayer
from ..quantization.slots import Slot


def hadamard(size: int) -> Tensor | None:
    """The orthogonal (n, n) matrix of +-1/sqrt(n) where n is 2^k (p + 1), p a prime with p mod 4 = 3 or none (Paley);
    None for another n.

    Example:
        >>> h = hadamard(48)  # 4 times 12
        >>> bool(torch.allclose(h @ h.T, torch.eye(48), atol=1e-6)), hadamard(14)
        (True, None)
    """
    twos = (size & -size).bit_length() - 1
    for power in range(twos, -1, -1):
        core = _paley(size >> power)
        if core is not None:
            for _ in range(power):
                core = torch.cat([torch.cat([core, core], 1), torch.cat([core, -core], 1)])
            return core / size**0.5
    return None


def _paley(size: int) -> Tensor | None:
    """A Hadamard matrix of +-1 of order 1, or p + 1 for a prime p with p mod 4 = 3."""
    p = size - 1
    if size == 1:
        return torch.ones(1, 1)
    if p % 4 != 3 or any(p % d == 0 for d in range(3, int(p**0.5) + 1, 2)):
        return None
    squares = {i * i % p for i in range(1, p)}
    residue = torch.tensor([0.0 if i == 0 else 1.0 if i in squares else -1.0 for i in range(p)])
    index = torch.arange(p)
    skew = torch.zeros(size, size)
    skew[0, 1:], skew[1:, 0] = 1, -1
    skew[1:, 1:] = residue[(index[:, None] - index) % p]
    return skew + torch.eye(size)


class Rotation(Slot):
    """A transform: every part of the channels times a Hadamard matrix with columns of random sign, where there is one.

    `low` and `high` (parts,) are the natural range of each part after it, observed by `watch`.  Nothing is trained, and
    only the range is saved: signs are drawn by the layer's name.
    """

    cacheable = True

    def __init__(self, layer: QuantLayer, sizes: Sequence[int]):
        super().__init__()
        self.sizes = list(sizes)
        for i, size in enumerate(sizes):
            self.register_buffer(f"matrix{i}", _signed(size, f"{layer.name}.{i}"), persistent=False)
        self.register_buffer("low", torch.zeros(len(sizes)))
        self.register_buffer("high", torch.zeros(len(sizes)))

    @property
    def matrices(self) -> list[Tensor | None]:
        """Of every part, (n, n), or None for one that stays as it is."""
        return [getattr(self, f"matrix{i}") for i in range(len(self.sizes))]

    @property
    def scale(self) -> Tensor:
        """(C,) ones: a rotation scales nothing."""
        return self.low.new_ones(sum(self.sizes))

    @property
    def shift(self) -> Tensor:
        """(C,) zeros."""
        return self.low.new_zeros(sum(self.sizes))

    def forward(self, x: Tensor, dim: int) -> Tensor:
        """x H, with the channels of x along `dim`."""
        parts = x.transpose(dim, -1).split(self.sizes, -1)
        done = [part if h is None else part @ h.to(part.dtype) for part, h in zip(parts, self.matrices)]
        return torch.cat(done, -1).transpose(dim, -1)

    def of_weight(self, weight: Tensor, groups: int = 1) -> Tensor:
        """W H for a weight (Co, C, ...): W~ x~ is W x."""
        return self(weight, 1)

    def ranges(self, padded: bool) -> list[tuple[Tensor, Tensor]]:
        """The natural range of every part; a padded zero stays zero and counts where there is one."""
        low, high = (self.low.clamp_max(0), self.high.clamp_min(0)) if padded else (self.low, self.high)
        return list(zip(low, high))

    @torch.no_grad()
    def watch(self, x: Tensor, dim: int) -> None:
        """Takes in x, whose channels lie along `dim`."""
        parts = self(x.to(self.low.dtype), dim).split(self.sizes, dim)
        self.low.copy_(torch.minimum(self.low, torch.stack([part.amin() for part in parts])))
        self.high.copy_(torch.maximum(self.high, torch.stack([part.amax() for part in parts])))

    def unseen(self) -> None:
        """Forgets the range."""
        self.low.fill_(torch.inf)
        self.high.fill_(-torch.inf)


def _signed(size: int, name: str) -> Tensor | None:
    matrix = hadamard(size)
    if matrix is None:
        return None
    draw = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return matrix * (2.0 * torch.randint(2, (size,), generator=draw) - 1)
