"""What things cost, divided into parts, and how good they are, with intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .base import PAGE, PALETTE, drawn, figure, keys, legend, look, require, title
from .results import bands_between

if TYPE_CHECKING:
    from pandas import DataFrame

HATCHES = ("", "////", "....", "\\\\\\\\", "xxxx", "++++")


@drawn
def shares(frame: DataFrame, label: str = "", heading: str = "Who pays for what", width: float = PAGE):
    """Stacked horizontal bars: one bar per row, one segment per column, the sum written at the end.

    Args:
        frame: numbers >= 0; its index names the bars, its columns the segments; missing numbers are 0.
        label: of the horizontal axis; the vertical one is called what the index is called.
        heading, width: title and inches.

    Raises:
        ValueError: no rows.

    Example:
        >>> import pandas as pd
        >>> fig = shares(pd.DataFrame({"unet": [865.8, 0.0], "vae": [0.0, 83.6]}, index=["UNet", "VAE"]))
        >>> len(fig.axes[0].patches)
        4
    """
    require(frame)
    frame = frame.fillna(0)
    fig, axes = figure(width, 0.85 + 0.28 * len(frame))
    ax, left = axes[0, 0], np.zeros(len(frame))
    for i, column in enumerate(frame):
        style = {"color": PALETTE[i % len(PALETTE)], "hatch": HATCHES[i % len(HATCHES)], "edgecolor": "white"}
        ax.barh(range(len(frame)), frame[column], 0.62, left=left, linewidth=0.4, label=str(column), **style)
        left = left + frame[column].to_numpy()
    for y, total in enumerate(left):
        ax.annotate(f"{total:.4g}", (total, y), (3, 0), textcoords="offset points", va="center", fontsize=6.5)
    ax.set_yticks(range(len(frame)), [str(name) for name in frame.index])
    ax.set(
        xlabel=label,
        ylabel=frame.index.name or "",
        ylim=(len(frame) - 0.45, -0.55),
        xlim=(0, 1.12 * max(left.max(), 1e-12)),
    )
    ax.grid(False, axis="y")
    legend(fig, ax.get_legend_handles_labels()[0])
    title(fig, heading)
    return fig


@drawn
def intervals(
    frame: DataFrame,
    groups: str = "bits",
    labels: dict[str, str] | None = None,
    heading: str = "Quality with 95 % confidence intervals",
    width: float = PAGE,
):
    """Means with their confidence intervals: a panel per metric, a group per bits, a mark per method.

    Args:
        frame: one row per method, group and metric: method, `groups`, metric, mean, low, high (see
            `metrics.summary`); metrics without any mean have no panel.
        groups: the column along the x axes.
        labels: metric -> what is written on its axis.
        heading, width: title and inches.

    Raises:
        ValueError: a missing column, or no row has a mean.

    Example:
        >>> import pandas as pd
        >>> row = {"method": "MaxMin", "bits": "W6A6", "metric": "psnr_y", "mean": 25.0, "low": 24.0, "high": 26.0}
        >>> len(intervals(pd.DataFrame([row])).axes)
        1
    """
    require(frame, "method", groups, "metric", "mean", "low", "high")
    frame = frame[frame["mean"].notna()]
    require(frame, "method")
    methods, places, metrics = (keys(frame, column) for column in ("method", groups, "metric"))
    fig, axes = figure(width, 2.4, 1, len(metrics))
    for ax, metric in zip(axes[0], metrics):
        marks = []
        for i, method in enumerate(methods):
            rows = frame[(frame.method == method) & (frame.metric == metric)].set_index(groups)
            shift = (i - (len(methods) - 1) / 2) * 0.7 / len(methods)
            x = [places.index(place) + shift for place in rows.index]
            spread = np.nan_to_num([rows["mean"] - rows.low, rows.high - rows["mean"]]).clip(0)
            style = look(i) | {"linestyle": ""}
            marks.append(ax.errorbar(x, rows["mean"], spread, **style, ms=4, elinewidth=0.8, label=str(method)))
        bands_between(ax, len(places))
        ax.set_xticks(range(len(places)), [str(place) for place in places])
        ax.set(xlabel=groups, ylabel=(labels or {}).get(metric, str(metric)), xlim=(-0.5, len(places) - 0.5))
    legend(fig, marks)
    title(fig, heading)
    return fig
