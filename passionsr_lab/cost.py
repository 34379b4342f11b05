"""What a one-step SR pipeline costs: parameters, MACs, size and operations (PassionSR Tables 1 and 3).

Everything is read off the architecture: one forward on the meta device, where tensors have shapes and no values.

Two countings.  "paper" sees what the paper's tool saw: convolutions, linears and LayerNorms.  "exact" also sees
GroupNorms and the attention products, and `bit_cost` adds to it what quantizing itself needs.  A norm is given four
operations per element, the convention behind Table 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import functional_call

if TYPE_CHECKING:
    import pandas

MODULES = ("encoder", "unet", "decoder")
COLUMNS = ("module", "layer", "kind", "parameters", "weights", "inputs", "outputs", "macs")
KINDS = {nn.Conv2d: "conv", nn.Linear: "linear", nn.LayerNorm: "layernorm", nn.GroupNorm: "groupnorm"}
PRODUCTS = ("qk", "av")
COUNTED_BY_PAPER = ("conv", "linear", "layernorm")

# (parameters in M, MACs in G) of OSEDiff's prompt branch as Table 1 gives them; cited, not counted here
PROMPT_BRANCH = {"DAPE": (160.335, 126.591), "CLIPEncoder": (193.055, 14.856)}
DIFFBIR = (1618, 49056)  # (parameters in M, operations in G) of the 50-step DiffBIR, Fig. 1

# -- counting ---------------------------------------------------------------------------------------------------------


def count(pipe: nn.Module, size: int = 512, counting: str = "exact") -> pandas.DataFrame:
    """One row per layer of a full-precision pipeline, in the order in which one image runs through them.

    Args:
        pipe: a `OneStepSR` on any device, "meta" included; neither its weights nor its state change.
        size: edge in pixels of the square image that comes out; batch 1, without the prompt branch.
        counting: "exact", or "paper" for the rows that Table 1 counts.

    Returns:
        module (encoder, unet, decoder); layer, its name in `pipe.named_modules()`, with `.qk` or `.av` behind the
        attention's name for the two products; kind (conv, linear, layernorm, groupnorm, qk, av); parameters, and of
        these `weights` (convolutions and linears: all but the bias); inputs, the channels that LET scales; outputs,
        the channels that have their own weight bounds; macs.  Layers without parameters (SiLU, softmax) have no row.

    Raises:
        ValueError: for another counting, a size that the networks do not divide, or a quantized pipeline.

    Example:
        >>> from passionsr_lab.cost import count
        >>> from passionsr_lab.sd21 import sd21
        >>> frame = count(sd21())
        >>> int(frame.parameters.sum()), int(frame.macs[frame.kind == "qk"].sum())
        (949564587, 48692936704)
    """
    import pandas as pd

    if counting not in ("exact", "paper"):
        raise ValueError(f"counting is 'exact' or 'paper', not {counting!r}.")
    if size < 1 or size % pipe.multiple:
        raise ValueError(f"size must be a positive multiple of {pipe.multiple} for this pipeline, not {size}.")
    layers = _layers(pipe)
    with _recording(pipe, layers) as rows:
        _meta_forward(pipe, size)
    frame = pd.DataFrame(list(rows.values()), columns=list(COLUMNS))
    return frame if counting == "exact" else frame[frame.kind.isin(COUNTED_BY_PAPER)].reset_index(drop=True)


def _layers(pipe: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """(layer, kind) by name of everything that a row can be about; refuses a pipeline with parameters elsewhere."""
    kinds = {name: (m, k) for name, m in pipe.named_modules() for t, k in KINDS.items() if isinstance(m, t)}
    owned = {id(p) for module, _ in kinds.values() for p in module.parameters()}
    for name, p in (*pipe.unet.named_parameters("unet"), *pipe.vae.named_parameters("vae")):
        if id(p) not in owned:
            raise ValueError(f"{name} is in no convolution, linear or norm: count the full-precision pipeline instead.")
    return kinds


class _Path(nn.Module):
    """Encode, predict the noise, decode: everything in the pipeline that has layers."""

    def __init__(self, pipe: nn.Module):
        super().__init__()
        self.pipe = pipe

    def forward(self, x: Tensor) -> Tensor:
        return self.pipe.decode(self.pipe.noise(self.pipe.encode(x)))


@torch.no_grad()
def _meta_forward(pipe: nn.Module, size: int) -> None:
    path = _Path(pipe)
    shapes = {name: t.to("meta") for name, t in (*path.named_parameters(), *path.named_buffers())}
    functional_call(path, shapes, torch.empty(1, 3, size, size, device="meta", dtype=pipe.prompt_embedding.dtype))


@contextmanager
def _recording(pipe: nn.Module, layers: dict[str, tuple[nn.Module, str]]) -> Iterator[dict[str, dict]]:
    """Within the block every layer that runs leaves a row in the dict, under its name."""
    from diffusers.models.attention_processor import Attention

    rows, shapes = {}, {}
    handles = [m.register_forward_hook(_layer_hook(name, kind, rows, shapes)) for name, (m, kind) in layers.items()]
    for name, module in pipe.named_modules():
        if isinstance(module, Attention):  # the input of its output projection is the second product
            handles.append(module.to_out[0].register_forward_pre_hook(_product_hook(name, rows, shapes)))
    try:
        yield rows
    finally:
        for handle in handles:
            handle.remove()


def _layer_hook(name: str, kind: str, rows: dict, shapes: dict):
    def hook(module: nn.Module, args: tuple, out: Tensor) -> None:
        shapes[name] = out.shape
        size = {"parameters": sum(p.numel() for p in module.parameters())}
        if kind in ("conv", "linear"):
            weight = module.weight  # (Co, Ci / groups, kh, kw) or (Co, Ci)
            inputs = weight.shape[1] * (module.groups if kind == "conv" else 1)
            size |= {"weights": weight.numel(), "inputs": inputs, "outputs": weight.shape[0]}
        _add(rows, name, kind, out.numel() * (weight[0].numel() if "weights" in size else 4), **size)

    return hook


def _product_hook(name: str, rows: dict, shapes: dict):
    def hook(module: nn.Module, args: tuple) -> None:
        q, keys, out = shapes[f"{name}.to_q"], shapes[f"{name}.to_k"][1], args[0].shape  # (B, N, C), Nk, (B, N, Cv)
        _add(rows, f"{name}.qk", "qk", q.numel() * keys, inputs=q[-1])
        _add(rows, f"{name}.av", "av", out.numel() * keys, inputs=out[-1])

    return hook


def _add(rows: dict, name: str, kind: str, macs: int, parameters=0, weights=0, inputs=0, outputs=0) -> None:
    """A new row, or more MACs in it when the layer has run before."""
    encoder = name.startswith(("vae.encoder.", "vae.quant_conv"))
    module = "unet" if name.startswith("unet.") else "encoder" if encoder else "decoder"
    before = rows[name]["macs"] if name in rows else 0
    rows[name] = dict(zip(COLUMNS, (module, name, kind, parameters, weights, inputs, outputs, before + macs)))


# -- the paper's tables -----------------------------------------------------------------------------------------------


def table1(pipe: nn.Module, branch: Mapping[str, tuple[float, float]] = PROMPT_BRANCH) -> pandas.DataFrame:
    """Table 1, the cost of OSEDiff for one 512x512 image: component, params_M, MACs_G, source, in the paper's counting.

    UNet and VAE are counted; the prompt branch (params_M and MACs_G by component, {} for none) is cited.  For SD2.1
    all figures are the printed ones to the last digit, except the VAE's MACs, and the total with them: 1781.229 G
    against the printed 1781.123 G (0.006 % less).  Table 3's operations follow from 1781.229 G by truncation.

    Example:
        >>> from passionsr_lab.sd21 import sd21
        >>> from passionsr_lab.cost import table1
        >>> table1(sd21()).MACs_G.tolist()
        [339.241, 1781.229, 126.591, 14.856, 2261.917]
    """
    import pandas as pd

    parts = _parts(count(pipe, counting="paper"))
    rows = [(name, p / 1e6, macs / 1e9, "counted") for name, (p, _, macs) in parts.items()]
    rows += [(name, *figures, "cited") for name, figures in branch.items()]
    source = "counted + cited" if branch else "counted"
    rows.append(("Total", sum(r[1] for r in rows), sum(r[2] for r in rows), source))
    return pd.DataFrame(rows, columns=["component", "params_M", "MACs_G", "source"]).round(3)


def table3() -> pandas.DataFrame:
    """Table 3, compression against OSEDiff, and Fig. 1's DiffBIR: method, bits, params_M, ops_G, reductions in %.

    Parameters of quantized parts count bits / 32 each, and their GroupNorms, which full-precision parts leave out of
    the count, one; operations are 2 * MACs * bits / 32.  As printed: params_M rounded, ops_G truncated.

    Example:
        >>> from passionsr_lab.cost import table3
        >>> table3().params_M.tolist()
        [1618, 1303, 949, 300, 246, 238, 178]
    """
    import pandas as pd

    from .sd21 import sd21

    parts = _parts(count(sd21()))
    params, ops = _compressed(parts, 32, ())
    branch_params, branch_macs = (sum(column) for column in zip(*PROMPT_BRANCH.values()))
    rows = [
        ("DiffBIR", "W32A32", *DIFFBIR, "cited"),
        ("OSEDiff", "W32A32", params + branch_params, ops + 2 * branch_macs, "counted + cited"),
        ("PassionSR-FP", "W32A32", params, ops, "counted"),
    ]
    for name, quantized in (("PassionSR-U", ("UNet",)), ("PassionSR-UV", ("UNet", "VAE"))):
        rows += [(name, f"W{b}A{b}", *_compressed(parts, b, quantized), "counted") for b in (8, 6)]
    table = pd.DataFrame(rows, columns=["method", "bits", "params_M", "ops_G", "source"])
    less = [(100 - 100 * table[c] / table[c][1]).round(2) for c in ("params_M", "ops_G")]
    table = table.assign(params_M=table.params_M.round().astype(int), ops_G=table.ops_G.astype(int))
    table.insert(3, "params_reduction_pct_vs_OSEDiff", less[0])
    table.insert(5, "ops_reduction_pct_vs_OSEDiff", less[1])
    return table


def _parts(frame: pandas.DataFrame) -> dict[str, tuple[int, int, int]]:
    """(parameters, GroupNorm parameters, MACs) of UNet and VAE in the paper's counting."""
    parts = {}
    for name, modules in (("UNet", ("unet",)), ("VAE", ("encoder", "decoder"))):
        rows = frame[frame.module.isin(modules)]
        seen = rows[rows.kind.isin(COUNTED_BY_PAPER)]
        groups = rows.parameters[rows.kind == "groupnorm"]
        parts[name] = (int(seen.parameters.sum()), int(groups.sum()), int(seen.macs.sum()))
    return parts


