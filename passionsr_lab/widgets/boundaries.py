"""Two boundaries on a distribution: clipping against rounding, the best pair, and a figure to move them in."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .. import plots
from ..quantization.quantizer import fake_quantize, grid_of
from .picture import Explorer, menu, slider

BINS = 2**13  # of a large tensor's sample
COARSE, FINE = 33, 9  # boundaries on each side that are tried: first, and around every good pair


class Sample(NamedTuple):
    """Values (n,) in ascending order and how often each occurs (n,), float64."""

    values: Tensor
    weights: Tensor


def sample(x: Tensor | tuple) -> Sample:
    """The values of a tensor, or of a histogram (edges, counts): all if there are few, else the means of 8192 bins."""
    if isinstance(x, tuple):
        edges, counts = (torch.as_tensor(np.asarray(a, float)) for a in x)
        kept = counts > 0
        return Sample(((edges[1:] + edges[:-1]) / 2)[kept], counts[kept])
    values = x.detach().flatten().double().cpu()
    if not len(values):
        raise ValueError("There are no values to quantize.")
    if len(values) <= BINS:
        return Sample(values.sort().values, torch.ones_like(values))
    low, width = values.min(), (values.max() - values.min()).clamp_min(1e-12) / BINS
    codes = ((values - low) / width).long().clamp_max(BINS - 1)
    counts, sums = codes.bincount(minlength=BINS), codes.bincount(values, BINS)
    kept = counts > 0
    return Sample((sums[kept] / counts[kept]), counts[kept].double())


def quantization_noise(s: Sample, lower, upper, bits: int, zero_point: str = "integer") -> tuple[Tensor, Tensor]:
    """Mean squared error by clipping and by rounding, for boundaries (k,): two tensors (k,); their sum is the whole.

    A value is clipped when it lies more than half a step beyond the grid's end, as in the quantizer's gradient.

    Example:
        >>> s = sample(torch.tensor([0.0, 0.4, 1.0, 3.0]))
        >>> [round(t.item(), 3) for t in quantization_noise(s, [0.0], [1.0], bits=1)]
        [1.0, 0.04]
    """
    lower, upper = (torch.as_tensor(b, dtype=torch.float64).reshape(-1, 1) for b in (lower, upper))
    square = (fake_quantize(s.values.expand(len(lower), -1), lower, upper, bits, zero_point) - s.values).square()
    step, base = grid_of(lower, upper, bits, zero_point)
    code = (s.values - base) / step
    outside = (code < -0.5) | (code > 2**bits - 0.5)
    share = s.weights / s.weights.sum()
    return (square * outside) @ share, (square * ~outside) @ share


def best_boundaries(s: Sample, bits: int, zero_point: str = "integer") -> tuple[float, float]:
    """The (lower, upper) of least squared error: all pairs of a coarse grid, then finer ones around the best few."""
    low, high = s.values[0].item(), s.values[-1].item()
    places = np.linspace(low, high, COARSE)
    found = _least(s, [(a, b) for a in places for b in places if a < b], bits, zero_point)
    if zero_point == "real":  # the grid of the best integer pair is a real pair as well
        bounds = (torch.tensor(b) for b in best_boundaries(s, bits))
        step, base = grid_of(*bounds, bits)
        found.append((base.item(), (base + step * (2**bits - 1)).item()))
    else:  # 0 is on that grid anyway
        found = [(min(a, 0.0), max(b, 0.0)) for a, b in found]
    reach = (high - low) / (COARSE - 1)
    for _ in range(3):
        moves = np.linspace(-reach, reach, FINE)
        found = _least(s, [(a + i, b + j) for a, b in found for i in moves for j in moves], bits, zero_point)
        reach /= FINE // 2
    lower, upper = found[0]
    return (lower, upper) if zero_point == "real" else (min(lower, 0.0), max(upper, 0.0))


def _least(s: Sample, pairs: list, bits: int, zero_point: str, count: int = 3) -> list[tuple[float, float]]:
    """The pairs of least error, the best first; they may lie a little beyond the values."""
    pairs = [(float(a), float(b)) for a, b in pairs if a < b]
    noise = torch.cat([sum(quantization_noise(s, *zip(*p), bits, zero_point)) for p in _chunks(pairs, 32)])
    return [pairs[i] for i in noise.argsort()[:count].tolist()]


def _chunks(pairs: list, size: int):
    return (pairs[i : i + size] for i in range(0, len(pairs), size))


def boundary_figure(
    x: Tensor | tuple,
    lower: float | None = None,
    upper: float | None = None,
    bits: int = 4,
    zero_point: str = "integer",
    name: str = "values",
    caption: str | Mapping = "",
):
    """A distribution with two boundaries and their grid, the noise split into clipping and rounding, the best marked.

    Args:
        x: a tensor, or a histogram (edges, counts).
        lower, upper: boundaries in the values' unit; by default minimum and maximum.
        bits, zero_point: of the quantizer.
        name: of the values, for the title.
        caption: the small line below.

    Raises:
        ValueError: lower is not below upper, or there are no values.
    """
    s = sample(x)
    lower = s.values[0].item() if lower is None else lower
    upper = s.values[-1].item() if upper is None else upper
    if not lower < upper:
        raise ValueError(f"The lower boundary must be below the upper one, not {lower:g} and {upper:g}.")
    best = best_boundaries(s, bits, zero_point)
    here, there = (_noise_db(s, [a], [b], bits, zero_point) for a, b in ((lower, upper), best))
    top = max(upper, s.values[-1].item())
    start = max(lower, 0.0) if zero_point == "integer" else lower  # an integer grid reaches up to 0 anyway
    uppers = start + (top - start) * np.linspace(0.02, 1, 120)
    counts, edges = np.histogram(s.values, 200, weights=s.weights)
    heading = (
        f"{bits} bits on {name}: noise {here['total_db'][0]:.1f} dB relative to the signal "
        f"(clipping {_written(here['clipping_db'][0])}, rounding {_written(here['rounding_db'][0])}); "
        f"best boundaries {best[0]:.3g} and {best[1]:.3g}: {there['total_db'][0]:.1f} dB"
    )
    sweep = _noise_db(s, np.full(len(uppers), lower), uppers, bits, zero_point).assign(upper=uppers)
    best_db = there["total_db"][0]
    return plots.boundary_panels(
        edges, counts, (lower, upper), best, sweep, best_db, bits, zero_point, heading, caption=caption
    )


def _written(db: float) -> str:
    return f"{db:.1f}" if db > -119 else "none"


def _noise_db(s: Sample, lowers, uppers, bits: int, zero_point: str):
    """Columns clipping_db, rounding_db and total_db, relative to the signal's mean square."""
    clipping, rounding = quantization_noise(s, lowers, uppers, bits, zero_point)
    signal = (s.values.square() @ s.weights / s.weights.sum()).clamp_min(1e-30)
    parts = {"clipping": clipping, "rounding": rounding, "total": clipping + rounding}
    return pd.DataFrame({f"{k}_db": 10 * (v / signal).clamp_min(1e-12).log10().numpy() for k, v in parts.items()})


