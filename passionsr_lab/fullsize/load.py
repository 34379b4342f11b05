"""Any full-precision model by its name: the embedded one, SD2.1, OSEDiff, a folder, a file, a hub id."""

from __future__ import annotations

from pathlib import Path
from typing import Callable

import torch
from torch import Tensor, nn

from ..pipeline import folder
from ..pipeline.lora import merge
from ..pipeline.onestep import OneStepSR
from ..util.compat import torchvision_importable
from . import weights
from .osediff import attach, read_lora
from .pretrained import read_sd21
from .sd21 import SCHEDULER
from .tags import TagBranch, tagger
from .text import empty_embedding, read_embedding


def load_model(name_or_folder: str | Path, prompt: bool | str | Path | Callable = False) -> OneStepSR:
    """A full-precision model, in float32.

    Args:
        name_or_folder: "tiny", "osediff" or "sd21"; a model folder (see `pipeline.folder.load_pipeline`); a folder of
            SD2.1 and OSEDiff weights as `weights` describes it; osediff.pkl; SD2.1's single file; or a hub id.
        prompt: keep the prompt branch; for OSEDiff, whose tagger is not on the registries, the tags themselves (see
            `load_full_size`).

    Raises:
        ValueError: something is missing, damaged, not finite or not supported; the message names it.
    """
    if not isinstance(name_or_folder, (str, Path)):
        raise ValueError(f"A model is a name, a path or a hub id, not {name_or_folder!r}.")
    if weights.full_size(name_or_folder):
        return load_full_size(name_or_folder, prompt)
    if not isinstance(prompt, bool):
        raise ValueError(f"{name_or_folder} has a tagger of its own: prompt is True or False, not {prompt!r}.")
    return folder.load_pipeline(name_or_folder, prompt)


def load_full_size(
    name: str | Path,
    prompt: bool | str | Path | Callable = False,
    merged: bool = True,
    device: str | torch.device | None = None,
) -> OneStepSR:
    """SD2.1-base or OSEDiff at full size: one step at t = 999, x4, in float32.

    Args:
        name: "osediff" or "sd21" out of `weights.folder()` or the hub; a folder of weights (see `weights`), which is
            OSEDiff if osediff.pkl is in it; osediff.pkl itself, with SD2.1 beside it; or SD2.1's single file.
        prompt: keep the prompt branch, OSEDiff's own row: tags as one string, as the path of a .csv, or as a function
            of the picture (see `tags.tagger`); True takes tags.csv out of the folder.
        merged: False keeps the LoRA beside the weights (`osediff.attach`).
        device: by default the GPU where there is one; what is made of the pipeline stays where it is.

    Raises:
        ValueError: a file is missing, damaged or of another model; the message names it and how to get it.
    """
    base, lora, where = _files(name)
    adapters = read_lora(lora) if lora else ()  # before the long part, so that a bad file is told at once
    tags = tagger(weights.obtain("tags", where) if prompt is True else prompt) if prompt else None
    official = weights.find("empty_prompt", where)
    embedding = read_embedding(official) if official else None
    networks = read_sd21(base, text=embedding is None or tags is not None)
    pipe = _pipeline(networks, embedding, name)
    for network, adapter in zip((pipe.unet, pipe.vae), adapters):
        (merge if merged else attach)(network, adapter)
    if tags is not None:
        pipe.prompt = TagBranch(networks["text_encoder"], tags)
    for file in filter(None, (base, lora, official)):
        pipe.sources |= weights.hashes(file)
    return pipe.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def _files(name: str | Path) -> tuple[Path, Path | None, Path | None]:
    """SD2.1's file or folder; OSEDiff's file if it is asked for, or in the folder; the folder of weights, if given."""
    path = Path(name)
    if str(name) in ("sd21", "osediff"):
        return weights.obtain("sd21"), weights.obtain("osediff") if str(name) == "osediff" else None, None
    where = path.parent if path.is_file() else path
    if path.is_file() and path.name not in weights.WEIGHTS["osediff"].names:
        return path, None, where
    return weights.obtain("sd21", where), weights.find("osediff", where), where


def _pipeline(networks: dict[str, nn.Module], embedding: Tensor | None, name: str | Path) -> OneStepSR:
    """SD2.1 as a one-step pipeline; without an embedding of the empty prompt the text encoder makes it."""
    torchvision_importable()
    from diffusers import DDPMScheduler

    embedding = empty_embedding(networks["text_encoder"]) if embedding is None else embedding
    if embedding.shape[-1] != (width := networks["unet"].config.cross_attention_dim):
        raise ValueError(f"The prompt's embedding is {tuple(embedding.shape)}, but the UNet of {name} needs {width}.")
    return OneStepSR(networks["unet"], networks["vae"], DDPMScheduler(**SCHEDULER), embedding, name=Path(name).name)
