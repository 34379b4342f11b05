"""Mixed precision: how many bits each layer gets under a budget, so that the picture loses least.

Errors of layers are taken to add up (to first order they do), so the choice is a multiple-choice knapsack; it is solved
exactly, by SciPy's integer programming (HiGHS).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..imaging.pairs import Pair
from ..methods import UNTRAINED, calibrate
from ..pipeline.onestep import OneStepSR
from ..quantization.layer import mode
from ..quantization.place import quantize, quantized_layers, segment_modules
from ..quantization.recipe import Recipe
from ..quantization.recipe import recipe as recipe_named
from ..util.names import MODULES
from .bitcost import recipe_cost
from .cost import count
from .layers import layer_numbers
from .sensitivity import Bench

if TYPE_CHECKING:
    from pandas import DataFrame

WIDTHS = (3, 4, 5, 6, 8)
BUDGETS = {  # name -> what one layer at `bits` adds to it, given its weights and multiply-accumulates
    "weight_bits": lambda bits, weights, macs: bits * weights,
    "megabytes": lambda bits, weights, macs: bits * weights / 8e6,
    "bit_operations": lambda bits, weights, macs: bits * bits * macs,
}


def width_errors(
    pipe: OneStepSR, pairs: Sequence[Pair | tuple], widths: Sequence[int] = WIDTHS, method: str = UNTRAINED
) -> DataFrame:
    """What every layer costs the picture at every width: one row per layer and width.

    Columns: number (see `layer_numbers`), module, layer, bits (of weights and activations), error: the mean squared
    error of the picture, in [0, 1], when only this layer is quantized.  Cost: one partial pass per row; images of one
    size go as one batch.

    Args:
        pipe: a full-precision pipeline, which stays as it is.
        pairs: `Pair`s or (lr, hr) tuples that calibrate, with `method`, and measure.
        widths: bit widths, 2 to 16.

    Raises:
        ValueError: no pairs or widths, or a width that does not exist.
    """
    import pandas as pd

    return pd.DataFrame(each_width(pipe, pairs, widths, method))


@torch.no_grad()
def each_width(
    pipe: OneStepSR, pairs: Sequence[Pair | tuple], widths: Sequence[int] = WIDTHS, method: str = UNTRAINED
) -> Iterator[dict]:
    """Yields the rows of `width_errors` as they come."""
    if not widths or len(set(widths)) < len(widths):
        raise ValueError(f"widths are some bit widths, each once, not {tuple(widths)!r}.")
    recipes = [recipe_named(f"W{bits}A{bits}", at_least=()) for bits in sorted(widths)]
    numbers = layer_numbers(pipe)
    for one in recipes:
        q = quantize(pipe, one)
        with torch.enable_grad():
            calibrate(q, pairs, method)
        bench = Bench(q, [pair[-2] for pair in pairs])
        for module in MODULES:
            for name, layer in quantized_layers(segment_modules(q, module)).items():
                with mode(q, "float"), mode(layer, "quantized"):
                    error = 10 ** (-bench.psnr(module, "float") / 10)
                labels = {"number": numbers[name], "module": module, "layer": name}
                yield labels | {"bits": one.weight_bits, "error": error}


def within_budget(
    pipe: OneStepSR, errors: DataFrame, budget: float, of: str = "weight_bits", size: int = 512
) -> Recipe:
    """The recipe whose layers' errors add up to least within a budget.

    Args:
        errors: what `width_errors` returned.
        budget: of the layers in `errors`: mean bits per weight ("weight_bits", effective bits), "megabytes" of their
            weights, or "bit_operations" for an image of `size` pixels.

    Returns:
        a recipe on the most frequent width, the other widths as overrides; its name says the budget.

    Raises:
        ValueError: an unknown kind of budget, layers that the pipeline does not have, or a budget below the least.

    Example:
        >>> import passionsr_lab as lab
        >>> from passionsr_lab.analysis.budget import width_errors, within_budget
        >>> pairs = lab.bundled("calibration", 1, 32)
        >>> errors = width_errors(lab.tiny(), pairs, (4, 8))
        >>> within_budget(lab.tiny(), errors, 5.0).name
        'mixed, 5 weight_bits'
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    if of not in BUDGETS:
        raise ValueError(f"A budget is of {', '.join(BUDGETS)}, not {of!r}.")
    table, costs = _table(errors), _costs(pipe, errors, of, size)
    limit = budget * costs.attrs["weights"] if of == "weight_bits" else budget
    least = costs.min(axis=1).sum()
    if limit < least * (1 - 1e-9):
        raise ValueError(f"The least that these widths allow is {least * budget / limit:.4g} {of}, not {budget:g}.")
    layers, widths = table.shape
    each = np.kron(np.eye(layers), np.ones(widths))
    scale = costs.to_numpy().max()
    found = milp(
        table.to_numpy().ravel() / table.to_numpy().max(),
        integrality=np.ones(layers * widths),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(each, 1, 1),
            LinearConstraint(costs.to_numpy().ravel()[None] / scale, -np.inf, limit / scale * (1 + 1e-9)),
        ],
        options={"mip_rel_gap": 1e-6},
    )
    if found.x is None:
        raise RuntimeError(f"The solver found no recipe: {found.message}")
    chosen = table.columns.to_numpy()[found.x.reshape(layers, widths).argmax(1)]
    return _recipe(f"mixed, {budget:.4g} {of}", dict(zip(table.index, map(int, chosen))))


