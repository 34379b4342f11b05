"""`report`: all about quantized models on one page to mail."""

import click

from .common import Told, command
from .options import COUNT, FILE, IMAGES, MODEL, PATH, SIZE


@command("report w6a6 w6a6.html", "report maxmin passionsr both.html --images FOLDER_WITH_lr_AND_hr")
@click.argument("quantized", nargs=-1, required=True, type=PATH)
@click.argument("out", type=FILE)
@MODEL
@IMAGES
@click.option("--pairs", default=4, type=COUNT, help="test pairs")
@click.option("--size", default=256, type=SIZE, help="edge of the crops of photographs, in HR pixels")
def report(quantized, out, model, images, pairs, size) -> Told:
    """QUANTIZED are folders that `calibrate` or `convert` wrote, all of one model; OUT is the page."""
    from ..imaging.pairs import chosen_pairs
    from ..pages.report import report as page_of
    from ..store.folder import DESCRIPTION, load

    if out.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"{out} is to be a page; give it a name that ends in .html.")
    for folder in quantized:
        if not (folder / DESCRIPTION).is_file():
            raise ValueError(f"{folder} is no folder that `calibrate` or `convert` wrote: it has no {DESCRIPTION}.")
    if len({folder.name for folder in quantized}) < len(quantized):
        raise ValueError("Two of the folders have the same name; the page could not tell them apart.")
    tests, full = chosen_pairs(images, pairs, size, 0, split="test"), load(model)
    found = {folder.name: load(folder, full) for folder in quantized}
    page = page_of(found, tests)
    page.save(out)
    return Told({"page": str(out), "models": list(found), "label": "simulated", "bytes": out.stat().st_size})
