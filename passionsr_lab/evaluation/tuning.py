"""A fair comparison: rates chosen on pictures of their own, the same grid for every method; and equal costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path

from ..methods import find

TUNED = ["model", "method"]  # what has rates of its own
SERIES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
FACTORS = SERIES[3:7]  # of a method's learning rates, all of them together, that every method is run with


def tuning_grid(recipes: Iterable[str], methods: Iterable[str], factors: Iterable[float] = FACTORS, **settings):
    """Configurations for `sweep`: every recipe and method with every factor, measured on the tuning pictures.

    Methods without stages have no rates; they are left out.
    """
    from .sweep import grid

    trained = [method for method in methods if find(method).stages]
    if not trained:
        raise ValueError("None of these methods trains, so there are no rates to choose.")
    return grid(recipe=recipes, method=trained, rates=factors, tests=["tuning"], **settings)


def tuned(run: Callable, recipes: Iterable[str], methods: Iterable[str], **settings):
    """The results of a whole tuning with a column `chosen`: `FACTORS` for every method, and on along `SERIES` for one
    whose best factor is at the end of those that it had.

    Args:
        run: the results of a table of configurations, as `sweep` gives them.
        recipes, methods, settings: as for `tuning_grid`.
    """
    import pandas as pd

    frame = chosen(run(tuning_grid(recipes, methods, **settings)))
    while beyond := _neighbours(frame):
        asked = [
            tuning_grid(recipes, [method], [factor], **settings | {"model": [model]})
            for (model, method), factor in beyond.items()
        ]
        frame = chosen(pd.concat([frame, run(pd.concat(asked))], ignore_index=True))
    return frame


def _neighbours(frame) -> dict[tuple[str, str], float]:
    """Of every model and method, the factor of `SERIES` beside its best that it has not had."""
    found = {}
    for key, runs in frame.groupby(TUNED, sort=False):
        best = SERIES.index(runs.rates[runs.chosen].iloc[0])
        for factor in {*SERIES[max(best - 1, 0) : best + 2]} - {*runs.rates}:
            found[key] = factor
    return found


def chosen(frame):
    """The runs of a tuning with a column `chosen`: per model and method the factor of the best mean PSNR to full
    precision on the tuning pictures, the smaller one of equals.

    The mean is over recipes and seeds: rates are in steps of a grid or parts of a range, which suits all widths, while
    one run at one width tells neighbouring factors apart by luck.
    """
    means = frame.groupby([*TUNED, "rates"], sort=False).psnr_fp.mean().reset_index()
    best = means.sort_values("rates").loc[lambda t: t.groupby(TUNED).psnr_fp.idxmax()]
    keys = set(best[[*TUNED, "rates"]].itertuples(index=False, name=None))
    return frame.assign(chosen=[key in keys for key in frame[[*TUNED, "rates"]].itertuples(index=False, name=None)])


class Rates:
    """The factors of learning rates that tables of `chosen` runs name; the last one counts where two name the same.

    Raises:
        ValueError: a table is no such table.
    """

    def __init__(self, *files: str | Path):
        from .tables import read_table

        self.files, self.found = ", ".join(map(str, files)), {}
        for file in files:
            table = read_table(file)
            if missing := {*TUNED, "rates", "chosen"} - set(table.columns):
                raise ValueError(f"{file} is no table that `tune` wrote: it has no column {min(missing)!r}.")
            table = table[table.chosen]
            self.found |= dict(zip(table[TUNED].itertuples(index=False, name=None), table.rates))

    def of(self, model: str, method: str) -> float:
        """The factor for a method on a model, 1 for one that does not train.

        Raises:
            ValueError: no table has it.
        """
        if not find(method).stages:
            return 1.0
        if (model, method) not in self.found:
            raise ValueError(f"{self.files} has no rates for {method} on {model}; run `tune` with it.")
        return self.found[model, method]


def with_chosen(configurations, *files: str | Path):
    """The configurations with the `rates` of tables that `tune` wrote; `ValueError` as for `Rates`."""
    rates = Rates(*files)
    return configurations.assign(rates=[rates.of(row.model, row.method) for row in configurations.itertuples()])


def cost_of(text: str, frame) -> float:
    """CPU seconds of a calibration: a number, or a method, of which it is the mean over its results in a frame.

    Raises:
        ValueError: neither a number above 0 nor a method that the frame has.
    """
    if text in set(frame.method):
        return float(frame.cpu_seconds[frame.method == text].mean())
    try:
        if 0 < (seconds := float(text)) < math.inf:
            return seconds
    except ValueError:
        pass
    raise ValueError(f"A cost is CPU seconds or one of {', '.join(frame.method.unique())}, not {text!r}.")


def at_cost(configurations, frame, cpu_seconds: float):
    """The configurations with as many pairs as would have cost their method so many CPU seconds, at least one batch.

    Methods without stages stay as they are.

    Args:
        configurations: see `sweep.grid`.
        frame: results of these models, methods and recipes, of any seeds and rates; costs are taken as proportional to
            pairs times epochs, and pairs are rounded to whole batches.
        cpu_seconds: of a whole calibration.

    Raises:
        ValueError: the frame has none of a model, method and recipe.
    """
    keys = [*TUNED, "recipe"]
    price = (frame.cpu_seconds / frame.pairs / frame.epochs).groupby([frame[key] for key in keys]).mean()

    def pairs(row) -> int:
        if not find(row.method).stages:
            return row.pairs
        key = row.model, row.method, getattr(row.recipe, "name", row.recipe)
        if key not in price:
            raise ValueError(f"No given run says what {row.method} costs at {key[-1]} on {row.model}.")
        return row.batch * max(1, round(cpu_seconds / price[key] / row.epochs / row.batch))

    return configurations.assign(pairs=[pairs(row) for row in configurations.itertuples()])
