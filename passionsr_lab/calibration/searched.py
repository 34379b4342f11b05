"""A start from data, layer by layer: the smoothing whose output errs least, then branch and rounded rest in turns.

SVDQuant, section 4.2 (arXiv 2411.05007).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..quantization.layer import QuantLayer

CROPS, EDGE, ROWS = 4, 8, 64  # inputs that a layer is searched on: crops of so many outputs, or rows of a Linear's


class InputCrops:
    """A `watch` of a layer's range that keeps crops of its first inputs, padded as the layer pads them."""

    def __init__(self, layer: QuantLayer):
        self.layer, self.kept = layer, []

    def __call__(self, x: Tensor, dim: int) -> None:
        if len(self.kept) == CROPS:
            return
        draw = torch.Generator().manual_seed(len(self.kept))
        if not self.layer.conv:
            rows = x.flatten(0, -2)
            self.kept.append(rows[torch.randint(len(rows), (ROWS,), generator=draw).to(x.device)])
            return
        x, kernel = self.layer.pad(x), self.layer.layer.kernel_size
        for d, k in zip((2, 3), kernel):
            edge = min(x.shape[d], EDGE + k - 1)
            x = x.narrow(d, int(torch.randint(x.shape[d] - edge + 1, (), generator=draw)), edge)
        self.kept.append(x.clone())


@torch.no_grad()
def search(layer: QuantLayer, candidates: int, rounds: int) -> None:
    """Takes the exponent a of `candidates` from 0 to 1 with the least output error, then refines the branch.

    The layer's range has kept inputs with an `InputCrops`.
    """
    inputs, layer.range.watch = layer.range.watch.kept, None
    targets = [layer.operate(x, layer.layer.weight, None) for x in inputs]
    exponents = [i / (candidates - 1) for i in range(candidates)]
    smooth(layer, min(exponents, key=lambda a: output_error(smooth(layer, a), inputs, targets)))
    if layer.branch is not None:
        refine(layer, rounds)


def smooth(layer: QuantLayer, exponent: float) -> QuantLayer:
    """The layer with scale = amax|x|^a / amax|w|^(1 - a) and the branch, if there is one, of that weight."""
    layer.transform.start(*layer.range.require(layer.name), layer.channel_amax(), exponent, 1 - exponent, False)
    if layer.branch is not None:
        layer.branch.fit(layer.transformed_weight())
    return layer


def output_error(layer: QuantLayer, inputs: list[Tensor], targets: list[Tensor]) -> float:
    """The squared error of the layer's outputs, of inputs that are padded already."""
    weight, total = layer.quantized_weight(), 0.0
    for x, target in zip(inputs, targets):
        seen = layer.transform(x, layer.dim)
        ours = layer.operate(layer.quantized(seen), weight, None)
        ours = ours if layer.branch is None else ours + layer.branch(seen)
        total += (ours - target).square().sum().item()
    return total


def refine(layer: QuantLayer, rounds: int) -> list[float]:
    """Fits branch and rounded rest in turns while the weight's squared error falls; the errors (section 4.2)."""
    weight, branch = layer.transformed_weight(), layer.branch
    errors = [weight_error(layer)]
    for _ in range(rounds):
        before = {k: v.clone() for k, v in branch.state_dict().items()}
        branch.fit(weight - layer.quantized_weight())
        errors.append(weight_error(layer))
        if errors[-1] >= errors[-2]:
            branch.load_state_dict(before)
            return errors[:-1]
    return errors


def weight_error(layer: QuantLayer) -> float:
    """The squared error of rounding what the branch leaves."""
    return (layer.quantized_weight() - layer.residual_weight()).square().sum().item()
