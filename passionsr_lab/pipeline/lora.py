"""Low-rank adapters of a network's weights (LoRA), as OSEDiff trains them: W + (alpha / r) BA."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

ALPHA = 8  # peft's default, which OSEDiff trained with: at rank 4 the product BA counts twice


@dataclass(frozen=True)
class LoRA:
    """The adapters of one network.

    rank: r.
    modules: adapter -> the layers it is in, diffusers' names.
    tensors: "<layer>.lora_A.<adapter>.weight" (r, in, ...), "<layer>.lora_B.<adapter>.weight" (out, r, ...), and what
        replaces a layer's own weights, "<layer>.base_layer.weight" and "<layer>.base_layer.bias".
    """

    rank: int
    modules: dict[str, tuple[str, ...]]
    tensors: dict[str, Tensor]

    def pairs(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Layer -> (A, B)."""
        return {
            layer: tuple(self.tensors[f"{layer}.lora_{side}.{adapter}.weight"] for side in "AB")
            for adapter, layers in self.modules.items()
            for layer in layers
        }

    def replaced(self) -> dict[str, Tensor]:
        """Name of a parameter -> the tensor that takes its place before the adapters are added."""
        return {key.replace(".base_layer.", "."): t for key, t in self.tensors.items() if ".base_layer." in key}


def require_complete(lora: LoRA, what: str, replaced: set[str]) -> None:
    """`ValueError` unless the tensors are exactly those that the lists of layers ask for, and finite numbers.

    replaced: the names of tensors that take a weight's place.
    """
    layers = [layer for adapter in lora.modules.values() for layer in adapter]
    if twice := [layer for layer in layers if layers.count(layer) > 1]:
        raise ValueError(f"{what}: {twice[0]} is in two adapters.")
    wanted = {f"{m}.lora_{side}.{name}.weight" for name, ms in lora.modules.items() for m in ms for side in "AB"}
    wanted |= replaced
    if missing := wanted - lora.tensors.keys():
        raise ValueError(f"{what}: there is no {min(missing)} ({len(missing)} tensors are missing).")
    if left := lora.tensors.keys() - wanted:
        raise ValueError(f"{what}: {min(left)} belongs to no listed layer ({len(left)} tensors are left over).")
    for name, tensor in lora.tensors.items():
        numbers = isinstance(tensor, Tensor) and tensor.is_floating_point()
        if not numbers or not tensor.isfinite().all():
            raise ValueError(f"{what}: {name} has values that are not finite numbers; the file is damaged.")


def delta(a: Tensor, b: Tensor, alpha: float = ALPHA) -> Tensor:
    """(alpha / r) BA as a layer's weight: A (r, in, ...), B (out, r, ...) -> (out, in, ...).

    Example:
        >>> delta(torch.ones(4, 3, 3, 3), torch.ones(5, 4, 1, 1)).shape, delta(torch.ones(4, 2), torch.ones(1, 4))[0, 0]
        (torch.Size([5, 3, 3, 3]), tensor(8.))
    """
    return alpha / len(a) * torch.einsum("or,r...->o...", b.float().flatten(1), a.float())


@torch.no_grad()
def merge(network: nn.Module, lora: LoRA) -> None:
    """Adds the adapters to the weights of a UNet or VAE, in place: W + (alpha / r) BA.

    Raises:
        ValueError: the network has no such layer, or a shape does not fit; nothing has been changed then.
    """
    _require_fit(network, lora)
    for name, tensor in lora.replaced().items():
        network.get_parameter(name).copy_(tensor)
    for layer, (a, b) in lora.pairs().items():
        weight = network.get_parameter(f"{layer}.weight")
        weight.copy_(weight.float() + delta(a, b).to(weight.device))


def _require_fit(network: nn.Module, lora: LoRA) -> None:
    """Raises unless every tensor has its place in the network."""
    for name, tensor in lora.replaced().items():
        if tensor.shape != (own := _shape(network, name)):
            raise ValueError(f"{name} of the checkpoint is {tuple(tensor.shape)}, of the model {tuple(own)}.")
    for layer, (a, b) in lora.pairs().items():
        own = _shape(network, f"{layer}.weight")
        narrow = (lora.rank, *(1 for _ in own[2:]))  # of B, which a convolution applies as 1x1
        if a.shape != (lora.rank, *own[1:]) or b.shape != (own[0], *narrow):
            raise ValueError(
                f"LoRA of {layer}: A {tuple(a.shape)} and B {tuple(b.shape)} do not fit rank {lora.rank} and the "
                f"weight {tuple(own)}."
            )


def _shape(network: nn.Module, name: str) -> torch.Size:
    try:
        return network.get_parameter(name).shape
    except AttributeError:
        raise ValueError(f"The checkpoint adapts {name}, which the model does not have; is it SD2.1-base?") from None
