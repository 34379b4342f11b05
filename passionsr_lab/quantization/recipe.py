"""What is quantized, and to how many bits, as one small frozen value."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase

from ..util.names import MODULES, matches
from .quantizer import ZERO_POINTS

# The official list of layers that have at least 8 bits in every recipe, by their diffusers names.
AT_LEAST = (
    ("unet.time_embedding.linear_1", 8),
    ("unet.conv_out", 8),
    ("vae.quant_conv", 8),
    ("vae.post_quant_conv", 8),
    ("vae.encoder.conv_out", 8),
    ("vae.decoder.conv_out", 8),
)


@dataclass(frozen=True)
class LayerRecipe:
    """What a recipe says of one layer.

    weight_bits, act_bits: 2 to 16; of an attention's products, `act_bits`.
    zero_point: "integer" or "real" (the paper's Eq. 3).
    split: whether each half of the input channels has a quantizer of its own.
    rank: of a low-rank branch or LoRA, where the method has one; None is the method's choice.
    """

    weight_bits: int
    act_bits: int
    zero_point: str = "integer"
    split: bool = False
    rank: int | None = None

    def __post_init__(self):
        for bits in (self.weight_bits, self.act_bits):
            if not (isinstance(bits, int) and not isinstance(bits, bool) and 2 <= bits <= 16):
                raise ValueError(f"A recipe has whole bits from 2 to 16, not {bits!r}.")
        if self.zero_point not in ZERO_POINTS:
            raise ValueError(f"zero_point is one of {ZERO_POINTS}, not {self.zero_point!r}.")
        if not isinstance(self.split, bool):
            raise ValueError(f"split is True or False for a layer, not {self.split!r}.")
        if self.rank is not None and not (isinstance(self.rank, int) and self.rank >= 0):
            raise ValueError(f"A rank is a whole number from 0 on, not {self.rank!r}.")


@dataclass(frozen=True)
class Recipe:
    """A quantization recipe; presets are `W8A8`, `W6A6`, `W4A4`, and `replace(W6A6, ...)` makes others.

    Args:
        name: shown in tables.
        weight_bits, act_bits: 2 to 8 (up to 16 for checks); weights per output channel, activations per tensor.
        zero_point: "integer" (0 exactly on the grid, runs in integers) or "real" (the paper's Eq. 3).
        split: two quantizers per layer, one for each half of the input channels: everywhere, or in the layers whose
            names match one of the patterns given.
        attention: whether the two attention products are quantized: everywhere, or where a pattern matches.
        modules: what is quantized; ("unet",) is PassionSR-U, all three are PassionSR-UV.
        at_least: (name pattern, bits) pairs that raise a layer's bits and never lower them; the last match counts.
        overrides: (name pattern, {field of `LayerRecipe`: value}) pairs, applied in order after everything else.

    Raises:
        ValueError: a value that does not exist; a pattern that matches no layer is refused by `quantize`.

    Example:
        >>> W6A6.kept("vae.decoder.up_blocks.3*", bits=8).bits("vae.decoder.up_blocks.3.resnets.0.conv1")
        (8, 8)
    """

    name: str
    weight_bits: int
    act_bits: int
    zero_point: str = "integer"
    split: bool | tuple[str, ...] = False
    attention: bool | tuple[str, ...] = True
    modules: tuple[str, ...] = MODULES
    at_least: tuple[tuple[str, int], ...] = field(default=AT_LEAST)
    overrides: tuple[tuple[str, tuple[tuple[str, object], ...]], ...] = ()

    def __post_init__(self):
        base = LayerRecipe(self.weight_bits, self.act_bits, self.zero_point)
        for name in ("split", "attention"):
            value = getattr(self, name)
            if not isinstance(value, bool) and (isinstance(value, str) or not all(isinstance(p, str) for p in value)):
                raise ValueError(f"{name} is True, False or a tuple of patterns such as ('unet.*',), not {value!r}.")
            object.__setattr__(self, name, value if isinstance(value, bool) else tuple(value))
        if isinstance(self.modules, str) or not self.modules or set(self.modules) - set(MODULES):
            raise ValueError(f"modules are some of {MODULES}, not {self.modules!r}.")
        frozen = tuple((pattern, _items(values)) for pattern, values in self.overrides)
        object.__setattr__(self, "overrides", frozen)
        object.__setattr__(self, "modules", tuple(self.modules))
        for _, bits in self.at_least:
            replace(base, weight_bits=bits)
        for pattern, values in frozen:
            unknown = dict(values).keys() - {f.name for f in fields(LayerRecipe)}
            if unknown:
                raise ValueError(f"A layer has no setting {min(unknown)!r}, which the override of {pattern!r} gives.")
            replace(base, **dict(values))

    def layer(self, name: str) -> LayerRecipe:
        """What the recipe says of the layer, or the attention, with this name."""
        floor = [bits for pattern, bits in self.at_least if fnmatchcase(name, pattern)][-1:] or [0]
        weight, act = (max(bits, floor[0]) for bits in (self.weight_bits, self.act_bits))
        found = LayerRecipe(weight, act, self.zero_point, applies(self.split, name))
        for pattern, values in self.overrides:
            found = replace(found, **dict(values)) if fnmatchcase(name, pattern) else found
        return found

    def bits(self, layer: str) -> tuple[int, int]:
        """(weight bits, activation bits) of the layer with this name."""
        found = self.layer(layer)
        return found.weight_bits, found.act_bits

    def products(self, attention: str) -> bool:
        """Whether the products of the attention with this name are quantized."""
        return applies(self.attention, attention)

    def kept(self, *patterns: str, bits: int = 8) -> Recipe:
        """The same recipe with other bits where a pattern matches."""
        return self.override(*patterns, weight_bits=bits, act_bits=bits)

    def override(self, *patterns: str, **values) -> Recipe:
        """The same recipe with these settings (fields of `LayerRecipe`) where a pattern matches."""
        return replace(self, overrides=self.overrides + tuple((pattern, values) for pattern in patterns))

    def require_matches(self, layers: Iterable[str], attentions: Iterable[str]) -> None:
        """`ValueError` for a pattern of this recipe that matches none of these names; says which names are near."""
        layers, attentions = list(layers), list(attentions)
        asked = {"overrides": [p for p, _ in self.overrides]}
        asked |= {
            k: [] if isinstance(v, bool) else v for k, v in (("split", self.split), ("attention", self.attention))
        }
        for setting, patterns in asked.items():
            names = {"split": layers, "attention": attentions}.get(setting, [*layers, *attentions])
            for pattern in patterns:
                if not any(matches(name, [pattern]) for name in names):
                    near = get_close_matches(pattern, names, 3, 0) or ["none"]
                    raise ValueError(f"{pattern!r} in {setting} matches no layer; the nearest are {', '.join(near)}.")

    def to_dict(self) -> dict:
        """Plain values for JSON; `from_dict` reads them back."""
        return asdict(self) | {"overrides": [[pattern, dict(values)] for pattern, values in self.overrides]}

    @classmethod
    def from_dict(cls, values: dict) -> Recipe:
        """The inverse of `to_dict`; `ValueError` names unknown or missing keys."""
        try:
            values = values | {"modules": tuple(values["modules"]), "at_least": _pairs(values["at_least"])}
            patterns = {k: tuple(values[k]) for k in ("split", "attention") if isinstance(values.get(k), list)}
            return cls(**values | patterns | {"overrides": _pairs(values["overrides"])})
        except (KeyError, TypeError) as error:
            raise ValueError(f"These are not the values of a recipe: {error}.") from None


def _items(values: Mapping | tuple) -> tuple[tuple[str, object], ...]:
    return tuple(sorted(dict(values).items()))


def _pairs(rows: Iterable) -> tuple[tuple, ...]:
    return tuple((first, second) for first, second in rows)


def applies(setting: bool | tuple[str, ...], name: str) -> bool:
    """Whether a setting of a recipe, everywhere or by patterns, holds for the layer with this name."""
    return setting if isinstance(setting, bool) else matches(name, setting)


W8A8 = Recipe("W8A8", 8, 8)
W6A6 = replace(W8A8, name="W6A6", weight_bits=6, act_bits=6)
W4A4 = replace(W8A8, name="W4A4", weight_bits=4, act_bits=4)


def recipe(name: str, **settings) -> Recipe:
    """The recipe called WwAa, for any widths from 2 to 16; `settings` are further fields of `Recipe`.

    Example:
        >>> recipe("W4A8").act_bits, recipe("W6A6", modules=("unet",)).modules
        (8, ('unet',))
    """
    match = re.fullmatch(r"W(\d+)A(\d+)", name) if isinstance(name, str) else None
    if not match:
        raise ValueError(f"A recipe's name is like W6A6 (weights 6 bits, activations 6 bits), not {name!r}.")
    return replace(W8A8, name=name, weight_bits=int(match[1]), act_bits=int(match[2]), **settings)
