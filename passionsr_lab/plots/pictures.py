"""The visual comparison (PassionSR Figures 2 and 6): one picture, one box, and that box as every method sees it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from torch import Tensor

from .base import ACCENT, PAGE, drawn, figure_without_axes, title, wrapped

GAP, CAPTION, TITLE = 0.06, 0.24, 0.2  # inches: between pictures, the two lines under one, a line above all
READABLE = 1.35  # inches: as wide as the caption of the whole picture


class Box(NamedTuple):
    """A rectangle in pixels of the largest picture; (x, y) is its upper left corner."""

    x: int
    y: int
    width: int
    height: int


def as_picture(image) -> np.ndarray:
    """(H, W, 3) in [0, 1] from a tensor (3, H, W), an array of either layout, or a PIL image."""
    if isinstance(image, Tensor):
        image = image.detach().cpu().float().numpy()
        image = image[0] if image.ndim == 4 and len(image) == 1 else image
    x = np.asarray(image)
    x = x / 255 if x.dtype == np.uint8 else x
    if x.ndim == 3 and x.shape[-1] != 3 and x.shape[0] == 3:
        x = np.moveaxis(x, 0, -1)
    if x.ndim != 3 or x.shape[-1] != 3:
        raise ValueError(f"A picture has the shape (3, H, W) or (H, W, 3), not {x.shape}.")
    return np.clip(x, 0, 1)


def psnr_rgb(x: np.ndarray, y: np.ndarray) -> float:
    """PSNR (dB) over all RGB values of two pictures of one shape."""
    return -10 * math.log10(max(np.square(x - y).mean(), 1e-10))


@drawn
def comparison(
    images: Mapping[str, object],
    box: tuple[int, int, int, int],
    reference: str | None = None,
    scores: Mapping[str, float | str] | None = None,
    heading: str = "Visual comparison",
    width: float = PAGE,
    rows: int | None = None,
):
    """The reference picture with a box drawn in it, and beside it the box's content in every picture.

    Args:
        images: name -> picture in [0, 1]: tensor (3, H, W), array, or PIL image.  Smaller pictures (LR) have a whole
            fraction of the reference's size; their pixels are shown as blocks.
        box: (x, y, width, height) in pixels of the reference; it is also written under the whole picture.
        reference: the picture that is shown whole and that PSNR is taken against; "HR" or else the first.
        scores: name -> number in dB, or text, shown under each crop; by default the PSNR over all RGB values of the
            whole picture, for pictures of the reference's size.
        heading: the figure's title.
        width: inches.
        rows: of crops; by default as few as leave the whole picture wide enough for its caption.

    Raises:
        ValueError: the box leaves the picture, a shape does not fit, or the reference is missing.

    Example:
        >>> hr = np.random.default_rng(0).random((32, 48, 3))
        >>> fig = comparison({"HR": hr, "LR": hr[::4, ::4]}, (8, 4, 16, 12))
        >>> [ax.get_xlabel() for ax in fig.axes]
        ['HR, 48×32 px\\nbox: 16×12 px at (8, 4)', 'HR\\nPSNR', 'LR\\n ']
    """
    pictures, box = {name: as_picture(image) for name, image in images.items()}, Box(*box)
    name = reference or ("HR" if "HR" in pictures else next(iter(pictures), ""))
    if name not in pictures:
        raise ValueError(f"There is no picture called {name!r}; there are {', '.join(pictures) or 'none'}.")
    whole = pictures[name]
    _check(box, whole)
    crops = {key: _crop(key, picture, whole, box) for key, picture in pictures.items()}
    captions = {key: _caption(key, picture, name, whole, scores) for key, picture in pictures.items()}
    shape = _shape(width, whole, box, len(crops), [rows] if rows else range(1, len(crops) + 1))
    fig, whole_ax, crop_axes = _canvas(width, whole, box, *shape, TITLE * len(wrapped(heading, width)))
    _draw_whole(whole_ax, whole, name, box)
    for ax, (key, crop) in zip(crop_axes, crops.items()):
        _frame(ax, crop, ACCENT)
        ax.set_xlabel(f"{key}\n{captions[key]}")
    for ax in crop_axes[len(crops) :]:
        ax.remove()
    title(fig, heading)
    return fig


def _check(box: Box, picture: np.ndarray) -> None:
    height, width = picture.shape[:2]
    inside = 0 <= box.x < box.x + box.width <= width and 0 <= box.y < box.y + box.height <= height
    if not inside:
        raise ValueError(f"The box {tuple(box)} (x, y, width, height) leaves the {width}x{height} picture.")


def _crop(name: str, picture: np.ndarray, whole: np.ndarray, box: Box) -> np.ndarray:
    """The box's content, (height, width, 3); a smaller picture is enlarged by repeating its pixels."""
    times = whole.shape[0] // picture.shape[0]
    if (picture.shape[0] * times, picture.shape[1] * times) != whole.shape[:2]:
        (h, w), (height, width) = picture.shape[:2], whole.shape[:2]
        raise ValueError(f"{name!r} has {w}x{h} pixels, which is no whole fraction of {width}x{height}.")
    large = picture.repeat(times, 0).repeat(times, 1)
    return large[box.y : box.y + box.height, box.x : box.x + box.width]


