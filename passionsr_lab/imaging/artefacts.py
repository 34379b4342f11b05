"""What tiles and low bits do to a picture as numbers: visible seams, and colours that drift."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from pandas import DataFrame

PERIOD = 8  # pixels: decoders leave a grid of their own, whose period divides this


def seam_score(image: Tensor, rows: Iterable[int], columns: Iterable[int]) -> float:
    """How much larger the jumps across the seams are than those across lines 8 and 16 pixels beside them.

    1 means that nothing shows, 2 that neighbours differ twice as much across a seam as elsewhere.  A picture's own
    edges move the score of a few seams too: divide by the score of the same picture without tiles, at the same lines.

    Args:
        image: (3, H, W) in [0, 1].
        rows, columns: the first pixel row and column after each seam (`tiling.seams`).

    Raises:
        ValueError: no seam has such lines beside it.

    Example:
        >>> import torch
        >>> x = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)) / 4
        >>> x[..., 32:] += 0.5
        >>> seam_score(x, [], [32]) > 4 > 1.2 > seam_score(x, [32], [])
        True
    """
    across, beside = 0.0, []
    for lines, axis in ((rows, -2), (columns, -1)):
        jumps = image.double().diff(dim=axis).abs().transpose(axis, -1).mean((0, 1))  # [i]: between lines i and i + 1
        for i in (line - 1 for line in lines):
            places = [i + step * PERIOD for step in (-2, -1, 1, 2) if 0 <= i + step * PERIOD < len(jumps)]
            if places and 0 <= i < len(jumps):
                across += jumps[i].item()
                beside.append(jumps[places].mean().item())
    if not beside:
        raise ValueError("No seam with lines 8 pixels beside it lies inside this image; give rows or columns.")
    return (across + 1e-12) / (sum(beside) + 1e-12)


def colour_shift(image: Tensor, reference: Tensor) -> DataFrame:
    """How each channel differs from a reference of the same size, in 8-bit levels: of the mean, and of the 1 % ends.

    Args:
        image, reference: (3, H, W) in [0, 1]; the reference is the enlarged LR image, or full precision's output.

    Returns:
        rows R, G, B; columns mean, p1, p99: image minus reference, of the mean and the 1st and 99th percentile.

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> import torch
        >>> x = torch.rand(3, 16, 16) / 2
        >>> colour_shift(x + torch.tensor([0.1, 0, -0.1]).view(3, 1, 1), x)["mean"].round(1).tolist()
        [25.5, 0.0, -25.5]
    """
    import numpy as np
    import pandas as pd

    if image.shape != reference.shape or image.ndim != 3:
        raise ValueError(f"Two images (3, H, W) of one size are compared, not {image.shape} and {reference.shape}.")
    a, b = (x.detach().cpu().double().flatten(1).numpy() * 255 for x in (image, reference))
    numbers = [[x.mean(1), *np.quantile(x, [0.01, 0.99], axis=1)] for x in (a, b)]
    return pd.DataFrame((np.array(numbers[0]) - np.array(numbers[1])).T, list("RGB"), ["mean", "p1", "p99"])
