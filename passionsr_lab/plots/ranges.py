"""Where ranges live: per layer in network order, per channel, before and after LET (PassionSR Figure 7)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .base import (
    ACCENT,
    COLUMN,
    GREY,
    MARKERS,
    PAGE,
    PALETTE,
    bands,
    drawn,
    figure,
    keys,
    legend,
    log_axis,
    require,
    title,
)

if TYPE_CHECKING:
    from pandas import DataFrame

LAYERS = "layer, in network order"


def modules_of(frame: DataFrame, layers: list) -> list:
    """The module of every layer; the empty string without a column `module`."""
    if "module" not in frame:
        return [""] * len(layers)
    return [*frame.drop_duplicates("layer").set_index("layer").module.reindex(layers)]


def network_axis(ax, modules: list) -> None:
    """x axis of layers 1, 2, ... with one band per module."""
    starts = [i for i, m in enumerate(modules) if i == 0 or m != modules[i - 1]]
    if any(modules):
        bands(ax, [(modules[a], a + 0.5, b + 0.5) for a, b in zip(starts, [*starts[1:], len(modules)])])
    ax.set(xlim=(0.5, len(modules) + 0.5), xlabel=LAYERS)
    ax.xaxis.get_major_locator().set_params(integer=True, steps=[1, 2, 5, 10])


def per_module(modules: list):
    """(rows, style) for every module in turn: its layers' positions, its colour and marker."""
    for i, module in enumerate(dict.fromkeys(modules)):
        yield (
            np.array([j for j, m in enumerate(modules) if m == module]),
            {"color": PALETTE[i % 7], "marker": MARKERS[i % 8]},
        )


def spread(ax, frame: DataFrame, value: str) -> None:
    """For every layer its channels' 1 to 99 % (thin), 25 to 75 % (thick) and median (mark) of a column, logarithmic."""
    layers = keys(frame, "layer")
    groups = frame[frame[value] > 0].groupby("layer", sort=False, observed=True)[value]
    table = groups.quantile([0.01, 0.25, 0.5, 0.75, 0.99]).unstack().reindex(layers).to_numpy()
    modules, thick = modules_of(frame, layers), min(3.0, 330 / len(layers))
    for rows, style in per_module(modules):
        for (a, b), width in (((0, 4), thick / 3), ((1, 3), thick)):
            ax.vlines(rows + 1, table[rows, a], table[rows, b], color=style["color"], linewidth=width)
        ax.plot(rows + 1, table[rows, 2], style["marker"], color="black", ms=min(2.5, thick), linestyle="")
    log_axis(ax.yaxis)
    network_axis(ax, modules)


def _spread_legend(fig, ax) -> None:
    handles = [ax.plot([], [], "o", color="black", ms=2.5)[0]]
    handles += [ax.plot([], [], "-", color=GREY, linewidth=width)[0] for width in (3, 1)]
    legend(fig, handles, ["median channel", "25–75 % of channels", "1–99 % of channels"])


@drawn
def scales(frame: DataFrame, heading: str = "LET scale factors of every layer's input channels", width: float = PAGE):
    """Distribution of the LET scale factors in every layer, logarithmic, in network order (Figure 7, left).

    Args:
        frame: one row per channel: layer, scale (without unit); module if there is one.
        heading, width: title and inches.

    Raises:
        ValueError: a missing column or no rows.

    Example:
        >>> import pandas as pd
        >>> fig = scales(pd.DataFrame({"layer": ["a", "a", "b"], "scale": [0.5, 2.0, 1.0]}))
        >>> fig.axes[0].get_ylabel()
        'scale factor'
    """
    require(frame, "layer", "scale")
    fig, axes = figure(width, 2.2)
    spread(axes[0, 0], frame, "scale")
    axes[0, 0].axhline(1, color=GREY, linewidth=0.6, zorder=1)
    axes[0, 0].set_ylabel("scale factor")
    _spread_legend(fig, axes[0, 0])
    title(fig, heading)
    return fig


@drawn
def activations(before: DataFrame, after: DataFrame, heading: str | None = None):
    """Channel ranges before and after LET (Figure 7, right): of one layer, or of the whole model.

    One layer: lowest and highest value of each channel and, dashed, of the tensor that one quantizer has to span; each
    panel has its own scale, because LET changes the unit.  Several layers: the share of its layer's range that a
    channel fills, as a distribution per layer; below 1/256 it has a single value at 8 bits.

    Args:
        before, after: one row per channel: low, high (activation units), channel; layer and module for several layers.
        heading: the figure's title.

    Raises:
        ValueError: a missing column or no rows.

    Example:
        >>> import pandas as pd
        >>> x = pd.DataFrame({"channel": [0, 1, 2], "low": [-1.0, -1.0, -8.0], "high": [1.0, 1.0, 8.0]})
        >>> activations(x, x.assign(low=-1.0, high=1.0)).axes[0].get_title("left")
        'before LET: the median channel fills 12 % of the range'
    """
    for frame in (before, after):
        require(frame, "channel", "low", "high")
    whole = "layer" in before and before.layer.nunique() > 1
    fig, axes = figure(PAGE, 3.4, 2, 1, sharex=True, sharey=True) if whole else figure(PAGE, 2.0, 1, 2)
    for ax, frame, when in zip(axes.flat, (before, after), ("before", "after")):
        if whole:
            spread(ax, frame.assign(share=_share(frame)), "share")
            ax.set(ylim=(1 / 512, 1.2), ylabel="channel / layer range")
        else:
            draw_channels(ax, frame)
        which = "in the median layer, the median channel" if whole else "the median channel"
        ax.set_title(f"{when} LET: {which} fills {100 * _fill(frame):.0f} % of the range")
    if whole:
        axes[0, 0].set_xlabel("")
        _spread_legend(fig, axes[0, 0])
    else:
        _range_legend(fig, axes[0, 0], False)
    title(fig, heading or f"Activations before and after LET: {'whole model' if whole else 'one layer'}")
    return fig


