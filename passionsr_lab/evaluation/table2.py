"""Table 2, the big one: data sets x bits x methods, every metric of a protocol, from the store.

Calibrated models and the scores of every data set are kept in the store; the tables are always made of them, so a run
that was killed goes on, and ends with the same bytes as one that was not.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..calibration.method import Method
from ..imaging.datasets import read_set
from ..imaging.pairs import chosen_pairs
from ..methods import METHODS, find
from ..pipeline.identity import fingerprint
from ..pipeline.onestep import OneStepSR
from ..quantization.recipe import recipe as recipe_named
from ..store.folder import load
from ..store.keys import arithmetic, calibration_key, versions
from ..store.models import calibrated
from ..store.results import kept
from ..util.files import write_json
from . import scores as quality
from .cited import table2 as cited
from .protocols import PROTOCOLS, chosen
from .tables import to_csv, to_latex
from .tuning import Rates

if TYPE_CHECKING:
    from pandas import DataFrame

FULL = "W32A32"
FULL_METHODS = ("FP", "PassionSR-FP")  # with the prompt branch, and without
CITED = {"FP": "OSEDiff"}  # the paper's name of a method, where it has another
HEADS = {
    "psnr_y": "PSNR", "ssim_y": "SSIM", "lpips": "LPIPS", "dists": "DISTS", "niqe": "NIQE", "musiq": "MUSIQ",
    "maniqa_koniq": "MANIQA", "maniqa_pipal": "MANIQA-pipal", "clipiqa": "CLIPIQA", "fid": "FID",
    "ms_ssim": "MS-SSIM", "fsim": "FSIM", "vif": "VIF", "gmsd": "GMSD", "nlpd": "NLPD",
}  # fmt: skip
DIGITS = {"PSNR": 2, "NIQE": 3, "MUSIQ": 2, "FID": 2}  # the others have 4


@dataclass(frozen=True)
class Plan:
    """What the table is of.

    model: what `lab.load` reads.
    datasets: what `datasets.read_set` reads; count and crop limit the pairs of each.
    bits: names of recipes.
    methods: "FP", "PassionSR-FP", or registered ones.
    protocol, metrics: as for `scores.score`.
    images, pairs, size, epochs, batch, seed: of the calibration, as for `python -m passionsr_lab calibrate`.
    tuned: tables that `tune` wrote, with the learning rates of every method.
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
    tuned: tuple[str | Path, ...] = ()
    device: str = "cpu"

    def __post_init__(self):
        chosen(self.metrics, self.protocol)
        for name in self.bits:
            recipe_named(name)
        known = (*FULL_METHODS, *METHODS)
        unknown = [name for name in self.methods if name not in known]
        if unknown or not self.methods:
            raise ValueError(f"A method is one of {', '.join(known)}, not {', '.join(unknown) or 'none'}.")
        names = [what.partition("=")[0] for what in self.datasets]
        for given in (names, self.bits, self.methods):
            if twice := [name for name in given if list(given).count(name) > 1]:
                raise ValueError(f"{twice[0]} is given twice; rows of one name would be taken for one.")
        self.low()  # says which rates are missing

    def low(self) -> list[tuple[str, Method]]:
        """(bits, method) of every quantized pipeline of the table, with the method's rates."""
        rates = Rates(*self.tuned) if self.tuned else None
        rows = [(bits, find(name)) for bits in self.bits for name in self.methods if name not in FULL_METHODS]
        return [
            (bits, method if rates is None else method.faster(rates.of(self.model, method.name)))
            for bits, method in rows
        ]

    @property
    def pipelines(self) -> list[tuple[str, Method | str]]:
        """(bits, method) of every pipeline of the table, those in full precision first, by their names."""
        return [(FULL, name) for name in self.methods if name in FULL_METHODS] + self.low()


def run(
    plan: Plan, out: str | Path, store: str | Path | None = None, executor: Executor | None = None
) -> Iterator[dict]:
    """Fills the store cell by cell and writes the tables to the folder `out`.

    Args:
        executor: makes the rows, each in a job of its own.

    Yields:
        Records with `event`: "cell" (dataset, bits, method, images: a cell is there now) and "tables" (paths).

    Raises:
        ValueError: data or model are missing.
    """
    sets, parts = _sets(plan), []
    if executor is None:
        found = (_cells(plan, *row, store) for row in plan.pipelines)
    else:
        jobs = [executor.submit(row_of, plan, *row, store) for row in plan.pipelines]
        found = (job.result() for job in jobs)
    for (bits, method), cells in zip(plan.pipelines, found):
        name, label = (method, method) if isinstance(method, str) else (method.name, method.label)
        for dataset, rows in zip(sets, cells):
            parts.append(({"dataset": dataset.name, "bits": bits, "method": label}, rows))
            yield {"event": "cell", "dataset": dataset.name, "bits": bits, "method": name, "images": len(dataset)}
    yield {"event": "tables"} | write(plan, out, frame_of(parts))


