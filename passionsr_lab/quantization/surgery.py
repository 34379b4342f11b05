"""Puts quantized layers into a pipeline, takes them out again, saves and loads them."""

from __future__ import annotations

import copy
import hashlib
import json
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, Iterator

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from ..fullsize import osediff, weights
from ..imaging.tiling import Tiling
from ..official.layers import OfficialAttention, OfficialLayer
from ..pipeline import folder as model
from ..pipeline.onestep import OneStepSR
from ..util.files import write_json, write_tensors
from ..util.names import MODULES
from .layer import MODES, QuantAttention, Quantized, QuantLayer
from .quantizer import BoundaryQuantizer
from .recipe import Recipe
from .recipe import recipe as recipe_named
from .transform import EquivalentTransform

TENSORS, DESCRIPTION, NORMS = "quantized.safetensors", "quantized.json", "norms.safetensors"


class QuantizedSR(OneStepSR):
    """A pipeline with fake-quantized layers: `simulated`, so it shows the quality of low bits but not their speed."""

    label = "simulated"

    def __init__(self, pipe: OneStepSR, recipe: Recipe):
        super().__init__(
            pipe.unet, pipe.vae, pipe.scheduler, pipe.prompt_embedding, pipe.timestep, pipe.upscale, None, pipe.name
        )
        self.sources = dict(pipe.sources)
        self.recipe = recipe
        self.history: dict = {}  # how it was calibrated; saved beside the tensors

    @property
    def tiling(self) -> Tiling:
        """Tiles of the size that it was calibrated on: what "auto" takes for large pictures."""
        return Tiling(self.history["tile"]) if "tile" in self.history else super().tiling


def parts(pipe: OneStepSR) -> dict[str, dict[str, nn.Module]]:
    """The pipeline's three modules, each as named pieces; the VAE's quant convolutions go with encoder and decoder."""
    vae = pipe.vae
    found = {
        "encoder": {"vae.encoder": vae.encoder, "vae.quant_conv": vae.quant_conv},
        "unet": {"unet": pipe.unet},
        "decoder": {"vae.post_quant_conv": vae.post_quant_conv, "vae.decoder": vae.decoder},
    }
    return {name: {k: v for k, v in pieces.items() if v is not None} for name, pieces in found.items()}


def quantize(pipe: OneStepSR, recipe: Recipe | str) -> QuantizedSR:
    """A new pipeline in which every Linear, Conv2d and attention of the recipe's modules is fake-quantized.

    The given pipeline stays as it is; the float weights are shared between the two.  The new one has no ranges yet:
    `calibrate` it before use.  The prompt branch is left out (PassionSR-FP).

    Example:
        >>> import passionsr_lab as lab
        >>> q = lab.quantize(lab.tiny(), lab.W6A6)
        >>> q.label
        'simulated'
    """
    recipe = recipe_named(recipe) if isinstance(recipe, str) else recipe
    if isinstance(pipe, QuantizedSR):
        raise ValueError("This pipeline is quantized already; quantize the full-precision one.")
    shared = {id(t): t for t in (*pipe.parameters(), *pipe.buffers())}
    new = QuantizedSR(copy.deepcopy(pipe.prune(), shared), recipe)
    matched = set()
    for module in recipe.modules:
        for prefix, piece in parts(new)[module].items():
            for name, layer in list(piece.named_modules(prefix=prefix)):
                matched |= _wrap(new, name, layer, recipe)
    return new.to(pipe.prompt_embedding.device)


def _wrap(pipe: QuantizedSR, name: str, layer: nn.Module, recipe: Recipe) -> set[str]:
    official = recipe.numerics == "official"
    if isinstance(layer, (nn.Linear, nn.Conv2d)):
        pipe.set_submodule(name, (OfficialLayer if official else QuantLayer)(layer, name, recipe))
        return {name}
    if type(layer).__name__ == "Attention" and recipe.products(name):
        layer.set_processor((OfficialAttention if official else QuantAttention)(layer, name, recipe))
        return {name}
    return set()


def unquantize(pipe: QuantizedSR) -> OneStepSR:
    """The full-precision pipeline back, from the quantized one's own float weights."""
    plain = copy.deepcopy(pipe, {id(t): t for t in (*pipe.parameters(), *pipe.buffers())})
    for name, layer in list(quantized_layers(plain).items()):
        if isinstance(layer, QuantLayer):
            plain.set_submodule(name, layer.layer)
        else:
            plain.get_submodule(name).set_processor(layer.original)
    return OneStepSR.prune(plain)


def quantized_layers(module: nn.Module) -> dict[str, Quantized]:
    """Quantized layers and attentions by their name, in definition order."""
    return {m.name: m for m in module.modules() if isinstance(m, Quantized)}


def pieces(pipe: OneStepSR, module: str) -> nn.ModuleList:
    """The modules behind "encoder", "unet", "decoder" or "all", as one."""
    names = MODULES if module == "all" else (module,)
    return nn.ModuleList(piece for name in names for piece in parts(pipe)[name].values())


