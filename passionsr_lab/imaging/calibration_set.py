"""The builder of a calibration set: pairs of crops and their degraded versions, out of photographs."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Callable, Iterator

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from ..util.files import read_json, write_json
from .decoding import picture_size
from .degradation import SMALLEST, Degradation
from .pairs import crop, require_count, require_crop
from .pictures import UPSCALE, image_files, read_image, to_image, write_image


def bicubic(hr: Tensor, rng: np.random.Generator) -> Tensor:
    """(3, 4h, 4w) in [0, 1] -> (3, h, w) on the 8-bit grid by anti-aliased bicubic alone; `rng` is not used."""
    lr = F.interpolate(hr[None], scale_factor=1 / UPSCALE, mode="bicubic", antialias=True)[0]
    return (lr.clamp(0, 1) * 255).round() / 255


DEGRADATIONS: dict[str, Callable[[Tensor, np.random.Generator], Tensor]] = {
    "camera": Degradation(),  # blur, down-sampling, noise, JPEG
    "bicubic": bicubic,
}


def calibration_set(
    photographs: str | Path,
    out: str | Path,
    count: int = 500,
    size: int = 512,
    seed: int = 0,
    degradation: str = "camera",
) -> Iterator[Path]:
    """Writes `count` pairs as `out/lr/` and `out/hr/` and how they were made as `out/calibration.json`.

    The paper calibrates on 500 pairs of 128 and 512 pixels.  Pair i depends on the photographs, the seed and i alone:
    pairs that are there already are kept, so a run that was stopped goes on, and a larger count adds to a smaller one.

    Args:
        photographs: a folder; photographs smaller than a crop are passed over.
        size: HR pixels of a square crop; the LR image has a quarter.
        degradation: a name out of `DEGRADATIONS`.

    Yields:
        The HR file of every pair, as it is there.

    Raises:
        ValueError: no photograph is large enough, the degradation is unknown, or `out` holds a set of other photographs
            or settings.
    """
    if degradation not in DEGRADATIONS:
        raise ValueError(f"degradation is one of {', '.join(DEGRADATIONS)}, not {degradation!r}.")
    require_count(count)
    require_crop(size, SMALLEST)
    out, files = Path(out), _large_enough(photographs, size)
    settings = {"size": size, "seed": seed, "degradation": degradation}
    settings["photographs"] = {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files}
    if isinstance(DEGRADATIONS[degradation], Degradation):
        settings["ranges"] = {key: list(np.atleast_1d(v)) for key, v in asdict(DEGRADATIONS[degradation]).items()}
    _same_settings(out / "calibration.json", settings)
    order = np.random.default_rng(seed).permutation(len(files))
    for i in range(count):
        low, high = (out / side / f"{i:05d}.png" for side in ("lr", "hr"))
        if not (low.is_file() and high.is_file()):
            rng = np.random.default_rng([seed, i])
            hr = crop(read_image(files[order[i % len(files)]]), size, rng)
            for path, image in ((low, DEGRADATIONS[degradation](hr, rng)), (high, hr)):
                write_image(to_image(image), path)
        yield high


def _large_enough(photographs: str | Path, size: int) -> list[Path]:
    files = [file for file in image_files(photographs) if min(picture_size(file)) >= size]
    if not files:
        raise ValueError(
            f"No photograph in {photographs} has {size} x {size} pixels; use larger ones or smaller crops."
        )
    return files


def _same_settings(path: Path, settings: dict) -> None:
    settings = json.loads(json.dumps(settings, default=float))
    if path.is_file() and read_json(path) != settings:
        raise ValueError(f"{path.parent} holds a set that was made otherwise (see {path}); choose another folder.")
    write_json(path, settings)
