"""Explorers of ranges, boundaries and LET: every widget calls one plain function, which any cell can call as well."""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from ipywidgets import Dropdown, FloatSlider, IntSlider
from torch import Tensor, nn

from .. import plots
from ..analysis.observe import Stats
from ..quantization.attention import QuantAttention
from ..quantization.filling import LET, Slots
from ..quantization.layer import QuantLayer
from ..quantization.place import QuantizedSR
from ..quantization.quantizer import fake_quantize, grid_of
from ..quantization.recipe import LayerRecipe
from .picture import KEYS, STYLE, Explorer

BINS = 2**13  # of a large tensor's sample
COARSE, FINE = 33, 9  # boundaries on each side that are tried: first, and around every good pair


# -- a layer ----------------------------------------------------------------------------------------------------------


def boundaries(q: QuantizedSR, layer: str) -> tuple[int, list[tuple[float, float]]]:
    """Bits and (lower, upper) of the quantizers of a calibrated layer's input, after LET; two of them in a split layer.

    Args:
        layer: a name of `Stats.layers`; attentions end in .q, .k or .v.

    Raises:
        ValueError: the layer is not quantized.
        RuntimeError: it is not calibrated.
    """
    found = q.layers
    name, _, key = layer.rpartition(".")
    with torch.no_grad():
        if isinstance(found.get(layer), QuantLayer):
            own = found[layer]
            quantizers, ranges = list(own.act_quantizers), own.input_ranges()
        elif isinstance(found.get(name), QuantAttention) and key in "qkv":
            quantizers, ranges = [found[name].quantizers[key]], [found[name].natural_range(key)]
        else:
            raise ValueError(f"{layer} is not a quantized layer; layer_table lists those.")
        bounds = [a.bounds(*r) for a, r in zip(quantizers, ranges)]
    return quantizers[0].bits, [(lower.item(), upper.item()) for lower, upper in bounds]


def layer_figure(stats: Stats, layer: str, q: QuantizedSR | None = None, bits: int | None = None):
    """One layer's input: histogram, grid and channel ranges; before and after LET where `q` is given.

    Args:
        stats: what `observing` recorded; of `q` itself where that is given.
        layer: a name of `stats.layers()`.
        q: the calibrated pipeline, for the boundaries and for the values after LET.
        bits: without `q`, the width of the grid between minimum and maximum (MaxMin) that is drawn; None draws none.

    Raises:
        ValueError: the layer was not seen, or is not quantized in `q`.
    """
    own = stats.channels(layer)
    maxmin = (float(own.low.min()), float(own.high.max()))
    if q is None:
        parts = {"": (*stats.histogram(layer), maxmin if bits else None, own)}
        return plots.layer_panels(parts, bits, heading=f"Input of {layer}")
    bits, bounds = boundaries(q, layer)
    span = (min(b[0] for b in bounds), max(b[1] for b in bounds))
    after = stats.channels(layer, after=True)
    parts = {
        "before LET": (*stats.histogram(layer), maxmin, own),
        "after LET": (*stats.histogram(layer, after=True), span, after),
    }
    heading = f"Input of {layer}: {bits} bits, MaxMin before LET and the quantizer's boundaries after"
    return plots.layer_panels(parts, bits if len(bounds) == 1 else None, q.recipe.zero_point, heading)


def layer_explorer(stats: Stats, q: QuantizedSR | None = None, layer: str | None = None, bits: int = 4):
    """Pick a layer, in network order, and see `layer_figure` of it.

    Args:
        stats, q: as for `layer_figure`.
        layer: the first one shown; by default the first in the network.
        bits: of the grid, where `q` does not say it; 0 draws none.
    """
    names = [str(name) for name in stats.layers(after=q is not None).layer]
    options = [(f"{i}: {name}", name) for i, name in enumerate(names, 1)]
    controls = {"layer": Dropdown(options=options, value=layer or names[0], description="Layer", style=STYLE)}
    controls["layer"].tooltip, controls["layer"].layout.width = (
        "The layer whose input is shown, in network order" + KEYS,
        "560px",
    )
    if q is None:
        tip = "Bits of the grid between minimum and maximum; 0 draws none"
        controls["bits"] = IntSlider(
            bits, 0, 8, description="Bits", tooltip=tip, continuous_update=False, style=STYLE
        )  # fmt: skip
    return Explorer(lambda **v: layer_figure(stats, q=q, **v), controls, 520, "layer explorer")


# -- boundaries -------------------------------------------------------------------------------------------------------


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
):
    """A distribution with two boundaries and their grid, the noise split into clipping and rounding, the best marked.

    Args:
        x: a tensor, or a histogram (edges, counts).
        lower, upper: boundaries in the values' unit; by default minimum and maximum.
        bits, zero_point: of the quantizer.
        name: of the values, for the title.

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
    return plots.boundary_panels(edges, counts, (lower, upper), best, sweep, best_db, bits, zero_point, heading)


def _written(db: float) -> str:
    return f"{db:.1f}" if db > -119 else "none"


def _noise_db(s: Sample, lowers, uppers, bits: int, zero_point: str):
    """Columns clipping_db, rounding_db and total_db, relative to the signal's mean square."""
    clipping, rounding = quantization_noise(s, lowers, uppers, bits, zero_point)
    signal = (s.values.square() @ s.weights / s.weights.sum()).clamp_min(1e-30)
    parts = {"clipping": clipping, "rounding": rounding, "total": clipping + rounding}
    return pd.DataFrame({f"{k}_db": 10 * (v / signal).clamp_min(1e-12).log10().numpy() for k, v in parts.items()})


