"""A one-step SR model as a folder in diffusers' layout: loading, strictly; `OneStepSR.save` writes it."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from torch import Tensor

from ..util import checkpoint
from ..util.compat import torchvision_importable
from ..util.files import read_json
from .configs import refuse_unknown
from .onestep import CONFIG, EMBEDDING, FORMAT, OneStepSR, require_settings
from .reading import first_sentence, network, owned, silent
from .timesteps import adapt, split_timestep

CONFIGS = ("scheduler/scheduler_config.json", "vae/config.json", "unet/config.json")


def load_pipeline(folder_or_id: str | Path, prompt: bool = False) -> OneStepSR:
    """Loads a one-step SR pipeline from a folder or a hub id, in float32 on the CPU.

    The layout: `unet/`, `vae/`, `scheduler/` as `save_pretrained` writes them, `prompt_embedding.safetensors` with one
    tensor `prompt_embedding` (1, T, D), and `passionsr.json` with `timestep` and `upscale`.

    Args:
        folder_or_id: a local folder, the name "tiny", or the id of a hub repository in this layout; with "@249" after
            it, its variant at that timestep (see `timesteps`).
        prompt: also load the prompt branch (`tagger/`, `tokenizer/`, `text_encoder/`); without it the constant
            embedding conditions the UNet (PassionSR-FP).

    Raises:
        ValueError: something is missing, damaged, not finite or not understood; the message names the file.

    Example:
        >>> import tempfile, passionsr_lab as lab
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     pipe = lab.load(lab.tiny().save(folder))
        >>> pipe.timestep
        999
    """
    torchvision_importable()
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel

    folder_or_id, other = split_timestep(folder_or_id)
    folder = _locate(folder_or_id)
    timestep, upscale = _settings(folder / CONFIG)
    refuse_unknown(*(read_json(_existing(folder / file)) for file in CONFIGS), folder)
    try:
        with silent():  # of fields that other samplers have
            scheduler = DDPMScheduler.from_pretrained(folder / "scheduler")
        require_settings(timestep, upscale, scheduler.alphas_cumprod, f"{folder / CONFIG}: ")
        unet = network(UNet2DConditionModel, folder / "unet")
        vae = network(AutoencoderKL, folder / "vae")
    except Exception as error:  # every library on this path raises its own kind, some in many lines
        raise ValueError(f"{folder} is not a complete one-step SR model: {first_sentence(error)}.") from error
    embedding = _embedding(folder / EMBEDDING, unet.config.cross_attention_dim)
    branch = None
    if prompt:
        from .prompt import PromptBranch

        branch = PromptBranch.load(folder)
        width = branch.text_encoder.config.hidden_size
        if width != embedding.shape[-1]:
            raise ValueError(
                f"{folder / 'text_encoder'} makes embeddings of {width}, but the UNet needs {embedding.shape[-1]}."
            )
    name = folder.name if Path(folder_or_id).is_dir() else str(folder_or_id)
    pipe = owned(OneStepSR(unet, vae, scheduler, embedding, timestep, upscale, name=name))
    if other is not None:
        adapt(pipe, folder, other)
        pipe.name = f"{name}@{other}"
    pipe.prompt = None if branch is None else owned(branch)
    return pipe


def _settings(file: Path) -> tuple[int, int]:
    """Timestep and upscaling; `require_settings` says whether they make sense."""
    config = read_json(_existing(file))
    if config.get("format", FORMAT) != FORMAT:
        raise ValueError(f"{file} is of format {config['format']!r}, not {FORMAT}; save the model again.")
    wrong = config.keys() - {"format"} ^ {"timestep", "upscale"}
    if wrong:
        raise ValueError(f'{file} must be like {{"timestep": 999, "upscale": 4}}; {min(wrong)} is missing or unknown.')
    return config["timestep"], config["upscale"]


def _embedding(file: Path, width: int) -> Tensor:
    tensors = checkpoint.read_checkpoint(_existing(file))
    embedding = tensors.get("prompt_embedding")
    if len(tensors) != 1 or embedding is None or embedding.ndim != 3 or embedding.shape[-1] != width:
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
        raise ValueError(f"{file} holds {shapes}, but the UNet needs one prompt_embedding (1, T, {width}).")
    if not embedding.isfinite().all():
        raise ValueError(f"{file} has values in prompt_embedding that are not finite; the file is damaged.")
    return embedding


def _existing(file: Path) -> Path:
    if not file.is_file():
        raise ValueError(f"{file.parent} is not a complete part of a one-step SR model: there is no {file}.")
    return file


def tiny(prompt: bool = False, timestep: int = 999) -> OneStepSR:
    """The small model that ships with the package (see its model card in `passionsr_lab/tiny/README.md`).

    Args:
        prompt: with its prompt branch.
        timestep: 999, or a variant at 499, 249 or 1.

    Example:
        >>> import passionsr_lab as lab
        >>> lab.tiny().factor, lab.tiny(timestep=249).name
        (4, 'tiny@249')
    """
    return load_pipeline("tiny" if timestep == 999 else f"tiny@{timestep}", prompt)


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
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{folder_or_id} is neither a folder nor a model the hub can give now: {reason}") from error
