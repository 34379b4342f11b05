"""`table2`: the paper's large table."""

import click

from ..evaluation.protocols import PROTOCOLS
from .common import Told, command, lines, progress
from .options import COUNT, DEVICE, FOLDER, JOBS, MODEL, NAMES, NATURAL, SIZE, STORE, TUNED, workers


@command("table2 --datasets RealSR=FOLDER --out table2", "table2 --out table2 --bits W4A4 --metrics psnr,ssim")
@MODEL
@click.option("--out", type=FOLDER, required=True, help="folder for the tables and all that they are made of")
@click.option("--resume", is_flag=True, help="accepted; a table always goes on where it was")
@STORE
@JOBS
@click.option("--datasets", type=NAMES, help="bundled, RealSR, DRealSR, DIV2K_val, NAME=FOLDER", show_default="bundled")
@click.option("--bits", type=NAMES, help="recipes", show_default="W8A8,W6A6")
@click.option("--methods", type=NAMES, show_default="FP,PassionSR-FP,maxmin,passionsr")
@click.option("--protocol", type=click.Choice(list(PROTOCOLS)), help="of the metrics", show_default="passionsr")
@click.option("--metrics", type=NAMES, help="some of the protocol's", show_default="all")
@click.option("--count", type=COUNT, help="measure on only so many pairs", show_default="all; 8 of the bundled ones")
@click.option("--crop", type=SIZE, help="measure on centre crops of so many HR pixels", show_default="whole pictures")
@click.option("--images", help="to calibrate on: a folder, as for `calibrate`", show_default="bundled")
@click.option("--device", type=DEVICE, help="like cuda", show_default="cpu")
@click.option("--pairs", type=COUNT, help="of the calibration", show_default="32")
@click.option("--size", type=SIZE, help="of the calibration", show_default="128")
@click.option("--epochs", type=COUNT, help="of the calibration", show_default="4")
@click.option("--batch", type=COUNT, help="of the calibration", show_default="4")
@click.option("--seed", type=NATURAL, help="of the calibration", show_default="0")
@TUNED
def table2(out, resume, store, jobs, **options) -> Told:
    """A table that was stopped goes on; what is in the store is taken from there."""
    from ..evaluation.table2 import Plan, run
    from ..evaluation.tables import plain, read_table
    from ..util.files import claimed

    plan = Plan(**{key: value for key, value in options.items() if value is not None})
    total, result = len(plan.pipelines) * len(plan.datasets), {}
    bar = iter(progress(range(total), total, "cells"))
    with claimed(out), workers(jobs) as executor:
        for record in run(plan, out, store, executor):
            if record["event"] == "cell":
                next(bar, None)
            result = record
    table = read_table(out / "table2.csv")
    text = table.to_string(index=False, float_format=lambda v: f"{v:.4g}")
    return Told({"rows": plain(table), **result}, text=f"{text}\n{lines({'notes': result['notes']})}")
