"""SD2.1-base with its weights, out of a diffusers folder or the original single file."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ..pipeline.onestep import OneStepSR
from ..pipeline.reading import network, owned
from ..util import checkpoint
from ..util.compat import torchvision_importable
from . import names as ldm
from . import text, weights
from .sd21 import SCHEDULER, UNET, VAE


def read(path: str | Path, embedding: Tensor | None = None) -> OneStepSR:
    """SD2.1-base with its weights, in float32 on the CPU, as a one-step x4 pipeline at t = 999.

    Args:
        path: a folder in diffusers' layout, or `v2-1_512-ema-pruned.safetensors` or `.ckpt`.
        embedding: the constant condition (1, T, 1024); by default the empty prompt's, from the text encoder.

    Raises:
        ValueError: a part or a tensor is missing or left over, or it is another model; the message names it.
    """
    torchvision_importable()
    from diffusers import DDPMScheduler

    path = Path(path)
    unet, vae = _folder(path) if path.is_dir() else _single_file(path)
    embedding = text.empty_embedding(text.text_encoder(path)) if embedding is None else embedding
    width = unet.config.cross_attention_dim
    if embedding.shape[-1] != width:
        raise ValueError(f"The prompt's embedding is {tuple(embedding.shape)}, but the UNet of {path} needs {width}.")
    pipe = owned(OneStepSR(unet, vae, DDPMScheduler(**SCHEDULER), embedding, timestep=999, upscale=4, name=path.stem))
    pipe.sources = weights.sources(path)
    return pipe


def _folder(folder: Path) -> tuple[nn.Module, nn.Module]:
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel

    try:
        unet, vae = network(UNet2DConditionModel, folder / "unet"), network(AutoencoderKL, folder / "vae")
    except Exception as error:  # every library on this path raises its own kind, some in many lines
        raise ValueError(f"{folder} is not SD2.1-base: {str(error).splitlines()[0]}") from None
    scheduler = folder / "scheduler" / "scheduler_config.json"
    given = DDPMScheduler.load_config(scheduler) if scheduler.is_file() else SCHEDULER
    wrong = [key for key in ("beta_start", "beta_end", "prediction_type") if given.get(key) != SCHEDULER[key]]
    if wrong:
        found = given.get(wrong[0])
        raise ValueError(f"{folder} is not SD2.1-base: its {wrong[0]} is {found}, not {SCHEDULER[wrong[0]]}.")
    return unet, vae


def _single_file(path: Path) -> tuple[nn.Module, nn.Module]:
    from diffusers import AutoencoderKL, UNet2DConditionModel

    state = checkpoint.read(path)
    state = state.get("state_dict", state)
    with torch.device("meta"):
        networks = {"unet": UNet2DConditionModel(**UNET), "vae": AutoencoderKL(**VAE)}
    for prefix, name in ldm.PREFIXES.items():
        if name in networks:
            _fill(networks[name], {k: v for k, v in state.items() if k.startswith(prefix)}, f"The {name} of {path}")
    return networks["unet"], networks["vae"]


def _fill(network: nn.Module, state: dict[str, Tensor], what: str) -> None:
    """Puts ldm tensors into a network on the meta device, all of them and no other; they become float32."""
    own, found = network.state_dict(), {ldm.diffusers_name(key): (key, value) for key, value in state.items()}
    missing, left = own.keys() - found.keys(), found.keys() - own.keys()
    if missing:
        raise ValueError(f"{what} has no {min(missing)}; {len(missing)} of its {len(own)} tensors are missing.")
    if left:
        raise ValueError(f"{what} has {found[min(left)][0]}, which SD2.1 has not.")
    tensors = {}
    for name, (key, value) in found.items():
        if value.shape[: own[name].ndim] != own[name].shape or value.numel() != own[name].numel():
            raise ValueError(f"{what}: {key} is {tuple(value.shape)}, but SD2.1's {name} is {tuple(own[name].shape)}.")
        tensors[name] = value.reshape(own[name].shape).float()  # 1x1 convolutions become linear
    network.load_state_dict(tensors, assign=True)
