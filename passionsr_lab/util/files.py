"""Atomic writing: a file is either the old one or the new one, never half of it."""

from __future__ import annotations

import errno
import fcntl
import io
import json
import math
import os
import re
import shutil
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Iterator

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from .hashing import tensors_digest

DIGEST = "digest"  # in the metadata of our safetensors: by it a file shows that it is as it was written


SPECIAL = ("/dev", "/dev/fd", "/proc/self/fd")  # folders whose entries stand for devices and streams


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place when the block ends well, and vanishes when it does not.

    What a killed process left of the same kind, hidden files `.NAME-XXXXXXXX.SUFFIX`, is removed first.

    Raises `OSError` with the path in it when the disk is full or read-only; what stood there before stays; and
    `ValueError` as `require_plain` does.
    """
    path = Path(path)
    require_plain(path)
    handle = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        handle, temporary = _locked_temporary(path)
        try:
            yield temporary
            temporary.chmod(0o644)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:  # the second is what safetensors makes of the first
        raise _told(path, error) from error
    finally:
        if handle is not None:
            os.close(handle)


def require_plain(path: Path) -> None:
    """`ValueError` where a file cannot take the place of what is there: a folder, a device, a pipe, or a link to one.

    Entries of /dev are refused whatever they are: /dev/stdout is a link, even to a plain file.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a file to write.")
    if (path.exists() and not path.is_file()) or os.path.dirname(os.path.abspath(path)) in SPECIAL:
        raise ValueError(f"{path} is no plain file and is left as it is; name a file to write.")


def _told(path: Path, error: Exception) -> OSError:
    """The error with the path in it, and with the space that is left where that is the matter."""
    reason = getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]
    number = getattr(error, "errno", None)
    if number in (errno.ENOSPC, errno.EDQUOT) or "No space left" in reason:
        number = errno.ENOSPC
        with suppress(OSError):
            reason += f", {shutil.disk_usage(path.parent).free / 1e6:.1f} MB are free"
    return OSError(number, f"{path} could not be written ({reason}); what was there is unchanged")


def _locked_temporary(path: Path) -> tuple[int, Path]:
    """An open handle, whose lock tells others that the file is in use, and the file; a retry if one took it away."""
    while True:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=_hidden(path), suffix=path.suffix)
        with suppress(OSError):  # some network file systems have no locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.path.exists(name):
            return handle, Path(name)
        os.close(handle)


def _hidden(path: Path) -> str:
    """What the names of temporary files for a path begin with, short enough for every file system."""
    return f".{os.fsdecode(os.fsencode(path.stem)[: 240 - len(os.fsencode(path.suffix))])}-"


def _remove_leftovers(path: Path) -> None:
    """Removes temporary files for this path whose lock nobody holds any more."""
    pattern = re.compile(rf"{re.escape(_hidden(path))}[a-z0-9_]{{8}}{re.escape(path.suffix)}")
    for name in filter(pattern.fullmatch, os.listdir(path.parent)):
        with suppress(OSError), (path.parent / name).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(file.name)


@contextmanager
def claimed(folder: str | Path) -> Iterator[Path]:
    """The folder, made if need be, for this process alone within the block; what was made and is empty goes again.

    Raises:
        ValueError: another run writes there.
    """
    folder = Path(folder)
    made = [p for p in (folder, *folder.parents) if not p.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems have no locks
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(
                    f"Another run writes to {folder}; wait for its end or choose another folder."
                ) from None
        yield folder
    finally:
        with suppress(OSError):
            for path in made:
                path.rmdir()
        os.close(handle)


def read_json(path: str | Path) -> dict:
    """The object in a JSON file that says one thing and says it in finite numbers; `ValueError` names the file.

    A key that is there twice, NaN, infinity and 1e400 are refused.
    """
    try:
        if Path(path).exists() and not Path(path).is_file():
            raise OSError("it is no plain file")
        text = Path(path).read_text()
        if not text.strip():
            raise ValueError("it is empty")
        content = json.loads(text, object_pairs_hook=_unique, parse_constant=_finite, parse_float=_finite)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing.") from None
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
    content = io.BytesIO()  # of a full disk torch tells without path or reason
    torch.save(state, content)
    with replacing(path) as temporary:
        temporary.write_bytes(content.getbuffer())
