"""Test sets of aligned pairs, in the folders that people have them in.

A data set is read from any of its known layouts: that of its authors, of StableSR's test sets (which OSEDiff uses),
of PassionSR's configuration, or plainly `lr/` and `hr/` with the same names.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Iterator, Sequence

from .matching import matching_files
from .pairs import Pair, bundled, crop_pair, read_pair, require_count, require_crop, require_upscaled_files
from .pictures import UPSCALE


@dataclass(frozen=True)
class Layout:
    """A folder convention.

    lr, hr: folders below the data set's own; an LR folder and the HR folder at the same place hold pairs.
    lr_tail, hr_tail: what ends the names of the two files of a pair, before the suffix; the rest is the same.
    """

    lr: tuple[str, ...]
    hr: tuple[str, ...]
    lr_tail: str = ""
    hr_tail: str = ""

    def __str__(self) -> str:
        sides = ((self.lr, self.lr_tail), (self.hr, self.hr_tail))
        return " with ".join(" and ".join(f"{folder}/*{tail}.png" for folder in folders) for folders, tail in sides)


def _layout(lr: str, hr: str, lr_tail: str = "", hr_tail: str = "") -> Layout:
    return Layout((lr,), (hr,), lr_tail, hr_tail)


_PLAIN, _STABLESR = _layout("lr", "hr"), _layout("test_LR", "test_HR")
_CAMERAS = ("Canon/Test/4", "Nikon/Test/4")
LAYOUTS: dict[str, tuple[Layout, ...]] = {
    "RealSR": (
        _PLAIN, _STABLESR, _layout("RealSRVal_crop128/test_LR", "RealSRVal_crop128/test_HR"),
        _layout("test/LR/X4", "test/HR"),  # PassionSR
        Layout(_CAMERAS, _CAMERAS, "_LR4", "_HR"),  # the authors' version 3
    ),
    "DRealSR": (
        _PLAIN, _STABLESR, _layout("DrealSRVal_crop128/test_LR", "DrealSRVal_crop128/test_HR"),
        _layout("Test_x4/test_LR", "Test_x4/test_HR", "_x1", "_x4"),  # the authors'
        _layout("Test_x4/test_LR", "Test_x4/test_HR"), _layout("test_LR", "test_HR", "_x1", "_x4"),
    ),
    "DIV2K_val": (
        _PLAIN, _STABLESR, _layout("lq", "gt"), _layout("DIV2K_V2_val/test_LR", "DIV2K_V2_val/test_HR"),
        _layout("DIV2K_V2_val/lq", "DIV2K_V2_val/gt"),
        _layout("DIV2K_valid_LR_bicubic/X4", "DIV2K_valid_HR", "x4"),  # the authors'
    ),
}  # fmt: skip


class PairFolder:
    """The pairs of a data set, in the order of their names; each is read when it is asked for.

    Args:
        name: of `LAYOUTS`, or any other name for a folder with `lr/` and `hr/`.
        folder: the data set's own folder.
        count: only the first so many pairs.
        size: HR pixels of a square centre crop; None takes the images whole.

    Raises:
        ValueError: the folder has none of the layouts (the message lists them), files without a counterpart or with a
            twin, originals that are not ×4 or smaller than the crop.

    Example:
        >>> print(LAYOUTS["RealSR"][-1])
        Canon/Test/4/*_LR4.png and Nikon/Test/4/*_LR4.png with Canon/Test/4/*_HR.png and Nikon/Test/4/*_HR.png
    """

    def __init__(self, name: str, folder: str | Path, count: int | None = None, size: int | None = None):
        require_count(count)
        require_crop(UPSCALE if size is None else size)
        self.name, self.folder, self.size = name, Path(folder), size
        self.files = _find(name, self.folder)[:count]
        require_upscaled_files(self.files, size or 0)

    def __len__(self) -> int:
        return len(self.files)

    def __iter__(self) -> Iterator[Pair]:
        for files in self.files:
            yield _centred(read_pair(*files), self.size)

    def digest(self) -> str:
        """A hash of the names and contents of the files and of the crop."""
        total = hashlib.sha256(f"{self.size}".encode())
        for name, *files in self.files:
            total.update(name.encode())
            for file in files:
                total.update(hashlib.sha256(file.read_bytes()).digest())
        return total.hexdigest()[:16]


class PairList:
    """Pairs in memory, with what `PairFolder` has besides."""

    def __init__(self, name: str, pairs: Sequence[Pair]):
        self.name, self.pairs = name, list(pairs)

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[Pair]:
        return iter(self.pairs)

    def digest(self) -> str:
        """A hash of the names and contents."""
        total = hashlib.sha256()
        for pair in self.pairs:
            for content in (pair.name, *pair.lr.shape, pair.lr.numpy().tobytes(), pair.hr.numpy().tobytes()):
                total.update(content if isinstance(content, bytes) else f"{content} ".encode())
        return total.hexdigest()[:16]


def read_set(what: str, count: int | None = None, size: int | None = None) -> PairFolder | PairList:
    """The pairs to measure on: "bundled", a data set's name (see `located`) or NAME=FOLDER.

    Args:
        what: which; tables and files are named after it.
        count: only so many pairs; of the bundled photographs, 8 crops by default.
        size: HR pixels of a square centre crop (of the bundled photographs, of random crops, 256 by default).

    Example:
        >>> len(read_set("bundled", 2, 64))
        2
    """
    if what == "bundled":
        return PairList("bundled", bundled("test", 8 if count is None else count, 256 if size is None else size))
    name, _, folder = what.partition("=")
    if not name or name.startswith(".") or set(name) & set("/\\\0"):
        raise ValueError(f"A data set has a plain name, which files can carry: not {name!r}.")
    return PairFolder(name, folder or located(name), count, size)


def located(name: str, root: str | Path | None = None) -> Path:
    """The folder of a data set below `root` (or $PASSIONSR_DATA), whatever the case of its name.

    Raises `ValueError` that says where it was looked for.
    """
    root = root or os.environ.get("PASSIONSR_DATA")
    if not root:
        raise ValueError(
            f"It was not said where {name} is: give {name}=FOLDER, or set PASSIONSR_DATA to the folder above."
        )
    folders = [p for p in sorted(Path(root).glob("*")) if p.is_dir() and p.name.lower() == name.lower()]
    if len(folders) != 1:
        found = f"{' and '.join(p.name for p in folders)}; keep one" if folders else "none"
        raise ValueError(f"There is to be one folder {name} in {root}, but there is {found}.")
    return folders[0]


def _find(name: str, folder: Path) -> list[tuple[str, Path, Path]]:
    """(name, LR file, HR file) of every pair, by the first layout that is there and complete."""
    layouts = LAYOUTS.get(name, (_PLAIN,))
    there = [x for x in layouts if all((folder / side).is_dir() for side in (*x.lr, *x.hr))]
    if not there:
        raise ValueError(f"There is no {name} in {folder}: it is read from {', or '.join(map(str, layouts))}.")
    problems = []
    for layout in there:
        try:
            return _paired(layout, folder)
        except ValueError as error:
            problems.append(error)
    raise problems[0]


def _paired(layout: Layout, folder: Path) -> list[tuple[str, Path, Path]]:
    sides = [(folder / low, folder / high) for low, high in zip(layout.lr, layout.hr)]
    try:
        files = sorted(f for side in sides for f in matching_files(*side, layout.lr_tail, layout.hr_tail))
        for (name, first, _), (other, second, _) in pairwise(files):
            if name == other:
                raise ValueError(f"{first} and {second} have the same name; rename one.")
        return files
    except ValueError as error:
        raise ValueError(f"{error} Expected: {layout}.") from None


def _centred(pair: Pair, size: int | None) -> Pair:
    if size is None:
        return pair
    h, w = pair.hr.shape[1:]
    n = size // UPSCALE
    y, x = ((s // UPSCALE - n) // 2 for s in (h, w))
    return crop_pair(pair, y, x, n, n)
