"""SD2.1-base's networks with their weights, out of a diffusers folder or the original single file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Mapping

import torch
from torch import Tensor, nn

from ..pipeline.configs import fields, refuse_unknown
from ..pipeline.reading import weight_files
from ..util import checkpoint
from ..util.compat import torchvision_importable
from ..util.files import read_json
from .names import PREFIXES, diffusers_name
from .sd21 import SCHEDULER, UNET, VAE
from .text import ENCODER, from_open_clip, text_encoder

_FREE = ("self", "sample_size", "upcast_attention", "force_upcast")  # fields without a part in float32 results
_NOISE = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")
_OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # the VAE's attention in old folders


def read_sd21(path: str | Path, text: bool = True) -> dict[str, nn.Module]:
    """SD2.1-base's "unet", "vae" and, unless it is not wanted, "text_encoder": float32, on the CPU.

    Args:
        path: a folder in diffusers' layout, or `v2-1_512-ema-pruned.safetensors` or `.ckpt`.

    Raises:
        ValueError: a network, a field of a configuration or a tensor is missing, left over, not finite, or another
            model's; the message names it.
    """
    torchvision_importable()
    from diffusers import AutoencoderKL, UNet2DConditionModel

    path = Path(path)
    names = ("unet", "vae", "text_encoder")[: 2 + text]
    states = _folder(path, names) if path.is_dir() else _single_file(path)
    with torch.device("meta"):
        unet, vae = UNet2DConditionModel(**UNET), AutoencoderKL(**VAE)
    networks = {
        "unet": checkpoint.fill(unet, states["unet"], f"The unet of {path}"),
        "vae": checkpoint.fill(vae, states["vae"], f"The vae of {path}"),
    }
    if text:
        networks["text_encoder"] = text_encoder(states["text_encoder"], f"The text_encoder of {path}")
    return networks


def _folder(folder: Path, names: tuple[str, ...]) -> dict[str, dict[str, Tensor]]:
    require_sd21(folder, text="text_encoder" in names)
    states = {}
    for name in names:
        files = weight_files(folder / name, "model" if name == "text_encoder" else "diffusion_pytorch_model")
        if not files:
            raise ValueError(f"There are no weights in {folder / name}.")
        states[name] = {key: tensor for file in files for key, tensor in checkpoint.read_state(file).items()}
    old = re.compile(rf"\.({'|'.join(_OLD)})\.")
    states["vae"] = {old.sub(lambda m: f".{_OLD[m[1]]}.", key): tensor for key, tensor in states["vae"].items()}
    return states


def _single_file(path: Path) -> dict[str, dict[str, Tensor]]:
    """The file's tensors by network, under diffusers' and transformers' names."""
    state = checkpoint.read_state(path)
    states = {"text_encoder": from_open_clip(state)}
    try:
        for name, prefix in PREFIXES.items():
            states[name] = {diffusers_name(key): tensor for key, tensor in state.items() if key.startswith(prefix)}
    except ValueError as error:
        raise ValueError(f"{path} is not SD2.1-base: {error}") from None
    return states


def require_sd21(folder: Path, text: bool = True) -> None:
    """`ValueError` unless the configurations of a diffusers folder are SD2.1-base's in everything that decides results.

    Without `scheduler/`, which older copies lack, the noise schedule is SD2.1's.
    """
    file = folder / "scheduler" / "scheduler_config.json"
    scheduler = read_json(file) if file.is_file() else SCHEDULER
    unet, vae = read_json(folder / "unet" / "config.json"), read_json(folder / "vae" / "config.json")
    refuse_unknown(scheduler, vae, unet, folder)
    _require_same(scheduler, SCHEDULER, dict.fromkeys(_NOISE), folder / "scheduler")
    _require_same(unet, UNET, fields("UNet2DConditionModel"), folder / "unet")
    _require_same(vae, VAE, fields("AutoencoderKL"), folder / "vae")
    if text:
        encoder = read_json(folder / "text_encoder" / "config.json")
        _require_same(encoder, ENCODER, dict.fromkeys(ENCODER), folder / "text_encoder")


def _require_same(given: Mapping, wanted: Mapping, defaults: Mapping, where: Path) -> None:
    """Raises unless every field of `defaults`, which tell what a field left out means, is the same in both."""
    for field in defaults.keys() - _FREE:
        found, expected = (json.dumps(config.get(field, defaults[field])) for config in (given, wanted))
        if found != expected:
            raise ValueError(f"{where} is not SD2.1-base's: its {field} is {found}, not {expected}.")
