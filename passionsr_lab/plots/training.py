"""Calibration over steps (PassionSR Figure 5) and over seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .base import COLUMN, GREY, PAGE, bands, drawn, figure, keys, legend, log_axis, look, require, title

if TYPE_CHECKING:
    from pandas import DataFrame

STAGES = {"transform": "LET", "bounds": "LBQ", "transform+bounds": "LET + LBQ"}  # records' words in the paper's
BACK = {"marker": "X", "mfc": "black", "mec": "white", "ms": 6, "zorder": 4}  # the mark of a stage taken back


@drawn
def loss_curves(records: DataFrame, heading: str = "Calibration loss of each module", smooth: int | None = None):
    """Loss at every step, logarithmic; one panel per module, its stages as bands, runs on top of each other.

    Hollow and filled marks are the loss over all pairs before and after a stage; a cross is a stage that was taken
    back.  The thin line is each step's own batch, the thick one its running mean.

    Args:
        records: what `calibrate` returns (columns event, module, stage, step, of, loss; `reverted` if there is one),
            of one run or of several with their names in a column `run`.  A run in progress is fine.
        heading: the figure's title.
        smooth: steps in the running mean; by default a twentieth of the stage.

    Raises:
        ValueError: a missing column or no rows.

    Example:
        >>> import pandas as pd
        >>> rows = [("start", 0, 2e-2), ("step", 1, 1e-2), ("step", 2, 5e-3), ("end", 2, 4e-3)]
        >>> records = pd.DataFrame(rows, columns=["event", "step", "loss"]).assign(module="unet", stage="bounds", of=2)
        >>> loss_curves(records).axes[0].get_yscale()
        'log'
    """
    require(records, "event", "module", "stage", "step", "of", "loss")
    defaults = {"run": "loss, its running mean thick", "reverted": False}
    records = records.assign(**{k: v for k, v in defaults.items() if k not in records})
    records = records.assign(reverted=records.reverted.eq(True))
    modules, runs = keys(records, "module"), keys(records, "run")
    fig, axes = figure(COLUMN if len(modules) == 1 else PAGE, 2.1, 1, len(modules))
    for ax, module in zip(axes[0], modules):
        own = records[records.module == module]
        for i, run in enumerate(runs):
            _curve(ax, own[own.run == run], look(i), smooth)
        longest = max(runs, key=lambda run: len(_spans(own[own.run == run])))
        bands(ax, [(STAGES.get(s, s), a, b) for s, a, b in _spans(own[own.run == longest])])
        ax.set_xlabel("step")
        log_axis(ax.yaxis)
        ax.set_title(module)
    axes[0, 0].set_ylabel("loss (mean squared error)")
    _loss_legend(fig, axes[0, 0], runs, bool(records.reverted.any()))
    title(fig, heading)
    return fig


def _spans(part: DataFrame) -> list[tuple[str, float, float]]:
    """(stage, begin, end) of one run in one module, in steps since the module's first."""
    spans, begin = [], 0
    for stage in keys(part, "stage"):
        end = begin + int(part.of[part.stage == stage].max())
        spans.append((stage, begin, end))
        begin = end
    return spans


def _curve(ax, part: DataFrame, style: dict, smooth: int | None) -> None:
    color = style["color"]
    for stage, begin, end in _spans(part):
        own = part[(part.stage == stage) & (part.loss > 0)]
        steps = own[own.event == "step"]
        x, window = begin + steps.step, smooth or max(1, (end - begin) // 20)
        mean = np.exp(np.log(steps.loss).rolling(window, min_periods=1, center=True).mean())
        if window > 1:
            ax.plot(x, steps.loss, "-", color=color, linewidth=0.4, alpha=0.4)
        ax.plot(x, mean, color=color, linestyle=style["linestyle"])
        for row in own[own.event != "step"].itertuples():
            mark = {"marker": style["marker"], "mec": color, "mfc": "white" if row.event == "start" else color, "ms": 4}
            ax.plot(begin + row.step, row.loss, **(BACK if row.reverted else mark), clip_on=False)


def _loss_legend(fig, ax, runs: list, reverted: bool) -> None:
    handles = [ax.plot([], [], **(look(i) | {"marker": ""}), label=str(run))[0] for i, run in enumerate(runs)]
    shapes = [("o", "white", "all pairs, before a stage"), ("o", GREY, "all pairs, after a stage")]
    handles += [ax.plot([], [], m, color=GREY, mfc=face, ms=4, label=text)[0] for m, face, text in shapes]
    handles += [ax.plot([], [], linestyle="", label="stage taken back", **BACK)[0]] if reverted else []
    legend(fig, handles)


@drawn
def quality_over_time(
    frame: DataFrame,
    value: str = "psnr_fp",
    label: str = "PSNR against full precision (dB)",
    heading: str = "Quality reached after a time of calibration",
    width: float = COLUMN,
):
    """Quality (dB) against seconds of calibration: one curve per method, thin ones per seed.

    Args:
        frame: columns method, seconds and `value`; with a column seed, the thick curve is the seeds' mean wherever all
            of them have been measured.
        value, label: the column on the y axis and what is written there.
        heading, width: title and inches.

    Raises:
        ValueError: a missing column or no rows.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"method": ["DQC", "DQC", "joint"], "seconds": [1, 2, 2], "psnr_fp": [30, 33, 31]})
        >>> [text.get_text() for text in quality_over_time(frame).legends[0].texts]
        ['DQC', 'joint']
    """
    require(frame, "method", "seconds", value)
    fig, axes = figure(width, 2.2)
    ax, lines = axes[0, 0], []
    for i, method in enumerate(keys(frame, "method")):
        own = frame[frame.method == method].sort_values("seconds")
        curves = [own] if "seed" not in own else [part for _, part in own.groupby("seed")]
        x = np.unique(own.seconds)
        x = x[(x >= max(c.seconds.min() for c in curves)) & (x <= min(c.seconds.max() for c in curves))]
        mean = np.mean([np.interp(x, c.seconds, c[value]) for c in curves], axis=0)
        if len(curves) > 1:
            for curve in curves:
                ax.plot(curve.seconds, curve[value], "-", color=look(i)["color"], linewidth=0.4, alpha=0.5)
        lines += ax.plot(x, mean, **look(i), markevery=max(1, len(x) // 8), label=str(method))
    ax.set(xlabel="calibration time (s)", ylabel=label)
    legend(fig, lines)
    title(fig, heading)
    return fig
