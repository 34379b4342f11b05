"""One call to take away: everything about quantized pipelines on a page to mail."""

from __future__ import annotations

import html
import json
import platform
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING

import torch

from .. import plots
from ..analysis.bitcost import report as cost_of
from ..analysis.layers import branch_ranks, layer_table
from ..analysis.propagation import propagation
from ..evaluation.scores import score
from ..imaging.pairs import Pair, checked_pairs
from ..imaging.pictures import upsample
from ..imaging.psnr import psnr_rgb
from ..pipeline.identity import fingerprint
from ..pipeline.onestep import OneStepSR
from ..quantization.place import QuantizedSR, unquantize
from ..store.keys import versions
from .compare import Comparison
from .page import Page, asset, data_uri

if TYPE_CHECKING:
    from pandas import DataFrame

SHOWN = 3  # test pictures that can be compared on the page
LARGE = 512  # pixels: of larger pictures the middle is shown


def report(
    q: QuantizedSR | Mapping[str, QuantizedSR],
    tests: Sequence[Pair],
    records: Mapping[str, DataFrame] | DataFrame | None = None,
    sensitivity: Mapping[str, DataFrame] | DataFrame | None = None,
) -> Page:
    """A self-contained page: scores, pictures, settings, calibration curves, table of layers, propagation, cost.

    Args:
        q: a calibrated pipeline, or name -> pipeline for several of one full-precision model side by side.
        tests: pairs (lr, hr) that were not calibrated on; the first ones are shown.
        records: what `lab.calibrate` returned or `lab.records(q)`, or name -> such a frame, for the curves.
        sensitivity: what `analysis.sensitivity.sensitivity` returned, likewise, where it was measured.

    Returns:
        a `Page`: `save("report.html")` writes it, a notebook shows it by itself.

    Raises:
        ValueError: no pipeline, one that is not quantized or not calibrated, pipelines of different models, no tests;
            frames that are not said to be of one of the pipelines.

    Example:
        >>> import passionsr_lab as lab
        >>> q = lab.quantize(lab.tiny(), lab.W6A6)
        >>> records = lab.calibrate(q, lab.bundled("calibration", 2, 64), "let")
        >>> report(q, lab.bundled("test", 1, 64), records).title
        'tiny, W6A6 LET: simulated quantization'
    """
    found = _named(q)
    full = unquantize(next(iter(found.values())))
    frames, ranked = _by_name(records, found, "records"), _by_name(sensitivity, found, "sensitivity")
    tests = checked_pairs(tests, full.upscale)
    outputs = {"full precision": [full(pair.lr) for pair in tests]}
    outputs |= {name: [model(pair.lr) for pair in tests] for name, model in found.items()}
    title = f"{full.name}, {', '.join(found)}: simulated quantization"
    sections = [
        ("Scores", [_table(_scores(found, full, outputs, tests))]),
        ("Pictures", _pictures(outputs, tests)),
        ("Calibration", chain.from_iterable(_calibration(n, m, frames.get(n)) for n, m in found.items())),
        ("Layers", chain.from_iterable(_layers(n, m, tests, ranked.get(n)) for n, m in found.items())),
        ("Cost", [_table(_cost(found, full, max(tests[0].hr.shape[-2:])))]),
        ("Settings", [_settings(found, full)]),
    ]
    body = "".join(f"<h2>{heading}</h2>\n{''.join(parts)}\n" for heading, parts in sections)
    scripts = f"<script>document.querySelectorAll('table').forEach({asset('table.js')})</script>"
    return Page(title, f"<h1>{html.escape(title)}</h1>\n{body}{scripts}", ("report.css", "compare.css"))


def _named(q) -> dict[str, QuantizedSR]:
    found = {str(name): model for name, model in q.items()} if isinstance(q, Mapping) else {None: q}
    if not found:
        raise ValueError("A report needs at least one pipeline.")
    for model in found.values():
        if not isinstance(model, QuantizedSR) or model.method is None:
            raise ValueError("A report is about calibrated pipelines (lab.quantize, then lab.calibrate).")
    if len({fingerprint(unquantize(model)) for model in found.values()}) > 1:
        raise ValueError("The pipelines side by side in a report must be of one full-precision model.")
    return {f"{model.recipe.name} {model.method.label}" if n is None else n: model for n, model in found.items()}


