"""`compare`: the ablation."""

import math

import click

from .common import Told, command
from .options import FILE, TUNED
from .sweeping import asked, of_runs, shown, swept


@command(
    "compare --seeds 3 --jobs 2 --csv ablation.csv", "compare --recipes W4A4,W4A8 --methods lbq,let",
    "compare --methods lbq,passionsr --tuned tuning.csv --cost passionsr --csv equal.csv",
)  # fmt: skip
@of_runs
@TUNED
@click.option(
    "--cost",
    help="as many pairs as make every method that trains cost so many CPU seconds, or what a method of this name does;"
    " by the runs of --tuned, else by first ones",
)
@click.option("--csv", type=FILE, help="also write the table there, and beside it NAME_runs and NAME_differences")
def compare(recipes, methods, tuned, cost, store, jobs, csv, **runs) -> Told:
    """A stopped comparison goes on where it was."""
    import pandas as pd

    from ..evaluation.sweep import differences, grid, summary
    from ..evaluation.tables import read_table, write_csv
    from ..evaluation.tuning import at_cost, cost_of, with_chosen

    work = grid(recipe=recipes, method=methods, **asked(**runs))
    work = with_chosen(work, *tuned) if tuned else work
    if cost:
        known = pd.concat(map(read_table, tuned)) if tuned else work.assign(cpu_seconds=math.nan)
        cost_of(cost, known)  # refuses before anything runs
        known = known if tuned else swept(work, store, jobs)
        work = at_cost(work, known, cost_of(cost, known))
    frame = swept(work, store, jobs)
    table = summary(frame)
    if csv:
        for end, content in (("", table), ("_runs", frame), ("_differences", differences(frame))):
            write_csv(content, csv.with_name(f"{csv.stem}{end}{csv.suffix}") if end else csv)
    return Told({"runs": frame.to_dict("records")}, text=shown(table))