def parameters(module: nn.Module, kind: str) -> dict[float, list[nn.Parameter]]:
    """The parameters of LET ("transform") or LBQ ("bounds") in a module, by the `unit` of what they belong to."""
    owner = {"transform": EquivalentTransform, "bounds": BoundaryQuantizer}[kind]
    found: dict[float, list[nn.Parameter]] = {}
    for m in module.modules():
        if isinstance(m, owner):
            found.setdefault(m.unit, []).extend(m.parameters())
    return found


@contextmanager
def mode(module: nn.Module, name: str) -> Iterator[None]:
    """Within the block the quantized layers are in mode "float", "observe" or "quantized"; afterwards as before."""
    if name not in MODES:
        raise ValueError(f"mode is one of {MODES}, not {name!r}.")
    layers = list(quantized_layers(module).values())
    before = [layer.mode for layer in layers]
    try:
        for layer in layers:
            layer.mode = name
        yield
    finally:
        for layer, old in zip(layers, before):
            layer.mode = old


def layer_table(pipe: QuantizedSR):
    """One row per quantized layer, in network order: module, kind, bits, shape, observed range.

    Example:
        >>> import passionsr_lab as lab
        >>> lab.layer_table(lab.quantize(lab.tiny(), lab.W6A6)).bits.unique().tolist()
        [6, 8]
    """
    import pandas as pd

    rows = []
    for module in MODULES:
        for name, layer in quantized_layers(pieces(pipe, module)).items():
            if isinstance(layer, QuantLayer):
                kind, shape, quantizer = (
                    type(layer.layer).__name__,
                    tuple(layer.layer.weight.shape),
                    layer.act_quantizers[0],
                )
                low, high = layer.range.low.min().item(), layer.range.high.max().item()
            else:
                kind, shape, quantizer, low, high = "attention", (), layer.quantizers["q"], None, None
            rows.append((module, name, kind, quantizer.bits, shape, low, high))
    return pd.DataFrame(rows, columns=["module", "layer", "kind", "bits", "shape", "low", "high"])


# -- files ----------------------------------------------------------------------------------------------------------


SHAPES = "shapes:"  # what the fingerprint of a model without weights begins with


