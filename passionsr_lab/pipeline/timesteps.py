"""One model at several timesteps: adapters beside its weights, `timesteps/249.safetensors`, merged on loading.

QArtSR retrains a one-step model at the timestep that quantizes best (its section on timestep retraining, TRQ).  An
adapter holds a LoRA of the UNet, in the tensors' names of OSEDiff's file, layers whose weights it replaces, and the
fingerprint of the model that it belongs to.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

from ..util.checkpoint import read_checkpoint
from ..util.files import write_tensors
from .identity import fingerprint
from .lora import LoRA, merge, require_complete
from .onestep import OneStepSR

ADAPTER = "timestep"  # its name in the names of tensors
BASE = "base"  # the tensor that holds the model's fingerprint: uint8 (32,)


def split_timestep(name: str | Path) -> tuple[str | Path, int | None]:
    """The model and the timestep that a name asks for; of a folder that exists under the whole name, no timestep.

    Example:
        >>> split_timestep("tiny@249"), split_timestep("tiny")
        (('tiny', 249), ('tiny', None))
    """
    found = re.fullmatch(r"(.+)@(\d{1,6})", str(name))
    if found is None or Path(name).is_dir():
        return name, None
    return found[1], int(found[2])


def adapter_file(folder: str | Path, timestep: int) -> Path:
    """Where the adapter for a timestep lies."""
    return Path(folder) / "timesteps" / f"{timestep}.safetensors"


def write_adapter(file: Path, base: OneStepSR, tensors: dict[str, Tensor]) -> Path:
    """Writes an adapter for the model `base`, in float16: "<layer>.lora_A.timestep.weight" and so on as in `LoRA`."""
    mark = torch.frombuffer(bytearray.fromhex(fingerprint(base)), dtype=torch.uint8)
    write_tensors(file, {name: tensor.half() for name, tensor in tensors.items()} | {BASE: mark})
    return file


def adapt(pipe: OneStepSR, folder: str | Path, timestep: int) -> None:
    """Merges the adapter for `timestep` into a pipeline, in place, and sets its timestep.

    Raises:
        ValueError: the folder has no adapter for this timestep, or one that is damaged, not finite, of other layers or
            of another model.
    """
    if timestep == pipe.timestep:
        return
    file = adapter_file(folder, timestep)
    if not file.is_file():
        there = [pipe.timestep, *sorted(int(f.stem) for f in file.parent.glob("*.safetensors") if f.stem.isdigit())]
        raise ValueError(f"{folder} has no adapter for t = {timestep}; it has t = {', '.join(map(str, there))}.")
    tensors = read_checkpoint(file)
    mark = tensors.pop(BASE, None)
    if mark is None or mark.dtype != torch.uint8 or bytes(mark.flatten()).hex() != fingerprint(pipe):
        raise ValueError(f"{file} belongs to other weights than those in {folder}; train it anew.")
    merge(pipe.unet, _lora(tensors, file))
    pipe.timestep = timestep


def _lora(tensors: dict[str, Tensor], file: Path) -> LoRA:
    end = f".lora_A.{ADAPTER}.weight"
    downs = {name.removesuffix(end): tensor for name, tensor in tensors.items() if name.endswith(end)}
    if not downs:
        raise ValueError(f"{file} is not an adapter: there is no {end[1:]} in it.")
    found = LoRA(len(next(iter(downs.values()))), {ADAPTER: tuple(sorted(downs))}, tensors)
    require_complete(found, str(file), {name for name in tensors if ".base_layer." in name})
    return found
