"""What to quantize and how to calibrate it, as small frozen values."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase

from ..util.names import MODULES

# The official list of layers that keep 8 bits in every recipe, by their diffusers names.
KEEP = (
    ("unet.time_embedding.linear_1", 8),
    ("unet.conv_out", 8),
    ("vae.quant_conv", 8),
    ("vae.post_quant_conv", 8),
    ("vae.encoder.conv_out", 8),
    ("vae.decoder.conv_out", 8),
)


@dataclass(frozen=True)
class Recipe:
    """A quantization recipe; presets are `W8A8`, `W6A6`, `W4A4`, and `replace(W6A6, ...)` makes others.

    Args:
        name: shown in tables.
        weight_bits, act_bits: 2 to 8 (up to 16 for checks); weights per output channel, activations per tensor.
        zero_point: "integer" (0 exactly on the grid, runs in integers) or "real" (the paper's Eq. 3).
        split: two quantizers per layer, one for each half of the input channels: everywhere, or in the layers whose
            names match one of the patterns given.
        alpha, beta: exponents of LET's start, amax|x|^alpha / amax|w|^beta; SmoothQuant's are (a, 1 - a), the
            official PassionSR configuration has 0.3 and 0.3.
        shift: whether LET also learns a shift; `centre` starts it at the middle of each channel's range.
        attention: whether the two attention products are quantized: everywhere, or where a pattern matches.
        modules: what is quantized; ("unet",) is PassionSR-U, all three are PassionSR-UV.
        keep: (name pattern, bits) pairs; the last pattern that matches a layer's name decides its bits.
        numerics: "paper", or "official": the released code's own arithmetic, for its own files (`official`).

    Example:
        >>> W6A6.kept("vae.decoder.up_blocks.3*", bits=8).bits("vae.decoder.up_blocks.3.resnets.0.conv1")
        (8, 8)
    """

    name: str
    weight_bits: int
    act_bits: int
    zero_point: str = "integer"
    split: bool | tuple[str, ...] = False
    alpha: float = 0.5
    beta: float = 0.5
    shift: bool = True
    centre: bool = False
    attention: bool | tuple[str, ...] = True
    modules: tuple[str, ...] = MODULES
    keep: tuple[tuple[str, int], ...] = field(default=KEEP)
    numerics: str = "paper"

    def __post_init__(self):
        for bits in (self.weight_bits, self.act_bits, *(b for _, b in self.keep)):
            if not (isinstance(bits, int) and 2 <= bits <= 16):
                raise ValueError(f"A recipe has whole bits from 2 to 16, not {bits!r}.")
        if self.zero_point not in ("integer", "real"):
            raise ValueError(f"zero_point is 'integer' or 'real', not {self.zero_point!r}.")
        if self.numerics not in ("paper", "official"):
            raise ValueError(f"numerics is 'paper' or 'official', not {self.numerics!r}.")
        unknown = set(self.modules) - set(MODULES)
        if unknown or not self.modules:
            raise ValueError(f"modules are some of {MODULES}, not {self.modules}.")

    def bits(self, layer: str) -> tuple[int, int]:
        """(weight bits, activation bits) of the layer with this name."""
        kept = [bits for pattern, bits in self.keep if fnmatchcase(layer, pattern)]
        return (kept[-1], kept[-1]) if kept else (self.weight_bits, self.act_bits)

    def splits(self, layer: str) -> bool:
        """Whether the layer with this name has two quantizers."""
        return applies(self.split, layer)

    def products(self, attention: str) -> bool:
        """Whether the products of the attention with this name are quantized."""
        return applies(self.attention, attention)

    def kept(self, *patterns: str, bits: int = 8) -> Recipe:
        """The same recipe with more exceptions."""
        return replace(self, keep=self.keep + tuple((pattern, bits) for pattern in patterns))

    def to_dict(self) -> dict:
        """Plain values for JSON; `from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> Recipe:
        """The inverse of `to_dict`; `ValueError` names unknown or missing keys."""
        try:
            values = values | {"modules": tuple(values["modules"]), "keep": tuple((p, b) for p, b in values["keep"])}
            patterns = {k: tuple(values[k]) for k in ("split", "attention") if isinstance(values.get(k), list)}
            return cls(**values | patterns)
        except (KeyError, TypeError) as error:
            raise ValueError(f"These are not the values of a recipe: {error}.") from None


def applies(setting: bool | tuple[str, ...], name: str) -> bool:
    """Whether a setting of a recipe, everywhere or by patterns, holds for the layer with this name."""
    return setting if isinstance(setting, bool) else any(fnmatchcase(name, pattern) for pattern in setting)


W8A8 = Recipe("W8A8", 8, 8)
W6A6 = replace(W8A8, name="W6A6", weight_bits=6, act_bits=6)
W4A4 = replace(W8A8, name="W4A4", weight_bits=4, act_bits=4)
# The released configuration's start of LET: replace(W6A6, **OFFICIAL).
OFFICIAL = {"alpha": 0.3, "beta": 0.3, "centre": False}
RECIPES = {r.name: r for r in (W8A8, W6A6, W4A4)}


def recipe(name: str) -> Recipe:
    """The recipe called WwAa, for any widths from 2 to 8.

    Example:
        >>> recipe("W4A8").act_bits
        8
    """
    import re

    match = re.fullmatch(r"W(\d+)A(\d+)", name)
    if not match:
        raise ValueError(f"A recipe's name is like W6A6 (weights 6 bits, activations 6 bits), not {name!r}.")
    return replace(W8A8, name=name, weight_bits=int(match[1]), act_bits=int(match[2]))


@dataclass(frozen=True)
class Stage:
    """One stretch of calibration: what is trained, in which module, on which loss.

    module: "encoder", "unet" or "decoder" (loss of Eq. 8 or 10), or "all" (joint, loss on the final image).
    train: some of "transform" (LET) and "bounds" (LBQ).
    share: epochs of this stage, in units of the calibration's `epochs`.
    """

    module: str
    train: tuple[str, ...]
    share: float = 1.0

    def epochs(self, epochs: int) -> int:
        """Passes over the pairs that this stage makes in a calibration of so many epochs: at least one."""
        return max(1, round(epochs * self.share))


@dataclass(frozen=True)
class Method:
    """A row of Table 4: its name and how figures call it, whether LET is on, whether modules are done one by one."""

    name: str
    label: str
    transform: bool
    distributed: bool
    stages: tuple[Stage, ...]


# Of DQC's two stages: 6 in sum, which is as many updates of modules as the joint methods' 2 for all three.
SHARES = {"encoder": (0.75, 0.25), "unet": (1.5, 0.5), "decoder": (2.5, 0.5)}


def _dqc(first: tuple[str, ...]) -> tuple[Stage, ...]:
    return tuple(Stage(m, train, share) for m in MODULES for train, share in zip((first, ("bounds",)), SHARES[m]))


# Boundaries are fractions of a range that LET moves, so stage 1 re-initialises them at every step.  "passionsr" lets
# the fractions learn there too, which stage 1 then has to reckon with; in "passionsr-strict" they rest until stage 2.
METHODS = {
    m.name: m
    for m in (
        Method("maxmin", "MaxMin", False, False, ()),
        Method("let", "LET", True, False, ()),
        Method("lbq", "LBQ", False, False, (Stage("all", ("bounds",), 2.0),)),
        Method("lbq+let", "LBQ + LET", True, False, (Stage("all", ("transform", "bounds"), 2.0),)),
        Method("passionsr", "PassionSR", True, True, _dqc(("transform", "bounds"))),
        Method("passionsr-strict", "PassionSR, strict stages", True, True, _dqc(("transform",))),
    )
}
