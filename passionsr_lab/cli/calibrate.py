"""`calibrate`: a quantized model out of a full-precision one and a few pairs of pictures."""

import time
from dataclasses import replace
from pathlib import Path

import click

from ..methods import DEFAULT, METHODS, find
from ..util.names import MODULES
from .common import Told, command, progress
from .options import CONFIG_FILE, COUNT, DEVICE, FOLDER, IMAGES, MODEL, NAMES, NATURAL, RATES, RECIPE, SIZE
from .terminal import stopping


@command(
    "calibrate --recipe W6A6 --images photographs/ --out w6a6",
    "calibrate --recipe W4A8 --method lbq --modules unet --epochs 2 --out w4a8 --json",
    "calibrate --model sd21_osediff/ --config_file saw_U_W6A6_V_W6A6.yaml --out w6a6",
)
@MODEL
@click.option(
    "--recipe", default="W6A6", type=RECIPE, help="bits of weights and activations, or a file that mixed wrote"
)
@click.option("--method", default=DEFAULT, type=click.Choice(list(METHODS)))
@click.option("--modules", type=NAMES, help="some of encoder,unet,decoder; unet is PassionSR-U", show_default="all")
@IMAGES
@click.option("--out", type=FOLDER, required=True, help="where the quantized model is written")
@click.option("--pairs", default=32, type=COUNT, help="pairs to calibrate on")
@click.option("--size", default=128, type=SIZE, help="HR pixels of a crop, and of the tiles it is for")
@click.option("--epochs", default=4, type=COUNT, help="passes over the pairs, times the share of a stage")
@click.option("--batch", default=4, type=COUNT, help="pairs per step")
@click.option("--seed", default=0, type=NATURAL, help="of crops, degradation and order")
@click.option("--rates", type=RATES, help="learning rates, like transform=0.03,bounds=0.5")
@click.option("--device", default="cpu", type=DEVICE, help="like cuda")
@click.option("--lean", is_flag=True, help="less memory for more time: gradient checkpoints, one module on the device")
@click.option(
    "--compiled/--no-compiled", default=None, help="passes compiled by numba: quicker, other last bits",
    show_default="where numba is",
)  # fmt: skip
@click.option("--method_options", type=click.UNPROCESSED, hidden=True)  # for --config_file
@CONFIG_FILE
def calibrate(model, recipe, method, method_options, modules, images, out, pairs, size, device, **options) -> Told:
    """Ctrl-C stops between two steps; the same command goes on there, and gives what an uninterrupted run gives."""
    from ..calibration.loop import Calibration
    from ..imaging.pairs import chosen_pairs
    from ..quantization.place import quantize
    from ..store.folder import load, save
    from ..util.files import claimed

    start = time.perf_counter()
    if modules:
        recipe = replace(recipe, modules=tuple(sorted(modules, key=(*MODULES, *modules).index)))
    chosen = chosen_pairs(images, pairs, size, options["seed"])
    quantized = quantize(load(model).to(device), recipe)
    work = Calibration(quantized, chosen, find(method).with_options(**method_options or {}), **options)
    with claimed(out):
        _run(work, out / "unfinished.pt", f"{method} {recipe.name}")
        save(quantized, out)
        (out / "unfinished.pt").unlink(missing_ok=True)
    stages = [{"module": r["module"], "stage": r["stage"], "first": r["first"], "last": r["loss"]} for r in work.ends]
    return Told({
        "model": quantized.name, "label": quantized.label, "recipe": recipe.name, "method": method,
        "pairs": len(chosen), "seed": options["seed"], "losses": stages, "seconds": time.perf_counter() - start,
        "cpu_seconds": work.cost["cpu_seconds"], "peak_bytes": work.cost["peak_bytes"], "summary": work.summary(),
        "out": str(out),
    })  # fmt: skip


def _run(work, unfinished: Path, what: str) -> None:
    """Calibrates to the end, or saves the state and raises `KeyboardInterrupt`."""
    from ..calibration.checkpoint import save

    with stopping() as stopped:
        for _ in progress(work.run(keep=unfinished), work.total, what):
            if stopped():
                save(work, unfinished)
                raise KeyboardInterrupt
