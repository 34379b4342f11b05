"""Pictures in and out: RGB float32 tensors in [0, 1], shape (3, H, W), from files and PIL images and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError
from torch import Tensor

UPSCALE = 4


SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}


def to_tensor(image: Image.Image | Tensor) -> Tensor:
    """Any picture as RGB float32 in [0, 1].

    Grey, palette, RGBA (alpha is dropped) and 16-bit PIL images become (3, H, W); tensors keep their shape, (3, H, W)
    or (B, 3, H, W).  Raises `ValueError` for other shapes, integer tensors, values outside [0, 1] and NaN.

    Example:
        >>> from PIL import Image
        >>> to_tensor(Image.new("L", (5, 3), 255)).shape
        torch.Size([3, 3, 5])
    """
    if isinstance(image, Image.Image):
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):
            grey = np.asarray(image).astype(np.float32)
            scale = 65535.0 if image.mode != "F" or grey.max(initial=0) > 1 else 1.0
            return _checked(torch.from_numpy(grey / scale).expand(3, -1, -1).clone())
        pixels = np.array(image.convert("RGB"), dtype=np.float32) / 255
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
    if not isinstance(image, Tensor):
        raise ValueError(f"An image must be a PIL image or a tensor, not {type(image).__name__}.")
    if not image.is_floating_point():
        raise ValueError(f"An image tensor must be floating point in [0, 1], not {image.dtype}; divide by 255.")
    if image.ndim not in (3, 4) or image.shape[-3] != 3 or 0 in image.shape:
        raise ValueError(f"An image tensor must be (3, H, W) or (B, 3, H, W), not {tuple(image.shape)}.")
    return _checked(image.float())


def _checked(x: Tensor) -> Tensor:
    if not torch.isfinite(x).all():
        raise ValueError("The image holds NaN or infinite values; mask or replace them before super-resolving it.")
    if x.min() < -1e-4 or x.max() > 1 + 1e-4:
        raise ValueError(f"Image values must lie in [0, 1], found [{x.min():.3g}, {x.max():.3g}]; rescale the image.")
    return x.clamp(0, 1)


def to_image(x: Tensor) -> Image.Image:
    """(3, H, W) in [0, 1] as an 8-bit PIL image, rounded to nearest.

    Example:
        >>> to_image(torch.ones(3, 2, 4)).size
        (4, 2)
    """
    pixels = (x.detach().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(pixels)


def read_image(path: str | Path) -> Tensor:
    """A picture file as (3, H, W) in [0, 1]; `ValueError` in one sentence if it is missing or damaged."""
    try:
        with Image.open(path) as image:
            return to_tensor(image)
    except FileNotFoundError:
        raise ValueError(f"There is no image at {path}.") from None
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError) as error:
        raise ValueError(f"{path} cannot be read as an image ({error}); replace or remove it.") from None


def image_files(folder: str | Path) -> list[Path]:
    """The picture files directly in `folder`, sorted by name; `ValueError` if there are none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder.")
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
    if not files:
        raise ValueError(f"{folder} holds no images ({', '.join(sorted(SUFFIXES))}).")
    return files


def upsample(x: Tensor, scale: int = UPSCALE) -> Tensor:
    """Bicubic ×`scale` (a = -0.5, as PIL's) of (B, 3, H, W), clamped to [0, 1]."""
    return F.interpolate(x, scale_factor=scale, mode="bicubic", antialias=True).clamp(0, 1)


def matching_files(left: str | Path, right: str | Path) -> list[tuple[Path, Path]]:
    """Files of two folders with the same name; `ValueError` names what only one of them has."""
    a, b = ({p.name: p for p in image_files(folder)} for folder in (left, right))
    if a.keys() != b.keys():
        lone = sorted(a.keys() ^ b.keys())
        raise ValueError(
            f"{left} and {right} must hold the same names; only one has {lone[0]} (and {len(lone) - 1} more)."
        )
    return [(a[name], b[name]) for name in sorted(a)]
