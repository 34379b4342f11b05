"""Slots: what may fill a place of a quantized layer, and how a stage of calibration finds what it trains."""

from __future__ import annotations

from torch import nn


class Slot(nn.Module):
    """What fills a slot of a layer.

    Attributes:
        tag: by which a stage picks the parameters, for example "transform" or "bounds"; never by class.
        learning_rate_scale: times the stage's learning rate for the tag.
    """

    tag = ""
    learning_rate_scale = 1.0


def trainable(module: nn.Module, tag: str) -> dict[float, list[nn.Parameter]]:
    """The parameters of all slots with this tag, by their `learning_rate_scale`, in definition order."""
    found: dict[float, list[nn.Parameter]] = {}
    for slot in module.modules():
        if isinstance(slot, Slot) and slot.tag == tag:
            found.setdefault(slot.learning_rate_scale, []).extend(slot.parameters(recurse=False))
    return {scale: parameters for scale, parameters in found.items() if parameters}