def fingerprint(pipe: OneStepSR, values: bool = True) -> str:
    """A hash of a full-precision model: names, shapes and a sample of every weight of UNet and VAE.

    Without `values`, and for a model on the "meta" device, of names and shapes only.
    """
    digest, values = hashlib.sha256(), values and not pipe.prompt_embedding.is_meta
    for name, tensor in sorted(_float_weights(pipe).items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        if values:
            flat = tensor.detach().float().cpu().flatten()
            digest.update(flat[:: max(1, len(flat) // 256)].numpy().tobytes())
    return digest.hexdigest() if values else SHAPES + digest.hexdigest()


def norms(part: nn.Module) -> dict[str, Tensor]:
    """Weight and bias of every norm in a UNet or VAE."""
    kinds = (nn.GroupNorm, nn.LayerNorm)
    found = {name: m for name, m in part.named_modules() if isinstance(m, kinds)}
    return {f"{name}.{key}": p for name, m in found.items() for key, p in m.named_parameters(recurse=False)}


def differing_norms(own: dict[str, Tensor], given: dict[str, Tensor]) -> tuple[float | None, list[str]]:
    """The largest difference between two sets of norms (None without weights), the names beyond float16's rounding."""
    if any(p.is_meta for p in own.values()):
        return None, []
    apart = {k: (own[k].detach().float().cpu() - v.float().cpu()).abs() for k, v in given.items()}
    beyond = {k for k, d in apart.items() if (d > 2**-10 * given[k].float().cpu().abs().clamp_min(1)).any()}
    return max((d.max().item() for d in apart.values()), default=0.0), sorted(beyond)


def _float_weights(pipe: OneStepSR) -> dict[str, Tensor]:
    owned = _state(pipe)
    own = {f"{part}.{k}": v for part in ("unet", "vae") for k, v in getattr(pipe, part).state_dict().items()}
    return {k.replace(".layer.", "."): v for k, v in own.items() if k not in owned}


def _state(pipe: OneStepSR) -> dict[str, Tensor]:
    """Everything quantization added: trims, transforms, ranges."""
    names = {name for name, m in pipe.named_modules() if isinstance(m, Quantized)}
    state = {}
    for name in names:
        for key, value in pipe.get_submodule(name).state_dict().items():
            if not key.startswith(("layer.", "original.")):
                state[f"{name}.{key}"] = value
    return state


def _mark(fingerprint: str, recipe: dict) -> str:
    """What ties a file of tensors to its description."""
    return hashlib.sha256(f"{fingerprint}{json.dumps(recipe, sort_keys=True)}".encode()).hexdigest()


def save(pipe: QuantizedSR, folder: str | Path) -> Path:
    """Writes what quantization added (not the model's own weights): `quantized.safetensors` and `quantized.json`.

    Example:
        >>> import tempfile, passionsr_lab as lab
        >>> q = lab.quantize(lab.tiny(), lab.W8A8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     lab.load(lab.save(q, folder)).recipe.name
        'W8A8'
    """
    import diffusers

    folder, mark = Path(folder), fingerprint(pipe)
    write_tensors(folder / TENSORS, _state(pipe), {"made_for": _mark(mark, pipe.recipe.to_dict())})
    description = {
        "label": pipe.label,
        "model": pipe.name,
        "fingerprint": mark,
        "sources": pipe.sources,
        "recipe": pipe.recipe.to_dict(),
        "calibration": pipe.history,
        "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__},
    }
    write_json(folder / DESCRIPTION, description)
    return folder


def load(
    folder_or_id: str | Path, pipe: OneStepSR | None = None, prompt: bool | str | Path | Callable = False
) -> OneStepSR | QuantizedSR:
    """Loads a model: full precision (see `model.load` and `osediff.load`), or a folder that `save` wrote.

    Args:
        folder_or_id: "tiny", "osediff" or "sd21", a model folder, a folder of SD2.1 and OSEDiff weights as `weights`
            describes it, SD2.1's single file, a hub id, or a folder of quantization tensors.
        pipe: for a quantized folder, the full-precision model it belongs to; by default the one it names.
        prompt: for a full-precision model, keep its prompt branch; for OSEDiff, whose tagger is not on the registries,
            the tags themselves (see `osediff.load`).

    Raises:
        ValueError: something is missing or damaged, or the tensors belong to another model.
    """
    folder = Path(folder_or_id)
    if not (folder / DESCRIPTION).is_file():
        return _full_precision(folder_or_id, prompt)
    try:
        description = json.loads((folder / DESCRIPTION).read_text())
        recipe, name, mark = Recipe.from_dict(description["recipe"]), description["model"], description["fingerprint"]
        with safe_open(folder / TENSORS, "pt") as file:
            state = {key: file.get_tensor(key) for key in file.offset_keys()}
            made_for = (file.metadata() or {}).get("made_for")
    except Exception as error:
        raise ValueError(f"{folder} is not a complete quantized model: {error}") from error
    if made_for != _mark(mark, description["recipe"]):
        raise ValueError(f"{folder} holds the tensors of one calibration and the description of another; copy both.")
    try:
        pipe = _full_precision(name) if pipe is None else pipe
    except ValueError as error:
        raise ValueError(f"{folder} belongs to the model {name!r}; load that and give it as pipe=: {error}") from None
    bare = mark.startswith(SHAPES)
    if fingerprint(pipe, values=not bare) != mark or (bare and not _norms_fit(folder, pipe)):
        raise ValueError(f"{folder} was calibrated for another model ({name!r}), not for {pipe.name!r}; load that one.")
    quantized = quantize(pipe, recipe)
    load_state(quantized, state)
    quantized.history = description.get("calibration", {})
    return quantized


def _full_precision(name: str | Path, prompt: bool | str | Path | Callable = False) -> OneStepSR:
    if weights.full_size(name):
        return osediff.load(name, prompt)
    if not isinstance(prompt, bool):
        raise ValueError(f"{name} has a tagger of its own: prompt is True or False, not {prompt!r}.")
    return model.load(name, prompt)


def _norms_fit(folder: Path, pipe: OneStepSR) -> bool:
    """Whether the norms beside tensors that were made for a model without weights are this model's."""
    given = load_file(folder / NORMS) if (folder / NORMS).is_file() else {}
    own = {f"{part}.{k}": v for part in ("unet", "vae") for k, v in norms(getattr(pipe, part)).items()}
    return given.keys() <= own.keys() and not differing_norms(own, given)[1]


def load_state(pipe: QuantizedSR, state: dict[str, Tensor]) -> None:
    """Puts back what `save` took; `ValueError` names the first tensor that is missing, left over or misshapen."""
    own = _state(pipe)
    misshapen = [k for k in own.keys() & state.keys() if own[k].numel() and own[k].shape != state[k].shape]
    wrong = sorted(own.keys() ^ state.keys()) + misshapen
    if wrong:
        raise ValueError(f"The quantization tensors do not fit the model: {wrong[0]} and {len(wrong) - 1} more differ.")
    with torch.no_grad():
        for key, value in own.items():
            if value.numel():
                value.copy_(state[key])
            else:  # its size is in the file only: official scales per token
                owner, _, name = key.rpartition(".")
                setattr(pipe.get_submodule(owner), name, state[key].to(value.device, copy=True))


def state(pipe: QuantizedSR) -> dict[str, Tensor]:
    """A copy of everything that calibration changes."""
    return {k: v.detach().clone() for k, v in _state(pipe).items()}
