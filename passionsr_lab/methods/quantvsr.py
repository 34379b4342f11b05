"""QuantVSR for single pictures: ranks by spatial complexity, rotated halves, a branch trained with what it leaves.

Chai et al., QuantVSR: Low-Bit Post-Training Quantization for Real-World Video Super-Resolution, AAAI 2026
(arXiv 2508.04485), and its released code: y = op(Qa(x H), Qw(H^T (W - up down))) + op(x, up down) + b + a, where each
half of the input channels has its own random-sign Hadamard matrix H and quantizers; up down begins at the largest
singular directions and is trained with the residual that it leaves; the alignment a of the bias is trained last.

Single pictures have no frames, so that of the spatio-temporal complexity the spatial part is left: the standard
deviation over positions, averaged over channels.  The vote is the released one: a layer begins at the least rank, a
sample in the upper quarter of all layers and samples adds one, in the lower quarter takes one; with hundreds of samples
that is nearly a choice of two.

Ours: tokens have a deviation over positions (theirs is over features); each module votes by itself; ranks belong to
layers of 320 channels and shrink with the layer; `rule="share"` lets the mean vote decide, and `rule="budget"`, the
default, takes singular directions of all layers of a module by energy times complexity per number stored, until their
numbers are a share of its weights.  Boundaries of a weight are always those of the residual of the moment (in the
released code they stay at its start), those of activations are static and trained (theirs are each input's own:
`static=False`).  The VAE is quantized too, and attention products have the recipe's bits.  Steps, rates and the
joint stage are ours.  The Hadamard widths are Paley's, more than their powers of two times 1, 20 and 60.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..calibration.alignment import Alignment
from ..calibration.lowrank import LowRank, least_side, mean_step
from ..calibration.method import Method, Stage
from ..calibration.rotation import Rotation
from ..quantization.filling import Slots
from ..quantization.layer import Quantized, QuantLayer
from ..quantization.quantizer import QUANTIZERS, Quantizer, fake_quantize

RULES = ("vote", "share", "budget")
LEAST, MOST, MULTIPLE, WIDTH = 16, 64, 8, 320  # the released ranks, and the channels of the layers that they are for


class DynamicQuantizer(Quantizer):
    """A grid between the smallest and largest value of each input itself; all pictures of a batch share it."""

    def forward(self, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
        return fake_quantize(x, x.detach().amin(), x.detach().amax(), self.bits, self.zero_point)

    def bounds(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """The natural range, where no input is there to be asked."""
        return low, high

    def grid(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """There is none: `ValueError`."""
        raise ValueError("Each input has a grid of its own here; integers need QuantVSR's static=True.")


QUANTIZERS["dynamic"] = DynamicQuantizer


class Complexity:
    """A `watch` of a layer's range that keeps the spatial complexity of every picture, and lets the rotation watch."""

    def __init__(self, rotation: Rotation | None):
        self.rotation, self.values = rotation, []

    def __call__(self, x: Tensor, dim: int) -> None:
        if self.rotation is not None:
            self.rotation.watch(x, dim)
        if x.ndim > 2:
            positions = (2, 3) if dim == 1 else tuple(range(1, x.ndim - 1))
            self.values += x.float().std(positions, unbiased=False).mean(1).tolist()


