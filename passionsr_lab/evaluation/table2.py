"""Table 2, the big one: data sets x bits x methods, every metric of a protocol, resumable after a kill at any point.

Everything is kept in one folder: `quantized/` (calibrated pipelines, and the state of the one in calibration),
`cells/` (the scores of every image, one file per data set, bits and method), and the tables made of them.  The tables
are always made from the files, so a run that was killed and resumed ends with the same bytes as one that was not.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Iterator, Sequence

from ..calibration.loop import Calibration
from ..imaging.datasets import PairList, read_set
from ..imaging.pairs import Pair, chosen_pairs
from ..pipeline.onestep import OneStepSR
from ..quantization.recipe import METHODS, RECIPES, Recipe
from ..quantization.recipe import recipe as recipe_named
from ..quantization.surgery import DESCRIPTION, fingerprint, load, quantize, save
from ..util.files import replacing, write_json
from . import scores as quality
from .cited import table2 as cited
from .protocols import PROTOCOLS, chosen
from .sweep import versions
from .tables import to_csv, to_latex

if TYPE_CHECKING:
    from pandas import DataFrame

FULL = "W32A32"
FULL_METHODS = ("FP", "PassionSR-FP")  # with the prompt branch, and without
CITED = {"FP": "OSEDiff"}  # the paper's name of a method, where it has another
HEADS = {
    "psnr_y": "PSNR", "ssim_y": "SSIM", "lpips": "LPIPS", "dists": "DISTS", "niqe": "NIQE", "musiq": "MUSIQ",
    "maniqa_koniq": "MANIQA", "maniqa_pipal": "MANIQA-pipal", "clipiqa": "CLIPIQA", "fid": "FID",
}  # fmt: skip
DIGITS = {"PSNR": 2, "NIQE": 3, "MUSIQ": 2, "FID": 2}  # the others have 4

# Methods beyond `config.METHODS`, by name: a function (pipe, recipe, pairs, seed) -> pipeline.
PLUGINS: dict[str, Callable[[OneStepSR, Recipe, Sequence[Pair], int], OneStepSR]] = {}


@dataclass(frozen=True)
class Plan:
    """What the table is of.

    model: what `lab.load` reads.
    datasets: what `datasets.read_set` reads; count and crop limit the pairs of each.
    bits: names of recipes.
    methods: "FP", "PassionSR-FP", of `config.METHODS` or of `PLUGINS`.
    protocol, metrics: as for `metrics.score`.
    images, pairs, size, epochs, batch, seed: of the calibration, as for `python -m passionsr_lab calibrate`.
    device: where it runs; off the CPU calibrations are `lean`.
    """

    model: str = "tiny"
    datasets: tuple[str, ...] = ("bundled",)
    bits: tuple[str, ...] = ("W8A8", "W6A6")
    methods: tuple[str, ...] = (*FULL_METHODS, "maxmin", "passionsr")
    protocol: str = "passionsr"
    metrics: tuple[str, ...] | None = None
    count: int | None = None
    crop: int | None = None
    images: str = "bundled"
    pairs: int = 32
    size: int = 128
    epochs: int = 4
    batch: int = 4
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self):
        chosen(self.metrics, self.protocol)
        for name in self.bits:
            recipe_named(name)
        known = (*FULL_METHODS, *METHODS, *PLUGINS)
        unknown = [name for name in self.methods if name not in known]
        if unknown or not self.methods:
            raise ValueError(f"A method is one of {', '.join(known)}, not {', '.join(unknown) or 'none'}.")

    @property
    def pipelines(self) -> list[tuple[str, str]]:
        """(bits, method) of every pipeline of the table, full precision first."""
        full = [(FULL, name) for name in self.methods if name in FULL_METHODS]
        return full + [(bits, name) for bits in self.bits for name in self.methods if name not in FULL_METHODS]


def run(plan: Plan, out: str | Path, resume: bool = False) -> Iterator[dict]:
    """Fills the folder `out`, cell by cell; what is there already is kept.

    Yields:
        Records with `event`: "calibrate" (a step of a calibration: bits, method, and what `Calibration.run` yields),
        "cell" (dataset, bits, method, images: a cell is there now) and at the end "tables" (paths).

    Raises:
        ValueError: `out` holds a table and `resume` is off, or a table with other settings; data or model are missing.
    """
    out, sets = Path(out), [read_set(what, plan.count, plan.crop) for what in plan.datasets]
    pairs = chosen_pairs(plan.images, plan.pairs, plan.size, plan.seed)
    settings = {key: getattr(plan, key) for key in ("pairs", "size", "epochs", "batch", "seed")}
    mark = fingerprint(load(plan.model))
    _claim(out, settings | {"model": mark, "photographs": PairList("", pairs).digest()} | versions(), resume)
    scoring = _hash([mark, quality.versions(plan.protocol, plan.metrics), list(plan.metrics or ()), versions()])
    for bits, method in plan.pipelines:
        cells = {s.name: _cell(out, s.name, bits, method) for s in sets}
        heads = {s.name: f"# {_hash([scoring, s.digest()])}" for s in sets}
        waiting = [s for s in sets if not _finished(cells[s.name], heads[s.name])]
        pipe = None
        for pairs_of in waiting:
            if pipe is None:
                pipe = yield from _pipeline(plan, out, bits, method, pairs)
            frame = quality.stream(_restored(pipe, pairs_of), plan.metrics, plan.protocol)
            _write_cell(cells[pairs_of.name], heads[pairs_of.name], frame)
        for pairs_of in sets:
            yield {"event": "cell", "dataset": pairs_of.name, "bits": bits, "method": method, "images": len(pairs_of)}
    yield {"event": "tables"} | write(plan, out)


# -- one pipeline -----------------------------------------------------------------------------------------------------


def _pipeline(plan: Plan, out: Path, bits: str, method: str, pairs: list[Pair]) -> Iterator[dict]:
    """The pipeline of a row (as the generator's return value); calibrated here, or read from where it was saved."""
    if method in FULL_METHODS:
        return _full(plan.model, method).to(plan.device)
    pipe, wanted = load(plan.model).to(plan.device), RECIPES.get(bits) or recipe_named(bits)
    if method in PLUGINS:
        return PLUGINS[method](pipe, wanted, pairs, plan.seed)
    folder = out / "quantized" / f"{bits}_{method}"
    if not (folder / DESCRIPTION).is_file():
        quantized = quantize(pipe, wanted)
        work = Calibration(quantized, pairs, method, plan.epochs, plan.batch, plan.seed, lean=plan.device != "cpu")
        for record in work.run(keep=folder / "unfinished.pt"):
            yield record | {"event": "calibrate", "bits": bits, "method": method, "total": work.total}
        save(quantized, folder)
        (folder / "unfinished.pt").unlink(missing_ok=True)
    return load(folder, pipe)


def _full(model: str, method: str) -> OneStepSR:
    pipe = load(model)
    if method != "FP":
        return pipe
    try:
        return load(model, prompt=True)
    except ValueError as error:
        raise ValueError(f"{model} has no prompt branch, so leave FP out of the methods ({error})") from error


def _restored(pipe: OneStepSR, pairs) -> Iterator[tuple]:
    """(name, restored image on the 8-bit grid, original): what would be measured on saved PNG files."""
    for pair in pairs:
        yield pair.name, (pipe(pair.lr) * 255).round() / 255, pair.hr


# -- files ------------------------------------------------------------------------------------------------------------


def _hash(content) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _claim(out: Path, settings: dict, resume: bool) -> None:
    """Makes `out` the folder of a table with these settings of the calibration, or checks that it is."""
    file = out / "table2.json"
    if file.is_file():
        before = json.loads(file.read_text())
        other = [key for key in settings if before.get(key) != settings[key]]
        if other:
            raise ValueError(f"{out} holds a table with another {', '.join(other)}; choose another folder.")
        if not resume:
            raise ValueError(f"{out} holds a table already; give --resume to go on with it, or choose another folder.")
    write_json(file, settings)


def _cell(out: Path, dataset: str, bits: str, method: str) -> Path:
    return out / "cells" / f"{dataset}_{bits}_{method}.csv"


def _finished(cell: Path, head: str) -> bool:
    return cell.is_file() and cell.read_text().partition("\n")[0] == head


def _write_cell(cell: Path, head: str, frame: DataFrame) -> None:
    with replacing(cell) as temporary:
        temporary.write_text(f"{head}\n{frame.to_csv(index=False, lineterminator=chr(10))}")


# -- tables -----------------------------------------------------------------------------------------------------------


def scores(plan: Plan, out: str | Path) -> DataFrame:
    """Every score of every image: dataset, bits, method and the columns of `metrics.score`.

    Raises `OSError` for a cell that is not there yet.
    """
    import pandas as pd

    names = [read_set(what, plan.count, plan.crop).name for what in plan.datasets]
    parts = []
    for name in names:
        for bits, method in plan.pipelines:
            file = _cell(Path(out), name, bits, method)
            part = pd.read_csv(file, skiprows=1, float_precision="round_trip", dtype={"name": str})
            place = {"dataset": name, "bits": bits, "method": METHODS[method].label if method in METHODS else method}
            parts.append(part.fillna({"note": ""}).assign(**place))
    frame = pd.concat(parts, ignore_index=True)
    return frame[["dataset", "bits", "method", *frame.columns.drop(["dataset", "bits", "method"])]]


def wide(summary: DataFrame) -> DataFrame:
    """One row per data set, bits and method; a column per metric, and beside it the paper's number where it has one.

    Args:
        summary: `metrics.summary` of `scores`.
    """
    keys = ["dataset", "bits", "method"]
    table = summary.pivot_table(index=keys, columns="metric", values="mean", sort=False, dropna=False)
    table = table.reindex(columns=list(dict.fromkeys(summary.metric))).rename(columns=HEADS).reset_index()
    table = table.merge(summary[keys].drop_duplicates(), how="right", on=keys)
    theirs = cited().rename(columns={head: f"{head} paper" for head in cited().columns.drop(keys)})
    ours = table.assign(method=table.method.replace(CITED))[keys]
    beside = ours.merge(theirs, how="left", on=keys)
    columns = keys.copy()
    for head in table.columns.drop(keys):
        columns.append(head)
        if beside.get(f"{head} paper") is not None and beside[f"{head} paper"].notna().any():
            table[f"{head} paper"] = beside[f"{head} paper"]
            columns.append(f"{head} paper")
    return table[columns].rename_axis(columns=None)


def write(plan: Plan, out: str | Path) -> dict:
    """Makes `table2.csv`, `table2.tex`, `table2_means.csv` (with 95 % intervals) and `table2_images.csv` of the cells.

    Returns:
        paths, and notes: one sentence for every metric that is missing.
    """
    out, frame = Path(out), scores(plan, out)
    means = quality.summary(frame)
    table = wide(means)
    told = quality.versions(plan.protocol, plan.metrics)
    source = {"model": plan.model, "seed": str(plan.seed), "protocol": f"{told['protocol']} {told['digest']}"}
    source |= {"pyiqa": told["pyiqa"]} | versions()
    paths = [
        to_csv(table, "table2", out, source),
        to_csv(means, "table2_means", out),
        to_csv(frame, "table2_images", out),
    ]
    paths.append(_latex(table, plan, out, source))
    present = {name: mark for name, mark in told["weights"].items() if mark != "absent"}
    write_json(out / "table2_versions.json", told | {"weights": present} | versions())
    return {"paths": [str(path) for path in paths], "notes": sorted(set(means.note) - {""})}


def _latex(table: DataFrame, plan: Plan, out: Path, source: dict) -> Path:
    """Metrics that are missing everywhere are left out; ranks are within a data set and bits."""
    ways = {HEADS[name]: {"higher": "max", "lower": "min"}[m.better] for name, m in PROTOCOLS[plan.protocol].items()}
    gone = [head for head in ways if head in table and table[head].isna().all()]
    kept = table.drop(columns=[c for c in table.columns if c.removesuffix(" paper") in gone])
    kept.insert(0, "data", kept.pop("dataset") + ", " + kept.pop("bits"))
    best = {head: way for head, way in ways.items() if head in kept}
    digits = {c: DIGITS.get(c.removesuffix(" paper"), 4) for c in kept.columns}
    theirs = {c: "paper" for c in kept.columns if c.endswith(" paper")}
    caption = f"Quality of {plan.model} by data set, bits and method; low bits are simulated."
    caption += " Columns headed paper: PassionSR, Table 2, of SD2.1 and OSEDiff's weights." if theirs else ""
    return to_latex(kept, "table2", best, caption, out, source, within="data", digits=digits, headers=theirs)
