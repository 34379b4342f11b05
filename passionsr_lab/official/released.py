"""PassionSR's released calibration files (`unet_ckpt_merge_saw_sep.pth`, `vae_ckpt_...`), in and out.

Such a file holds scales, offsets and bounds of the quantizers and the affine parameters of the norms, by the names of
the original Stable Diffusion code; neither weights nor bits.  `load_released` puts it into a diffusers model, strictly:
every tensor of the file has its place and every place its tensor.

    numerics="official"   the released code's arithmetic, bounds and scales to the last bit (`official_layers`)
    numerics="paper"      the same bounds and scales in this library's layers, with `CORRECTIONS`
"""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Sequence

import torch
from torch import Tensor, nn

from ..fullsize.names import diffusers_name, ldm_name
from ..pipeline.onestep import OneStepSR
from ..quantization.layer import QuantLayer
from ..quantization.place import QuantizedSR, quantize, quantized_layers
from ..quantization.recipe import Recipe, applies, recipe
from ..util import checkpoint
from ..util.files import write_checkpoint
from .corrections import CORRECTIONS, RELEASED, correct, official_tensors, places
from .norms import differing_norms, norms

__all__ = ["CORRECTIONS", "Released", "load_released", "read_released", "released_recipe", "save_released"]

MODULES_OF = {"unet": ("unet",), "vae": ("encoder", "decoder")}
NAMES = {part: f"{part}_ckpt_merge_saw_sep.pth" for part in MODULES_OF}
BOUNDS = {"x_min": "lower", "x_max": "upper"}
_QUANTIZERS = {
    "bias_quantizer": "bias_quantizer",
    **{f"{kind}_quantizer_{i}": f"{kind}_quantizers.{i}" for kind in ("weight", "act") for i in (0, 1)},
    **{f"act_quantizer_{theirs}": f"processor.quantizers.{ours}" for theirs, ours in zip("qkvw", "qkvp")},
}
TAILS = {  # how a tensor's name ends in the files, and here
    ".scale_factor": ".transform.scale",
    ".offset": ".transform.offset",
    ".scale_factor_qk": ".processor.transform_qk.factor",
    ".scale_factor_vw": ".processor.transform_v.factor",
    **{f".{q}.{b}": f".{ours}.{bound}" for q, ours in _QUANTIZERS.items() for b, bound in BOUNDS.items()},
    ".weight": ".weight",  # of the norms
    ".bias": ".bias",
}


@dataclass(frozen=True)
class Released:
    """What a released file holds.

    part: "unet" or "vae".
    prefix: what stood before every name: "", "model." or "model.model.".
    tensors: by this library's names, in the files' shapes.
    norms: weight and bias of the norms, by their diffusers names.
    """

    file: str
    part: str
    prefix: str
    tensors: dict[str, Tensor]
    norms: dict[str, Tensor]

    @property
    def split(self) -> bool:
        """Whether every layer has two quantizers."""
        return any(".act_quantizers.1." in key for key in self.tensors)


# -- in ---------------------------------------------------------------------------------------------------------------


def read_released(file: str | Path) -> Released:
    """A released file, opened by `checkpoint.read_checkpoint`, which runs no code that is in it.

    Raises:
        ValueError: the file cannot be read so, is no dict of tensors, or has names that such a file does not have.
    """
    file, content = Path(file), checkpoint.read_checkpoint(file)
    if not (isinstance(content, dict) and content and all(isinstance(v, Tensor) for v in content.values())):
        raise ValueError(f"{file} is not a calibration file: it must be a dict of tensors.")
    prefix = _prefix(content)
    tensors, found, unknown = {}, {}, []
    for key, value in content.items():
        name = _our_name(key.removeprefix(prefix))
        if name is None:
            unknown.append(key)
        else:
            (found if name.endswith((".weight", ".bias")) else tensors)[name] = value.to(torch.float32, copy=True)
    if unknown:
        raise ValueError(f"{file} has {len(unknown)} names that no calibration file has, the first: {unknown[0]!r}.")
    part = "vae" if any(k.startswith(("encoder.", "decoder.")) for k in tensors) else "unet"
    return Released(file.name, part, prefix, tensors, found)


def _prefix(content: dict) -> str:
    for prefix in ("model.model.", "model."):
        if all(isinstance(key, str) and key.startswith(prefix) for key in content):
            return prefix
    return ""


