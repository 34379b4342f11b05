"""A small model with SD2.1's blocks, and released calibration files with the exact names of PassionSR's."""

from collections import OrderedDict

import torch
from synthetic import unet_keys, vae_keys

from passionsr_lab.fullsize.names import diffusers_name
from passionsr_lab.fullsize.sd21 import SCHEDULER, UNET, VAE
from passionsr_lab.pipeline.onestep import OneStepSR
from passionsr_lab.util.compat import torchvision_importable

KEYS = {"unet": unet_keys(), "vae": vae_keys()}
TOKENS = 5
_LATENT = {1: 8, 2: 8, 4: 4, 5: 4, 7: 2, 8: 2}, {3: 2, 4: 2, 5: 2, 6: 4, 7: 4, 8: 4, 9: 8, 10: 8, 11: 8}


def small_sd21(seed=0):
    """SD2.1's blocks and names with 8 to 24 channels, random weights; its latents are 8 times smaller than images."""
    torchvision_importable()
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel

    torch.manual_seed(seed)
    widths = {"block_out_channels": (8, 16, 24, 24), "norm_num_groups": 4}
    unet = UNet2DConditionModel(**UNET | widths | {"cross_attention_dim": 12, "attention_head_dim": (1, 2, 3, 3)})
    vae = AutoencoderKL(**VAE | widths)
    with torch.no_grad():
        for norm in (m for m in [*unet.modules(), *vae.modules()] if "Norm" in type(m).__name__):
            norm.weight.copy_(torch.randn_like(norm.weight).mul(0.3).exp())
            norm.bias.normal_(0, 0.1)
        unet.conv_out.weight.mul_(0.05)
    return OneStepSR(unet, vae, DDPMScheduler(**SCHEDULER), torch.randn(1, TOKENS, 12), 999, 4, None, "small-sd21")


def release(pipe, part, split=False, prefix="model.model.", seed=0, latent=8, tokens=TOKENS):
    """The tensors of a released file for a UNet ("unet") or VAE ("vae"), with plausible random values."""
    torch.manual_seed(seed)
    weights, file = getattr(pipe, part).state_dict(), OrderedDict()
    for key in KEYS[part]:
        module, _, kind = key.rpartition(".")
        value = weights[diffusers_name(key)]
        if (
            value.ndim == 1
            and f"{module}.weight" in KEYS[part]
            and weights[diffusers_name(f"{module}.weight")].ndim == 1
        ):
            file[key] = value.clone() if not value.is_meta else torch.rand(value.shape)
        elif kind == "weight":
            conv = value.ndim == 4 or part == "vae"
            file |= _layer(module, value, conv, f"{module}.bias" in KEYS[part], 1 + split)
        if part == "unet" and key.endswith(("attn1.to_out.0.weight", "attn2.to_out.0.weight")):
            attention = module.removesuffix(".to_out.0")
            file |= _attention(attention, pipe.unet.config.attention_head_dim, value, latent, tokens)
    return OrderedDict((prefix + key, value) for key, value in file.items())


def _layer(module, weight, conv, bias, parts):
    out, channels = weight.shape[:2]
    axes = (1, 1) if conv else ()
    file = {f"{module}.scale_factor": torch.empty(1, channels, *axes).uniform_(0.5, 4)}
    file[f"{module}.offset"] = torch.empty(1, channels, *axes).uniform_(-0.3, 0.3)
    ranges = {f"{kind}_quantizer_{i}": shape for i in range(parts) for kind, shape in (("weight", (out, 1, *axes)),
                                                                                       ("act", ()))}  # fmt: skip
    for name, shape in (ranges | ({"bias_quantizer": ()} if bias else {})).items():
        reach = 1.0 if name.startswith("act") else 0.3
        file[f"{module}.{name}.x_min"] = -reach * torch.empty(shape).uniform_(0.5, 1.5)
        file[f"{module}.{name}.x_max"] = reach * torch.empty(shape).uniform_(0.5, 2.5)
    return file


def _attention(name, heads, to_out, latent, tokens):
    block, number = name.split(".")[:2]
    tables = {"input_blocks": _LATENT[0], "output_blocks": _LATENT[1]}
    side = (tables[block][int(number)] if block in tables else 1) * latent // 8
    level = {8: 0, 4: 1, 2: 2, 1: 3}[side * 8 // latent]
    file = {f"{name}.scale_factor_qk": torch.empty(to_out.shape[1] // heads[level]).uniform_(0.5, 2)}
    file[f"{name}.scale_factor_vw"] = torch.empty(side**2 if ".attn1" in name else tokens).uniform_(0.5, 2)
    for key in "qkvw":
        file[f"{name}.act_quantizer_{key}.x_min"] = torch.tensor(0.0 if key == "w" else -2.0)
        file[f"{name}.act_quantizer_{key}.x_max"] = torch.tensor(1.5)
    return file
