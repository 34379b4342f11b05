"""Picture files and PIL images as their makers meant them: upright, in the stated range, of a size that can be held."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

# The suffixes and Pillow's name of their formats; files are known by their content, folders are searched by suffix.
SUFFIXES = {
    ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".jfif": "JPEG", ".bmp": "BMP", ".tif": "TIFF", ".tiff": "TIFF",
    ".webp": "WEBP", ".gif": "GIF", ".jp2": "JPEG2000",
}  # fmt: skip
MAX_PIXELS = 2**26  # of a picture: 805 MB in float32
ORIENTATION, BITS, PHOTOMETRIC, SAMPLE_FORMAT, LOWEST, HIGHEST = 274, 258, 262, 339, 340, 341  # tags of EXIF and TIFF

_reading = threading.RLock()  # `catch_warnings` changes what all threads share


@contextmanager
def opened(path: str | Path) -> Iterator[Image.Image]:
    """A picture file as a PIL image whose pixels are not decoded yet; errors within the block name the file, too.

    Raises:
        ValueError: it is missing, no regular file, damaged, of several pictures, or has over `MAX_PIXELS` pixels.
    """
    try:
        if not Path(path).exists():
            raise FileNotFoundError
        if not Path(path).is_file():
            raise OSError("it is no regular file")
        with _reading, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of damaged metadata
            with Image.open(path, formats=sorted(set(SUFFIXES.values()))) as image:
                require_size(*image.size)
                if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:  # a phone's MPO begins with the picture
                    raise ValueError(f"It holds {image.n_frames} pictures; save the one that is meant alone.")
                yield image
    except FileNotFoundError:
        raise ValueError(f"There is no image at {path}.") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    except Exception as error:  # Pillow's readers raise every kind
        reason = getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} cannot be read as an image ({reason}); replace or remove it.") from None


def require_intact(path: str | Path) -> None:
    """`ValueError` for a PNG whose checksums tell that it is damaged: Pillow decodes it all the same."""
    with opened(path) as image:
        if image.format == "PNG":
            image.verify()


def require_size(width: int, height: int) -> None:
    """`ValueError` for more than `MAX_PIXELS` pixels."""
    if width * height > MAX_PIXELS:
        raise ValueError(
            f"The image has {width}x{height} = {width * height:,} pixels, more than {MAX_PIXELS:,}; cut or reduce it."
        )


def picture_size(path: str | Path) -> tuple[int, int]:
    """(height, width) of a picture file as `read_image` gives it, from its head alone; errors as there."""
    with opened(path) as image:
        width, height = image.size
        turned = orientation(image) >= 5 and image.format != "TIFF"  # Pillow turns TIFFs itself
    return (width, height) if turned else (height, width)


def orientation(image: Image.Image) -> int:
    """EXIF's number, 1 for upright; damaged metadata of a sound picture says nothing."""
    try:
        found = image.getexif().get(ORIENTATION, 1)
    except Exception:
        return 1
    return found if found in range(1, 9) else 1


def upright(image: Image.Image) -> Image.Image:
    """The picture turned as its EXIF orientation says."""
    return image if orientation(image) == 1 else ImageOps.exif_transpose(image)


def grey(image: Image.Image) -> np.ndarray | None:
    """(h, w) float32, 0 black and 1 white, of a picture of one channel of more than 8 bits; None for any other.

    Floating point runs from 0 to 1 and whole numbers over their bits, unless a TIFF states another range.

    Raises:
        ValueError: whole numbers of 32 bits that state no range.
    """
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return None
    tags, values = getattr(image, "tag_v2", {}), np.asarray(upright(image)).astype(np.float32)
    low, high = 0.0, 1.0 if image.mode == "F" else 65535.0
    if HIGHEST in tags:
        low, high = (float(np.ravel(tags.get(tag, 0))[0]) for tag in (LOWEST, HIGHEST))
    elif image.mode != "F":
        bits, signed = tags.get(BITS, (16,))[0], tags.get(SAMPLE_FORMAT, (1,))[0] == 2
        if bits > 16 or signed or (image.mode == "I" and 0 < values.max(initial=0) <= 255):
            raise ValueError("The image holds whole numbers whose range it does not state; save it in 8 or 16 bits.")
        high = 2.0**bits - 1
    scaled = (values - np.float32(low)) / np.float32(high - low)
    return 1 - scaled if tags.get(PHOTOMETRIC) == 0 else scaled
