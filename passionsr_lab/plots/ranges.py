"""Where ranges live: per layer in network order, per channel, before and after LET (PassionSR Figure 7)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .base import COLUMN, PAGE, bands, drawn, figure, keys, legend, log_axis, require
from .colours import ACCENT, GREY, INK, PALETTE, module_colour

if TYPE_CHECKING:
    from pandas import DataFrame

SPREAD = "box: 25–75 % of channels, line: median, whiskers: 1–99 %"
BOXES = {"native_scale": True, "dodge": False, "legend": False, "whis": (1, 99), "showfliers": False, "showcaps": False}
BOXES |= {
    "width": 0.7,
    "saturation": 1,
    "boxprops": {"edgecolor": "none", "alpha": 0.5},
    "whiskerprops": {"color": GREY},
}


def modules_of(frame: DataFrame, layers: list) -> list:
    """The module of every layer; the empty string without a column `module`."""
    if "module" not in frame:
        return [""] * len(layers)
    return [*frame.drop_duplicates("layer").set_index("layer").module.reindex(layers)]


def network_axis(ax, modules: list, note: str = "") -> None:
    """x axis of layers 1, 2, ... with one band per module."""
    starts = [i for i, m in enumerate(modules) if i == 0 or m != modules[i - 1]]
    if any(modules):
        bands(ax, [(modules[a], a + 0.5, b + 0.5) for a, b in zip(starts, [*starts[1:], len(modules)])])
    ax.set(xlim=(0.5, len(modules) + 0.5), xlabel="layer, in network order" + note)
    ax.xaxis.get_major_locator().set_params(integer=True, steps=[1, 2, 5, 10])


def draw_spread(ax, frame: DataFrame, value: str) -> None:
    """Draws a box (`SPREAD`) per layer of its channels' values, on a logarithmic axis."""
    import seaborn

    layers = keys(frame, "layer")
    modules = modules_of(frame, layers)
    place = frame.layer.map({name: i for i, name in enumerate(layers, 1)}).astype(int)
    values, hue = frame[value].where(frame[value] > 0), place.map(dict(enumerate(modules, 1)))
    thin = {"linewidth": min(0.6, 60 / len(layers)), "palette": {module: module_colour(module) for module in modules}}
    thin |= {"medianprops": {"color": INK, "linewidth": min(1, 120 / len(layers))}}
    seaborn.boxplot(x=place, y=values, hue=hue, **BOXES, **thin, ax=ax)
    log_axis(ax.yaxis)
    gaps = place[values.notna()].nunique() < len(layers)
    network_axis(ax, modules, " (gaps: constant input)" * gaps)


@drawn
def scales(frame: DataFrame, heading: str = "LET scale factors of every layer's input channels", width: float = PAGE):
    """Distribution of the LET scale factors in every layer, logarithmic, in network order (Figure 7, left).

    Args:
        frame: one row per channel: layer, scale (without unit); module if there is one.
    """
    require(frame, "layer", "scale")
    fig, axes = figure(heading, width, 2.2)
    draw_spread(axes[0, 0], frame, "scale")
    axes[0, 0].axhline(1, color=GREY, linewidth=0.6, zorder=1)
    axes[0, 0].set(ylabel="scale factor")
    axes[0, 0].set_title(SPREAD)
    return fig


@drawn
def activations(before: DataFrame, after: DataFrame, heading: str | None = None):
    """Channel ranges before and after LET (Figure 7, right), on the same axes: of one layer, or of the whole model.

    One layer: lowest and highest value of each channel and, dashed, of the tensor that one quantizer has to span.
    Several layers: the share of its layer's range that a channel fills, as a distribution per layer; below 1/256 it
    has a single value at 8 bits.

    Args:
        before, after: one row per channel: low, high (activation units), channel; layer and module for several layers.
    """
    for frame in (before, after):
        require(frame, "channel", "low", "high")
    whole = "layer" in before and before.layer.nunique() > 1
    heading = heading or f"Activations before and after LET: {'whole model' if whole else 'one layer'}"
    fig, axes = figure(heading, PAGE, *((3.4, 2, 1) if whole else (2.0, 1, 2)), sharex=True, sharey=True)
    for ax, frame, when in zip(axes.flat, (before, after), ("before", "after")):
        share, fill = _fill(frame)
        if whole:
            draw_spread(ax, frame.assign(share=share), "share")
            ax.set(ylim=(1 / 512, 1.2), ylabel="channel / layer range")
        else:
            draw_channels(ax, frame)
        which = "in the median layer, the median channel" if whole else "the median channel"
        ax.set_title(
            f"{when} LET: {which} fills {fill:.0f} % of the range" + f" ({SPREAD})" * (whole and when == "after")
        )
    if whole:
        axes[0, 0].set_xlabel("")
    else:
        legend(fig, range_marks(axes[0, 0]))
    return fig