@dataclass(frozen=True)
class QuantVSR(Slots):
    """Rotated halves, a low-rank branch, an alignment of the bias.

    Args:
        rule: of the ranks: "vote", "share" or "budget".
        budget: with "budget", the numbers of a module's branches as a part of those of its weights; above 0.
        rotate: whether halves are rotated.
        static: whether boundaries of activations are fixed; otherwise each input has its own.

    Raises:
        ValueError: another rule or budget.
    """

    rule: str = "budget"
    budget: float = 1 / 20
    rotate: bool = True
    static: bool = True

    def __post_init__(self):
        if self.rule not in RULES or not 0 < self.budget < 1:
            raise ValueError(
                f"QuantVSR's rule is one of {', '.join(RULES)} and its budget between 0 and 1, not {self.rule!r} and"
                f" {self.budget!r}."
            )

    def fill(self, layer: Quantized) -> None:
        whole = not isinstance(layer, QuantLayer) or layer.groups > 1
        if not whole and len(layer.range.low) > 1:
            channels = len(layer.range.low)
            layer.sizes = [channels - channels // 2, channels // 2]
        layer.fill_quantizers(QUANTIZERS[self.quantizer if self.static else "dynamic"], QUANTIZERS[self.quantizer])
        if whole:
            return
        device = layer.layer.weight.device
        for quantizer in layer.weight_quantizers:
            quantizer.tag = ""  # its boundaries are those of the residual
        layer.transform = Rotation(layer, layer.sizes).to(device) if self.rotate else None
        layer.branch = LowRank(layer, 0, trained=True).to(device)
        layer.alignment = Alignment(len(layer.layer.weight)).to(device)
        layer.range.watch = Complexity(layer.transform)
        if layer.transform is not None:
            layer.transform.unseen()

    def start_all(self, layers: Sequence[Quantized]) -> None:
        """Gives every layer of a module its rank first."""
        found = {x.name: x for x in layers if isinstance(x, QuantLayer) and isinstance(x.range.watch, Complexity)}
        complexity = {name: layer.range.watch.values for name, layer in found.items()}
        asked = {name: layer.setting.rank for name, layer in found.items()}
        if self.rule == "budget":
            own = by_energy({n: layer.layer.weight.flatten(1) for n, layer in found.items()}, complexity, self.budget)
        else:
            votes = by_vote(complexity, self.rule == "vote")
            own = {n: max(1, round(votes[n] / WIDTH * least_side(layer))) for n, layer in found.items()}
        for name, layer in found.items():
            layer.branch.resize(min(least_side(layer), own[name] if asked[name] is None else asked[name]))
        super().start_all(layers)

    @torch.no_grad()
    def start(self, layer: Quantized) -> None:
        if isinstance(layer, QuantLayer) and layer.branch is not None:
            layer.range.watch = None
            layer.branch.fit(layer.transformed_weight())
            layer.branch.balance()
            reach = layer.range.amax.mean() * layer.layer.weight[0].numel() ** 0.5
            layer.alignment.unit.copy_((mean_step(layer) * reach / 4).clamp_min(1e-8))


def by_vote(complexity: Mapping[str, Sequence[float]], literal: bool) -> dict[str, int]:
    """The rank of every layer, for `WIDTH` channels, from the complexity of each sample.

    literal: the released rule, one up or down from the least rank per sample; otherwise the mean vote, from 0 to 1, is
    the part of the way from the least to the most.  Both in multiples of 8.
    """
    pooled = torch.tensor([value for values in complexity.values() for value in values])
    low, high = pooled.quantile(torch.tensor([0.25, 0.75])).tolist() if len(pooled) else (0.0, 0.0)
    ranks = {}
    for name, values in complexity.items():
        votes = sum((value >= high) - (value <= low) for value in values)
        rank = LEAST + (votes if literal else max(votes / max(1, len(values)), 0) * (MOST - LEAST))
        ranks[name] = MULTIPLE * math.floor((min(max(rank, LEAST), MOST) + MULTIPLE / 2) / MULTIPLE)
    return ranks


def by_energy(
    weights: Mapping[str, Tensor], complexity: Mapping[str, Sequence[float]], budget: float
) -> dict[str, int]:
    """The rank of every layer (weight (Co, n)) by greed: the next singular direction with the most S^2 times complexity
    per number that it stores (Co + n), until the numbers are `budget` of all the weights'.

    Values of a layer fall, so each takes its first directions.  A layer without a complexity has the others' mean.
    """
    means = {name: sum(values) / len(values) for name, values in complexity.items() if values}
    usual = sum(means.values()) / len(means) if means else 1.0
    offers = []
    for name, weight in weights.items():
        wide = weight.detach().double()
        gram = wide @ wide.T if len(wide) <= wide.shape[1] else wide.T @ wide
        energies = torch.linalg.eigvalsh(gram).flip(0).clamp_min(0) * means.get(name, usual)
        offers += [(energy / sum(weight.shape), name) for energy in energies.tolist()]
    left, ranks = budget * sum(weight.numel() for weight in weights.values()), dict.fromkeys(weights, 0)
    for _, name in sorted(offers, key=lambda offer: (-offer[0], offer[1])):
        cost = sum(weights[name].shape)
        if cost > left:
            break
        ranks[name], left = ranks[name] + 1, left - cost
    return ranks


REFINED = ("branch", "bounds")
STAGES = (
    *(Stage(module, REFINED, epochs) for module, epochs in (("encoder", 1.0), ("unet", 2.0), ("decoder", 3.0))),
    Stage("all", REFINED, 1.0, rate=0.5),
    Stage("all", ("alignment",), 0.5),
)
METHOD = Method(
    "quantvsr", "QuantVSR", "Chai et al., AAAI 2026 (arXiv 2508.04485), and its code; single pictures", QuantVSR(),
    STAGES, rates={"branch": 2e-2, "bounds": 0.2, "alignment": 2e-2},
)  # fmt: skip
