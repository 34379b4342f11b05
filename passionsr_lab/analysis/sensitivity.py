"""Which layers suffer most from low bits, and the recipe that spares them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
from PIL import Image
from torch import Tensor

from ..imaging.pairs import Pair
from ..imaging.pictures import to_tensor
from ..methods import UNTRAINED, calibrate
from ..pipeline.onestep import OneStepSR
from ..quantization.layer import mode
from ..quantization.place import QuantizedSR, quantize, quantized_layers, segment_modules
from ..quantization.recipe import Recipe
from ..util.names import MODULES
from .propagation import propagation


def sensitivity(
    pipe: OneStepSR,
    pairs: Sequence[Pair | tuple],
    recipe: Recipe | str | None = None,
    method: str = UNTRAINED,
    limit: int | None = None,
    callback: Callable[[dict], None] | None = None,
):
    """Every layer alone in low bits, and every layer alone spared them, as a DataFrame, the most sensitive first.

    Columns: number (see `layer_numbers`), module, layer (an ordered category), weight_bits, act_bits, and in dB:
    local_db, the SQNR that the layer itself loses (see `propagation`); alone_db, PSNR of the image against the
    full-precision model's when only this layer is quantized; kept_db, the same when every layer but this one is;
    gain_db, kept_db less the PSNR when all are.  Sorted by alone_db; sort by gain_db, falling, for what sparing one
    layer brings at once.

    Cost: for each layer of the encoder two passes, of the UNet two of UNet and decoder, of the decoder two of it alone;
    images of one size go as one batch, so give few.  `limit` is the cheap way: its ranking costs four passes in all.

    Args:
        pipe: a full-precision pipeline, which stays as it is; or one calibrated already, then without `recipe`.
        pairs: `Pair`s or (lr, hr) tuples; only the LR images are used, to calibrate and to score.
        recipe: the low bits, a recipe or its name.
        method: how a full-precision `pipe` is calibrated first, see `calibrate`.
        limit: measure only this many layers, those with the lowest local_db; None measures all.
        callback: called with every record of `measure` as it comes.

    Raises:
        ValueError: no pairs, or a limit below 1; a full-precision pipeline without a recipe, or a quantized one with.

    Example:
        >>> import passionsr_lab as lab
        >>> from passionsr_lab.analysis.sensitivity import keep_top, sensitivity
        >>> frame = sensitivity(lab.tiny(), lab.bundled("calibration", count=1, size=64), lab.W4A4, limit=2)
        >>> keep_top(lab.W4A4, frame, 1).bits(frame.layer[0])
        (8, 8)
    """
    import pandas as pd

    if limit is not None and limit < 1:
        raise ValueError(f"limit is the number of layers to measure, at least 1, not {limit}.")
    q = _calibrated(pipe, pairs, recipe, method)
    images = [pair[-2] for pair in pairs]
    proxy = propagation(q, images).drop(columns="accumulated_db")
    chosen = proxy if limit is None else proxy.nsmallest(limit, "local_db").sort_values("layer")
    bits = pd.DataFrame([q.recipe.bits(name) for name in chosen["layer"]], chosen.index, ["weight_bits", "act_bits"])
    records = []
    for record in measure(q, images, list(chosen["layer"])):
        records.append(record)
        if callback is not None:
            callback(record)
    scores = pd.DataFrame(records, chosen.index)[["alone_db", "kept_db", "gain_db"]]
    frame = pd.concat([chosen[["number", "module", "layer"]], bits, chosen[["local_db"]], scores], axis=1)
    return frame.sort_values(["alone_db", "layer"], ignore_index=True)


def keep_top(recipe: Recipe, frame, count: int = 5, bits: int = 8) -> Recipe:
    """The recipe with the first `count` layers of a ranking kept at `bits`; those that have as many already are passed.

    Args:
        frame: what `sensitivity` returned, in its order or yours: only the column `layer` is read.

    Raises:
        ValueError: `count` is negative, or `bits` is no bit width.

    Example:
        >>> import pandas as pd
        >>> from passionsr_lab.quantization.recipe import W4A4
        >>> ranking = pd.DataFrame({"layer": ["unet.conv_out", "unet.conv_in", "vae.encoder.conv_in"]})
        >>> keep_top(W4A4, ranking, 1).bits("unet.conv_in"), keep_top(W4A4, ranking, 1).bits("vae.encoder.conv_in")
        ((8, 8), (4, 4))
    """
    if count < 0:
        raise ValueError(f"count is the number of layers to keep, 0 or more, not {count}.")
    low = [name for name in frame["layer"] if min(recipe.bits(name)) < bits]
    return recipe.kept(*low[:count], bits=bits)


def _calibrated(pipe: OneStepSR, pairs, recipe: Recipe | str | None, method: str) -> QuantizedSR:
    if len(pairs) == 0:
        raise ValueError("Sensitivity needs at least one pair of images.")
    if recipe is None:
        if isinstance(pipe, QuantizedSR):
            return pipe
        raise ValueError("Sensitivity needs a recipe, for example lab.W4A4, or a pipeline quantized already.")
    q = quantize(pipe, recipe)
    calibrate(q, pairs, method)
    return q


@torch.no_grad()
def measure(q: QuantizedSR, images: Sequence[Image.Image | Tensor], layers: Sequence[str]) -> Iterator[dict]:
    """Yields a record per layer: step, of, layer, alone_db, kept_db, gain_db (see `sensitivity`).

    Between records the pipeline is as it was before, so it may be used, and the loop left, at any of them.
    """
    bench = Bench(q, images)
    with mode(q, "quantized"):
        all_db = bench.psnr("decoder", "quantized")
    found, owner = q.layers, {n: m for m in MODULES for n in quantized_layers(segment_modules(q, m))}
    for step, name in enumerate(layers, 1):
        with mode(q, "float"), mode(found[name], "quantized"):
            alone = bench.psnr(owner[name], "float")
        with mode(q, "quantized"), mode(found[name], "float"):
            kept = bench.psnr(owner[name], "quantized")
        yield {
            "step": step, "of": len(layers), "layer": name, "alone_db": alone, "kept_db": kept, "gain_db": kept - all_db
        }  # fmt: skip


class Bench:
    """The images' way through the float and the quantized network, kept where each module begins, so that what comes
    before a layer's module need not run again.  Images of one size go together."""

    def __init__(self, q: QuantizedSR, images: Sequence[Image.Image | Tensor]):
        self.q, self.runs = q, {s.name: s.run for s in q.segments()}
        lrs = [to_tensor(image).to(q.prompt_embedding.device) for image in images]
        shapes = sorted({lr.shape for lr in lrs})
        batches = [torch.stack([lr for lr in lrs if lr.shape == shape]) for shape in shapes]
        self.sizes = [(h * q.upscale, w * q.upscale) for _, h, w in shapes]
        self.inputs = {name: self._way([q.prepare(lr) for lr in batches], name) for name in ("float", "quantized")}
        with mode(q, "float"):
            self.full = self._images("decoder", "float")

    def _way(self, x: list[Tensor], name: str) -> dict[str, list[Tensor]]:
        way = {"encoder": x}
        with mode(self.q, name):
            for before, module in pairwise(MODULES):
                way[module] = [self.runs[before](t) for t in way[before]]
        return way

    def _images(self, module: str, before: str) -> list[Tensor]:
        """The images, in [0, 1], when `module` and what follows it run as they are set, and all before it as told."""
        x = self.inputs[before][module]
        for after in MODULES[MODULES.index(module) :]:
            x = [self.runs[after](t) for t in x]
        return [(t[..., :h, :w] / 2 + 0.5).clamp(0, 1) for t, (h, w) in zip(x, self.sizes)]

    def psnr(self, module: str, before: str) -> float:
        """dB, against the full-precision images."""
        errors = [(a - b).double().square() for a, b in zip(self._images(module, before), self.full)]
        mean = sum(e.sum().item() for e in errors) / sum(e.numel() for e in errors)
        return -10 * math.log10(max(mean, 1e-10))
