"""The architecture of PassionSR-FP at full size, as data: Stable Diffusion 2.1-base's UNet, VAE and noise schedule.

Nothing is downloaded and no weight is read: it is for counting (`cost`), and for programs that bring their own weights.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import torch

from ..pipeline.configs import refuse_unknown
from ..pipeline.onestep import EMBEDDING, OneStepSR
from ..pipeline.timesteps import split_timestep
from ..util.compat import torchvision_importable
from ..util.files import read_json

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


def architecture(model: str | Path) -> OneStepSR:
    """The pipeline of "sd21", "osediff", "tiny" or a model folder on the meta device: shapes only, for counting.

    Of a folder only `unet/config.json`, `vae/config.json` and the shape of the prompt embedding are read; a variant at
    another timestep has the same.

    Raises:
        ValueError: there is no such folder, or one of these is missing, damaged or not supported.

    Example:
        >>> architecture("tiny").factor
        4
    """
    if str(model) in ("sd21", "osediff"):
        return sd21()
    torchvision_importable()
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from safetensors import safe_open

    model, _ = split_timestep(model)
    folder = Path(str(resources.files("passionsr_lab"))) / "tiny" if str(model) == "tiny" else Path(model)
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder}; give a model folder, 'sd21' or 'tiny'.")
    unet, vae = read_json(folder / "unet" / "config.json"), read_json(folder / "vae" / "config.json")
    refuse_unknown(SCHEDULER, vae, unet, folder)
    try:
        with torch.device("meta"):
            networks = UNet2DConditionModel.from_config(unet), AutoencoderKL.from_config(vae)
        with safe_open(folder / EMBEDDING, "pt") as file:
            shape = file.get_slice("prompt_embedding").get_shape()
    except Exception as error:  # diffusers and safetensors raise their own kinds, some in many lines
        raise ValueError(f"{folder} is not a one-step SR model: {str(error).splitlines()[0]}") from error
    return OneStepSR(*networks, DDPMScheduler(**SCHEDULER), torch.empty(shape, device="meta"), name=folder.name)
