"""SHA-256 of files, computed once per process."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file; a file whose size or time changes is read again.  About a second per gigabyte."""
    path = Path(path).resolve()
    stat = path.stat()
    return _sha256(path, stat.st_size, stat.st_mtime_ns)


@functools.cache
def _sha256(path: Path, size: int, time: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
