"""Quantized pipelines as folders: what calibration added, and a description of everything that it belongs to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from ..calibration.method import Method
from ..calibration.state import load_state, slot_tensors
from ..fullsize.load import load_model
from ..methods import find
from ..official.norms import differing_norms, norms
from ..pipeline.identity import SHAPES, fingerprint
from ..pipeline.onestep import CONFIG, OneStepSR
from ..quantization.place import QuantizedSR, quantize, unquantize
from ..quantization.recipe import Recipe
from ..util.checkpoint import read_checkpoint
from ..util.files import write_json, write_tensors
from ..util.hashing import tensors_digest
from .keys import versions

TENSORS, DESCRIPTION, NORMS = "quantized.safetensors", "quantized.json", "norms.safetensors"
FORMAT = 2  # of the folder; 1 had the options of LET in the recipe


def save(q: QuantizedSR, folder: str | Path) -> Path:
    """Writes what quantization added (not the model's own weights): `quantized.safetensors` and `quantized.json`.

    Raises:
        ValueError: the pipeline is not quantized, or not calibrated.

    Example:
        >>> import tempfile, passionsr_lab as lab
        >>> q = lab.quantize(lab.tiny(), lab.W8A8)
        >>> records = lab.calibrate(q, lab.bundled("calibration", count=2, size=64), "maxmin")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     lab.load(lab.save(q, folder)).recipe.name
        'W8A8'
    """
    if not isinstance(q, QuantizedSR):
        raise ValueError("lab.save writes quantized pipelines; a full-precision one has save(folder) itself.")
    if q.method is None:
        raise ValueError("This pipeline is not calibrated, so there is nothing to save; calibrate it (lab.calibrate).")
    folder = Path(folder)
    tensors = {name: t.detach().cpu().contiguous() for name, t in slot_tensors(q).items()}
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} is not finite: the calibration is not complete; run it to its end before saving.")
    description = {
        "format": FORMAT, "label": q.label, "model": q.name, "fingerprint": fingerprint(unquantize(q)),
        "sources": q.sources, "recipe": q.recipe.to_dict(), "method": q.method.describe(), "calibration": q.history,
        "versions": versions(),
    }  # fmt: skip
    if q.prompt_embedding.is_meta:
        taken = own_norms(q, taken=True)
        write_tensors(folder / NORMS, taken)
        description["norms"] = tensors_digest(taken.items())
    else:
        (folder / NORMS).unlink(missing_ok=True)
    write_tensors(folder / TENSORS, tensors)
    write_json(folder / DESCRIPTION, description | {"digest": digest(tensors, description)})
    return folder


def own_norms(pipe: OneStepSR | QuantizedSR, taken: bool = False) -> dict[str, Tensor]:
    """The norms of UNet and VAE by name; `taken`: those only that a model without weights took from released files."""
    found = {f"{part}.{k}": v for part in ("unet", "vae") for k, v in norms(getattr(pipe, part)).items()}
    return {name: found[name] for name in sorted(found) if not (taken and found[name].is_meta)}


def digest(tensors: dict[str, Tensor], description: dict) -> str:
    """A hash of names, shapes and values, and of what describes them."""
    found = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode() + tensor.cpu().numpy().tobytes())
    return found.hexdigest()


def load(
    folder_or_id: str | Path, pipe: OneStepSR | None = None, prompt: bool | str | Path | Callable = False
) -> OneStepSR | QuantizedSR:
    """Loads a model: full precision (see `fullsize.load.load_model`), or a folder that `save` wrote.

    Args:
        folder_or_id: "tiny", "osediff" or "sd21", a model folder, a folder of SD2.1 and OSEDiff weights as `weights`
            describes it, SD2.1's single file, a hub id, or a folder of quantization tensors.
        pipe: for a quantized folder, the full-precision model it belongs to; by default the one it names.
        prompt: for a full-precision model, keep its prompt branch; for OSEDiff, whose tagger is not on the registries,
            the tags themselves (see `osediff.load`).

    Raises:
        ValueError: something is missing or damaged, or the tensors belong to another model.
    """
    quantized = (Path(folder_or_id) / DESCRIPTION).is_file()
    return load_quantized(Path(folder_or_id), pipe) if quantized else load_model(folder_or_id, prompt)


def load_quantized(folder: Path, pipe: OneStepSR | None = None, method: Method | None = None) -> QuantizedSR:
    """What `load` does with a folder of quantization tensors; `method` is for one that is not registered."""
    if (folder / CONFIG).is_file() and not (folder / DESCRIPTION).is_file():
        raise ValueError(f"{folder} is a full-precision model; give a folder that `calibrate` or `convert` wrote.")
    description, recipe, method, tensors = _read(folder, method)
    name, mark = description["model"], description["fingerprint"]
    try:
        pipe = load_model(name) if pipe is None else pipe
    except ValueError as error:
        raise ValueError(f"{folder} belongs to the model {name!r}; load that and give it as pipe=: {error}") from None
    bare = mark.startswith(SHAPES)
    if fingerprint(pipe.prune(), values=not bare) != mark or (bare and not _norms_fit(folder, description, pipe)):
        raise ValueError(f"{folder} was calibrated for another model ({name!r}), not for {pipe.name!r}; load that one.")
    q = quantize(pipe, recipe)
    q.method = method
    method.slots.install(q)
    for layer in q.layers.values():
        layer.requires_grad_(False)
    load_state(q, tensors)
    q.history = description["calibration"]
    q.pipe.tile = q.history.get("tile", q.pipe.tile)
    return q


def _read(folder: Path, method: Method | None) -> tuple[dict, Recipe, Method, dict[str, Tensor]]:
    try:
        description = json.loads((folder / DESCRIPTION).read_text())
        if description.get("format") != FORMAT:
            raise ValueError(
                f"its format is {description.get('format', 1)}, this version reads {FORMAT}; calibrate anew."
            )
        with safe_open(folder / TENSORS, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.offset_keys()}
        if description.pop("digest") != digest(tensors, description):
            raise ValueError(f"{TENSORS} or {DESCRIPTION} is damaged, or one is another model's; copy both again.")
        recipe, saved = Recipe.from_dict(description["recipe"]), description["method"]
        return description, recipe, _with_options(method or find(saved["name"]), saved), tensors
    except Exception as error:
        raise ValueError(f"{folder} is not a complete quantized model: {error}") from error


def _with_options(method: Method, saved: dict) -> Method:
    """The method with the options that were saved."""
    slots = dict(saved["slots"])
    if slots.pop("kind") != type(method.slots).__name__:
        raise ValueError(f"the method {method.name!r} fills other slots than the saved one; register that one.")
    return replace(method.with_options(**slots), rates=saved["rates"])


def _norms_fit(folder: Path, description: dict, pipe: OneStepSR) -> bool:
    """Whether the norms beside tensors that were made for a model without weights are this model's."""
    given, own = read_checkpoint(folder / NORMS), own_norms(pipe)
    if tensors_digest(sorted(given.items())) != description.get("norms"):
        raise ValueError(f"{folder / NORMS} is not what was written beside {DESCRIPTION}; copy the folder again.")
    return given.keys() <= own.keys() and not differing_norms(own, given)[1]
