"""OSEDiff: SD2.1-base plus the LoRA that makes it a one-step super-resolution model.

The file (`osediff.pkl`) is a dictionary of ranks, lists of layers and tensors.  PassionSR's copy (`osediff.ckpt`) has
other names for two of them and lists a VAE decoder that nobody uses.  The UNet has three adapters, for its way down,
its way up and the rest, the VAE one in its encoder; and `conv_in` of the UNet is not only adapted but replaced.
"""

from __future__ import annotations

import warnings
from pathlib import Path

from torch import nn

from ..pipeline.lora import ALPHA, LoRA, require_complete
from ..util import checkpoint

UNUSED = "default_decoder"  # an adapter of the VAE in PassionSR's copy
ADAPTERS = ("encoder", "decoder", "others")  # of the UNet


def read_lora(path: str | Path) -> tuple[LoRA, LoRA]:
    """The LoRA of UNet and VAE out of OSEDiff's or PassionSR's file.

    Raises:
        ValueError: the file holds code, or one of its entries or tensors is missing, unknown, not finite or of another
            kind; the message names it.
    """
    content = checkpoint.read_checkpoint(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not OSEDiff's file: it holds a {type(content).__name__}, not a dictionary.")
    return lora_of(content, str(path))


def lora_of(content: dict, what: str = "The dictionary") -> tuple[LoRA, LoRA]:
    """`read_lora` for a dictionary that is open already."""
    rest = dict(content)

    def take(kind: type, *names: str):
        for name in names:
            if isinstance(rest.get(name), kind):
                return rest.pop(name)
        raise ValueError(f"{what} is not OSEDiff's: it has no {' or '.join(names)} ({kind.__name__}).")

    def layers(name: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(map(str, take(list, name))))  # the public lists have repetitions

    unet = {f"default_{adapter}": layers(f"unet_lora_{adapter}_modules") for adapter in ADAPTERS}
    vae = {"default_encoder": layers("vae_lora_encoder_modules")}
    rest.pop("vae_lora_decoder_modules", None)
    tensors = take(dict, "state_dict_unet", "unet_state_dict"), take(dict, "state_dict_vae", "vae_state_dict")
    used = {key: tensor for key, tensor in tensors[1].items() if f".{UNUSED}." not in key}
    found = LoRA(take(int, "rank_unet"), unet, tensors[0]), LoRA(take(int, "rank_vae"), vae, used)
    if rest:
        raise ValueError(f"{what} has an entry {min(map(str, rest))!r} that OSEDiff's file does not have.")
    require_complete(found[0], f"{what}, unet", {"conv_in.base_layer.weight", "conv_in.base_layer.bias"})
    require_complete(found[1], f"{what}, vae", set())
    return found


def attach(network: nn.Module, lora: LoRA) -> None:
    """Puts the adapters beside the weights through peft, unmerged, for those who go on training or switch them off.

    The network then has peft's layers: quantizing and saving want the merged model.

    Raises:
        ValueError: peft is not installed, or what it made does not take the checkpoint's tensors.
    """
    try:
        from peft import LoraConfig
    except ImportError:
        raise ValueError("Keeping LoRA unmerged needs peft: pip install peft (merging does not).") from None
    for adapter, layers in lora.modules.items():
        config = LoraConfig(r=lora.rank, lora_alpha=ALPHA, target_modules=list(layers), init_lora_weights=False)
        with warnings.catch_warnings(action="ignore"):  # of having more than one adapter, which is meant
            network.add_adapter(config, adapter_name=adapter)
    network.set_adapters(list(lora.modules))
    left = network.load_state_dict(lora.tensors, strict=False)
    lost = left.unexpected_keys + [key for key in left.missing_keys if ".lora_" in key]
    if lost:
        raise ValueError(f"peft and the checkpoint disagree about {lost[0]}.")
    network.eval().requires_grad_(False)
