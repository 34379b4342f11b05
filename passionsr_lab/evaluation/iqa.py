"""pyiqa's networks and their weight files: found, downloaded, hashed, and asked for once.

pyiqa's licence is PolyForm Noncommercial 1.0.0 (not open source): it is optional, and imported only when one of its
metrics is asked for.  Weight files are downloaded once, if their server answers at all; what could not be had is not
tried again before Python restarts.
"""

from __future__ import annotations

import functools
import io
import os
import threading
import warnings
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Callable, Iterator
from urllib.parse import urlsplit

import torch

from ..util import hashing
from ..util.compat import clip_importable, torchvision_importable
from ..util.network import unreachable
from .protocols import FOLDERS, HUB, VIT, VIT_FILE, Metric, chosen

_quieting = threading.RLock()


@functools.cache
def network(metric: Metric) -> tuple[Callable | None, str]:
    """(the metric, "") or (None, why not); tried once per process, so that a missing file costs nothing twice."""
    try:
        if find_spec("pyiqa") is None:
            raise OSError("pyiqa is not installed (pip install pyiqa; its licence is noncommercial)")
        for url in metric.weights:
            obtain(url)
        torchvision_importable()
        if metric.pyiqa == "clipiqa":
            clip_importable()
        with quiet(), hub_offline():
            import pyiqa

            made = pyiqa.create_metric(metric.pyiqa, **dict(metric.options))
    except Exception as error:  # the libraries on this path do not agree on a kind
        return None, sentence(error)
    return (functools.partial(_fid, made) if metric.whole_set else made), ""


def _fid(compute: Callable, images: str, references: str) -> float:
    """The Frechet distance between two folders; the covariance of one image does not exist."""
    if len(os.listdir(images)) < 2:
        raise ValueError("it needs at least two images")
    return compute(images, references, num_workers=0, verbose=False)


# -- weight files -----------------------------------------------------------------------------------------------------


def prefetch(protocol: str = "osediff") -> Iterator[dict]:
    """Downloads what the protocol's metrics load and is not there yet; one dict per file, as it is dealt with.

    Yields:
        file, metrics (that need it), sha256 ("absent" where it could not be had) and note (why not, else empty).
    """
    metrics = chosen(None, protocol)
    for url in files(metrics):
        try:
            obtain(url)
            note = ""
        except Exception as error:  # the hub and urllib raise their own kinds
            note = sentence(error) + "."
        needy = [name for name, metric in metrics.items() if url in metric.weights]
        yield {"file": label(url), "metrics": needy, "sha256": sha256(location(url)), "note": note}


def files(metrics: dict[str, Metric]) -> list[str]:
    """The URLs of all weight files of these metrics, each once."""
    return list(dict.fromkeys(url for metric in metrics.values() for url in metric.weights))


def obtain(url: str) -> None:
    """Downloads a weight file to where pyiqa will look for it, unless it is there; `OSError` at once if it cannot."""
    from huggingface_hub import constants, hf_hub_download

    path = location(url)
    if path.exists():
        return
    source = url.replace(HUB, constants.ENDPOINT + "/")  # people behind a mirror set HF_ENDPOINT
    reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else unreachable(urlsplit(source).hostname)
    if reason:
        raise OSError(f"{label(url)} is not in {_shown(path.parent)} and cannot be downloaded ({reason})")
    if url == VIT:
        hf_hub_download(*VIT_FILE)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(source, str(path), progress=False)


def location(url: str) -> Path:
    """Where pyiqa looks for the file: below torch.hub's folder, or (the ViT of MANIQA) in the Hugging Face cache."""
    if url != VIT:
        base = next(base for base in FOLDERS if url.startswith(base))
        return Path(torch.hub.get_dir(), FOLDERS[base], url.rpartition("/")[2])
    from huggingface_hub import constants, try_to_load_from_cache

    found = try_to_load_from_cache(*VIT_FILE)
    return Path(found) if isinstance(found, str) else Path(constants.HF_HUB_CACHE, *VIT_FILE)


def label(url: str) -> str:
    """The file's name as tables print it."""
    return "/".join(VIT_FILE) if url == VIT else url.rpartition("/")[2]


def _shown(path: Path) -> str:
    """Without the name of a home folder, which is nobody's business in a table."""
    home = Path.home()
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)


def sha256(path: Path) -> str:
    """Of a file's content, or "absent"."""
    return hashing.sha256(path) if path.exists() else "absent"


# -- other people's noise ---------------------------------------------------------------------------------------------


@contextmanager
def hub_offline() -> Iterator[None]:
    """Keeps huggingface_hub off the network: it would ask, and retry for most of a minute, even for cached files."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


@contextmanager
def quiet() -> Iterator[None]:
    """Without pyiqa's prints and its libraries' warnings; one thread at a time, for both belong to the process."""
    with _quieting, warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def sentence(error: Exception) -> str:
    """The first line of an error's message, without its full stop."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
