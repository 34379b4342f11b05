"""`compare`: the ablation."""

import click

from ..methods import ABLATION
from .common import Told, command, progress
from .options import COUNT, FILE, JOBS, MODEL, NAMES, PATH, STORE, workers


@command("compare --seeds 3 --jobs 2 --csv ablation.csv", "compare --recipes W4A4 W4A8 --methods lbq let")
@MODEL
@click.option("--recipes", default="W8A8,W6A6,W4A4", type=NAMES)
@click.option("--methods", default=",".join(ABLATION), type=NAMES)
@click.option("--seeds", default=1, type=COUNT, help="how many seeds")
@click.option("--epochs", default=4, type=COUNT)
@click.option("--pairs", default=16, type=COUNT, help="pairs of 64 pixels to calibrate on")
@click.option("--tuned", type=PATH, help="a table that tune wrote, with the rates of every method and recipe")
@STORE
@JOBS
@click.option("--csv", type=FILE, help="also write the table there, and beside it NAME_runs and NAME_differences")
def compare(model, recipes, methods, seeds, epochs, pairs, tuned, store, jobs, csv) -> Told:
    """A stopped comparison goes on where it was."""
    from ..evaluation.sweep import differences, grid, summary, sweep
    from ..evaluation.tables import write_csv
    from ..evaluation.tuning import with_chosen

    work = grid(model=[model], recipe=recipes, method=methods, seed=range(seeds), epochs=[epochs], pairs=[pairs])
    work = with_chosen(work, tuned) if tuned else work
    bar = iter(progress(range(len(work)), len(work), "runs"))
    with workers(jobs) as executor:
        frame = sweep(work, store, executor, callback=lambda row: next(bar, None))
    table = summary(frame)
    if csv:
        for end, content in (("", table), ("_runs", frame), ("_differences", differences(frame))):
            write_csv(content, csv.with_name(f"{csv.stem}{end}{csv.suffix}") if end else csv)
    text = table.to_string(index=False, float_format=lambda v: f"{v:.3f}")
    return Told({"runs": frame.to_dict("records")}, text=text)
