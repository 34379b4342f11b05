"""Images and pairs: reading, the ×4 degradation, and the photographs that come with scikit-image.

Image tensors are RGB float32 in [0, 1], shape (3, H, W).  Everything random takes a `numpy.random.Generator`.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Iterable, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError
from torch import Tensor

UPSCALE = 4
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}

# scikit-image ships these photographs inside its wheel: no download.
CALIBRATION_PHOTOS = ("coffee.png", "rocket.jpg", "camera.png", "ihc.png", "hubble_deep_field.jpg", "brick.png")
TEST_PHOTOS = ("astronaut.png", "chelsea.png", "motorcycle_left.png", "grass.png")


class Pair(NamedTuple):
    """A low-resolution image (3, h, w) and its original (3, 4h, 4w), both in [0, 1]."""

    name: str
    lr: Tensor
    hr: Tensor


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


@dataclass(frozen=True)
class Degradation:
    """How a photograph loses its detail: Gaussian blur, ×4 down-sampling, Gaussian noise, JPEG.

    blur: range of the standard deviations of the (anisotropic) Gaussian, in HR pixels.
    noise: range of the noise's standard deviation, of 1.
    jpeg: range of the JPEG quality.
    clean: probability that noise, and independently JPEG, is left out.
    """

    blur: tuple[float, float] = (0.2, 2.4)
    noise: tuple[float, float] = (0.0, 0.04)
    jpeg: tuple[int, int] = (50, 95)
    clean: float = 0.25

    def __call__(self, hr: Tensor, rng: np.random.Generator) -> Tensor:
        """(3, 4h, 4w) in [0, 1] -> (3, h, w) in [0, 1] on the 8-bit grid."""
        kernel = _gaussian(*rng.uniform(*self.blur, 2), rng.uniform(0, math.pi))
        pad = kernel.shape[-1] // 2
        blurred = F.conv2d(F.pad(hr[:, None], (pad,) * 4, mode="reflect"), kernel[None, None])[:, 0]
        mode = rng.choice(["bicubic", "bilinear", "area"])
        antialias = {} if mode == "area" else {"antialias": True}
        lr = F.interpolate(blurred[None], scale_factor=1 / UPSCALE, mode=str(mode), **antialias)[0]
        if rng.random() >= self.clean:
            channels = 3 if rng.random() < 0.7 else 1
            sigma = rng.uniform(*self.noise)
            lr = lr + torch.from_numpy(rng.normal(0, sigma, (channels, *lr.shape[1:])).astype(np.float32))
        if rng.random() >= self.clean:
            return jpeg(lr, int(rng.integers(self.jpeg[0], self.jpeg[1] + 1)))
        return (lr.clamp(0, 1) * 255).round() / 255


def _gaussian(sigma_x: float, sigma_y: float, angle: float, size: int = 15) -> Tensor:
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


def crop(image: Tensor, size: int, rng: np.random.Generator) -> Tensor:
    """A random (3, size, size) crop; `ValueError` if the image is smaller."""
    h, w = image.shape[-2:]
    if min(h, w) < size:
        raise ValueError(f"A {w}x{h} image is too small for {size}-pixel crops; use larger photographs.")
    y, x = int(rng.integers(h - size + 1)), int(rng.integers(w - size + 1))
    return image[:, y : y + size, x : x + size]


def bundled(split: str = "test", count: int | None = None, size: int = 128, seed: int = 0) -> list[Pair]:
    """Pairs from scikit-image's own photographs; those for calibration and those for testing are never the same.

    Args:
        split: "calibration" or "test".
        count: how many crops, taken in turn from the photographs; None takes one from each.
        size: HR pixels of a square crop (the LR image has a quarter).
        seed: of crops and degradation.

    Example:
        >>> bundled("test", size=256)[0].hr.shape
        torch.Size([3, 256, 256])
    """
    photos = {"calibration": CALIBRATION_PHOTOS, "test": TEST_PHOTOS}
    if split not in photos:
        raise ValueError(f"split is 'calibration' or 'test', not {split!r}.")
    images = [(name.partition(".")[0], photograph(name)) for name in photos[split]]
    return make_pairs(images, count or len(images), size, seed)


def photograph(name: str) -> Tensor:
    """One of scikit-image's photographs, (3, H, W)."""
    from importlib.resources import files

    return read_image(str(files("skimage.data") / name))


