"""Many runs from a table of configurations, each kept in the store; on any executor."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from pathlib import Path

from ..methods import DEFAULT, find
from ..quantization.recipe import Recipe
from ..quantization.recipe import recipe as recipe_named
from ..store.keys import arithmetic, calibration_key, pairs_digest, versions
from ..store.models import calibrated
from ..store.results import kept
from ..util.machine import threads

DEFAULTS = {
    "model": "tiny", "recipe": "W6A6", "method": DEFAULT, "seed": 0, "epochs": 4, "batch": 4,
    "pairs": 16, "size": 64, "rates": 1.0, "tests": "test", "test_pairs": 8, "test_size": 128, "threads": None,
}  # fmt: skip


def grid(**values: Iterable):
    """A DataFrame with one row for every combination of the values; what is not given has its default.

    `pairs_seed`, where it is given, draws the pairs instead of `seed`.

    Example:
        >>> grid(method=["maxmin", "passionsr"], seed=range(3)).shape[0]
        6
    """
    import pandas as pd

    unknown = values.keys() - DEFAULTS.keys() - {"pairs_seed"}
    if unknown:
        raise ValueError(f"A run has no setting {sorted(unknown)[0]!r}; it has {', '.join(DEFAULTS)}.")
    rows = [dict(zip(values, row)) for row in itertools.product(*values.values())]
    return pd.DataFrame([DEFAULTS | row for row in rows])


def run(configuration: dict, store: str | Path | None = None) -> dict:
    """Quantizes, calibrates and measures once, or takes it from the store; the configuration with its results.

    `rates` multiplies the method's learning rates; `tests` is the split of bundled pictures that is measured on;
    `threads` are torch's, None leaves them as they are.
    Results: psnr_y and ssim_y (against HR), psnr_fp (dB, against the full-precision output), those of full precision;
    seconds, cpu_seconds and peak_bytes of the whole calibration; versions, and the number of threads, by which the last
    bits differ.
    """
    from ..imaging.pairs import bundled
    from ..pipeline.identity import fingerprint
    from ..store.folder import load

    c = DEFAULTS | configuration
    recipe = _recipe(c["recipe"])
    pipe, method = load(c["model"]), find(c["method"]).faster(c["rates"])
    pairs = bundled("calibration", c["pairs"], c["size"], c.get("pairs_seed", c["seed"]))
    tests = bundled(c["tests"], c["test_pairs"], c["test_size"], 0)
    options = {"epochs": c["epochs"], "batch": c["batch"], "seed": c["seed"]}
    content = calibration_key(fingerprint(pipe), recipe, method, pairs, **options)

    def make() -> dict:
        q = calibrated(pipe, recipe, method, pairs, store=store, **options)
        return measured(pipe, q, tests) | q.history["cost"]

    with threads(c["threads"]):
        result = kept(content | {"tests": pairs_digest(tests), "of": "sweep"}, make, store)
        return c | {"recipe": recipe.name, "method": method.name} | result | versions() | arithmetic()


def _recipe(recipe: Recipe | str) -> Recipe:
    return recipe if isinstance(recipe, Recipe) else recipe_named(recipe)


def measured(pipe, q, tests) -> dict:
    """Mean scores of a quantized pipeline and of its full-precision one on test pairs."""
    import numpy as np

    from ..imaging.psnr import psnr_rgb
    from .scores import score

    full, ours, hr = [pipe(t.lr) for t in tests], [q(t.lr) for t in tests], [t.hr for t in tests]

    def means(images) -> dict:
        return score(images, hr, ("psnr_y", "ssim_y")).groupby("metric").value.mean().to_dict()

    result = means(ours) | {f"{k}_full": v for k, v in means(full).items()}
    return result | {"psnr_fp": float(np.mean([psnr_rgb(a, b) for a, b in zip(ours, full)]))}


def sweep(
    configurations, store: str | Path | None = None, executor: Executor | None = None,
    callback: Callable[[dict], None] | None = None, work: Callable[..., dict] = run,
):  # fmt: skip
    """Runs every row of a DataFrame of configurations; a DataFrame of results in the same order.

    Args:
        configurations: see `grid`.
        store: where finished runs are kept; a sweep that was killed goes on there.
        executor: any `concurrent.futures.Executor` (processes, `dask.distributed`'s, submitit's); None runs here.
        callback: called with each result as it comes.
        work: the function of one run.

    Raises:
        ValueError: a method or a recipe that does not exist, before the first run.
        RuntimeError: some runs failed; the others were finished and kept first.
    """
    import pandas as pd

    rows = [
        DEFAULTS | {k: getattr(v, "item", lambda v=v: v)() for k, v in row.items()}
        for row in configurations.to_dict("records")
    ]
    rows = [row | {"method": find(row["method"])} for row in rows]
    for row in rows:
        _recipe(row["recipe"])
    results, failed = {}, []
    for i, result in _results(rows, store, executor, work):
        if isinstance(result, Exception):
            failed.append((i, result))
            continue
        results[i] = result
        if callback is not None:
            callback(result)
    if failed:
        i, error = failed[0]
        which = f"{rows[i]['recipe']} {rows[i]['method'].name}, seed {rows[i]['seed']}"
        raise RuntimeError(f"{len(failed)} of {len(rows)} runs failed, the first ({which}): {error}") from error
    return pd.DataFrame([dict(sorted(results[i].items())) for i in range(len(rows))])[_columns(results, rows)]


def _columns(results: dict[int, dict], rows: list[dict]) -> list[str]:
    found = list(dict.fromkeys(key for i in sorted(results) for key in sorted(results[i])))
    return [*(key for key in DEFAULTS if key in found), *(key for key in found if key not in DEFAULTS)]


def _results(rows, store, executor, work) -> Iterator[tuple[int, dict | Exception]]:
    """(row, result or what it raised) as they come; asks each job whether it is done, as every executor's can be."""
    if executor is None:
        for i, row in enumerate(rows):
            yield i, _attempt(lambda row=row: work(row, store))
        return
    jobs = [executor.submit(work, row, store) for row in rows]
    for result in finished(jobs):
        yield jobs.index(result.__self__), _attempt(result)


