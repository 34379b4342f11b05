"""Between the released code's layers and this library's: what is the same number in both, and what has to change."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from ..calibration.method import Method
from ..pipeline.onestep import OneStepSR
from ..quantization.attention import QuantAttention
from ..quantization.filling import LET
from ..quantization.layer import QuantLayer
from ..quantization.place import QuantizedSR, quantize, quantized_layers, unquantize
from .layers import OfficialAttention, OfficialLayer, Released

RELEASED = Method("released", "PassionSR, released files", "PassionSR's released code", Released())
CORRECTED = Method("released-corrected", "PassionSR, released files, corrected", "PassionSR's released code", LET())
CORRECTIONS = {
    "bias": "stays in full precision; the released code rounds it per tensor, to as few bits as the weight",
    "linear shift": "the UNet's Linear layers take W shift back; the released code adds it a second time",
    "split": "halves of a Linear layer's input are channels, as its weight's are; the released code halves the tokens,"
    " so both halves get the wider of its two ranges",
    "attention scale": "none is tied to a token, so images of any size go through; the bounds of v and of the"
    " probabilities are widened by the released scales instead",
    "padding": "is transformed and quantized like the rest of the input; one bias replaces a convolution of the shift",
    "rounding": "of halves goes to the even code, not away from zero",
    "zero": "is on every grid, also where both bounds have one sign",
    "posterior": "the VAE encodes to its mode; the released code draws a sample",
}  # what numerics="paper" changes; the posterior is the pipeline's own and the same in both


# -- released -> ours -------------------------------------------------------------------------------------------------


@torch.no_grad()
def correct(quantized: QuantizedSR) -> QuantizedSR:
    """The same scales and bounds in this library's layers, with `CORRECTIONS`.

    Boundaries here are relative to the weight's own range, so the model must have weights.
    """
    if quantized.prompt_embedding.is_meta:
        raise ValueError('numerics="paper" needs the model\'s weights; without them only "official" can be converted.')
    name = quantized.recipe.name.replace("official", "corrected")
    new = quantize(unquantize(quantized), replace(quantized.recipe, name=name))
    new.method = CORRECTED
    new.method.slots.install(new)
    ours = new.layers
    for name, theirs in quantized.layers.items():
        (_correct_layer if isinstance(theirs, OfficialLayer) else _correct_attention)(ours[name], theirs)
    return new


def _correct_layer(ours: QuantLayer, theirs: OfficialLayer) -> None:
    scale, shift = theirs.transform.scale, theirs.transform.shift
    if not (scale > 0).all():
        raise ValueError(f"{ours.name} has a scale that is not positive; only numerics 'official' can run it.")
    ours.transform.log_scale.copy_(scale.log())
    ours.transform.offset.copy_(shift)  # its unit, `reach`, is 1
    bounds = [q.bounds() for q in theirs.act_quantizers]
    bounds = bounds if theirs.as_conv else [_union(bounds)] * len(bounds)
    low, high = (torch.cat([b[i].expand(n) for b, n in zip(bounds, ours.sizes)]) for i in (0, 1))
    ours.range.set(low * scale + shift, high * scale + shift)
    for quantizer, natural, wanted in zip(ours.act_quantizers, ours.input_ranges(), bounds):
        _trim(quantizer.trim, natural, wanted)
    for quantizer, natural, wanted in zip(ours.weight_quantizers, ours.weight_ranges(), theirs.weight_quantizers):
        _trim(quantizer.trim, natural, wanted.bounds())


def _correct_attention(ours: QuantAttention, theirs: OfficialAttention) -> None:
    ours.transform_qk.log_scale.copy_(theirs.transform_qk.scale.log())
    for key, their in theirs.ranges.items():
        ours.ranges[key].set(their.low, their.high.clamp_max(1) if key == "p" else their.high)


def _trim(trim: Tensor, natural: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor]) -> None:
    """Makes `BoundaryQuantizer.bounds` of the natural range the wanted ones."""
    (low, high), (lower, upper) = natural, wanted
    width = (high - low).clamp_min(1e-12)
    trim.copy_(torch.stack([(lower - low) / width, (high - upper) / width]))


def _union(bounds: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.stack([b[0] for b in bounds]).amin(0), torch.stack([b[1] for b in bounds]).amax(0)


# -- ours -> released -------------------------------------------------------------------------------------------------


def places(part: nn.Module) -> dict[str, Tensor]:
    """The buffers of the official layers in a UNet or VAE that a released file fills, by name."""
    owners = {id(layer) for layer in quantized_layers(part).values()}
    found = {name: m for name, m in part.named_modules() if id(m) in owners}
    skipped = ("layer.", "original.", "range.", "ranges.")
    return {
        f"{name}.{key}": value
        for name, module in found.items()
        for key, value in module.state_dict().items()
        if not key.startswith(skipped)
    }


@torch.no_grad()
def official_tensors(quantized: QuantizedSR, part: str, latent: int) -> tuple[dict[str, Tensor], list[str]]:
    """What a released file of "unet" or "vae" holds, by the names of `places`, and sentences on what is lost.

    Raises `ValueError` where the format demands what the recipe left out, `RuntimeError` before calibration.
    """
    module = getattr(quantized, part)
    if quantized.method is None:
        raise RuntimeError("The pipeline has no activation range yet: calibrate the model first (lab.calibrate).")
    if quantized.method.name == RELEASED.name:
        for layer in quantized_layers(module).values():
            (layer.range if isinstance(layer, QuantLayer) else layer.ranges["q"]).require(layer.name)
        return places(module), []
    found, lost = {}, {f"Biases are rounded to the weight's bits there; the {part}'s are in full precision here."}
    if quantized.recipe.zero_point == "real":
        lost.add("Grids start at a multiple of their step there; here they start at the lower boundary (Eq. 3).")
    for name, layer in quantized_layers(module).items():
        inner = name.removeprefix(f"{part}.")
        if isinstance(layer, QuantLayer):
            own = _layer_tensors(layer, part, lost)
        elif part == "vae":
            lost.add("The VAE's attention products are not quantized there.")
            continue
        else:
            inner += ".processor"
            own = _attention_tensors(layer, module.get_submodule(inner[: -len(".processor")]).heads, lost)
            own["transform_v.factor"] = torch.ones(_tokens(quantized, inner, latent))
        found |= {f"{inner}.{key}": value for key, value in own.items()}
    if part == "unet" and not any("attn1.processor" in key for key in found):
        raise ValueError("The released format quantizes the UNet's attention products; this recipe leaves them out.")
    return found, sorted(lost)


def _layer_tensors(layer: QuantLayer, part: str, lost: set[str]) -> dict[str, Tensor]:
    ranges, channels = layer.input_ranges(), layer.range.low
    scale, shift = torch.ones_like(channels), torch.zeros_like(channels)
    if layer.transform is not None:
        scale, shift = layer.transform.scale, layer.transform.shift
    linear = part == "unet" and not layer.conv
    if linear and shift.any():
        lost.add("Shifts of the UNet's Linear layers are left out, because the released code adds them twice.")
        low, high = ((t / scale).split(layer.sizes) for t in layer.range.require(layer.name))
        shift, ranges = torch.zeros_like(shift), [(a.min(), b.max()) for a, b in zip(low, high)]
    acts = [_bounds(q, *r) for q, r in zip(layer.act_quantizers, ranges)]
    if linear and len(acts) == 2:
        lost.add("Linear inputs are halved by tokens there; both halves get the wider range of the channel halves.")
        acts = [_union(acts)] * 2
    weights = [_bounds(q, *r) for q, r in zip(layer.weight_quantizers, layer.weight_ranges())]
    named = {f"act_quantizers.{i}": b for i, b in enumerate(acts)}
    named |= {f"weight_quantizers.{i}": b for i, b in enumerate(weights)}
    if layer.layer.bias is not None:
        named["bias_quantizer"] = _open(layer.layer.bias.min(), layer.layer.bias.max())
    return {"transform.scale": scale, "transform.offset": shift, **_flat(named)}


def _attention_tensors(layer: QuantAttention, heads: int, lost: set[str]) -> dict[str, Tensor]:
    v = layer.factor("v")
    scales = layer.factor("k").view(heads, -1)
    shared = scales.log().mean(0).exp()
    if not torch.allclose(scales, shared.expand_as(scales), rtol=1e-5):
        lost.add("The scale between q and k is one for all heads there; their geometric mean is written.")
    if not torch.allclose(v, torch.ones_like(v), rtol=1e-5):
        lost.add("The scale of v is per token there and per channel here; v is written without one.")
    factors = {"q": 1 / shared.repeat(heads), "k": shared.repeat(heads), "v": 1.0}
    named = {}
    for key, factor in factors.items():
        low, high = layer.ranges[key].require(layer.name)
        named[f"quantizers.{key}"] = _bounds(layer.quantizers[key], (low * factor).min(), (high * factor).max())
    top = layer.ranges["p"].require(layer.name)[1][0]
    named["quantizers.p"] = _bounds(layer.quantizers["p"], torch.zeros_like(top), top)
    return {"transform_qk.factor": 1 / shared, **_flat(named)}


def _tokens(pipe: OneStepSR, name: str, latent: int) -> int:
    """How many keys an attention of the UNet has for latents of this side."""
    if ".attn2." in name:
        return pipe.prompt_embedding.shape[1]
    levels = len(pipe.unet.config.block_out_channels)
    block, index = name.split(".")[:2]
    level = {"down_blocks": lambda: int(index), "up_blocks": lambda: levels - 1 - int(index)}.get(
        block, lambda: levels - 1
    )
    return (latent >> level()) ** 2


def _bounds(quantizer, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    lower, upper = quantizer.bounds(low, high)
    if quantizer.zero_point == "integer":
        lower, upper = lower.clamp_max(0), upper.clamp_min(0)
    return _open(lower, upper)


def _open(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Never one point: the released code divides by the width."""
    return lower, torch.maximum(upper, lower + 1e-6)


def _flat(named: dict[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    return {f"{name}.{key}": value for name, pair in named.items() for key, value in zip(("lower", "upper"), pair)}
