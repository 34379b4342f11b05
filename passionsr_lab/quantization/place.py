"""Puts quantized layers into a pipeline, and takes them out again."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import torch
from torch import nn

from ..util.hooks import copy_without_hooks
from ..util.names import MODULES, uncompiled_name
from ..util.turns import Turns
from .attention import QuantAttention
from .layer import Quantized, QuantLayer
from .recipe import Recipe
from .recipe import recipe as recipe_named

FORWARDED = frozenset({
    *("unet", "vae", "scheduler", "prompt", "prompt_embedding", "timestep", "upscale", "name", "sources"),
    *("factor", "multiple", "tile", "tiling", "fits_whole", "segments", "prepare", "picture", "strips"),
    *("encode", "denoise", "decode", "restore", "noise", "clean"),
    *("parameters", "buffers", "modules", "named_modules", "get_submodule", "set_submodule"),
})  # fmt: skip


class QuantizedSR:
    """A pipeline with fake-quantized layers: `simulated`, so it shows the quality of low bits but not their speed.

    It has a pipeline, `pipe`, and passes on what makes sense for it (`FORWARDED`).  What would not is not there: its
    weights are those of the pipeline that it was made from, and `lab.save` writes what calibration added.

    Attributes:
        recipe: what is quantized; layers: quantized layers and attentions by name, in definition order.
        method: what filled the slots, a `Method`, or None before the first calibration.
        history: how it was calibrated; saved beside the tensors.
    """

    label = "simulated"

    def __init__(self, pipe: nn.Module, recipe: Recipe):
        self.pipe, self.recipe, self.method = pipe, recipe, None
        self.history: dict = {}
        self.turns = Turns()

    def __call__(self, image, tiling="auto", colour: str = "nofix"):
        """Super-resolves as `OneStepSR.forward` does; waits for a step of calibration in another thread."""
        with self.turns.using():
            return self.pipe(image, tiling, colour)

    def __getattr__(self, name: str):
        if name not in FORWARDED:
            raise AttributeError(f"A quantized pipeline has no {name!r}; its full-precision one may (lab.unquantize).")
        return getattr(self.pipe, name)

    def __setattr__(self, name: str, value) -> None:
        if name in FORWARDED:
            raise ValueError(f"{name} is the full-precision pipeline's; set it there and quantize anew.")
        super().__setattr__(name, value)

    def __dir__(self):
        return sorted({*super().__dir__(), *FORWARDED})

    @cached_property
    def layers(self) -> dict[str, Quantized]:
        """Quantized layers and attentions by their name, in definition order."""
        return quantized_layers(self.pipe)

    def to(self, device: torch.device | str) -> QuantizedSR:
        """Moves to a device; the pipeline that it was made from stays where it is."""
        self.pipe.to(torch.device(device))
        return self


def quantize(pipe: nn.Module, recipe: Recipe | str, modules: tuple[str, ...] | None = None) -> QuantizedSR:
    """A new pipeline in which every Linear, Conv2d and attention of the recipe's modules is fake-quantized.

    The given pipeline stays as it is; the float weights are shared between the two.  The new one has no quantizers yet:
    `calibrate` it before use.  The prompt branch is left out (PassionSR-FP).

    Args:
        pipe: a `OneStepSR`.
        recipe: what is quantized, or its name.
        modules: instead of the recipe's modules; ("unet",) is PassionSR-U.

    Raises:
        ValueError: not a full-precision pipeline, or a pattern of the recipe that matches no layer.

    Example:
        >>> import passionsr_lab as lab
        >>> q = lab.quantize(lab.tiny(), lab.W6A6)
        >>> q.label
        'simulated'
    """
    if isinstance(pipe, QuantizedSR):
        raise ValueError("This pipeline is quantized already; quantize the full-precision one.")
    recipe = recipe if isinstance(recipe, Recipe) else recipe_named(recipe)
    recipe = recipe if modules is None else replace(recipe, modules=tuple(modules))
    new = QuantizedSR(sharing_weights(pipe.prune()), recipe)
    found = {}
    for segment in new.segments():
        for prefix, module in segment.modules.items() if segment.name in recipe.modules else ():
            found |= dict(module.named_modules(prefix=prefix))
    names = {path: uncompiled_name(path) for path in found}
    linear = {path: names[path] for path, m in found.items() if isinstance(m, (nn.Linear, nn.Conv2d))}
    attentions = {path: names[path] for path, m in found.items() if type(m).__name__ == "Attention"}
    recipe.require_matches(linear.values(), attentions.values())
    for path, name in attentions.items():
        if recipe.products(name):
            found[path].set_processor(QuantAttention.of(found[path], name, recipe.layer(name)))
    for path, name in linear.items():
        new.set_submodule(path, QuantLayer(found[path], name, recipe.layer(name)).to(found[path].weight.device))
    return new


def unquantize(q: QuantizedSR) -> nn.Module:
    """The full-precision pipeline back, from the quantized one's own float weights."""
    plain = sharing_weights(q.pipe)
    for path, layer in list(plain.named_modules()):
        if isinstance(layer, QuantLayer):
            plain.set_submodule(path, layer.layer)
        elif isinstance(layer, QuantAttention):
            plain.get_submodule(path.removesuffix(".processor")).set_processor(layer.original)
    return plain.prune()


def sharing_weights(pipe: nn.Module) -> nn.Module:
    """A copy whose parameters and buffers share their memory with the original, but move between devices alone."""
    shared = {p: nn.Parameter(p.data, requires_grad=False) for p in pipe.parameters()}
    return copy_without_hooks(pipe, shared | {b: b.data for b in pipe.buffers()})


def quantized_layers(module: nn.Module) -> dict[str, Quantized]:
    """Quantized layers and attentions by their name, in definition order."""
    return {m.name: m for m in module.modules() if isinstance(m, Quantized)}


def segment_modules(q: QuantizedSR, name: str) -> nn.ModuleList:
    """The modules behind "encoder", "unet", "decoder" or "all", as one."""
    chosen = MODULES if name == "all" else (name,)
    return nn.ModuleList(m for s in q.segments() if s.name in chosen for m in s.modules.values())
