"""`convert`: released files in, and released files out."""

import click

from .common import Told, command
from .options import FOLDER, PATH


@command(
    "convert --from official vae_ckpt_merge_saw_sep_W8A8.pth --model sd21 --out w8a8",
    "convert --from official unet.pth vae.pth --recipe W6A6 --model sd21_osediff/ --out w6a6",
    "convert --from lab w6a6 --model sd21_osediff/ --out PTQ",
)
@click.argument("files", nargs=-1, required=True, type=PATH)
@click.option("--from", "source", default="official", type=click.Choice(["official", "lab"]), help="what FILES are")
@click.option("--model", required=True, help="a model, or 'sd21': the architecture alone, without weights")
@click.option("--out", type=FOLDER, required=True, help="where the converted model, or the files, are written")
@click.option("--recipe", help="bits of weights and activations", show_default="as in a file's name")
@click.option("--numerics", default="official", type=click.Choice(["official", "paper"]),
              help="the released code's arithmetic, or this library's with its corrections")  # fmt: skip
def convert(files, source, model, out, recipe, numerics) -> Told:
    """FILES are a UNet file, a VAE file or both; with --from lab one folder."""
    from ..store.convert import export_folder, import_files
    from ..util.files import claimed

    with claimed(out):
        if source == "official":
            return Told(import_files(files, model, out, recipe, numerics))
        return Told(export_folder(files, model, out))