def _our_name(key: str) -> str | None:
    try:
        return _renamed(key, TAILS, diffusers_name)
    except (ValueError, StopIteration):
        return None


def _renamed(key: str, tails: dict[str, str], head) -> str:
    tail = next(t for t in tails if key.endswith(t))
    return head(key.removesuffix(tail)) + tails[tail]


def released_recipe(released: Sequence[Released], bits: Recipe | str | None = None) -> Recipe:
    """The compatibility recipe of released files; `bits` as "W8A8", by default taken from a file's name.

    Example:
        >>> file = Released("vae_ckpt_merge_saw_sep_W8A8.pth", "vae", "", {}, {})
        >>> released_recipe([file]).name, released_recipe([file]).modules
        ('W8A8 official', ('encoder', 'decoder'))
    """
    if not released or len({r.part for r in released}) < len(released):
        raise ValueError("Give one UNet file, one VAE file, or one of each.")
    if bits is None:
        named = {m[0] for m in (re.search(r"W\d+A\d+", r.file) for r in released) if m}
        if len(named) != 1:
            raise ValueError("The files do not say for how many bits they are; give the recipe, for example W8A8.")
        bits = named.pop()
    base = recipe(bits) if isinstance(bits, str) else bits
    for r in released if isinstance(bits, Recipe) else ():
        if r.split != applies(base.split, f"{r.part}."):
            count, said = ("two", "one") if r.split else ("one", "two")
            raise ValueError(f"Quantizers per layer: {count} in {r.file}, but {said} in the recipe (split).")
    return replace(
        base, name=f"{base.name.removesuffix(' official')} official",
        modules=tuple(m for r in sorted(released, key=lambda r: r.part == "unet") for m in MODULES_OF[r.part]),
        split=tuple(f"{r.part}.*" for r in released if r.split),
        attention=("unet.*",) if any(r.part == "unet" for r in released) else False,
    )  # fmt: skip


def load_released(
    pipe: OneStepSR,
    files: Sequence[str | Path | Released],
    bits: Recipe | str | None = None,
    numerics: str = "official",
    on_norms: str = "check",
) -> QuantizedSR:
    """A quantized pipeline with the scales and bounds of released files.

    Args:
        pipe: SD2.1 with OSEDiff's weights merged, in diffusers' classes; `sd21()` without weights will do to convert.
        files: a UNet file, a VAE file, or both.
        bits: "W8A8", "W6A6", or a recipe; by default what the files' names say.
        numerics: "official" or "paper", see above.
        on_norms: "check" that the files' norms are the model's, "keep" the model's, or "take" the files', as the
            released loader does; a model without weights takes them.

    Returns:
        the new pipeline; its `history["released"]` has a row per file: tensors and norms consumed, the largest
        difference between the file's norms and the model's (None for a model without weights).

    Raises:
        ValueError: a tensor without a place or a place without its tensor, a shape that does not fit, or norms that
            differ from the model's, which then is not the one that the file was made for.
    """
    released = [f if isinstance(f, Released) else read_released(f) for f in files]
    for value, choices in ((numerics, ("official", "paper")), (on_norms, ("check", "keep", "take"))):
        if value not in choices:
            raise ValueError(f"{value!r} is none of {', '.join(choices)}.")
    quantized = quantize(pipe, released_recipe(released, bits))
    quantized.method = RELEASED
    quantized.method.slots.install(quantized)
    rows = [_fill(quantized, r, on_norms) for r in released]
    if numerics == "paper":
        quantized = correct(quantized)
    quantized.history = {"method": "released", "numerics": numerics, "released": rows}
    if numerics == "paper":
        quantized.history["corrections"] = CORRECTIONS
    return quantized


@torch.no_grad()
def _fill(quantized: QuantizedSR, released: Released, on_norms: str) -> dict:
    part = getattr(quantized, released.part)
    empty, own = places(part), norms(part)
    _match(released, "tensor", released.tensors, empty)
    _match(released, "norm", released.norms, own)
    device = quantized.prompt_embedding.device
    for key, value in released.tensors.items():
        owner, _, name = key.rpartition(".")
        value = value.flatten() if empty[key].numel() == 0 else value.reshape(empty[key].shape)
        setattr(part.get_submodule(owner), name, value if device.type == "meta" else value.to(device))
    layers = quantized_layers(part)
    for layer in layers.values():
        layer.derive_range()
    difference, worst = differing_norms(own, released.norms)
    if worst and on_norms == "check":
        raise ValueError(
            f"{released.file}: {len(worst)} of {len(own)} norm tensors differ from the model's, by up to"
            f" {difference:.3g} (the first: {worst[0]!r}); this is not the model that the file was made for."
        )
    if on_norms == "take" or difference is None:
        _take_norms(part, released.norms)
    return {
        "file": released.file, "part": released.part, "prefix": released.prefix, "layers": len(layers),
        "tensors": len(released.tensors) + len(released.norms), "unmatched": 0, "norms": len(released.norms),
        "norms_differ": len(worst), "norm_difference": difference,
    }  # fmt: skip


