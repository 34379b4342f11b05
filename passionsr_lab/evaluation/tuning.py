"""A fair comparison: rates chosen on pictures of their own, the same grid for every method; and equal costs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..methods import find

TUNED = ["model", "method"]  # what has rates of its own
FACTORS = (0.3, 1.0, 3.0, 10.0)  # of a method's learning rates, all of them together


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


def at_cost(configurations, frame, cpu_seconds: float):
    """The configurations with as many epochs as would have cost their method so many CPU seconds, at least one.

    Methods without stages stay as they are.

    Args:
        configurations, frame: what `sweep` was given, and its results; costs are taken as proportional to epochs, means
            over seeds.
        cpu_seconds: of a whole calibration.
    """
    taken = frame.groupby([*TUNED, "recipe"]).cpu_seconds.transform("mean")
    epochs = (frame.epochs * cpu_seconds / taken).round().clip(lower=1).astype(int)
    trained = [bool(find(method).stages) for method in configurations.method]
    return configurations.assign(epochs=epochs.where(trained, frame.epochs).to_numpy())
