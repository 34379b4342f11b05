"""Opens weight files that others wrote, and never runs code that is in them."""

from __future__ import annotations

import pickle
import re
import warnings
from pathlib import Path
from typing import Iterable, Mapping
from zipfile import BadZipFile, ZipFile, is_zipfile

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from .files import DIGEST
from .hashing import tensors_digest


class _Inert:
    """Stands for the trainer's bookkeeping class in old checkpoints: its name is read, its code is not."""


def read_checkpoint(path: str | Path) -> dict:
    """The content of a .safetensors, .ckpt, .pt, .pth or .pkl file, on the CPU; no code in it is ever run.

    Raises:
        ValueError: there is no such file, it holds code, or it is no checkpoint; the message says which.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"There is no file {path}.")
    _refuse_text(path)
    try:
        require_intact(path)
        return load_file(path) if path.suffix == ".safetensors" else _unpickle(path)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f"it holds code ({found[1]}), not only weights" if found else "it is no checkpoint of plain weights"
        raise ValueError(f"{path} was refused, and nothing in it was run: {what}.") from None
    except (SafetensorError, BadZipFile, RuntimeError, EOFError, LookupError, ValueError, OSError) as error:
        reason = (str(error).splitlines() or ["it ends too early"])[0].partition(". ")[0]
        raise ValueError(f"{path} is damaged or no checkpoint ({reason}).") from None


def require_intact(path: Path) -> None:
    """`ValueError` for a file whose content is not what its own checksums say; one without any is believed.

    torch's files have them, safetensors only where this library wrote them (`files.write_tensors`).
    """
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            kept = (file.metadata() or {}).get(DIGEST)
            names = sorted(file.keys())
            whole = kept is None or kept == tensors_digest((name, file.get_tensor(name)) for name in names)
    else:
        whole = not is_zipfile(path) or ZipFile(path).testzip() is None
    if not whole:
        raise ValueError("its values are not those that were written; copy it again")


def _unpickle(path: Path) -> dict:
    lightning = [(_Inert, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint")]
    with torch.serialization.safe_globals(lightning), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of pickle protocols
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path))


def _refuse_text(path: Path) -> None:
    """Two things that downloads leave in the place of a checkpoint."""
    with path.open("rb") as file:
        start = file.read(64).lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path} is a pointer of Git LFS, not the file; fetch it with: git lfs pull")
    if start.startswith((b"<!doctype", b"<html")):
        raise ValueError(f"{path} is a web page, not a checkpoint; download the file itself.")


def inspect(files: Iterable[Path]) -> None:
    """`ValueError` if a weight file is visibly not whole; reads its table of contents, not its tensors."""
    for file in files:
        _refuse_text(file)
        try:
            if file.suffix == ".safetensors":
                with safe_open(file, "pt"):
                    pass
            elif not is_zipfile(file):
                raise OSError("it ends too early or is not torch's")
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file} is damaged or no checkpoint ({error}).") from None


def read_state(path: str | Path) -> dict:
    """The state of a model in a checkpoint, also where a trainer has wrapped it; errors as for `read_checkpoint`."""
    content = read_checkpoint(path)
    state = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds a {type(state).__name__}, not tensors by name.")
    return state


def fill(network: nn.Module, tensors: Mapping[str, Tensor], what: str) -> nn.Module:
    """Gives a network that is on the meta device its tensors: all of them and no other, as copies in float32.

    Axes of length 1 at the end of a tensor are dropped, so that 1x1 convolutions become linear layers.

    Raises:
        ValueError: a tensor is missing, left over, of another shape or kind, or not finite; the message names it.
    """
    own = network.state_dict()
    if missing := own.keys() - tensors.keys():
        raise ValueError(f"{what} has no {min(missing)}; {len(missing)} of its {len(own)} tensors are missing.")
    if left := tensors.keys() - own.keys():
        raise ValueError(f"{what} has {min(left)}, which does not belong to the model ({len(left)} are left over).")
    for name, tensor in tensors.items():
        shape = own[name].shape
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            raise ValueError(f"{what}: {name} is not a tensor of floating-point numbers.")
        if tensor.shape[: len(shape)] != shape or tensor.numel() != shape.numel():
            raise ValueError(f"{what}: {name} is {tuple(tensor.shape)}, but the model's is {tuple(shape)}.")
        if not tensor.isfinite().all():
            raise ValueError(f"{what}: {name} has values that are not finite; the file is damaged.")
    copies = {name: t.to(torch.float32, copy=True).reshape(own[name].shape) for name, t in tensors.items()}
    network.load_state_dict(copies, assign=True)
    return network.eval().requires_grad_(False)
