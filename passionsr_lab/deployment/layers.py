"""Linear and Conv2d into a graph: quantized ones as integers, plain ones in float.

A weight's whole numbers are code + zero.  Of 8 bits they need not fit between -128 and 127: channel by channel they are
moved there, w = v + o, and what is missing, o times the sum of the input's whole numbers below the kernel, comes from
one sum that all output channels share.  So weights stay symmetric, as engines want them, and results stay exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..calibration.lowrank import LowRank
from ..quantization.layer import Frozen, FrozenHalf, QuantLayer
from ..quantization.recipe import LayerRecipe
from .emitter import Codes, Emitter, Row

LIMIT = 2**15 - 1  # of the 16-bit sums of two products, without VNNI


@dataclass(frozen=True)
class Around:
    """What neighbours leave to a layer.

    before: (C,) what its input still must be multiplied with.
    after: (Co,) what multiplies its output; added: (Co,) what is added to it before that.
    rows: so many of the first channels of its output, if the others are not asked for.
    up: its input is enlarged twice by repetition first.
    ready: where scale and shift of its LET went, if its input has them already.
    """

    before: Tensor | None = None
    after: Tensor | None = None
    added: Tensor | None = None
    rows: int | None = None
    up: bool = False
    ready: str = ""


def emit_layer(e: Emitter, module: nn.Module, name: str, x: str, around: Around = Around()) -> str:
    """The output of a layer for the input x; a row says what became of it."""
    if isinstance(module, QuantLayer):
        return _quantized(e, module, x, around)
    if not isinstance(module, (nn.Linear, nn.Conv2d)):
        raise ValueError(f"{name} is a {type(module).__name__}, which has no integer form; quantize the model anew.")
    kind = "conv" if isinstance(module, nn.Conv2d) else "linear"
    e.rows.append(Row(name, kind, "float", why="the recipe leaves it out"))
    return _plain(e, module, name, x, around)


def let_of(module: nn.Module) -> tuple[Tensor, Tensor] | None:
    """(factor, offset): x~ = x * factor + offset; None without a transform."""
    if not isinstance(module, QuantLayer) or module.transform is None:
        return None
    scale, shift = module.transform.scale.detach(), module.transform.shift.detach()
    return 1 / scale, -shift / scale


# -- float ------------------------------------------------------------------------------------------------------------


def _plain(e: Emitter, module: nn.Module, name: str, x: str, around: Around) -> str:
    conv = isinstance(module, nn.Conv2d)
    if around.up:
        x = enlarged(e, x)
    weight = module.weight.detach().float()[: around.rows]
    if around.before is not None:
        weight = weight * around.before.view(1, -1, *[1] * (weight.ndim - 2))
    bias = _bias(module.bias, around)
    if around.after is not None:
        weight = weight * around.after.view(-1, *[1] * (weight.ndim - 1))
    return product(e, name, x, weight, bias, _settings(module) if conv else None)


def product(e: Emitter, name: str, x: str, weight: Tensor, bias: Tensor | None, settings: dict | None) -> str:
    """A float convolution, or product where `settings` is None."""
    g = e.graph
    held = [] if bias is None else [g.constant(f"{name}.bias", bias)]
    if settings is not None:
        return g.op("Conv", x, g.constant(f"{name}.weight", weight), *held, name=name, **settings)
    y = g.op("MatMul", x, g.constant(f"{name}.weight", weight.t()), name=name)
    return g.op("Add", y, held[0], name=f"{name}/biased") if held else y


def _bias(bias: Tensor | None, around: Around) -> Tensor | None:
    """With what is added and what multiplies the output."""
    terms = [t.detach().float()[: around.rows] for t in (bias, around.added) if t is not None]
    if not terms:
        return None
    total = sum(terms[1:], terms[0])
    return total if around.after is None else total * around.after


def enlarged(e: Emitter, x: str) -> str:
    """Twice as large by repetition."""
    scales = e.graph.constant("scales", [1, 1, 2, 2])
    more = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return e.graph.op("Resize", x, "", scales, **more)


def _settings(layer: nn.Conv2d) -> dict:
    if layer.groups != 1 or layer.padding_mode != "zeros":
        raise ValueError(f"A convolution in groups or padded by {layer.padding_mode} has no integer form here.")
    left, right, top, bottom = layer._reversed_padding_repeated_twice
    return {
        "kernel_shape": list(layer.kernel_size), "strides": list(layer.stride), "dilations": list(layer.dilation),
        "pads": [top, left, bottom, right],
    }  # fmt: skip


# -- integers ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def _quantized(e: Emitter, layer: QuantLayer, x: str, around: Around) -> str:
    frozen, name, bits = layer.frozen(), layer.name, layer.setting
    if frozen.branch is not None and not isinstance(frozen.branch, LowRank):
        raise ValueError(f"{name} has a branch of {type(frozen.branch).__name__}, which cannot be deployed.")
    if layer.transform is not None and (frozen.scale is None or frozen.scale.ndim != 1):
        raise ValueError(f"{name} has a {type(layer.transform).__name__}, which cannot be deployed.")
    whole = max(bits.weight_bits, bits.act_bits) <= 8
    row = Row(
        name, "conv" if layer.conv else "linear", "integers" if whole else "float", bits.weight_bits, bits.act_bits
    )
    row.why = "" if whole else "more than 8 bits"
    row.let = "" if layer.transform is None else around.ready or "fused"
    row.overflow = any(risky(half, bits) for half in frozen.halves)
    e.rows.append(row)
    x, settings, up = _input(e, layer, x, around)
    y = _halves(e, layer, frozen, x, around, settings, up)
    if frozen.branch is not None:
        row.why = f"beside it a branch of rank {len(frozen.branch.down)} in float"
        y = e.graph.op("Add", y, _branch(e, frozen.branch, name, enlarged(e, x) if up else x, around, settings))
    return y


def _input(e: Emitter, layer: QuantLayer, x: str, around: Around) -> tuple[str, dict | None, bool]:
    """x~, what is left to the convolution, and whether its whole numbers are still to be enlarged."""
    settings, up = _settings(layer.layer) if layer.conv else None, around.up
    factor, offset = (None, None) if around.ready else let_of(layer) or (None, None)
    factor = factor if around.before is None else around.before if factor is None else factor * around.before
    if layer.padded and offset is not None and bool((offset != 0).any()):
        # a zero that pads x is not a zero of x~: it is padded before
        x, up = enlarged(e, x) if up else x, False
        top, left, bottom, right = settings["pads"]
        x = e.graph.op("Pad", x, e.graph.whole(0, 0, top, left, 0, 0, bottom, right))
        settings = settings | {"pads": [0, 0, 0, 0]}
    return e.affine(x, f"{layer.name}.let", factor, offset, layer.conv), settings, up


def _halves(
    e: Emitter, layer: QuantLayer, frozen: Frozen, x: str, around: Around, settings: dict | None, up: bool
) -> str:
    g, axis, total = e.graph, 1 if layer.conv else -1, None
    parts = [x]
    if len(frozen.sizes) > 1:
        parts = g.op("Split", x, g.whole(*frozen.sizes), outputs=len(frozen.sizes), axis=axis)
    bias, bits = _bias(frozen.bias, around), layer.setting
    for i, (part, half) in enumerate(zip(parts, frozen.halves)):
        name = layer.name if len(parts) == 1 else f"{layer.name}.{i}"
        part = e.quantize(part, f"{name}.act", half.act_step, half.act_zero, bits.act_bits, risky(half, bits))
        part = enlarged(e, part) if up else part
        y = _half(e, name, half, bits.weight_bits, part, around, bias if i == 0 else None, settings)
        total = y if total is None else g.op("Add", total, y)
    return total


def _half(e, name: str, half: FrozenHalf, bits: int, x: str, around: Around, bias, settings: dict | None) -> str:
    """One pair of quantizers: the product of whole numbers, their steps, and the bias."""
    g, rows = e.graph, around.rows
    step, zero = (t.flatten()[:rows] for t in (half.weight_step, half.weight_zero))
    step = step if around.after is None else step * around.after
    codes = half.weight_codes[:rows]
    if bits > 8:
        return product(
            e, name, x, (codes + zero.view(-1, *[1] * (codes.ndim - 1))) * column(step, codes), bias, settings
        )
    offset = moved(codes, zero)
    held = Codes(codes.to(torch.uint8), bits, (zero - offset).to(torch.int16))
    weight = whole_weight(e, name, held, step)
    biased = [] if bias is None else [g.constant(f"{name}.bias", bias)]
    if settings is not None:
        y = g.op("Conv", x, weight, *biased, name=name, **settings)
    else:
        y = g.op("MatMul", x, weight, name=name)
        y = g.op("Add", y, biased[0]) if biased else y
    if not bool((offset != 0).any()):
        return y
    factor = g.constant(f"{name}.moved", (offset * step).view(1, -1, 1, 1) if settings is not None else offset * step)
    return g.op("Add", y, g.op("Mul", _sums(e, x, codes.shape, settings), factor))


def column(step: Tensor, weight: Tensor) -> Tensor:
    """One number per output channel as it broadcasts against the weight."""
    return step.view(-1, *[1] * (weight.ndim - 1))


def whole_weight(e: Emitter, name: str, held: Codes, step: Tensor) -> str:
    """The weight as an initializer of whole numbers behind its steps."""
    g, axis = e.graph, 0 if held.codes.ndim == 4 else 1
    e.codes[f"{name}.weight"] = held
    return g.op("DequantizeLinear", f"{name}.weight", g.constant(f"{name}.weight.step", step), axis=axis)


def _sums(e: Emitter, x: str, shape: torch.Size, settings: dict | None) -> str:
    """The sum of x below every place of the kernel: (B, 1, H, W), or (B, N, 1)."""
    g, size = e.graph, (1, *shape[1:]) if settings is not None else (shape[1], 1)
    ones = g.constant("ones_" + "_".join(map(str, size)), torch.ones(size), "int8")
    weight = g.op("DequantizeLinear", ones, g.constant("one", 1.0))
    return g.op("MatMul", x, weight) if settings is None else g.op("Conv", x, weight, **settings)


def moved(codes: Tensor, zero: Tensor) -> Tensor:
    """(Co,) the whole numbers o nearest 0 with which code + zero - o is from -128 to 127."""
    flat = codes.flatten(1)
    low, high = flat.amin(1) + zero, flat.amax(1) + zero
    return (high - 127).clamp_min(0) + (low + 128).clamp_max(0)


def risky(half: FrozenHalf, bits: LayerRecipe) -> bool:
    """Whether two products of codes and weights might pass 16 bits, as processors without VNNI add them."""
    if max(bits.weight_bits, bits.act_bits) > 8:
        return False
    zero = half.weight_zero.flatten()
    whole = half.weight_codes + column(zero - moved(half.weight_codes, zero), half.weight_codes)
    return 2 * (2**bits.act_bits - 1) * int(whole.abs().max()) > LIMIT


def _branch(e: Emitter, branch: LowRank, name: str, x: str, around: Around, settings: dict | None) -> str:
    """up (down x~) in float."""
    down, up = branch.down.float().view(-1, *branch.shape[1:]), branch.up.float()[: around.rows]
    up = up if around.after is None else up * around.after[:, None]
    inner = product(e, f"{name}.down", x, down, None, settings)
    if settings is None:
        return product(e, f"{name}.up", inner, up, None, None)
    return product(e, f"{name}.up", inner, up[..., None, None], None, {"kernel_shape": [1, 1]})
