"""Image quality as tidy DataFrames: one row per image and metric, under a named protocol.

PSNR on Y is computed here; every other metric comes from pyiqa (`iqa`).  A metric that cannot be had gives NaN and one
sentence in the column `note`; the others do not notice.
"""

from __future__ import annotations

import math
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Iterable, Sequence

import torch
from PIL import Image
from torch import Tensor

from ..imaging.decoding import picture_size
from ..imaging.matching import matching_files
from ..imaging.pictures import image_files, read_image, to_image, to_tensor
from ..imaging.psnr import psnr_y
from . import iqa
from .protocols import PROTOCOLS, Metric, chosen, digest

if TYPE_CHECKING:
    from pandas import DataFrame


def score(
    images: Sequence[Tensor | Image.Image],
    references: Sequence[Tensor | Image.Image] | None = None,
    metrics: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    protocol: str | None = None,
) -> DataFrame:
    """Scores images, against their originals where a metric needs them.

    Args:
        images: tensors (3, H, W) in [0, 1] or PIL images; sizes may differ from image to image.
        references: the originals in the same order, each of its image's size; nothing is ever resized.
        metrics: names out of `PROTOCOLS`; None is psnr_y and ssim_y, or all that `protocol` has.
        names: one per image; None numbers them.
        protocol: a name out of `PROTOCOLS` that every metric must belong to.

    Returns:
        Columns name, metric, value, better ("higher" or "lower"), protocol ("none" without one) and note (why a value
        is NaN, else empty).  FID has one row, named "all".

    Raises:
        ValueError: counts or sizes differ, references are missing, or a name is unknown.

    Example:
        >>> import torch
        >>> score([torch.zeros(3, 8, 8)], [torch.ones(3, 8, 8)], ["psnr_y"]).value.round(2).tolist()
        [1.32]
    """
    table = chosen(metrics, protocol, references is not None)
    names = [str(i) for i in range(len(images))] if names is None else [str(n) for n in names]
    references = [None] * len(images) if references is None else references
    if not len(images) == len(references) == len(names):
        raise ValueError(
            f"{len(images)} images, {len(references)} references and {len(names)} names do not match; give one each."
        )
    return _table([_pair(*row) for row in zip(names, images, references)], table, protocol)


def measure(
    images_folder: str | Path,
    references_folder: str | Path | None = None,
    metrics: Sequence[str] | None = None,
    protocol: str | None = None,
) -> DataFrame:
    """`score` for two folders whose files are paired by their exact names, one pair in memory at a time.

    Raises `ValueError` as `score` and `matching.matching_files` do, before any metric is computed.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("RGB", (16, 16)).save(folder + "/a.png")
        ...     measure(folder, folder, ["psnr_y"]).name.tolist()
        ['a.png']
    """
    table = chosen(metrics, protocol, references_folder is not None)
    if references_folder is None:
        files = [(file, None) for file in image_files(images_folder)]
    else:
        files = [pair for _, *pair in matching_files(images_folder, references_folder)]
    for image, reference in files:
        _require_same_size(image.name, picture_size(image), picture_size(reference or image))
    pairs = (_pair(image.name, read_image(image), reference and read_image(reference)) for image, reference in files)
    return _table(pairs, table, protocol)


def stream(rows: Iterable[tuple], metrics: Sequence[str] | None = None, protocol: str | None = None) -> DataFrame:
    """`score` for rows (name, image, reference) that come one at a time and are not kept.

    Example:
        >>> stream(((n, torch.zeros(3, 8, 8), torch.ones(3, 8, 8)) for n in "ab"), ["psnr"]).name.tolist()
        ['a', 'b']
    """
    return _table((_pair(*row) for row in rows), chosen(metrics, protocol), protocol)


def summary(frame: DataFrame, samples: int = 1000, seed: int = 0) -> DataFrame:
    """Means over the images with their 95 % bootstrap confidence intervals (percentile method, `samples` resamplings).

    Rows are grouped by every column but name, value and note, so that a column of your own (the recipe, say) is kept.
    NaN values are left out; n counts the others.  A single value has no interval.

    Returns:
        One row per group: its columns, n, mean, low, high and the first note.

    Example:
        >>> import torch
        >>> summary(score([torch.zeros(3, 8, 8)] * 3, [torch.ones(3, 8, 8)] * 3, ["psnr_y"])).n.tolist()
        [3]
    """
    import numpy as np
    import pandas as pd

    keys = [column for column in frame.columns if column not in ("name", "value", "note")]
    rows = []
    for group, scores in frame.groupby(keys, sort=False, dropna=False):
        values = scores.value.dropna().to_numpy()
        low, high = math.nan, math.nan
        if len(values) > 1:
            picks = np.random.default_rng(seed).integers(len(values), size=(samples, len(values)))
            low, high = np.quantile(values[picks].mean(1), [0.025, 0.975])
        mean = values.mean() if len(values) else math.nan
        rows.append((*group, len(values), mean, low, high, next(filter(None, scores.note), "")))
    return pd.DataFrame(rows, columns=[*keys, "n", "mean", "low", "high", "note"])


