"""Results under the key of everything that decides them: made once, believed only when they are whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from ..util.files import write_json
from .keys import key_of, root


def kept(content: dict, make: Callable[[], list | dict], store: str | Path | None = None) -> list | dict:
    """`make()`, or what it gave when it was asked with the same `content` before; plain values for JSON.

    Two processes that ask for the same make it once: the second waits.  A file that was cut, changed or belongs to
    another question is made anew.

    Args:
        content: plain values that decide the result; versions and threads are added.
        store: the folder; by default `keys.root()`.
    """
    from filelock import FileLock

    key = key_of(content)
    path = Path(store or root()) / "results" / f"{key}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        found = _read(path, key)
        if found is None:
            found = json.loads(json.dumps(make(), default=_plain))
            write_json(path, {"key": key, "digest": _digest(found), "asked": _told(content), "result": found})
    return found


def _read(path: Path, key: str) -> list | dict | None:
    try:
        content = json.loads(path.read_text())
        return content["result"] if content["key"] == key and content["digest"] == _digest(content["result"]) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _digest(result: list | dict) -> str:
    return hashlib.sha256(json.dumps(result, sort_keys=True).encode()).hexdigest()


def _told(content: dict) -> dict:
    return json.loads(json.dumps(content, default=str))


def _plain(value):
    return value.item()  # of numpy and torch scalars
