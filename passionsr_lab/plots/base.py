"""What all figures share: widths, layout, titles, names of lines, what is asked of a frame, and saving."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from ..util.files import replacing
from .colours import GREY, MODULE_COLOURS, PALE
from .texts import END, title_lines, wrapped

COLUMN, PAGE = 3.25, 6.875  # inches: CVPR's column and text width
FEW = 6  # lines that are named at their ends; more of them have a legend
METADATA = {
    "pdf": {"Creator": "passionsr_lab", "Producer": "matplotlib", "CreationDate": None},
    "png": {"Software": "passionsr_lab"},
    "svg": {"Creator": "passionsr_lab", "Date": None},
}
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
                named = (f"{name} {value}".replace(" ", "\N{NO-BREAK SPACE}") for name, value in caption.items())
                caption = "\N{NO-BREAK SPACE}· ".join(named)
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


def legend(fig, handles: Iterable) -> None:
    """A legend of artists below all axes, in as many columns as fit, so that it hides no data."""
    handles = list(handles)
    for columns in range(max(1, len(handles)), 0, -1):
        box = fig.legend(handles=handles, loc="outside lower center", ncols=columns)
        if columns == 1 or box.get_window_extent().width <= 0.98 * fig.bbox.width:
            return
        box.remove()


def name_lines(ax, lines: Sequence) -> None:
    """Names each line at its right end in its colour where lines are few; otherwise in a legend."""
    if len(lines) > FEW:
        return legend(ax.figure, lines)
    low, high = sorted(ax.get_ylim())  # a name far outside would leave the layout no room
    for line in lines:
        heights = [min(max(y, low), high) for y in line.get_ydata() if y == y]
        text = "\n".join(wrapped(line.get_label(), 14))
        style = {"color": line.get_color(), "fontsize": 6, "va": "center", "linespacing": 1, "gid": END}
        where = {"xycoords": ax.get_yaxis_transform(), "textcoords": "offset points", "annotation_clip": False}
        ax.annotate(text, (1, heights[-1] if heights else low), (4, 0), **where, **style)


def colour_bar(mesh, axes, label: str) -> None:
    """The scale of a map right of its axes."""
    mesh.figure.colorbar(mesh, ax=axes, label=label, pad=0.02, shrink=0.9).outline.set_linewidth(0.4)


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


def png(fig) -> bytes:
    """A figure as PNG, the same bytes for the same figure: what Jupyter shows of it."""
    return fig._repr_png_()


def save(fig, name: str, folder: str | Path = "figures", formats: Sequence[str] = ("pdf", "png")) -> list[Path]:
    """Writes `folder/name.pdf` and `.png`, each atomically; the paths.

    The same figure gives the same bytes on every run: no dates, fixed metadata, embedded TrueType fonts.  Its size is
    its size on paper, nothing is cropped.  The folder is made when missing.  Raises `ValueError` for a format that is
    none of "pdf", "png", "svg", and `OSError` when a file cannot be written; what was there stays.
    """
    unknown = [f for f in formats if f not in METADATA]
    if unknown:
        raise ValueError(f"formats are some of {', '.join(METADATA)}, not {unknown[0]!r}.")
    from .canvas import paper

    paths = [Path(folder) / f"{name}.{suffix}" for suffix in formats]
    for path, suffix in zip(paths, formats):
        with replacing(path) as temporary, paper():
            fig.savefig(temporary, format=suffix, metadata=METADATA[suffix])
    return paths
