"""Any full-precision model by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..pipeline import folder
from ..pipeline.onestep import OneStepSR
from . import osediff, weights


def load(name: str | Path, prompt: bool | str | Path | Callable = False) -> OneStepSR:
    """The full-precision model of this name; see `osediff.load` and `pipeline.folder.load`."""
    if weights.full_size(name):
        return osediff.load(name, prompt)
    if not isinstance(prompt, bool):
        raise ValueError(f"{name} has a tagger of its own: prompt is True or False, not {prompt!r}.")
    return folder.load(name, prompt)
