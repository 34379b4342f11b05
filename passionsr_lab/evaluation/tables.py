"""Tables for paper and spreadsheet: the best number bold, the second underlined, their source in the caption."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..util.files import replacing

if TYPE_CHECKING:
    from pandas import DataFrame, Series

PACKAGES = ("torch", "diffusers", "numpy")
SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"} | {
    c: "\\" + c for c in "&%$#_{}"
}
TEXT = ("name", "dataset", "model", "method", "recipe", "layer", "protocol", "note")  # columns of any text at all
ARROWS = {"max": r" $\uparrow$", "min": r" $\downarrow$"}


def provenance(model: str, seed: int | str, recipe: str) -> dict[str, str]:
    """Where numbers come from: model, seed, recipe and the versions of Python and the packages that decide them.

    Example:
        >>> list(provenance("tiny", 0, "W6A6"))[:4]
        ['model', 'seed', 'recipe', 'passionsr_lab']
    """
    from .. import __version__

    numbers = {"model": str(model), "seed": str(seed), "recipe": str(recipe)}
    versions = {name: metadata.version(name) for name in PACKAGES}
    return numbers | {"passionsr_lab": __version__, "python": platform.python_version()} | versions


def _sentence(source: Mapping[str, str]) -> str:
    return " ".join(", ".join(f"{name} {value}" for name, value in source.items()).splitlines())


def to_csv(
    frame: DataFrame, name: str, folder: str | Path = "figures", source: Mapping[str, str] | None = None
) -> Path:
    """Writes `folder/name.csv`, atomically and with full precision; its path.

    Args:
        frame: any DataFrame; its index is left out.
        name: without a suffix.
        source: what `provenance` returns; becomes a first line that starts with "#" (pandas: `skiprows=1`).

    Raises:
        OSError: the file cannot be written; what was there stays.

    Example:
        >>> import pandas as pd, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     to_csv(pd.DataFrame({"bits": [8], "psnr": [31.25]}), "table", folder).read_text()
        'bits,psnr\\n8,31.25\\n'
    """
    return write_csv(frame, Path(folder) / f"{name}.csv", source)


def write_csv(frame: DataFrame, path: str | Path, source: Mapping[str, str] | None = None) -> Path:
    """`to_csv` into exactly this file, whatever its suffix."""
    head = f"# {_sentence(source)}\n" if source else ""
    return _write(Path(path), head + frame.to_csv(index=False, lineterminator="\n"))


def read_table(path: str | Path) -> DataFrame:
    """The frame that `to_csv` or `write_csv` wrote, to the last bit; names stay names, "NA", "007" and "x#y" too."""
    import pandas as pd

    with open(path, "rb") as file:
        head = file.readline().startswith(b"# ")
    options = {"float_precision": "round_trip", "encoding_errors": "surrogateescape", "dtype": dict.fromkeys(TEXT, str)}
    frame = pd.read_csv(path, skiprows=int(head), keep_default_na=False, na_values=[""], **options)
    return frame.fillna(dict.fromkeys(frame.columns.intersection(TEXT), ""))


def to_latex(
    frame: DataFrame,
    name: str,
    best: Mapping[str, str] | None = None,
    caption: str = "",
    folder: str | Path = "figures",
    source: Mapping[str, str] | None = None,
    within: str | None = None,
    spread: Mapping[str, str] | None = None,
    digits: int | Mapping[str, int] = 2,
    headers: Mapping[str, str] | None = None,
) -> Path:
    """Writes `folder/name.tex`, a table for booktabs, atomically; its path.  Its label is `tab:name`.

    Args:
        frame: any DataFrame; its index is left out, missing numbers become a dash.
        name: without a suffix.
        best: column -> "max" or "min": the best number is bold and the second underlined, and an arrow says which way
            is better.  Numbers that print the same are tied; a tie for the best leaves the next number as the second.
        caption: plain text; what `source` (see `provenance`) holds follows it.
        within: rank inside groups of rows that share this column (e.g. "recipe"), with a rule between the groups.
        spread: column -> column of its deviations, printed as mean ± deviation in one cell.
        digits: after the point, for all columns or per column.
        headers: column -> LaTeX to print in its place.

    Raises:
        ValueError: `best`, `within` or `spread` name a column that is not there, a column of `best` holds no numbers,
            or a direction is unknown.
        OSError: the file cannot be written; what was there stays.

    Example:
        >>> import pandas as pd, tempfile
        >>> frame = pd.DataFrame({"method": ["MaxMin", "LBQ"], "psnr": [24.5, 31.25]})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     print(to_latex(frame, "table", {"psnr": "max"}, "Ablation.", folder).read_text())
        \\begin{table}
        \\centering
        \\caption{Ablation.}
        \\label{tab:table}
        \\begin{tabular}{lr}
        \\toprule
        method & psnr $\\uparrow$ \\\\
        \\midrule
        MaxMin & \\underline{24.50} \\\\
        LBQ & \\textbf{31.25} \\\\
        \\bottomrule
        \\end{tabular}
        \\end{table}
        <BLANKLINE>
    """
    best, spread, headers = dict(best or {}), dict(spread or {}), dict(headers or {})
    _check(frame, best, within, spread)
    columns = [c for c in frame.columns if c not in spread.values()]
    groups = (
        [frame]
        if within is None
        else [rows for _, rows in frame.groupby(within, sort=False, dropna=False, observed=True)]
    )
    blocks = [_rows(group, columns, best, spread, digits) for group in groups]
    heads = [headers.get(c, escape(str(c).replace("_", " "))) + ARROWS.get(best.get(c), "") for c in columns]
    align = "".join("r" if frame[c].dtype.kind in "if" else "l" for c in columns)
    origin = _sentence(source or {})
    caption = " ".join(filter(None, [escape(caption), escape(origin[:1].upper() + origin[1:] + "." * bool(origin))]))
    lines = [
        *(r"\begin{table}", r"\centering", rf"\caption{{{caption}}}", rf"\label{{tab:{name}}}"),
        *(rf"\begin{{tabular}}{{{align}}}", r"\toprule", " & ".join(heads) + r" \\", r"\midrule"),
        "\n\\midrule\n".join("\n".join(block) for block in blocks),
        *(r"\bottomrule", r"\end{tabular}", r"\end{table}", ""),
    ]
    return _write(Path(folder) / f"{name}.tex", "\n".join(lines))


def escape(text: str) -> str:
    """Plain text as LaTeX.

    Example:
        >>> escape("50 % of psnr_fp")
        '50 \\\\% of psnr\\\\_fp'
    """
    return "".join(SPECIAL.get(c, c) for c in text)


def plain(frame: DataFrame) -> list[dict]:
    """The rows as dicts that strict JSON can write: NaN becomes None, numpy's numbers become Python's.

    Example:
        >>> import pandas as pd
        >>> plain(pd.DataFrame({"n": [1, 2], "mean": [0.5, float("nan")]}))
        [{'n': 1, 'mean': 0.5}, {'n': 2, 'mean': None}]
    """
    rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
    return [{key: getattr(value, "item", lambda v=value: v)() for key, value in row.items()} for row in rows]


def _check(frame: DataFrame, best: Mapping, within: str | None, spread: Mapping) -> None:
    named = [*best, *spread, *spread.values(), *([within] if within else [])]
    missing = [c for c in named if c not in frame.columns]
    if missing:
        raise ValueError(f"The table has no column {missing[0]!r}; it has {', '.join(map(str, frame.columns))}.")
    words = [c for c in best if frame[c].dtype.kind not in "iuf"]
    if words:
        raise ValueError(f"The column {words[0]!r} holds no numbers, so none of them is best.")
    wrong = [d for d in best.values() if d not in ARROWS]
    if wrong:
        raise ValueError(f"A column is best at its 'max' or 'min', not {wrong[0]!r}.")


def _rows(group: DataFrame, columns: list, best: Mapping, spread: Mapping, digits) -> list[str]:
    cells = []
    for column in columns:
        places = digits.get(column, 2) if isinstance(digits, Mapping) else digits
        texts = [_cell(v, places) for v in group[column]]
        if column in spread:
            texts = [
                t if np.isnan(d) else rf"{t} $\pm$ {_cell(d, places)}" for t, d in zip(texts, group[spread[column]])
            ]
        if column in best:
            texts = [mark.format(t) for mark, t in zip(_marks(group[column], best[column], places), texts)]
        cells.append(texts)
    return [" & ".join(row) + r" \\" for row in zip(*cells)]


def _cell(value, places: int) -> str:
    if isinstance(value, (float, np.floating)):
        return "--" if np.isnan(value) else f"{round(value, places) + 0.0:.{places}f}"
    return "--" if value is None else escape(str(value))


def _marks(values: Series, direction: str, places: int) -> list[str]:
    """A format string per value: bold for the best, underlined for the second, of the values as printed."""
    printed = values.astype(float).round(places) + 0.0  # + 0.0 turns -0.0 into 0.0
    order = sorted(printed.dropna().unique(), reverse=direction == "max")
    formats = dict(zip(order, (r"\textbf{{{}}}", r"\underline{{{}}}")))
    return [formats.get(v, "{}") for v in printed]


def _write(path: Path, text: str) -> Path:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")  # file names may be any bytes
    return path
