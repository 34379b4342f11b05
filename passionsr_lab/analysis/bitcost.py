"""What a pipeline costs under a recipe: size and operations, weighted by bits, in two countings.

`paper_cost` is the convention behind the paper's Table 3; `recipe_cost` is exact and sees the 8-bit exceptions, the
attention products, and the numbers that the quantizers themselves need.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..quantization.recipe import Recipe
from ..util.names import MODULES
from .cost import COUNTED_BY_PAPER, PRODUCTS, count

if TYPE_CHECKING:
    import pandas
    from torch import nn


def report(
    pipe: nn.Module, recipe: Recipe | None = None, size: int = 512, ranks: Mapping[str, int] | None = None
) -> dict:
    """Both countings of a pipeline, whole and by module, in full precision or under a recipe; plain values for JSON.

    `ranks` are those of 16-bit branches by layer (`layers.branch_ranks`): the exact counting has them, the paper's not.

    Returns:
        parameters and macs (of everything); `paper` (params_M and MACs_G by module, and with a recipe the
        bit-weighted params_M and ops_G); `exact` (what `recipe_cost` returns, for the whole and by module); with a
        recipe both have the full-precision figures beside them, as `full`.

    Raises:
        ValueError: as `count` and `recipe_cost` do.

    Example:
        >>> from passionsr_lab.quantization.recipe import W6A6
        >>> from passionsr_lab.fullsize.sd21 import sd21
        >>> report(sd21(), W6A6)["paper"]["params_M"]
        178.178
    """
    frame = count(pipe, size)
    rows, seen = _weighted(frame, recipe, ranks), frame[frame.kind.isin(COUNTED_BY_PAPER)]
    sums = {name: seen[seen.module == name] for name in MODULES}
    modules = {
        name: {"params_M": round(int(p.parameters.sum()) / 1e6, 3), "MACs_G": round(int(p.macs.sum()) / 1e9, 3)}
        for name, p in sums.items()
    }
    paper = _paper(frame, recipe) | {"modules": modules}
    exact = _total(rows) | {"modules": {name: _total(rows[rows.module == name]) for name in MODULES}}
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


def recipe_cost(
    frame: pandas.DataFrame, recipe: Recipe | None, ranks: Mapping[str, int] | None = None
) -> dict[str, float]:
    """Size and bit operations of a quantized pipeline, exceptions and the quantizers' own numbers included.

    Weights take their bits; what else is stored takes 32: biases, norms, two bounds per output channel of a weight and
    two per activation (twice as many where layers are split; four for an attention product), one LET scale per input
    channel (LET's shift is in the bias).  An operation on w-bit weights and a-bit activations is w * a bit
    operations, in an attention product a * a, in a norm 32 * 32.  A low-rank branch of rank r beside a (Co, Ci kh kw)
    weight stores r (Co + Ci kh kw) numbers in 16 bits and multiplies each once per output pixel, 16 * 16.

    Args:
        frame: of `count(pipe)`.
        recipe: None for full precision; its `at_least` may name layers that this model does not have.
        ranks: of the branches, by layer.

    Returns:
        bytes, and with ranks `branch_bytes`, which are among them; bit_operations per image; weight_bits, the average
        over weights; act_bits, the average over MACs.

    Raises:
        ValueError: a pattern of the recipe matches no layer, or a rank is of a layer that there is not.

    Example:
        >>> from passionsr_lab.analysis.cost import count
        >>> from passionsr_lab.fullsize.sd21 import sd21
        >>> from passionsr_lab.quantization.recipe import W6A6
        >>> frame = count(sd21())
        >>> full, small = recipe_cost(frame, None), recipe_cost(frame, W6A6)
        >>> round(full["bytes"] / small["bytes"], 2), round(full["bit_operations"] / small["bit_operations"], 1)
        (5.29, 27.4)
    """
    found = _total(_weighted(frame, recipe, ranks))
    return found if ranks is None else found | {"branch_bytes": 2 * int(_branches(frame, ranks).sum())}


def _branches(frame: pandas.DataFrame, ranks: Mapping[str, int]) -> pandas.Series:
    """The numbers r (Co + Ci kh kw) that the branch of every row's layer holds."""
    unknown = sorted(ranks.keys() - set(frame.layer[frame.weights > 0]))
    if unknown:
        raise ValueError(f"There is no layer {unknown[0]!r} that could have a branch.")
    outputs = frame.outputs.clip(lower=1)
    return frame.layer.map(ranks).fillna(0).astype(int) * (outputs + frame.weights // outputs)


def _weighted(
    frame: pandas.DataFrame, recipe: Recipe | None, ranks: Mapping[str, int] | None = None
) -> pandas.DataFrame:
    """The frame with the bits of the two factors that a row multiplies, the bits that it takes on disk, and the bit
    operations of its branch."""
    owners = [r.layer.rpartition(".")[0] if r.kind in PRODUCTS else r.layer for r in frame.itertuples()]
    if recipe is not None:
        recipe.require_matches(frame.layer[frame.weights > 0], {o for o, k in zip(owners, frame.kind) if k in PRODUCTS})
    bits = [_bits(row, owner, recipe) for row, owner in zip(frame.itertuples(), owners)]
    frame = frame.assign(weight_bits=[w for w, _ in bits], act_bits=[a for _, a in bits])
    halves = [1 + (recipe is not None and recipe.layer(owner).split) for owner in owners]
    bounds = 2 * frame.outputs * halves * (frame.weight_bits < 32)
    acts = frame.inputs + [4 if kind in PRODUCTS else 2 * n for kind, n in zip(frame.kind, halves)]
    numbers = frame.parameters - frame.weights + bounds + acts * (frame.act_bits < 32)
    branch = _branches(frame, ranks or {})
    pixels = frame.macs // frame.weights.clip(lower=1)
    stored = frame.weights * frame.weight_bits + 32 * numbers + 16 * branch
    return frame.assign(stored=stored, branched=16 * 16 * branch * pixels)


def _bits(row, owner: str, recipe: Recipe | None) -> tuple[int, int]:
    product = row.kind in PRODUCTS
    if recipe is None or row.module not in recipe.modules or not (row.weights or (product and recipe.products(owner))):
        return 32, 32
    weight, act = recipe.bits(owner)
    return (act if product else weight), act


def _total(rows: pandas.DataFrame) -> dict[str, float]:
    used = rows[(rows.weights > 0) | rows.kind.isin(PRODUCTS)]
    average = lambda bits, by: float((bits * by).sum() / by.sum())
    return {
        "bytes": (int(rows.stored.sum()) + 7) // 8,
        "bit_operations": int((rows.macs * rows.weight_bits * rows.act_bits + rows.branched).sum()),
        "weight_bits": average(rows.weight_bits, rows.weights),
        "act_bits": average(used.act_bits, used.macs),
    }
