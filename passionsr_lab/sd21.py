"""The architecture of PassionSR-FP at full size, as data: Stable Diffusion 2.1-base's UNet, VAE and noise schedule.

`sd21` downloads nothing and reads no weight: it is for counting (`cost`).  `read` is the same model with its weights,
out of a diffusers folder or the original single file.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from . import checkpoint, ldm, text, weights
from .compat import torchvision_importable
from .model import OneStepSR, owned, part

UNET = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "center_input_sample": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "act_fn": "silu",
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),  # diffusers' name for the number of heads; each head has 64 channels
    "use_linear_projection": True,
}
VAE = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "act_fn": "silu",
    "latent_channels": 4,
    "norm_num_groups": 32,
    "sample_size": 768,
    "scaling_factor": 0.18215,
}
SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "clip_sample": False,
    "steps_offset": 1,
}
TOKENS = 77


def sd21(device: str | torch.device = "meta") -> OneStepSR:
    """SD2.1-base as a one-step ×4 pipeline: UNet 865.9 M and VAE 83.7 M parameters, t = 999.

    Args:
        device: "meta" takes no memory and a tenth of a second, and has shapes only; any other device gets diffusers'
            random initial values (3.8 GB in float32), ready for `load_state_dict`.

    Example:
        >>> from passionsr_lab.sd21 import sd21
        >>> pipe = sd21()
        >>> sum(p.numel() for p in pipe.unet.parameters()), pipe.factor, pipe.prompt_embedding.device.type
        (865910724, 8, 'meta')
    """
    torchvision_importable()
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel

    with torch.device(device):
        unet, vae = UNet2DConditionModel(**UNET), AutoencoderKL(**VAE)
        embedding = torch.randn(1, TOKENS, UNET["cross_attention_dim"])
    return OneStepSR(unet, vae, DDPMScheduler(**SCHEDULER), embedding, timestep=999, upscale=4, name="sd21")


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
        unet, vae = part(UNet2DConditionModel, folder / "unet"), part(AutoencoderKL, folder / "vae")
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
