"""Image quality as tidy DataFrames: one row per image and metric, under a named protocol.

PSNR on Y is computed here.  Every other metric comes from pyiqa, whose licence is PolyForm Noncommercial 1.0.0 (not
open source): it is optional, and imported only when one of its metrics is asked for.  A metric that cannot be had gives
NaN and one sentence in the column `note`; the others do not notice.  Weight files are downloaded once, if their server
answers at all; what could not be had is not tried again before Python restarts.
"""

from __future__ import annotations

import functools
import hashlib
import io
import math
import os
import warnings
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import TYPE_CHECKING, Callable, Iterable, Iterator, Mapping, Sequence
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import torch
from PIL import Image
from torch import Tensor

from .compat import clip_importable, torchvision_importable
from .data import image_files, read_image, to_image, to_tensor

if TYPE_CHECKING:
    from pandas import DataFrame

DEFAULT = ("psnr_y", "ssim_y")
TIMEOUT = 5  # seconds that a server has to answer at all

_HUB = "https://huggingface.co/"
_IQA = _HUB + "chaofengc/IQA-PyTorch-Weights/resolve/main/"
_VIT_FILE = ("timm/vit_base_patch8_224.augreg2_in21k_ft_in1k", "model.safetensors")
_VIT = _HUB + "/resolve/main/".join(_VIT_FILE)
_VISION = "https://download.pytorch.org/models/"
_CLIP = "https://openaipublic.azureedge.net/clip/models/"
_ALEXNET, _VGG = _VISION + "alexnet-owt-7be5be79.pth", _VISION + "vgg16-397923af.pth"
_RN50 = _CLIP + "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762/RN50.pt"
_LPIPS = _IQA + "LPIPS_v0.1_alex-df73285e.pth"
_FOLDERS = {_IQA: "pyiqa", _VISION: "checkpoints", _CLIP: "clip"}  # below torch.hub's folder


@dataclass(frozen=True)
class Metric:
    """One metric, exactly.

    pyiqa, options: its name and settings in pyiqa.
    better: "higher" or "lower".
    reference: whether it compares with the original.
    weights: URLs of the files it loads, all of them.
    whole_set: one number for all the images together.
    """

    pyiqa: str
    better: str = "higher"
    reference: bool = False
    options: tuple[tuple[str, object], ...] = ()
    weights: tuple[str, ...] = ()
    whole_set: bool = False


_ON_Y = (("test_y_channel", True), ("color_space", "ycbcr"))
_SHARED = {
    "psnr_y": Metric("psnr", reference=True, options=_ON_Y),
    "ssim_y": Metric("ssim", reference=True, options=_ON_Y),
    "lpips": Metric("lpips", "lower", True, (("net", "alex"), ("version", "0.1")), (_ALEXNET, _LPIPS)),
    "dists": Metric("dists", "lower", True, weights=(_VGG, _IQA + "DISTS_weights-f5e65c96.pth")),
    "niqe": Metric("niqe", "lower", weights=(_IQA + "niqe_modelparameters.mat",)),
    "musiq": Metric("musiq", weights=(_IQA + "musiq_koniq_ckpt-e95806b9.pth",)),
    "clipiqa": Metric("clipiqa", weights=(_RN50,)),
}
_MANIQA_PIPAL = Metric("maniqa-pipal", weights=(_VIT, _IQA + "MANIQA_PIPAL-ae6d356b.pth"))
_MANIQA_KONIQ = Metric("maniqa", weights=(_VIT, _IQA + "ckpt_koniq10k.pt"))
_FID = Metric("fid", "lower", True, weights=(_IQA + "pt_inception-2015-12-05-6726825d.pth",), whole_set=True)

# A name never means two things: MANIQA carries its training set, because its numbers are not comparable across them.
PROTOCOLS: Mapping[str, Mapping[str, Metric]] = MappingProxyType(
    {
        "osediff": MappingProxyType({**_SHARED, "maniqa_pipal": _MANIQA_PIPAL, "fid": _FID}),
        "passionsr": MappingProxyType({**_SHARED, "maniqa_koniq": _MANIQA_KONIQ}),
    }
)


