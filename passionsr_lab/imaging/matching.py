"""Which files of two folders belong together: those of exactly the same name."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from .pictures import image_files


def matching_files(
    left: str | Path, right: str | Path, left_tail: str = "", right_tail: str = ""
) -> list[tuple[str, Path, Path]]:
    """(stem, left file, right file) of the pictures of two folders with the same name, sorted.

    Args:
        left, right: folders; hidden files and what is no picture do not count (see `pictures.image_files`).
        left_tail, right_tail: what ends the stems on either side, not part of the name; files without it do not count.

    Raises:
        ValueError: a folder has no pictures, two files of one have the same stem, or a file has no counterpart.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("img_1_LR4.png", "img_1_HR.png"):
        ...         Path(folder, name).touch()
        ...     [name for name, low, high in matching_files(folder, folder, "_LR4", "_HR")]
        ['img_1']
    """
    a, b = _by_name(Path(left), left_tail), _by_name(Path(right), right_tail)
    for here, there, other in ((a, b, right), (b, a, left)):
        lone = sorted(here.keys() - there.keys())
        if lone:
            twins = [file.name for name, file in there.items() if Path(name).stem == Path(lone[0]).stem]
            hint = f"; it has {twins[0]}" if twins else ""
            raise ValueError(
                f"{left} and {right} must hold the same names: {other} has no counterpart of {here[lone[0]].name}"
                f" (and {len(lone) - 1} more){hint}."
            )
    return [(Path(name).stem, a[name], b[name]) for name in sorted(a)]


def require_distinct_stems(files: Iterable[Path]) -> None:
    """`ValueError` that names two files that differ in their suffix only: results go by the stem."""
    seen: dict[str, Path] = {}
    for file in files:
        twin = seen.setdefault(file.stem, file)
        if twin is not file:
            raise ValueError(f"{twin} and {file.name} have the same name but for the suffix; rename or remove one.")


def _by_name(folder: Path, tail: str) -> dict[str, Path]:
    """Pictures by their name without the tail."""
    files = [p for p in image_files(folder) if p.stem.endswith(tail)]
    if not files:
        raise ValueError(f"{folder} holds no pictures whose names end in {tail}.")
    require_distinct_stems(files)
    return {p.stem.removesuffix(tail) + p.suffix: p for p in files}
