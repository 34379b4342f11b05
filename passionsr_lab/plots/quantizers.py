"""One quantizer seen by itself: its staircase, its error, and where its grid lies in a histogram."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ..quantization.quantizer import fake_quantize, grid_of
from .base import ACCENT, COLUMN, GREY, PAGE, PALETTE, drawn, figure, legend, look, title


def response(x: Tensor, bits: int, lower: float, upper: float, zero_point: str) -> dict[str, Tensor]:
    """`fake_quantize` at every x (n,), its error, and its gradients to x and to both boundaries."""
    inputs = [t.requires_grad_() for t in (x.clone(), torch.full_like(x, lower), torch.full_like(x, upper))]
    y = fake_quantize(*inputs, bits, zero_point)
    to_x, to_lower, to_upper = torch.autograd.grad(y.sum(), inputs)
    return {"output": y.detach(), "error": (y - x).detach(), "x": to_x, "lower": to_lower, "upper": to_upper}


@drawn
def quantizer_curve(
    bits: int, lower: float, upper: float, zero_point: str = "integer", points: int = 2001, width: float = COLUMN
):
    """Output, error and gradients of `fake_quantize` for inputs from well below to well above the boundaries.

    The axes' lines are exactly what the library computes; shaded inputs lie more than half a step off the grid.

    Args:
        bits: 2 to 16.
        lower, upper: the boundaries, in the input's unit.
        zero_point: "integer" or "real" (see `quantizer.grid`).
        points: how many inputs.
        width: inches.

    Raises:
        ValueError: lower is not below upper.

    Example:
        >>> fig = quantizer_curve(2, 0.0, 1.0)
        >>> sorted({round(float(y), 3) for y in fig.axes[0].lines[0].get_ydata()})
        [0.0, 0.333, 0.667, 1.0]
    """
    if not lower < upper:
        raise ValueError(f"The lower boundary must be below the upper one, not {lower} and {upper}.")
    margin = 0.3 * (upper - lower)
    x = torch.linspace(lower - margin, upper + margin, points)
    r = response(x, bits, lower, upper, zero_point)
    step, base = (float(t) for t in grid_of(torch.tensor(lower), torch.tensor(upper), bits, zero_point))
    fig, axes = figure(width, 3.4, 3, 1, sharex=True, height_ratios=(2, 1, 1.2))
    for ax, line in zip(axes[:2, 0], (r["output"], r["error"])):
        ax.plot(x, line, color=PALETTE[0])
    axes[1, 0].set_ylim(-2 * step, 2 * step)
    axes[0, 0].plot(x, x, color=GREY, linestyle=":", linewidth=0.6)
    lines = [
        axes[2, 0].plot(x, r[key], **(look(i + 1) | {"marker": ""}), label=f"to {name}")[0]
        for i, (key, name) in enumerate(
            {"x": "the input", "lower": "lower boundary", "upper": "upper boundary"}.items()
        )
    ]
    for ax, label in zip(axes[:, 0], ("output", "error", "gradient of\nthe output")):
        ax.set(ylabel=label, xlim=(x[0].item(), x[-1].item()))
        ax.axvspan(x[0].item(), base - step / 2, color="#ececec", zorder=0, linewidth=0)
        ax.axvspan(base + (2**bits - 0.5) * step, x[-1].item(), color="#ececec", zorder=0, linewidth=0)
    axes[2, 0].set_xlabel("input (clipped where shaded)")
    legend(fig, lines)
    title(fig, f"{bits}-bit quantizer from {lower:g} to {upper:g}, {zero_point} zero point: step {step:.3g}")
    return fig


def error_grid(
    values: Tensor, lowers: Sequence[float], uppers: Sequence[float], bits: int, zero_point: str = "integer"
) -> np.ndarray:
    """Signal to quantization noise (dB) of `values` for every pair of boundaries, shape (lowers, uppers).

    Pairs that are not in order are NaN.

    Example:
        >>> error_grid(torch.linspace(0, 1, 256), [0.0], [0.5, 1.0], bits=4).round(1)
        array([[ 9. , 29.6]])
    """
    values = torch.as_tensor(values).flatten().double()
    result = np.full((len(lowers), len(uppers)), np.nan)
    for i, lower in enumerate(lowers):
        for j, upper in enumerate(uppers):
            if lower < upper:
                done = fake_quantize(
                    values, values.new_tensor(float(lower)), values.new_tensor(float(upper)), bits, zero_point
                )
                noise = (done - values).square().mean().clamp_min(1e-20)
                result[i, j] = 10 * torch.log10(values.square().mean() / noise)
    return result


@drawn
def error_surface(
    lowers: Sequence[float],
    uppers: Sequence[float],
    quality: np.ndarray,
    marks: Mapping[str, tuple[float, float]] | None = None,
    label: str = "signal to quantization noise (dB)",
    heading: str = "Quality against the two boundaries",
    width: float = COLUMN,
):
    """Quality as a surface over lower and upper boundary, its best point, and other named points.

    Args:
        lowers, uppers: (n,) and (m,) boundaries, ascending.
        quality: (n, m), larger is better, NaN is left white; `error_grid` makes one.
        marks: name -> (lower, upper) to mark, e.g. where MaxMin starts and where LBQ ended.
        label, heading, width: of the colour bar, title, inches.

    Raises:
        ValueError: the shapes do not belong together.

    Example:
        >>> fig = error_surface([-1, 0], [1, 2], np.array([[1.0, 2.0], [3.0, np.nan]]), {"MaxMin": (-1, 2)})
        >>> [text.get_text() for text in fig.legends[0].texts]
        ['best: 3', 'MaxMin']
    """
    quality = np.asarray(quality, float)
    if quality.shape != (len(lowers), len(uppers)) or np.isnan(quality).all():
        raise ValueError(f"quality must be numbers of shape ({len(lowers)}, {len(uppers)}), not {quality.shape}.")
    fig, axes = figure(width, 2.5)
    ax = axes[0, 0]
    mesh = ax.pcolormesh(lowers, uppers, quality.T, shading="nearest", rasterized=True)
    fig.colorbar(mesh, ax=ax, label=label, pad=0.02).outline.set_linewidth(0.4)
    i, j = np.unravel_index(np.nanargmax(quality), quality.shape)
    points = {f"best: {quality[i, j]:.3g}": (lowers[i], uppers[j])} | dict(marks or {})
    shown = [
        ax.plot(
            *point, "*X^Dv<P>"[k % 8], color=("white", *PALETTE[3:], *PALETTE[:3])[k % 8], mec="black", ms=6, label=name
        )[0]
        for k, (name, point) in enumerate(points.items())
    ]
    ax.set(xlabel="lower boundary", ylabel="upper boundary")
    ax.grid(False)
    legend(fig, shown)
    title(fig, heading)
    return fig


def histogram(
    edges: Sequence[float],
    counts: Sequence[float],
    bounds: tuple[float, float] | None = None,
    bits: int | None = None,
    zero_point: str = "integer",
    heading: str = "Distribution of values",
    width: float = COLUMN,
):
    """A histogram with logarithmic counts, the quantizer's boundaries and its grid.

    Args:
        edges, counts: (n + 1,) ascending and (n,), as `numpy.histogram` gives them.
        bounds: (lower, upper) boundaries to draw; with `bits` also the grid that they span, as strokes at the bottom.
        bits, zero_point: of the quantizer.
        heading, width: title and inches.

    Raises:
        ValueError: edges and counts do not belong together.

    Example:
        >>> histogram([0, 1, 2, 3], [5, 1, 1], bounds=(0, 2), bits=2).axes[0].get_title("left")
        'step 0.667, 14.29 % clipped'
    """
    return histograms({"": (edges, counts, bounds)}, bits, zero_point, heading, width)


@drawn
def histograms(
    parts: Mapping[str, tuple],
    bits: int | None = None,
    zero_point: str = "integer",
    heading: str = "Distribution of values",
    width: float | None = None,
):
    """Histograms side by side, e.g. one layer's input before and after LET; each as in `histogram`.

    Args:
        parts: name -> (edges, counts, bounds or None).
        bits, zero_point, heading: as in `histogram`.
        width: inches; by default a column for one and the page for several.

    Example:
        >>> part = ([0, 1, 2], [3, 1], None)
        >>> len(histograms({"before LET": part, "after LET": part}).axes)
        2
    """
    if not parts:
        raise ValueError("There is no histogram to draw.")
    fig, axes = figure(width or (COLUMN if len(parts) == 1 else PAGE), 2.3, 1, len(parts))
    for ax, (name, (edges, counts, bounds)) in zip(axes[0], parts.items()):
        draw_distribution(ax, edges, counts, bounds, bits, zero_point, name)
    axes[0, 0].set_ylabel("count")
    if any(bounds for *_, bounds in parts.values()):
        dashed = axes[0, 0].plot([], [], "--", color=ACCENT, linewidth=0.8)[0]
        ticks = axes[0, 0].plot([], [], "|", color=ACCENT, ms=5)[0]
        legend(fig, [dashed, ticks][: 1 + (bits is not None)], ["boundaries", f"grid of {2 ** (bits or 0)} values"])
    title(fig, heading)
    return fig


def draw_distribution(ax, edges, counts, bounds=None, bits=None, zero_point="integer", name: str = "") -> None:
    """Draws one histogram into `ax`, arguments as in `histogram`, with `name` and what the grid does in its title."""
    edges, counts = np.asarray(edges, float), np.asarray(counts, float)
    if len(edges) != len(counts) + 1:
        raise ValueError(f"{len(counts)} counts have {len(counts) + 1} edges, not {len(edges)}.")
    ax.stairs(counts, edges, fill=True, color=PALETTE[5])
    notes = [name] * bool(name) + (_draw_grid(ax, edges, counts, bounds, bits, zero_point) if bounds else [])
    ax.set_title(", ".join(notes))
    filled = np.flatnonzero(counts) if counts.any() else np.arange(len(counts))
    reach = [edges[filled[0]], edges[filled[-1] + 1], *(bounds or ())]
    margin = 0.02 * (max(reach) - min(reach))
    ax.set(yscale="log", xlabel="value", xlim=(min(reach) - margin, max(reach) + margin))


def _draw_grid(
    ax, edges: np.ndarray, counts: np.ndarray, bounds: tuple, bits: int | None, zero_point: str
) -> list[str]:
    """Draws boundaries and grid; what to write about them."""
    for bound in bounds:
        ax.axvline(bound, color=ACCENT, linestyle="--", linewidth=0.8)
    hair = 1e-9 * (edges[-1] - edges[0])
    outside = (edges[1:] <= bounds[0] + hair) | (edges[:-1] >= bounds[1] - hair)  # bins that lie wholly beyond
    clipped = counts[outside].sum() / max(counts.sum(), 1)
    notes = [f"{100 * clipped:.2f} % clipped"]
    if bits is not None:
        step, base = (float(t) for t in grid_of(*(torch.tensor(float(b)) for b in bounds), bits, zero_point))
        levels = base + step * np.arange(2**bits)
        ax.vlines(levels, 0, 0.06, color=ACCENT, linewidth=min(0.6, 40 / 2**bits), transform=ax.get_xaxis_transform())
        notes.insert(0, f"step {step:.3g}")
    return notes