# -- PSNR -------------------------------------------------------------------------------------------------------------


def luma(x: Tensor) -> Tensor:
    """(..., 3, H, W) RGB in [0, 1] -> (..., H, W), the Y of BT.601 in [16, 235] / 255.

    Example:
        >>> round(luma(torch.ones(3, 1, 1)).item() * 255)
        235
    """
    weights = torch.tensor([65.481, 128.553, 24.966], dtype=x.dtype, device=x.device) / 255
    return (x * weights[:, None, None]).sum(-3) + 16 / 255


def psnr_y(x: Tensor, y: Tensor) -> float:
    """Peak signal-to-noise ratio (dB) on Y of two images (3, H, W) in [0, 1].

    Equal images give 100 dB (pyiqa, which adds 1e-8 to the mean square, 80 dB); at 40 dB the two differ by 0.0004 dB.

    Example:
        >>> round(psnr_y(torch.zeros(3, 8, 8), torch.ones(3, 8, 8)), 2)
        1.32
    """
    return -10 * torch.log10((luma(x.double()) - luma(y.double())).square().mean().clamp_min(1e-10)).item()


# -- scores -----------------------------------------------------------------------------------------------------------


def psnr(x: Tensor, y: Tensor) -> float:
    """Peak signal-to-noise ratio (dB) over all three channels of two images (3, H, W) in [0, 1]."""
    return -10 * torch.log10((x.double() - y.double()).square().mean().clamp_min(1e-10)).item()


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
    chosen = _chosen(metrics, protocol, references is not None)
    names = [str(i) for i in range(len(images))] if names is None else [str(n) for n in names]
    references = [None] * len(images) if references is None else references
    if not len(images) == len(references) == len(names):
        raise ValueError(
            f"{len(images)} images, {len(references)} references and {len(names)} names do not match; give one each."
        )
    return _table([_pair(*row) for row in zip(names, images, references)], chosen, protocol)


def measure(
    images_folder: str | Path,
    references_folder: str | Path | None = None,
    metrics: Sequence[str] | None = None,
    protocol: str | None = None,
) -> DataFrame:
    """`score` for two folders whose files are paired by their exact names, one pair in memory at a time.

    Raises `ValueError` if a file has no counterpart (the message says which, and on which side), and as `score` does.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("RGB", (16, 16)).save(folder + "/a.png")
        ...     measure(folder, folder, ["psnr_y"]).name.tolist()
        ['a.png']
    """
    chosen = _chosen(metrics, protocol, references_folder is not None)
    images = image_files(images_folder)
    references = [None] * len(images) if references_folder is None else image_files(references_folder)
    if references_folder is not None:
        _same_names(images, references)
    pairs = (_pair(p.name, read_image(p), r and read_image(r)) for p, r in zip(images, references))
    return _table(pairs, chosen, protocol)


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
    for group, part in frame.groupby(keys, sort=False, dropna=False):
        values = part.value.dropna().to_numpy()
        low, high = math.nan, math.nan
        if len(values) > 1:
            picks = np.random.default_rng(seed).integers(len(values), size=(samples, len(values)))
            low, high = np.quantile(values[picks].mean(1), [0.025, 0.975])
        mean = values.mean() if len(values) else math.nan
        rows.append((*group, len(values), mean, low, high, next(filter(None, part.note), "")))
    return pd.DataFrame(rows, columns=[*keys, "n", "mean", "low", "high", "note"])


