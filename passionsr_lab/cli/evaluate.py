"""`evaluate`: a full-precision model against bicubic."""

import click

from .common import Told, command, progress
from .options import COUNT, IMAGES, MODEL, NATURAL, SIZE


@command("evaluate --pairs 8", "evaluate --model my_model --images FOLDER_WITH_lr_AND_hr --size 512")
@MODEL
@IMAGES
@click.option("--pairs", type=COUNT, help="how many", show_default="all")
@click.option("--size", default=256, type=SIZE, help="HR pixels of a square crop")
@click.option("--prompt", is_flag=True, help="keep the prompt branch, if the model has one")
@click.option("--seed", default=0, type=NATURAL, help="of crops and degradation")
def evaluate(model, images, pairs, size, prompt, seed) -> Told:
    """Bundled photographs are those that no calibration takes."""
    import numpy as np

    from ..imaging.pairs import chosen_pairs
    from ..imaging.pictures import upsample
    from ..imaging.psnr import psnr_y
    from ..store.folder import load

    chosen = chosen_pairs(images, pairs, size, seed, split="test")
    pipe = load(model, prompt=prompt)
    scores = [
        (psnr_y(pipe(pair.lr), pair.hr), psnr_y(upsample(pair.lr[None])[0], pair.hr))
        for pair in progress(chosen, len(chosen), "evaluate")
    ]
    ours, bicubic = zip(*scores)
    means = {"psnr_y": float(np.mean(ours)), "bicubic": float(np.mean(bicubic))}
    better = int(sum(a > b for a, b in scores))
    gain = means["psnr_y"] - means["bicubic"]
    return Told({"model": pipe.name, "images": len(chosen), **means, "gain": gain, "better_on": better})
