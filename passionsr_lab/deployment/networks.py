"""UNet, encoder and decoder of diffusers into graphs; what is constant in one step is computed here and gone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..pipeline.onestep import OneStepSR
from ..quantization.layer import QuantLayer
from .attention import Attend, ready_for, to_picture, to_tokens
from .emitter import Emitter, Row
from .graph import Graph
from .layers import Around, emit_layer, enlarged
from .norms import emit_activation, emit_group_norm, emit_layer_norm

BLOCKS = {
    *("DownBlock2D", "CrossAttnDownBlock2D", "DownEncoderBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"),
    *("UpDecoderBlock2D", "UNetMidBlock2D", "UNetMidBlock2DCrossAttn"),
}  # fmt: skip


@dataclass(frozen=True)
class Condition:
    """What is constant in one step: the timestep's embedding (1, D), which the VAE has not, and the prompt's."""

    time: Tensor | None = None
    prompt: Tensor | None = None


@torch.no_grad()
def emit_unet(pipe: OneStepSR) -> Emitter:
    """The UNet's noise for a latent, at the pipeline's timestep and under its prompt embedding."""
    e, unet = Emitter(Graph("unet")), pipe.unet
    condition = Condition(_time(e, pipe), pipe.prompt_embedding)
    x = emit_layer(e, unet.conv_in, "unet.conv_in", "latent")
    skips = [x]
    for i, block in enumerate(unet.down_blocks):
        x = emit_block(e, block, f"unet.down_blocks.{i}", x, condition, skips)
    if unet.mid_block is not None:
        x = emit_block(e, unet.mid_block, "unet.mid_block", x, condition)
    for i, block in enumerate(unet.up_blocks):
        x = emit_block(e, block, f"unet.up_blocks.{i}", x, condition, skips)
    if unet.conv_norm_out is not None:
        x = emit_group_norm(e, unet.conv_norm_out, "unet.conv_norm_out", x)
        x = emit_activation(e, unet.conv_act, "unet.conv_act", x)
    return _named(e, emit_layer(e, unet.conv_out, "unet.conv_out", x), "noise")


@torch.no_grad()
def emit_encoder(pipe: OneStepSR) -> Emitter:
    """The VAE's encoder; of the posterior its mode alone, so half of the last layer is gone."""
    e, net, vae = Emitter(Graph("encoder")), pipe.vae.encoder, pipe.vae
    x = emit_layer(e, net.conv_in, "vae.encoder.conv_in", "image")
    for i, block in enumerate(net.down_blocks):
        x = emit_block(e, block, f"vae.encoder.down_blocks.{i}", x, Condition())
    x = emit_block(e, net.mid_block, "vae.encoder.mid_block", x, Condition())
    x = _out(e, net, "vae.encoder", x)
    mode = Around(rows=vae.config.latent_channels)
    x = emit_layer(e, net.conv_out, "vae.encoder.conv_out", x, mode if vae.quant_conv is None else Around())
    x = x if vae.quant_conv is None else emit_layer(e, vae.quant_conv, "vae.quant_conv", x, mode)
    return _named(e, x, "latent")


@torch.no_grad()
def emit_decoder(pipe: OneStepSR) -> Emitter:
    """The VAE's decoder."""
    e, net, x = Emitter(Graph("decoder")), pipe.vae.decoder, "latent"
    if pipe.vae.post_quant_conv is not None:
        x = emit_layer(e, pipe.vae.post_quant_conv, "vae.post_quant_conv", x)
    x = emit_layer(e, net.conv_in, "vae.decoder.conv_in", x)
    x = emit_block(e, net.mid_block, "vae.decoder.mid_block", x, Condition())
    for i, block in enumerate(net.up_blocks):
        x = emit_block(e, block, f"vae.decoder.up_blocks.{i}", x, Condition())
    x = _out(e, net, "vae.decoder", x)
    return _named(e, emit_layer(e, net.conv_out, "vae.decoder.conv_out", x), "image")


def _named(e: Emitter, x: str, name: str) -> Emitter:
    e.graph.op("Identity", x, name=name)
    return e


def _out(e: Emitter, net: nn.Module, name: str, x: str) -> str:
    x = emit_group_norm(e, net.conv_norm_out, f"{name}.conv_norm_out", x)
    return emit_activation(e, net.conv_act, f"{name}.conv_act", x)


