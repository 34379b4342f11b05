"""One picture cut by a line: one version of it on the left, another on the right."""

from __future__ import annotations

from .base import ACCENT, COLUMN, drawn, figure_without_axes, title, wrapped
from .pictures import CAPTION, TITLE, as_picture


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
        before, after: pictures of one size in [0, 1]: tensors (3, H, W), arrays, or PIL images.
        at: where the line is, 0 (all `after`) to 1 (all `before`).
        names: of the two; may hold a number each ("MaxMin, 24.1 dB").
        heading: the figure's title; by default the two names.
        width: inches.

    Raises:
        ValueError: the sizes differ, or `at` is outside [0, 1].

    Example:
        >>> import torch
        >>> fig = split(torch.zeros(3, 8, 8), torch.ones(3, 8, 8), at=0.25, names=("black", "white"))
        >>> [text.get_text() for text in fig.axes[0].texts]
        ['◀ black', 'white ▶']
    """
    left, right = as_picture(before), as_picture(after)
    if left.shape != right.shape:
        raise ValueError(f"The two pictures must have one size, not {left.shape[:2]} and {right.shape[:2]}.")
    if not 0 <= at <= 1:
        raise ValueError(f"The line is between 0 and 1, not at {at}.")
    heading = f"Left of the line {names[0]}, right of it {names[1]}" if heading is None else heading
    (height, across), top = left.shape[:2], TITLE * max(2, len(wrapped(heading, width)))  # other names move nothing
    tall = width * height / across
    fig, total = figure_without_axes(width, tall + CAPTION + top), tall + CAPTION + top
    ax, column = fig.add_axes((0, CAPTION / total, 1, tall / total)), round(at * across)
    whole = right.copy()
    whole[:, :column] = left[:, :column]
    ax.imshow(whole, vmin=0, vmax=1, interpolation="nearest", aspect="auto")
    for color, line in (("white", 2.6), (ACCENT, 1.2)):  # seen on a picture of any colour
        ax.axvline(column - 0.5, color=color, linewidth=line)
    for x, text, side in ((0.01, f"◀ {names[0]}", "left"), (0.99, f"{names[1]} ▶", "right")):
        ax.text(x, -0.02, text, ha=side, va="top", transform=ax.transAxes)
    ax.set_axis_off()
    title(fig, heading)
    return fig