def versions(protocol: str = "osediff") -> dict:
    """What numbers under `protocol` depend on, to print beneath a table.

    Returns:
        protocol, digest (of the protocol's definitions), pyiqa and torch (versions), weights: file name -> SHA-256, or
        "absent" for a file that is not on this machine.  Downloads nothing.

    Example:
        >>> sorted(versions("passionsr"))
        ['digest', 'protocol', 'pyiqa', 'torch', 'weights']
    """
    metrics = _chosen(None, protocol, True)
    urls = dict.fromkeys(url for metric in metrics.values() for url in metric.weights)
    try:
        pyiqa = version("pyiqa")
    except PackageNotFoundError:
        pyiqa = "absent"
    return {
        "protocol": protocol,
        "digest": hashlib.sha256(repr(sorted(metrics.items())).encode()).hexdigest()[:12],
        "pyiqa": pyiqa,
        "torch": torch.__version__,
        "weights": {_label(url): _sha256(_location(url)) for url in urls},
    }


def _chosen(metrics: Sequence[str] | None, protocol: str | None, references: bool) -> dict[str, Metric]:
    if protocol is not None and protocol not in PROTOCOLS:
        raise ValueError(f"There is no protocol {protocol}; choose from {', '.join(PROTOCOLS)}.")
    known = {n: m for key, table in PROTOCOLS.items() if protocol in (None, key) for n, m in table.items()}
    if metrics is None:
        metrics = DEFAULT if protocol is None else known
    unknown = [name for name in metrics if name not in known]
    if unknown:
        where = "any protocol" if protocol is None else f"protocol {protocol}"
        raise ValueError(f"{', '.join(unknown)} is not a metric of {where}; choose from {', '.join(known)}.")
    chosen = {name: known[name] for name in metrics}
    needy = [name for name, metric in chosen.items() if metric.reference and not references]
    if needy:
        raise ValueError(f"{', '.join(needy)} compare with the originals; give references.")
    return chosen


def _pair(name: str, image: Tensor | Image.Image, reference: Tensor | Image.Image | None):
    """(name, image, reference if any), both (3, H, W) on the CPU; `ValueError` if their sizes differ."""
    pair = [to_tensor(x).detach().cpu() for x in (image, reference) if x is not None]
    for x in pair:
        if x.ndim != 3:
            raise ValueError(f"{name} is a batch {tuple(x.shape)}; give a list of images (3, H, W).")
        if x.shape != pair[0].shape:
            (h, w), (rh, rw) = pair[0].shape[1:], x.shape[1:]
            raise ValueError(f"{name} is {w}x{h} but its reference is {rw}x{rh}; images are never resized here.")
    return (name, *pair)


def _same_names(images: list[Path], references: list[Path]) -> None:
    left, right = {p.name for p in images}, {p.name for p in references}
    if left != right:
        sides = ((references[0].parent, sorted(left - right)), (images[0].parent, sorted(right - left)))
        missing = "; ".join(f"{side} lacks {len(gone)} ({', '.join(gone[:5])})" for side, gone in sides if gone)
        raise ValueError(f"The two folders do not hold the same file names: {missing}.")


def _table(pairs: Iterable[tuple], chosen: dict[str, Metric], protocol: str | None) -> DataFrame:
    """Rows of `pairs` (name, image and, if any, reference), then one for each metric of the whole set."""
    import pandas as pd

    single = [key for key, metric in chosen.items() if not metric.whole_set]
    whole = [key for key in chosen if key not in single]
    kept = any(_network(chosen[key])[0] for key in whole)
    rows = []
    with TemporaryDirectory() as folder:
        sides = [Path(folder, side) for side in ("images", "references")]
        for index, (name, *pair) in enumerate(pairs):
            rows += [(name, key, *_value(key, chosen[key], [x[None] for x in pair])) for key in single]
            for side, x in zip(sides, pair if kept else ()):
                side.mkdir(exist_ok=True)
                to_image(x).save(side / f"{index:06d}.png", compress_level=1)
        rows += [("all", key, *_value(key, chosen[key], [str(side) for side in sides])) for key in whole]
    frame = pd.DataFrame(rows, columns=["name", "metric", "value", "note"]).astype({"value": float})
    frame.insert(3, "better", [chosen[key].better for key in frame.metric])
    frame.insert(4, "protocol", protocol or "none")
    return frame