def _time(e: Emitter, pipe: OneStepSR) -> Tensor:
    """(1, D) the timestep's embedding, as the UNet computes it."""
    unet = pipe.unet
    if unet.config.center_input_sample or unet.config.time_embedding_type != "positional":
        raise ValueError("The UNet centres its input or has no plain time embedding; this cannot be deployed.")
    sample = torch.zeros(1, unet.config.in_channels, 1, 1)
    time = unet.time_embedding(unet.get_time_embed(sample=sample, timestep=pipe.timestep))
    for name, module in unet.time_embedding.named_modules(prefix="unet.time_embedding"):
        if isinstance(module, (QuantLayer, nn.Linear)) and not name.endswith(".layer"):
            e.rows.append(Row(name, "linear", "constant", why="the timestep is constant"))
    return time if unet.time_embed_act is None else unet.time_embed_act(time)


# -- blocks -----------------------------------------------------------------------------------------------------------


def emit_block(
    e: Emitter, block: nn.Module, name: str, x: str, condition: Condition, skips: list[str] | None = None
) -> str:
    """A down, middle or up block; of the UNet's, `skips` are what down blocks leave for up blocks."""
    kind = type(block).__name__
    if kind not in BLOCKS:
        raise ValueError(f"{name} is a {kind}, which cannot be deployed.")
    attentions = list(getattr(block, "attentions", None) or [])
    if kind.startswith("UNetMid"):
        x = emit_resnet(e, block.resnets[0], f"{name}.resnets.0", x, condition)
        for i, (attention, resnet) in enumerate(zip(attentions, block.resnets[1:])):
            x = emit_attention(e, attention, f"{name}.attentions.{i}", x, condition)
            x = emit_resnet(e, resnet, f"{name}.resnets.{i + 1}", x, condition)
        return x
    for i, resnet in enumerate(block.resnets):
        if skips is not None and "Up" in kind:
            x = e.graph.op("Concat", x, skips.pop(), axis=1)
        x = emit_resnet(e, resnet, f"{name}.resnets.{i}", x, condition)
        if attentions:
            x = emit_attention(e, attentions[i], f"{name}.attentions.{i}", x, condition)
        if skips is not None and "Down" in kind:
            skips.append(x)
    for i, sampler in enumerate(getattr(block, "downsamplers", None) or []):
        x = _down(e, sampler, f"{name}.downsamplers.{i}", x)
        if skips is not None:
            skips.append(x)
    for i, sampler in enumerate(getattr(block, "upsamplers", None) or []):
        x = _up(e, sampler, f"{name}.upsamplers.{i}", x)
    return x


def _down(e: Emitter, sampler: nn.Module, name: str, x: str) -> str:
    if type(sampler).__name__ != "Downsample2D" or not sampler.use_conv or sampler.norm is not None:
        raise ValueError(f"{name} is a {type(sampler).__name__} without a plain convolution; it cannot be deployed.")
    if sampler.padding == 0:
        x = e.graph.op("Pad", x, e.graph.whole(0, 0, 0, 0, 0, 0, 1, 1))
    return emit_layer(e, sampler.conv, f"{name}.conv", x)


def _up(e: Emitter, sampler: nn.Module, name: str, x: str) -> str:
    plain = type(sampler).__name__ == "Upsample2D" and sampler.interpolate and not sampler.use_conv_transpose
    if not plain or sampler.norm is not None:
        raise ValueError(f"{name} is a {type(sampler).__name__} that does not repeat; it cannot be deployed.")
    return emit_layer(e, sampler.conv, f"{name}.conv", x, Around(up=True)) if sampler.use_conv else enlarged(e, x)


def emit_resnet(e: Emitter, block: nn.Module, name: str, x: str, condition: Condition) -> str:
    """A ResNet block; what the timestep adds is in the bias of its first convolution."""
    if type(block).__name__ != "ResnetBlock2D" or block.up or block.down:
        raise ValueError(f"{name} is a {type(block).__name__} that resamples or is unknown; it cannot be deployed.")
    act = lambda y: emit_activation(e, block.nonlinearity, f"{name}.nonlinearity", y)
    y = act(emit_group_norm(e, block.norm1, f"{name}.norm1", x))
    time, let = _time_of(e, block, name, condition), (None, None)
    if time is not None and block.time_embedding_norm == "scale_shift":
        scale, shift = time.chunk(2)
        time, let = None, (1 + scale, shift)
    y = emit_layer(e, block.conv1, f"{name}.conv1", y, Around(added=time))
    y = act(emit_group_norm(e, block.norm2, f"{name}.norm2", y, let))
    y = emit_layer(e, block.conv2, f"{name}.conv2", y)
    if block.conv_shortcut is not None:
        x = emit_layer(e, block.conv_shortcut, f"{name}.conv_shortcut", x)
    y = e.graph.op("Add", x, y)
    by = float(block.output_scale_factor)
    return y if by == 1 else e.graph.op("Div", y, e.graph.constant(f"{name}.rescale", by))