def _caption(key: str, picture: np.ndarray, reference: str, whole: np.ndarray, scores) -> str:
    if scores is not None and key in scores:
        return scores[key] if isinstance(scores[key], str) else f"{scores[key]:.2f} dB"
    if scores is not None or picture.shape != whole.shape:
        return " "
    return "PSNR" if key == reference else f"{psnr_rgb(picture, whole):.2f} dB"


def _shape(width: float, whole: np.ndarray, box: Box, count: int, choices) -> tuple[int, int, float]:
    """(rows, columns, a crop's width in inches) such that every picture fills its axes."""
    tall, crop_tall = whole.shape[0] / whole.shape[1], box.height / box.width
    for rows in choices:
        cols, captions = math.ceil(count / rows), (rows - 1) * (CAPTION + GAP)  # the whole picture is that much taller
        crop = (width - (cols + 2) * GAP - captions / tall) / (rows * crop_tall / tall + cols)
        if (rows * crop * crop_tall + captions) / tall >= READABLE or rows == choices[-1]:
            break
    if crop < 0.2:
        raise ValueError(
            f"{count} crops in {rows} rows do not fit beside the picture; choose other rows or a wider figure."
        )
    return rows, cols, crop


def _canvas(width: float, whole: np.ndarray, box: Box, rows: int, cols: int, crop: float, top: float):
    """(figure, axes of the whole picture, axes of the crops)."""
    tall = crop * box.height / box.width
    step = tall + CAPTION + GAP
    height = rows * step - CAPTION - GAP
    across = height * whole.shape[1] / whole.shape[0]
    total = height + CAPTION + top + GAP
    fig = figure_without_axes(width, total)

    def axes(x, y, w, h):
        return fig.add_axes((x / width, 1 - (top + y + h) / total, w / width, h / total))

    places = [(across + 2 * GAP + c * (crop + GAP), r * step) for r in range(rows) for c in range(cols)]
    return fig, axes(GAP, 0, across, height), [axes(x, y, crop, tall) for x, y in places]


def _draw_whole(ax, whole: np.ndarray, name: str, box: Box) -> None:
    from matplotlib.patches import Rectangle

    _frame(ax, whole, "black")
    corner, (height, width) = (box.x - 0.5, box.y - 0.5), whole.shape[:2]  # pixel i spans i - 0.5 to i + 0.5
    for color, line in (("white", 2.6), (ACCENT, 1.2)):  # seen on a picture of any colour
        ax.add_patch(Rectangle(corner, box.width, box.height, fill=False, edgecolor=color, linewidth=line))
    ax.set_xlabel(f"{name}, {width}×{height} px\nbox: {box.width}×{box.height} px at ({box.x}, {box.y})")


def _frame(ax, picture: np.ndarray, color: str) -> None:
    ax.imshow(picture, vmin=0, vmax=1, interpolation="antialiased", aspect="auto")
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    ax.spines[:].set(visible=True, color=color, linewidth=1.2 if color == ACCENT else 0.4)