def boundary_explorer(x: Tensor | tuple, bits: int = 4, zero_point: str = "integer", name: str = "values"):
    """Drag the boundaries, choose the bits, see `boundary_figure`; two buttons go to MaxMin and to the best pair."""
    s = sample(x)
    low, high = s.values[0].item(), s.values[-1].item()
    step = (high - low) / 200

    def slider(value: float, label: str, tip: str):
        options = {"description": label, "tooltip": tip, "continuous_update": False, "style": STYLE}
        return FloatSlider(value, min=low, max=high, step=step, readout_format=".3g", **options)

    controls = {
        "lower": slider(low, "Lower boundary", "Values below it are clipped"),
        "upper": slider(high, "Upper boundary", "Values above it are clipped"),
        "bits": IntSlider(bits, 2, 8, description="Bits", tooltip="2 to the power of this many values", style=STYLE),
        "zero_point": Dropdown(options=["integer", "real"], value=zero_point, description="Zero point", style=STYLE),
    }
    controls["bits"].continuous_update = False
    tip = "integer: 0 lies on the grid; real: the grid starts at the lower boundary (Eq. 3)"
    controls["zero_point"].tooltip = tip + KEYS
    shortcuts = {
        "MaxMin": lambda v: {"lower": low, "upper": high},
        "Best": lambda v: dict(zip(("lower", "upper"), best_boundaries(s, v["bits"], v["zero_point"]))),
    }
    return Explorer(lambda **v: boundary_figure(x, name=name, **v), controls, 370, "boundary explorer", shortcuts)


# -- LET --------------------------------------------------------------------------------------------------------------


def transformed(layer: nn.Linear | nn.Conv2d, x: Tensor, alpha: float | None, bits: int = 4) -> QuantLayer:
    """The layer with quantizers for x (B, C, H, W) or (..., C), after LET's start with exponents alpha, 1 - alpha.

    `alpha` None leaves LET out (MaxMin).
    """
    slots = Slots() if alpha is None else LET(alpha=alpha, beta=1 - alpha)
    own = QuantLayer(layer, "layer", LayerRecipe(bits, bits))
    slots.fill(own)
    own.range.add(x, own.dim)
    slots.start(own)
    return own.requires_grad_(False)


@torch.no_grad()
def let_errors(layer: nn.Linear | nn.Conv2d, x: Tensor, alpha: float | None, bits: int = 4) -> dict[str, float]:
    """SQNR (dB) of the layer's output with only the activation, only the weight, and both quantized after LET.

    Returns:
        activation_db, weight_db, both_db.
    """
    own = transformed(layer, x, alpha, bits)
    plain = own.transformed_input(x), own.transformed_weight()
    low = own.quantized_input(x), own.quantized_weight()
    y = own.operate(*plain, own.bias()).double()
    pairs = {"activation": (low[0], plain[1]), "weight": (plain[0], low[1]), "both": low}
    return {f"{key}_db": _sqnr(y, own.operate(*pair, own.bias())) for key, pair in pairs.items()}


def _sqnr(y: Tensor, other: Tensor) -> float:
    return 10 * math.log10(y.square().mean().item() / max((other - y).square().mean().item(), 1e-30))


def let_sweep(layer: nn.Linear | nn.Conv2d, x: Tensor, bits: int = 4, points: int = 11):
    """`let_errors` for `points` exponents alpha from 0 to 1: columns alpha, activation_db, weight_db, both_db."""
    return pd.DataFrame([{"alpha": a} | let_errors(layer, x, a, bits) for a in np.linspace(0, 1, points).round(3)])


@torch.no_grad()
def let_figure(
    layer: nn.Linear | nn.Conv2d, x: Tensor, alpha: float = 0.5, bits: int = 4, name: str = "one layer", sweep=None
):
    """LET's start on one layer: channel ranges of activation and weight after the scale, and the output's SQNR.

    Args:
        layer, x: a float layer and its input (B, C, H, W) or (..., C).
        alpha: scale = amax|x|^alpha / amax|w|^(1 - alpha), per channel (SmoothQuant's start).
        bits: of weight and activation.
        name: for the title.
        sweep: what `let_sweep` gave, where it is known already.
    """
    own = transformed(layer, x, alpha, bits)
    seen = x if own.transform is None else own.transform(x, own.dim)
    rows = seen.movedim(own.dim, 0).flatten(1)  # (C, n)
    weight = own.transformed_weight().transpose(0, 1).flatten(1)
    frames = [_ranges(t) for t in (rows.cpu(), weight.cpu())]
    sweep = let_sweep(layer, x, bits) if sweep is None else sweep
    return plots.scale_panels(*frames, sweep, alpha, f"LET with alpha = {alpha:g} on {name}, {bits} bits")


def _ranges(rows: Tensor) -> pd.DataFrame:
    return pd.DataFrame({"channel": range(len(rows)), "low": rows.amin(1), "high": rows.amax(1)})


def let_explorer(layer: nn.Linear | nn.Conv2d, x: Tensor, alpha: float = 0.5, bits: int = 4, name: str = "one layer"):
    """Turn LET's exponent and the bits and see `let_figure`; arguments as there."""
    known = cache(lambda bits: let_sweep(layer, x, bits))
    tip = "0 divides by the weight's ranges alone, 1 flattens the activation and leaves all to the weight"
    options = {"continuous_update": False, "style": STYLE}
    controls = {
        "alpha": FloatSlider(alpha, min=0, max=1, step=0.05, description="Alpha", tooltip=tip, **options),
        "bits": IntSlider(bits, 2, 8, description="Bits", tooltip="Of weight and activation", **options),
    }
    draw = lambda **v: let_figure(layer, x, name=name, sweep=known(v["bits"]), **v)
    return Explorer(draw, controls, 350, "LET explorer")
