"""Distributions of values as they were counted, and where a quantizer's boundaries and grid lie in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .base import COLUMN, PAGE, drawn, figure, legend
from .colours import ACCENT, PALETTE
from .quantizers import levels


def histogram(
    edges: Sequence[float],
    counts: Sequence[float],
    bounds: tuple[float, float] | None = None,
    bits: int | None = None,
    zero_point: str = "integer",
    heading: str = "Distribution of values",
    width: float = COLUMN,
    caption: str | Mapping = "",
):
    """A histogram with logarithmic counts, the quantizer's boundaries and its grid.

    Args:
        edges, counts: (n + 1,) ascending and (n,), or else `ValueError`, as `numpy.histogram` gives them.
        bounds: (lower, upper) boundaries to draw; with `bits` also the grid that they span, as strokes at the bottom.
        bits, zero_point: of the quantizer.
    """
    return histograms({"": (edges, counts, bounds)}, bits, zero_point, heading, width, caption=caption)


@drawn
def histograms(
    states: Mapping[str, tuple],
    bits: int | None = None,
    zero_point: str = "integer",
    heading: str = "Distribution of values",
    width: float | None = None,
):
    """Histograms side by side on the same axes, e.g. one layer's input before and after LET; each as in `histogram`.

    Args:
        states: name -> (edges, counts, bounds or None).
        bits, zero_point: as in `histogram`.
        width: inches; by default a column for one and the page for several.
    """
    if not states:
        raise ValueError("There is no histogram to draw.")
    wide = width or (COLUMN if len(states) == 1 else PAGE)
    fig, axes = figure(heading, wide, 2.3, 1, len(states), sharex=True, sharey=True)
    for ax, (name, (edges, counts, bounds)) in zip(axes[0], states.items()):
        draw_distribution(ax, edges, counts, bounds, bits, zero_point, name)
    axes[0, 0].set_ylabel("count")
    if any(bounds for *_, bounds in states.values()):
        legend(fig, bound_marks(axes[0, 0], bits))
    return fig


def bound_marks(ax, bits: int | None) -> list:
    """What a legend shows of `draw_distribution`'s boundaries and, with bits, of their grid."""
    marks = ax.plot([], [], "--", color=ACCENT, linewidth=0.8, label="boundaries")
    return marks + (ax.plot([], [], "|", color=ACCENT, ms=5, label=f"grid of {2**bits} values") if bits else [])


def draw_distribution(ax, edges, counts, bounds=None, bits=None, zero_point="integer", name: str = "") -> None:
    """Draws one histogram into `ax`, arguments as in `histogram`, with `name` and what the grid does in its title."""
    edges, counts = np.asarray(edges, float), np.asarray(counts, float)
    if len(edges) != len(counts) + 1:
        raise ValueError(f"{len(counts)} counts have {len(counts) + 1} edges, not {len(edges)}.")
    filled = np.flatnonzero(counts) if counts.any() else np.arange(len(counts))
    ax.stairs(counts[filled[0] : filled[-1] + 1], edges[filled[0] : filled[-1] + 2], fill=True, color=PALETTE[5])
    if len(filled) < len(counts) / 8:  # single values: their bins are thinner than a pixel
        ax.vlines((edges[filled] + edges[filled + 1]) / 2, 0.7, counts[filled], color=PALETTE[5], linewidth=0.8)
    notes = [name] * bool(name)
    if bounds:
        for bound in bounds:
            ax.axvline(bound, color=ACCENT, linestyle="--", linewidth=0.8)
        if bits:
            step, places = levels(bounds, bits, zero_point)
            thin = min(0.6, 40 / 2**bits)
            ax.vlines(places, 0, 0.06, color=ACCENT, linewidth=thin, transform=ax.get_xaxis_transform())
            notes.append(f"step {step:.3g}")
        notes.append(f"{clipped(edges, counts, bounds)} clipped")
    ax.set_title(", ".join(notes))
    ax.margins(x=0.02)
    ax.set(yscale="log", xlabel="value")


def clipped(edges: np.ndarray, counts: np.ndarray, bounds: tuple[float, float]) -> str:
    """The share of the values in bins that lie wholly beyond the boundaries, in percent."""
    hair = 1e-9 * (edges[-1] - edges[0])
    outside = (edges[1:] <= bounds[0] + hair) | (edges[:-1] >= bounds[1] - hair)
    share = 100 * counts[outside].sum() / max(counts.sum(), 1)
    return "< 0.01 %" if 0 < share < 0.01 else f"{share:.2f} %" if share else "0 %"
