"""Pairs of an LR picture and its original: from folders, and the photographs that come with scikit-image."""

from __future__ import annotations

from pathlib import Path
from typing import Iterable, NamedTuple

import numpy as np
from torch import Tensor

from .degradation import Degradation
from .pictures import UPSCALE, image_files, matching_files, read_image

# scikit-image ships these photographs inside its wheel: no download.
CALIBRATION_PHOTOS = ("coffee.png", "rocket.jpg", "camera.png", "ihc.png", "hubble_deep_field.jpg", "brick.png")
TEST_PHOTOS = ("astronaut.png", "chelsea.png", "motorcycle_left.png", "grass.png")


class Pair(NamedTuple):
    """A low-resolution image (3, h, w) and its original (3, 4h, 4w), both in [0, 1]."""

    name: str
    lr: Tensor
    hr: Tensor


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
