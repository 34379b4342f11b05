"""The YAML files of PassionSR's code, as they are, into this library's own options.

Every key is used, or known to have no use here (`unused` says why), or an error that names it.  Paths are taken as
they stand, relative to where the command runs.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from ..quantization.recipe import KEEP, OFFICIAL, Recipe, recipe

_MODEL = "weights are found by --model (default here: osediff)"
_UNREAD = "the released code does not read it either"
_RATE = "rates are relative to ranges here, and fall by a cosine"
_BLOCK = {  # of Unet and Vae: None marks what is used
    "quantype": None, "method": None, "layer_type": None, "weight_quant_bits": None, "act_quant_bits": None,
    "weight_sym": None, "weight_sign": None, "act_sign": None, "act_sym": None, "split": None, "s_alpha": None,
    "only_weight": _UNREAD,
}  # fmt: skip
_TRAIN = {
    "cali_epochs": None, "loss_function": None, "cali_learning_rate": _RATE, "scheduler.milestones": _RATE,
    "scheduler.gamma": _RATE, "save_interval": _UNREAD,
}  # fmt: skip
_BASIC = {
    "seed": None, "upscale": None, "process_size": None, "align_method": None, "precision": _UNREAD, "scale": _UNREAD,
    **dict.fromkeys(("lora_weights_path", "pretrained_model_name_or_path", "config", "ckpt", "context_embedding_path",
                     "merge_lora"), _MODEL),
}  # fmt: skip
_TILE = "encoder and decoder run in the UNet's tiles"
_STAGES = ("Unet_train", "encoder_train", "decoder_train")


def _under(prefix: str, keys: dict[str, str | None]) -> dict[str, str | None]:
    return {f"{prefix}.{key}": why for key, why in keys.items()}


_SHARED = {
    "device": "the device is this library's choice",
    **_under("basic_config", _BASIC),
    "quantize_config.quantize": None,
    "quantize_config.only_Unet": None,
    **_under("quantize_config.Unet", _BLOCK),
    **_under("quantize_config.Vae", _BLOCK),
}
KEYS = {  # by command
    "calibrate": {
        **_SHARED,
        "cali_img_path": None,
        "act": _UNREAD,
        "quantize_config.act": _UNREAD,
        "basic_config.align_method": "calibration does not correct colours",
        "quantize_config.output_modelpath": None,
        "quantize_config.cali_batch_size": "ranges are taken from all pairs; a step sees one, as theirs",
        **_under("quantize_config", _TRAIN),
        **{key: why for stage in _STAGES for key, why in _under(f"quantize_config.{stage}", _TRAIN).items()},
    },
    "upscale": {
        **_SHARED,
        "out_dir": None,
        "dataset": None,
        "scale": _UNREAD,
        "basic_config.seed": "nothing is drawn at random",
        "basic_config.process_size": "pictures of any size are taken as they are",
        **_under("tile_config", {"latent_tiled_size": None, "latent_tiled_overlap": None,
                                 "vae_encoder_tiled_size": _TILE, "vae_decoder_tiled_size": _TILE}),
        "quantize_config.Unet.quant_ckpt": None,
        "quantize_config.Vae.quant_ckpt": None,
    },
}  # fmt: skip
_ONLY = {  # values without which a file means something that this library does not do
    "basic_config.upscale": (4,),
    "quantize_config.{}.quantype": ("PTQ",),
    "quantize_config.{}.method": ("saw_sep",),
    "quantize_config.{}.layer_type": ("2Dquant",),
    **{f"quantize_config.{{}}.{key}": (False,) for key in ("weight_sym", "weight_sign", "act_sign", "act_sym")},
    **{f"quantize_config.{key}loss_function": ("mse",) for key in ("", *(f"{stage}." for stage in _STAGES))},
}


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


def read(file: str | Path, command: str) -> OfficialConfig:
    """The options that a YAML file of the released code sets for "calibrate" or "upscale".

    Raises:
        ValueError: the file is no such file, or keys are unknown, missing, contradict each other, or ask for what this
            library does not do; the message names them.
    """
    values = _flat(_yaml(file))
    known = KEYS[command]
    other = next(c for c in KEYS if c != command)
    unknown = [key for key in values if key not in known]
    if unknown and all(key in KEYS[other] for key in values):
        raise ValueError(f"{file} is a file for `{other}`, not for `{command}` ({unknown[0]}).")
    if unknown:
        raise ValueError(f"{file} has keys that the released code's files do not have: {', '.join(unknown)}.")
    try:
        return _Reader(values, known).read(command)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def _yaml(file: str | Path) -> dict:
    import yaml

    try:
        content = yaml.safe_load(Path(file).read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is not a YAML file: {' '.join(str(error).split())}.") from None
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ValueError(f"{file} is not a configuration: it must hold names and values.")
    return content


def _flat(content: dict, prefix: str = "") -> dict:
    """Nested dicts with dotted keys."""
    flat = {}
    for key, value in content.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


class _Reader:
    """Takes values by key, and remembers what was taken."""

    def __init__(self, values: dict, known: dict):
        self.values = values
        self.unused = {key: known[key] for key in values if known[key]}

    def read(self, command: str) -> OfficialConfig:
        blocks = self._blocks()
        for pattern, allowed in _ONLY.items():
            for key in {pattern.format(block) for block in blocks}:
                if key in self.values and self.values[key] not in allowed and key not in self.unused:
                    raise ValueError(f"{key} is {self.values[key]!r}; here it can only be {allowed[0]!r}.")
        options = (self._calibrate if command == "calibrate" else self._upscale)(blocks)
        return OfficialConfig(options, self.unused)

    def _blocks(self) -> list[str]:
        """The networks that are quantized; the other's block has no use."""
        key = "quantize_config.only_Unet"
        only = self._get(key, bool)
        if not only and not any(k.startswith("quantize_config.Vae.") for k in self.values):
            raise ValueError(f"{key} is False, but there is no quantize_config.Vae.")
        if only:
            self._drop("quantize_config.Vae.", f"{key} is True")
        return ["Unet"] if only else ["Unet", "Vae"]

    def _calibrate(self, blocks: list[str]) -> dict:
        if not self._get("quantize_config.quantize", bool):
            raise ValueError("quantize_config.quantize is False, so there is nothing to calibrate.")
        own = _STAGES if len(blocks) == 2 else ("",)
        for stage in {*_STAGES, ""} - {*own}:
            keys = [f"{stage}.{key}" if stage else key for key in _TRAIN]
            for key in keys:
                self._drop(f"quantize_config.{key}", "it belongs to files with the other only_Unet", whole=True)
        epochs = [self._get(f"quantize_config.{stage}{'.' * bool(stage)}cali_epochs", int) for stage in own]
        if len(set(epochs)) > 1:
            told = ", ".join(f"{stage}.cali_epochs {n}" for stage, n in zip(own, epochs))
            raise ValueError(f"quantize_config has different epochs ({told}); here one number serves all stages.")
        return {
            "model": "osediff", "recipe": self._recipe(blocks), "method": "passionsr",
            "images": self._get("cali_img_path", str), "pairs": None,
            "out": Path(self._get("quantize_config.output_modelpath", str)), "epochs": epochs[0], "batch": 1,
            "seed": self._get("basic_config.seed", int, 42),
            "size": self._get("basic_config.process_size", int, 512),
        }  # fmt: skip

    def _upscale(self, blocks: list[str]) -> dict:
        quantize = self._get("quantize_config.quantize", bool)
        files = [Path(self._get(f"quantize_config.{b}.quant_ckpt", str)) for b in blocks] if quantize else []
        taken = {"colour": ("basic_config.align_method", str), "tile": ("tile_config.latent_tiled_size", int),
                 "overlap": ("tile_config.latent_tiled_overlap", int)}  # fmt: skip
        return {
            "model": "osediff", "released": files, "recipe": self._recipe(blocks) if quantize else None,
            "output": Path(self._get("out_dir", str)) / self._get("dataset", str, ""),
        } | {name: self._get(key, kind) for name, (key, kind) in taken.items() if key in self.values}  # fmt: skip

    def _recipe(self, blocks: list[str]) -> Recipe:
        """W6A6 for the blocks' bits; a VAE of its own bits is an exception to the UNet's."""
        bits = [tuple(self._get(f"quantize_config.{b}.{k}_quant_bits", int) for k in ("weight", "act")) for b in blocks]
        alpha = [self._get(f"quantize_config.{b}.s_alpha", float, 0.5) for b in blocks]
        if len(set(alpha)) > 1:
            raise ValueError("quantize_config.Unet.s_alpha and quantize_config.Vae.s_alpha differ; here they are one.")
        made = recipe("W{}A{}".format(*bits[0]))
        if bits[-1] != bits[0]:
            if bits[-1][0] != bits[-1][1]:
                raise ValueError(
                    "quantize_config.Vae.weight_quant_bits and .act_quant_bits differ from each other and from the"
                    " UNet's; here a VAE with bits of its own has as many for weights as for activations."
                )
            name = "{} VAE W{}A{}".format(made.name, *bits[-1])
            made = replace(made, name=name, keep=(("vae.*", bits[-1][0]), *KEEP))
        split = tuple(f"{b.lower()}.*" for b in blocks if self._get(f"quantize_config.{b}.split", bool))
        modules = ("encoder", "unet", "decoder") if "Vae" in blocks else ("unet",)
        return replace(made, **OFFICIAL | {"alpha": alpha[0], "beta": alpha[0]}, split=split, modules=modules)

    def _get(self, key: str, kind: type, *default):
        """The value of a key; whole numbers count as real ones."""
        if key not in self.values:
            if default:
                return default[0]
            raise ValueError(f"{key} is missing.")
        value = self.values[key]
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise ValueError(f"{key} is {value!r}; it must be a {kind.__name__}.")
        return value

    def _drop(self, start: str, why: str, whole: bool = False) -> None:
        """Marks a key, or all that start so, as unused."""
        for key in self.values:
            if key == start if whole else key.startswith(start):
                self.unused[key] = why
