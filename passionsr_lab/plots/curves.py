"""Plain curves of one column against another, and maps of one number per pixel on a shared scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from .base import COLUMN, FEW, PAGE, colour_bar, drawn, figure, keys, log_axis, name_lines, require
from .colours import ACCENT, GREY, looks
from .texts import wrapped

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
    joined: bool = True,
    width: float = COLUMN,
):
    """One curve of `y` against `x` for every value of the column `by`; several rows of one x are its seeds.

    Args:
        frame: one row per point; of several with the same x the mean is drawn, and a band of one standard deviation.
        labels: of the two axes, with units; by default the columns' names.
        log: which of "x" and "y" are logarithmic; values that are not positive are left out there.
        mark: an x at which a vertical line is drawn.
        joined: False for points that have no order: every row is a mark, no line joins them.
    """
    require(frame, x, y, *([by] if by else []))
    labels, every, lines = (labels[0] or x, labels[1] or y), keys(frame, by) if by else [y], []
    fig, axes = figure(heading or f"{labels[1]} against {labels[0]}", width, 2.2)
    ax = axes[0, 0]
    on_it = reversed(range(len(every))) if len(every) <= FEW else [0] * len(every)  # so many rings would hide all
    for above, key, style in zip(on_it, every, looks(by, every)):
        own = frame if by is None else frame[frame[by] == key]
        style |= {} if joined else {"linestyle": "none"}
        lines.append(draw_curve(ax, own, joined and own[x].duplicated().any(), x, y, style, str(key), above))
    for name in log:
        log_axis(getattr(ax, f"{name}axis"))
    if mark is not None:
        ax.axvline(mark, color=ACCENT, linewidth=0.8, linestyle="--", zorder=1)
    ax.set(xlabel=labels[0], ylabel=labels[1])
    if by:
        name_lines(ax, lines)
    return fig


def draw_curve(ax, own: DataFrame, seeds: bool, x: str, y: str, style: dict, label: str, above: int = 0):
    """The line of one curve: with `seeds` the mean of several values per x, in a band of one standard deviation.

    `above` curves may lie on this one: its marks are hollow and larger, so that they show around theirs.
    """
    many = style["linestyle"] != "none" and own[x].nunique() > 40
    style = style | ({"marker": ""} if many else {"ms": 3 + 1.5 * above}) | ({"mfc": "none"} if above else {})
    if not seeds:
        return ax.plot(own[x], own[y], **style, label=label)[0]
    import seaborn

    style |= {"mec": style["color"], "label": label, "legend": False}
    seaborn.lineplot(own, x=x, y=y, errorbar="sd", **style, ax=ax)
    return ax.lines[-1]


@drawn
def maps(arrays: Mapping[str, np.ndarray], label: str, heading: str, floor: float | None = None, width: float = PAGE):
    """Numbers per pixel side by side, on one colour scale, with each map's largest value over it.

    Args:
        arrays: name -> (H, W); `ValueError` for none, or another shape.
        label: what the numbers are, with their unit.
        floor: the smallest value shown on a logarithmic scale; None makes the scale linear.
    """
    import seaborn
    from matplotlib.colors import LogNorm, Normalize

    arrays = {name: np.asarray(a, float) for name, a in arrays.items()}
    if not arrays or any(a.ndim != 2 for a in arrays.values()):
        raise ValueError("Maps are (H, W) arrays, at least one.")
    top = max(a.max() for a in arrays.values()) or 1.0
    norm = Normalize(0, top) if floor is None else LogNorm(floor, max(top, 10 * floor), clip=True)
    fig, axes = figure(heading, width, 0.85 * width / len(arrays) + 0.3, 1, len(arrays))
    for ax, (name, array) in zip(axes[0], arrays.items()):
        seaborn.heatmap(array, norm=norm, cmap="cividis", cbar=False, square=True, rasterized=True, ax=ax)
        ax.set(xticks=[], yticks=[])
        ax.set_title("\n".join([*wrapped(f"{name}:", 13 * width / len(arrays)), f"at most {array.max():.2g}"]))
        ax.spines[:].set(visible=True, color=GREY, linewidth=0.4)
    colour_bar(axes[0, 0].collections[0], list(axes[0]), label)
    return fig
