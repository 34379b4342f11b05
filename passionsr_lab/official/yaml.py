"""The YAML files of PassionSR's code, as they are, into this library's own options.

Every key that such a file may have is a field below: used, or marked with the reason why it has no use here.  Paths
are taken as they stand, relative to where the command runs.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from reprlib import repr as short
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from ..quantization.recipe import AT_LEAST, Recipe, recipe
from . import strict_yaml

# -- what a file may hold ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NoUse:
    """Marks a key that has no use here, with the reason."""

    why: str


class Keys(BaseModel):
    """Names and values; other names are refused."""

    model_config = ConfigDict(strict=True, extra="forbid")


def keys(*bases: type[Keys], unused: dict[str, str] | None = None, **used) -> type[Keys]:
    """A schema.

    Args:
        unused: reasons to the names, in one string, of keys that may have any value and have no use here.
        used: names to a type, to (type, default) where the key may be missing, or to the one value that may be given.
    """
    none = {n: (Annotated[object, NoUse(why)], None) for why, names in (unused or {}).items() for n in names.split()}
    one = {n: (Literal[value], value) for n, value in used.items() if isinstance(value, (str, int))}
    typed = {n: kind if isinstance(kind, tuple) else (kind, ...) for n, kind in used.items() if n not in one}
    return create_model("Keys", __base__=bases or Keys, **none, **one, **typed)


UNREAD = "the released code does not read it either"
COUNT, BITS = Annotated[int, Field(ge=1, le=1_000_000)], Annotated[int, Field(ge=2, le=16)]
PLACE = Annotated[str, Field(min_length=1)]
ALONE, BOTH = "quantize_config.only_Unet is True", "quantize_config.only_Unet is False"
STAGES = ("Unet_train", "encoder_train", "decoder_train")

Block = keys(
    weight_quant_bits=BITS, act_quant_bits=BITS, split=bool, s_alpha=(float, 0.5), quantype="PTQ", method="saw_sep",
    layer_type="2Dquant", weight_sym=False, weight_sign=False, act_sym=False, act_sign=False,
    unused={UNREAD: "only_weight"},
)  # fmt: skip
Training = keys(
    cali_epochs=COUNT, loss_function="mse",
    unused={"rates are relative to ranges here, and fall by a cosine": "cali_learning_rate scheduler",
            UNREAD: "save_interval"},
)  # fmt: skip
Calibration = keys(
    quantize=Literal[True], only_Unet=bool, Unet=Block, output_modelpath=PLACE,
    unused={"ranges are taken from all pairs; a step sees one, as theirs": "cali_batch_size", UNREAD: "act"},
)  # fmt: skip
CalibrationU = keys(Calibration, Training, unused={ALONE: " ".join(("Vae", *STAGES))})
CalibrationUV = keys(
    Calibration, Vae=Block, **dict.fromkeys(STAGES, Training), unused={BOTH: " ".join(Training.model_fields)}
)
Released = keys(Block, quant_ckpt=PLACE)
Inference = keys(quantize=bool, only_Unet=bool, unused={"quantize_config.quantize is False": "Unet Vae"})
InferenceU = keys(Inference, Unet=Released, unused={ALONE: "Vae"})
InferenceUV = keys(Inference, Unet=Released, Vae=Released)
Basic = keys(
    upscale=4,
    unused={"weights are found by --model (default here: osediff)": "lora_weights_path merge_lora config ckpt"
            " pretrained_model_name_or_path context_embedding_path", UNREAD: "precision scale"},
)  # fmt: skip
File = keys(unused={"the device is this library's choice": "device", UNREAD: "act scale"})
CalibrationFile = keys(
    File, cali_img_path=PLACE,
    basic_config=keys(
        Basic, seed=(Annotated[int, Field(ge=0, lt=2**32)], 42), process_size=(COUNT, 512),
        unused={"calibration does not correct colours": "align_method"},
    ),
)  # fmt: skip
InferenceFile = keys(
    File, out_dir=PLACE, dataset=(Annotated[str, Field(pattern=r"^(\w[\w.-]*)?$")], ""),
    basic_config=keys(
        Basic, align_method=(Literal["adain", "wavelet", "nofix"], None),
        unused={"nothing is drawn at random": "seed", "pictures of any size are taken as they are": "process_size"},
    ),
    tile_config=keys(
        latent_tiled_size=(COUNT, None), latent_tiled_overlap=(Annotated[int, Field(ge=0)], None),
        unused={"encoder and decoder run in the UNet's tiles": "vae_encoder_tiled_size vae_decoder_tiled_size"},
    ),
)  # fmt: skip
OWN = {"calibrate": "cali_img_path", "upscale": "out_dir"}  # a key that only files for this command have


def schema(command: str, content: dict) -> type[Keys]:
    """What a file for this command may hold, which depends on what it says to quantize."""
    block = content.get("quantize_config")
    quantized, alone = (isinstance(block, dict) and block.get(key) is True for key in ("quantize", "only_Unet"))
    if command == "calibrate":
        return keys(CalibrationFile, quantize_config=CalibrationU if alone else CalibrationUV)
    return keys(InferenceFile, quantize_config=(InferenceU if alone else InferenceUV) if quantized else Inference)


# -- reading ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OfficialConfig:
    """What a file says in this library's words.

    options: values by the names of the command's own options; `recipe` is a `Recipe`.
    unused: the file's keys that have no use here, with the reason.
    """

    options: dict
    unused: dict[str, str] = field(default_factory=dict)

    @property
    def warnings(self) -> list[str]:
        """One line per reason."""
        reasons = dict.fromkeys(self.unused.values())
        return [f"{', '.join(k for k, why in self.unused.items() if why == reason)}: {reason}" for reason in reasons]


def read_options(file: str | Path, command: str) -> OfficialConfig:
    """The options that a YAML file of the released code sets for "calibrate" or "upscale".

    Raises:
        ValueError: the file is no such file, or keys are unknown, missing, contradict each other, or ask for what this
            library does not do; the message names them and their lines.
    """
    content, lines = strict_yaml.read_strict(file)
    other = next(c for c in OWN if c != command)
    if OWN[other] in content and OWN[command] not in content:
        raise ValueError(f"{file} is a file for `{other}`, not for `{command}` (it has {OWN[other]}).")
    try:
        values = schema(command, content).model_validate(content)
        return OfficialConfig(calibration(values) if command == "calibrate" else inference(values), _unused(values))
    except ValidationError as error:
        raise ValueError(f"{file}{_told(error, lines)}.") from None
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def _told(error: ValidationError, lines: dict[str, int]) -> str:
    """What follows the file's name: all keys that are unknown, or else the first thing that is wrong."""
    problems = {".".join(map(str, p["loc"])): p for p in error.errors(include_url=False)}
    unknown = [f"{key[:100]} (line {lines[key]})" for key, p in problems.items() if p["type"] == "extra_forbidden"]
    if unknown:
        return f" has keys that the released code's files do not have: {', '.join(unknown)}"
    key = min(problems, key=lambda key: lines.get(key, math.inf))
    problem = problems[key]
    if problem["type"] == "missing":
        return f": {key} is missing"
    told = re.sub(r"^\w+ should", "here it must", problem["msg"].removesuffix(" or instance of Keys"))
    return f", line {lines[key]}: {key} is {short(problem['input'])}; {told}"


