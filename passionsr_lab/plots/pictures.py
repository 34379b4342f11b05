"""Pictures side by side (PassionSR Figures 2 and 6): one box as every method sees it, or two cut by a line."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..imaging.psnr import psnr_rgb
from .base import COLUMN, PAGE, drawn, figure
from .colours import ACCENT
from .texts import title_lines, wrapped

GAP, LINE, TITLE = 0.06, 0.105, 0.2  # inches: between pictures, a line under one, a line above all
READABLE = 1.35  # inches: as wide as what is written under the whole picture


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
        box: (x, y, width, height) in pixels of the reference, inside it; it is also written under the whole picture.
        reference: the picture that is shown whole and that PSNR is taken against; "HR" or else the first.
        scores: name -> number in dB, or text, shown under each crop; by default the PSNR over all RGB values of the
            whole picture, for pictures of the reference's size.
        rows: of crops; by default as few as leave the whole picture wide enough for what is written under it.
    """
    pictures, box = {name: as_picture(image) for name, image in images.items()}, Box(*box)
    name = reference or ("HR" if "HR" in pictures else next(iter(pictures), ""))
    if name not in pictures:
        raise ValueError(f"There is no picture called {name!r}; there are {', '.join(pictures) or 'none'}.")
    whole = pictures[name]
    crops = [_crop(key, picture, whole, box) for key, picture in pictures.items()]
    numbers = [_number(key, picture, name, whole, scores) for key, picture in pictures.items()]
    shapes = (width, whole.shape[0] / whole.shape[1], box.height / box.width, len(crops))
    rows, (_, crop, *_) = _fitting(shapes, rows)
    written = ["\n".join([*wrapped(key, 19 * crop), number]) for key, number in zip(pictures, numbers)]
    under, top = LINE * max(text.count("\n") + 1 for text in written) + 0.03, TITLE * len(title_lines(heading, width))
    cols, crop, tall, across, height = _layout(*shapes, rows, under)
    fig, _ = figure(heading, width, height + under + top + GAP, 0)
    _draw_whole(axes_at(fig, GAP, top, across, height), whole, name, box)
    for i, (picture, text) in enumerate(zip(crops, written)):
        x, y = across + 2 * GAP + i % cols * (crop + GAP), top + i // cols * (tall + under + GAP)
        _frame(axes_at(fig, x, y, crop, tall), picture, ACCENT, text)
    return fig


def axes_at(fig, x: float, y: float, width: float, height: float):
    """Axes at a place in inches from the figure's upper left corner."""
    across, total = fig.get_size_inches()
    return fig.add_axes((x / across, 1 - (y + height) / total, width / across, height / total))


def _crop(name: str, picture: np.ndarray, whole: np.ndarray, box: Box) -> np.ndarray:
    """The box's content, (height, width, 3); a smaller picture is enlarged by repeating its pixels."""
    (height, width), (h, w), times = whole.shape[:2], picture.shape[:2], whole.shape[0] // picture.shape[0]
    if not (0 <= box.x < box.x + box.width <= width and 0 <= box.y < box.y + box.height <= height):
        raise ValueError(f"The box {tuple(box)} (x, y, width, height) leaves the {width}x{height} picture.")
    if (h * times, w * times) != (height, width):
        raise ValueError(f"{name!r} has {w}x{h} pixels, which is no whole fraction of {width}x{height}.")
    large = picture.repeat(times, 0).repeat(times, 1)
    return large[box.y : box.y + box.height, box.x : box.x + box.width]


def _number(key: str, picture: np.ndarray, reference: str, whole: np.ndarray, scores) -> str:
    if scores is not None:
        score = scores.get(key, "")
        return score if isinstance(score, str) else f"{score:.2f} dB"
    if picture.shape != whole.shape:
        return ""
    return "PSNR to this" if key == reference else f"{psnr_rgb(*map(torch.from_numpy, (picture, whole))):.2f} dB"


