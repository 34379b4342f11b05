"""The quantized layer: one body for Linear and Conv2d, with slots that a method fills.

    y = op(Qa(T x), Qw(T W - branch + delta)) + branch(T x) + bias

An empty slot costs nothing.  A padded convolution pads first, with zeros, and transforms then; so the border is exact
with any shift.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels import compiled
from ..kernels.fused import (
    Convolution,
    FakeQuantize,
    Grid,
    QuantizedOperation,
    ScaledRange,
    ShiftedRange,
    operated,
    ready,
    wide,
)  # fmt: skip
from ..kernels.parts import Parts
from .kept import Kept
from .quantizer import BoundaryQuantizer, Quantizer
from .ranges import Range
from .recipe import LayerRecipe
from .transform import EquivalentTransform

MODES = ("float", "observe", "quantized")
_modes: ContextVar[dict | None] = ContextVar("modes", default=None)  # of this thread or task only


class Quantized(nn.Module):
    """What quantized layers and attentions share: a name, what the recipe says of it, and a mode."""

    def __init__(self, name: str, setting: LayerRecipe):
        super().__init__()
        self.name, self.setting = name, setting

    @property
    def mode(self) -> str:
        """ "float", "observe" or "quantized" (outside every `mode` block)."""
        return (_modes.get() or {}).get(self, "quantized")

    def empty(self) -> None:
        """Forgets what was observed and empties the slots: a calibration starts from here."""
        raise NotImplementedError


@contextmanager
def mode(module: nn.Module, name: str) -> Iterator[None]:
    """Within the block, and in its thread only, the quantized layers of `module` are in this mode."""
    if name not in MODES:
        raise ValueError(f"mode is one of {MODES}, not {name!r}.")
    token = _modes.set((_modes.get() or {}) | {m: name for m in module.modules() if isinstance(m, Quantized)})
    try:
        yield
    finally:
        _modes.reset(token)


@dataclass(frozen=True)
class FrozenHalf:
    """The integers of one quantizer pair: x~ = (code + zero) * step, code from 0 to 2**bits - 1.

    weight_codes: the shape of the weight's half; weight_step, weight_zero: one per output channel.
    act_step, act_zero: scalars.
    """

    weight_codes: Tensor
    weight_step: Tensor
    weight_zero: Tensor
    act_step: Tensor
    act_zero: Tensor


@dataclass(frozen=True)
class Frozen:
    """What integer execution needs of a calibrated layer; `scale` and `shift` are (C,) or None, `bias` (Co,) or None.

    halves: one or two, along the input channels; sizes: their channels.  What stays in float is `branch`, or None;
    `transform` is what the input goes through where that is more than scale and shift, or None.
    """

    halves: list[FrozenHalf]
    sizes: list[int]
    bias: Tensor | None
    scale: Tensor | None
    shift: Tensor | None
    branch: nn.Module | None
    transform: nn.Module | None = None


class QuantLayer(Quantized):
    """A Linear or Conv2d with slots.

    Slots, all empty at first:
        transform: `EquivalentTransform` of the input channels, or another that has `ranges(padded)` of its output, too.
        act_quantizers, weight_quantizers: one `Quantizer`, or one for each half of the input channels.
        rounding: modules (W, step, base, bits) -> W on the grid, one per weight quantizer; nearest without.
        delta: a module without arguments -> (shape of W), added to the weight before it is quantized.
        branch: a module x~ -> output, beside the quantized one in 16 bits; the quantized weight lacks its `weight()`.
        alignment: a module without arguments -> (Co,), added to the bias.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d, name: str, setting: LayerRecipe):
        super().__init__(name, setting)
        self.layer = layer
        self.conv = isinstance(layer, nn.Conv2d)
        self.dim, self.groups = (1, layer.groups) if self.conv else (-1, 1)
        self.range = Range(layer.in_channels if self.conv else layer.in_features)
        self._kept_weight, self._kept_input, self._kept_tables, self._kept_whole = Kept(), Kept(), Kept(), Kept()
        self.empty()

    def empty(self) -> None:
        self.range.clear()
        channels = len(self.range.low)
        halved = self.setting.split and channels > 1 and self.groups == 1
        self.sizes = [channels - channels // 2, channels // 2] if halved else [channels]  # a method may split elsewhere
        self.forget()
        self.act_quantizers, self.weight_quantizers = nn.ModuleList(), nn.ModuleList()
        self.transform: EquivalentTransform | None = None
        self.rounding: nn.ModuleList | None = None
        self.delta: nn.Module | None = None
        self.branch: nn.Module | None = None
        self.alignment: nn.Module | None = None

    def fill_quantizers(self, make: Callable[..., Quantizer], make_weight: Callable[..., Quantizer] | None = None):
        """Fills both quantizer slots with `make(bits, shape, zero_point)`, one for each half of a split layer."""
        weight, setting = self.layer.weight, self.setting
        column = (weight.shape[0],) + (1,) * (weight.ndim - 1)
        self.act_quantizers = nn.ModuleList(make(setting.act_bits, (), setting.zero_point) for _ in self.sizes)
        self.weight_quantizers = nn.ModuleList(
            (make_weight or make)(setting.weight_bits, column, setting.zero_point) for _ in self.sizes
        )
        self.to(weight.device)

    # -- the body -------------------------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        mode = self.mode
        if mode == "observe":
            self.range.add(x, self.dim)
        if mode != "quantized":
            return self.layer(x)
        if torch.is_grad_enabled():
            if (work := self._whole(x)) is not None:
                return work(x)
            self.range.require(self.name)
            weights, fused = self._weight_and_bias(), self._trained if self._fusible else None
        else:
            slots, settings = self._modules.values(), (self.setting, *self.sizes)
            fused = self._kept_whole.get(slots, (), self._ready, settings)
            weights = () if fused else self._weight_and_bias()
        seen = None if fused and self.branch is None else self.transformed_input(x)
        out = fused(x, *weights) if fused else self.operate(self.quantized(seen), *weights)
        return (out if self.branch is None else out + self.branch(seen)).to(x.dtype)

    @property
    def _fusible(self) -> bool:
        """Whether transform, activation quantizers and operation are one function: nothing else was put in a slot."""
        plain = all(isinstance(q, Quantizer) and q.plain for q in self.act_quantizers)
        sides = self.layer._reversed_padding_repeated_twice if self.conv else ()
        return plain and self._scaled and sides[::2] == sides[1::2]

    @property
    def _scaled(self) -> bool:
        """Whether its transform is none but scale and shift, which the ranges of channels go through."""
        return self.transform is None or type(self.transform) is EquivalentTransform

    @property
    def _scaling(self) -> tuple[Tensor | None, Tensor | None]:
        """Scale and shift (C,) where the transform is no more than these; else neither."""
        known = self.transform is not None and self._scaled
        return (self.transform.scale, self.transform.shift) if known else (None, None)

    def _whole(self, x: Tensor) -> Parts | None:
        """The layer as one compiled function of scale, shift and boundaries that are trained; None if it is not."""
        weight, others = self.layer.weight, (self.rounding, self.delta, self.branch, self.alignment)
        suits = x.dtype == weight.dtype and compiled.on(x, weight)
        if not suits or any(slot is not None for slot in others):
            return None
        work, settings = self._work, (self.setting, *self.sizes)
        if work is None or not work.serves(self._modules.values(), (), settings):
            work = self._work = self._new_work(settings)
        return work

    def _new_work(self, settings: tuple) -> Parts | None:
        from ..kernels.whole import Plan, Work

        let, layer, quantizers = self.transform, self.layer, (*self.act_quantizers, *self.weight_quantizers)
        if not (
            self._fusible and self._weight_fusible and self.groups == 1 and (self.conv or len(self.sizes) == 1)
            and all(type(q) is BoundaryQuantizer for q in quantizers)
            and (not self.padded or layer.padding_mode == "zeros")
            and (layer.bias is None or not layer.bias.requires_grad)
        ):  # fmt: skip
            return None
        trained = [*self.weight_quantizers.parameters(), *(() if let is None else let.parameters())]
        frozen = not any(p.requires_grad for p in trained)
        grids = (Grid(bits, self.setting.zero_point) for bits in (self.setting.act_bits, self.setting.weight_bits))
        reach, *scaling = [None] * 3 if let is None else (let.reach, let.log_scale, let.offset)
        ends, sizes = self.range.require(self.name), tuple(self.sizes)
        plan = Plan(layer.weight, layer.bias, frozen, reach, *ends, self.padded, sizes, self._convolution, *grids)
        return Work(plan, *scaling, [q.trim for q in quantizers], self, settings)

    @property
    def _convolution(self) -> Convolution | None:
        """The convolution's settings, without a padding that is not of zeros; None of a linear layer."""
        if not self.conv:
            return None
        padding = (0, 0) if self._pads else tuple(self.layer._reversed_padding_repeated_twice[::-2])
        return Convolution(self.layer.stride, padding, self.layer.dilation, self.groups)

    def _trained(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer's output by `fused.QuantizedOperation`."""
        x, conv = self.pad(x) if self._pads else x, self._convolution
        grids = self._kept_input.get((self.transform, self.act_quantizers, self.range), (), self._input_grid)
        grid = Grid(self.setting.act_bits, self.setting.zero_point)
        return QuantizedOperation.apply(x, weight, bias, *grids, grid, conv)

    def _ready(self) -> Callable[[Tensor], Tensor] | None:
        """What gives the layer's output as long as nothing of it changes; None where it is not one function."""
        self.range.require(self.name)
        if not self._fusible:
            return None
        grid, conv = Grid(self.setting.act_bits, self.setting.zero_point), self._convolution
        held = ready(self.quantized_weight(), self.bias(), *self._input_grid(), grid, conv)
        pad = self.pad if self._pads else lambda x: x
        return lambda x: operated(pad(x), held, grid, conv)

    def _input_grid(self) -> tuple[Tensor | None, Tensor | None, Tensor, Tensor]:
        """Scale, shift, and boundaries of the activation, as they broadcast against it."""
        shape = (1, -1, 1, 1) if self.conv else (-1,)
        scale, shift = self._scaling
        bounds = [q.bounds(*r) for q, r in zip(self.act_quantizers, self._input_ranges(scale, shift))]
        lower, upper = bounds[0]
        if len(bounds) > 1:
            lower, upper = (torch.cat([b.expand(n) for b, n in zip(t, self.sizes)]).view(shape) for t in zip(*bounds))
        return None if scale is None else scale.view(shape), None if shift is None else shift.view(shape), lower, upper

    def _weight_and_bias(self) -> tuple[Tensor, Tensor | None]:
        slots = self.transform, self.weight_quantizers, self.rounding, self.delta, self.branch, self.alignment
        make = lambda: (self.quantized_weight(), self.bias())
        return self._kept_weight.get(slots, (self.layer.weight, self.layer.bias), make)

    def forget(self) -> None:
        """Drops the weights that are kept, which take the memory of the float ones once more."""
        for kept in (self._kept_weight, self._kept_input, self._kept_tables, self._kept_whole):
            kept.clear()
        self._work = None

    def _apply(self, fn, recurse: bool = True):
        self.forget()
        return super()._apply(fn, recurse)

    def operate(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer's own operation on an input that is padded already."""
        if not self.conv:
            return F.linear(x, weight, bias)
        return F.conv2d(x, weight, bias, self.layer.stride, 0, self.layer.dilation, self.groups)

    def pad(self, x: Tensor) -> Tensor:
        """The padding that the convolution would have done itself."""
        if not self.padded:
            return x
        padding = {"zeros": "constant"}.get(self.layer.padding_mode, self.layer.padding_mode)
        return F.pad(x, self.layer._reversed_padding_repeated_twice, mode=padding)

    @property
    def _pads(self) -> bool:
        """Whether it pads with something else than zeros, which operations do not do themselves."""
        return self.conv and self.layer.padding_mode != "zeros"

    @property
    def padded(self) -> bool:
        """Whether the convolution pads its input."""
        return self.conv and any(self.layer._reversed_padding_repeated_twice)

    def transformed_input(self, x: Tensor) -> Tensor:
        """x~ of Eq. 4, padded, in float32 at least."""
        x = self.pad(wide(x))
        return x if self.transform is None else self.transform(x, self.dim)

    def quantized_input(self, x: Tensor) -> Tensor:
        """Q(x~), padded."""
        return self.quantized(self.transformed_input(x))

    def quantized(self, seen: Tensor) -> Tensor:
        """Q(x~) of what is transformed and padded already."""
        halves = seen.split(self.sizes, self.dim)
        done = [q(x, *r) for q, x, r in zip(self.act_quantizers, halves, self.input_ranges())]
        return done[0] if len(done) == 1 else torch.cat(done, self.dim)

    def transformed_weight(self) -> Tensor:
        """W~ of Eq. 5, or what else the transform makes of the weight."""
        weight = wide(self.layer.weight)
        return weight if self.transform is None else self.transform.of_weight(weight, self.groups)

    def residual_weight(self) -> Tensor:
        """What is quantized: W~ without the branch's share and with `delta`."""
        weight = self.transformed_weight()
        weight = weight if self.branch is None else weight - self.branch.weight()
        return weight if self.delta is None else weight + self.delta()

    def quantized_weight(self) -> Tensor:
        """Q(W~)."""
        if self._weight_fusible:
            return self._fused_weight()
        halves = self.weight_halves(self.residual_weight())
        done = [self._round(i, x, *r) for i, (x, r) in enumerate(zip(halves, self.weight_ranges(halves)))]
        return done[0] if len(done) == 1 else torch.cat(done, 1)

    @property
    def _weight_fusible(self) -> bool:
        """Whether scaling, ranges and quantization of the weight are one function."""
        grouped = self.groups > 1 and self.transform is not None
        plain = all(isinstance(q, Quantizer) and q.plain for q in self.weight_quantizers)
        empty = all(slot is None for slot in (self.rounding, self.delta, self.branch))
        return plain and empty and self._scaled and not grouped and not self.layer.weight.requires_grad

    def _fused_weight(self) -> Tensor:
        """Q(W~) by `fused.FakeQuantize`; the ranges of W~ come from those of the kernels, since scales are positive."""
        weight, (lows, highs, _) = wide(self.layer.weight), self._tables()
        taps = weight[0, 0].numel()
        scale = None if self.transform is None else self.transform.scale
        done, start = [], 0
        for quantizer, size in zip(self.weight_quantizers, self.sizes):
            part = slice(start, start + size)
            found = ScaledRange.apply(lows[:, part], highs[:, part], None if scale is None else scale[part])
            bounds = (b.flatten(1) for b in quantizer.bounds(*(r.view(quantizer.shape) for r in found)))
            rows = weight.flatten(1)[:, start * taps : (start + size) * taps]
            own = None if scale is None else scale[part].view(1, -1)
            grid = Grid(quantizer.bits, quantizer.zero_point, multiply=True, taps=taps)
            done.append(FakeQuantize.apply(rows, own, None, *bounds, grid))
            start += size
        return (done[0] if len(done) == 1 else torch.cat(done, 1)).view_as(weight)

    def _tables(self) -> tuple[Tensor, Tensor, Tensor]:
        """(Co, Ci) smallest, largest and sum of every kernel."""
        weight = self.layer.weight

        def make():
            kernels = wide(weight.detach())
            kernels = kernels.flatten(2) if self.conv else kernels[..., None]
            if kernels.shape[2] == 1:
                return (kernels[..., 0],) * 3
            return kernels.amin(2), kernels.amax(2), kernels.sum(2)

        return self._kept_tables.get((), (weight,), make)

    def _round(self, i: int, weight: Tensor, low: Tensor, high: Tensor) -> Tensor:
        quantizer = self.weight_quantizers[i]
        if self.rounding is None:
            return quantizer(weight, low, high)
        return self.rounding[i](weight, *quantizer.grid(low, high), quantizer.bits)

    def bias(self) -> Tensor | None:
        """(Co,) the bias with what the shift leaves behind, and the learned alignment."""
        terms = [] if self.layer.bias is None else [wide(self.layer.bias)]
        if self.transform is not None:
            terms.append(self.left_by_shift(self.transform.shift))
        if self.alignment is not None:
            terms.append(self.alignment())
        return sum(terms[1:], terms[0]) if terms else None

    def left_by_shift(self, shift: Tensor) -> Tensor:
        """(Co,) W shift: what the bias takes in when the input loses `shift` (C,)."""
        if not self.conv:
            return wide(self.layer.weight) @ shift
        taps = self._tables()[2][..., None, None]
        return F.conv2d(shift.view(1, -1, 1, 1), taps, groups=self.groups).flatten()

    # -- natural ranges -------------------------------------------------------------------------------------------

    def input_ranges(self) -> list[tuple[Tensor, Tensor]]:
        """The natural range of x~ for each activation quantizer; it follows the transform, gradients included."""
        return self._input_ranges(*self._scaling) if self._scaled else self.transform.ranges(self.padded)

    def _input_ranges(self, scale: Tensor | None, shift: Tensor | None) -> list[tuple[Tensor, Tensor]]:
        low, high = self.range.require(self.name)
        if self.padded:
            low, high = low.clamp_max(0), high.clamp_min(0)
        if scale is not None and len(self.sizes) == 1:
            return [ShiftedRange.apply(low, high, scale, shift)]
        if scale is not None:
            low, high = (low - shift) / scale, (high - shift) / scale
        return [(a.min(), b.max()) for a, b in zip(low.split(self.sizes), high.split(self.sizes))]

    def weight_halves(self, weight: Tensor) -> tuple[Tensor, ...]:
        """The weight for each weight quantizer."""
        return weight.split(self.sizes, 1) if len(self.sizes) > 1 else (weight,)

    def weight_ranges(self, halves: tuple[Tensor, ...] | None = None) -> list[tuple[Tensor, Tensor]]:
        """The natural range of every output channel for each weight quantizer."""
        halves = self.weight_halves(self.residual_weight()) if halves is None else halves
        dims = tuple(range(1, self.layer.weight.ndim))
        return [(half.amin(dims, True), half.amax(dims, True)) for half in halves]

    def channel_amax(self) -> Tensor:
        """(C,) largest magnitude of the weight for each input channel."""
        weight = self.layer.weight
        per_group = weight.view(self.groups, -1, *weight.shape[1:]).abs()
        return per_group.amax(tuple(d for d in range(per_group.ndim) if d not in (0, 2))).flatten()

    # -- integers -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def frozen(self) -> Frozen:
        """Codes, steps, zero points and what stays in float; `ValueError` where the zero point is not whole."""
        halves = self.weight_halves(self.residual_weight())
        found = []
        for i, (half, weight_range) in enumerate(zip(halves, self.weight_ranges(halves))):
            quantizers = self.weight_quantizers[i], self.act_quantizers[i]
            if any(q.zero_point != "integer" for q in quantizers):
                raise ValueError(f"{self.name} has a real zero point; integers need a recipe of zero_point='integer'.")
            step, base = quantizers[0].grid(*weight_range)
            act_step, act_base = quantizers[1].grid(*self.input_ranges()[i])
            codes = ((self._round(i, half, *weight_range) - base) / step).round()
            zeros = (base / step).round(), (act_base / act_step).round()
            found.append(FrozenHalf(codes.to(torch.int32), step, zeros[0], act_step, zeros[1]))
        rest = None if self._scaled else self.transform
        return Frozen(found, list(self.sizes), self.bias(), *self._scaling, self.branch, rest)
