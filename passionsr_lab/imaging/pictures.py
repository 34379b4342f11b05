"""Pictures in and out: RGB float32 tensors in [0, 1], shape (3, H, W), from files and PIL images and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..util.files import replacing
from .decoding import SUFFIXES, grey, opened, require_intact, require_size, upright

UPSCALE = 4
QUALITY = {"JPEG": {"quality": 95}, "WEBP": {"quality": 95}}  # of the formats that lose something
LARGEST = {"JPEG": 65_535, "GIF": 65_535, "WEBP": 16_383}  # pixels of an edge


def to_tensor(image: Image.Image | Tensor) -> Tensor:
    """Any picture as RGB float32 in [0, 1].

    Grey, palette, RGBA (alpha is dropped) and 16-bit PIL images become (3, H, W), turned upright as their EXIF says;
    tensors keep their shape, (3, H, W) or (B, 3, H, W).  Raises `ValueError` for other shapes, integer tensors, values
    outside [0, 1], NaN, and PIL images that `decoding` refuses.

    Example:
        >>> from PIL import Image
        >>> to_tensor(Image.new("L", (5, 3), 255)).shape
        torch.Size([3, 3, 5])
    """
    if isinstance(image, Image.Image):
        require_size(*image.size)
        deep = grey(image)
        if deep is not None:
            return _checked(torch.from_numpy(deep).expand(3, -1, -1).clone())
        pixels = torch.from_numpy(np.array(upright(image).convert("RGB")))  # (H, W, 3)
        return pixels.permute(2, 0, 1).contiguous().float().div_(255)
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
    """A picture file as (3, H, W) in [0, 1]; `ValueError` in one sentence that names it for all that is refused."""
    require_intact(path)
    with opened(path) as image:
        return to_tensor(image)


def colour_profile(path: str | Path) -> bytes | None:
    """The ICC profile of a picture file, where `read_image` takes its numbers as they are: of RGB pictures."""
    with opened(path) as image:
        return image.info.get("icc_profile") if image.mode == "RGB" else None


def write_image(image: Image.Image, path: str | Path) -> None:
    """Writes a picture, with its colour profile, in the format of the path's suffix; never half of a file.

    Raises `ValueError` as `writable_format` does, and `OSError` with the path where it cannot be written.
    """
    kind = writable_format(path, image.size)
    profile = {"icc_profile": image.info["icc_profile"]} if image.info.get("icc_profile") else {}
    with replacing(path) as temporary:
        image.save(temporary, kind, **QUALITY.get(kind, {}), **profile)


def writable_format(path: str | Path, size: tuple[int, int] = (1, 1)) -> str:
    """Pillow's name of the format in which a picture of `size` (width, height) is written there.

    Raises `ValueError` for a folder, a device, a suffix that no picture has, and a format that holds no such size.
    """
    path = Path(path)
    kind = SUFFIXES.get(path.suffix.lower())
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is {'a folder' if path.is_dir() else 'no plain file'}; name a picture to write.")
    if kind is None:
        raise ValueError(f"{path} has an unknown file extension; a picture ends in {', '.join(SUFFIXES)}.")
    if max(size) > LARGEST.get(kind, max(size)):
        raise ValueError(f"{path}: a {size[0]}x{size[1]} picture is too large for {path.suffix}; write a .png.")
    return kind


def image_files(folder: str | Path) -> list[Path]:
    """The picture files directly in `folder`, sorted by name: regular files that are not hidden, by their suffix.

    Raises `ValueError` if there are none.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder.")
    files = sorted(p for p in folder.iterdir() if _is_picture(p))
    if not files:
        rest = left_out(folder)
        there = f", but {', '.join(rest[:3])}{' ...' * (len(rest) > 3)}" if rest else ""
        raise ValueError(f"{folder} holds no images ({', '.join(SUFFIXES)}){there}.")
    return files


def left_out(folder: str | Path) -> list[str]:
    """The names in `folder` that `image_files` does not take, without hidden ones: to be told."""
    return sorted(p.name for p in Path(folder).iterdir() if not p.name.startswith(".") and not _is_picture(p))


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def upsample(x: Tensor, scale: int = UPSCALE) -> Tensor:
    """Bicubic ×`scale` (a = -0.5, as PIL's) of (B, 3, H, W), clamped to [0, 1]."""
    return F.interpolate(x, scale_factor=scale, mode="bicubic", antialias=True).clamp(0, 1)