def _layout(width: float, ratio: float, crop_ratio: float, count: int, rows: int, under: float) -> tuple:
    """(columns, width and height of a crop, width and height of the whole), inches, such that pictures fill axes.

    Ratios are height to width; `under` is what is written under a crop.
    """
    cols, texts = math.ceil(count / rows), (rows - 1) * (under + GAP)  # the whole picture is that much taller
    crop = (width - (cols + 2) * GAP - texts / ratio) / (rows * crop_ratio / ratio + cols)
    height = rows * crop * crop_ratio + texts
    return cols, crop, crop * crop_ratio, height / ratio, height


def _fitting(shapes: tuple, rows: int | None) -> tuple[int, tuple]:
    """The fewest rows of crops that leave the whole picture readable, and their layout."""
    for count in [rows] if rows else range(1, shapes[-1] + 1):
        layout = _layout(*shapes, count, 2 * LINE)
        if layout[3] >= READABLE:
            break
    if layout[1] < 0.2:
        raise ValueError(f"{shapes[-1]} crops in {count} rows do not fit; choose other rows or a wider figure.")
    return count, layout


def _draw_whole(ax, whole: np.ndarray, name: str, box: Box) -> None:
    from matplotlib.patches import Rectangle

    corner, (height, width) = (box.x - 0.5, box.y - 0.5), whole.shape[:2]  # pixel i spans i - 0.5 to i + 0.5
    where = f"box: {box.width}×{box.height} px at ({box.x}, {box.y})"
    _frame(ax, whole, "black", f"{name}, {width}×{height} px\n{where}")
    for color, line in (("white", 2.6), (ACCENT, 1.2)):  # seen on a picture of any colour
        ax.add_patch(Rectangle(corner, box.width, box.height, fill=False, edgecolor=color, linewidth=line))


def _frame(ax, picture: np.ndarray, color: str, text: str) -> None:
    ax.imshow(picture, vmin=0, vmax=1, interpolation="antialiased", aspect="auto")
    ax.set(xticks=[], yticks=[], xlabel=text)
    ax.grid(False)
    ax.spines[:].set(visible=True, color=color, linewidth=1.2 if color == ACCENT else 0.4)


@drawn
def split(
    before,
    after,
    at: float = 0.5,
    names: tuple[str, str] = ("before", "after"),
    heading: str | None = None,
    width: float = COLUMN,
):
    """`before` left of a line and `after` right of it; both names stand below, each on its own side.

    Args:
        before, after: pictures of one size in [0, 1]: tensors (3, H, W), arrays, or PIL images; else `ValueError`.
        at: where the line is, 0 (all `after`) to 1 (all `before`), or else `ValueError`.
        names: of the two; may hold a number each ("MaxMin, 24.1 dB").
        heading: by default the two names.
    """
    left, right = as_picture(before), as_picture(after)
    if left.shape != right.shape:
        raise ValueError(f"The two pictures must have one size, not {left.shape[:2]} and {right.shape[:2]}.")
    if not 0 <= at <= 1:
        raise ValueError(f"The line is between 0 and 1, not at {at}.")
    heading = f"Left of the line {names[0]}, right of it {names[1]}" if heading is None else heading
    tall, column = width * left.shape[0] / left.shape[1], round(at * left.shape[1])
    top = TITLE * max(2, len(title_lines(heading, width)))  # other names move nothing
    fig, _ = figure(heading, width, top + tall + 2 * LINE, 0)
    ax, whole = axes_at(fig, 0, top, width, tall), right.copy()
    whole[:, :column] = left[:, :column]
    ax.imshow(whole, vmin=0, vmax=1, interpolation="nearest", aspect="auto")
    for color, line in (("white", 2.6), (ACCENT, 1.2)):  # seen on a picture of any colour
        ax.axvline(column - 0.5, color=color, linewidth=line)
    for x, text, side in ((0.01, f"◀ {names[0]}", "left"), (0.99, f"{names[1]} ▶", "right")):
        ax.text(x, -0.02, text, ha=side, va="top", transform=ax.transAxes)
    ax.set_axis_off()
    return fig
