"""What decides a number, as one hash: the key under which a model or a score is kept."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import CodeType, FunctionType

import torch

from .. import __version__
from ..calibration.method import Method
from ..imaging.pairs import Pair
from ..imaging.pictures import to_tensor
from ..kernels.compiled import wanted
from ..quantization.quantizer import QUANTIZERS
from ..quantization.recipe import Recipe

DECIDING = (
    *("util", "imaging", "pipeline", "kernels", "quantization"),
    *("calibration", "official", "methods", "evaluation"),
)


def root() -> Path:
    """Where the store is: `$PASSIONSR_STORE`, else `~/.cache/passionsr_lab/store`."""
    return Path(os.environ.get("PASSIONSR_STORE") or Path.home() / ".cache" / "passionsr_lab" / "store")


def key_of(content: dict) -> str:
    """A short hash of plain values and of what always decides: library, versions, threads and how torch computes."""
    whole = content | {"library": source_digest()} | arithmetic() | versions()
    return hashlib.sha256(json.dumps(whole, sort_keys=True, default=str).encode()).hexdigest()[:24]


def arithmetic() -> dict:
    """Settings of torch that decide the last bits: sums are split among threads, and instructions differ."""
    return {
        "threads": torch.get_num_threads(), "instructions": torch.backends.cpu.get_cpu_capability(),
        "products": torch.get_float32_matmul_precision(), "default": str(torch.get_default_dtype()),
        "compiled": wanted(),
    }  # fmt: skip


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


def code_digest(*things: object) -> str:
    """A hash of the code of classes and functions from outside this library, and of what they name in their own module:
    a method that a notebook defines is another one after its cell was edited."""
    digest, seen, waiting = hashlib.sha256(), set(), list(things)
    while waiting:
        thing = waiting.pop()
        thing = getattr(thing, "__func__", getattr(thing, "fget", thing))  # of class methods and properties
        module = str(getattr(thing, "__module__", None))
        if id(thing) in seen or module.partition(".")[0] in ("passionsr_lab", "torch", "builtins", "None"):
            continue
        seen.add(id(thing))
        if isinstance(thing, type):
            waiting += [*thing.__bases__, *(vars(thing)[name] for name in sorted(vars(thing)))]
        elif isinstance(thing, FunctionType):
            names = _digest_code(digest, thing.__code__)
            found = (thing.__globals__.get(name) for name in names)
            waiting += [x for x in found if getattr(x, "__module__", None) == module]
    return digest.hexdigest()


def _digest_code(digest, code: CodeType) -> list[str]:
    """Takes in a code object with those inside it; the names that they use."""
    inner = [x for x in code.co_consts if isinstance(x, CodeType)]
    plain = [sorted(map(repr, x)) if isinstance(x, frozenset) else x for x in code.co_consts if x not in inner]
    digest.update(f"{code.co_name}{plain}{code.co_names}".encode() + code.co_code)
    return [*code.co_names, *(name for x in inner for name in _digest_code(digest, x))]


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
        "code": code_digest(type(method.slots), QUANTIZERS.get(method.slots.quantizer)),
    }  # fmt: skip
    trained = {"epochs": epochs, "batch": batch, "seed": seed, "rates": dict(method.rates) | (rates or {})}
    return content | (trained if method.stages else {})
