"""What all figures share: widths, layout, titles, names of lines, and what is asked of a frame."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from .colours import GREY, MODULE_COLOURS, PALE

COLUMN, PAGE = 3.25, 6.875  # inches: CVPR's column and text width
FEW = 6  # lines that are named at their ends; more of them have a legend
END = "name at the end of a line"  # gid of such a text
CAPTION = inspect.Parameter("caption", inspect.Parameter.KEYWORD_ONLY, default="", annotation="str | Mapping")


def drawn(function: Callable) -> Callable:
    """Decorator: the function builds its figure in the paper's style, whatever the user's settings are.

    Adds the argument `caption`: a small line below, from a text or from names and values (model, method, widths,
    pairs, steps, seeds).  The layout is computed once and then fixed, so that saving twice, or showing and then
    saving, gives the same bytes.
    """

    @functools.wraps(function)
    def styled(*args, caption: str | Mapping = "", **kwargs):
        from .canvas import paper

        with paper():
            fig = function(*args, **kwargs)
            fig.fix_layout()
            if isinstance(caption, Mapping):
                caption = " · ".join(
                    f"{name} {value}".replace(" ", "\N{NO-BREAK SPACE}") for name, value in caption.items()
                )
            if caption:
                fig.add_caption(caption)
            return fig

    signature = inspect.signature(function)
    styled.__signature__ = signature.replace(parameters=[*signature.parameters.values(), CAPTION])
    return styled


def figure(heading: str, width: float, height: float, rows: int = 1, cols: int = 1, **options):
    """(figure, (rows, cols) array of axes), in inches, under its heading; `options` as for `Figure.subplots`.

    With 0 rows there are no axes and no layout: the caller places its own.
    """
    from .canvas import PaperFigure

    fig = PaperFigure(figsize=(width, height), layout="constrained" if rows else None)
    fig.suptitle("\n".join(title_lines(heading, width)), x=0.01, ha="left")
    return fig, fig.subplots(rows, cols, squeeze=False, **options) if rows else None


def title_lines(text: str, width: float) -> list[str]:
    """The lines of a title in a figure of this width (inches)."""
    return wrapped(text, 16.5 * width)


def wrapped(text: str, characters: float) -> list[str]:
    """Lines of at most so many characters, broken at spaces and inside dotted names."""
    lines = [""]
    for word in re.split(r"(?<= )|(?<=\w\.)(?=[A-Za-z])", text):
        if len(lines[-1] + word.rstrip()) > characters and lines[-1]:
            lines.append("")
        lines[-1] += word
    return [line.rstrip() for line in lines]


def legend(fig, handles: Iterable, labels: Iterable[str] | None = None) -> None:
    """A legend below all axes, in as many columns as fit, so that it hides no data."""
    handles = list(handles)
    labels = [h.get_label() for h in handles] if labels is None else list(labels)
    for columns in range(max(1, len(handles)), 0, -1):
        box = fig.legend(handles, labels, loc="outside lower center", ncols=columns)
        if columns == 1 or box.get_window_extent().width <= 0.98 * fig.bbox.width:
            return
        box.remove()


def name_lines(ax, lines: Sequence) -> None:
    """Names each line at its right end in its colour where lines are few; otherwise in a legend."""
    if len(lines) > FEW:
        return legend(ax.figure, lines)
    for line in lines:
        points = [(x, y) for x, y in zip(*line.get_data()) if y == y]
        text = "\n".join(wrapped(line.get_label(), 14))
        style = {"color": line.get_color(), "fontsize": 6, "va": "center", "linespacing": 1, "gid": END}
        where = {"xycoords": ax.get_yaxis_transform(), "textcoords": "offset points", "annotation_clip": False}
        ax.annotate(text, (1, points[-1][1] if points else 0), (4, 0), **where, **style)


def bands(ax, spans: Sequence[tuple[str, float, float]]) -> None:
    """Shades every second span (name, begin, end) of the x axis and names them all above the axes."""
    for i, (_, begin, end) in enumerate(spans):
        ax.axvspan(begin, end, color=PALE if i % 2 == 0 else "none", zorder=0, linewidth=0)
    top = ax.secondary_xaxis("top")
    top.set_xticks([(begin + end) / 2 for _, begin, end in spans], [name for name, *_ in spans])
    top.tick_params(length=0, pad=1)
    top.spines["top"].set_visible(False)
    for label, (name, *_) in zip(top.get_xticklabels(), spans):
        label.set_color(MODULE_COLOURS.get(name, GREY))


def log_axis(axis) -> None:
    """A logarithmic axis with plain numbers: 1, 2, 5 in every decade, or only the decades when there are many."""
    from matplotlib.ticker import LogLocator

    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    low, high = axis.get_view_interval()
    if 0 < low < high < 1.1 * low:  # too narrow for numbers that differ
        low, high = low / 1.2, high * 1.2
        axis.axes.set(**{f"{axis.axis_name}lim": (low, high)})
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 150 * low else (1,)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter("")


def require(frame, *columns: str) -> None:
    """`ValueError` for a frame without rows or without one of these columns."""
    missing = [c for c in columns if c not in frame.columns]
    if missing:
        raise ValueError(f"The frame lacks the column {missing[0]!r}; this figure reads {', '.join(columns)}.")
    if not len(frame):
        raise ValueError("The frame has no rows, so there is nothing to draw.")


def keys(frame, column: str) -> list:
    """The values of a column in the order of its categories, or else of their first appearance."""
    present = frame[column].dropna().unique()
    categories = getattr(frame[column].dtype, "categories", None)
    return list(present) if categories is None else [c for c in categories if c in set(present)]