def budget_range(pipe: OneStepSR, errors: DataFrame, of: str = "weight_bits", size: int = 512) -> tuple[float, float]:
    """The budgets of all layers at the smallest width that was measured, and at the largest."""
    costs = _costs(pipe, errors, of, size)
    unit = costs.attrs["weights"] if of == "weight_bits" else 1.0
    return tuple(float(costs[bits].sum() / unit) for bits in (costs.columns[0], costs.columns[-1]))


def pareto(
    pipe: OneStepSR, errors: DataFrame, budgets: Iterable[float], of: str = "weight_bits", size: int = 512
) -> DataFrame:
    """One row per budget: budget, predicted_db (PSNR of the picture if errors add up), recipe, exact cost of it."""
    import pandas as pd

    table, frame, rows = _table(errors), count(pipe, size), []
    for budget in budgets:
        mixed = within_budget(pipe, errors, budget, of, size)
        total = sum(table.loc[name, mixed.bits(name)[0]] for name in table.index)
        rows.append({"budget": budget, "predicted_db": -10 * np.log10(total), "recipe": mixed})
        rows[-1] |= recipe_cost(frame, mixed)
    return pd.DataFrame(rows)


def as_python(recipe: Recipe) -> str:
    """The recipe as Python to paste; `recipe.to_dict()` is the same as JSON.

    Example:
        >>> import passionsr_lab as lab
        >>> print(as_python(lab.recipe("W4A8", modules=("unet",)).kept("unet.conv_in")))
        lab.Recipe(name='W4A8', weight_bits=4, act_bits=8, modules=('unet',)).override('unet.conv_in',
            act_bits=8, weight_bits=8)
    """
    base = recipe_named("W8A8")
    fields = {name: value for name, value in vars(recipe).items() if name != "overrides"}
    needed = ("name", "weight_bits", "act_bits")
    text = ", ".join(f"{n}={v!r}" for n, v in fields.items() if n in needed or v != getattr(base, n))
    groups: dict[tuple, list[str]] = {}
    for pattern, values in recipe.overrides:
        groups.setdefault(values, []).append(pattern)
    calls = (
        f".override({', '.join(map(repr, patterns))},\n    {', '.join(f'{k}={v!r}' for k, v in values)})"
        for values, patterns in groups.items()
    )
    return f"lab.Recipe({text})" + "".join(calls)


def _table(errors: DataFrame) -> DataFrame:
    """Errors with a row per layer and a column per width; more bits are never worse."""
    table = errors.pivot_table(index="layer", columns="bits", values="error", sort=False)
    return table[sorted(table)].cummin(axis=1)


def _costs(pipe: OneStepSR, errors: DataFrame, of: str, size: int) -> DataFrame:
    """What every layer adds to the budget at every width, with the sum of all weights beside it."""
    frame = count(pipe, size)
    owners = frame.layer.where(~frame.kind.isin(("qk", "av")), frame.layer.str.rpartition(".")[0])
    sums = frame.groupby(owners.to_numpy())[["weights", "macs"]].sum()
    table = _table(errors)
    if missing := [*table.index.difference(sums.index)]:
        raise ValueError(f"The pipeline has no layer {missing[0]!r}; measure width_errors on it.")
    own = sums.loc[table.index]
    costs = table.copy()
    for bits in table:
        costs[bits] = BUDGETS[of](bits, own.weights, own.macs).astype(float)
    costs.attrs["weights"] = float(own.weights.sum())
    return costs


def _recipe(name: str, widths: dict[str, int]) -> Recipe:
    usual = max(set(widths.values()), key=[*widths.values()].count)
    found = replace(recipe_named(f"W{usual}A{usual}"), name=name, at_least=())
    for bits in sorted(set(widths.values()) - {usual}):
        found = found.kept(*(layer for layer, own in widths.items() if own == bits), bits=bits)
    return found
