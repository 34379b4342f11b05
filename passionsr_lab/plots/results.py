"""What quantization costs: error along the network, sensitive layers, and who pays for what."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .base import COLUMN, PAGE, drawn, figure, legend, name_lines, require
from .colours import ACCENT, GREY, INK, MODULE_COLOURS, PALETTE, module_colour
from .ranges import named, network_axis, placed

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
            accumulated_db (everything before it too), number if there is one; infinite values are left out.
        floor: dB; the first layer whose accumulated value is below it is marked and named.
    """
    require(frame, "layer", "module", "local_db", "accumulated_db")
    frame = placed(frame).reset_index(drop=True).replace(np.inf, np.nan)
    fig, axes = figure(heading, width, 2.3)
    ax, lines = axes[0, 0], []
    styles = ((PALETTE[0], "local_db", "this layer alone"), (INK, "accumulated_db", "with all before it"))
    line = {"linewidth": 0.7, "ms": min(3, 300 / len(frame))}
    for color, column, label in styles:
        lines += ax.plot(frame.number, frame[column], "o-", color=color, label=label, **line)
    network_axis(ax, frame)
    below = np.flatnonzero(frame.accumulated_db < floor)
    ax.axhline(floor, color=GREY, linestyle=":", linewidth=0.8)
    ax.set_title(f"accumulated stays above {floor:g} dB")
    if len(below):
        first = frame.loc[below[0]]
        ax.axvline(first.number, color=ACCENT, linewidth=0.8, zorder=1)
        ax.plot(first.number, first.accumulated_db, "o", mfc="none", mec=ACCENT, ms=7)
        ax.set_title(f"accumulated first below {floor:g} dB at layer {named(first)}")
    ax.set_ylabel("signal to noise (dB)")
    name_lines(ax, lines)
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
    """The layers that lose most, the worst on top, each with its full name above it, value and module beside it.

    Args:
        frame: one row per layer: layer, `value`, number and module if there are any.
        value, label: the column that is drawn (dB) and what is written on its axis.
        worst: "high" or "low" values are the worst (else `ValueError`); low ones (alone_db, local_db) are dots on an
            axis that need not begin at zero, because the length of a bar of decibels says nothing.
        top: how many layers.
    """
    require(frame, "layer", value)
    if worst not in ("high", "low"):
        raise ValueError(f"worst is 'high' or 'low', not {worst!r}.")
    ranked = frame.sort_values(value, ascending=worst == "low", kind="stable").head(top)
    fig, axes = figure(heading, width, 0.55 + 0.23 * len(ranked))
    ax, modules = axes[0, 0], [*ranked.module] if "module" in ranked else [""] * len(ranked)
    names = map(named, ranked.itertuples()) if "number" in ranked else ranked.layer
    for i, (layer, module, db) in enumerate(zip(names, modules, ranked[value])):
        color = module_colour(module)
        _ = ax.barh(i, db, 0.36, color=color) if worst == "high" else ax.plot(db, i, "o", color=color, ms=4)
        ax.text(0, i - 0.22, str(layer), va="bottom", fontsize=6, transform=ax.get_yaxis_transform())
        end = max(db, 0) if worst == "high" else db
        ax.text(end, i, f"  {round(db, 2) + 0:.2f} {module}".rstrip(), va="center", fontsize=6, color=color)
    ax.set(yticks=[], xlabel=label or SENSITIVITY.get(value, value), ylim=(len(ranked) - 0.6, -0.85))
    ax.margins(x=0.2)
    ax.spines["left"].set_visible(False)
    ax.grid(False, axis="y")
    return fig


@drawn
def shares(frame: DataFrame, label: str = "", heading: str = "Who pays for what", width: float = PAGE):
    """Stacked horizontal bars: one per row, a segment per column; beside it the sum, and what is too small to be seen.

    Args:
        frame: numbers >= 0; its index names the bars, its columns the segments, modules in their colours and anything
            else in greys; missing numbers are 0.
        label: of the horizontal axis; the vertical one is called what the index is called.
    """
    require(frame)
    frame = frame.fillna(0)
    fig, axes = figure(heading, width, 0.85 + 0.28 * len(frame))
    greys = [str(level) for level in np.linspace(0.2, 0.85, max(2, len(frame.columns)))]
    ax, colours = axes[0, 0], [MODULE_COLOURS.get(name, grey) for name, grey in zip(frame.columns, greys)]
    frame.plot.barh(stacked=True, width=0.62, color=colours, edgecolor="white", linewidth=0.4, legend=False, ax=ax)
    top = max(frame.sum(axis=1).max(), 1e-12)
    for y, (_, row) in enumerate(frame.iterrows()):
        small = ", ".join(f"{name} {number:.2g}" for name, number in row.items() if 0 < number < 0.01 * top)
        text = f"  {row.sum():.4g}" + f" ({small})" * bool(small)
        ax.text(row.sum(), y, text, va="center", fontsize=6.5)
    ax.set(xlabel=label, ylabel=frame.index.name or "", ylim=(len(frame) - 0.45, -0.55), xlim=(0, top))
    ax.grid(False, axis="y")
    legend(fig, ax.get_legend_handles_labels()[0])
    return fig


@drawn
def widths(
    curve: DataFrame,
    chosen: DataFrame,
    budget: float,
    label: str = "budget",
    heading: str = "Bits for every layer under a budget",
    width: float = PAGE,
):
    """What a budget buys: the curve of the best choices with this one marked, and the bits of every layer in it.

    Args:
        curve: one row per budget: budget, predicted_db.
        chosen: one row per layer in network order: layer, module, bits, number if there is one.
        budget: the one whose choice is drawn.
        label: of the budget, with its unit.
    """
    require(curve, "budget", "predicted_db")
    require(chosen, "layer", "module", "bits")
    fig, axes = figure(heading, width, 2.2, 1, 2, width_ratios=(1, 2.2))
    left, right = axes[0]
    left.plot(curve.budget, curve.predicted_db, "o-", color=PALETTE[0], ms=3, linewidth=0.9)
    left.axvline(budget, color=ACCENT, linewidth=0.8, linestyle="--", zorder=1)
    left.set(xlabel=label, ylabel="predicted PSNR to full precision (dB)")
    chosen = placed(chosen)
    colours = [module_colour(module) for module in chosen.module]
    right.bar(chosen.number, chosen.bits, 1.0, color=colours, linewidth=0)
    network_axis(right, chosen)
    right.set(ylabel="bits")
    right.yaxis.get_major_locator().set_params(integer=True)
    return fig
