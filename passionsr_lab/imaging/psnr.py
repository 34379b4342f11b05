"""Peak signal-to-noise ratios, each named for what it measures."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def luma(x: Tensor) -> Tensor:
    """(..., 3, H, W) RGB in [0, 1] -> (..., H, W), the Y of BT.601 in [16, 235] / 255.

    Example:
        >>> round(luma(torch.ones(3, 1, 1)).item() * 255)
        235
    """
    weights = torch.tensor([65.481, 128.553, 24.966], dtype=x.dtype, device=x.device) / 255
    return (x * weights[:, None, None]).sum(-3) + 16 / 255


def psnr_y(x: Tensor, y: Tensor) -> float:
    """Peak signal-to-noise ratio (dB) on Y of two images (3, H, W) in [0, 1].

    Equal images give 100 dB (pyiqa, which adds 1e-8 to the mean square, 80 dB); at 40 dB the two differ by 0.0004 dB.

    Example:
        >>> round(psnr_y(torch.zeros(3, 8, 8), torch.ones(3, 8, 8)), 2)
        1.32
    """
    return _decibels(x, y, luma)


def psnr_rgb(x: Tensor, y: Tensor) -> float:
    """Peak signal-to-noise ratio (dB) over all three channels of two images (3, H, W) in [0, 1]."""
    return _decibels(x, y, lambda image: image)


def _decibels(x: Tensor, y: Tensor, of: Callable[[Tensor], Tensor]) -> float:
    if x.shape != y.shape:
        raise ValueError(f"Images of one size are compared, not {tuple(x.shape)} and {tuple(y.shape)}.")
    return -10 * torch.log10((of(x.double()) - of(y.double())).square().mean().clamp_min(1e-10)).item()


def sqnr(x: Tensor, of: Tensor) -> float:
    """10 log10 of the energy of `of` over that of the error x - of, in dB; of any shape, errors from 1e-30 on."""
    return 10 * math.log10(of.square().mean().item() / max((x - of).square().mean().item(), 1e-30))