def boundary_explorer(
    x: Tensor | tuple, bits: int = 4, zero_point: str = "integer", name: str = "values", caption: str | Mapping = ""
):
    """Drag the boundaries, choose the bits, see `boundary_figure`; two buttons go to MaxMin and to the best pair."""
    s = sample(x)
    low, high = s.values[0].item(), s.values[-1].item()
    span = {"low": low, "high": high, "step": (high - low) / 200, "readout_format": ".3g"}
    tip = "integer: 0 lies on the grid; real: the grid starts at the lower boundary (Eq. 3)"
    controls = {
        "lower": slider("Lower boundary", low, tip="Values below it are clipped", **span),
        "upper": slider("Upper boundary", high, tip="Values above it are clipped", **span),
        "bits": slider("Bits", bits, 2, 8, "2 to the power of this many values"),
        "zero_point": menu("Zero point", ["integer", "real"], zero_point, tip),
    }
    shortcuts = {
        "MaxMin": lambda v: {"lower": low, "upper": high},
        "Best": lambda v: dict(zip(("lower", "upper"), best_boundaries(s, v["bits"], v["zero_point"]))),
    }
    draw = lambda **v: boundary_figure(x, name=name, caption=caption, **v)
    return Explorer(draw, controls, 370, "boundary explorer", shortcuts)
