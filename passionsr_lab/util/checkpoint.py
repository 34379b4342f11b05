"""Opens weight files that others wrote, and never runs code that is in them."""

from __future__ import annotations

import pickle
import re
import warnings
from pathlib import Path
from typing import Iterable
from zipfile import is_zipfile

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file


class _Inert:
    """Stands for the trainer's bookkeeping class in old checkpoints: its name is read, its code is not."""


def read(path: str | Path) -> dict:
    """The content of a .safetensors, .ckpt, .pt, .pth or .pkl file, on the CPU; no code in it is ever run.

    Raises:
        ValueError: there is no such file, it holds code, or it is no checkpoint; the message says which.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"There is no file {path}.")
    _refuse_text(path)
    try:
        return load_file(path) if path.suffix == ".safetensors" else _unpickle(path)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f"it holds code ({found[1]}), not only weights" if found else "it is no checkpoint of plain weights"
        raise ValueError(f"{path} was refused, and nothing in it was run: {what}.") from None
    except (SafetensorError, RuntimeError, EOFError, LookupError, ValueError, OSError) as error:
        reason = (str(error).splitlines() or ["it ends too early"])[0].partition(". ")[0]
        raise ValueError(f"{path} is damaged or no checkpoint ({reason}).") from None


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