def _unused(values: Keys, prefix: str = "") -> dict[str, str]:
    found = {}
    for name, info in type(values).model_fields.items():
        value = getattr(values, name)
        if isinstance(value, Keys):
            found |= _unused(value, f"{prefix}{name}.")
        elif name in values.model_fields_set:
            found |= {f"{prefix}{name}": mark.why for mark in info.metadata if isinstance(mark, NoUse)}
    return found


# -- in this library's words ------------------------------------------------------------------------------------------


def calibration(file: Keys) -> dict:
    """Options of `calibrate`."""
    q = file.quantize_config
    stages = {"cali_epochs": q} if q.only_Unet else {f"{s}.cali_epochs": getattr(q, s) for s in STAGES}
    epochs = {key: stage.cali_epochs for key, stage in stages.items()}
    if len({*epochs.values()}) > 1:
        told = ", ".join(f"{key} {count}" for key, count in epochs.items())
        raise ValueError(f"quantize_config has different epochs ({told}); here one number serves all stages.")
    return {
        "model": "osediff", "recipe": official_recipe(q), "method": "passionsr",
        "method_options": released_start(q), "images": file.cali_img_path,
        "pairs": None, "out": Path(q.output_modelpath), "epochs": next(iter(epochs.values())), "batch": 1,
        "seed": file.basic_config.seed, "size": file.basic_config.process_size,
    }  # fmt: skip


def inference(file: Keys) -> dict:
    """Options of `upscale`; those that the file leaves out are the command's own."""
    q, basic, tiles = file.quantize_config, file.basic_config, file.tile_config
    blocks = [] if not q.quantize else [q.Unet] if q.only_Unet else [q.Unet, q.Vae]
    maybe = {"colour": basic.align_method, "tile": tiles.latent_tiled_size, "overlap": tiles.latent_tiled_overlap}
    return {
        "model": "osediff", "released": [Path(block.quant_ckpt) for block in blocks],
        "recipe": official_recipe(q) if blocks else None, "output": Path(file.out_dir) / file.dataset,
    } | {name: value for name, value in maybe.items() if value is not None}  # fmt: skip


def official_recipe(q: Keys) -> Recipe:
    """The UNet's bits, with the VAE's as an exception where they differ."""
    unet, vae = q.Unet, q.Unet if q.only_Unet else q.Vae
    bits, own = ((b.weight_quant_bits, b.act_quant_bits) for b in (unet, vae))
    made = recipe("W{}A{}".format(*bits))
    if bits != own:
        names = [pattern for pattern, _ in AT_LEAST if pattern.startswith("vae.")]
        made = replace(made, name="{} VAE W{}A{}".format(made.name, *own))
        made = made.override("vae.*", weight_bits=own[0], act_bits=own[1]).kept(*names, bits=max(8, *own))
    split = tuple(f"{name}.*" for name, block in (("unet", unet), ("vae", vae)) if block.split)
    return replace(made, split=split, modules=("unet",) if q.only_Unet else made.modules)


def released_start(q: Keys) -> dict:
    """LET's exponents, as options of the method."""
    vae = q.Unet if q.only_Unet else q.Vae
    if q.Unet.s_alpha != vae.s_alpha:
        raise ValueError("quantize_config.Unet.s_alpha and quantize_config.Vae.s_alpha differ; here they are one.")
    return {"alpha": q.Unet.s_alpha, "beta": q.Unet.s_alpha, "centre": False}
