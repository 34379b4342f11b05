"""Saving a figure so that a second run writes the same bytes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..util.files import replacing

METADATA = {
    "pdf": {"Creator": "passionsr_lab", "Producer": "matplotlib", "CreationDate": None},
    "png": {"Software": "passionsr_lab"},
    "svg": {"Creator": "passionsr_lab", "Date": None},
}


def save(fig, name: str, folder: str | Path = "figures", formats: Sequence[str] = ("pdf", "png")) -> list[Path]:
    """Writes `folder/name.pdf` and `.png`, each atomically; the paths.

    The same figure gives the same bytes on every run: no dates, fixed metadata, embedded TrueType fonts.  Its size is
    its size on paper, nothing is cropped.  The folder is made when missing.  Raises `ValueError` for a format that is
    none of "pdf", "png", "svg", and `OSError` when a file cannot be written; what was there stays.
    """
    unknown = [f for f in formats if f not in METADATA]
    if unknown:
        raise ValueError(f"formats are some of {', '.join(METADATA)}, not {unknown[0]!r}.")
    from .canvas import paper

    paths = [Path(folder) / f"{name}.{suffix}" for suffix in formats]
    for path, suffix in zip(paths, formats):
        with replacing(path) as temporary, paper():
            fig.savefig(temporary, format=suffix, metadata=METADATA[suffix])
    return paths
