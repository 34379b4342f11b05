"""Many runs from a table of configurations: cached by content, resumable, on any executor."""

from __future__ import annotations

import hashlib
import itertools
import json
from concurrent.futures import Executor, as_completed
from pathlib import Path
from typing import Callable, Iterable

from ..util.files import write_json

DEFAULTS = {
    "model": "tiny", "recipe": "W6A6", "method": "passionsr", "seed": 0, "epochs": 4, "batch": 4,
    "pairs": 16, "size": 64, "test_pairs": 8, "test_size": 128,
}  # fmt: skip
NEUTRAL = {"maxmin": ("epochs", "batch"), "let": ("epochs", "batch")}  # settings that a method does not use


def grid(**values: Iterable):
    """A DataFrame with one row for every combination of the values; what is not given has its default.

    Example:
        >>> grid(method=["maxmin", "passionsr"], seed=range(3)).shape[0]
        6
    """
    import pandas as pd

    unknown = values.keys() - DEFAULTS.keys()
    if unknown:
        raise ValueError(f"A run has no setting {sorted(unknown)[0]!r}; it has {', '.join(DEFAULTS)}.")
    rows = [dict(zip(values, row)) for row in itertools.product(*values.values())]
    return pd.DataFrame([DEFAULTS | row for row in rows])


def run(configuration: dict) -> dict:
    """Quantizes, calibrates and measures once; the configuration with its results.

    Results: psnr_y and ssim_y (against HR), psnr_fp (dB, against the full-precision output), those of full precision,
    seconds and peak_bytes of the calibration, versions.
    """
    import numpy as np

    from ..calibration.loop import calibrate
    from ..imaging.pairs import bundled
    from ..imaging.psnr import psnr_rgb
    from ..quantization.surgery import load, quantize
    from .scores import score

    c = DEFAULTS | configuration
    pipe = load(c["model"])
    quantized = quantize(pipe, c["recipe"])
    pairs = bundled("calibration", c["pairs"], c["size"], c["seed"])
    records = calibrate(quantized, pairs, c["method"], epochs=c["epochs"], batch=c["batch"], seed=c["seed"])
    tests = bundled("test", c["test_pairs"], c["test_size"], 0)
    full, ours, hr = [pipe(t.lr) for t in tests], [quantized(t.lr) for t in tests], [t.hr for t in tests]

    def means(images) -> dict:
        return score(images, hr, ("psnr_y", "ssim_y")).groupby("metric").value.mean().to_dict()

    result = means(ours) | {f"{k}_full": v for k, v in means(full).items()}
    result["psnr_fp"] = float(np.mean([psnr_rgb(a, b) for a, b in zip(ours, full)]))
    trained = records[records.event == "step"]
    return (
        c | result | {"seconds": float(trained.seconds.sum()), "peak_bytes": int(records.peak_bytes.max())} | versions()
    )


def versions() -> dict:
    """Versions of what decides the numbers."""
    import diffusers
    import torch

    from .. import __version__

    return {"passionsr_lab": __version__, "torch": torch.__version__, "diffusers": diffusers.__version__}


def key(configuration: dict, mark: str | None = None) -> str:
    """The content hash under which a run is cached: its settings, the versions and the model's weights.

    mark: the model's `surgery.fingerprint`, where it is known already.
    """
    c = {k: v for k, v in (DEFAULTS | configuration).items() if k not in NEUTRAL.get(configuration["method"], ())}
    content = c | versions() | {"fingerprint": mark or _fingerprint(c["model"])}
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _fingerprint(model: str) -> str:
    from ..quantization.surgery import fingerprint, load

    return fingerprint(load(model))


def sweep(
    configurations, cache: str | Path | None = None, executor: Executor | None = None,
    callback: Callable[[dict], None] | None = None, work: Callable[[dict], dict] = run,
):  # fmt: skip
    """Runs every row of a DataFrame of configurations; a DataFrame of results in the same order.

    Args:
        configurations: see `grid`.
        cache: folder in which every finished run is kept as one JSON file; a sweep that was killed goes on there.
        executor: any `concurrent.futures.Executor`; None runs here, one after the other.
        callback: called with each result as it comes.
        work: the function of one run.
    """
    import pandas as pd

    rows = [
        DEFAULTS | {k: getattr(v, "item", lambda v=v: v)() for k, v in row.items()}
        for row in configurations.to_dict("records")
    ]
    marks = {name: _fingerprint(name) for name in {row["model"] for row in rows}} if cache else {}
    files = [Path(cache) / f"{key(row, marks[row['model']])}.json" if cache else None for row in rows]
    results: dict[int, dict] = {}

    def finish(i: int, result: dict) -> None:
        results[i] = result
        if files[i] is not None:
            write_json(files[i], result)
        if callback is not None:
            callback(result)

    waiting = []
    for i, file in enumerate(files):
        if file is not None and file.exists():
            results[i] = json.loads(file.read_text())
            if callback is not None:
                callback(results[i])
        else:
            waiting.append(i)
    if executor is None:
        for i in waiting:
            finish(i, work(rows[i]))
    else:
        futures = {executor.submit(work, rows[i]): i for i in waiting}
        for future in as_completed(futures):
            finish(futures[future], future.result())
    return pd.DataFrame([row | dict(sorted(results[i].items())) for i, row in enumerate(rows)])  # as from the cache


def summary(frame):
    """Means over seeds, one row per recipe and method in the order they came, full precision first."""
    import pandas as pd

    columns = ["psnr_y", "ssim_y", "psnr_fp", "seconds", "peak_bytes"]
    groups = frame.groupby(["recipe", "method"], sort=False)
    table = groups[columns].mean().reset_index()
    table["psnr_fp_std"] = groups.psnr_fp.std(ddof=0).values
    table["seeds"] = groups.size().values
    full = {
        "recipe": "W32A32",
        "method": "full precision",
        "psnr_y": frame.psnr_y_full.mean(),
        "ssim_y": frame.ssim_y_full.mean(),
    }
    table = pd.concat([pd.DataFrame([full]), table], ignore_index=True)
    table["peak_gb"] = table.pop("peak_bytes") / 1e9
    return table
