"""What the commands share that sweep over recipes, methods and seeds."""

from collections.abc import Callable
from functools import reduce

import click

from ..methods import ABLATION
from .common import progress
from .options import COUNT, COUNTS, JOBS, NAMES, NATURAL, RECIPES, STORE, workers

OPTIONS = (
    click.option("--model", default="tiny", type=NAMES, help="'tiny', model folders or hub ids, one or several"),
    click.option("--recipes", default="W8A8,W6A6,W4A4", type=RECIPES, help="or files that mixed wrote"),
    click.option("--methods", default=",".join(ABLATION), type=NAMES),
    click.option("--seeds", default=1, type=COUNT, help="how many seeds"),
    click.option("--pairs-seed", type=NATURAL, help="of pairs that all seeds share", show_default="each seed"),
    click.option("--epochs", default=4, type=COUNT),
    click.option("--pairs", default=16, type=COUNT, help="pairs of 64 pixels to calibrate on"),
    click.option("--threads", type=COUNTS, help="torch's, one number or several", show_default="$OMP_NUM_THREADS"),
    STORE,
    JOBS,
)


def of_runs(function: Callable) -> Callable:
    """Gives a command the options of a sweep."""
    return reduce(lambda found, option: option(found), reversed(OPTIONS), function)


def asked(model, seeds, pairs_seed, epochs, pairs, threads) -> dict:
    """The options as values of a grid."""
    threads = threads or [None]
    found = {"model": model, "seed": range(seeds), "epochs": [epochs], "pairs": [pairs], "threads": threads}
    return found if pairs_seed is None else found | {"pairs_seed": [pairs_seed]}


def swept(work, store, jobs: int):
    """The results of a grid's rows, with a bar."""
    from ..evaluation.sweep import sweep

    bar = iter(progress(range(len(work)), len(work), "runs"))
    with workers(jobs) as executor:
        return sweep(work, store, executor, callback=lambda row: next(bar, None))


def shown(table) -> str:
    """A table as text."""
    return table.to_string(index=False, float_format=lambda v: f"{v:.3f}")