def finished(jobs: list) -> Iterator[Callable]:
    """The `result` of every job as it is done; asks each job itself, which those of every executor can answer."""
    waiting = list(jobs)
    while waiting:
        done = [job for job in waiting if job.done()]
        waiting = [job for job in waiting if job not in done]
        yield from (job.result for job in done)
        if not done:
            time.sleep(0.05)


def _attempt(work: Callable[[], dict]) -> dict | Exception:
    try:
        return work()
    except Exception as error:  # told at the end, after the other runs
        return error


def summary(frame):
    """Means over seeds, one row per recipe and method in the order they came, full precision first.

    `psnr_fp_std` is the standard deviation (NaN of one seed) and `psnr_fp_spread` the largest difference between two
    runs of a row; of several models each has its rows, under `model`.
    """
    import pandas as pd

    parts = [_summary(part) for _, part in frame.groupby("model", sort=False)]
    return pd.concat(parts, ignore_index=True).drop(columns=[] if len(parts) > 1 else "model")


def _summary(frame):
    """`summary` of one model."""
    import pandas as pd

    columns = ["psnr_y", "ssim_y", "psnr_fp", "seconds", "cpu_seconds", "peak_bytes"]
    groups = frame.groupby(["model", "recipe", "method"], sort=False)
    table = groups[columns].mean().reset_index()
    table["psnr_fp_std"] = groups.psnr_fp.std().values
    table["psnr_fp_spread"] = (groups.psnr_fp.max() - groups.psnr_fp.min()).values
    table["seeds"] = groups.seed.nunique().values
    full = {
        "model": frame.model.iloc[0], "recipe": "W32A32", "method": "full precision",
        "psnr_y": frame.psnr_y_full.mean(), "ssim_y": frame.ssim_y_full.mean(),
    }  # fmt: skip
    table = pd.concat([pd.DataFrame([full]), table], ignore_index=True)
    table["peak_gb"] = table.pop("peak_bytes") / 1e9
    return table


def differences(frame):
    """Mean differences of PSNR to full precision (dB) between methods, with half a 95 % interval of t.

    They are paired by seed, after means over the threads of runs of one seed; of several models each has its rows.

    Columns: recipe, method, other, difference (method minus other), half_width (NaN of one seed), seeds; and model, if
    there are several.
    """
    import pandas as pd
    from scipy.stats import t

    rows = []
    for (model, recipe), runs in frame.groupby(["model", "recipe"], sort=False):
        scores = runs.pivot_table(index="seed", columns="method", values="psnr_fp")
        for other, method in itertools.combinations(runs.method.unique(), 2):
            gaps = (scores[method] - scores[other]).dropna()
            half = t.ppf(0.975, len(gaps) - 1) * gaps.sem() if len(gaps) > 1 else float("nan")
            rows.append((model, recipe, method, other, gaps.mean(), half, len(gaps)))
    columns = ["model", "recipe", "method", "other", "difference", "half_width", "seeds"]
    table = pd.DataFrame(rows, columns=columns)
    return table if table.model.nunique() > 1 else table.drop(columns="model")
