"""LET's start on one layer: the exponent that moves range from the activation into the weight."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from .. import plots
from ..imaging.psnr import sqnr
from ..quantization.filling import LET, Slots
from ..quantization.layer import QuantLayer
from ..quantization.recipe import LayerRecipe
from .picture import Explorer, slider


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
    return {f"{key}_db": sqnr(own.operate(*pair, own.bias()), y) for key, pair in pairs.items()}


def let_sweep(layer: nn.Linear | nn.Conv2d, x: Tensor, bits: int = 4, points: int = 11):
    """`let_errors` for `points` exponents alpha from 0 to 1: columns alpha, activation_db, weight_db, both_db."""
    return pd.DataFrame([{"alpha": a} | let_errors(layer, x, a, bits) for a in np.linspace(0, 1, points).round(3)])


@torch.no_grad()
def let_figure(
    layer: nn.Linear | nn.Conv2d,
    x: Tensor,
    alpha: float = 0.5,
    bits: int = 4,
    name: str = "one layer",
    sweep=None,
    caption: str | Mapping = "",
):
    """LET's start on one layer: channel ranges of activation and weight after the scale, and the output's SQNR.

    Args:
        layer, x: a float layer and its input (B, C, H, W) or (..., C).
        alpha: scale = amax|x|^alpha / amax|w|^(1 - alpha), per channel (SmoothQuant's start).
        bits: of weight and activation.
        name: for the title.
        sweep: what `let_sweep` gave, where it is known already.
        caption: the small line below.
    """
    own = transformed(layer, x, alpha, bits)
    seen = x if own.transform is None else own.transform(x, own.dim)
    rows = seen.movedim(own.dim, 0).flatten(1)  # (C, n)
    weight = own.transformed_weight().transpose(0, 1).flatten(1)
    frames = [_ranges(t) for t in (rows.cpu(), weight.cpu())]
    sweep = let_sweep(layer, x, bits) if sweep is None else sweep
    heading = f"LET with alpha = {alpha:g} on {name}, {bits} bits"
    return plots.scale_panels(*frames, sweep, alpha, heading, caption=caption)


def _ranges(rows: Tensor) -> pd.DataFrame:
    return pd.DataFrame({"channel": range(len(rows)), "low": rows.amin(1), "high": rows.amax(1)})


def let_explorer(
    layer: nn.Linear | nn.Conv2d,
    x: Tensor,
    alpha: float = 0.5,
    bits: int = 4,
    name: str = "one layer",
    caption: str | Mapping = "",
):
    """Turn LET's exponent and the bits and see `let_figure`; arguments as there."""
    known = cache(lambda bits: let_sweep(layer, x, bits))
    tip = "0 divides by the weight's ranges alone, 1 flattens the activation and leaves all to the weight"
    controls = {
        "alpha": slider("Alpha", alpha, 0, 1, tip, 0.05),
        "bits": slider("Bits", bits, 2, 8, "Of weight and activation"),
    }
    draw = lambda **v: let_figure(layer, x, name=name, sweep=known(v["bits"]), caption=caption, **v)
    return Explorer(draw, controls, 350, "LET explorer")
