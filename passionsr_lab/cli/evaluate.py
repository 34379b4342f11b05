"""`evaluate`: a full-precision model against bicubic."""

import click

from ..evaluation.protocols import PROTOCOLS
from .common import Told, command, progress
from .options import COUNT, IMAGES, MODEL, NATURAL, SIZE


@command("evaluate --pairs 8 --protocol offline", "evaluate --model my_model --images FOLDER_WITH_lr_AND_hr --size 512")
@MODEL
@IMAGES
@click.option("--pairs", type=COUNT, help="how many", show_default="all")
@click.option("--size", default=256, type=SIZE, help="HR pixels of a square crop")
@click.option("--prompt", is_flag=True, help="keep the prompt branch, if the model has one")
@click.option("--protocol", type=click.Choice(list(PROTOCOLS)), help="score by its metrics as well")
@click.option("--seed", default=0, type=NATURAL, help="of crops and degradation")
def evaluate(model, images, pairs, size, prompt, protocol, seed) -> Told:
    """Bundled photographs are those that no calibration takes."""
    import numpy as np

    from ..imaging.pairs import chosen_pairs
    from ..imaging.pictures import upsample
    from ..imaging.psnr import psnr_y
    from ..store.folder import load

    chosen = chosen_pairs(images, pairs, size, seed, split="test")
    pipe = load(model, prompt=prompt)
    ours = [pipe(pair.lr) for pair in progress(chosen, len(chosen), "evaluate")]
    bicubic = [upsample(pair.lr[None])[0] for pair in chosen]
    scores = [[psnr_y(y, pair.hr) for y, pair in zip(images, chosen)] for images in (ours, bicubic)]
    means = dict(zip(("psnr_y", "bicubic"), (float(np.mean(values)) for values in scores)))
    better, gain = int(np.greater(*scores).sum()), means["psnr_y"] - means["bicubic"]
    result = {"model": pipe.name, "images": len(chosen), **means, "gain": gain, "better_on": better}
    return Told(result | (_scored(ours, bicubic, chosen, protocol) if protocol else {}))


def _scored(ours, bicubic, pairs, protocol: str) -> dict:
    """Means of a protocol's metrics over the pictures, of the model and of bicubic; None where there is no number."""
    from ..evaluation.scores import score

    result: dict = {}
    for key, images in (("model_scores", ours), ("bicubic_scores", bicubic)):
        means = score(images, [pair.hr for pair in pairs], protocol=protocol).groupby("metric", sort=False).value.mean()
        result[key] = {name: value if value == value else None for name, value in means.items()}
    return result
