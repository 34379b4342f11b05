"""`bench fullsize`: what the full size takes; `calibrate`: steps over float ones; `deploy`: integers over float."""

import click

from .common import Told, command, live
from .options import COUNT, DEVICE, FILE, NAMES, SIZE


@command("bench fullsize --recipe W6A6 --crop 256", "bench calibrate --rounds 9 --json", "bench deploy --model sd21")
@click.argument("what", type=click.Choice(["fullsize", "calibrate", "deploy"]))
@click.option("--recipe", help="of the quantization", show_default="W6A6, of deploy W8A8")
@click.option("--size", default=512, type=SIZE, help="fullsize, deploy: HR pixels of the restored image")
@click.option("--crop", default=512, type=SIZE, help="fullsize: HR pixels of the calibration pair")
@click.option("--device", type=DEVICE, help="fullsize: like cpu", show_default="cuda if there is one")
@click.option("--bfloat16", is_flag=True, help="fullsize: convolutions and products in bfloat16")
@click.option("--rounds", type=COUNT, help="calibrate, deploy: medians of so many", show_default="9, of deploy 5")
@click.option("--report", type=FILE, help="calibrate, deploy: a JSON file to write too")
@click.option("--model", default="tiny", help="deploy: 'tiny', 'sd21' (random weights) or a model folder")
@click.option("--method", default="let", help="deploy: of the calibration")
@click.option("--networks", default="encoder,unet,decoder", type=NAMES, help="deploy: of the model")
@click.option("--threads", default=1, type=COUNT, help="deploy: of every route")
@click.option("--compiled/--no-compiled", default=True, help="deploy: torch.compile too, where there is a compiler")
def bench(what, **options) -> Told:
    """fullsize: quantized; a calibration step of each module, then a whole image.  Random weights show no quality.

    calibrate: CPU time and memory of calibration steps over float steps, one thread, and the share of the steps.

    deploy: a deployed model over the fastest float32 route of all that are tried, network by network.
    """
    return {"fullsize": _fullsize, "calibrate": _calibrate, "deploy": _deploy}[what](**options)


def _fullsize(recipe, size, crop, device, bfloat16, **_) -> Told:
    import torch

    from ..bench import fullsize as benchmark

    device, records = device or ("cuda" if torch.cuda.is_available() else "cpu"), []
    for record in benchmark.fullsize(benchmark.FullSize(recipe or "W6A6", size, crop, device, bfloat16)):
        records.append(record)
        live(_line(record))
    peak = max(record.get("peak_bytes", 0) for record in records[1:])
    return Told({"records": records, "peak_bytes": peak}, text="")


def _calibrate(recipe, rounds, report, **_) -> Told:
    from ..bench import calibrate as benchmark

    settings = benchmark.Steps(recipe or "W6A6", rounds=rounds or 9)
    return _reported(benchmark.calibrate(settings), ("ratios", "memory_ratios"), report)


def _deploy(recipe, size, rounds, report, model, method, networks, threads, compiled, **_) -> Told:
    from ..bench import deploy as benchmark

    if unknown := set(networks) - set(benchmark.NETWORKS):
        raise click.UsageError(f"a network is one of {', '.join(benchmark.NETWORKS)}, not {min(unknown)}")
    settings = benchmark.Deploying(
        model, recipe or "W8A8", method, size, rounds or 5, threads, compiled, networks=tuple(networks)
    )
    return _reported(benchmark.deploying(settings), ("ratios",), report)


def _reported(records, ends: tuple[str, ...], report) -> Told:
    """Shows records as they come; the last one has the `ends`, the others are the raw medians."""
    from ..util.files import require_plain, write_json

    if report:
        require_plain(report)
    found = []
    for record in records:
        found.append(record)
        live(_line({key: value for key, value in record.items() if key != "times"}))
    result = {key: found[-1][key] for key in ends} | {"records": found[:-1]}
    if report:
        write_json(report, result)
    return Told(result, text="")


def _line(record: dict) -> str:
    words = []
    for key, value in record.items():
        if key != "step":
            words.append(f"{key} {_words(key, value)}")
    return f"{record['step']}: " + "; ".join(words)


def _words(key: str, value) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_words(key if key.endswith('bytes') else k, v)}" for k, v in value.items())
    if key.endswith(("_bytes", "_pairs")) and isinstance(value, int) and value > 2**16:
        return f"{value / 2**30:.2f} GiB"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
