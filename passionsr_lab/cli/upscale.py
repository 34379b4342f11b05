"""`upscale`: pictures in, pictures four times as large out."""

from pathlib import Path

import click

from .common import Told, command, counting, note, progress
from .options import CONFIG_FILE, MODEL, NATURAL, PATH, RECIPE
from .terminal import complain


@command(
    "upscale photo.png photo_x4.png",
    "upscale photographs/ out/ --quantized w6a6",
    "upscale photographs/ out/ --deployed w6a6_integers",
    "upscale lr/ --model sd21_osediff/ --config_file saw_U_W6A6_V_W6A6.yaml",
)
@click.argument("source", metavar="INPUT", type=PATH)
@click.argument("output", type=PATH)
@MODEL
@click.option("--quantized", type=PATH, help="a folder that `calibrate` or `convert` wrote")
@click.option("--deployed", type=PATH, help="a folder that `deploy` wrote, which needs no --model")
@click.option("--tile", type=NATURAL, help="edge of tiles in latent pixels, 0 for none", show_default="by need")
@click.option("--overlap", type=NATURAL, help="what tiles share, in latent pixels", show_default="a quarter of a tile")
@click.option("--colour", default="nofix", help="adain, wavelet or nofix")
@click.option("--released", type=PATH, multiple=True, hidden=True)  # this and the next are for --config_file
@click.option("--recipe", type=RECIPE, hidden=True)
@CONFIG_FILE
def upscale(source, output, model, quantized, deployed, tile, overlap, colour, released, recipe) -> Told:
    """INPUT is a picture or a folder, OUTPUT the picture to write, or a folder for the same names."""
    from ..imaging.colour import require_fix

    require_fix(colour)
    work = _targets(source, output)
    if deployed and (quantized or released):
        raise ValueError("--deployed names a whole model; leave out --quantized and --config_file.")
    pipe = _deployed(deployed) if deployed else _pipeline(model, quantized, released, recipe)
    tiling = _tiling(tile, overlap, pipe)
    done, failed = [], []
    for file, target in progress(work.items(), len(work), "upscale"):
        try:
            image = _restore(pipe, file, target, tiling, colour)
        except (ValueError, OSError) as error:
            if file == source:
                raise
            failed.append({"input": str(file), "error": str(error)})
            continue
        done.append({"input": str(file), "output": str(target), "width": image.width, "height": image.height})
    for row in failed:
        complain(f"error: {row['error']}")
    label = "deployed" if deployed else "simulated" if quantized or released else "float"
    return Told({"model": pipe.name, "label": label, "images": done, "failed": failed}, int(bool(failed)))


def _targets(source: Path, output: Path) -> dict[Path, Path]:
    """What is written for which picture; `ValueError` for what can be known before a model is loaded."""
    from ..imaging.pictures import image_files, left_out, writable_format

    if source.resolve() == output.resolve():
        raise ValueError(f"The output would overwrite the input {source}; give another path.")
    if source.is_dir():
        if output.exists() and not output.is_dir():
            raise ValueError(f"{output} is no folder, but the pictures of {source} go into one.")
        files = image_files(source)
        if left := left_out(source):
            note(f"left out, as no pictures: {', '.join(left)}")
        return {file: output / file.name for file in files}
    if not source.exists():
        raise ValueError(f"There is no image at {source}.")
    writable_format(output)
    return {source: output}


def _pipeline(model: str, quantized: Path | None, released: tuple[Path, ...], recipe):
    from ..store.folder import load

    pipe = load(model)
    if quantized:
        return load(quantized, pipe)
    if released:
        from ..official.released import load_released

        return load_released(pipe, released, recipe)
    return pipe


def _deployed(folder: Path):
    from ..deployment.pipeline import load_deployed

    pipe = load_deployed(folder)
    if left := pipe.report["here"]["in_float"]:
        note(f"this processor has no VNNI: {len(left)} layers of 8 bits run in float, where its integers lose bits")
    return pipe


def _tiling(tile: int | None, overlap: int | None, pipe):
    """What --tile and --overlap mean: "auto" without them, None for --tile 0."""
    from ..imaging.tiling import Tiling

    if tile == 0:
        return None
    return "auto" if tile is overlap is None else Tiling(pipe.tiling.tile if tile is None else tile, overlap)


def _restore(pipe, file: Path, target: Path, tiling, colour: str):
    from ..imaging.decoding import picture_size
    from ..imaging.pictures import colour_profile, read_image, writable_format, write_image

    height, width = picture_size(file)
    writable_format(target, (width * pipe.upscale, height * pipe.upscale))
    image = pipe.picture(read_image(file), tiling, colour, counting(f"rows of {file.name}"))
    image.info["icc_profile"] = colour_profile(file)
    write_image(image, target)
    return image
