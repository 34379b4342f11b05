"""Names: the original Stable Diffusion ("ldm") names of SD2.1's UNet and VAE, as diffusers calls the same things.

A pure function of names: no weight is read.  It covers modules and tensors, with or without the prefix of a
whole-model file, so that single-file checkpoints and PassionSR's released tensors are read by the same table.
"""

from __future__ import annotations

import re
from typing import Iterator

PREFIXES = {"model.diffusion_model.": "unet", "first_stage_model.": "vae", "cond_stage_model.model.": "text_encoder"}
LEVELS, LAYERS = 4, 2  # of both UNet and VAE; the decoders have one layer more per level

_END = r"(?=\.|$)"
_STEP = LAYERS + 1  # numbered ldm blocks per level


def _down(match: re.Match) -> str:
    level, layer = divmod(int(match[1]) - 1, _STEP)
    if match[2] == "0.op":
        return f"down_blocks.{level}.downsamplers.0.conv"
    return f"down_blocks.{level}.{('resnets', 'attentions')[int(match[2])]}.{layer}"


def _up(match: re.Match) -> str:
    level, layer = divmod(int(match[1]), _STEP)
    if match[2].endswith(".conv"):
        return f"up_blocks.{level}.upsamplers.0.conv"
    return f"up_blocks.{level}.{('resnets', 'attentions')[int(match[2])]}.{layer}"


_HEADS = [
    (r"input_blocks\.0\.0", "conv_in"),
    (r"time_embed\.0", "time_embedding.linear_1"),
    (r"time_embed\.2", "time_embedding.linear_2"),
    (r"out\.0", "conv_norm_out"),
    (r"out\.2", "conv_out"),
    (r"input_blocks\.([1-9]|10|11)\.(0\.op|0|1)", _down),
    (r"output_blocks\.(\d|10|11)\.([12]\.conv|0|1)", _up),
    (r"middle_block\.1", "mid_block.attentions.0"),
    (r"middle_block\.([02])", lambda m: f"mid_block.resnets.{int(m[1]) // 2}"),
    (r"(encoder|decoder)\.(conv_in|conv_out)", r"\1.\2"),
    (r"(encoder|decoder)\.norm_out", r"\1.conv_norm_out"),
    (r"(encoder|decoder)\.mid\.attn_1", r"\1.mid_block.attentions.0"),
    (r"(encoder|decoder)\.mid\.block_([12])", lambda m: f"{m[1]}.mid_block.resnets.{int(m[2]) - 1}"),
    (r"encoder\.down\.([0-3])\.block\.(\d)", r"encoder.down_blocks.\1.resnets.\2"),
    (r"encoder\.down\.([0-3])\.downsample\.conv", r"encoder.down_blocks.\1.downsamplers.0.conv"),
    (r"decoder\.up\.([0-3])\.block\.(\d)", lambda m: f"decoder.up_blocks.{LEVELS - 1 - int(m[1])}.resnets.{m[2]}"),
    (
        r"decoder\.up\.([0-3])\.upsample\.conv",
        lambda m: f"decoder.up_blocks.{LEVELS - 1 - int(m[1])}.upsamplers.0.conv",
    ),
    (r"(quant_conv|post_quant_conv)", r"\1"),
]
HEADS = [(re.compile(pattern + _END), name) for pattern, name in _HEADS]
UNET_BLOCK = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "emb_layers.1": "time_emb_proj",
    "skip_connection": "conv_shortcut",
}
VAE_BLOCK = {"nin_shortcut": "conv_shortcut"}
VAE_ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0", "norm": "group_norm"}


