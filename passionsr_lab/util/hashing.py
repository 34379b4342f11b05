"""SHA-256 of files, computed once per process, and of tensors."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file; a file whose size or time changes is read again.  About a second per gigabyte."""
    path = Path(path).resolve()
    stat = path.stat()
    return _sha256(path, stat.st_size, stat.st_mtime_ns)


@functools.cache
def _sha256(path: Path, size: int, time: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensors_digest(named: Iterable[tuple[str, Tensor]]) -> str:
    """A hash of names, types, shapes and values, in the order given; one tensor is looked at after the other."""
    digest = hashlib.sha256()
    for name, tensor in named:
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        plain = tensor.detach().cpu().flatten().clone(memory_format=torch.contiguous_format)  # expanded ones, too
        digest.update(plain.view(torch.uint8).numpy())
    return digest.hexdigest()
