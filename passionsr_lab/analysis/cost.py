"""What a one-step SR pipeline costs, layer by layer: parameters and multiply-accumulates (MACs).

Everything is read off the architecture: one forward on the meta device, where tensors have shapes and no values.

The paper's tool saw convolutions, linears and LayerNorms (`COUNTED_BY_PAPER`); here GroupNorms and the attention
products are counted too.  A norm is given four operations per element, the convention behind the paper's Table 1.
`bitcost` weights the counts by bits, `paper` makes the paper's tables of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..util.hooks import copy_without_hooks

if TYPE_CHECKING:
    import pandas

COLUMNS = ("module", "layer", "kind", "parameters", "weights", "inputs", "outputs", "macs")
KINDS = {nn.Conv2d: "conv", nn.Linear: "linear", nn.LayerNorm: "layernorm", nn.GroupNorm: "groupnorm"}
PRODUCTS = ("qk", "av")
COUNTED_BY_PAPER = ("conv", "linear", "layernorm")


def count(pipe: nn.Module, size: int = 512) -> pandas.DataFrame:
    """One row per layer of a full-precision pipeline, in the order in which one image runs through them.

    Args:
        pipe: a `OneStepSR` on any device, "meta" included; it is not touched.
        size: edge in pixels of the square image that comes out; batch 1, without the prompt branch.

    Returns:
        module (encoder, unet, decoder); layer, its name in `pipe.named_modules()`, with `.qk` or `.av` behind the
        attention's name for the two products; kind (conv, linear, layernorm, groupnorm, qk, av); parameters, and of
        these `weights` (convolutions and linears: all but the bias); inputs, the channels that LET scales; outputs,
        the channels that have their own weight bounds; macs.  Layers without parameters (SiLU, softmax) have no row.

    Raises:
        ValueError: for a size that the networks do not divide, or a quantized pipeline.

    Example:
        >>> from passionsr_lab.analysis.cost import count
        >>> from passionsr_lab.fullsize.sd21 import sd21
        >>> frame = count(sd21())
        >>> int(frame.parameters.sum()), int(frame.macs[frame.kind == "qk"].sum())
        (949564587, 48692936704)
    """
    import pandas as pd

    if size < 1 or size % pipe.multiple:
        raise ValueError(f"size must be a positive multiple of {pipe.multiple} for this pipeline, not {size}.")
    pipe = copy_without_hooks(pipe, {t: t.detach().to("meta") for t in (*pipe.parameters(), *pipe.buffers())})
    rows = _record(pipe, _layers(pipe))
    with torch.no_grad():
        image = torch.empty(1, 3, size, size, device="meta", dtype=pipe.prompt_embedding.dtype)
        pipe.decode(pipe.noise(pipe.encode(image)))
    return pd.DataFrame(list(rows.values()), columns=list(COLUMNS))


def _layers(pipe: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """(layer, kind) by name of everything that a row can be about; refuses a pipeline with parameters elsewhere."""
    kinds = {name: (m, k) for name, m in pipe.named_modules() for t, k in KINDS.items() if isinstance(m, t)}
    owned = {id(p) for module, _ in kinds.values() for p in module.parameters()}
    for name, p in (*pipe.unet.named_parameters("unet"), *pipe.vae.named_parameters("vae")):
        if id(p) not in owned:
            raise ValueError(f"{name} is in no convolution, linear or norm: count the full-precision pipeline instead.")
    return kinds


def _record(pipe: nn.Module, layers: dict[str, tuple[nn.Module, str]]) -> dict[str, dict]:
    """A dict in which every layer that runs will leave a row under its name."""
    from diffusers.models.attention_processor import Attention

    rows, shapes = {}, {}
    for name, (module, kind) in layers.items():
        module.register_forward_hook(_layer_hook(name, kind, rows, shapes))
    for name, module in pipe.named_modules():
        if isinstance(module, Attention):  # the input of its output projection is the second product
            module.to_out[0].register_forward_pre_hook(_product_hook(name, rows, shapes))
    return rows


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
