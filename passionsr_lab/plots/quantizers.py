"""One quantizer seen by itself: its staircase, its error, and its quality against the two boundaries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ..quantization.quantizer import fake_quantize, grid_of
from .base import COLUMN, colour_bar, drawn, figure, legend, name_lines
from .colours import GREY, INK, PALE, look, method_look


def response(x: Tensor, bits: int, lower: float, upper: float, zero_point: str) -> dict[str, Tensor]:
    """`fake_quantize` at every x (n,), its error, and its gradients to x and to both boundaries."""
    inputs = [t.requires_grad_() for t in (x.clone(), torch.full_like(x, lower), torch.full_like(x, upper))]
    y = fake_quantize(*inputs, bits, zero_point)
    to_x, to_lower, to_upper = torch.autograd.grad(y.sum(), inputs)
    return {"output": y.detach(), "error": (y - x).detach(), "x": to_x, "lower": to_lower, "upper": to_upper}


def levels(bounds: tuple[float, float], bits: int, zero_point: str) -> tuple[float, np.ndarray]:
    """The step of the grid between two boundaries, and its 2**bits values."""
    step, base = (float(t) for t in grid_of(*(torch.tensor(float(b)) for b in bounds), bits, zero_point))
    return step, base + step * np.arange(2**bits)


@drawn
def quantizer_curve(
    bits: int, lower: float, upper: float, zero_point: str = "integer", points: int = 2001, width: float = COLUMN
):
    """Output, error and gradients of `fake_quantize` for inputs from well below to well above the boundaries.

    The axes' lines are exactly what the library computes; shaded inputs lie more than half a step off the grid.

    Args:
        bits: 2 to 16.
        lower, upper: the boundaries, in the input's unit; in order, or else `ValueError`.
        zero_point: "integer" or "real" (see `quantizer.grid`).
        points: how many inputs.
    """
    if not lower < upper:
        raise ValueError(f"The lower boundary must be below the upper one, not {lower} and {upper}.")
    margin = 0.3 * (upper - lower)
    x = torch.linspace(lower - margin, upper + margin, points)
    r = response(x, bits, lower, upper, zero_point)
    step, places = levels((lower, upper), bits, zero_point)
    heading = f"{bits}-bit quantizer from {lower:g} to {upper:g}, {zero_point} zero point: step {step:.3g}"
    fig, axes = figure(heading, width, 3.4, 3, 1, sharex=True, height_ratios=(2, 1, 1.2))
    for ax, line in zip(axes[:2, 0], (r["output"], r["error"])):
        ax.plot(x, line, color=INK)
    axes[1, 0].set_ylim(-2 * step, 2 * step)
    axes[0, 0].plot(x, x, color=GREY, linestyle=":", linewidth=0.6)
    named = {"x": "to the input", "lower": "to the lower boundary", "upper": "to the upper boundary"}
    lines = [axes[2, 0].plot(x, r[k], **look(i) | {"marker": ""}, label=n)[0] for i, (k, n) in enumerate(named.items())]
    for ax, label in zip(axes[:, 0], ("output", "error", "gradient of\nthe output")):
        ax.set(ylabel=label, xlim=(x[0].item(), x[-1].item()))
        for clipped in ((x[0].item(), places[0] - step / 2), (places[-1] + step / 2, x[-1].item())):
            ax.axvspan(*clipped, color=PALE, zorder=0, linewidth=0)
    axes[2, 0].set_xlabel("input (clipped where shaded)")
    name_lines(axes[2, 0], lines)
    return fig


def error_grid(
    values: Tensor, lowers: Sequence[float], uppers: Sequence[float], bits: int, zero_point: str = "integer"
) -> np.ndarray:
    """Signal to quantization noise (dB) of `values` for every pair of boundaries, shape (lowers, uppers).

    Pairs that are not in order are NaN.
    """
    values = torch.as_tensor(values).flatten().double()
    lower, upper = (torch.as_tensor(np.asarray(bounds, float))[:, None] for bounds in (lowers, uppers))
    noise = torch.stack([(fake_quantize(values, a, upper, bits, zero_point) - values).square().mean(1) for a in lower])
    quality = 10 * torch.log10(values.square().mean() / noise.clamp_min(1e-20))  # (lowers, uppers)
    return quality.where(lower < upper.T, torch.nan).numpy()


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
        quality: (n, m), or else `ValueError`; larger is better, NaN is left white; `error_grid` makes one.
        marks: method -> (lower, upper) to mark, e.g. where MaxMin starts and where LBQ ended.
        label: of the colour bar.
    """
    quality = np.asarray(quality, float)
    if quality.shape != (len(lowers), len(uppers)) or np.isnan(quality).all():
        raise ValueError(f"quality must be numbers of shape ({len(lowers)}, {len(uppers)}), not {quality.shape}.")
    fig, axes = figure(heading, width, 2.5)
    ax = axes[0, 0]
    mesh = ax.pcolormesh(lowers, uppers, quality.T, shading="nearest", rasterized=True)
    colour_bar(mesh, ax, label)
    i, j = np.unravel_index(np.nanargmax(quality), quality.shape)
    points = {f"best: {quality[i, j]:.3g}": (lowers[i], uppers[j])} | dict(marks or {})
    style = {"linestyle": "", "mec": "black", "mew": 0.5, "clip_on": False}  # the later ones are smaller and lie above
    for k, (name, point) in enumerate(points.items()):
        own = method_look(name) if k else {"color": "white", "marker": "*"}
        ax.plot(*point, own["marker"], color=own["color"], ms=max(4, 10 - 3 * k), label=name, **style)
    ax.set(xlabel="lower boundary", ylabel="upper boundary")
    ax.grid(False)
    legend(fig, ax.lines)
    return fig
