"""What emits a network: its graph, the integers of its weights, and a row per layer of what became of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Literal

import torch
from torch import Tensor

from .graph import Graph

Runs = Literal["integers", "float", "constant"]


@dataclass
class Row:
    """What became of a layer or of an attention's products.

    runs: "integers", "float" (why says the reason), or "constant" (computed once and gone).
    let: where scale and shift of its input went: "folded" into what is before it, "fused" into its quantize step,
        "explicit", or "" without.
    overflow: whether a processor without VNNI could lose bits in its 16-bit sums; there it runs in float.
    """

    layer: str
    kind: str
    runs: Runs
    weight_bits: int | None = None
    act_bits: int | None = None
    let: str = ""
    why: str = ""
    overflow: bool = False

    def to_dict(self) -> dict:
        """Plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Codes:
    """A weight as a file holds it: whole number = code + move, of which the graph's initializer is made.

    codes: uint8, (Co, ...); bits of each; move: int16 (Co,), so that every sum fits into 8 bits with a sign.
    """

    codes: Tensor
    bits: int
    move: Tensor


def whole_of(codes: Tensor, move: Tensor) -> Tensor:
    """code + move as int8: (Co, Ci, kh, kw), or of a Linear (Ci, Co), as products take it."""
    found = (codes.to(torch.int16) + move.view(-1, *[1] * (codes.ndim - 1))).to(torch.int8)
    return found.t().contiguous() if found.ndim == 2 else found


@dataclass
class Emitter:
    """A network on its way into a graph.

    codes: by the name of the initializer that is made of them; rows: one per layer, in the order they run; risky: names
    of the grids whose whole numbers could overflow without VNNI.
    """

    graph: Graph
    codes: dict[str, Codes] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    risky: list[str] = field(default_factory=list)

    def affine(self, x: str, name: str, factor: Tensor | None, offset: Tensor | None, conv: bool) -> str:
        """x * factor + offset per channel; None, ones and zeros cost nothing."""
        g, shape = self.graph, (1, -1, 1, 1) if conv else (-1,)
        if factor is not None and bool((factor != 1).any()):
            x = g.op("Mul", x, g.constant(f"{name}.factor", factor.view(shape)))
        if offset is not None and bool((offset != 0).any()):
            x = g.op("Add", x, g.constant(f"{name}.offset", offset.view(shape)))
        return x

    def quantize(self, x: str, name: str, step: Tensor, zero: Tensor, bits: int, risky: bool = False) -> str:
        """x on its grid: whole numbers from `zero` to zero + 2**bits - 1, times `step`; up to 8 bits as integers."""
        if bits > 8:
            return self.rounded(x, name, step, zero, bits)
        g = self.graph
        if risky:
            self.risky.append(name)
        if bits < 8:
            ends = (float(zero * step), float((zero + 2**bits - 1) * step))
            x = g.op("Clip", x, *(g.constant(f"{name}.{k}", v) for k, v in zip(("low", "high"), ends)))
        grid = g.constant(f"{name}.step", step.reshape(())), g.constant(f"{name}.zero", -zero.reshape(()), "uint8")
        return g.op("DequantizeLinear", g.op("QuantizeLinear", x, *grid, name=f"{name}.codes"), *grid, name=f"{name}.x")

    def rounded(self, x: str, name: str, step: Tensor, zero: Tensor, bits: int) -> str:
        """The same in float, for grids that no integer kernel has."""
        g = self.graph
        by = g.constant(f"{name}.step", step.reshape(()))
        ends = (g.constant(f"{name}.{k}", float(v)) for k, v in (("low", zero), ("high", zero + 2**bits - 1)))
        return g.op("Mul", g.op("Clip", g.op("Round", g.op("Div", x, by)), *ends), by)
