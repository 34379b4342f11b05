"""`tune`: learning rates for `compare`."""

import click

from .common import Told, command
from .options import FILE
from .sweeping import asked, of_runs, shown, swept


@command("tune --methods lbq,passionsr --jobs 2 --csv tuning.csv")
@of_runs
@click.option("--csv", type=FILE, required=True, help="the table to write, for compare --tuned")
def tune(recipes, methods, store, jobs, csv, **runs) -> Told:
    """Every method that trains runs with 0.3, 1, 3 and 10 times its rates; the best on tuning pictures, in the
    mean over recipes and seeds, is chosen.  Where that is the largest or the smallest, the next one is tried, too.

    Tuning pictures are neither those of calibration nor those of tests.  A stopped tuning goes on where it was.
    """
    from ..evaluation.tables import write_csv
    from ..evaluation.tuning import tuned

    frame = tuned(lambda work: swept(work, store, jobs), recipes, methods, **asked(**runs))
    write_csv(frame, csv)
    columns = ["recipe", "method", "seed", "rates", "psnr_fp", "cpu_seconds", "chosen"]
    return Told({"runs": frame.to_dict("records")}, text=shown(frame[columns]))
