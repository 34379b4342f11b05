"""What `convert` does: released files to a folder of this library, and such a folder to released files."""

from __future__ import annotations

from pathlib import Path
from typing import Sequence

from ..fullsize.sd21 import sd21
from ..official import released as official
from .folder import load, load_quantized, save

ARCHITECTURE = "sd21"


def import_files(
    files: Sequence[Path], model: str, out: Path, bits: str | None = None, numerics: str = "official"
) -> dict:
    """Released files into a folder that `load` reads; what was consumed, file by file.

    With the model "sd21" no weights are needed: the folder then fits any model of that architecture whose norms are
    the files'.  Otherwise the norms are compared with the model's here.
    """
    quantized = official.load_released(sd21() if model == ARCHITECTURE else load(model), files, bits, numerics)
    if model == ARCHITECTURE:
        quantized.pipe.name = "osediff"  # whose weights, merged into SD2.1's, released files belong to
    save(quantized, out)
    rows = quantized.history["released"]
    return {
        "model": model, "label": quantized.label, "recipe": quantized.recipe.name, "numerics": numerics,
        "tensors": sum(row["tensors"] for row in rows), "unmatched": 0, "files": rows,
        "corrections": quantized.history.get("corrections", {}), "out": str(out),
    }  # fmt: skip


def export_folder(folders: Sequence[Path], model: str, out: Path) -> dict:
    """A folder that `calibrate` or `convert` wrote into released files; names, sizes, and what the format loses."""
    if len(folders) != 1 or not folders[0].is_dir():
        raise ValueError("Give the one folder that `calibrate` or `convert` wrote.")
    if model == ARCHITECTURE:
        raise ValueError(
            "Released files hold the model's norms; give the folder of a model with its weights as --model."
        )
    quantized = load_quantized(folders[0], load(model))
    told = official.save_released(quantized, out)
    return {"model": quantized.name, "recipe": quantized.recipe.name, "out": str(out), **told}
