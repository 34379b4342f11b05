"""Ours, for few bits: a procedure out of the parts of the others; no paper.

Slots as in QArtSR (arXiv 2503.05584): a smoothing scale per channel (LET), learned boundaries (LBQ), a LoRA that ends
inside the integers, a low-rank branch in 16 bits.  What is different:

- The VAE has few weights and most of the operations, so its branches get a larger share of their layers' width than the
  UNet's.
- The start is SVDQuant's search, layer by layer, in place of LET's one exponent for all.
- Each module first learns alone, behind full precision, from its own output, the last one first: without QArtSR's image
  loss such a step is cheaper, most of all the encoder's.  Most time goes into all modules together, on squared errors
  of the image.
- `MERGED` has no branch: nothing is left beside the integers but scales.

It was chosen from few short runs on tuning pictures (crops of the photographs of calibration and of others, none of the
test pictures); a Hadamard rotation in place of the scale, or a larger exponent for activations, was no better there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..calibration.adapted import Adapted
from ..calibration.method import Loss, Method, Stage
from ..calibration.searched import InputCrops, search
from ..quantization.layer import Quantized, QuantLayer

TAGS = ("transform", "bounds", "lora", "branch")


@dataclass(frozen=True)
class Best(Adapted):
    """Smoothing, boundaries, LoRA and branch, with another share in the VAE.

    Args:
        vae: the branch's rank in the VAE, as a share of the smaller side of a layer's weight.
        candidates, rounds: of the search, as in SVDQuant.
    """

    lora: float = 1 / 12
    vae: float = 1 / 10
    candidates: int = 6
    rounds: int = 5

    def fill(self, layer: Quantized) -> None:
        inside = isinstance(layer, QuantLayer) and self.branch and layer.name.startswith("vae.")
        own = replace(self, branch=self.vae) if inside else self
        super(Best, own).fill(layer)
        if isinstance(layer, QuantLayer) and layer.delta is not None:
            layer.range.watch = InputCrops(layer)

    def factor(self, layer: QuantLayer) -> None:
        if layer.delta is not None:
            search(layer, self.candidates, self.rounds)


def stages(tags: tuple[str, ...]) -> tuple[Stage, ...]:
    """Modules alone, the last first, then all together."""
    alone = (("decoder", 2.0), ("unet", 2.0), ("encoder", 1.5))
    return (
        *(Stage(module, tags, epochs, upstream="float") for module, epochs in alone),
        Stage("all", tags, 8.0, losses=(Loss(),)),
    )


METHOD = Method(
    "best", "Ours", "this library; parts of QArtSR, SVDQuant and PassionSR", Best(), stages(TAGS),
    rates={"transform": 1e-2, "bounds": 0.2, "lora": 0.3, "branch": 2e-2},
)  # fmt: skip
MERGED = replace(
    METHOD, name="best-merged", label="Ours, no branch", slots=Best(branch=0.0, vae=0.0), stages=stages(TAGS[:3])
)
