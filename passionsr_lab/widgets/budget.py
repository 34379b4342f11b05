"""From sensitivity to a recipe: choose a budget, see which layer gets which bits, take the recipe away."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING

from ipywidgets import Layout, Textarea, VBox

from .. import plots
from ..analysis.budget import as_python, budget_range, pareto, within_budget
from ..pipeline.onestep import OneStepSR
from ..quantization.recipe import Recipe
from .picture import Explorer, menu, slider

if TYPE_CHECKING:
    from pandas import DataFrame

LABELS = {
    "weight_bits": "mean bits per weight", "megabytes": "MB of weights", "bit_operations": "bit operations per image",
}  # fmt: skip


def budget_figure(
    pipe: OneStepSR,
    errors: DataFrame,
    budget: float,
    of: str = "weight_bits",
    curve: DataFrame | None = None,
    caption: str | Mapping = "",
):
    """The best recipe within a budget, on the curve of all budgets; arguments as for `within_budget`.

    Args:
        curve: what `pareto` returned, where it is known already.
        caption: the small line below.
    """
    curve = _curve(pipe, errors, of) if curve is None else curve
    recipe = within_budget(pipe, errors, budget, of)
    chosen = errors.drop_duplicates("layer")[["number", "module", "layer"]].sort_values("number")
    chosen["bits"] = [recipe.bits(name)[0] for name in chosen.layer]
    heading = f"Bits for every layer within {budget:.4g} {LABELS[of]}"
    return plots.widths(curve, chosen, budget, LABELS[of], heading, caption=caption)


def _curve(pipe: OneStepSR, errors: DataFrame, of: str, points: int = 9) -> DataFrame:
    low, high = budget_range(pipe, errors, of)
    return pareto(pipe, errors, [low + i * (high - low) / (points - 1) for i in range(points)], of)


class BudgetExplorer(VBox):
    """A menu of budgets and a slider from the least to the most; below the picture the recipe as Python, and as JSON.

    `recipe` is the one that is shown.
    """

    def __init__(self, pipe: OneStepSR, errors: DataFrame, of: str, percent: int, caption: str | Mapping):
        curve, ends = (cache(lambda of, f=f: f(pipe, errors, of)) for f in (_curve, budget_range))
        self.recipe: Recipe | None = None
        layout = Layout(width="100%", height="90px")
        self.python, self.json = (Textarea(description=name, layout=layout) for name in ("Python", "JSON"))

        def draw(of: str, percent: int):
            low, high = ends(of)
            budget = low + percent / 100 * (high - low)
            self.recipe = within_budget(pipe, errors, budget, of)
            self.python.value = as_python(self.recipe)
            self.json.value = json.dumps(self.recipe.to_dict())
            return budget_figure(pipe, errors, budget, of, curve(of), caption)

        kinds = [(label, name) for name, label in LABELS.items()]
        controls = {
            "of": menu("Budget", kinds, of, "What is limited", "300px"),
            "percent": slider("Percent", percent, 0, 100, "From the least that the widths allow to the most"),
        }
        self.explorer = Explorer(draw, controls, 330, "budget explorer")
        super().__init__([self.explorer, self.python, self.json])

    def __repr__(self) -> str:
        return repr(self.explorer)


def budget_explorer(
    pipe: OneStepSR, errors: DataFrame, of: str = "weight_bits", percent: int = 30, caption: str | Mapping = ""
) -> BudgetExplorer:
    """Choose a budget, see the best recipe within it and take it away.

    Args:
        pipe: the full-precision pipeline.
        errors: what `analysis.budget.width_errors` returned for it.
        of: what is limited: "weight_bits", "megabytes" or "bit_operations".
        percent: where the slider is first, from the least that the measured widths allow to the most.
        caption: of the picture.
    """
    return BudgetExplorer(pipe, errors, of, percent, caption)
