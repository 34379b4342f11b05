"""The pictures behind the explorers: one layer, one pair of boundaries, one LET exponent, each in several panels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from .base import ACCENT, GREY, PAGE, PALETTE, drawn, figure, legend, look, title
from .quantizers import draw_distribution
from .ranges import draw_channels

if TYPE_CHECKING:
    from pandas import DataFrame


@drawn
def layer_panels(
    parts: Mapping[str, tuple],
    bits: int | None = None,
    zero_point: str = "integer",
    heading: str = "One layer's input",
):
    """A layer's distribution (above) and its channels' ranges (below), in one column per state, e.g. before LET.

    Args:
        parts: name -> (edges, counts, bounds or None, channels), the last one a frame with channel, low and high.
        bits, zero_point: of the quantizer whose grid is drawn where there are bounds.
        heading: the figure's title.

    Raises:
        ValueError: there are no parts.

    Example:
        >>> import pandas as pd
        >>> channels = pd.DataFrame({"channel": [0, 1], "low": [0.0, 0.5], "high": [1.0, 2.0]})
        >>> len(layer_panels({"before LET": ([0, 1, 2], [3, 1], (0, 2), channels)}, bits=4).axes)
        2
    """
    if not parts:
        raise ValueError("There is nothing to draw.")
    fig, axes = figure(PAGE, 3.7, 2, len(parts))
    for column, (name, (edges, counts, bounds, channels)) in zip(axes.T, parts.items()):
        draw_distribution(column[0], edges, counts, bounds, bits, zero_point, name)
        draw_channels(column[1], channels, bounds)
    axes[0, 0].set_ylabel("count")
    handles = [axes[1, 0].plot([], [], "-", color=PALETTE[0], linewidth=2)[0]]
    handles += [axes[1, 0].plot([], [], "--", color=GREY, linewidth=0.6)[0]]
    names = ["lowest to highest value of a channel", "of the whole tensor"]
    if any(bounds for _, _, bounds, _ in parts.values()):
        handles += [axes[1, 0].plot([], [], "-", color=ACCENT, linewidth=0.8)[0]]
        names += [f"boundaries and grid of {2**bits} values" if bits else "boundaries"]
    legend(fig, handles, names)
    title(fig, heading)
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
        heading: the figure's title.

    Example:
        >>> import pandas as pd
        >>> db = pd.DataFrame({"upper": [1.0, 2.0], "clipping_db": [-9.0, -40.0], "rounding_db": [-20.0, -15.0]})
        >>> fig = boundary_panels([0, 1, 2], [3, 1], (0, 2), (0, 1.5), db.assign(total_db=-12.0), -18.0, 3)
        >>> [text.get_text() for text in fig.legends[0].texts][:3]
        ['clipping', 'rounding', 'total']
    """
    fig, axes = figure(PAGE, 2.6, 1, 2)
    left, right = axes[0]
    draw_distribution(left, edges, counts, bounds, bits, zero_point)
    for bound in best:
        left.axvline(bound, color=PALETTE[2], linestyle=":", linewidth=1.2)
    left.set_ylabel("count")
    lines = []
    for i, key in enumerate(("clipping", "rounding", "total")):
        style = look((1, 0, 6)[i]) | {"marker": "", "linestyle": ("--", "-.", "-")[i]}
        lines += right.plot(sweep.upper, sweep[f"{key}_db"], **style, label=key)
    right.axvline(bounds[1], color=ACCENT, linestyle="--", linewidth=0.8)
    lines += right.plot(best[1], best_db, "*", color=PALETTE[2], mec="black", ms=7, linestyle="", label="best pair")
    bottom = min(sweep.total_db.min(), best_db) - 12
    right.set(xlabel="upper boundary", ylabel="noise relative to signal (dB)", ylim=(bottom, None))
    handles = [left.plot([], [], "--", color=ACCENT, linewidth=0.8)[0]]
    handles += [left.plot([], [], ":", color=PALETTE[2], linewidth=1.2)[0]]
    names = [line.get_label() for line in lines]
    legend(fig, [*lines, *handles], [*names, f"boundaries, grid of {2**bits} values", "best boundaries"])
    title(fig, heading)
    return fig


@drawn
def scale_panels(activation: DataFrame, weight: DataFrame, sweep: DataFrame, alpha: float, heading: str):
    """One layer under LET: channel ranges of activation and weight, and the layer's noise against LET's exponent.

    Args:
        activation, weight: one row per input channel: channel, low, high, after the scale.
        sweep: columns alpha, activation_db, weight_db, both_db: the layer's SQNR (dB) with only the one quantized.
        alpha: the exponent shown.
        heading: the figure's title.

    Example:
        >>> import pandas as pd
        >>> channels = pd.DataFrame({"channel": [0, 1], "low": [-1.0, -2.0], "high": [1.0, 2.0]})
        >>> db = {"activation_db": [20, 25], "weight_db": [30, 20], "both_db": [19, 18]}
        >>> sweep = pd.DataFrame({"alpha": [0, 1]} | db)
        >>> len(scale_panels(channels, channels, sweep, 0.5, "One layer").axes)
        3
    """
    fig, axes = figure(PAGE, 2.4, 1, 3)
    for ax, frame, what in zip(axes[0], (activation, weight), ("activation", "weight")):
        draw_channels(ax, frame)
        spread = (frame.high - frame.low).median() / (frame.high.max() - frame.low.min())
        ax.set_ylabel(what)
        ax.set_xlabel("input channel")
        ax.set_title(f"{what}: the median channel fills {100 * spread:.0f} %")
    lines = []
    for i, key in enumerate(("activation", "weight", "both")):
        style = look((1, 0, 6)[i]) | {"marker": "", "linestyle": ("--", "-.", "-")[i]}
        lines += axes[0, 2].plot(sweep.alpha, sweep[f"{key}_db"], **style, label=f"{key} quantized")
    axes[0, 2].axvline(alpha, color=ACCENT, linestyle="--", linewidth=0.8)
    axes[0, 2].set(xlabel="LET exponent alpha", ylabel="signal to noise of the output (dB)", xlim=(0, 1))
    at = sweep.iloc[(sweep.alpha - alpha).abs().argmin()]
    axes[0, 2].set_title(f"at {alpha:g}: {at.both_db:.1f} dB; best at {sweep.alpha[sweep.both_db.idxmax()]:.2f}")
    legend(fig, lines)
    title(fig, heading)
    return fig
