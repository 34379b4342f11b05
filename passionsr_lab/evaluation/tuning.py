"""Learning rates chosen on pictures of their own: every method that trains gets the same grid of factors."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..methods import find

FACTORS = (0.3, 1.0, 3.0)  # of a method's learning rates, all of them together


def tuning_grid(recipes: Iterable[str], methods: Iterable[str], factors: Iterable[float] = FACTORS, **settings):
    """Configurations for `sweep`: every recipe and method with every factor, measured on the tuning pictures.

    Methods without stages have no rates; they are left out.
    """
    from .sweep import grid

    trained = [method for method in methods if find(method).stages]
    if not trained:
        raise ValueError("None of these methods trains, so there are no rates to choose.")
    return grid(recipe=recipes, method=trained, rates=factors, tests=["tuning"], **settings)


def chosen(frame):
    """The runs of a tuning with a column `chosen`: per recipe and method the factor of the best mean PSNR to full
    precision on the tuning pictures, the smaller one of equals."""
    means = frame.groupby(["recipe", "method", "rates"], sort=False).psnr_fp.mean().reset_index()
    best = means.sort_values("rates").loc[lambda t: t.groupby(["recipe", "method"]).psnr_fp.idxmax()]
    keys = set(zip(best.recipe, best.method, best.rates))
    return frame.assign(chosen=[key in keys for key in zip(frame.recipe, frame.method, frame.rates)])


def with_chosen(configurations, file: str | Path):
    """The configurations with the `rates` that a table of `chosen` runs names for their recipe and method.

    Raises:
        ValueError: the table is no such table, or does not have a recipe and method that trains.
    """
    from .tables import read_table

    table = read_table(file)
    if missing := {"recipe", "method", "rates", "chosen"} - set(table.columns):
        raise ValueError(f"{file} is no table that `tune` wrote: it has no column {min(missing)!r}.")
    table = table[table.chosen]
    rates = dict(zip(zip(table.recipe, table.method), table.rates))
    found = []
    for row in configurations.itertuples():
        recipe = getattr(row.recipe, "name", row.recipe)
        if (recipe, row.method) not in rates and find(row.method).stages:
            raise ValueError(f"{file} has no rates for {row.method} at {recipe}; run `tune` with it.")
        found.append(rates.get((recipe, row.method), 1.0))
    return configurations.assign(rates=found)
