"""Calibration over steps (PassionSR Figure 5) and over seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .base import COLUMN, PAGE, bands, drawn, figure, keys, legend, log_axis, name_lines, require
from .colours import ACCENT, GREY, PALETTE, looks
from .curves import draw_curve

if TYPE_CHECKING:
    from pandas import DataFrame

STAGES = {"transform": "LET", "bounds": "LBQ", "transform+bounds": "LET + LBQ"}  # records' words in the paper's
BACK = {"marker": "X", "mfc": "black", "mec": "white", "ms": 6, "zorder": 4}  # the mark of a stage that was taken back
PALE = {"linewidth": 0.7, "alpha": 0.6}


@drawn
def loss_curves(records: DataFrame, heading: str = "Calibration loss of each module", smooth: int | None = None):
    """Loss at every step, logarithmic; one panel per module, its stages as bands, runs on top of each other.

    Hollow and filled marks, joined, are the loss over all pairs (of more than 16, over those that a calibration draws)
    before and after a stage; a cross where a stage was taken back, partly or wholly.  Pale lines are each step's own
    batch, with their running mean.

    Args:
        records: what `calibrate` returns (columns event, module, stage, step, of, loss; `step_length` if there is one),
            of one run or of several with their names in a column `run`.  A run in progress is fine.
        smooth: steps in the running mean, by default a twentieth of the stage; 1 draws the steps as they are, as
            losses over all pairs.
    """
    require(records, "event", "module", "stage", "step", "of", "loss")
    records = records.assign(**{k: v for k, v in {"run": "", "step_length": 1.0}.items() if k not in records})
    modules, runs = keys(records, "module"), keys(records, "run")
    styles = looks("run", runs) if runs != [""] else [{"color": PALETTE[0], "marker": "o", "linestyle": "-"}]
    fig, axes = figure(heading, COLUMN if len(modules) == 1 else PAGE, 2.1, 1, len(modules))
    for ax, module in zip(axes[0], modules):
        own = [records[(records.module == module) & (records.run == run)] for run in runs]
        for i, (run, style) in enumerate(zip(own, styles)):
            _draw_run(ax, run, style | {"ms": 4 + 2 * (len(runs) - 1 - i)}, smooth)
        bands(ax, [(STAGES.get(s, s), a, b) for s, a, b in max(map(_spans, own), key=len)])
        ax.set(xlabel="step", title=module)
        if any((run.loss > 0).any() for run in own):
            log_axis(ax.yaxis)
        else:
            ax.set_yticks([])  # nothing is there yet
    axes[0, 0].set_ylabel("mean squared error")
    handles = [axes[0, 0].plot([], [], **style | {"marker": ""}, label=str(run))[0] for run, style in zip(runs, styles)]
    _loss_legend(axes[0, 0], handles if len(runs) > 1 else [], smooth, bool(records.step_length.lt(1).any()))
    return fig


def _spans(own: DataFrame) -> list[tuple[str, float, float]]:
    """(stage, begin, end) of one run in one module, in steps since the module's first."""
    stages = keys(own, "stage")
    ends = np.cumsum([0, *(int(own.of[own.stage == stage].max()) for stage in stages)])
    return [*zip(stages, ends, ends[1:])]


def _draw_run(ax, records: DataFrame, style: dict, smooth: int | None) -> None:
    color = {"color": style["color"]}
    for stage, begin, end in _spans(records):
        own = records[(records.stage == stage) & (records.loss > 0)]
        steps, ends = own[own.event == "step"], own[own.event != "step"]
        x, window = begin + steps.step, smooth or max(1, (end - begin) // 20)
        mean = np.exp(np.log(steps.loss).rolling(window, min_periods=1, center=True).mean())
        if window > 1:
            ax.plot(x, steps.loss, **color, linewidth=0.4, alpha=0.3)
        line = color | {"linestyle": style["linestyle"], "marker": "." if len(x) == 1 else ""}
        ax.plot(x, mean, **line | (PALE if smooth != 1 and len(ends) > 1 else {}))
        if smooth != 1:
            ax.plot(begin + ends.step, ends.loss, **color, linewidth=1.4)
        for row in ends.itertuples():
            face = "white" if row.event == "start" else style["color"]
            mark = {"marker": style["marker"], "mec": style["color"], "mfc": face, "ms": style["ms"]}
            ax.plot(begin + row.step, row.loss, **(BACK if row.step_length < 1 else mark), clip_on=False)


def _loss_legend(ax, handles: list, smooth: int | None, back: bool) -> None:
    handles += ax.plot([], [], color=GREY, **PALE, label="batch of a step") if smooth != 1 else []
    for face, when in (("white", "before"), (GREY, "after")):
        style = {"color": GREY, "mfc": face, "ms": 4, "linewidth": 1.4 * (smooth != 1)}
        handles += ax.plot([], [], "o-", **style, label=f"all pairs, {when} a stage")
    handles += ax.plot([], [], linestyle="", label="stage taken back, partly or wholly", **BACK) if back else []
    legend(ax.figure, handles)


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
            equal updates stands to the left; with a column seed, the curve is the mean and the band the standard
            deviation of the seeds, wherever all of them have been measured.
        value, label: the column on the y axis and what is written there.
        width: inches; by default a column for one panel and the page for two.
    """
    require(frame, "method", "seconds", value)
    panels = [("updates", "updates of a module, on average", "at equal steps, {:.0f} updates")] * ("updates" in frame)
    panels += [("seconds", "calibration time (s)", "at equal seconds, {:.3g} s")]
    methods = keys(frame, "method")
    fig, axes = figure(heading, width or (COLUMN, PAGE)[len(panels) - 1], 2.3, 1, len(panels), sharey=True)
    for ax, (x, name, until) in zip(axes[0], panels):
        lines = [
            draw_curve(ax, *_common(frame[frame.method == method], x, value), x, value, style, str(method))
            for method, style in zip(methods, looks("method", methods))
        ]
        end = min(line.get_xdata()[-1] for line in lines)
        reached = {line.get_label(): float(np.interp(end, *line.get_data())) for line in lines}
        ax.axvline(end, color=ACCENT, linewidth=0.8, linestyle="--", zorder=1)
        ax.plot([end] * len(reached), [*reached.values()], "o", mfc="none", mec=ACCENT, ms=6, clip_on=False)
        ax.set_title(f"{until.format(end)}: " + ", ".join(f"{method} {y:.2f}" for method, y in reached.items()))
        ax.set_xlabel(name)
    axes[0, 0].set_ylabel(label)
    name_lines(axes[0, -1], lines)
    return fig


def _common(own: DataFrame, x: str, value: str) -> tuple[DataFrame, bool]:
    """One method's seeds at all places of `x` that lie where every one was measured, and whether they are several."""
    import pandas as pd

    own = own.sort_values(x, kind="stable")
    seeds = [own] if "seed" not in own else [seed for _, seed in own.groupby("seed")]
    if len(seeds) == 1:  # every point as it was measured: a stage taken back is a jump at one place
        return own, False
    places = np.unique(own[x])
    places = places[(places >= max(s[x].min() for s in seeds)) & (places <= min(s[x].max() for s in seeds))]
    return pd.concat(pd.DataFrame({x: places, value: np.interp(places, s[x], s[value])}) for s in seeds), True
