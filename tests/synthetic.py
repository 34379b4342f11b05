"""Synthetic checkpoints with the exact names of the public files, at any width: SD2.1's single file and OSEDiff's."""

from itertools import chain


def _both(*names):
    return [f"{n}.{kind}" for n in names for kind in ("weight", "bias")]


def _res(block, skip, vae=False):
    if vae:
        return _both(*(f"{block}.{n}" for n in ("norm1", "conv1", "norm2", "conv2") + ("nin_shortcut",) * skip))
    names = ("in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3") + ("skip_connection",) * skip
    return _both(*(f"{block}.{n}" for n in names))


def _transformer(block):
    inner = f"{block}.transformer_blocks.0"
    names = [f"{inner}.{a}.{p}.weight" for a in ("attn1", "attn2") for p in ("to_q", "to_k", "to_v")]
    names += _both(*(f"{inner}.{a}.to_out.0" for a in ("attn1", "attn2")))
    names += _both(*(f"{inner}.{n}" for n in ("norm1", "norm2", "norm3", "ff.net.0.proj", "ff.net.2")))
    return names + _both(*(f"{block}.{n}" for n in ("norm", "proj_in", "proj_out")))


def unet_keys():
    """The 686 tensors of SD2.1's UNet in the original code, counted out block by block."""
    keys = _both("input_blocks.0.0", "time_embed.0", "time_embed.2", "out.0", "out.2")
    for n in range(1, 12):
        level, place = divmod(n - 1, 3)
        if place == 2:
            keys += _both(f"input_blocks.{n}.0.op")
            continue
        keys += _res(f"input_blocks.{n}.0", skip=place == 0 and level in (1, 2))
        keys += _transformer(f"input_blocks.{n}.1") if level < 3 else []
    keys += _res("middle_block.0", False) + _transformer("middle_block.1") + _res("middle_block.2", False)
    for n in range(12):
        level, place = divmod(n, 3)
        keys += _res(f"output_blocks.{n}.0", skip=True)
        keys += _transformer(f"output_blocks.{n}.1") if level > 0 else []
        keys += _both(f"output_blocks.{n}.{1 if level == 0 else 2}.conv") if place == 2 and level < 3 else []
    return keys


def vae_keys():
    """The 248 tensors of its VAE."""
    keys = _both("quant_conv", "post_quant_conv")
    for side in ("encoder", "decoder"):
        keys += _both(*(f"{side}.{n}" for n in ("conv_in", "conv_out", "norm_out")))
        keys += _res(f"{side}.mid.block_1", False, True) + _res(f"{side}.mid.block_2", False, True)
        keys += _both(*(f"{side}.mid.attn_1.{n}" for n in ("norm", "q", "k", "v", "proj_out")))
    for level in range(4):
        down = (_res(f"encoder.down.{level}.block.{j}", j == 0 and level in (1, 2), True) for j in range(2))
        up = (_res(f"decoder.up.{level}.block.{j}", j == 0 and level in (0, 1), True) for j in range(3))
        keys += chain(*down, *up)
        keys += _both(f"encoder.down.{level}.downsample.conv") if level < 3 else []
        keys += _both(f"decoder.up.{level}.upsample.conv") if level > 0 else []
    return keys
