"""Pairs of an LR picture and its original: from folders, and the photographs that come with scikit-image."""

from collections.abc import Callable, Collection, Iterable, Sequence
from functools import cache, partial
from numbers import Integral
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from .decoding import picture_size
from .degradation import SMALLEST, Degradation
from .matching import matching_files, require_distinct_stems
from .pictures import UPSCALE, image_files, read_image, to_tensor

# scikit-image ships these photographs inside its wheel: no download.
CALIBRATION_PHOTOS = ("coffee.png", "rocket.jpg", "camera.png", "ihc.png", "hubble_deep_field.jpg", "brick.png")
TUNING_PHOTOS = ("coins.png", "gravel.png", "moon.png", "retina.jpg")
TEST_PHOTOS = ("astronaut.png", "chelsea.png", "motorcycle_left.png", "grass.png")


class Pair(NamedTuple):
    """A low-resolution image (3, h, w) and its original (3, 4h, 4w), both in [0, 1]."""

    name: str
    lr: Tensor
    hr: Tensor


def checked_pairs(pairs: Iterable, upscale: int = UPSCALE) -> list[Pair]:
    """What a person calls pairs as `Pair`s; those without a name are numbered.

    Args:
        pairs: of `Pair`, (lr, hr) or (name, lr, hr), whose pictures are PIL images or tensors (3, h, w) in [0, 1].
        upscale: how much larger the original is along an axis.

    Raises:
        ValueError: there is none, an image stands alone or swapped with its original, sizes do not fit, or values are
            not finite or outside [0, 1]; the message names the pair.
    """
    if isinstance(pairs, Pair) or not isinstance(pairs, Iterable):
        raise ValueError(f"Pairs are given as a list of (lr, hr), not as one {type(pairs).__name__}.")
    found = [_checked_pair(i, pair, upscale) for i, pair in enumerate(pairs)]
    if not found:
        raise ValueError("There are no pairs; give at least one (lr, hr).")
    return found


def _checked_pair(i: int, pair, upscale: int) -> Pair:
    if isinstance(pair, (Tensor, Image.Image)):
        raise ValueError(f"Pair {i} is an image alone; give pairs (lr, hr).")
    if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) not in (2, 3):
        raise ValueError(f"Pair {i} is a {type(pair).__name__} that is not (lr, hr) or (name, lr, hr).")
    name, *pictures = pair if len(pair) == 3 else (i, *pair)
    if isinstance(name, (Tensor, Image.Image)):
        raise ValueError(f"Pair {i} has three pictures; give (lr, hr) or (name, lr, hr).")
    try:
        lr, hr = (to_tensor(picture) for picture in pictures)
    except ValueError as error:
        raise ValueError(f"Pair {name}: {error}") from None
    if lr.ndim != 3 or hr.ndim != 3:
        raise ValueError(f"Pair {name} holds a batch; give each image (3, h, w) with its own original.")
    require_upscaled(f"Pair {name}", lr.shape[1:], hr.shape[1:], upscale)
    return Pair(str(name), lr, hr)


def require_upscaled(what: str, lr: Sequence[int], hr: Sequence[int], upscale: int = UPSCALE) -> None:
    """`ValueError` unless the size (h, w) of the original is `upscale` times that of the LR picture."""
    if tuple(hr) == tuple(n * upscale for n in lr):
        return
    (h, w), (H, W) = lr, hr
    hint = "; the two are swapped, the small one comes first" if tuple(lr) == tuple(n * upscale for n in hr) else ""
    raise ValueError(f"{what}: the original, {W}x{H}, must be {upscale} times the size of {w}x{h}{hint}.")


def require_count(count: int | None) -> None:
    """`ValueError` unless `count` is None or a whole number from 1 on."""
    if count is not None and (isinstance(count, bool) or not isinstance(count, Integral) or count < 1):
        raise ValueError(f"The number of pairs is a whole number from 1 on, not {count!r}.")


def require_crop(size: int, least: int = UPSCALE) -> None:
    """`ValueError` unless `size` is a multiple of the upscaling from `least` on."""
    if not isinstance(size, Integral) or size < least or size % UPSCALE:
        raise ValueError(f"The crop size must be a multiple of {UPSCALE} from {least} on, not {size!r}.")


def crop(image: Tensor, size: int, rng: np.random.Generator) -> Tensor:
    """A random (3, size, size) crop; `ValueError` if the image is smaller."""
    h, w = image.shape[-2:]
    require_room("An image", h, w, size)
    y, x = int(rng.integers(h - size + 1)), int(rng.integers(w - size + 1))
    return image[:, y : y + size, x : x + size]


def bundled(split: str = "test", count: int | None = None, size: int = 128, seed: int = 0) -> list[Pair]:
    """Pairs from scikit-image's own photographs; those of two splits are never the same.

    Args:
        split: "calibration", "tuning" (to choose settings on) or "test".
        count: how many crops, taken in turn from the photographs; None takes one from each.
        size: HR pixels of a square crop (the LR image has a quarter).
        seed: of crops and degradation.

    Example:
        >>> bundled("test", size=256)[0].hr.shape
        torch.Size([3, 256, 256])
    """
    photos = {"calibration": CALIBRATION_PHOTOS, "tuning": TUNING_PHOTOS, "test": TEST_PHOTOS}
    if split not in photos:
        raise ValueError(f"split is one of {', '.join(map(repr, photos))}, not {split!r}.")
    read = cache(photograph)
    return make_pairs([(name.partition(".")[0], partial(read, name)) for name in photos[split]], count, size, seed)