def _value(key: str, metric: Metric, inputs: list) -> tuple[float, str]:
    """The metric of a batch of one image (or of a pair, or of two folders), and why it is NaN if it is."""
    if key == "psnr_y":
        return psnr_y(*(x[0] for x in inputs)), ""
    compute, reason = _network(metric)
    if compute is None:
        return math.nan, f"{key} is not available: {reason}."
    try:
        with _quiet():
            value = float(compute(*inputs))
    except Exception as error:  # pyiqa's metrics raise every kind
        return math.nan, f"{key} cannot be computed for this: {_sentence(error)}."
    return value, "" if math.isfinite(value) else f"{key} has no finite value for this."


# -- pyiqa's networks and their weight files --------------------------------------------------------------------------


@functools.cache
def _network(metric: Metric) -> tuple[Callable | None, str]:
    """(the metric, "") or (None, why not); tried once per process, so that a missing file costs nothing twice."""
    try:
        if find_spec("pyiqa") is None:
            raise OSError("pyiqa is not installed (pip install pyiqa; its licence is noncommercial)")
        for url in metric.weights:
            _obtain(url)
        torchvision_importable()
        if metric.pyiqa == "clipiqa":
            clip_importable()
        with _quiet(), _hub_offline():
            import pyiqa

            network = pyiqa.create_metric(metric.pyiqa, **dict(metric.options))
    except Exception as error:  # neither do the libraries on this path agree on a kind
        return None, _sentence(error)
    return (functools.partial(_fid, network) if metric.whole_set else network), ""


def _fid(network: Callable, images: str, references: str) -> float:
    """The Frechet distance between two folders; the covariance of one image does not exist."""
    if len(os.listdir(images)) < 2:
        raise ValueError("it needs at least two images")
    return network(images, references, num_workers=0, verbose=False)


def _obtain(url: str) -> None:
    """Downloads a weight file to where pyiqa will look for it, unless it is there; `OSError` at once if it cannot."""
    from huggingface_hub import constants, hf_hub_download

    path = _location(url)
    if path.exists():
        return
    source = url.replace(_HUB, constants.ENDPOINT + "/")  # people behind a mirror set HF_ENDPOINT
    reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else _silence(urlsplit(source).hostname)
    if reason:
        raise OSError(f"{_label(url)} is not in {path.parent} and cannot be downloaded ({reason})")
    if url == _VIT:
        hf_hub_download(*_VIT_FILE)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(source, str(path), progress=False)


@functools.cache
def _silence(host: str) -> str:
    """Why `host` does not answer within `TIMEOUT` seconds, or ""; asked once per process."""
    try:
        urlopen(Request(f"https://{host}", method="HEAD"), timeout=TIMEOUT).close()
    except HTTPError:
        return ""  # an answer, if not a kind one
    except OSError as error:
        return f"{host}: {error.reason if isinstance(error, URLError) else error}"
    return ""


def _location(url: str) -> Path:
    """Where pyiqa looks for the file: below torch.hub's folder, or (the ViT of MANIQA) in the Hugging Face cache."""
    if url != _VIT:
        base = next(base for base in _FOLDERS if url.startswith(base))
        return Path(torch.hub.get_dir(), _FOLDERS[base], url.rpartition("/")[2])
    from huggingface_hub import constants, try_to_load_from_cache

    found = try_to_load_from_cache(*_VIT_FILE)
    return Path(found) if isinstance(found, str) else Path(constants.HF_HUB_CACHE, *_VIT_FILE)


def _label(url: str) -> str:
    return "/".join(_VIT_FILE) if url == _VIT else url.rpartition("/")[2]


def _sha256(path: Path) -> str:
    if not path.exists():
        return "absent"
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _hub_offline() -> Iterator[None]:
    """Keeps huggingface_hub off the network: it would ask, and retry for most of a minute, even for cached files."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


@contextmanager
def _quiet() -> Iterator[None]:
    """Without pyiqa's prints and its libraries' warnings."""
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _sentence(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
