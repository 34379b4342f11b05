"""What all figures share: widths, colours, layout, and saving so that a second run writes the same bytes."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ..util.files import replacing

COLUMN, PAGE = 3.25, 6.875  # inches: CVPR's column and text width
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")  # Okabe and Ito, no yellow
MARKERS, LINES = "os^Dv<P>", ("-", "--", "-.", ":")
ACCENT, GREY = PALETTE[3], "#6e6e6e"
METADATA = {
    "pdf": {"Creator": "passionsr_lab", "Producer": "matplotlib", "CreationDate": None},
    "png": {"Software": "passionsr_lab"},
    "svg": {"Creator": "passionsr_lab", "Date": None},
}


def drawn(function: Callable) -> Callable:
    """Decorator: the function builds its figure in the paper's style, whatever the user's settings are.

    The layout is computed once and then fixed: matplotlib starts each from the last one, so that saving twice, or
    showing and then saving, would differ in the last digits.
    """

    @functools.wraps(function)
    def styled(*args, **kwargs):
        from .canvas import paper

        with paper():
            fig = function(*args, **kwargs)
            fig.fix_layout()
            return fig

    return styled


def look(i: int) -> dict:
    """Colour, marker and line style of the i-th thing compared: told apart without colour too."""
    return {"color": PALETTE[i % len(PALETTE)], "marker": MARKERS[i % len(MARKERS)], "linestyle": LINES[i % len(LINES)]}


def figure(width: float, height: float, rows: int = 1, cols: int = 1, **options):
    """(figure, (rows, cols) array of axes), in inches; `options` as for `Figure.subplots`."""
    from .canvas import PaperFigure

    fig = PaperFigure(figsize=(width, height), layout="constrained")
    return fig, fig.subplots(rows, cols, squeeze=False, **options)


def figure_without_axes(width: float, height: float):
    """A figure, in inches, whose axes the caller places."""
    from .canvas import PaperFigure

    return PaperFigure(figsize=(width, height))


def title(fig, text: str) -> None:
    """What is compared, above everything, in as many lines as the width asks for."""
    fig.suptitle("\n".join(wrapped(text, fig.get_figwidth())), x=0.01, ha="left")


def wrapped(text: str, width: float) -> list[str]:
    """The lines of a title in a figure of this width (inches), broken at spaces and inside dotted names."""
    lines = [""]
    for piece in re.split(r"(?<=\s)|(?<=\w\.)(?=[A-Za-z])", text):
        if len(lines[-1] + piece.rstrip()) > 16.5 * width and lines[-1]:
            lines.append("")
        lines[-1] += piece
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


def bands(ax, spans: Sequence[tuple[str, float, float]]) -> None:
    """Shades every second span (name, begin, end) of the x axis and names them all above the axes."""
    for i, (_, begin, end) in enumerate(spans):
        ax.axvspan(begin, end, color="#f0f0f0" if i % 2 == 0 else "none", zorder=0, linewidth=0)
    top = ax.secondary_xaxis("top")
    top.set_xticks([(begin + end) / 2 for _, begin, end in spans], [name for name, *_ in spans])
    top.tick_params(length=0, pad=1, labelcolor=GREY)
    top.spines["top"].set_visible(False)


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


def save(fig, name: str, folder: str | Path = "figures", formats: Sequence[str] = ("pdf", "png")) -> list[Path]:
    """Writes `folder/name.pdf` and `.png`, each atomically; the paths.

    The same figure gives the same bytes on every run: no dates, fixed metadata, embedded TrueType fonts.

    Args:
        fig: a Figure; its size is its size on paper, nothing is cropped.
        name: without a suffix.
        folder: made when missing.
        formats: some of "pdf", "png", "svg".

    Raises:
        ValueError: an unknown format.
        OSError: the file cannot be written; what was there stays.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     [path.name for path in save(figure(COLUMN, 2)[0], "empty", folder)]
        ['empty.pdf', 'empty.png']
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
