"""The state of a calibration on disk, between two steps."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..pipeline.identity import fingerprint
from ..quantization.place import unquantize
from ..util.files import write_checkpoint
from .state import load_state, state

if TYPE_CHECKING:
    from .loop import Calibration

CONTENT = {
    "stage": int,
    "step": int,
    "first": float,
    "tensors": dict,
    "before": dict,
    "ends": list,
    "records": list,
    "cost": dict,
}


def save(run: Calibration, path: str | Path) -> None:
    """Writes the state between two steps, atomically."""
    content = {
        "stage": run.stage, "step": run.step, "first": run.first, "optimizer": run.optimizer_state,
        "tensors": state(run.q), "before": run.before, "ends": run.ends, "records": run.records, "cost": run.cost,
        "settings": settings(run),
    }  # fmt: skip
    write_checkpoint(path, content)


def resume(run: Calibration, path: str | Path) -> None:
    """Goes on where `save` was called; `ValueError` if the file is damaged or belongs to another calibration."""
    try:
        content = torch.load(path, weights_only=True, map_location=run.data.device)
    except Exception as error:
        raise ValueError(f"{path} is not a calibration state that can be read; delete it to start anew.") from error
    if not isinstance(content, dict) or content.get("settings") != settings(run):
        raise ValueError(f"{path} belongs to a calibration with other settings; delete it to start anew.")
    if not _sound(run, content):
        raise ValueError(f"{path} is damaged; delete it to start anew.")
    run._begin()
    load_state(run.q, content["tensors"])
    run.stage, run.step, run.first = content["stage"], content["step"], content["first"]
    run.optimizer_state, run.before = content["optimizer"], content["before"]
    run.ends, run.records, run.cost = content["ends"], content["records"], content["cost"]


def _sound(run: Calibration, content: dict) -> bool:
    """Whether the content has the types that `save` writes, a stage that exists, and only numbers where it must."""
    if any(not isinstance(content.get(key), kind) for key, kind in CONTENT.items()):
        return False
    tensors = [t for part in ("tensors", "before") for t in content[part].values()]
    if not all(isinstance(t, torch.Tensor) and not torch.isnan(t).any() for t in tensors):
        return False
    within = 0 <= content["stage"] < max(1, len(run.stages)) and content["step"] >= 0
    return within and len(content["ends"]) <= len(run.stages) and not math.isinf(content["first"])


def settings(run: Calibration) -> dict:
    """Everything that decides the numbers of a calibration."""
    digest = hashlib.sha256()
    for x in run.images:
        digest.update(f"{tuple(x.shape)}".encode() + x.cpu().numpy().tobytes())
    if run.identity is None:
        run.identity = fingerprint(unquantize(run.q))
    return {
        "recipe": run.q.recipe.to_dict(), "method": run.method.describe(), "pairs": digest.hexdigest(),
        "epochs": run.epochs, "batch": run.batch, "seed": run.seed, "rates": dict(run.rates), "model": run.identity,
    }  # fmt: skip
