"""QArtSR: everything behind a module is quantized already when its turn comes, and a 16-bit branch carries the rest.

Zhu et al., QArtSR: Quantization via Reverse-Module and Timestep-Retraining in One-Step Diffusion based Image
Super-Resolution, arXiv 2503.05584 (2025).  No code is published; from its method figure:

- The quantizer: y = up (down T x) + Qw(T W - up down + F1 F2) Qa(T x), where T is a learned smoothing per channel,
  F1 F2 a LoRA that ends inside the integers, up down the branch.
- RPQ, reversed per-module quantization: the last module first, what precedes it in full precision (so its input has
  no drift), what follows it quantized; loss of the module's output plus loss of the image.
- ET, extended end-to-end training: all together at last, a perceptual and a squared distance of the images.

Ours, since the paper does not say: ranks (1/32 and 1/16 of a layer's smaller side: its 16 to 32 on 320 to 1,280
channels are 2.5 to 5 %), starts, rates, epochs, the weights of the losses, a root mean square as the norm; the factors
live behind T instead of before it, which is the same set of functions; boundaries of activations are static, one pair
per tensor; the recipe's exceptions and attention products are as for every method here.  In place of LPIPS, whose
weights few machines have, ET compares image gradients at four scales; `PERCEPTUAL` has LPIPS.  TRQ, the retraining at
a smaller timestep, is a matter of the model: `lab.tiny(timestep=...)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..calibration.adapted import Adapted
from ..calibration.method import Loss, Method, Stage
from ..calibration.perceptual import GRADIENTS, LPIPS
from ..util.names import MODULES

TAGS = ("transform", "bounds", "lora", "branch")
RATES = {"transform": 1e-2, "bounds": 0.2, "lora": 0.3, "branch": 2e-2}


@dataclass(frozen=True)
class QArtSR(Adapted):
    """Smoothing, boundaries, LoRA and branch; no shift, as in the method figure."""


def rpq(tags: Sequence[str] = TAGS, epochs: float = 4.0, blocks: str | None = None, image: float = 1.0) -> tuple:
    """The stages of RPQ: three modules, or with `blocks` their blocks, in reversed order; `image` weighs its loss."""
    losses = (Loss("root"), Loss("root", "image", image)) if image else (Loss("root"),)
    return tuple(
        Stage(module, tuple(tags), epochs, blocks, upstream="float", losses=losses, order="reversed")
        for module in reversed(MODULES)
    )


def et(tags: Sequence[str] = TAGS, epochs: float = 6.0, perceptual: str = GRADIENTS, rate: float = 0.5) -> tuple:
    """The stage of ET: OSEDiff's weights, 2 for the perceptual distance and 1 for the squared one."""
    return (Stage("all", tuple(tags), epochs, losses=(Loss(perceptual, weight=2.0), Loss()), rate=rate),)


METHOD = Method(
    "qartsr", "QArtSR", "Zhu et al., arXiv 2503.05584 (2025), method figure", QArtSR(), (*rpq(), *et()), rates=RATES
)
RPQ = replace(METHOD, name="qartsr-rpq", label="QArtSR without its end-to-end finish", stages=rpq())
BLOCKS = replace(METHOD, name="qartsr-blocks", label="QArtSR by blocks", stages=(*rpq(epochs=0.5, blocks="*"), *et()))
PERCEPTUAL = replace(METHOD, name="qartsr-lpips", label="QArtSR with LPIPS", stages=(*rpq(), *et(perceptual=LPIPS)))
