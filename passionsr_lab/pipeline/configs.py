"""diffusers' configurations: what they may say that the one-step pipeline honours.  All else is refused by name."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from functools import cache

from torch import nn

from ..util.compat import torchvision_importable

# Field -> the one value that it may have, because the pipeline does not read it.
FIXED = {
    "scheduler": {
        "prediction_type": "epsilon", "rescale_betas_zero_snr": False, "thresholding": False, "use_flow_sigmas": False
    },
    "vae": {"shift_factor": None, "latents_mean": None, "latents_std": None},
    "unet": {
        "class_embed_type": None, "num_class_embeds": None, "addition_embed_type": None, "encoder_hid_dim": None,
        "encoder_hid_dim_type": None, "time_cond_proj_dim": None, "attention_type": "default",
        "dual_cross_attention": False,
    },
}  # fmt: skip
CLASSES = {"vae": "AutoencoderKL", "unet": "UNet2DConditionModel"}
BETAS = ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps")  # what Eq. 9's schedule is made of

# Field -> the open interval in which it makes sense; a count is an integer.
NUMBERS = {
    "beta_start": (0, 1), "beta_end": (0, 1), "trained_betas": (0, 1), "norm_eps": (0, 1), "scaling_factor": (0, 1e4),
    "layer_norm_eps": (0, 1),
}  # fmt: skip
COUNTS = {
    "num_train_timesteps": 100_000, "transformer_layers_per_block": 64, "layers_per_block": 64,
    "reverse_transformer_layers_per_block": 64, "in_channels": 4096,
    "out_channels": 4096, "latent_channels": 4096, "norm_num_groups": 4096, "block_out_channels": 16_384,
    "attention_head_dim": 16_384, "num_attention_heads": 16_384, "cross_attention_dim": 65_536,
    "time_embedding_dim": 65_536, "conv_in_kernel": 31, "conv_out_kernel": 31,
    # of the prompt branch
    "num_hidden_layers": 64, "hidden_size": 16_384, "intermediate_size": 65_536, "vocab_size": 1_000_000,
    "max_position_embeddings": 65_536, "width": 4096,
}  # fmt: skip
LEVELS = 8  # of a network, and values in a list that has one for each


def refuse_unknown(scheduler_config: Mapping, vae_config: Mapping, unet_config: Mapping, where: object) -> None:
    """Raises for what diffusers' configurations say and the one-step pipeline does not do; before anything is built.

    Of a scheduler only the noise levels (`alphas_cumprod`) are used; how a sampler steps through them means nothing to
    one step and is not looked at.

    Args:
        scheduler_config, vae_config, unet_config: as they are in the files; fields left out have diffusers' defaults.
        where: what messages begin with, the model's folder.

    Raises:
        ValueError: another class or kind of prediction, a condition or latent shift that is not used, an unknown
            field, a number that is not finite or makes no sense; the message names the field.
    """
    for name, config in (("scheduler", scheduler_config), ("vae", vae_config), ("unet", unet_config)):
        what = f"{where}, {name} configuration"
        if not isinstance(config, Mapping):
            raise ValueError(f"{what}: it is not a JSON object.")
        _refuse_class(name, config, what)
        for field, only in FIXED[name].items():
            if config.get(field, only) != only:
                raise ValueError(f"{what}: {field} is {config[field]!r}; only {only!r} is supported.")
        refuse_numbers(config, what)
    defaults = fields(CLASSES["vae"]), fields(CLASSES["unet"])
    latent = vae_config.get("latent_channels", defaults[0]["latent_channels"])
    for field in ("in_channels", "out_channels"):
        if (found := unet_config.get(field, defaults[1][field])) != latent:
            raise ValueError(f"{where}: the UNet's {field} are {found}, but the VAE's latent has {latent} channels.")


def refuse_unsupported(scheduler: object, vae: nn.Module, unet: nn.Module, where: object) -> None:
    """`refuse_unknown` for parts that are built already, compiled or not; errors as there."""
    parts = [getattr(part, "_orig_mod", part) for part in (scheduler, vae, unet)]
    for part in parts:
        if not isinstance(getattr(part, "config", None), Mapping):
            raise ValueError(f"{where}: a {type(part).__name__} is none of diffusers' models or schedulers.")
    refuse_unknown(*({**part.config, "_class_name": _diffusers_class(part)} for part in parts), where)


def _diffusers_class(part: object) -> str:
    """The name of diffusers' class that this one is or inherits from; without any, its own."""
    names = [kind.__name__ for kind in type(part).__mro__ if kind.__module__.startswith("diffusers.")]
    return names[0] if names else type(part).__name__


def refuse_non_finite(model: nn.Module, where: object) -> None:
    """`ValueError` that names the first parameter or buffer with a NaN or an infinity in it."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if not tensor.isfinite().all():
            raise ValueError(f"{where} has values in {name} that are not finite; the file is damaged.")


def _refuse_class(name: str, config: Mapping, what: str) -> None:
    found = config.get("_class_name", CLASSES.get(name, "DDPMScheduler"))
    known = fields(found) if found == CLASSES.get(name, found) else {}
    if name == "scheduler":
        if "beta_start" not in known or "snr_shift_scale" in known:
            raise ValueError(f"{what}: {found} is not a scheduler with DDPM's noise levels.")
        if missing := [field for field in BETAS if field not in config]:
            raise ValueError(f"{what}: it does not say {missing[0]}.")
    elif not known:
        raise ValueError(f"{what}: {found} is not supported; only {CLASSES[name]} is.")
    elif left := [
        field for field, value in config.items() if field not in known and not field.startswith("_") and value
    ]:
        raise ValueError(f"{what}: {found} has no field {left[0]!r}.")


@cache
def fields(name: object) -> dict:
    """Field -> default of one of diffusers' configurable classes, or nothing where it has no such class."""
    torchvision_importable()
    import diffusers

    kind = getattr(diffusers, str(name), None)
    parameters = inspect.signature(kind.__init__).parameters if inspect.isclass(kind) else {}
    return {field: parameter.default for field, parameter in parameters.items()}


def refuse_numbers(config: Mapping, what: object) -> None:
    """`ValueError` that names a field whose number makes no sense, or that has more values than a network levels."""
    for field, value in config.items():
        low, high = NUMBERS.get(field, (0, COUNTS[field] + 1) if field in COUNTS else (-math.inf, math.inf))
        for leaf in _leaves(value):
            right = isinstance(leaf, int if field in COUNTS else (int, float)) and not isinstance(leaf, bool)
            if (field in NUMBERS or field in COUNTS or isinstance(leaf, float)) and not (right and low < leaf < high):
                raise ValueError(f"{what}: {field} is {leaf!r}, which makes no sense.")
        if isinstance(value, (list, tuple)) and len(value) > LEVELS and field[:1] != "_" and field != "trained_betas":
            raise ValueError(f"{what}: {field} has {len(value):,} values; {LEVELS} are the most, one per level.")


def _leaves(value: object) -> Iterator[object]:
    """The values in nested lists; nothing for null."""
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _leaves(item)
    elif value is not None:
        yield value
