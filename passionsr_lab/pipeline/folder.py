"""A one-step SR model as a folder in diffusers' layout: loading, strictly; `OneStepSR.save` writes it."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from ..util.compat import torchvision_importable
from .onestep import CONFIG, EMBEDDING, OneStepSR


def load(folder_or_id: str | Path, prompt: bool = False) -> OneStepSR:
    """Loads a one-step SR pipeline from a folder or a hub id, in float32 on the CPU.

    The layout: `unet/`, `vae/`, `scheduler/` as `save_pretrained` writes them, `prompt_embedding.safetensors` with one
    tensor `prompt_embedding` (1, T, D), and `passionsr.json` with `timestep` and `upscale`.

    Args:
        folder_or_id: a local folder, the name "tiny", or the id of a hub repository in this layout.
        prompt: also load the prompt branch (`tagger/`, `tokenizer/`, `text_encoder/`); without it the constant
            embedding conditions the UNet (PassionSR-FP).

    Raises:
        ValueError: a part is missing or damaged; the message names it.

    Example:
        >>> import tempfile, passionsr_lab as lab
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     pipe = lab.load(lab.tiny().save(folder))
        >>> pipe.timestep
        999
    """
    torchvision_importable()
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel

    folder = _locate(folder_or_id)
    config = _read_config(folder)
    try:
        unet = part(UNet2DConditionModel, folder / "unet")
        vae = part(AutoencoderKL, folder / "vae")
        scheduler = DDPMScheduler.from_pretrained(_existing(folder / "scheduler" / "scheduler_config.json").parent)
        embedding = load_file(_existing(folder / EMBEDDING))["prompt_embedding"]
    except Exception as error:  # every library on this path raises its own kind, some in many lines
        raise ValueError(f"{folder} is not a complete one-step SR model: {str(error).splitlines()[0]}") from error
    width = unet.config.cross_attention_dim
    if embedding.ndim != 3 or embedding.shape[-1] != width:
        raise ValueError(f"{folder / EMBEDDING} is {tuple(embedding.shape)}, but the UNet needs (1, T, {width}).")
    if config["timestep"] >= len(scheduler.alphas_cumprod):
        raise ValueError(f"{folder / CONFIG}: the scheduler has {len(scheduler.alphas_cumprod)} timesteps from 0 on.")
    branch = None
    if prompt:
        from .prompt import PromptBranch

        branch = PromptBranch.load(folder)
    name = folder.name if Path(folder_or_id).is_dir() else str(folder_or_id)
    return owned(OneStepSR(unet, vae, scheduler, embedding, config["timestep"], config["upscale"], branch, name))


def owned(pipe: OneStepSR) -> OneStepSR:
    """Copies the weights out of the files they are mapped from: where they lay there would change the last bits."""
    for tensor in (*pipe.parameters(), *pipe.buffers()):
        tensor.data = tensor.data.clone()
    return pipe


def part(kind: type, folder: Path) -> nn.Module:
    """A diffusers model; a weight that the files lack would be random, one too many lost: both are errors."""
    network, report = kind.from_pretrained(
        _existing(folder / "config.json").parent, torch_dtype=torch.float32, output_loading_info=True
    )
    if report["missing_keys"]:
        raise ValueError(f"{folder} has no weights for {min(report['missing_keys'])}.")
    if report["unexpected_keys"]:
        raise ValueError(
            f"{folder} has weights {min(report['unexpected_keys'])}, which its config.json does not ask for."
        )
    return network


def _existing(file: Path) -> Path:
    if not file.is_file():
        raise ValueError(f"there is no {file}.")
    return file


def tiny(prompt: bool = False) -> OneStepSR:
    """The small model that ships with the package (see its model card in `passionsr_lab/tiny/README.md`).

    Example:
        >>> import passionsr_lab as lab
        >>> lab.tiny().factor
        4
    """
    return load("tiny", prompt)


def _locate(folder_or_id: str | Path) -> Path:
    if str(folder_or_id) == "tiny":
        return Path(str(resources.files("passionsr_lab"))) / "tiny"
    if Path(folder_or_id).is_dir():
        return Path(folder_or_id)
    if str(folder_or_id).startswith((".", "/", "~")) or str(folder_or_id).count("/") != 1:
        raise ValueError(f"There is no folder {folder_or_id}; give a model folder, 'tiny', or a hub id 'owner/name'.")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(folder_or_id)))
    except Exception as error:
        raise ValueError(f"{folder_or_id} is neither a folder nor a model the hub can give now: {error}") from error


def _read_config(folder: Path) -> dict:
    try:
        config = json.loads((folder / CONFIG).read_text())
        timestep, upscale = int(config["timestep"]), int(config["upscale"])
        if timestep < 0 or upscale < 1:
            raise ValueError(f"timestep {timestep}, upscale {upscale}")
        return {"timestep": timestep, "upscale": upscale}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f'{folder / CONFIG} must be a file like {{"timestep": 999, "upscale": 4}} ({error!r}).'
        ) from None