def diffusers_name(ldm_key: str) -> str:
    """The diffusers name of an ldm module or tensor of SD2.1's UNet or VAE.

    Names are those inside the UNet or the VAE; the prefixes `model.diffusion_model.` and `first_stage_model.` are
    dropped.  What follows the module's name ("weight", a quantizer's name) stays as it is.  Names only: the VAE's
    attention is 1x1 convolutions in ldm and linear layers in diffusers, so its weights lose their last two axes.

    Raises:
        ValueError: the name belongs to neither network.

    Example:
        >>> diffusers_name("input_blocks.4.1.transformer_blocks.0.attn1.to_q.weight")
        'down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight'
        >>> diffusers_name("decoder.up.3.block.0.nin_shortcut")
        'decoder.up_blocks.0.resnets.0.conv_shortcut'
    """
    key = ldm_key
    for prefix in PREFIXES:
        key = key.removeprefix(prefix)
    for pattern, name in HEADS:
        if match := pattern.match(key):
            head = name(match) if callable(name) else match.expand(name)
            return head + _inside(head, key[match.end() :])
    raise ValueError(f"{ldm_key!r} is not an ldm name of SD2.1's UNet or VAE.")


def _inside(head: str, tail: str) -> str:
    """What stands within a block: ".in_layers.2.weight" -> ".conv1.weight"."""
    vae = head.startswith(("encoder.", "decoder."))
    if re.search(r"\.resnets\.\d+$", head):
        table = VAE_BLOCK if vae else UNET_BLOCK
    else:
        table = VAE_ATTENTION if vae and ".attentions." in head else {}
    for old, new in table.items():
        if re.match(re.escape(f".{old}") + _END, tail):
            return f".{new}{tail[len(old) + 1 :]}"
    return tail


def _ldm_heads() -> Iterator[str]:
    """Every ldm block whose diffusers name is a head too."""
    yield from ("input_blocks.0.0", "time_embed.0", "time_embed.2", "out.0", "out.2", "quant_conv", "post_quant_conv")
    yield from (f"middle_block.{i}" for i in range(3))
    for n in range(1, LEVELS * _STEP):
        yield from (f"input_blocks.{n}.0.op",) if n % _STEP == 0 else (f"input_blocks.{n}.0", f"input_blocks.{n}.1")
    for n in range(LEVELS * _STEP):
        yield from (f"output_blocks.{n}.0", f"output_blocks.{n}.1")
    yield from (f"output_blocks.{_STEP * i + LAYERS}.{2 if i else 1}.conv" for i in range(LEVELS - 1))
    for side, blocks, change in (("encoder", "down", "downsample"), ("decoder", "up", "upsample")):
        yield from (f"{side}.{name}" for name in ("conv_in", "conv_out", "norm_out"))
        yield from (f"{side}.mid.{name}" for name in ("block_1", "attn_1", "block_2"))
        yield from (f"{side}.{blocks}.{i}.block.{j}" for i in range(LEVELS) for j in range(_STEP))
        yield from (f"{side}.{blocks}.{i}.{change}.conv" for i in range(LEVELS))


def ldm_name(name: str) -> str:
    """The inverse of `diffusers_name`: the ldm name of a module or tensor of SD2.1's UNet or VAE.

    Raises:
        ValueError: the name belongs to neither network.

    Example:
        >>> ldm_name("decoder.up_blocks.0.resnets.0.conv_shortcut.weight")
        'decoder.up.3.block.0.nin_shortcut.weight'
    """
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        ours = ".".join(parts[:length])
        if ours in LDM_HEADS:
            tail = name[len(ours) :]
            tables = UNET_BLOCK | VAE_BLOCK | VAE_ATTENTION
            candidates = [f".{old}{tail[len(new) + 1 :]}" for old, new in tables.items() if tail.startswith(f".{new}")]
            found = [c for c in (tail, *candidates) if diffusers_name(LDM_HEADS[ours] + c) == name]
            return LDM_HEADS[ours] + found[-1]
    raise ValueError(f"{name!r} is not a diffusers name of SD2.1's UNet or VAE.")


LDM_HEADS = {diffusers_name(head): head for head in _ldm_heads()}
