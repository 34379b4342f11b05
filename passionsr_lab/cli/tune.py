"""`tune`: learning rates for `compare`."""

import click

from ..methods import ABLATION
from .common import Told, command, progress
from .options import COUNT, FILE, JOBS, MODEL, NAMES, STORE, workers


@command("tune --methods lbq,passionsr --jobs 2 --csv tuning.csv")
@MODEL
@click.option("--recipes", default="W8A8,W6A6,W4A4", type=NAMES)
@click.option("--methods", default=",".join(ABLATION), type=NAMES)
@click.option("--seeds", default=1, type=COUNT, help="how many seeds")
@click.option("--epochs", default=4, type=COUNT)
@click.option("--pairs", default=16, type=COUNT, help="pairs of 64 pixels to calibrate on")
@STORE
@JOBS
@click.option("--csv", type=FILE, required=True, help="the table to write, for compare --tuned")
def tune(model, recipes, methods, seeds, epochs, pairs, store, jobs, csv) -> Told:
    """Every method that trains runs with 0.3, 1 and 3 times its rates; the best on tuning pictures is chosen.

    Tuning pictures are neither those of calibration nor those of tests.  A stopped tuning goes on where it was.
    """
    from ..evaluation.sweep import sweep
    from ..evaluation.tables import write_csv
    from ..evaluation.tuning import chosen, tuning_grid

    settings = {"model": [model], "seed": range(seeds), "epochs": [epochs], "pairs": [pairs]}
    work = tuning_grid(recipes, methods, **settings)
    bar = iter(progress(range(len(work)), len(work), "runs"))
    with workers(jobs) as executor:
        frame = chosen(sweep(work, store, executor, callback=lambda row: next(bar, None)))
    write_csv(frame, csv)
    table = frame[["recipe", "method", "seed", "rates", "psnr_fp", "cpu_seconds", "chosen"]]
    text = table.to_string(index=False, float_format=lambda v: f"{v:.3f}")
    return Told({"runs": frame.to_dict("records")}, text=text)
