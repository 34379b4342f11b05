"""`bench fullsize`: what the full size takes."""

import click

from .common import Told, command, live
from .options import DEVICE, SIZE


@command("bench fullsize --recipe W6A6 --crop 256")
@click.argument("what", type=click.Choice(["fullsize"]))
@click.option("--recipe", default="W6A6")
@click.option("--size", default=512, type=SIZE, help="HR pixels of the restored image")
@click.option("--crop", default=512, type=SIZE, help="HR pixels of the calibration pair")
@click.option("--device", type=DEVICE, help="like cpu", show_default="cuda if there is one")
@click.option("--bfloat16", is_flag=True, help="convolutions and products in bfloat16")
def bench(what, device, **options) -> Told:
    """Quantized; a calibration step of each module, then a whole image.  Random weights show no quality."""
    import torch

    from ..bench import fullsize as benchmark

    device, records = device or ("cuda" if torch.cuda.is_available() else "cpu"), []
    for record in benchmark.fullsize(benchmark.FullSize(device=device, **options)):
        records.append(record)
        live(_line(record))
    peak = max(record.get("peak_bytes", 0) for record in records[1:])
    return Told({"records": records, "peak_bytes": peak}, text="")


def _line(record: dict) -> str:
    words = []
    for key, value in record.items():
        if key.endswith("_bytes") and isinstance(value, int):
            words.append(f"{key[:-6]} {value / 2**30:.2f} GiB")
        elif isinstance(value, dict):
            words.append(f"{key} " + ", ".join(f"{k} {v / 2**30:.2f} GiB" for k, v in value.items()))
        elif key != "step":
            words.append(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}")
    return f"{record['step']}: " + "; ".join(words)
