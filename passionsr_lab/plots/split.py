"""One picture cut by a line: one version of it on the left, another on the right."""

from __future__ import annotations

from .base import COLUMN, drawn, figure, title_lines
from .colours import ACCENT
from .pictures import LINE, TITLE, as_picture, axes_at


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
