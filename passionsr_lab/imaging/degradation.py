"""The ×4 degradation that makes LR pictures out of photographs; everything random takes a `numpy.random.Generator`."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .pictures import UPSCALE, to_image, to_tensor

SMALLEST = 8  # pixels of an edge: the blur's kernel of 15 is mirrored at the border


@dataclass(frozen=True)
class Degradation:
    """How a photograph loses its detail: Gaussian blur, ×4 down-sampling, a camera's sharpening, noise, JPEG.

    Optics blur and a camera's processor sharpens what is left, with an overshoot: in real LR pictures coarse detail
    comes out stronger than in the HR picture and fine detail is gone, which no blur alone does.

    blur: range of the standard deviations of the (anisotropic) Gaussian, in HR pixels.
    sharpening: range of the amount of an unsharp mask on the LR picture; its Gaussian has 1 to 2 LR pixels.
    sharpened: probability of the unsharp mask.
    noise: range of the standard deviation of Gaussian noise, of 1.
    jpeg: range of the JPEG quality.
    clean: probability that noise, and independently JPEG, is left out.
    """

    blur: tuple[float, float] = (2.0, 3.5)
    sharpening: tuple[float, float] = (0.3, 1.5)
    sharpened: float = 0.7
    noise: tuple[float, float] = (0.0, 0.008)
    jpeg: tuple[int, int] = (88, 98)
    clean: float = 0.5

    def __call__(self, hr: Tensor, rng: np.random.Generator) -> Tensor:
        """(3, 4h, 4w) in [0, 1] -> (3, h, w) in [0, 1] on the 8-bit grid."""
        blurred = _filter(hr, _gaussian(*rng.uniform(*self.blur, 2), rng.uniform(0, math.pi), 15), "reflect")
        mode = rng.choice(["bicubic", "bilinear", "area"])
        antialias = {} if mode == "area" else {"antialias": True}
        lr = F.interpolate(blurred[None], scale_factor=1 / UPSCALE, mode=str(mode), **antialias)[0]
        if rng.random() < self.sharpened:
            amount, sigma = rng.uniform(*self.sharpening), rng.uniform(1, 2)
            lr = lr + amount * (lr - _filter(lr, _gaussian(sigma, sigma, 0, 9)))
        if rng.random() >= self.clean:
            channels = 3 if rng.random() < 0.7 else 1
            sigma = rng.uniform(*self.noise)
            lr = lr + torch.from_numpy(rng.normal(0, sigma, (channels, *lr.shape[1:])).astype(np.float32))
        if rng.random() >= self.clean:
            return jpeg(lr, int(rng.integers(self.jpeg[0], self.jpeg[1] + 1)))
        return (lr.clamp(0, 1) * 255).round() / 255


def _filter(x: Tensor, kernel: Tensor, border: str = "replicate") -> Tensor:
    """(3, H, W) filtered by a square kernel of odd size."""
    return F.conv2d(F.pad(x[:, None], (kernel.shape[-1] // 2,) * 4, mode=border), kernel[None, None])[:, 0]


def _gaussian(sigma_x: float, sigma_y: float, angle: float, size: int) -> Tensor:
    r = torch.arange(size) - size // 2
    y, x = torch.meshgrid(r, r, indexing="ij")
    u, v = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    kernel = torch.exp(-0.5 * ((u / sigma_x) ** 2 + (v / sigma_y) ** 2))
    return (kernel / kernel.sum()).float()


def jpeg(x: Tensor, quality: int) -> Tensor:
    """(3, H, W) through JPEG compression and back."""
    buffer = io.BytesIO()
    to_image(x).save(buffer, "JPEG", quality=quality)
    return to_tensor(Image.open(buffer))