def _time_of(e: Emitter, block: nn.Module, name: str, condition: Condition) -> Tensor | None:
    """What the timestep gives this block, (Co,) or twice as many."""
    if block.time_emb_proj is None or condition.time is None:
        return None
    time = condition.time if block.skip_time_act else block.nonlinearity(condition.time)
    e.rows.append(Row(f"{name}.time_emb_proj", "linear", "constant", why="the timestep is constant"))
    return block.time_emb_proj(time)[0].float()


def emit_attention(e: Emitter, block: nn.Module, name: str, x: str, condition: Condition) -> str:
    """The VAE's attention, or a transformer of the UNet."""
    if type(block).__name__ == "Attention":
        return Attend(e, block, name).emit(x)
    if type(block).__name__ != "Transformer2DModel" or not block.is_input_continuous:
        raise ValueError(f"{name} is a {type(block).__name__}, which cannot be deployed.")
    g, linear, channels = e.graph, block.use_linear_projection, block.inner_dim
    y = emit_group_norm(e, block.norm, f"{name}.norm", x, ready_for(block.proj_in))
    y = to_tokens(e, y, block.in_channels) if linear else y
    y = emit_layer(e, block.proj_in, f"{name}.proj_in", y, Around(ready="folded"))
    y = y if linear else to_tokens(e, y, channels)
    for i, inner in enumerate(block.transformer_blocks):
        y = emit_transformer(e, inner, f"{name}.transformer_blocks.{i}", y, condition)
    y = y if linear else to_picture(e, y, x, channels)
    y = emit_layer(e, block.proj_out, f"{name}.proj_out", y)
    return g.op("Add", to_picture(e, y, x, block.in_channels) if linear else y, x)


def emit_transformer(e: Emitter, block: nn.Module, name: str, x: str, condition: Condition) -> str:
    """Self-attention, cross-attention to the constant prompt, feed-forward; each behind its norm."""
    if block.norm_type != "layer_norm" or block.pos_embed is not None:
        raise ValueError(f"{name} has {block.norm_type} norms or positions; it cannot be deployed.")
    g = e.graph
    y = emit_layer_norm(e, block.norm1, f"{name}.norm1", x)
    if block.only_cross_attention:
        raise ValueError(f"{name} has two cross-attentions; it cannot be deployed.")
    x = g.op("Add", Attend(e, block.attn1, f"{name}.attn1").emit(y), x)
    if block.attn2 is not None:
        crossing = block.attn2.is_cross_attention
        let = ready_for(block.attn2.to_q) if crossing else (None, None)
        y = emit_layer_norm(e, block.norm2, f"{name}.norm2", x, let)
        attend = Attend(e, block.attn2, f"{name}.attn2", condition.prompt if crossing else None)
        x = g.op("Add", attend.emit(y, "folded" if crossing else ""), x)
    y = emit_layer_norm(e, block.norm3, f"{name}.norm3", x, ready_for(_first(block.ff, name)))
    return g.op("Add", _feed_forward(e, block.ff, f"{name}.ff", y), x)


def _first(ff: nn.Module, name: str) -> nn.Module:
    if type(ff.net[0]).__name__ != "GEGLU":
        raise ValueError(f"{name}.ff begins with a {type(ff.net[0]).__name__}; only GEGLU can be deployed.")
    return ff.net[0].proj


def _feed_forward(e: Emitter, ff: nn.Module, name: str, x: str) -> str:
    """GEGLU: value times gelu(gate); the scale of what follows is in the value's half."""
    g, last = e.graph, ff.net[2]
    factor, offset = ready_for(last)
    width = getattr(last, "layer", last).in_features
    after = None if factor is None else torch.cat([factor, torch.ones(width)])
    both = emit_layer(e, ff.net[0].proj, f"{name}.net.0.proj", x, Around(after=after, ready="folded"))
    value, gate = g.op("Split", both, g.whole(width, width), outputs=2, axis=-1)
    y = g.op("Mul", value, g.op("Gelu", gate))
    shifted = offset is not None and bool((offset != 0).any())
    y = e.affine(y, f"{name}.net.2.let", None, offset, False)
    ready = "folded, its shift explicit" if shifted else "folded"
    return emit_layer(e, last, f"{name}.net.2", y, Around(ready=ready))
