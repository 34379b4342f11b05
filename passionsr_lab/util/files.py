"""Atomic writing: a file is either the old one or the new one, never half of it."""

from __future__ import annotations

import json
import math
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator

import torch
from safetensors.torch import save_file
from torch import Tensor

from .hashing import tensors_digest

DIGEST = "digest"  # in the metadata of our safetensors: by it a file shows that it is as it was written


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place when the block ends well, and vanishes when it does not.

    Raises `OSError` with the path in it when the disk is full or read-only; what stood there before stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        raise OSError(
            error.errno, f"{path} could not be written ({error.strerror}); what was there is unchanged"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: str | Path) -> dict:
    """The object in a JSON file that says one thing and says it in finite numbers; `ValueError` names the file.

    A key that is there twice, NaN, infinity and 1e400 are refused.
    """
    try:
        content = json.loads(
            Path(path).read_text(), object_pairs_hook=_unique, parse_constant=_finite, parse_float=_finite
        )
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}.") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a JSON object.")
    return content


def _unique(items: list[tuple]) -> dict:
    content = dict(items)
    if len(content) < len(items):
        names = [key for key, _ in items]
        raise ValueError(f"{next(key for key in content if names.count(key) > 1)!r} is there twice")
    return content


def _finite(text: str) -> float:
    if not math.isfinite(float(text)):
        raise ValueError(f"{text} is no finite number")
    return float(text)


def write_json(path: str | Path, content: dict) -> None:
    """Writes `content` as indented JSON with a final newline."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def write_tensors(path: str | Path, tensors: dict[str, Tensor]) -> None:
    """Writes tensors as safetensors, with their digest, which `checkpoint.require_intact` compares.

    It is the only entry of the metadata: safetensors writes several in any order, and equal tensors are equal files.
    """
    plain = {name: t.detach().cpu().contiguous() for name, t in sorted(tensors.items())}
    with replacing(path) as temporary:
        save_file(plain, temporary, {DIGEST: tensors_digest(plain.items())})


def write_checkpoint(path: str | Path, state: dict) -> None:
    """Writes a state of tensors, numbers, strings, lists and dicts that `torch.load(weights_only=True)` can read."""
    with replacing(path) as temporary:
        torch.save(state, temporary)