def _fill(frame: DataFrame) -> tuple:
    """Every channel's range as a part of its layer's, 0 to 1; in percent, the median channel's in the median layer."""
    layer = frame.layer if "layer" in frame else np.zeros(len(frame))
    groups = frame.groupby(layer, observed=True)
    share = (frame.high - frame.low) / (groups.high.transform("max") - groups.low.transform("min"))
    return share, 100 * share.groupby(layer, observed=True).median().median()


def draw_channels(ax, frame: DataFrame, bounds: tuple[float, float] | None = None) -> None:
    """Draws lowest to highest value of each channel into `ax`, arguments as in `channel_ranges`."""
    thick = float(np.clip(150 / len(frame), 0.4, 3))
    ax.vlines(frame.channel, frame.low, frame.high, color=PALETTE[0], linewidth=thick)
    one = frame[frame.low == frame.high]  # a channel that never changes
    ax.plot(one.channel, one.low, "_", color=PALETTE[0], ms=max(2, thick))
    for level in (frame.low.min(), frame.high.max()):
        ax.axhline(level, color=GREY, linestyle="--", linewidth=0.6)
    for level in bounds or ():
        ax.axhline(level, color=ACCENT, linewidth=0.8)
    ax.set(xlabel="channel", ylabel="activation", xlim=(frame.channel.min() - 0.5, frame.channel.max() + 0.5))
    ax.xaxis.get_major_locator().set_params(integer=True)


def range_marks(ax, bounds: str = "") -> list:
    """What a legend shows of `draw_channels`; `bounds` is what the boundaries are called."""
    marks = ax.plot([], [], "-", color=PALETTE[0], linewidth=2, label="lowest to highest value of a channel")
    marks += ax.plot([], [], "--", color=GREY, linewidth=0.6, label="of the whole tensor")
    return marks + (ax.plot([], [], "-", color=ACCENT, linewidth=0.8, label=bounds) if bounds else [])


@drawn
def channel_ranges(
    frame: DataFrame, bounds: tuple[float, float] | None = None, heading: str = "Channel ranges", width: float = COLUMN
):
    """Lowest and highest value of each channel of one layer, with the tensor's range and the quantizer's boundaries.

    Args:
        frame: one row per channel of one layer (of several: `ValueError`): channel, low, high (activation units).
        bounds: (lower, upper) boundaries of LBQ to draw.
        heading: name the layer in it.
    """
    require(frame, "channel", "low", "high")
    if "layer" in frame and frame.layer.nunique() > 1:
        raise ValueError(f"The frame holds {frame.layer.nunique()} layers; this figure shows the channels of one.")
    fig, axes = figure(heading, width, 2.1)
    draw_channels(axes[0, 0], frame, bounds)
    legend(fig, range_marks(axes[0, 0], "quantizer's boundaries" * bool(bounds)))
    return fig


@drawn
def layer_ranges(frame: DataFrame, heading: str = "Input range of every layer", width: float = PAGE):
    """Lowest and highest value that enters each layer, in network order; the widest is named.

    The axis is linear up to the power of ten below the median layer's range, and logarithmic beyond.

    Args:
        frame: one row per layer: layer, low, high (activation units), module if there is one, as `layer_table` gives
            them; rows without a range are left out.
    """
    require(frame, "layer", "low", "high")
    frame = frame.dropna(subset=["low", "high"]).reset_index(drop=True)
    require(frame, "layer")
    low, high = frame.low.to_numpy(float), frame.high.to_numpy(float)
    modules = modules_of(frame, [*frame.layer])
    fig, axes = figure(heading, width, 2.2)
    ax, colours = axes[0, 0], [module_colour(module) for module in modules]
    ax.vlines(np.arange(1, len(frame) + 1), low, high, colors=colours, linewidth=min(3.0, 250 / len(frame)))
    ax.axhline(0, color=GREY, linewidth=0.6)
    decade = 10.0 ** np.floor(np.log10(np.median(np.maximum(-low, high)) or 1.0))
    ax.set_yscale("symlog", linthresh=decade, linscale=0.4)
    ax.yaxis.set_major_formatter("{x:g}")
    network_axis(ax, modules)
    widest = int(np.argmax(high - low))
    ax.set_title(f"widest: {frame.layer[widest]}, {low[widest]:.3g} to {high[widest]:.3g}")
    ax.set_ylabel("activation (logarithmic)")
    return fig
