"""The state of a calibration on disk, between two steps."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..pipeline.identity import fingerprint
from ..quantization.place import unquantize
from ..util.checkpoint import require_intact
from ..util.files import write_checkpoint
from .state import load_state, slot_tensors, state

if TYPE_CHECKING:
    from .loop import Calibration

KINDS = {
    "stage": int, "step": int, "first": float, "optimizer": (dict, type(None)), "tensors": dict, "before": dict,
    "mean": dict, "ends": list, "records": list, "cost": dict,
}  # fmt: skip


def save(run: Calibration, path: str | Path) -> None:
    """Writes the state between two steps, or before the first, atomically."""
    run._begin()
    content = {
        "stage": run.stage, "step": run.step, "first": run.first, "optimizer": run.optimizer_state,
        "tensors": state(run.q), "before": run.before, "mean": run.mean, "ends": run.ends,
        "records": run.records, "cost": run.cost, "settings": settings(run),
    }  # fmt: skip
    write_checkpoint(path, content)


def resume(run: Calibration, path: str | Path) -> None:
    """Goes on where `save` was called; `ValueError` if the file is damaged or belongs to another calibration."""
    try:
        require_intact(Path(path))
        content = torch.load(path, weights_only=True, map_location=run.data.device)
    except Exception as error:
        raise ValueError(f"{path} is not a calibration state that can be read; delete it to start anew.") from error
    if not isinstance(content, dict) or content.get("settings") != settings(run):
        raise ValueError(f"{path} belongs to a calibration with other settings; delete it to start anew.")
    run._begin()
    if not _sound(run, content):
        raise ValueError(f"{path} is damaged; delete it to start anew.")
    load_state(run.q, content["tensors"])
    run.stage, run.step, run.first = content["stage"], content["step"], content["first"]
    run.optimizer_state, run.before, run.mean = content["optimizer"], content["before"], content["mean"]
    run.ends, run.records, run.cost = content["ends"], content["records"], content["cost"]


def _sound(run: Calibration, content: dict) -> bool:
    """Whether the content is what `save` writes of this run: types, tensors, a stage that exists, and numbers only."""
    if any(not isinstance(content.get(key), kind) for key, kind in KINDS.items()):
        return False
    begun, stage, ends = content["optimizer"], content["stage"], len(content["ends"])
    if begun is not None and begun.keys() != {"state", "param_groups"}:
        return False
    shapes = {key: tensor.shape for key, tensor in slot_tensors(run.q).items()}
    if content["tensors"].keys() != shapes.keys():
        return False
    for saved in (content["tensors"], content["before"], content["mean"]):
        if not all(key in shapes and _fits(tensor, shapes[key]) for key, tensor in saved.items()):
            return False
    there = 0 <= stage <= len(run.stages) and content["step"] >= 0 and (ends == stage if run.stages else ends <= 1)
    numbers = [content[key] for key in KINDS if key != "first" or begun]
    return there and not _has_nan(numbers)


def _fits(saved: object, shape: torch.Size) -> bool:
    """Whether a saved tensor has this shape; one of no numbers is of a size that only the file knows."""
    return isinstance(saved, torch.Tensor) and (saved.shape == shape or not shape.numel())


def _has_nan(value: object) -> bool:
    """Whether a NaN is anywhere in these tensors, numbers and containers."""
    if isinstance(value, (dict, list, tuple)):
        return any(map(_has_nan, value.values() if isinstance(value, dict) else value))
    return isinstance(value, (torch.Tensor, float)) and bool(torch.as_tensor(value).isnan().any())


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
        "compiled": run.compiled,
    }  # fmt: skip
