"""Plain curves of one column against another, and maps of one number per pixel on a shared scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from .base import ACCENT, COLUMN, GREY, PAGE, drawn, figure, keys, legend, log_axis, look, require, title, wrapped

if TYPE_CHECKING:
    from pandas import DataFrame


@drawn
def curves(
    frame: DataFrame,
    x: str,
    y: str,
    by: str | None = None,
    labels: tuple[str, str] = ("", ""),
    heading: str = "",
    log: Sequence[str] = (),
    mark: float | None = None,
    width: float = COLUMN,
):
    """One curve of `y` against `x` for every value of the column `by`.

    Args:
        frame: one row per point.
        labels: of the two axes, with units; by default the columns' names.
        heading, width: title and inches.
        log: which of "x" and "y" are logarithmic; values that are not positive are left out there.
        mark: an x at which a vertical line is drawn.

    Raises:
        ValueError: a missing column or no rows.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"bits": [2, 4, 2, 4], "db": [6, 18, 8, 20], "method": ["a", "a", "b", "b"]})
        >>> [text.get_text() for text in curves(frame, "bits", "db", "method").legends[0].texts]
        ['a', 'b']
    """
    require(frame, x, y, *([by] if by else []))
    fig, axes = figure(width, 2.2)
    ax, lines, every = axes[0, 0], [], keys(frame, by) if by else [None]
    for i, key in enumerate(every):
        own = frame if by is None else frame[frame[by] == key]
        above = len(every) - 1 - i  # curves that may lie on this one: its hollow marks show around theirs
        style = look(i) | ({"marker": ""} if len(own) > 40 else {"ms": 3 + 1.5 * above})
        style |= {"mfc": "none"} if above else {}
        lines += ax.plot(own[x], own[y], **style, label=str(key))
    for name in log:
        log_axis(getattr(ax, f"{name}axis"))
    if mark is not None:
        ax.axvline(mark, color=ACCENT, linewidth=0.8, linestyle="--", zorder=1)
    ax.set(xlabel=labels[0] or x, ylabel=labels[1] or y)
    if by:
        legend(fig, lines)
    title(fig, heading or f"{labels[1] or y} against {labels[0] or x}")
    return fig


@drawn
def maps(arrays: Mapping[str, np.ndarray], label: str, heading: str, floor: float | None = None, width: float = PAGE):
    """Numbers per pixel side by side, on one colour scale, with each map's largest value under it.

    Args:
        arrays: name -> (H, W).
        label: what the numbers are, with their unit.
        heading, width: title and inches.
        floor: the smallest value shown on a logarithmic scale; None makes the scale linear.

    Raises:
        ValueError: there are no arrays, or one is not two-dimensional.

    Example:
        >>> fig = maps({"a": np.eye(3), "b": np.zeros((3, 3))}, "error", "Two errors")
        >>> [ax.get_title("left") for ax in fig.axes[:2]]
        ['a:\\nat most 1', 'b:\\nat most 0']
    """
    from matplotlib.colors import LogNorm, Normalize

    arrays = {name: np.asarray(a, float) for name, a in arrays.items()}
    if not arrays or any(a.ndim != 2 for a in arrays.values()):
        raise ValueError("Maps are (H, W) arrays, at least one.")
    top = max(a.max() for a in arrays.values()) or 1.0
    norm = Normalize(0, top) if floor is None else LogNorm(floor, max(top, 10 * floor))
    fig, axes = figure(width, 0.85 * width / len(arrays) + 0.3, 1, len(arrays))
    for ax, (name, array) in zip(axes[0], arrays.items()):
        mesh = ax.imshow(array if floor is None else np.maximum(array, floor), norm=norm, interpolation="nearest")
        ax.set(xticks=[], yticks=[])
        lines = wrapped(f"{name}:", 0.8 * width / len(arrays))
        ax.set_title("\n".join([*lines, f"at most {array.max():.2g}"]))
        ax.spines[:].set(visible=True, color=GREY, linewidth=0.4)
    fig.colorbar(mesh, ax=list(axes[0]), label=label, pad=0.02, shrink=0.9).outline.set_linewidth(0.4)
    title(fig, heading)
    return fig
