"""What quantization costs: error along the network, sensitive layers, the ablation (PassionSR Table 4 as a picture)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .base import ACCENT, COLUMN, GREY, PAGE, PALETTE, drawn, figure, keys, legend, look, require, title
from .ranges import modules_of, network_axis

if TYPE_CHECKING:
    from pandas import DataFrame


@drawn
def propagation(
    frame: DataFrame,
    floor: float = 10.0,
    heading: str = "Quantization noise along the network: each layer alone, and all up to it",
    width: float = PAGE,
):
    """Signal to quantization noise (dB) of every layer's output, local and accumulated, on one axis.

    Args:
        frame: one row per layer in network order: layer, module, local_db (this layer alone is quantized),
            accumulated_db (everything before it too); infinite values are left out.
        floor: dB; the first layer whose accumulated value is below it is marked and named.
        heading, width: title and inches.

    Raises:
        ValueError: a missing column or no rows.

    Example:
        >>> import pandas as pd
        >>> db = {"local_db": [30, 28, 29], "accumulated_db": [30, 8, 7]}
        >>> fig = propagation(pd.DataFrame({"layer": ["a", "b", "c"], "module": "unet"} | db))
        >>> fig.axes[0].get_title("left")
        'accumulated first below 10 dB at layer 2: b'
    """
    require(frame, "layer", "module", "local_db", "accumulated_db")
    frame = frame.reset_index(drop=True).replace(np.inf, np.nan)
    fig, axes = figure(width, 2.3)
    ax, x, lines = axes[0, 0], np.arange(1, len(frame) + 1), []
    for i, (column, label) in enumerate(
        {"local_db": "this layer alone", "accumulated_db": "with all before it"}.items()
    ):
        lines += ax.plot(x, frame[column], **look(i), label=label, linewidth=0.8, ms=min(3, 300 / len(frame)))
    network_axis(ax, modules_of(frame, [*frame.layer]))
    below = np.flatnonzero(frame.accumulated_db < floor)
    ax.axhline(floor, color=GREY, linestyle=":", linewidth=0.8)
    ax.set_title(f"accumulated stays above {floor:g} dB")
    if len(below):
        first = int(below[0])
        ax.axvline(first + 1, color=ACCENT, linewidth=0.8, zorder=1)
        ax.plot(first + 1, frame.accumulated_db[first], "o", mfc="none", mec=ACCENT, ms=7)
        ax.set_title(f"accumulated first below {floor:g} dB at layer {first + 1}: {frame.layer[first]}")
    ax.set_ylabel("signal to noise (dB)")
    legend(fig, lines)
    title(fig, heading)
    return fig


SENSITIVITY = {
    "gain_db": "PSNR gained by sparing this layer alone (dB)",
    "alone_db": "PSNR with this layer alone quantized (dB)",
    "local_db": "signal to noise of this layer's own output (dB)",
}


@drawn
def sensitivity(
    frame: DataFrame,
    value: str = "gain_db",
    worst: str = "high",
    top: int = 12,
    label: str | None = None,
    heading: str = "The most sensitive layers",
    width: float = COLUMN,
):
    """The layers that lose most, the worst on top, each with its full name above a horizontal bar.

    Args:
        frame: one row per layer: layer, `value`, module if there is one.
        value, label: the column that is drawn (dB) and what is written on its axis.
        worst: "high" or "low" values are the worst; low ones (alone_db, local_db) are dots on an axis that need not
            begin at zero, because the length of a bar of decibels says nothing.
        top: how many layers.
        heading, width: title and inches.

    Raises:
        ValueError: a missing column, no rows, or `worst` is neither.

    Example:
        >>> import pandas as pd
        >>> fig = sensitivity(pd.DataFrame({"layer": ["a", "b", "c"], "gain_db": [0.1, 3.0, 1.0]}), top=2)
        >>> [text.get_text() for text in fig.axes[0].texts]
        ['b', 'c']
    """
    require(frame, "layer", value)
    if worst not in ("high", "low"):
        raise ValueError(f"worst is 'high' or 'low', not {worst!r}.")
    modules = keys(frame, "module") if "module" in frame else [""]
    ranked = frame.sort_values(value, ascending=worst == "low", kind="stable").head(top).reset_index(drop=True)
    fig, axes = figure(width, 0.75 + 0.21 * len(ranked))
    ax, shown = axes[0, 0], {}
    for i, row in ranked.iterrows():
        k = modules.index(row.get("module", ""))
        if worst == "high":
            shown[k] = ax.barh(i, row[value], 0.36, color=PALETTE[k % 7], hatch=("", "////", "....")[k % 3], ec="white")
        else:
            shown[k] = ax.plot(row[value], i, **(look(k) | {"linestyle": ""}), ms=4)[0]
        ax.text(0, i - 0.22, str(row.layer), va="bottom", fontsize=6, transform=ax.get_yaxis_transform())
    ax.set(yticks=[], xlabel=label or SENSITIVITY.get(value, value), ylim=(len(ranked) - 0.6, -0.85))
    ax.spines["left"].set_visible(False)
    ax.grid(False, axis="y")
    if any(modules):
        legend(fig, [shown[k] for k in sorted(shown)], [modules[k] for k in sorted(shown)])
    title(fig, heading)
    return fig


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
            seeds, each a small dot.
        value, label: the column that is drawn and what is written on its axis.
        groups: the column along the x axis.
        heading, width: title and inches.

    Raises:
        ValueError: a missing column or no rows.

    Example:
        >>> import pandas as pd
        >>> rows = [("maxmin", "W6A6", 24.0), ("maxmin", "W6A6", 25.0), ("passionsr", "W6A6", 31.0)]
        >>> fig = ablation(pd.DataFrame(rows, columns=["method", "recipe", "psnr_fp"]))
        >>> [label.get_text() for label in fig.axes[0].get_xticklabels()]
        ['W6A6']
    """
    require(frame, "method", groups, value)
    methods, places = keys(frame, "method"), keys(frame, groups)
    fig, axes = figure(width, 2.3)
    ax, bars = axes[0, 0], []
    for i, method in enumerate(methods):
        shift = (i - (len(methods) - 1) / 2) * 0.8 / len(methods)
        parts = [frame[(frame.method == method) & (frame[groups] == place)][value] for place in places]
        style = look(i) | {"linestyle": ""}
        for x, part in enumerate(parts if len(frame) > len(methods) * len(places) else ()):
            ax.plot([x + shift + 0.08] * len(part), part, ".", color=style["color"], ms=2, alpha=0.7)
        means, deviations = [p.mean() for p in parts], [p.std(ddof=0) for p in parts]
        bars.append(
            ax.errorbar(
                np.arange(len(places)) + shift, means, deviations, **style, ms=4, elinewidth=0.8, label=str(method)
            )
        )
    bands_between(ax, len(places))
    ax.set_xticks(range(len(places)), [str(p) for p in places])
    ax.set(xlabel=groups.replace("_", " "), ylabel=label, xlim=(-0.5, len(places) - 0.5))
    seeds = int(frame.groupby(["method", groups], observed=True)[value].count().max())
    ax.set_title(f"mean ± standard deviation of {seeds} seeds (dots)" if seeds > 1 else "one seed")
    legend(fig, bars)
    title(fig, heading)
    return fig


def bands_between(ax, count: int) -> None:
    """Shades every second group of a categorical axis."""
    for i in range(0, count, 2):
        ax.axvspan(i - 0.5, i + 0.5, color="#f4f4f4", zorder=0, linewidth=0)
    ax.grid(False, axis="x")
    ax.tick_params("x", length=0)
