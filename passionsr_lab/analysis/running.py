"""Running statistics of tensors that are never kept: range, moments, histogram.

They are the same however the values were divided into calls and blocks, and take O(channels + bins) memory.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

BINS = 1024  # of a histogram, half of them below zero
ZERO = -1000  # the exponent of a histogram that has seen zeros alone
BLOCK = 2**20  # values that are looked at together; bounds the memory of one step
SIGMAS = 6  # a value farther than this many standard deviations from the mean is an outlier


class Histogram(NamedTuple):
    """Edges (BINS + 1,) and counts (BINS,); bin i holds edges[i] <= x < edges[i + 1]."""

    edges: np.ndarray
    counts: np.ndarray


class Accumulator:
    """Running statistics of a tensor as a whole and of its channels, in float64.

    The histogram spans [-2**e, 2**e), the smallest power of two above the largest magnitude so far, in BINS bins.  When
    a larger value comes the range doubles and neighbouring bins merge in pairs, so every count stays exact and the
    final bins depend on the values only, not on their order.
    """

    def __init__(self, channels: int):
        self.count = 0  # values per channel
        self.low, self.high = np.full(channels, np.inf), np.full(channels, -np.inf)
        self.pivot = np.zeros(channels)  # the first value of each channel
        self.powers = np.zeros((4, channels))  # sums of (x - pivot)**1 to **4
        self.exponent, self.bins = ZERO, np.zeros(BINS, np.int64)

    @torch.no_grad()
    def add(self, x: Tensor, dim: int) -> None:
        """Takes in x, (B, C, ...) with `dim` 1 or (..., C) with `dim` -1; `FloatingPointError` on NaN and infinity."""
        rows = x.flatten(2) if dim == 1 else x.flatten(0, -2).T[None]  # (B, C, N), a view
        for sample in rows:
            for block in sample.split(max(1, BLOCK // len(sample)), 1):
                self._add(block.double())

    def _add(self, block: Tensor) -> None:  # (C, n)
        low, high = block.amin(1), block.amax(1)
        amax = torch.maximum(-low, high).amax().item()
        if not math.isfinite(amax):
            raise FloatingPointError("NaN or infinite values")
        if self.count == 0:
            self.pivot = block[:, 0].cpu().numpy().copy()
        self.count += block.shape[1]
        self.low = np.minimum(self.low, low.cpu().numpy())
        self.high = np.maximum(self.high, high.cpu().numpy())
        if amax:  # zeros fit into any range, and frexp(0) has the exponent of 1
            self._widen(math.frexp(amax)[1])
        codes = (block / self.width).floor_().long().flatten() + BINS // 2
        self.bins += codes.bincount(minlength=BINS).cpu().numpy()
        distance = block - block.new_tensor(self.pivot)[:, None]
        power = distance.clone()
        for k in range(4):
            self.powers[k] += power.sum(1).cpu().numpy()
            power.mul_(distance)

    def _widen(self, exponent: int) -> None:
        if exponent > self.exponent:
            target = (np.arange(BINS) - BINS // 2 >> min(exponent - self.exponent, 62)) + BINS // 2
            self.bins = np.bincount(target, self.bins, BINS).astype(np.int64)
            self.exponent = exponent

    @property
    def width(self) -> float:
        """Of a histogram bin; for zeros alone as if the largest were below 1."""
        return 2.0 ** (self.exponent if self.exponent > ZERO else 0) / (BINS // 2)

    @property
    def bytes(self) -> int:
        """Memory held."""
        return sum(a.nbytes for a in (self.low, self.high, self.pivot, self.powers, self.bins))

    def histogram(self) -> Histogram:
        """All values, whatever their channel."""
        return Histogram((np.arange(BINS + 1) - BINS // 2) * self.width, self.bins.copy())

    def channels(self) -> dict:
        """Columns of the per-channel frame; `std` divides by the count."""
        first, second = self.powers[:2] / self.count
        std = np.sqrt(np.maximum(second - first**2, 0))
        return {"low": self.low, "high": self.high, "mean": self.pivot + first, "std": std, "count": self.count}

    def summary(self) -> dict:
        """The tensor as a whole: a row of the per-layer frame."""
        total = self.count * len(self.low)
        mean = (self.pivot + self.powers[0] / self.count).mean()
        std, fourth = math.sqrt(self._central(2, mean) / total), self._central(4, mean) / total
        low, high = self.low.min(), self.high.max()
        row = {"channels": len(self.low), "low": low, "high": high, "mean": mean, "std": std}
        kurtosis = fourth / std**4 if low < high and std**4 > 0 else math.nan
        return row | {"kurtosis": kurtosis, "outlier_share": self._beyond(mean, SIGMAS * std) / total, "count": total}

    def _central(self, order: int, mean: float) -> float:
        """The sum of (x - mean)**order over all channels, from those about the channels' pivots."""
        sums = [np.full(len(self.pivot), self.count), *self.powers]
        terms = [math.comb(order, k) * sums[k] * (self.pivot - mean) ** (order - k) for k in range(order + 1)]
        return max(float(sum(terms).sum()), 0.0)

    def _beyond(self, mean: float, reach: float) -> int:
        edges, counts = self.histogram()
        return int(counts[(edges[:-1] > mean + reach) | (edges[1:] <= mean - reach)].sum())
