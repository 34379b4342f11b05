"""`measure`: scores of pictures that are there already."""

import click

from ..evaluation.protocols import PROTOCOLS
from .common import Told, command, lines, table
from .options import FILE, NAMES, PATH


@command("measure -i RESTORED -r ORIGINALS --protocol osediff", "measure -i RESTORED -r ORIGINALS --metrics psnr,ssim")
@click.option("-i", "--images", type=PATH, required=True, help="folder of pictures to score")
@click.option("-r", "--references", type=PATH, help="folder of the originals, with exactly the same names")
@click.option("--protocol", default="osediff", type=click.Choice(list(PROTOCOLS)))
@click.option("--metrics", type=NAMES, help="some of the protocol's; psnr is psnr_y", show_default="all")
@click.option("--csv", type=FILE, help="also write every image's scores there")
def measure(images, references, protocol, metrics, csv) -> Told:
    """A metric whose weights are not here has an empty column that says so."""
    from ..evaluation.scores import measure as scores
    from ..evaluation.scores import summary, versions
    from ..evaluation.tables import plain, write_csv

    frame = scores(images, references, metrics, protocol)
    if csv:
        write_csv(frame, csv)
    scored, count = summary(frame), int(frame.name[frame.name != "all"].nunique())
    result = {"images": count, "scores": plain(scored), "versions": versions(protocol, metrics)}
    rest = {"images": count, "notes": [note for note in scored.note if note], "versions": result["versions"]}
    return Told(result, text=f"{table(scored.drop(columns='note').set_index('metric'))}\n\n{lines(rest)}")
