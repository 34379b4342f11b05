"""The command line: thin wrappers of the library's functions, `python -m passionsr_lab COMMAND --help`."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, Iterable, Iterator

from ..evaluation.protocols import PROTOCOLS
from ..imaging.calibration_set import DEGRADATIONS
from ..methods import ABLATION, METHODS, find


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; 0 if all went well, 1 if some images failed, 2 for an error that is told in one sentence."""
    try:
        options = _read_options(arguments)
        code, result = options.run(options)
    except (ValueError, OSError, RuntimeError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    if options.json:
        print(json.dumps(result))
    else:
        for key, value in result.items():
            print(f"{key}: {_plain(value)}")
    return code


def _read_options(arguments: list[str] | None) -> argparse.Namespace:
    """The options; those that are not given come from `--config_file`, where there is one."""
    top = parser()
    options = top.parse_args(arguments)
    if getattr(options, "config_file", None):
        from ..official.yaml import read

        config = read(options.config_file, options.run.__name__)
        known = {k: v for k, v in config.options.items() if k in vars(options) or k == "method_options"}
        options.parser.set_defaults(**known)
        options = top.parse_args(arguments)
        options.config, missed = config, [key for key in config.options if key not in known]
        for line in [*config.warnings, *([f"{', '.join(missed)}: this command has no such options"] if missed else [])]:
            print(f"warning: {options.config_file}: {line}", file=sys.stderr)
    missing = [name for name in getattr(options, "needed", ()) if getattr(options, name) is None]
    if missing:
        options.parser.error(f"the following arguments are required: {', '.join(missing)}")
    return options


def _plain(value) -> str:
    if isinstance(value, list):
        return "".join(f"\n  {_plain(row)}" for row in value)
    if isinstance(value, dict):
        return ", ".join(f"{k} {_plain(v)}" for k, v in value.items())
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def parser() -> argparse.ArgumentParser:
    """The parser with all commands."""
    top = argparse.ArgumentParser(
        "python -m passionsr_lab", description="Quantize one-step diffusion super-resolution."
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def command(run, name: str, description: str, examples: str = "") -> argparse.ArgumentParser:
        looks = {"formatter_class": argparse.RawDescriptionHelpFormatter, "epilog": examples and f"examples:{examples}"}
        sub = commands.add_parser(name, help=description, description=description, **looks)
        sub.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
        sub.set_defaults(run=run, parser=sub)
        return sub

    up = command(upscale, "upscale", "Super-resolve a picture or a folder of pictures, exactly x4.", UPSCALE)
    up.add_argument("input", type=Path, help="a picture or a folder")
    up.add_argument("output", type=Path, nargs="?", help="the picture to write, or a folder for the same names")
    up.add_argument("--model", default="tiny", help="'tiny', a model folder or a hub id (default: %(default)s)")
    up.add_argument("--quantized", type=Path, help="a folder that `calibrate` or `convert` wrote")
    up.add_argument("--tile", type=int, help="edge of tiles in latent pixels, 0 for none (default: by need)")
    up.add_argument("--overlap", type=int, help="what tiles share, in latent pixels (default: a quarter of a tile)")
    up.add_argument("--colour", default="nofix", help="adain, wavelet or nofix (default: %(default)s)")
    up.add_argument("--config_file", type=Path, metavar="YAML", help="an inference file of PassionSR's own code")
    up.set_defaults(needed=("output",), released=[], recipe=None)

    cal = command(
        calibrate, "calibrate", "Quantize a model and calibrate it; a stopped run goes on where it was.", CALIBRATE
    )
    cal.add_argument("--model", default="tiny", help="'tiny', a model folder or a hub id (default: %(default)s)")
    cal.add_argument("--recipe", default="W6A6", help="bits of weights and activations (default: %(default)s)")
    cal.add_argument("--method", default="passionsr", choices=list(METHODS), help="(default: %(default)s)")
    cal.add_argument(
        "--images", default="bundled", help="photographs, or a folder with lr/ and hr/ (default: scikit-image's)"
    )
    cal.add_argument("--out", type=Path, help="where the quantized model is written")
    cal.add_argument("--config_file", type=Path, metavar="YAML", help="a PTQ file of PassionSR's own code")
    cal.set_defaults(needed=("out",))
    cal.add_argument("--pairs", type=int, default=32, help="pairs to calibrate on (default: %(default)s)")
    cal.add_argument(
        "--size", type=int, default=128, help="HR pixels of a crop, and of the tiles it is for (default: %(default)s)"
    )
    cal.add_argument(
        "--epochs", type=int, default=4, help="passes over the pairs, times the share of a stage (default: %(default)s)"
    )
    cal.add_argument("--batch", type=int, default=4, help="pairs per step (default: %(default)s)")
    cal.add_argument("--seed", type=int, default=0, help="of crops, degradation and order (default: %(default)s)")

    con = command(convert, "convert", "PassionSR's released calibration files to this library's, and back.", CONVERT)
    con.add_argument("files", nargs="+", type=Path, help="a UNet file, a VAE file or both; with --from lab a folder")
    con.add_argument("--from", dest="source", choices=("official", "lab"), default="official", help="what they are")
    con.add_argument("--model", required=True, help="a model, or 'sd21': the architecture alone, without weights")
    con.add_argument("--out", type=Path, required=True, help="where the converted model, or the files, are written")
    con.add_argument("--recipe", help="bits of weights and activations (default: as in a file's name)")
    con.add_argument(
        "--numerics", choices=("official", "paper"), default="official",
        help="the released code's arithmetic, or this library's with its corrections (default: %(default)s)",
    )  # fmt: skip

    cmp = command(compare, "compare", "The ablation: methods x recipes on pictures that were not calibrated on.")
    cmp.add_argument("--model", default="tiny", help="'tiny', a model folder or a hub id (default: %(default)s)")
    cmp.add_argument("--recipes", default="W8A8,W6A6,W4A4", help="(default: %(default)s)")
    cmp.add_argument("--methods", default=",".join(ABLATION), help="(default: %(default)s)")
    cmp.add_argument("--seeds", type=int, default=1, help="how many seeds (default: %(default)s)")
    cmp.add_argument("--epochs", type=int, default=4, help="(default: %(default)s)")
    cmp.add_argument(
        "--store", "--cache", type=Path, help="folder in which models and results are kept (default: $PASSIONSR_STORE)"
    )
    cmp.add_argument("--csv", type=Path, help="also write the table there, and every run beside it (NAME_runs.csv)")

    tr = command(train, "train", "Train the embedded model on a folder of photographs; a stopped run goes on.")
    tr.add_argument("--images", type=Path, required=True, help="a folder of photographs of at least 256 x 256 pixels")
    tr.add_argument("--out", type=Path, required=True, help="folder for the model and the training state")
    tr.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    tr.add_argument("--start", help="a model to go on from, with its prompt branch (default: a new one)")
    tr.add_argument("--skip", type=int, default=0, help="leave out phases that --start has been through (default: 0)")
    tr.add_argument("--minutes", type=float, help="stop after this long, to go on later")

    ev = command(evaluate, "evaluate", "PSNR-Y of a full-precision model against bicubic on photographs or lr/ + hr/.")
    ev.add_argument("--model", default="tiny", help="'tiny', a model folder or a hub id (default: %(default)s)")
    ev.add_argument(
        "--images", default="bundled", help="photographs, or a folder with lr/ and hr/ (default: scikit-image's)"
    )
    ev.add_argument("--pairs", type=int, help="how many (default: all)")
    ev.add_argument("--size", type=int, default=256, help="HR pixels of a square crop (default: %(default)s)")
    ev.add_argument("--prompt", action="store_true", help="keep the prompt branch, if the model has one")
    ev.add_argument("--seed", type=int, default=0, help="of crops and degradation (default: %(default)s)")

    co = command(cost, "cost", "Parameters, MACs and bit-weighted size and operations, from the architecture alone.")
    co.add_argument("--model", default="sd21", help="'sd21', 'tiny' or a model folder (default: %(default)s)")
    co.add_argument("--recipe", help="also the cost at these bits, like W8A8")
    co.add_argument("--size", type=int, default=512, help="edge of the image that comes out (default: %(default)s)")

    me = command(measure, "measure", "Score the pictures of a folder against originals of the same names.")
    me.add_argument("-i", "--images", type=Path, required=True, help="folder of pictures to score")
    me.add_argument("-r", "--references", type=Path, help="folder of the originals, with exactly the same names")
    me.add_argument("--protocol", default="osediff", choices=list(PROTOCOLS), help="(default: %(default)s)")
    me.add_argument("--metrics", help="some of the protocol's, comma-separated; psnr is psnr_y (default: all)")
    me.add_argument("--csv", type=Path, help="also write every image's scores there")

    ca = command(pairs, "pairs", "Make a calibration set of pairs out of photographs; a stopped run goes on.")
    ca.add_argument("--images", type=Path, required=True, help="a folder of photographs")
    ca.add_argument("--out", type=Path, required=True, help="folder for lr/ and hr/, which `calibrate --images` reads")
    ca.add_argument("--count", type=int, default=500, help="how many pairs (default: %(default)s)")
    ca.add_argument("--size", type=int, default=512, help="HR pixels of a square crop (default: %(default)s)")
    ca.add_argument("--seed", type=int, default=0, help="of crops and degradation (default: %(default)s)")
    ca.add_argument("--degradation", default="camera", choices=list(DEGRADATIONS), help="(default: %(default)s)")

    ta = command(table2, "table2", "Table 2: data sets x bits x methods, as CSV and LaTeX beside the paper's numbers.")
    ta.add_argument("--model", default="tiny", help="'tiny', a model folder or a hub id (default: %(default)s)")
    ta.add_argument("--out", type=Path, required=True, help="folder for the tables and all that they are made of")
    ta.add_argument("--resume", action="store_true", help="go on with the table in --out")
    ta.add_argument("--datasets", help="'bundled', RealSR, DRealSR, DIV2K_val or NAME=FOLDER (default: bundled)")
    ta.add_argument("--bits", help="recipes (default: W8A8,W6A6)")
    ta.add_argument("--methods", help="(default: FP,PassionSR-FP,maxmin,passionsr)")
    ta.add_argument("--protocol", choices=list(PROTOCOLS), help="of the metrics (default: passionsr)")
    ta.add_argument("--metrics", help="some of the protocol's (default: all)")
    ta.add_argument("--count", type=int, help="measure on only so many pairs (default: all; 8 of the bundled ones)")
    ta.add_argument("--crop", type=int, help="measure on centre crops of so many HR pixels (default: whole pictures)")
    ta.add_argument("--images", help="to calibrate on: a folder, as for `calibrate` (default: bundled)")
    ta.add_argument("--device", help="like cuda (default: cpu)")
    for name, what in (("pairs", 32), ("size", 128), ("epochs", 4), ("batch", 4), ("seed", 0)):
        ta.add_argument(f"--{name}", type=int, help=f"of the calibration (default: {what})")

    pre = command(prefetch, "prefetch", "Download the weights that a protocol's metrics need, those that can be had.")
    pre.add_argument("--protocol", default="osediff", choices=list(PROTOCOLS), help="(default: %(default)s)")

    doc = command(
        doctor, "doctor", "What this machine has and lacks, and how to get it; 0 if the work can run, else 1."
    )
    doc.add_argument("work", nargs="?", default="tiny", help="tiny, sd21, osediff, osediff-prompt or scores")
    return top


UPSCALE = """
  python -m passionsr_lab upscale photo.png photo_x4.png
  python -m passionsr_lab upscale photographs/ out/ --quantized w6a6
  python -m passionsr_lab upscale lr/ --model sd21_osediff/ --config_file saw_U_W6A6_V_W6A6.yaml"""
CALIBRATE = """
  python -m passionsr_lab calibrate --recipe W6A6 --images photographs/ --out w6a6
  python -m passionsr_lab calibrate --recipe W4A8 --method lbq --epochs 2 --out w4a8 --json
  python -m passionsr_lab calibrate --model sd21_osediff/ --config_file saw_U_W6A6_V_W6A6.yaml --out w6a6
Ctrl-C stops between two steps; the same command goes on there, and gives what an uninterrupted run gives."""
CONVERT = """
  python -m passionsr_lab convert --from official vae_ckpt_merge_saw_sep_W8A8.pth --model sd21 --out w8a8
  python -m passionsr_lab convert --from official unet.pth vae.pth --recipe W6A6 --model sd21_osediff/ --out w6a6
  python -m passionsr_lab convert --from lab w6a6 --model sd21_osediff/ --out PTQ"""


def _progress(items: Iterable, total: int | None = None, what: str = "") -> Iterator:
    from tqdm import tqdm

    return tqdm(items, total=total, desc=what, file=sys.stderr, disable=not sys.stderr.isatty(), leave=False)


@contextmanager
def _stopping() -> Iterator[Callable[[], bool]]:
    """Ctrl-C only turns the yielded function true, so that a run stops between steps; a second one stops at once."""
    pressed = []

    def note(number, frame):
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)


def upscale(options) -> tuple[int, dict]:
    """`upscale INPUT OUTPUT`."""
    from ..imaging.colour import require_fix
    from ..imaging.pictures import image_files, read_image
    from ..store.folder import load
    from ..util.files import replacing

    folder = options.input.is_dir()
    require_fix(options.colour)
    if options.input.resolve() == options.output.resolve():
        raise ValueError(f"The output would overwrite the input {options.input}; give another path.")
    pipe = load(options.model)
    if options.quantized:
        pipe = load(options.quantized, pipe)
    elif options.released:
        from ..official.released import load as released

        pipe = released(pipe, options.released, options.recipe)
    tiling = _tiling(options.tile, options.overlap, pipe)
    files = image_files(options.input) if folder else [options.input]
    done, failed = [], []
    for file in _progress(files, len(files), "upscale"):
        target = options.output / file.name if folder else options.output
        try:
            image = pipe.picture(read_image(file), tiling, options.colour)
            with replacing(target) as temporary:
                image.save(
                    temporary, **({"quality": 95} if target.suffix.lower() in (".jpg", ".jpeg", ".webp") else {})
                )
        except (ValueError, OSError) as error:
            if not folder:
                raise
            failed.append({"input": str(file), "error": str(error)})
            continue
        done.append({"input": str(file), "output": str(target), "width": image.width, "height": image.height})
    for row in failed:
        print(f"error: {row['error']}", file=sys.stderr)
    label = "simulated" if options.quantized or options.released else "float"
    return int(bool(failed)), {"model": pipe.name, "label": label, "images": done, "failed": failed}


def _tiling(tile: int | None, overlap: int | None, pipe):
    """What --tile and --overlap mean: "auto" without them, None for --tile 0."""
    from ..imaging.tiling import Tiling

    if tile == 0:
        return None
    return "auto" if tile is overlap is None else Tiling(pipe.tiling.tile if tile is None else tile, overlap)


def calibrate(options) -> tuple[int, dict]:
    """`calibrate --recipe R --method M --images DIR --out DIR`."""
    from ..calibration.checkpoint import save as save_state
    from ..calibration.loop import Calibration
    from ..imaging.pairs import chosen_pairs
    from ..quantization.place import quantize
    from ..store.folder import load, save

    start = time.perf_counter()
    quantized = quantize(load(options.model), options.recipe)
    recipe = quantized.recipe.name
    pairs = chosen_pairs(options.images, options.pairs, options.size, options.seed)
    method = find(options.method).with_options(**getattr(options, "method_options", None) or {})
    work = Calibration(quantized, pairs, method, options.epochs, options.batch, options.seed)
    checkpoint, peak = options.out / "unfinished.pt", 0
    with _stopping() as stopped:
        for record in _progress(work.run(keep=checkpoint), work.total, f"{options.method} {recipe}"):
            peak = max(peak, record["peak_bytes"])
            if stopped():
                save_state(work, checkpoint)
                raise KeyboardInterrupt
    save(quantized, options.out)
    checkpoint.unlink(missing_ok=True)
    stages = [{"module": r["module"], "stage": r["stage"], "first": r["first"], "last": r["loss"]} for r in work.ends]
    result = {
        "model": quantized.name, "label": quantized.label, "recipe": recipe, "method": options.method,
        "pairs": len(pairs), "seed": options.seed, "losses": stages, "seconds": time.perf_counter() - start,
        "peak_bytes": peak, "out": str(options.out),
    }  # fmt: skip
    return 0, result


def convert(options) -> tuple[int, dict]:
    """`convert --from official FILES --model M --out DIR`, and `--from lab FOLDER` the other way."""
    from ..store.convert import export_folder, import_files

    if options.source == "official":
        return 0, import_files(options.files, options.model, options.out, options.recipe, options.numerics)
    return 0, export_folder(options.files, options.model, options.out)


def compare(options) -> tuple[int, dict]:
    """`compare --recipes ... --methods ... --seeds N`."""
    from ..evaluation.sweep import grid, summary, sweep
    from ..util.files import replacing

    configurations = grid(
        model=[options.model], recipe=options.recipes.split(","), method=options.methods.split(","),
        seed=range(options.seeds), epochs=[options.epochs],
    )  # fmt: skip
    bar = iter(_progress(range(len(configurations)), len(configurations), "runs"))
    frame = sweep(configurations, options.store, callback=lambda row: next(bar, None))
    table = summary(frame)
    if options.csv:
        with replacing(options.csv) as temporary:
            table.to_csv(temporary, index=False)
        with replacing(options.csv.with_name(f"{options.csv.stem}_runs.csv")) as temporary:
            frame.to_csv(temporary, index=False)
    if not options.json:
        print(table.to_string(index=False, float_format=lambda v: f"{v:.3f}"))
    return 0, {"runs": frame.to_dict("records")} if options.json else {}


def train(options) -> tuple[int, dict]:
    """`train --images DIR --out DIR`."""
    from ..tools.train import PHASES, Training

    work = Training(options.images, options.seed, PHASES[options.skip :], options.start)
    state, start = options.out / "training.pt", time.monotonic()
    if state.exists():
        work.resume(state)
    saved, records = time.monotonic(), work.run()
    for record in _progress(records, work.total - work.step, "steps"):
        over = options.minutes is not None and time.monotonic() - start > options.minutes * 60
        if time.monotonic() - saved > 180 or over or record["step"] == record["of"]:
            work.save(state)
            saved = time.monotonic()
        if over:
            break
    work.averaged().half().save(options.out)  # float16 on disk; it is loaded as float32
    return 0, {"step": work.step, "of": work.total, "seed": options.seed, "out": str(options.out)} | work.validate()


def evaluate(options) -> tuple[int, dict]:
    """`evaluate --images DIR`."""
    import numpy as np

    from ..imaging.pairs import chosen_pairs
    from ..imaging.pictures import upsample
    from ..imaging.psnr import psnr_y
    from ..store.folder import load

    pipe = load(options.model, prompt=options.prompt)
    pairs = chosen_pairs(options.images, options.pairs, options.size, options.seed, split="test")
    ours, bicubic = [], []
    for pair in _progress(pairs, len(pairs), "evaluate"):
        ours.append(psnr_y(pipe(pair.lr), pair.hr))
        bicubic.append(psnr_y(upsample(pair.lr[None])[0], pair.hr))
    result = {
        "model": pipe.name,
        "images": len(pairs),
        "psnr_y": float(np.mean(ours)),
        "bicubic": float(np.mean(bicubic)),
    }
    return 0, result | {
        "gain": result["psnr_y"] - result["bicubic"],
        "better_on": int(sum(a > b for a, b in zip(ours, bicubic))),
    }


def cost(options) -> tuple[int, dict]:
    """`cost --model sd21 --recipe W8A8`."""
    from ..analysis.bitcost import report
    from ..fullsize.sd21 import architecture
    from ..quantization.recipe import recipe

    start, wanted = time.perf_counter(), recipe(options.recipe) if options.recipe else None
    figures = report(architecture(options.model), wanted, options.size)
    head = {"model": options.model, "recipe": options.recipe or "W32A32", "size": options.size}
    return 0, head | figures | {"seconds": time.perf_counter() - start}


def measure(options) -> tuple[int, dict]:
    """`measure -i DIR -r DIR --protocol osediff`."""
    from ..evaluation.scores import measure as scores
    from ..evaluation.scores import summary, versions
    from ..evaluation.tables import plain, to_csv

    metrics = options.metrics.split(",") if options.metrics else None
    frame = scores(options.images, options.references, metrics, options.protocol)
    if options.csv:
        to_csv(frame, options.csv.stem, options.csv.parent)
    rows = plain(summary(frame))
    count = int(frame.name[frame.name != "all"].nunique())
    return 0, {"images": count, "scores": rows, "versions": versions(options.protocol, metrics)}


def pairs(options) -> tuple[int, dict]:
    """`pairs --images DIR --out DIR --count 500`."""
    from ..imaging.calibration_set import calibration_set

    settings = {name: getattr(options, name) for name in ("count", "size", "seed", "degradation")}
    written = list(_progress(calibration_set(options.images, options.out, **settings), options.count, "pairs"))
    return 0, {"pairs": len(written), "out": str(options.out)} | settings


def table2(options) -> tuple[int, dict]:
    """`table2 --model tiny --out DIR`."""
    from dataclasses import fields

    from ..evaluation.table2 import Plan, run
    from ..evaluation.tables import plain, read

    given = {f.name: getattr(options, f.name) for f in fields(Plan)}
    lists = ("datasets", "bits", "methods", "metrics")
    given = {k: tuple(v.split(",")) if k in lists else v for k, v in given.items() if v is not None}
    plan = Plan(**given)
    total = len(plan.pipelines) * len(plan.datasets)
    bar, result = iter(_progress(range(total), total, "cells")), {}
    for record in run(plan, options.out):
        if record["event"] == "cell":
            next(bar, None)
        result = record
    table = read(options.out / "table2.csv")
    if not options.json:
        print(table.to_string(index=False, float_format=lambda v: f"{v:.4g}"))
    return 0, {"rows": plain(table), **result} if options.json else {"notes": result["notes"]}


def prefetch(options) -> tuple[int, dict]:
    """`prefetch --protocol osediff`."""
    from ..evaluation.iqa import prefetch as fetch

    files = list(_progress(fetch(options.protocol), what="weights"))
    missing = sum(row["sha256"] == "absent" for row in files)
    return int(bool(missing)), {"protocol": options.protocol, "files": files, "missing": missing}


def doctor(options) -> tuple[int, dict]:
    """`doctor osediff`."""
    from ..tools.doctor import as_text, can_run, report

    rows = report(options.work)
    if options.json:
        return int(not can_run(rows)), {"work": options.work, "can_run": can_run(rows), "rows": rows}
    print(as_text(rows))
    return int(not can_run(rows)), {"work": options.work, "can run": "yes" if can_run(rows) else "no"}


if __name__ == "__main__":
    sys.exit(main())
