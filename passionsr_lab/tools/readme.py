"""README's tables of results, made from `figures/*.csv`.

    python -m passionsr_lab.tools.readme

writes what `TABLES[NAME]` gives between `<!-- NAME -->` and `<!-- end -->`; a test says where README is behind.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..evaluation.sweep import differences
from ..evaluation.table2 import FULL
from ..methods import DEFAULT, METHODS
from ..util.files import replacing
from .notebooks import checkout, committed

if TYPE_CHECKING:
    from pandas import DataFrame, Series

WIDTHS = ("W8A8", "W6A6", "W4A4")
LOW = ("mixed 4", "W4A4", "W3A3", "mixed 2", "W2A2")
STEPS = (  # what is asked of the methods: the first over the second
    ("lbq", "maxmin"), ("let", "lbq"), ("lbq+let", "lbq"), ("passionsr", "lbq+let"), ("passionsr", "passionsr-strict"),
    ("passionsr+e2e", "passionsr"), ("passionsr", "efficientdm"), ("passionsr", "lsq"), ("passionsr", "lsq+"),
    ("passionsr", "q-diffusion"), ("passionsr", "svdquant"), ("lsq-published", "maxmin"),
    ("efficientdm-published", "efficientdm"), ("official", "let"),
)  # fmt: skip
LOW_STEPS = (  # and of those for few bits
    ("best-merged", "passionsr"), ("best", "best-merged"), ("best", "svdquant"), ("best", "qartsr"),
    ("best", "quantvsr"), ("qartsr", "quantvsr"),
)  # fmt: skip
BUDGETS = (64, 256, 512, 1024)
_TABLE = re.compile(r"(<!-- ([a-z0-9 ]+) -->\n).*?(\n<!-- end -->)", re.S)


def filled(text: str) -> str:
    """The text with every table made anew; `KeyError` for a name that is not in `TABLES`."""
    return _TABLE.sub(lambda m: m[1] + "\n" + "\n".join(TABLES[m[2]]()) + "\n" + m[3], text)


def _table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> list[str]:
    head = list(head)
    lines = [map(str, head), ["---"] * len(head), *([str(cell) for cell in row] for row in rows)]
    return [f"| {' | '.join(line)} |" for line in lines]


def _runs(*names: str) -> DataFrame:
    import pandas as pd

    return pd.concat([_committed(f"{name}_runs") for name in names], ignore_index=True)


def _committed(name: str) -> DataFrame:
    if (table := committed(name)) is None:
        raise FileNotFoundError(f"figures/{name}.csv")
    return table


def _called(method: str) -> str:
    return f"{METHODS[method].label} (`{method}`)"


def _spread(values: Series, largest: bool = False) -> str:
    """Mean and standard deviation, and the largest difference of two."""
    if not len(values):
        return ""
    return f"{values.mean():.1f} ± {values.std():.1f}" + (f" ({np.ptp(values):.1f})" if largest else "")


def _cells(runs: DataFrame, widths: Sequence[str] = WIDTHS, spread: bool = True) -> list[str]:
    """Per width PSNR to full precision over the seeds, and PSNR-Y to HR."""
    parts = [runs[runs.recipe == width] for width in widths]
    fidelity = [_spread(p.psnr_fp) if spread else f"{p.psnr_fp.mean():.1f}" for p in parts]
    return [f"{db} / {p.psnr_y.mean():.2f}" if len(p) else "" for db, p in zip(fidelity, parts)]


def _spreads(runs: DataFrame) -> list[str]:
    """Per width how far the runs lie apart."""
    return [_spread(runs.psnr_fp[runs.recipe == width], largest=True) for width in WIDTHS]


def _span(values: Series) -> str:
    return " to ".join(f"{v:.0f}" for v in sorted({values.min(), values.max()}))


def _rates(runs: DataFrame) -> str:
    """The factor of a method's rates; nothing of one that trains nothing."""
    return f"{runs.rates.iloc[0]:g}" if METHODS[runs.method.iloc[0]].stages else ""


def _methods(runs: DataFrame) -> list[str]:
    def row(method: str) -> list[object]:
        own = runs[runs.method == method]
        costs = f"{own.cpu_seconds.mean():.0f}", f"{own.peak_bytes.mean() / 1e9:.2f}"
        return [_called(method), *_cells(own), _span(own.pairs), _rates(own), *costs]

    head = ["method", *WIDTHS, "crops", "rates", "CPU s", "peak (GB)"]
    return _table(head, map(row, [name for name in METHODS if name in {*runs.method}]))


def _gap(found: DataFrame) -> str:
    """A mean difference with half of its 95 % interval; bold where that does not hold 0."""
    if not len(found) or found.difference.isna().any():
        return ""
    difference, half = found.difference.iloc[0], found.half_width.iloc[0]
    text = f"{difference:.2f} ± {half:.2f}"
    return f"**{text}**" if abs(difference) > half else text


def _over(runs: DataFrame, method: str, other: str, widths: Sequence[str] = WIDTHS) -> list[str]:
    """Per width what a method is over another."""
    pair = differences(runs[runs.method.isin((method, other))].sort_values("method", key=lambda m: m == method))
    return [_gap(pair[pair.recipe == width]) for width in widths]


def _gaps(runs: DataFrame, steps: Sequence[tuple[str, str]] = STEPS, widths: Sequence[str] = WIDTHS) -> list[str]:
    asked = [step for step in steps if {*step} <= {*runs.method}]
    rows = ([f"`{method}` over `{other}`", *_over(runs, method, other, widths)] for method, other in asked)
    return _table(["", *widths], rows)