def versions(protocol: str | None = "osediff", metrics: Sequence[str] | None = None) -> dict:
    """What numbers under `protocol` depend on, to print beneath a table.

    Args:
        protocol, metrics: as for `score`; weights are listed for these metrics only.

    Returns:
        protocol, digest (of the protocol's definitions), pyiqa and torch (versions), weights: file name -> SHA-256, or
        "absent" for a file that is not on this machine.  Downloads nothing.

    Example:
        >>> sorted(versions("passionsr"))
        ['digest', 'protocol', 'pyiqa', 'torch', 'weights']
    """
    try:
        pyiqa = version("pyiqa")
    except PackageNotFoundError:
        pyiqa = "absent"
    return {
        "protocol": protocol or "none",
        "digest": digest(PROTOCOLS[protocol] if protocol in PROTOCOLS else chosen(metrics, protocol)),
        "pyiqa": pyiqa,
        "torch": torch.__version__,
        "weights": {iqa.label(url): iqa.sha256(iqa.location(url)) for url in iqa.files(chosen(metrics, protocol))},
    }


def _pair(name: str, image: Tensor | Image.Image, reference: Tensor | Image.Image | None):
    """(name, image, reference if any), both (3, H, W) on the CPU; `ValueError` that names what is wrong with them."""
    try:
        pair = [to_tensor(x).detach().cpu() for x in (image, reference) if x is not None]
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    if any(x.ndim != 3 for x in pair):
        raise ValueError(f"{name} is a batch; give a list of images (3, H, W).")
    _require_same_size(name, pair[0].shape[1:], pair[-1].shape[1:])
    return (name, *pair)


def _require_same_size(name: str, image: Sequence[int], reference: Sequence[int]) -> None:
    """`ValueError` for other heights and widths."""
    if tuple(image) != tuple(reference):
        (h, w), (rh, rw) = image, reference
        raise ValueError(f"{name} is {w}x{h} but its reference is {rw}x{rh}; images are never resized here.")


def _table(pairs: Iterable[tuple], metrics: dict[str, Metric], protocol: str | None) -> DataFrame:
    """Rows of `pairs` (name, image and, if any, reference), then one for each metric of the whole set."""
    import pandas as pd

    single = [key for key, metric in metrics.items() if not metric.whole_set]
    whole = [key for key in metrics if key not in single]
    kept = any(iqa.network(metrics[key])[0] for key in whole)
    rows = []
    with TemporaryDirectory() as folder:
        sides = [Path(folder, side) for side in ("images", "references")]
        for index, (name, *pair) in enumerate(pairs):
            rows += [(name, key, *_value(key, metrics[key], [x[None] for x in pair])) for key in single]
            for side, x in zip(sides, pair if kept else ()):
                side.mkdir(exist_ok=True)
                to_image(x).save(side / f"{index:06d}.png", compress_level=1)
        rows += [("all", key, *_value(key, metrics[key], [str(side) for side in sides])) for key in whole]
    frame = pd.DataFrame(rows, columns=["name", "metric", "value", "note"]).astype({"value": float})
    frame.insert(3, "better", [metrics[key].better for key in frame.metric])
    frame.insert(4, "protocol", protocol or "none")
    return frame


def _value(key: str, metric: Metric, inputs: list) -> tuple[float, str]:
    """The metric of a batch of one image (or of a pair, or of two folders), and why it is NaN if it is."""
    if key == "psnr_y":
        return psnr_y(*(x[0] for x in inputs)), ""
    compute, reason = iqa.network(metric)
    if compute is None:
        return math.nan, f"{key} is not available: {reason}."
    try:
        with iqa.quiet():
            value = float(compute(*inputs))
    except Exception as error:  # pyiqa's metrics raise every kind
        return math.nan, f"{key} cannot be computed for this: {iqa.sentence(error)}."
    return value, "" if math.isfinite(value) else f"{key} has no finite value for this."