def _by_name(given: Mapping[str, DataFrame] | DataFrame | None, found: dict, what: str) -> dict[str, DataFrame]:
    """Frames by the pipelines' names; one without a name is of the only pipeline."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        if len(found) > 1:
            raise ValueError(f"Of several pipelines, {what} are given by name: {', '.join(found)}.")
        return dict.fromkeys(found, given)
    if unknown := given.keys() - found.keys():
        raise ValueError(f"There are {what} of {min(unknown)!r}, but the pipelines are {', '.join(found)}.")
    return dict(given)


# -- sections ---------------------------------------------------------------------------------------------------------


def _scores(found: dict, full: OneStepSR, outputs: dict[str, list], tests: Sequence[Pair]) -> DataFrame:
    import pandas as pd

    rows = []
    for name, images in outputs.items():
        values = score(images, [pair.hr for pair in tests], ["psnr_y"])
        fidelity = [psnr_rgb(x, y) for x, y in zip(images, outputs["full precision"])] if name in found else []
        cost = found[name].history.get("cost", {}) if name in found else {}
        rows.append({
            "model": name, "label": found[name].label if name in found else "float",
            "PSNR-Y to HR (dB)": values.value.mean(), "PSNR to full precision (dB)": _mean(fidelity),
            "pictures": len(tests), "calibration, CPU seconds": cost.get("cpu_seconds"),
        })  # fmt: skip
    return pd.DataFrame(rows)


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _pictures(outputs: dict[str, list], tests: Sequence[Pair]):
    for i, pair in enumerate(tests[:SHOWN]):
        images = {"bicubic": upsample(pair.lr[None], pair.hr.shape[-1] // pair.lr.shape[-1])[0]}
        images |= {name: made[i] for name, made in outputs.items()} | {"HR": pair.hr}
        images = {name: _middle(image) for name, image in images.items()}
        yield Comparison(images, "full precision", [*outputs][-1], width=LARGE).fragment()
    if len(tests) > SHOWN:
        yield f"<p>The first {SHOWN} of {len(tests)} test pictures; the scores are means over all.</p>"


def _middle(image: torch.Tensor) -> torch.Tensor:
    top, left = (max(0, (n - LARGE) // 2) for n in image.shape[-2:])
    return image[..., top : top + LARGE, left : left + LARGE]


def _calibration(name: str, model: QuantizedSR, records):
    import pandas as pd

    yield f"<h3>{html.escape(name)}</h3>"
    if records is not None and (records.event == "step").any():
        heading = f"Calibration loss of each module: {name}"
        yield _figure(plots.loss_curves(records, heading, caption=_caption(model)))
    stages = pd.DataFrame(model.history.get("stages", []))
    if len(stages):
        yield _table(stages[["module", "block", "stage", "of", "first", "loss", "step_length"]])


def _layers(name: str, model: QuantizedSR, tests: Sequence[Pair], sensitivity):
    errors = propagation(model, [pair.lr for pair in tests])
    table = layer_table(model).merge(errors.drop(columns=["number", "module"]), on="layer", how="left")
    if sensitivity is not None:
        columns = [c for c in ("gain_db", "alone_db") if c in sensitivity]
        table = table.merge(sensitivity[["layer", *columns]], on="layer", how="left")
    yield f"<h3>{html.escape(name)}</h3>"
    yield _figure(plots.propagation(errors, caption=_caption(model) | {"pictures": len(tests)}))
    first = ["number", "layer", "module"]
    yield _table(table[[*first, *(c for c in table if c not in first)]], search=True)


def _caption(model: QuantizedSR) -> dict:
    told = {name: model.history[name] for name in ("pairs", "epochs", "batch", "seed") if name in model.history}
    return {"model": model.name, "recipe": model.recipe.name, "method": model.method.label, **told, "one": "run"}


def _cost(found: dict, full: OneStepSR, size: int) -> DataFrame:
    import pandas as pd

    rows = []
    for name, q in {"full precision": None, **found}.items():
        recipe, ranks = (None, None) if q is None else (q.recipe, branch_ranks(q))
        exact = cost_of(full, recipe, size, ranks)["exact"]
        rows.append({
            "model": name, "MB": exact["bytes"] / 1e6, "bit operations (G)": exact["bit_operations"] / 1e9,
            "mean weight bits": exact["weight_bits"], "mean activation bits": exact["act_bits"],
        })  # fmt: skip
    return pd.DataFrame(rows)


def _settings(found: dict, full: OneStepSR) -> str:
    settings = {
        "versions": versions() | {"python": platform.python_version()},
        "model": {"name": full.name, "fingerprint": fingerprint(full), "timestep": full.timestep},
    }
    for name, model in found.items():
        history = {k: v for k, v in model.history.items() if k not in ("stages", "folder", "method")}
        settings[name] = {"recipe": model.recipe.to_dict(), "method": model.method.describe(), "calibration": history}
    return f"<pre>{html.escape(json.dumps(settings, indent=1, default=str))}</pre>"


# -- HTML -------------------------------------------------------------------------------------------------------------


def _table(frame: DataFrame, search: bool = False) -> str:
    head = "".join(f"<th{_kind(frame[column].iloc[0])}>{html.escape(str(column))}</th>" for column in frame)
    rows = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in frame.itertuples(index=False))
    field = '<label>search <input type="search"></label>' if search else ""
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return f"<div>{field}</div><div class='scroll'>{table}</div>"


def _kind(value) -> str:
    return " class='text'" if isinstance(value, (str, tuple)) else ""


def _cell(value) -> str:
    import pandas as pd

    if isinstance(value, (str, tuple)):
        text = value if isinstance(value, str) else "×".join(map(str, value))
        return f"<td{_kind(value)}>{html.escape(text)}</td>"
    if value is None or pd.isna(value):
        return "<td></td>"
    return f"<td>{value:.4g}</td>" if isinstance(value, float) else f"<td>{value}</td>"


def _figure(fig) -> str:
    return f'<figure><img alt="" src="{data_uri("png", plots.png(fig))}"></figure>'
