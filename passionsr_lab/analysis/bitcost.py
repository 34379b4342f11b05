"""What a pipeline costs under a recipe: size and operations, weighted by bits, in two countings.

`paper_cost` is the convention behind the paper's Table 3; `bit_cost` and `recipe_cost` are exact and see the 8-bit
exceptions, the attention products, and the numbers that the quantizers themselves need.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from ..quantization.recipe import Recipe, applies
from ..util.names import MODULES
from .cost import COUNTED_BY_PAPER, PRODUCTS, count

if TYPE_CHECKING:
    import pandas
    from torch import nn


def report(pipe: nn.Module, recipe: Recipe | None = None, size: int = 512) -> dict:
    """Both countings of a pipeline, whole and by module, in full precision or under a recipe; plain values for JSON.

    Returns:
        parameters and macs (of everything); `paper` (params_M and MACs_G by module, and with a recipe the
        bit-weighted params_M and ops_G); `exact` (what `bit_cost` returns, for the whole and by module); with a
        recipe both have the full-precision figures beside them, as `full`.

    Raises:
        ValueError: as `count` does.

    Example:
        >>> from passionsr_lab.config import W6A6
        >>> from passionsr_lab.sd21 import sd21
        >>> report(sd21(), W6A6)["paper"]["params_M"]
        178.178
    """
    frame = count(pipe, size)
    parts = {name: frame[frame.module == name] for name in MODULES}
    seen = {name: part[part.kind.isin(COUNTED_BY_PAPER)] for name, part in parts.items()}
    modules = {
        name: {"params_M": round(int(p.parameters.sum()) / 1e6, 3), "MACs_G": round(int(p.macs.sum()) / 1e9, 3)}
        for name, p in seen.items()
    }
    paper = _paper(frame, recipe) | {"modules": modules}
    exact = recipe_cost(frame, recipe) | {"modules": {name: recipe_cost(part, recipe) for name, part in parts.items()}}
    if recipe is not None:
        paper["full"], exact["full"] = _paper(frame, None), recipe_cost(frame, None)
    return {
        "parameters": int(frame.parameters.sum()), "macs": int(frame.macs.sum()), "paper": paper, "exact": exact,
    }  # fmt: skip


# -- the paper's counting ---------------------------------------------------------------------------------------------


def paper_cost(frame: pandas.DataFrame, recipe: Recipe | None) -> tuple[float, float]:
    """(parameters in M, operations in G) as Table 3 counts them; None is full precision.

    Parameters of quantized modules count bits / 32 each, and their GroupNorms, which full-precision modules leave out
    of the count, one; operations are 2 * MACs * bits / 32.  Where weights and activations differ, parameters go by
    the weights' bits and operations by the wider of the two.  The recipe's 8-bit exceptions are not counted.
    """
    modules = recipe.modules if recipe else ()
    weight, wider = (recipe.weight_bits, max(recipe.weight_bits, recipe.act_bits)) if recipe else (32, 32)
    params = ops = 0.0
    for name in MODULES:
        rows = frame[frame.module == name]
        seen = rows[rows.kind.isin(COUNTED_BY_PAPER)]
        groups = int(rows.parameters[rows.kind == "groupnorm"].sum())
        quantized = name in modules
        params += int(seen.parameters.sum()) * weight / 32 + groups if quantized else int(seen.parameters.sum())
        ops += 2 * int(seen.macs.sum()) * (wider / 32 if quantized else 1)
    return params / 1e6, ops / 1e9


def _paper(frame: pandas.DataFrame, recipe: Recipe | None) -> dict[str, float]:
    return dict(zip(("params_M", "ops_G"), (round(value, 3) for value in paper_cost(frame, recipe))))


# -- the exact counting -----------------------------------------------------------------------------------------------


def recipe_cost(frame: pandas.DataFrame, recipe: Recipe | None) -> dict[str, float]:
    """`bit_cost` of a recipe; its exceptions for layers that this model does not have are passed over.

    Example:
        >>> from passionsr_lab.config import W8A8
        >>> from passionsr_lab.cost import count
        >>> from passionsr_lab.sd21 import sd21
        >>> recipe_cost(count(sd21()), W8A8)["weight_bits"]
        8.0
    """
    if recipe is None:
        return bit_cost(frame, 32, 32)
    names = {_owner(row) for row in frame.itertuples()}
    keep = {name: recipe.bits(name) for name in names}
    return bit_cost(frame, recipe.weight_bits, recipe.act_bits, keep, recipe.modules, recipe.attention)


def bit_cost(
    frame: pandas.DataFrame,
    weight_bits: int,
    act_bits: int,
    keep: Mapping[str, int | tuple[int, int]] | None = None,
    modules: Iterable[str] = MODULES,
    attention: bool | tuple[str, ...] = True,
) -> dict[str, float]:
    """Size and bit operations of a quantized pipeline, exceptions and the quantizers' own numbers included.

    Weights take their bits; what else is stored takes 32: biases, norms, two bounds per output channel of a weight,
    two per quantized activation (four for an attention product), one LET scale per input channel (LET's shift is in
    the bias).  An operation on
    w-bit weights and a-bit activations is w * a bit operations, in an attention product a * a, in a norm 32 * 32.

    Args:
        frame: of `count(pipe)`.
        weight_bits, act_bits: whole numbers from 1 to 32; 32 is full precision and needs no quantizer.
        keep: fnmatch patterns of layer names -> bits there, or (weight bits, activation bits); the last match decides.
            An attention product goes by its attention's name, without `.qk` or `.av`.
        modules: what is quantized; the rest has 32 bits.
        attention: whether the attention products are quantized: everywhere, or where a pattern matches.

    Returns:
        bytes; bit_operations per image; weight_bits, the average over weights; act_bits, the average over MACs.

    Raises:
        ValueError: bits or modules that do not exist, or a pattern in `keep` that matches no layer.

    Example:
        >>> from passionsr_lab.cost import count
        >>> from passionsr_lab.sd21 import sd21
        >>> frame = count(sd21())
        >>> full, small = bit_cost(frame, 32, 32), bit_cost(frame, 6, 6, {"unet.conv_out": 8})
        >>> round(full["bytes"] / small["bytes"], 2), round(full["bit_operations"] / small["bit_operations"], 1)
        (5.29, 27.4)
    """
    keep, modules = dict(keep or {}), tuple(modules)
    _check(frame, (weight_bits, act_bits, *(b for bits in keep.values() for b in _both(bits))), keep, modules)
    default = (weight_bits, act_bits)
    rows = [(r, *_bits(r, default, keep, modules, attention)) for r in frame.itertuples()]
    layers = [(r, w, a) for r, w, a in rows if r.weights]
    used = [(r, a) for r, _, a in rows if r.weights or r.kind in PRODUCTS]
    return {
        "bytes": (sum(_stored(*row) for row in rows) + 7) // 8,
        "bit_operations": sum(r.macs * w * a for r, w, a in rows),
        "weight_bits": sum(r.weights * w for r, w, _ in layers) / sum(r.weights for r, *_ in layers),
        "act_bits": sum(r.macs * a for r, a in used) / sum(r.macs for r, _ in used),
    }


def _owner(row) -> str:
    """The name that a recipe knows a row by: for a product, the attention's."""
    return row.layer.rpartition(".")[0] if row.kind in PRODUCTS else row.layer


