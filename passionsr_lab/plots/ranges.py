"""Where ranges live: per layer in network order, per channel, before and after LET (PassionSR Figure 7)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .base import COLUMN, PAGE, bands, drawn, figure, keys, legend, log_axis, name_lines, require
from .colours import ACCENT, GREY, INK, PALETTE, looks, module_colour
from .curves import draw_curve

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


def placed(frame: DataFrame) -> DataFrame:
    """The frame with every row's `number` along the network, by default that of its layer's first row, and `module`.

    Without a module that is the empty string.
    """
    order = {name: i for i, name in enumerate(keys(frame, "layer"), 1)}
    own = {"number": lambda frame: frame.layer.map(order).astype(int), "module": ""}
    return frame.assign(**{name: value for name, value in own.items() if name not in frame})


def network_axis(ax, frame: DataFrame, note: str = "") -> None:
    """x axis of the layers' numbers (`analysis.layers`) with one band per module, of a frame that is `placed`."""
    first = frame.groupby("module", observed=True).number.min().sort_values()
    ends = [*(first.iloc[1:] - 0.5), frame.number.max() + 0.5]
    if any(first.index):
        bands(ax, [(module, begin - 0.5, end) for (module, begin), end in zip(first.items(), ends)])
    ax.set(xlim=(first.iloc[0] - 0.5, ends[-1]), xlabel="number of the layer, in network order" + note)
    ax.xaxis.get_major_locator().set_params(integer=True, steps=[1, 2, 5, 10])


def named(row) -> str:
    """The layer of a row that is `placed`, with its number."""
    return f"{row.number} {row.layer}"


def draw_spread(ax, frame: DataFrame, value: str) -> None:
    """Draws a box (`SPREAD`) per number of its channels' values, on a logarithmic axis."""
    import seaborn

    frame = placed(frame)
    values, count = frame[value].where(frame[value] > 0), frame.number.nunique()
    thin = {"linewidth": min(0.6, 60 / count), "palette": {name: module_colour(name) for name in frame.module.unique()}}
    thin |= {"medianprops": {"color": INK, "linewidth": min(1, 120 / count)}}
    seaborn.boxplot(x=frame.number, y=values, hue=frame.module, **BOXES, **thin, ax=ax)
    log_axis(ax.yaxis)
    gaps = frame.number[values.notna()].nunique() < count
    network_axis(ax, frame, " (gaps: constant input)" * gaps)


@drawn
def scales(frame: DataFrame, heading: str = "LET scale factors of every layer's input channels", width: float = PAGE):
    """Distribution of the LET scale factors in every layer, logarithmic, in network order (Figure 7, left).

    Args:
        frame: one row per channel: layer, scale (without unit); number and module if there are any, as
            `analysis.layers.scale_factors` gives them.
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
        before, after: one row per channel: low, high (activation units), channel; layer for several layers, and
            number and module if there are any.
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
        frame: one row per layer: layer, low, high (activation units), number and module if there are any, as
            `layer_table` gives them; rows without a range are left out.
    """
    require(frame, "layer", "low", "high")
    frame = placed(frame).dropna(subset=["low", "high"]).reset_index(drop=True)
    require(frame, "layer")
    low, high = frame.low.to_numpy(float), frame.high.to_numpy(float)
    fig, axes = figure(heading, width, 2.2)
    ax, colours = axes[0, 0], [module_colour(module) for module in frame.module]
    ax.vlines(frame.number, low, high, colors=colours, linewidth=min(3.0, 250 / len(frame)))
    ax.axhline(0, color=GREY, linewidth=0.6)
    decade = 10.0 ** np.floor(np.log10(np.median(np.maximum(-low, high)) or 1.0))
    ax.set_yscale("symlog", linthresh=decade, linscale=0.4)
    ax.yaxis.set_major_formatter("{x:g}")
    network_axis(ax, frame)
    widest = int(np.argmax(high - low))
    ax.set_title(f"widest: {named(frame.loc[widest])}, {low[widest]:.3g} to {high[widest]:.3g}")
    ax.set_ylabel("activation (logarithmic)")
    return fig


@drawn
def layer_curves(frame: DataFrame, value: str, by: str, label: str, heading: str, width: float = PAGE):
    """One curve along the network for every value of the column `by`.

    Args:
        frame: one row per layer and value of `by`: layer, `value`, `by`, number and module if there are any.
        label: of the vertical axis, with its unit.
    """
    require(frame, "layer", value, by)
    frame, every = placed(frame).sort_values("number", kind="stable"), keys(frame, by)
    fig, axes = figure(heading, width, 2.2)
    ax, lines = axes[0, 0], []
    for key, style in zip(every, looks(by, every)):
        lines.append(draw_curve(ax, frame[frame[by] == key], False, "number", value, style, str(key)))
    network_axis(ax, frame)
    ax.set_ylabel(label)
    name_lines(ax, lines)
    return fig