def _compressed(parts: dict, bits: int, quantized: Iterable[str]) -> tuple[float, float]:
    """(parameters in M, operations in G) with the named parts at `bits`."""
    params = sum(p * bits / 32 + groups if name in quantized else p for name, (p, groups, _) in parts.items())
    macs = sum(m * bits / 32 if name in quantized else m for name, (_, _, m) in parts.items())
    return params / 1e6, 2 * macs / 1e9


# -- the exact cost of a recipe ---------------------------------------------------------------------------------------


def bit_cost(
    frame: pandas.DataFrame,
    weight_bits: int,
    act_bits: int,
    keep: Mapping[str, int] | None = None,
    modules: Iterable[str] = MODULES,
    attention: bool = True,
) -> dict[str, float]:
    """Size and bit operations of a quantized pipeline, exceptions and the quantizers' own numbers included.

    Weights take their bits; what else is stored takes 32: biases, norms, two bounds per output channel of a weight,
    two per quantized activation (four for an attention product), one LET scale per input channel (LET's shift is in
    the bias).  An operation on
    w-bit weights and a-bit activations is w * a bit operations, in an attention product a * a, in a norm 32 * 32.

    Args:
        frame: of `count(pipe)`.
        weight_bits, act_bits: whole numbers from 1 to 32; 32 is full precision and needs no quantizer.
        keep: fnmatch patterns of layer names -> bits of weights and activations there; the last match decides.
            An attention product goes by its attention's name, without `.qk` or `.av`.
        modules: what is quantized; the rest has 32 bits.
        attention: whether the attention products are quantized.

    Returns:
        bytes; bit_operations per image; weight_bits, the average over weights; act_bits, the average over MACs.

    Raises:
        ValueError: bits or modules that do not exist, or a pattern in `keep` that matches no layer.

    Example:
        >>> from passionsr_lab.cost import bit_cost, count
        >>> from passionsr_lab.sd21 import sd21
        >>> frame = count(sd21())
        >>> full, small = bit_cost(frame, 32, 32), bit_cost(frame, 6, 6, {"unet.conv_out": 8})
        >>> round(full["bytes"] / small["bytes"], 2), round(full["bit_operations"] / small["bit_operations"], 1)
        (5.29, 27.4)
    """
    keep, modules = dict(keep or {}), tuple(modules)
    _check(frame, (weight_bits, act_bits, *keep.values()), keep, modules)
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


def _bits(row, default: tuple[int, int], keep: dict, modules: tuple[str, ...], attention: bool) -> tuple[int, int]:
    """Bits of the two factors that a row multiplies."""
    product = row.kind in PRODUCTS
    if row.module not in modules or not (row.weights or (product and attention)):
        return 32, 32
    kept = [bits for pattern, bits in keep.items() if fnmatchcase(_owner(row), pattern)]
    weight, act = (kept[-1], kept[-1]) if kept else default
    return (act, act) if product else (weight, act)


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
