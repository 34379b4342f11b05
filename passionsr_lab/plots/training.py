"""Calibration over steps (PassionSR Figure 5) and over seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .base import ACCENT, COLUMN, GREY, PAGE, bands, drawn, figure, keys, legend, log_axis, look, require, title

if TYPE_CHECKING:
    from pandas import DataFrame

STAGES = {"transform": "LET", "bounds": "LBQ", "transform+bounds": "LET + LBQ"}  # records' words in the paper's
BACK = {"marker": "X", "mfc": "black", "mec": "white", "ms": 6, "zorder": 4}  # the mark of a stage that was taken back


@drawn
def loss_curves(records: DataFrame, heading: str = "Calibration loss of each module", smooth: int | None = None):
    """Loss at every step, logarithmic; one panel per module, its stages as bands, runs on top of each other.

    Hollow and filled marks are the loss over all pairs before and after a stage; a cross where a stage was taken
    back, partly or wholly.  The thin line is each step's own batch, the thick one its running mean.

    Args:
        records: what `calibrate` returns (columns event, module, stage, step, of, loss; `kept` if there is one),
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
    thin = smooth != 1 and records.of.max() >= 40
    defaults = {"run": "loss, its running mean thick" if thin else "loss of a step", "kept": 1.0}
    records = records.assign(**{k: v for k, v in defaults.items() if k not in records})
    modules, runs = keys(records, "module"), keys(records, "run")
    fig, axes = figure(COLUMN if len(modules) == 1 else PAGE, 2.1, 1, len(modules))
    for ax, module in zip(axes[0], modules):
        own = records[records.module == module]
        for i, run in enumerate(runs):
            _curve(ax, own[own.run == run], look(i) | {"ms": 4 + 2 * (len(runs) - 1 - i)}, smooth)
        longest = max(runs, key=lambda run: len(_spans(own[own.run == run])))
        bands(ax, [(STAGES.get(s, s), a, b) for s, a, b in _spans(own[own.run == longest])])
        ax.set_xlabel("step")
        if (own.loss > 0).any():
            log_axis(ax.yaxis)
        else:
            ax.set_yticks([])  # nothing is there yet
        ax.set_title(module)
    axes[0, 0].set_ylabel("loss (mean squared error)")
    _loss_legend(fig, axes[0, 0], runs, bool(records.kept.lt(1).any()))
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
        ax.plot(x, mean, color=color, linestyle=style["linestyle"], marker="." if len(x) == 1 else "")
        for row in own[own.event != "step"].itertuples():
            mark = {"marker": style["marker"], "mec": color, "mfc": "white" if row.event == "start" else color}
            mark |= {"ms": style["ms"]}
            ax.plot(begin + row.step, row.loss, **(BACK if row.kept < 1 else mark), clip_on=False)


def _loss_legend(fig, ax, runs: list, back: bool) -> None:
    handles = [ax.plot([], [], **(look(i) | {"marker": ""}), label=str(run))[0] for i, run in enumerate(runs)]
    shapes = [("o", "white", "all pairs, before a stage"), ("o", GREY, "all pairs, after a stage")]
    handles += [ax.plot([], [], m, color=GREY, mfc=face, ms=4, label=text)[0] for m, face, text in shapes]
    handles += [ax.plot([], [], linestyle="", label="stage taken back, partly or wholly", **BACK)[0]] if back else []
    legend(fig, handles)


@drawn
def quality_over_time(
    frame: DataFrame,
    value: str = "psnr_fp",
    label: str = "PSNR against full precision (dB)",
    heading: str = "Quality reached after a time of calibration",
    width: float | None = None,
):
    """Quality (dB) against seconds of calibration and, where it is known, against updates: one curve per method.

    A vertical line stands where the first of the methods ended, which is as far as they can be compared; what each has
    reached there is ringed, and written above.

    Args:
        frame: columns method, seconds and `value`; with a column updates (of every module, on average), a panel at
            equal updates stands to the left; with a column seed, thin curves are the seeds, and the thick one is their
            mean wherever all of them have been measured.
        value, label: the column on the y axis and what is written there.
        heading, width: title, and inches; by default a column for one panel and the page for two.

    Raises:
        ValueError: a missing column or no rows.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"method": ["DQC", "DQC", "joint"], "seconds": [1, 3, 2], "psnr_fp": [30, 33, 31]})
        >>> quality_over_time(frame).axes[0].get_title("left")
        'at equal seconds, 2 s: DQC 31.50, joint 31.00'
    """
    require(frame, "method", "seconds", value)
    panels = [("updates", "updates of a module, on average", "at equal steps, {:.0f} updates")] * ("updates" in frame)
    panels += [("seconds", "calibration time (s)", "at equal seconds, {:.3g} s")]
    fig, axes = figure(width or (COLUMN, PAGE)[len(panels) - 1], 2.3, 1, len(panels), sharey=True)
    for ax, (x, name, until) in zip(axes[0], panels):
        means = {method: _mean_curve(ax, frame[frame.method == method], x, value, look(i), str(method))
                 for i, method in enumerate(keys(frame, "method"))}  # fmt: skip
        end = min(line.get_xdata()[-1] for line in means.values())
        reached = {method: float(np.interp(end, *line.get_data())) for method, line in means.items()}
        ax.axvline(end, color=ACCENT, linewidth=0.8, linestyle="--", zorder=1)
        ax.plot([end] * len(reached), [*reached.values()], "o", mfc="none", mec=ACCENT, ms=6, clip_on=False)
        ax.set_title(f"{until.format(end)}: " + ", ".join(f"{method} {y:.2f}" for method, y in reached.items()))
        ax.set_xlabel(name)
    axes[0, 0].set_ylabel(label)
    legend(fig, means.values())
    title(fig, heading)
    return fig


def _mean_curve(ax, own: DataFrame, x: str, value: str, style: dict, label: str):
    """Draws one method's seeds (thin) and their mean where all of them have been measured; the mean's line."""
    own = own.sort_values(x, kind="stable")
    seeds = [own] if "seed" not in own else [part for _, part in own.groupby("seed")]
    if len(seeds) == 1:  # every point as it was measured: a stage taken back is a jump at one place
        places, mean = own[x].to_numpy(float), own[value].to_numpy(float)
    else:
        places = np.unique(own[x])
        places = places[(places >= max(s[x].min() for s in seeds)) & (places <= min(s[x].max() for s in seeds))]
        mean = np.mean([np.interp(places, s[x], s[value]) for s in seeds], axis=0)
    for seed in seeds if len(seeds) > 1 else ():
        ax.plot(seed[x], seed[value], "-", color=style["color"], linewidth=0.4, alpha=0.5)
    return ax.plot(places, mean, **style, markevery=max(1, len(places) // 8), label=label)[0]
