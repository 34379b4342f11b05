"""Methods beside each other in every group of bits: a mark each, with its interval over seeds or pictures."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .base import COLUMN, PAGE, drawn, figure, keys, name_lines, require
from .colours import PALE, method_look

if TYPE_CHECKING:
    from pandas import DataFrame


@drawn
def ablation(
    frame: DataFrame,
    value: str = "psnr_fp",
    groups: str = "recipe",
    label: str = "PSNR against full precision (dB)",
    heading: str = "Ablation: method and bits",
    width: float = COLUMN,
):
    """Mean and standard deviation over seeds for every method, beside each other in every group of bits.

    Args:
        frame: one row per run: method, `groups` (e.g. W8A8, W6A6), `value`; the rows of one method and group are its
            seeds, each a small dot; a single one has no deviation.
        value, label: the column that is drawn and what is written on its axis.
        groups: the column along the x axis.
    """
    require(frame, "method", groups, value)
    fig, axes = figure(heading, width, 2.3)
    ax, seeds = axes[0, 0], frame.groupby(["method", groups], observed=True)[value].transform("count")
    name_lines(ax, draw_points(ax, frame, groups, value, "sd", frame[seeds > 1]))
    ax.set(xlabel=groups.replace("_", " "), ylabel=label)
    ax.set_title(f"mean ± standard deviation of {seeds.max()} seeds (dots)" if seeds.max() > 1 else "one seed (n = 1)")
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
            `scores.summary`); metrics without any mean have no panel, means without low and high no interval.
        groups: the column along the x axes.
        labels: metric -> what is written on its axis.
    """
    require(frame, "method", groups, "metric", "mean", "low", "high")
    frame = frame[frame["mean"].notna()]
    require(frame, "method")
    metrics = keys(frame, "metric")
    fig, axes = figure(heading, width, 2.4, 1, len(metrics))
    for ax, metric in zip(axes[0], metrics):
        rows = frame[frame.metric == metric].melt(["method", groups], ["mean", "low", "high"])
        lines = draw_points(ax, rows, groups, "value", lambda v: tuple(v.iloc[1:]), estimator=lambda v: v.iloc[0])
        ax.set(xlabel=groups, ylabel=(labels or {}).get(metric, str(metric)))
    name_lines(axes[0, -1], lines)
    return fig


def draw_points(
    ax, frame: DataFrame, groups: str, value: str, interval: Callable | str, seeds=None, estimator="mean"
) -> list:
    """A mark per method in every group, with its `interval` where there are several values, and `seeds` as dots."""
    import seaborn

    methods, places = keys(frame, "method"), keys(frame, groups)
    looks = [method_look(str(method)) for method in methods]
    shared = {
        "x": groups,
        "y": value,
        "order": places,
        "hue": "method",
        "hue_order": methods,
        "legend": False,
        "ax": ax,
    }
    shared["palette"] = [look["color"] for look in looks]
    style = {"markers": [look["marker"] for look in looks], "linestyle": "none", "ms": 4, "mew": 0.6}
    style |= {"dodge": 0.8 - 0.8 / len(methods), "err_kws": {"linewidth": 0.8}}
    seaborn.pointplot(frame, **shared, **style, errorbar=interval, estimator=estimator)
    lines = [line for line in ax.lines if line.get_marker() != "None"]
    for line, method in zip(lines, methods):
        line.set_label(str(method))
    if seeds is not None and len(seeds):
        seaborn.stripplot(seeds, **shared, dodge=True, jitter=False, size=2, alpha=0.6)
    for i in range(0, len(places), 2):
        ax.axvspan(i - 0.5, i + 0.5, color=PALE, zorder=0, linewidth=0)
    ax.grid(False, axis="x")
    ax.tick_params("x", length=0)
    ax.set_xlim(-0.5, len(places) - 0.5)
    return lines
