"""What the full size takes: SD2.1 with random weights, quantized; one calibration step of each module, one whole image.

`python -m passionsr_lab.bench fullsize` says the plan and its estimates first, then what it measured.  Random weights
show memory and time, not quality.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass

import torch
from torch import nn

from ..analysis.cost import count
from ..analysis.paper import CALIBRATION
from ..calibration.loop import Calibration
from ..fullsize.sd21 import sd21
from ..imaging.pairs import Pair
from ..imaging.pictures import UPSCALE
from ..methods import DEFAULT, find
from ..pipeline.onestep import OneStepSR
from ..quantization.place import QuantizedSR, quantize
from ..quantization.recipe import recipe as recipe_named
from ..util.memory import Peak

PAIRS, EPOCHS, STAGES = 500, 2, 2  # of the paper's calibration: pairs, passes per stage, stages per module
COPIES = 6  # tensors of its output's size that a quantized layer keeps for the backward pass, about
WEIGHT_COPIES = 3  # the same of its weight: scaled, quantized, and the gradient
PRODUCT_COPIES = 3  # and of attention probabilities
WORK = {"targets": 1, "observe": 1, "step": 4, "map": 1}  # forwards; a checkpointed step is two, and two backwards
BLOCK = re.compile(r"^(.*?(?:down_blocks|up_blocks)\.\d+|.*?mid_block)\.")


@dataclass(frozen=True)
class FullSize:
    """What is run.

    model: an architecture on a device, or None for SD2.1 with random weights.
    recipe: of the quantization, all three modules.
    size: edge of the image that is restored; crop: edge of the calibration pair (512 in the paper), both in HR pixels.
    device: "cpu" or "cuda".
    bfloat16: convolutions and products in bfloat16, the rest in float32.
    """

    recipe: str = "W6A6"
    size: int = 512
    crop: int = 512
    device: str = "cpu"
    bfloat16: bool = False


def fullsize(options: FullSize, make=sd21) -> Iterator[dict]:
    """Runs the benchmark; a record per step, each with `step`, `seconds` and `peak_bytes`, the first one the plan.

    Args:
        options: what is run.
        make: a function device -> pipeline; for another architecture than SD2.1's.

    Yields:
        "plan" (what is estimated), "build", "quantize", "calibrate" per module (with its loss), "restore", and
        "extrapolation": the hours of a calibration like the paper's, from the measured steps, beside the paper's.
    """
    yield plan(options, make)
    generator = torch.Generator().manual_seed(0)
    device = torch.device(options.device)
    with Peak(device) as peak:
        start = time.perf_counter()
        pipe = make(device)
        seconds = time.perf_counter() - start
    yield {"step": "build", "seconds": seconds, "peak_bytes": peak.bytes}
    with Peak(device) as peak:
        start = time.perf_counter()
        quantized = quantize(pipe, recipe_named(options.recipe))
        seconds = time.perf_counter() - start
    yield {"step": "quantize", "seconds": seconds, "peak_bytes": peak.bytes}
    with torch.autocast(device.type, torch.bfloat16) if options.bfloat16 else nullcontext():
        taken = {}
        for record in _calibrated(quantized, options, generator):
            taken[record["module"]] = record["seconds"]
            yield record
        yield _restored(quantized, options, generator)
    yield extrapolation(taken, options)


def _calibrated(quantized: QuantizedSR, options: FullSize, generator: torch.Generator) -> Iterator[dict]:
    side = options.crop // UPSCALE
    lr, hr = torch.rand(3, side, side, generator=generator), torch.zeros(3, options.crop, options.crop)
    pair = Pair("random", lr, hr)
    for record in Calibration(quantized, [pair], find(DEFAULT), batch=1, lean=True).probe():
        yield {"step": "calibrate"} | {key: record[key] for key in ("module", "loss", "seconds", "peak_bytes")}


def _restored(quantized: QuantizedSR, options: FullSize, generator: torch.Generator) -> dict:
    lr = torch.rand(3, options.size // UPSCALE, options.size // UPSCALE, generator=generator)
    with Peak(options.device) as peak:
        start = time.perf_counter()
        image = quantized(lr)
        seconds = time.perf_counter() - start
    finite = bool(torch.isfinite(image).all())
    return {
        "step": "restore", "seconds": seconds, "peak_bytes": peak.bytes, "shape": list(image.shape), "finite": finite,
    }  # fmt: skip


# -- estimates --------------------------------------------------------------------------------------------------------


def plan(options: FullSize, make=sd21) -> dict:
    """What will be done and about what it will take, from the architecture and the speed of one convolution."""
    skeleton = make("meta")
    crop, whole = count(skeleton, options.crop), count(skeleton, options.size)
    rate = _rate(options)
    weights = 4 * int(crop.parameters.sum())
    steps = {name: weights + step_bytes(crop, skeleton, name) for name in ("encoder", "unet", "decoder")}
    macs = sum(WORK.values()) * int(crop.macs.sum()) + int(whole.macs.sum())
    return {
        "step": "plan", **asdict(options), "macs": macs, "macs_per_second": rate, "seconds": macs / rate,
        "weights_bytes": weights, "calibrate_bytes": steps, "peak_bytes": max(steps.values()),
        "kept_bytes_of_500_pairs": _kept(skeleton, options.crop),
    }  # fmt: skip


def step_bytes(frame, pipe: OneStepSR, module: str) -> int:
    """About what a checkpointed calibration step of a module needs beside the weights: its largest block."""
    blocks: dict[str, int] = {}
    for row in frame[frame.module == module].itertuples():
        match = BLOCK.match(row.layer)
        blocks[match[1] if match else row.layer] = blocks.get(match[1] if match else row.layer, 0) + _kept_by(row, pipe)
    return 4 * max(blocks.values())


def _kept_by(row, pipe: OneStepSR) -> int:
    """Numbers that a layer keeps for the backward pass."""
    if row.kind == "qk":
        attention: nn.Module = pipe.get_submodule(row.layer.rpartition(".")[0])
        return PRODUCT_COPIES * row.macs * attention.heads // row.inputs
    return COPIES * row.macs * row.outputs // row.weights + WEIGHT_COPIES * row.weights if row.weights else 0


def _kept(pipe: OneStepSR, crop: int) -> dict[str, int]:
    """Bytes that 500 pairs take during a calibration: LR images and latents (as here), or all that has their size."""
    channels = pipe.vae.config.latent_channels
    latents = 2 * channels * (crop // pipe.factor) ** 2
    return {
        "LR images and latents": 4 * PAIRS * (3 * (crop // UPSCALE) ** 2 + latents),
        "images and latents": 4 * PAIRS * (2 * 3 * crop**2 + latents),
    }


@torch.no_grad()
def _rate(options: FullSize) -> float:
    """Multiply-accumulates per second of a 3x3 convolution of 256 channels on 64 x 64, the best of three."""
    layer = nn.Conv2d(256, 256, 3, padding=1).to(options.device)
    x, times = torch.zeros(1, 256, 64, 64, device=options.device), []
    with torch.autocast(torch.device(options.device).type, torch.bfloat16) if options.bfloat16 else nullcontext():
        for _ in range(3):
            start = time.perf_counter()
            layer(x).sum().item()
            times.append(time.perf_counter() - start)
    return 256 * 256 * 9 * 64 * 64 / min(times)


def extrapolation(seconds: dict[str, float], options: FullSize) -> dict:
    """Hours of 500 pairs, 2 passes in each of 2 stages per module, from one measured step each; batch 1.

    Left out are the passes that make targets and measure losses; the steps are most of a calibration.
    """
    hours = PAIRS * EPOCHS * STAGES * sum(seconds.values()) / 3600
    return {
        "step": "extrapolation", "pairs": PAIRS, "epochs": EPOCHS, "crop": options.crop, "device": options.device,
        "hours": hours, "paper_hours": CALIBRATION["hours"], "paper_gpu_GB": CALIBRATION["gpu_GB"],
    }  # fmt: skip