def row_of(plan: Plan, bits: str, method: Method | str, store: str | Path | None) -> list[list[dict]]:
    """A row of the table: for each data set the rows of `scores.score`, from the store or into it."""
    return list(_cells(plan, bits, method, store))


def _cells(plan: Plan, bits: str, method: Method | str, store: str | Path | None) -> Iterator[list[dict]]:
    model = _Model(plan, bits, method, store)
    for dataset in _sets(plan):
        asked = model.key | {"set": dataset.digest(), "of": "table2", "device": plan.device} | _scoring(plan)
        yield kept(asked, model.scores(dataset), store)


def _sets(plan: Plan) -> list:
    return [read_set(what, plan.count, plan.crop) for what in plan.datasets]


def _scoring(plan: Plan) -> dict:
    return {"scoring": quality.versions(plan.protocol, plan.metrics), "metrics": list(plan.metrics or ())}


class _Model:
    """A row of the table: what decides it, and the pipeline once it is needed."""

    def __init__(self, plan: Plan, bits: str, method: Method | str, store: str | Path | None):
        self.plan, self.bits, self.method, self.store = plan, bits, method, store
        self.made = None
        self.full = _full(plan.model, method) if isinstance(method, str) else load(plan.model)
        self.key = {"model": fingerprint(self.full)}
        if isinstance(method, Method):
            self.pairs = chosen_pairs(plan.images, plan.pairs, plan.size, plan.seed)
            self.options = {"epochs": plan.epochs, "batch": plan.batch, "seed": plan.seed}
            asked = self.key["model"], recipe_named(bits), method, self.pairs
            self.key = calibration_key(*asked, **self.options)

    def pipeline(self):
        if self.made is None:
            self.made = self.full.to(self.plan.device)
            if isinstance(self.method, Method):
                lean = self.plan.device != "cpu"
                asked = recipe_named(self.bits), self.method, self.pairs
                self.made = calibrated(self.full, *asked, lean=lean, store=self.store, **self.options)
        return self.made

    def scores(self, dataset):
        """A function that measures the data set: rows of `metrics.score`."""

        def make() -> list[dict]:
            frame = quality.stream(_restored(self.pipeline(), dataset), self.plan.metrics, self.plan.protocol)
            return frame.astype(object).where(frame.notna(), None).to_dict("records")

        return make


def _full(model: str, method: str) -> OneStepSR:
    if method != "FP":
        return load(model)
    try:
        return load(model, prompt=True)
    except ValueError as error:
        raise ValueError(f"{model} has no prompt branch, so leave FP out of the methods ({error})") from error


def _restored(pipe, pairs) -> Iterator[tuple]:
    """(name, restored image on the 8-bit grid, original): what would be measured on saved PNG files."""
    for pair in pairs:
        yield pair.name, (pipe(pair.lr) * 255).round() / 255, pair.hr


def frame_of(parts: list[tuple[dict, list[dict]]]) -> DataFrame:
    """Every score of every image: dataset, bits, method and the columns of `scores.score`."""
    import pandas as pd

    frames = [pd.DataFrame(rows).assign(**place) for place, rows in parts]
    frame = pd.concat(frames, ignore_index=True).astype({"value": float}).fillna({"note": ""})
    return frame[["dataset", "bits", "method", "name", "metric", "value", "better", "protocol", "note"]]


# -- tables -----------------------------------------------------------------------------------------------------------


def wide(summary: DataFrame) -> DataFrame:
    """One row per data set, bits and method; a column per metric, and beside it the paper's number where it has one.

    Args:
        summary: `scores.summary` of `frame_of`.
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


def write(plan: Plan, out: str | Path, frame: DataFrame) -> dict:
    """Makes `table2.csv`, `table2.tex`, `table2_means.csv` (with 95 % intervals) and `table2_images.csv` of the scores.

    Returns:
        paths, and notes: one sentence for every metric that is missing.
    """
    out = Path(out)
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
    write_json(out / "table2_versions.json", told | {"weights": present} | versions() | arithmetic())
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
