"""`bench fullsize`: what the full size takes; `bench calibrate`: what a calibration step takes over a float one."""

import click

from .common import Told, command, live
from .options import COUNT, DEVICE, FILE, SIZE


@command("bench fullsize --recipe W6A6 --crop 256", "bench calibrate --rounds 9 --json")
@click.argument("what", type=click.Choice(["fullsize", "calibrate"]))
@click.option("--recipe", default="W6A6")
@click.option("--size", default=512, type=SIZE, help="fullsize: HR pixels of the restored image")
@click.option("--crop", default=512, type=SIZE, help="fullsize: HR pixels of the calibration pair")
@click.option("--device", type=DEVICE, help="fullsize: like cpu", show_default="cuda if there is one")
@click.option("--bfloat16", is_flag=True, help="fullsize: convolutions and products in bfloat16")
@click.option("--rounds", default=9, type=COUNT, help="calibrate: medians of so many")
@click.option("--report", type=FILE, help="calibrate: a JSON file to write too")
def bench(what, **options) -> Told:
    """fullsize: quantized; a calibration step of each module, then a whole image.  Random weights show no quality.

    calibrate: CPU time and memory of calibration steps over float steps, one thread, and the share of the steps.
    """
    return _fullsize(**options) if what == "fullsize" else _calibrate(**options)


def _fullsize(recipe, size, crop, device, bfloat16, **_) -> Told:
    import torch

    from ..bench import fullsize as benchmark

    device, records = device or ("cuda" if torch.cuda.is_available() else "cpu"), []
    for record in benchmark.fullsize(benchmark.FullSize(recipe, size, crop, device, bfloat16)):
        records.append(record)
        live(_line(record))
    peak = max(record.get("peak_bytes", 0) for record in records[1:])
    return Told({"records": records, "peak_bytes": peak}, text="")


def _calibrate(recipe, rounds, report, **_) -> Told:
    from ..bench import calibrate as benchmark
    from ..util.files import require_plain, write_json

    if report:
        require_plain(report)
    records = []
    for record in benchmark.calibrate(benchmark.Steps(recipe, rounds=rounds)):
        records.append(record)
        live(_line(record))
    result = {"ratios": records[-1]["ratios"], "memory_ratios": records[-1]["memory_ratios"], "records": records[:-1]}
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
