"""Synthetic checkpoints with the exact names of the public files, at any width: SD2.1's single file and OSEDiff's."""

from itertools import chain

import torch


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


# -- OSEDiff's file ---------------------------------------------------------------------------------------------------

PATTERNS = ("to_k", "to_q", "to_v", "to_out.0", "conv", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2")


def targets(network, vae=False):
    """Adapter -> layers, by OSEDiff's rule: the weights whose name has one of the patterns, by where they are."""
    found = {"encoder": [], "decoder": [], "others": []}
    for name, _ in network.named_parameters():
        if "bias" in name or "norm" in name or not any(pattern in name for pattern in PATTERNS):
            continue
        layer = name.removesuffix(".weight")
        if vae:
            if name.startswith("encoder.") or name.startswith("quant_conv."):
                found["encoder"].append(layer)
            continue
        down, up = "down_blocks" in name or "conv_in" in name, "up_blocks" in name or "conv_out" in name
        found["encoder" if down else "decoder" if up else "others"].append(layer)
    return found


def adapters(network, layers, rank, generator, scale=0.05):
    """A (r, in, ...) and B (out, r, ...) for layers, under peft's names; OSEDiff's B starts at 0, ours does not."""
    tensors = {}
    for adapter, names in layers.items():
        for name in names:
            shape = network.get_parameter(f"{name}.weight").shape
            a, b = (rank, *shape[1:]), (shape[0], rank, *(1 for _ in shape[2:]))
            for side, size in (("A", a), ("B", b)):
                key = f"{name}.lora_{side}.default_{adapter}.weight"
                tensors[key] = scale * torch.randn(size, generator=generator)
    return tensors


def osediff_file(pipe, rank=4, passionsr=False, seed=0):
    """The dictionary in osediff.pkl for a pipeline's UNet and VAE; with `passionsr` the one in its osediff.ckpt."""
    generator = torch.Generator().manual_seed(seed)
    unet, vae = targets(pipe.unet), {"encoder": targets(pipe.vae, vae=True)["encoder"]}
    unet_tensors = adapters(pipe.unet, unet, rank, generator)
    for kind in ("weight", "bias"):
        shape = pipe.unet.get_parameter(f"conv_in.{kind}").shape
        unet_tensors[f"conv_in.base_layer.{kind}"] = 0.3 * torch.randn(shape, generator=generator)
    vae_tensors = adapters(pipe.vae, vae, rank, generator)
    content = {"rank_unet": rank, "rank_vae": rank, **{f"unet_lora_{k}_modules": v for k, v in unet.items()}}
    content["vae_lora_encoder_modules"] = vae["encoder"] + vae["encoder"][:5]  # the public list has repetitions
    if not passionsr:
        return content | {"state_dict_unet": unet_tensors, "state_dict_vae": vae_tensors}
    decoder = ["decoder.conv_in"]
    vae_tensors |= adapters(pipe.vae, {"decoder": decoder}, rank, generator)
    content["vae_lora_decoder_modules"] = decoder
    return content | {"unet_state_dict": unet_tensors, "vae_state_dict": vae_tensors}


# -- SD2.1 at small widths --------------------------------------------------------------------------------------------

SMALL = {
    "UNET": {"block_out_channels": (32, 64, 96, 96), "attention_head_dim": (1, 2, 3, 3), "cross_attention_dim": 32},
    "VAE": {"block_out_channels": (32, 64, 96, 96)},
    "ENCODER": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4},
}


def shrink(patch):
    """Makes SD2.1 small: every name stays, widths and the text encoder's depth do not."""
    from passionsr_lab.fullsize import sd21, text

    for module, name in ((sd21, "UNET"), (sd21, "VAE"), (text, "ENCODER")):
        for key, value in SMALL[name].items():
            patch.setitem(getattr(module, name), key, value)


def single_file(unet, vae, seed=0):
    """The tensors of v2-1_512-ema-pruned for two diffusers networks; in ldm the VAE's attention is 1x1 convolutions."""
    from passionsr_lab.fullsize.names import diffusers_name

    state = {"betas": torch.zeros(1000), "model_ema.num_updates": torch.tensor(0)}
    for prefix, keys, network in (
        ("model.diffusion_model.", unet_keys(), unet),
        ("first_stage_model.", vae_keys(), vae),
    ):
        own = network.state_dict()
        for key in keys:
            value = own[diffusers_name(key)].clone()
            convolution = ".attn_1." in key and key.endswith("weight") and ".norm." not in key
            state[prefix + key] = value[..., None, None] if convolution else value
    return state | open_clip(seed)


def open_clip(seed=0):
    """A small OpenCLIP text encoder, one layer deeper than what SD2.1 uses."""
    generator, width = torch.Generator().manual_seed(seed), SMALL["ENCODER"]["hidden_size"]
    shapes = {
        "token_embedding.weight": (49408, width),
        "positional_embedding": (77, width),
        "ln_final.weight": (width,),
        "ln_final.bias": (width,),
        "text_projection": (width, width),
    }
    for i in range(SMALL["ENCODER"]["num_hidden_layers"] + 1):
        block = f"transformer.resblocks.{i}"
        sizes = {
            "attn.in_proj": (3 * width, width),
            "attn.out_proj": (width, width),
            "mlp.c_fc": (2 * width, width),
            "mlp.c_proj": (width, 2 * width),
        }
        shapes |= {f"{block}.{name}{'_' if 'in_proj' in name else '.'}weight": size for name, size in sizes.items()}
        shapes |= {f"{block}.{name}{'_' if 'in_proj' in name else '.'}bias": size[:1] for name, size in sizes.items()}
        shapes |= {f"{block}.ln_{n}.{kind}": (width,) for n in (1, 2) for kind in ("weight", "bias")}
    state = {f"cond_stage_model.model.{k}": 0.3 * torch.randn(v, generator=generator) for k, v in shapes.items()}
    return state | {"cond_stage_model.model.logit_scale": torch.tensor(4.6)}
