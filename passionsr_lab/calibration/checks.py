"""What a calibration refuses before it begins, each in one sentence."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from numbers import Integral, Real

import torch

from ..imaging.pairs import Pair, checked_pairs
from ..quantization.place import QuantizedSR
from .method import REQUIRED, Method


def checked(
    q: QuantizedSR, pairs: Iterable, method: Method, epochs: int, batch: int, seed: int,
    rates: Mapping[str, float] | None,
) -> list[Pair]:  # fmt: skip
    """The pairs, after everything that a `Calibration` is given was looked at; `ValueError` as there."""
    if not isinstance(q, QuantizedSR):
        raise ValueError("Only a quantized pipeline can be calibrated; quantize this one first (lab.quantize).")
    if not isinstance(method, Method):
        raise ValueError(f"Calibration takes a Method, not {method!r}; lab.METHODS has them by name.")
    if torch.is_inference_mode_enabled():
        raise ValueError("Calibration trains, which torch.inference_mode forbids; calibrate outside it.")
    if any(p.is_meta for p in q.parameters()):
        raise ValueError("This model has shapes and no weights, so nothing can be calibrated; load one with weights.")
    if any(p.dtype == torch.float64 for p in q.parameters()):
        raise ValueError("The weights are float64; calibrate a model in float32, bfloat16 or float16.")
    for name, value, least in (("epochs", epochs, 1), ("batch", batch, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
            raise ValueError(f"{name} is a whole number from {least} on, not {value!r}.")
    for tag, rate in (rates or {}).items():
        if tag not in method.rates:
            raise ValueError(f"{method.label} trains nothing tagged {tag!r}; it has {', '.join(method.rates)}.")
        if isinstance(rate, bool) or not isinstance(rate, Real) or not 0 < rate < math.inf:
            raise ValueError(f"The rate of {tag!r} is a number above 0, not {rate!r}.")
    for distance in {loss.distance for stage in method.stages for loss in stage.losses} & REQUIRED.keys():
        REQUIRED[distance]()
    return checked_pairs(pairs, q.upscale)
