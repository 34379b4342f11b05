"""Names: the original Stable Diffusion ("ldm") names of SD2.1's UNet and VAE, and diffusers' names of the same things.

A pure function of names: no weight is read.  It covers modules and tensors, with or without the prefix of a
whole-model file, so that single-file checkpoints and PassionSR's released tensors are read by the same table.
"""

from __future__ import annotations

from typing import Iterator, Mapping

PREFIXES = {"unet": "model.diffusion_model.", "vae": "first_stage_model."}
LEVELS, LAYERS = 4, 2  # of both UNet and VAE; the ways up have one layer more per level


def _unet() -> Iterator[tuple[str, str]]:
    """The UNet's blocks, (ldm, diffusers): ldm numbers them through, one more per level for the change of size."""
    yield from (("input_blocks.0.0", "conv_in"), ("out.0", "conv_norm_out"), ("out.2", "conv_out"))
    yield from (("time_embed.0", "time_embedding.linear_1"), ("time_embed.2", "time_embedding.linear_2"))
    yield from (("middle_block.0", "mid_block.resnets.0"), ("middle_block.2", "mid_block.resnets.1"))
    yield "middle_block.1", "mid_block.attentions.0"
    for level in range(LEVELS):
        first, attends_down, attends_up = (LAYERS + 1) * level, level < LEVELS - 1, level > 0
        for layer in range(LAYERS):
            yield f"input_blocks.{first + layer + 1}.0", f"down_blocks.{level}.resnets.{layer}"
            if attends_down:
                yield f"input_blocks.{first + layer + 1}.1", f"down_blocks.{level}.attentions.{layer}"
        for layer in range(LAYERS + 1):
            yield f"output_blocks.{first + layer}.0", f"up_blocks.{level}.resnets.{layer}"
            if attends_up:
                yield f"output_blocks.{first + layer}.1", f"up_blocks.{level}.attentions.{layer}"
        if level < LEVELS - 1:
            yield f"input_blocks.{first + LAYERS + 1}.0.op", f"down_blocks.{level}.downsamplers.0.conv"
            yield f"output_blocks.{first + LAYERS}.{1 + attends_up}.conv", f"up_blocks.{level}.upsamplers.0.conv"


def _vae() -> Iterator[tuple[str, str]]:
    """The VAE's blocks, (ldm, diffusers): ldm numbers the decoder's levels from the image's side."""
    yield from (("quant_conv", "quant_conv"), ("post_quant_conv", "post_quant_conv"))
    for side in ("encoder", "decoder"):
        yield from ((f"{side}.{name}", f"{side}.{name}") for name in ("conv_in", "conv_out"))
        yield f"{side}.norm_out", f"{side}.conv_norm_out"
        yield f"{side}.mid.attn_1", f"{side}.mid_block.attentions.0"
        yield from ((f"{side}.mid.block_{i + 1}", f"{side}.mid_block.resnets.{i}") for i in range(2))
    for i in range(LEVELS):
        down, up = f"encoder.down_blocks.{i}", f"decoder.up_blocks.{LEVELS - 1 - i}"
        yield from ((f"encoder.down.{i}.block.{j}", f"{down}.resnets.{j}") for j in range(LAYERS))
        yield from ((f"decoder.up.{i}.block.{j}", f"{up}.resnets.{j}") for j in range(LAYERS + 1))
        if i < LEVELS - 1:
            yield f"encoder.down.{i}.downsample.conv", f"{down}.downsamplers.0.conv"
        if i > 0:
            yield f"decoder.up.{i}.upsample.conv", f"{up}.upsamplers.0.conv"


def _layers() -> Iterator[tuple[str, str]]:
    """Blocks, and the layers within them whose names differ."""
    resnet = {"in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj", "out_layers.0": "norm2",
              "out_layers.3": "conv2", "skip_connection": "conv_shortcut"}  # fmt: skip
    attention = {"q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0", "norm": "group_norm"}
    for blocks, tables in (
        (_unet(), {"resnets": resnet, "attentions": {}}),
        (_vae(), {"resnets": {"nin_shortcut": "conv_shortcut"}, "attentions": attention}),
    ):
        for old, new in blocks:
            yield old, new
            kind = new.split(".")[-2] if "." in new else ""
            yield from ((f"{old}.{a}", f"{new}.{b}") for a, b in tables.get(kind, {}).items())


TO_DIFFUSERS = dict(_layers())
TO_LDM = {new: old for old, new in TO_DIFFUSERS.items()}


def diffusers_name(ldm_name: str) -> str:
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
    for prefix in PREFIXES.values():
        ldm_name = ldm_name.removeprefix(prefix)
    return _translated(ldm_name, TO_DIFFUSERS, "an ldm")


def ldm_name(diffusers_name: str) -> str:
    """The inverse of `diffusers_name`.

    Raises:
        ValueError: the name belongs to neither network.

    Example:
        >>> ldm_name("decoder.up_blocks.0.resnets.0.conv_shortcut.weight")
        'decoder.up.3.block.0.nin_shortcut.weight'
    """
    return _translated(diffusers_name, TO_LDM, "a diffusers")


def _translated(name: str, table: Mapping[str, str], kind: str) -> str:
    """The name with its longest beginning that is in the table replaced."""
    words = name.split(".")
    for length in range(len(words), 0, -1):
        if (head := ".".join(words[:length])) in table:
            return table[head] + name[len(head) :]
    raise ValueError(f"{name!r} is not {kind} name of SD2.1's UNet or VAE.")
