"""`compare`: the ablation."""

import click

from .common import Told, command
from .options import FILE, PATH
from .sweeping import asked, of_runs, shown, swept


@command("compare --seeds 3 --jobs 2 --csv ablation.csv", "compare --recipes W4A4 W4A8 --methods lbq let")
@of_runs
@click.option("--tuned", type=PATH, help="a table that tune wrote, with the rates of every method and recipe")
@click.option("--csv", type=FILE, help="also write the table there, and beside it NAME_runs and NAME_differences")
def compare(recipes, methods, tuned, store, jobs, csv, **runs) -> Told:
    """A stopped comparison goes on where it was."""
    from ..evaluation.sweep import differences, grid, summary
    from ..evaluation.tables import write_csv
    from ..evaluation.tuning import with_chosen

    work = grid(recipe=recipes, method=methods, **asked(**runs))
    frame = swept(with_chosen(work, tuned) if tuned else work, store, jobs)
    table = summary(frame)
    if csv:
        for end, content in (("", table), ("_runs", frame), ("_differences", differences(frame))):
            write_csv(content, csv.with_name(f"{csv.stem}{end}{csv.suffix}") if end else csv)
    return Told({"runs": frame.to_dict("records")}, text=shown(table))
