"""What a full-precision model is, as one hash: everything that decides its output."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..util.names import uncompiled_name

if TYPE_CHECKING:
    from .onestep import OneStepSR

SHAPES = "shapes:"  # what the fingerprint of a model without weights begins with


def fingerprint(pipe: OneStepSR, values: bool = True) -> str:
    """A hash of all weights of UNet and VAE, their configurations, the schedule, the timestep, the prompt's embedding.

    Without `values`, and for a model on the "meta" device, of names and shapes of the weights only.
    """
    digest, values = hashlib.sha256(), values and not pipe.prompt_embedding.is_meta
    for name, tensor in sorted(named_weights(pipe).items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        if values:
            digest.update(_bytes(tensor))
    if not values:
        return SHAPES + digest.hexdigest()
    digest.update(_bytes(pipe.prompt_embedding) + _bytes(pipe.scheduler.alphas_cumprod))
    if isinstance(pipe.prompt, nn.Module):
        for name, tensor in sorted(pipe.prompt.state_dict().items()):
            digest.update(name.encode() + _bytes(tensor))
    settings = {"timestep": pipe.timestep, "upscale": pipe.upscale}
    settings |= {part: _settings(getattr(pipe, part).config) for part in ("unet", "vae")}
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def named_weights(pipe: OneStepSR) -> dict[str, Tensor]:
    """Every tensor of UNet and VAE by its name, compiled or not."""
    found = {f"{part}.{k}": v for part in ("unet", "vae") for k, v in getattr(pipe, part).state_dict().items()}
    return {uncompiled_name(name): tensor for name, tensor in found.items()}


def _settings(config) -> dict:
    """A diffusers configuration without what does not reach the output: versions and paths."""
    return {key: value for key, value in dict(config).items() if not key.startswith("_") and key != "sample_size"}


def _bytes(tensor: Tensor) -> bytes:
    """The dtype and the values; half and bfloat16 as the float32 that holds them exactly."""
    tensor = tensor.detach().cpu()
    plain = tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
    return str(tensor.dtype).encode() + plain.contiguous().numpy().tobytes()