def photograph(name: str) -> Tensor:
    """One of scikit-image's photographs, (3, H, W)."""
    from importlib.resources import files

    return read_image(str(files("skimage.data") / name))


def named(pairs: Iterable[Pair], names: Collection[str]) -> dict[str, Pair]:
    """The pairs of these names, in their own order; `ValueError` for a name that none of them has.

    Example:
        >>> list(named(bundled("test", size=64), ["grass_0", "astronaut_0"]))
        ['astronaut_0', 'grass_0']
    """
    found = {pair.name: pair for pair in pairs}
    for name in names:
        if name not in found:
            raise ValueError(f"There is no picture {name!r}; there are {', '.join(found)}.")
    return {name: pair for name, pair in found.items() if name in names}


def make_pairs(
    photographs: Sequence[tuple[str, Callable[[], Tensor]]],
    count: int | None = None,
    size: int = 128,
    seed: int = 0,
    degradation: Degradation = Degradation(),
) -> list[Pair]:
    """`count` random crops of photographs in turn, each with its degraded quarter-size version.

    Args:
        photographs: (name, function that reads it); one is in memory at a time.
        count: None takes one crop of each.
    """
    require_count(count)
    require_crop(size, SMALLEST)
    rng, pairs = np.random.default_rng(seed), []
    for i in range(count or len(photographs)):
        name, read = photographs[i % len(photographs)]
        hr = crop(read(), size, rng).clone()  # or it would hold the whole photograph
        pairs.append(Pair(f"{name}_{i // len(photographs)}", degradation(hr, rng), hr))
    return pairs


def folder_pairs(folder: str | Path, count: int | None = None, size: int = 128, seed: int = 0) -> list[Pair]:
    """Pairs from a folder: `lr/` and `hr/` with the same file names, or photographs that are cropped and degraded.

    Ready pairs are cropped to `size` HR pixels at a random place (smaller ones are taken whole), so that they batch.
    Raises `ValueError` for missing counterparts, sizes that are not ×4, photographs smaller than a crop, and two files
    whose names differ in their suffix only: sizes are looked at before any picture is read.
    """
    require_count(count)
    require_crop(size)
    folder, rng = Path(folder), np.random.default_rng(seed)
    if not (folder / "lr").is_dir():
        return make_pairs(_photographs(image_files(folder), count, size, rng), count, size, seed)
    files = matching_files(folder / "lr", folder / "hr")
    chosen = [files[i] for i in sorted(rng.permutation(len(files))[:count])]
    require_upscaled_files(chosen)
    return [_crop_pair(read_pair(*files), size, rng) for files in chosen]


def _photographs(files: list[Path], count: int | None, size: int, rng: np.random.Generator) -> list[tuple]:
    require_distinct_stems(files)
    chosen = [files[i] for i in rng.permutation(len(files))[:count]]
    for file in chosen:
        require_room(file, *picture_size(file), size)
    return [(file.stem, partial(read_image, file)) for file in chosen]


def chosen_pairs(images: str | Path, count: int | None, size: int, seed: int, split: str = "calibration") -> list[Pair]:
    """What a command calls its images: "bundled", of which `split` is taken (see `bundled`), or a folder of pairs or
    photographs (see `folder_pairs`), whose errors are raised here, too."""
    return bundled(split, count, size, seed) if images == "bundled" else folder_pairs(images, count, size, seed)


def require_upscaled_files(files: Iterable[tuple[str, Path, Path]], crop: int = 0) -> None:
    """`require_upscaled` for (name, LR file, HR file), and originals of at least `crop` pixels; by the files' heads."""
    for _, lr, hr in files:
        h, w = picture_size(hr)
        require_upscaled(f"{lr} and {hr}", picture_size(lr), (h, w))
        require_room(hr, h, w, crop)


def require_room(what: str | Path, h: int, w: int, crop: int) -> None:
    """`ValueError` for an image smaller than a crop."""
    if min(h, w) < crop:
        raise ValueError(f"{what} is {w}x{h}, too small for {crop}-pixel crops; use larger pictures.")


def read_pair(name: str, lr: Path, hr: Path) -> Pair:
    """One pair from its two files; `ValueError` if the second is not exactly ×4."""
    pair = Pair(name, read_image(lr), read_image(hr))
    require_upscaled(f"{lr} and {hr}", pair.lr.shape[1:], pair.hr.shape[1:])
    return pair


def _crop_pair(pair: Pair, size: int, rng: np.random.Generator) -> Pair:
    h, w = (min(s, size // UPSCALE) for s in pair.lr.shape[1:])
    y, x = (int(rng.integers(s - t + 1)) for s, t in zip(pair.lr.shape[1:], (h, w)))
    return crop_pair(pair, y, x, h, w)


def crop_pair(pair: Pair, y: int, x: int, h: int, w: int) -> Pair:
    """LR rows [y, y + h) and columns [x, x + w) of a pair, and what of the original they show."""
    hr = pair.hr[:, y * UPSCALE : (y + h) * UPSCALE, x * UPSCALE : (x + w) * UPSCALE].clone()
    return Pair(pair.name, pair.lr[:, y : y + h, x : x + w].clone(), hr)
