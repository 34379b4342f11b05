"""Distances of images that look at structure: gradients at several scales, which need no weights, and LPIPS."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..util.compat import torchvision_importable
from .method import DISTANCES, REQUIRED

GRADIENTS, LPIPS = "multi-scale gradients", "lpips"
SCALES = 4
FILES = "checkpoints/alexnet-owt-7be5be79.pth", "pyiqa/LPIPS_v0.1_alex-df73285e.pth"  # below torch.hub's folder


def gradient_distance(x: Tensor, y: Tensor) -> Tensor:
    """Mean absolute difference of the horizontal and vertical gradients of images (B, 3, H, W), over up to four scales.

    Every scale halves the one before; an image of fewer than 4 pixels at a scale has no further one.
    """
    terms, error = [], x - y  # gradients and means are linear: those of the difference are enough
    for _ in range(SCALES):
        terms += [error.diff(dim=d).abs().mean() for d in (-1, -2)]
        if min(error.shape[-2:]) < 4:
            break
        error = F.avg_pool2d(error, 2)
    return sum(terms) / len(terms)


def lpips_distance(x: Tensor, y: Tensor) -> Tensor:
    """LPIPS (AlexNet) of images (B, 3, H, W) in [-1, 1]."""
    return _network(x.device)((x / 2 + 0.5).clamp(0, 1), (y / 2 + 0.5).clamp(0, 1)).mean()


@cache
def _network(device: torch.device):
    """pyiqa's LPIPS as a loss; it is frozen."""
    torchvision_importable()
    import pyiqa

    return pyiqa.create_metric("lpips", as_loss=True, device=device)


def require_lpips() -> None:
    """`ValueError` unless pyiqa and the two files that its LPIPS reads are there; nothing is downloaded."""
    missing = [path.name for path in (Path(torch.hub.get_dir(), name) for name in FILES) if not path.exists()]
    missing = ["pyiqa"] if find_spec("pyiqa") is None else missing
    if missing:
        raise ValueError(
            f"LPIPS needs {' and '.join(missing)}, which are not here; run `passionsr-lab prefetch`, or take a method"
            f" whose distance is {GRADIENTS!r}."
        )


DISTANCES |= {GRADIENTS: gradient_distance, LPIPS: lpips_distance}
REQUIRED[LPIPS] = require_lpips