def _take_norms(part: nn.Module, given: dict[str, Tensor]) -> None:
    """Gives the part norms of its own; the tensors it had may be shared with the pipeline it was made from."""
    for key, value in given.items():
        owner, _, name = key.rpartition(".")
        norm = part.get_submodule(owner)
        before = getattr(norm, name)
        value = value.clone() if before.is_meta else value.to(before.device, before.dtype, copy=True)
        setattr(norm, name, nn.Parameter(value, requires_grad=False))


def _match(released: Released, kind: str, given: dict[str, Tensor], places: dict[str, Tensor]) -> None:
    """Refuses the file unless its tensors and the model's places are the same, in name and size."""
    extra, missing = sorted(given.keys() - places.keys()), sorted(places.keys() - given.keys())
    if extra or missing:
        told = [
            f"{len(n)} {what} (the first: {n[0]!r})"
            for what, n in (("without a place", extra), ("missing", missing))
            if n
        ]
        raise ValueError(f"{released.file} does not fit the model's {released.part}: {kind}s {' and '.join(told)}.")
    for key, place in places.items():
        if place.numel() and place.numel() != given[key].numel():
            raise ValueError(
                f"{released.file} does not fit the model's {released.part}: {key!r} is {tuple(given[key].shape)} in the"
                f" file and {tuple(place.shape)} in the model."
            )


# -- out --------------------------------------------------------------------------------------------------------------


def save_released(quantized: QuantizedSR, folder: str | Path, prefix: str = "model.model.", latent: int = 64) -> dict:
    """Writes a calibrated pipeline as files that the released code loads.

    Args:
        quantized: of either numerics, with its whole UNet or its whole VAE (or both) quantized.
        folder: gets `unet_ckpt_merge_saw_sep.pth` and `vae_ckpt_merge_saw_sep.pth`.
        prefix: before every name; the released code's present head reads "model.model.".
        latent: side of the latents that the UNet will run on; the format ties it to one size.

    Returns:
        files (names to numbers of tensors) and lost: sentences on what the format cannot hold.

    Raises:
        ValueError: nothing that makes a whole file is quantized or calibrated.
    """
    whole = [part for part, modules in MODULES_OF.items() if set(modules) <= set(quantized.recipe.modules)]
    if not whole:
        raise ValueError("A released file holds the whole UNet or the whole VAE; this recipe quantizes neither.")
    files, lost = {}, []
    for part in whole:
        tensors, sentences = official_tensors(quantized, part, latent)
        state = _file_state(getattr(quantized, part), part, tensors, prefix)
        write_checkpoint(Path(folder) / NAMES[part], state)
        files[NAMES[part]] = len(state)
        lost += sentences
    return {"files": files, "lost": list(dict.fromkeys(lost))}


def _file_state(part: nn.Module, name: str, tensors: dict[str, Tensor], prefix: str) -> OrderedDict:
    """The file's names and shapes."""
    tails, state = {ours: theirs for theirs, ours in TAILS.items()}, OrderedDict()
    for key, value in (tensors | norms(part)).items():
        tail = next(t for t in tails if key.endswith(t))
        module = part.get_submodule(key.removesuffix(tail))
        state[prefix + ldm_name(key.removesuffix(tail)) + tails[tail]] = _file_shape(module, name, tail, value)
    return state


def _file_shape(module: nn.Module, part: str, tail: str, value: Tensor) -> Tensor:
    """[1, C, 1, 1] and [Co, 1, 1, 1] for a convolution, [1, C] and [Co, 1] for a Linear."""
    if not isinstance(module, QuantLayer) or value.ndim == 0:
        return value.detach().cpu().clone()
    axes = (1, 1) if part == "vae" or module.conv else ()
    shape = (-1, 1, *axes) if tail.startswith(".weight") else (1, -1, *axes)
    return value.detach().cpu().reshape(shape).clone()