def make_pairs(
    images: Iterable[tuple[str, Tensor]],
    count: int,
    size: int = 128,
    seed: int = 0,
    degradation: Degradation = Degradation(),
) -> list[Pair]:
    """`count` random crops of named images in turn, each with its degraded quarter-size version."""
    if size % UPSCALE:
        raise ValueError(f"The crop size must be a multiple of {UPSCALE}, not {size}.")
    rng, images, pairs = np.random.default_rng(seed), list(images), []
    for i in range(count):
        name, image = images[i % len(images)]
        hr = crop(image, size, rng)
        pairs.append(Pair(f"{name}_{i // len(images)}", degradation(hr, rng), hr))
    return pairs


def folder_pairs(folder: str | Path, count: int | None = None, size: int = 128, seed: int = 0) -> list[Pair]:
    """Pairs from a folder: `lr/` and `hr/` with the same file names, or photographs that are cropped and degraded.

    Ready pairs are cropped to `size` HR pixels at a random place (smaller ones are taken whole), so that they batch.
    Raises `ValueError` for missing counterparts, sizes that are not ×4, and photographs smaller than a crop.
    """
    folder, rng = Path(folder), np.random.default_rng(seed)
    if not (folder / "lr").is_dir():
        files = image_files(folder)
        chosen = [files[i] for i in rng.permutation(len(files))[: count or len(files)]]
        return make_pairs([(f.stem, read_image(f)) for f in chosen], count or len(files), size, seed)
    files = matching_files(folder / "lr", folder / "hr")
    chosen = [files[i] for i in sorted(rng.permutation(len(files))[: count or len(files)])]
    return [_crop_pair(read_pair(lr, hr), size, rng) for lr, hr in chosen]


def chosen_pairs(images: str | Path, count: int | None, size: int, seed: int, split: str = "calibration") -> list[Pair]:
    """What a command calls its images: "bundled", of which `split` is taken (see `bundled`), or a folder of pairs or
    photographs (see `folder_pairs`).

    Raises:
        ValueError: fewer than one pair, and what those two raise.
    """
    if count is not None and count < 1:
        raise ValueError(f"The number of pairs is at least 1, not {count}.")
    return bundled(split, count, size, seed) if images == "bundled" else folder_pairs(images, count, size, seed)


def matching_files(left: str | Path, right: str | Path) -> list[tuple[Path, Path]]:
    """Files of two folders with the same name; `ValueError` names what only one of them has."""
    a, b = ({p.name: p for p in image_files(folder)} for folder in (left, right))
    if a.keys() != b.keys():
        lone = sorted(a.keys() ^ b.keys())
        raise ValueError(
            f"{left} and {right} must hold the same names; only one has {lone[0]} (and {len(lone) - 1} more)."
        )
    return [(a[name], b[name]) for name in sorted(a)]


def read_pair(lr: Path, hr: Path) -> Pair:
    """One pair from its two files; `ValueError` if the second is not exactly ×4."""
    pair = Pair(lr.stem, read_image(lr), read_image(hr))
    if tuple(s * UPSCALE for s in pair.lr.shape[1:]) != tuple(pair.hr.shape[1:]):
        raise ValueError(f"{hr} must be {UPSCALE} times the size of {lr}.")
    return pair


def _crop_pair(pair: Pair, size: int, rng: np.random.Generator) -> Pair:
    h, w = (min(s, size // UPSCALE) for s in pair.lr.shape[1:])
    y, x = (int(rng.integers(s - t + 1)) for s, t in zip(pair.lr.shape[1:], (h, w)))
    hr = pair.hr[:, y * UPSCALE : (y + h) * UPSCALE, x * UPSCALE : (x + w) * UPSCALE]
    return Pair(pair.name, pair.lr[:, y : y + h, x : x + w], hr)