def _share(frame: DataFrame):
    """Every channel's range as a part of its layer's whole range, a column of numbers from 0 to 1."""
    groups = _by_layer(frame)
    return (frame.high - frame.low) / (groups.high.transform("max") - groups.low.transform("min"))


def _by_layer(frame: DataFrame):
    return frame.groupby(frame.layer if "layer" in frame else np.zeros(len(frame)), observed=True)


def _fill(frame: DataFrame) -> float:
    """The share of the median channel, in the median layer."""
    return float(_by_layer(frame.assign(share=_share(frame))).share.median().median())


def draw_channels(ax, frame: DataFrame, bounds: tuple[float, float] | None = None) -> None:
    """Draws lowest to highest value of each channel into `ax`, arguments as in `channel_ranges`."""
    ax.vlines(
        frame.channel, frame.low, frame.high, color=PALETTE[0], linewidth=float(np.clip(150 / len(frame), 0.4, 3))
    )
    for level in (frame.low.min(), frame.high.max()):
        ax.axhline(level, color=GREY, linestyle="--", linewidth=0.6)
    for level in bounds or ():
        ax.axhline(level, color=ACCENT, linestyle="-", linewidth=0.8)
    ax.set(xlabel="channel", ylabel="activation", xlim=(frame.channel.min() - 0.5, frame.channel.max() + 0.5))
    ax.xaxis.get_major_locator().set_params(integer=True)


def _range_legend(fig, ax, bounds: bool) -> None:
    handles = [
        ax.plot([], [], "-", color=PALETTE[0], linewidth=2)[0],
        ax.plot([], [], "--", color=GREY, linewidth=0.6)[0],
    ]
    handles += [ax.plot([], [], "-", color=ACCENT, linewidth=0.8)[0]] * bounds
    legend(
        fig,
        handles,
        ["lowest to highest value of a channel", "of the whole tensor", "quantizer's boundaries"][: len(handles)],
    )


@drawn
def channel_ranges(
    frame: DataFrame, bounds: tuple[float, float] | None = None, heading: str = "Channel ranges", width: float = COLUMN
):
    """Lowest and highest value of each channel of one layer, with the tensor's range and the quantizer's boundaries.

    Args:
        frame: one row per channel: channel, low, high (activation units).
        bounds: (lower, upper) boundaries of LBQ to draw.
        heading, width: title (name the layer in it) and inches.

    Raises:
        ValueError: a missing column, no rows, or more than one layer.

    Example:
        >>> import pandas as pd
        >>> x = pd.DataFrame({"channel": [0, 1], "low": [-1.0, -8.0], "high": [1.0, 8.0]})
        >>> channel_ranges(x, bounds=(-4, 4)).axes[0].get_xlabel()
        'channel'
    """
    require(frame, "channel", "low", "high")
    if "layer" in frame and frame.layer.nunique() > 1:
        raise ValueError(f"The frame holds {frame.layer.nunique()} layers; this figure shows the channels of one.")
    fig, axes = figure(width, 2.1)
    draw_channels(axes[0, 0], frame, bounds)
    _range_legend(fig, axes[0, 0], bounds is not None)
    title(fig, heading)
    return fig


@drawn
def layer_ranges(frame: DataFrame, heading: str = "Input range of every layer", width: float = PAGE):
    """Lowest and highest value that enters each layer, in network order; the widest is named.

    The axis is linear up to the power of ten below the median layer's range, and logarithmic beyond.

    Args:
        frame: one row per layer: layer, low, high (activation units), module if there is one, as `layer_table` gives
            them; rows without a range are left out.
        heading, width: title and inches.

    Raises:
        ValueError: a missing column or no rows.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"layer": ["a", "b"], "low": [-1.0, -9.0], "high": [1.0, 9.0]})
        >>> layer_ranges(frame).axes[0].get_title("left")
        'widest: b, -9 to 9'
    """
    require(frame, "layer", "low", "high")
    frame = frame.dropna(subset=["low", "high"]).reset_index(drop=True)
    require(frame, "layer")
    low, high = frame.low.to_numpy(float), frame.high.to_numpy(float)
    modules = modules_of(frame, [*frame.layer])
    fig, axes = figure(width, 2.2)
    ax = axes[0, 0]
    for rows, style in per_module(modules):
        ax.vlines(rows + 1, low[rows], high[rows], color=style["color"], linewidth=min(3.0, 250 / len(frame)))
    ax.axhline(0, color=GREY, linewidth=0.6)
    decade = 10.0 ** np.floor(np.log10(np.median(np.maximum(-low, high)) or 1.0))
    ax.set_yscale("symlog", linthresh=decade, linscale=0.4)
    ax.yaxis.set_major_formatter("{x:g}")
    network_axis(ax, modules)
    widest = int(np.argmax(high - low))
    ax.set_title(f"widest: {frame.layer[widest]}, {low[widest]:.3g} to {high[widest]:.3g}")
    ax.set_ylabel("activation (logarithmic)")
    title(fig, heading)
    return fig
