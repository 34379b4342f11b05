"""The pictures behind the explorers: one layer, one pair of boundaries, one LET exponent, each in several panels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from .base import PAGE, drawn, figure, legend, name_lines
from .colours import ACCENT, INK, PALETTE
from .histograms import bound_marks, draw_distribution
from .ranges import draw_channels, range_marks

if TYPE_CHECKING:
    from pandas import DataFrame

STROKES = ((PALETTE[1], "--"), (PALETTE[0], "-."), (INK, "-"))  # of one cause, another, and both together


@drawn
def layer_panels(
    states: Mapping[str, tuple],
    bits: int | None = None,
    zero_point: str = "integer",
    heading: str = "One layer's input",
    weights: Mapping[str, tuple] | None = None,
):
    """A layer's distribution (above) and its channels' ranges (below), a column per state, on the same axes.

    Args:
        states: name ("before LET") -> (edges, counts, bounds or None, channels), the last one a frame with channel, low
            and high.
        bits, zero_point: of the quantizer whose grid is drawn where there are bounds.
        weights: the same of the layer's weight, in further columns, on axes of their own.
    """
    if not states:
        raise ValueError("There is nothing to draw.")
    groups = [states, weights or {}]
    fig, axes = figure(heading, PAGE, 3.7, 2, sum(map(len, groups)))
    columns = iter(axes.T)
    for group, what in zip(groups, ("activation", "weight")):
        own = [next(columns) for _ in group]
        for ax, first in ((ax, first) for column in own[1:] for ax, first in zip(column, own[0])):
            ax.sharex(first)
            ax.sharey(first)
        for column, (name, (edges, counts, bounds, channels)) in zip(own, group.items()):
            draw_distribution(column[0], edges, counts, bounds, bits, zero_point, name)
            draw_channels(column[1], channels, bounds)
            column[1].set_ylabel(what if column is own[0] else "")
    axes[0, 0].set_ylabel("count")
    for ax in axes[0, 1:]:
        ax.set_ylabel("")
    known = any(bounds for group in groups for _, _, bounds, _ in group.values())
    called = (f"boundaries and grid of {2**bits} values" if bits else "boundaries") if known else ""
    legend(fig, range_marks(axes[1, 0], called))
    return fig


@drawn
def boundary_panels(
    edges: Sequence[float],
    counts: Sequence[float],
    bounds: tuple[float, float],
    best: tuple[float, float],
    sweep: DataFrame,
    best_db: float,
    bits: int,
    zero_point: str = "integer",
    heading: str = "Boundaries and error",
):
    """A distribution with boundaries and grid, and the noise that clipping and rounding leave as the upper one moves.

    Args:
        edges, counts: the distribution, as `numpy.histogram` gives it.
        bounds, best: present and best (lower, upper), in the values' unit.
        sweep: columns upper, clipping_db, rounding_db, total_db: noise relative to the signal (dB, lower is better).
        best_db: the total at `best`.
        bits, zero_point: of the quantizer.
    """
    fig, axes = figure(heading, PAGE, 2.6, 1, 2)
    left, right = axes[0]
    draw_distribution(left, edges, counts, bounds, bits, zero_point)
    for bound in best:
        left.axvline(bound, color=PALETTE[2], linestyle=":", linewidth=1.2)
    left.set_ylabel("count")
    lines = draw_causes(right, sweep, "upper", ("clipping", "rounding", "total"))
    right.axvline(bounds[1], color=ACCENT, linestyle="--", linewidth=0.8)
    star = right.plot(best[1], best_db, "*", color=PALETTE[2], mec="black", ms=7, linestyle="", label="best pair")
    bottom = min(sweep.total_db.min(), best_db) - 12
    right.set(xlabel="upper boundary", ylabel="noise relative to signal (dB)", ylim=(bottom, None))
    name_lines(right, lines)
    dotted = left.plot([], [], ":", color=PALETTE[2], linewidth=1.2, label="best boundaries")
    legend(fig, [*bound_marks(left, bits), *dotted, *star])
    return fig


def draw_causes(ax, sweep: DataFrame, x: str, causes: Sequence[str]) -> list:
    """Draws the columns `{cause}_db` of a sweep against `x`; the lines."""
    lines = []
    for (color, linestyle), cause in zip(STROKES, causes):
        lines += ax.plot(sweep[x], sweep[f"{cause}_db"], color=color, linestyle=linestyle, label=cause)
    return lines


@drawn
def scale_panels(activation: DataFrame, weight: DataFrame, sweep: DataFrame, alpha: float, heading: str):
    """One layer under LET: channel ranges of activation and weight, and the layer's noise against LET's exponent.

    Args:
        activation, weight: one row per input channel: channel, low, high, after the scale.
        sweep: columns alpha, activation_db, weight_db, both_db: the layer's SQNR (dB) with only the one quantized.
        alpha: the exponent shown.
    """
    fig, axes = figure(heading, PAGE, 2.4, 1, 3)
    for ax, frame, what in zip(axes[0], (activation, weight), ("activation", "weight")):
        draw_channels(ax, frame)
        fill = (frame.high - frame.low).median() / (frame.high.max() - frame.low.min())
        ax.set(xlabel="input channel", ylabel=what)
        ax.set_title(f"the median channel fills {100 * fill:.0f} %")
    ax = axes[0, 2]
    name_lines(ax, draw_causes(ax, sweep, "alpha", ("activation", "weight", "both")))
    ax.axvline(alpha, color=ACCENT, linestyle="--", linewidth=0.8)
    ax.set(xlabel="LET exponent alpha", ylabel="signal to noise of the output (dB)", xlim=(0, 1))
    at = sweep.iloc[(sweep.alpha - alpha).abs().argmin()]
    ax.set_title(
        f"what is quantized; at {alpha:g}: {at.both_db:.1f} dB, best at {sweep.alpha[sweep.both_db.idxmax()]:.2f}"
    )
    return fig
