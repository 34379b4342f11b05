"""What decides a number, as one hash: the key under which a model or a score is kept."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch

from .. import __version__
from ..calibration.method import Method
from ..imaging.pairs import Pair
from ..imaging.pictures import to_tensor
from ..quantization.recipe import Recipe

DECIDING = ("util", "imaging", "pipeline", "quantization", "calibration", "official", "methods", "evaluation")


def root() -> Path:
    """Where the store is: `$PASSIONSR_STORE`, else `~/.cache/passionsr_lab/store`."""
    return Path(os.environ.get("PASSIONSR_STORE") or Path.home() / ".cache" / "passionsr_lab" / "store")


def key_of(content: dict) -> str:
    """A short hash of plain values and of what always decides: library, versions, number of threads."""
    whole = content | {"library": source_digest(), "threads": torch.get_num_threads()} | versions()
    return hashlib.sha256(json.dumps(whole, sort_keys=True, default=str).encode()).hexdigest()[:24]


def versions() -> dict:
    """Versions of what decides the numbers."""
    import diffusers

    return {"passionsr_lab": __version__, "torch": torch.__version__, "diffusers": diffusers.__version__}


@cache
def source_digest() -> str:
    """A hash of this library's own source, as far as it decides numbers."""
    digest, package = hashlib.sha256(), Path(__file__).parents[1]
    for room in DECIDING:
        for path in sorted((package / room).glob("*.py")):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def pairs_digest(pairs: Sequence[Pair | tuple]) -> str:
    """A hash of the LR images of these pairs, in their order."""
    digest = hashlib.sha256()
    for pair in pairs:
        lr = to_tensor(pair[-2])
        digest.update(f"{tuple(lr.shape)}".encode() + lr.cpu().numpy().tobytes())
    return digest.hexdigest()


def calibration_key(
    model: str, recipe: Recipe, method: Method, pairs: Sequence[Pair | tuple], epochs: int, batch: int, seed: int,
    rates: dict[str, float] | None = None,
) -> dict:  # fmt: skip
    """What decides a calibrated model, of which `model` is the fingerprint; what a method does not use is left out."""
    content = {
        "model": model, "recipe": recipe.to_dict(), "method": method.describe(), "pairs": pairs_digest(pairs),
    }  # fmt: skip
    trained = {"epochs": epochs, "batch": batch, "seed": seed, "rates": dict(method.rates) | (rates or {})}
    return content | (trained if method.stages else {})
