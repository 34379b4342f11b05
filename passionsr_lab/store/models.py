"""Calibrated models, each made once and taken from the store from then on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from ..calibration.checkpoint import resume
from ..calibration.loop import Calibration
from ..calibration.method import Method
from ..imaging.pairs import Pair, bundled, checked_pairs
from ..methods import DEFAULT, find
from ..pipeline.identity import fingerprint
from ..pipeline.onestep import OneStepSR
from ..quantization.place import QuantizedSR, quantize
from ..quantization.recipe import Recipe
from ..quantization.recipe import recipe as recipe_named
from ..util.files import write_json
from .folder import DESCRIPTION, load_quantized, save
from .keys import calibration_key, key_of, root

UNFINISHED, RECORDS = "unfinished.pt", "records.json"


def calibrated(
    pipe: OneStepSR,
    recipe: Recipe | str,
    method: Method | str = DEFAULT,
    pairs: Sequence[Pair | tuple] | None = None,
    epochs: int = 4,
    batch: int = 4,
    seed: int = 0,
    rates: dict[str, float] | None = None,
    lean: bool = False,
    store: str | Path | None = None,
    callback: Callable[[dict], None] | None = None,
) -> QuantizedSR:
    """A calibrated pipeline from the store, or made and kept there; the same question always has the same answer.

    Killed at any moment, it goes on where it was.  Two processes may fill one store; the second waits for the first.

    Args:
        pipe: a full-precision pipeline, which stays as it is.
        pairs: to calibrate on; by default 16 bundled crops of 64 pixels, drawn with `seed`.
        epochs, batch, seed, rates, lean: as for `Calibration`.
        store: a folder; by default `$PASSIONSR_STORE`, else `~/.cache/passionsr_lab/store`.
        callback: called with every record of the calibration as it comes, or at once with those that were kept.

    Returns:
        the pipeline; its `history` says how it was made and what that cost, `records(q)` gives the run's records.

    Example:
        >>> import tempfile, passionsr_lab as lab
        >>> pairs = lab.bundled("calibration", 2, 64)
        >>> with tempfile.TemporaryDirectory() as store:
        ...     first, again = (lab.calibrated(lab.tiny(), "W6A6", "let", pairs, store=store) for _ in range(2))
        >>> import torch
        >>> torch.equal(first(pairs[0].lr), again(pairs[0].lr))
        True
    """
    from filelock import FileLock

    recipe = recipe if isinstance(recipe, Recipe) else recipe_named(recipe)
    method = find(method)
    pairs = bundled("calibration", 16, 64, seed) if pairs is None else checked_pairs(pairs, pipe.upscale)
    content = calibration_key(fingerprint(pipe.prune()), recipe, method, pairs, epochs, batch, seed, rates)
    content |= {"device": pipe.prompt_embedding.device.type}
    folder = Path(store or root()) / "models" / key_of(content)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        found = _kept(folder, pipe, method)
        if found is None:
            q = quantize(pipe, recipe)
            work = Calibration(q, pairs, method, epochs, batch, seed, rates, lean)
            _go_on(work, folder / UNFINISHED)
            for record in work.run(keep=folder / UNFINISHED):
                if callback is not None:
                    callback(record)
            write_json(folder / RECORDS, {"records": work.records})
            save(q, folder)
            (folder / UNFINISHED).unlink(missing_ok=True)
            found = load_quantized(folder, pipe, method)
        elif callback is not None:
            for record in _records(folder):
                callback(record)
    found.history["folder"] = str(folder)
    return found


def records(q: QuantizedSR):
    """The records of the calibration behind a pipeline of `calibrated`, as the DataFrame that `calibrate` returns."""
    import pandas as pd

    return pd.DataFrame(_records(Path(q.history["folder"])))


def _records(folder: Path) -> list[dict]:
    return json.loads((folder / RECORDS).read_text())["records"]


def _kept(folder: Path, pipe: OneStepSR, method: Method) -> QuantizedSR | None:
    """What the folder holds; what is damaged is taken away, to be made anew."""
    if not (folder / DESCRIPTION).is_file():
        return None
    try:
        _records(folder)
        return load_quantized(folder, pipe, method)
    except (ValueError, LookupError, TypeError, OSError):
        shutil.rmtree(folder)
        folder.mkdir()
        return None


def _go_on(work: Calibration, unfinished: Path) -> None:
    """From the state of an earlier run, if there is one; a damaged one is taken away."""
    try:
        if unfinished.exists():
            resume(work, unfinished)
    except ValueError:
        unfinished.unlink()
