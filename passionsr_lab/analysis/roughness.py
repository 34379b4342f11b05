"""How rough quality is: what the smallest changes of calibrated parameters do to it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from ..calibration.state import FLOAT
from ..imaging.psnr import psnr_rgb
from ..quantization.layer import mode
from ..quantization.place import QuantizedSR


@torch.no_grad()
def roughness(
    q: QuantizedSR,
    images: Sequence[Image.Image | Tensor],
    sizes: Sequence[float] = (1e-4, 1e-3, 1e-2),
    draws: int = 5,
    seed: int = 0,
):
    """PSNR (dB) against full precision, mean over images, once every calibrated parameter is off by a little.

    Columns: size (0 is the model as it is), draw, psnr_fp.  A parameter p becomes p (1 + size z), z drawn from N(0, 1)
    for each of its elements.  A difference between two calibrations that is no larger than what this does says nothing
    about which is better: values near the middle of two points of a grid are rounded the other way, and what comes of
    that is amplified (Eq. 9).

    Args:
        q: a calibrated pipeline; it is as before afterwards, and other threads that use it wait.
        images: LR pictures, PIL or (3, h, w) in [0, 1].
        sizes, draws: how large changes are and how many are tried of each; seed: of the first
            draw, one more of each that follows.

    Raises:
        ValueError: the pipeline is not quantized or nothing in it is calibrated, or there are no images.

    Example:
        >>> import passionsr_lab as lab
        >>> from passionsr_lab.analysis.roughness import roughness
        >>> pairs = lab.bundled("calibration", count=1, size=32)
        >>> q = lab.quantize(lab.tiny(), lab.W4A4)
        >>> records = lab.calibrate(q, pairs, "let")
        >>> roughness(q, [pairs[0].lr], sizes=[0.01], draws=2)["size"].tolist()
        [0.0, 0.01, 0.01]
    """
    import pandas as pd

    if not isinstance(q, QuantizedSR):
        raise ValueError("Roughness needs a quantized pipeline (lab.quantize), not a full-precision one.")
    if len(images) == 0:
        raise ValueError("Roughness needs at least one image.")
    parameters = [p for x in q.layers.values() for name, p in x.named_parameters() if not name.startswith(FLOAT)]
    if not parameters:
        raise ValueError("Nothing in this pipeline is calibrated; calibrate it first, by a method with parameters.")
    before, rows = [p.clone() for p in parameters], []
    with q.turns.changing():
        with mode(q, "float"):
            full = [q(image) for image in images]
        try:
            for size, draw in [(0.0, 0), *((size, draw) for size in sizes for draw in range(draws))]:
                generator = torch.Generator().manual_seed(seed + draw)
                for p, start in zip(parameters, before):
                    noise = torch.randn(p.shape, generator=generator, dtype=p.dtype)
                    p.copy_(start * (1 + size * noise.to(p.device)))
                scores = [psnr_rgb(q(image), target) for image, target in zip(images, full)]
                rows.append((size, draw, sum(scores) / len(scores)))
        finally:
            for p, start in zip(parameters, before):
                p.copy_(start)
    return pd.DataFrame(rows, columns=["size", "draw", "psnr_fp"])
