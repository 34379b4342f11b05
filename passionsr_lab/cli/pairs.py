"""`pairs`: a calibration set like the paper's."""

import click

from .common import Told, command, progress
from .options import COUNT, FOLDER, NATURAL, PATH, SIZE


@command("pairs --images PHOTOGRAPHS --out calibration", "pairs --images PHOTOGRAPHS --out small --count 32 --size 128")
@click.option("--images", type=PATH, required=True, help="a folder of photographs")
@click.option("--out", type=FOLDER, required=True, help="folder for lr/ and hr/, which `calibrate --images` reads")
@click.option("--count", default=500, type=COUNT, help="how many pairs")
@click.option("--size", default=512, type=SIZE, help="HR pixels of a square crop")
@click.option("--seed", default=0, type=NATURAL, help="of crops and degradation")
@click.option("--degradation", default="camera", help="camera or bicubic")
def pairs(images, out, **settings) -> Told:
    """Pair i depends on the photographs, the seed and i alone, so a larger count adds to a smaller one."""
    from ..imaging.calibration_set import calibration_set
    from ..util.files import claimed

    with claimed(out):
        written = list(progress(calibration_set(images, out, **settings), settings["count"], "pairs"))
    keys = ("count", "size", "seed", "degradation")
    return Told({"pairs": len(written), "out": str(out)} | {key: settings[key] for key in keys})