def _table2(name: str = "table2") -> list[str]:
    table = _committed(name)
    columns = [(s, w) for s in table.dataset.unique() for w in WIDTHS]

    def row(method: str) -> list[str]:
        own = table[table.method == method]
        if (own.bits == FULL).all():  # it has no width: one cell for each set of pictures
            own = own.assign(bits=WIDTHS[0])
        cells = {(r.dataset, r.bits): f"{r.PSNR:.2f} / {r.FSIM:.3f}" for r in own.itertuples()}
        return [method, *(cells.get(column, "") for column in columns)]

    return _table(["method", *map(", ".join, columns)], map(row, [m for m in table.method.unique() if m != "FP"]))


def _stability() -> list[str]:
    runs = _runs("stability", "stability_256", "stability_order")
    drawn = runs.pairs.astype(str).where(runs.pairs_seed.isna(), "the same " + runs.pairs.astype(str))
    rows = (
        [crops, model.split("/")[-1], _called(method), *_spreads(own), f"{own.cpu_seconds.mean():.0f}"]
        for (crops, model, method), own in runs.groupby([drawn, "model", "method"], sort=False)
    )
    return _table(["crops", "model", "method", *WIDTHS, "CPU s"], rows)


def _starts() -> list[str]:
    rows = (
        [model.split("/")[-1], f"`{method}`", *_over(own, method, "let")]
        for model, own in _runs("stability").groupby("model", sort=False)
        for method in ("let+bias", "passionsr")
    )
    return _table(["model", "over `let`", *WIDTHS], rows)


def _budgets() -> list[str]:
    """The last columns are of the largest budget that a method has."""
    runs = _runs("methods", *(f"methods_{pairs}" for pairs in BUDGETS[1:])).query("recipe == 'W6A6'")

    def row(method: str) -> list[str]:
        own = runs[runs.method == method]
        ends = (_spread(own.psnr_fp[own.pairs == pairs], largest=True) for pairs in BUDGETS)
        half, most = sorted(own.pairs.unique())[-2:]
        longest = runs[runs.pairs == most]
        twice = differences(own[own.pairs.isin((half, most))].assign(method=lambda t: t.pairs.astype(str)))
        ours = "" if method == DEFAULT else _over(longest, DEFAULT, method, ["W6A6"])[0]
        return [_called(method), *ends, _gap(twice), ours, f"{own.cpu_seconds[own.pairs == most].mean():.0f}"]

    trained = {*runs.method[runs.pairs > BUDGETS[0]]}
    head = ["method", *BUDGETS, "last doubling", f"`{DEFAULT}` over it", "CPU s"]
    return _table(head, map(row, [name for name in METHODS if name in trained]))


def _timesteps() -> list[str]:
    runs = _runs("timesteps", "timesteps_refit")
    timestep, rows, none = runs.model.str.split("@").str[1].fillna("999"), [], [""] * len(WIDTHS)
    for method in runs.method.unique():
        own = runs.assign(model="", method=timestep)[runs.method == method]  # one model: differences between timesteps
        rows.append([_called(method), "999", *_cells(own[own.method == "999"]), *none])
        for t in ("499", "249", "1", "998"):
            rows.append([_called(method), f"{t}, over 999", *_cells(own[own.method == t]), *_over(own, t, "999")])
        rows.append([_called(method), "499, over 998", *none, *_over(own, "499", "998")])
    return _table(["method", "t", *WIDTHS, *(f"{w}, over" for w in WIDTHS)], rows)


def _low_runs() -> DataFrame:
    return _runs("low_bits", "low_bits_q_diffusion", "mixed").drop_duplicates(["recipe", "method", "seed"])


def _low_bits() -> list[str]:
    runs = _low_runs()
    own = {name: runs[runs.method == name] for name in METHODS}
    cpu = lambda found: f"{found.cpu_seconds[found.recipe == 'W4A4'].mean():.0f}"
    rows = (
        [_called(name), *_cells(found, LOW, False), _rates(found), cpu(found)]
        for name, found in own.items()
        if len(found)
    )
    return _table(["method", *LOW, "rates", "CPU s"], rows)


TABLES: dict[str, Callable[[], list[str]]] = {
    "methods": lambda: _methods(_runs("methods", "methods_q_diffusion", "methods_published")),
    "methods gaps": lambda: _gaps(_runs("methods", "methods_q_diffusion", "methods_published")),
    "equal cost": lambda: _methods(_runs("methods_cost")),
    "equal cost gaps": lambda: _gaps(_runs("methods_cost")),
    "table2": _table2,
    "whole": lambda: _table2("table2_whole"),
    "stability": _stability,
    "starts": _starts,
    "budgets": _budgets,
    "timesteps": _timesteps,
    "low bits": _low_bits,
    "low bits gaps": lambda: _gaps(_low_runs(), LOW_STEPS, LOW),
}


def shown(name: str):
    """One of the tables for a notebook, or None where its results are not committed."""
    from IPython.display import Markdown

    try:
        return Markdown("\n".join(TABLES[name]()))
    except FileNotFoundError as error:
        print(f"{error} is not there yet; the Makefile says what makes it.")


def main() -> int:
    """Writes README.md with its tables made anew."""
    path = checkout() / "README.md"
    text = path.read_text()
    with replacing(path) as new:
        Path(new).write_text(filled(text))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
