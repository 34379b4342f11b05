"""Attentions into a graph: projections, and both products on their grids where they are quantized."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..quantization.attention import QuantAttention
from .emitter import Emitter, Row
from .layers import Around, emit_layer, let_of
from .norms import emit_group_norm

PLAIN = ("AttnProcessor", "AttnProcessor2_0")


class Attend:
    """One attention of diffusers on its way into a graph.

    Args:
        context: (1, T, D), the constant condition of a cross-attention; None for self-attention.
    """

    def __init__(self, e: Emitter, attention: nn.Module, name: str, context: Tensor | None = None):
        self.e, self.attention, self.name, self.context = e, attention, name, context
        processor = attention.processor
        self.products = processor if isinstance(processor, QuantAttention) else None
        if self.products is None and type(processor).__name__ not in PLAIN:
            raise ValueError(f"{name} has a {type(processor).__name__}, which cannot be deployed.")
        unknown = ("spatial_norm", "norm_q", "norm_k", "norm_cross", "added_kv_proj_dim")
        if found := [key for key in unknown if getattr(attention, key) is not None]:
            raise ValueError(f"{name} has a {found[0]}, which cannot be deployed.")

    def emit(self, x: str, ready: str = "") -> str:
        """The output for x (B, N, C), or (B, C, H, W) of the VAE's; `ready`: what holds to_q's LET already."""
        e, attention, residual, flat = self.e, self.attention, x, None
        if attention.group_norm is not None:
            x = emit_group_norm(e, attention.group_norm, f"{self.name}.group_norm", x)
            x, flat = to_tokens(e, x, attention.query_dim), residual
        q = self._factor(self._project("to_q", x, Around(after=self._let("q"), ready=ready)), "q")
        k, v = (self._factor(t, key) for t, key in zip(self._keys(x), "kv"))
        out = self._attended(q, k, v)
        out = emit_layer(e, attention.to_out[0], f"{self.name}.to_out.0", out, Around(before=self._undone()))
        out = to_picture(e, out, flat, attention.query_dim) if flat else out
        out = e.graph.op("Add", out, residual) if attention.residual_connection else out
        by = float(attention.rescale_output_factor)
        return out if by == 1 else e.graph.op("Div", out, e.graph.constant(f"{self.name}.rescale", by))

    def _project(self, key: str, x: str, around: Around) -> str:
        return emit_layer(self.e, getattr(self.attention, key), f"{self.name}.{key}", x, around)

    def _keys(self, x: str) -> tuple[str, str]:
        """k and v: projections of x, or constants."""
        if self.context is None:
            return tuple(self._project(f"to_{key}", x, Around(after=self._let(key))) for key in "kv")
        found = []
        for key in "kv":
            module, after = getattr(self.attention, f"to_{key}"), self._let(key)
            value = module(self.context)[0].float()
            name = f"{self.name}.to_{key}"
            value = value if after is None else value * after
            self.e.rows.append(Row(name, "linear", "constant", why="the prompt's embedding is constant"))
            found.append(self.e.graph.constant(f"{name}.value", value[None]))
        return tuple(found)

    def _let(self, key: str) -> Tensor | None:
        """What LET of the products multiplies "q", "k" or "v" with; it goes into the projection."""
        slot = (
            None if self.products is None else self.products.transform_qk if key != "v" else self.products.transform_v
        )
        return None if slot is None else self.products.factor(key).detach()

    def _undone(self) -> Tensor | None:
        slot = None if self.products is None else self.products.transform_v
        return None if slot is None else slot.scale.detach()

    def _factor(self, x: str, key: str) -> str:
        """q, k or v on its grid, (B, heads, N, d); k with its last axes exchanged."""
        g, attention = self.e.graph, self.attention
        if self.products is not None:
            x = self._on_grid(x, key)
        x = g.op("Reshape", x, g.whole(0, -1, attention.heads, self._width(key)))
        return g.op("Transpose", x, perm=[0, 2, 3, 1] if key == "k" else [0, 2, 1, 3])

    def _on_grid(self, x: str, key: str) -> str:
        bits = self.products.setting.act_bits
        return self.e.quantize(x, f"{self.name}.{key}", *self._grid(key), bits, bits == 8)

    def _width(self, key: str) -> int:
        layer = getattr(self.attention, f"to_{key}")
        layer = getattr(layer, "layer", layer)
        return layer.out_features // self.attention.heads

    def _grid(self, key: str) -> tuple[Tensor, Tensor]:
        products = self.products
        if products.quantizers[key].zero_point != "integer":
            raise ValueError(f"{self.name} has a real zero point; integers need a recipe with zero_point='integer'.")
        _, high = products.ranges[key].require(self.name)
        ends = (torch.zeros_like(high[0]), high[0]) if key == "p" else products.natural_range(key)
        step, base = (t.detach() for t in products.quantizers[key].grid(*ends))
        return step, (base / step).round()

    def _attended(self, q: str, k: str, v: str) -> str:
        g, products = self.e.graph, self.products
        scores = g.op("MatMul", q, k, name=f"{self.name}.qk")
        scores = g.op("Mul", scores, g.constant(f"{self.name}.scale", float(self.attention.scale)))
        p = g.op("Softmax", scores, axis=-1)
        if products is not None:
            bits, p = products.setting.act_bits, self._on_grid(p, "p")
            let = "" if products.transform_qk is None and products.transform_v is None else "folded"
            runs, why = ("integers", "") if bits <= 8 else ("float", "more than 8 bits")
            row = Row(f"{self.name}.processor", "attention", runs, None, bits, let, why, bits == 8)
            self.e.rows.append(row)
        out = g.op("Transpose", g.op("MatMul", p, v, name=f"{self.name}.pv"), perm=[0, 2, 1, 3])
        return g.op("Reshape", out, g.whole(0, -1, self.attention.heads * self._width("v")))


def to_tokens(e: Emitter, x: str, channels: int) -> str:
    """(B, C, H, W) -> (B, H W, C)."""
    return e.graph.op("Reshape", e.graph.op("Transpose", x, perm=[0, 2, 3, 1]), e.graph.whole(0, -1, channels))


def to_picture(e: Emitter, x: str, like: str, channels: int) -> str:
    """(B, H W, C) -> (B, C, H, W), of the height and width that `like` has."""
    g = e.graph
    sizes = (g.op("Shape", like, start=0, end=1), g.op("Shape", like, start=2, end=4), g.whole(channels))
    return g.op("Transpose", g.op("Reshape", x, g.op("Concat", *sizes, axis=0)), perm=[0, 3, 1, 2])


def ready_for(layer: nn.Module) -> tuple[Tensor | None, Tensor | None]:
    """What a norm before this layer takes in of its LET, where no other layer reads the norm."""
    return let_of(layer) or (None, None)