def _bits(
    row, default: tuple[int, int], keep: dict, modules: tuple[str, ...], attention: bool | tuple[str, ...]
) -> tuple[int, int]:
    """Bits of the two factors that a row multiplies."""
    product = row.kind in PRODUCTS
    if row.module not in modules or not (row.weights or (product and applies(attention, _owner(row)))):
        return 32, 32
    kept = [bits for pattern, bits in keep.items() if fnmatchcase(_owner(row), pattern)]
    weight, act = _both(kept[-1]) if kept else default
    return (act, act) if product else (weight, act)


def _both(bits: int | tuple[int, int]) -> tuple[int, int]:
    return bits if isinstance(bits, tuple) else (bits, bits)


def _stored(row, weight_bits: int, act_bits: int) -> int:
    """Bits that a row takes on disk."""
    bounds = 2 * row.outputs if weight_bits < 32 else 0
    if act_bits < 32:
        bounds += row.inputs + (4 if row.kind in PRODUCTS else 2)
    return row.weights * weight_bits + (row.parameters - row.weights + bounds) * 32


def _check(frame: pandas.DataFrame, bits: Iterable[int], keep: dict, modules: tuple[str, ...]) -> None:
    wrong = [b for b in bits if not (isinstance(b, int) and 1 <= b <= 32)]
    if wrong:
        raise ValueError(f"Bits are whole numbers from 1 to 32, not {wrong[0]!r}.")
    if set(modules) - set(MODULES):
        raise ValueError(f"modules are some of {MODULES}, not {modules}.")
    names = {_owner(row) for row in frame.itertuples()}
    for pattern in keep:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"{pattern!r} in keep matches no layer; frame.layer has the names.")
