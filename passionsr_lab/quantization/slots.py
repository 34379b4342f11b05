"""Slots: what may fill a place of a quantized layer, and how a stage of calibration finds what it trains."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class Slot(nn.Module):
    """What fills a slot of a layer.

    Attributes:
        tag: by which a stage picks the parameters, for example "transform" or "bounds"; never by class.
        learning_rate_scale: times the stage's learning rate for the tag.
        cacheable: whether what it gives depends on its parameters, its buffers and what `extra_repr` says alone.
    """

    tag = ""
    learning_rate_scale = 1.0
    cacheable = False

    def penalty(self, progress: float) -> Tensor | None:
        """A term of the loss while this slot is trained, `progress` (0 to 1) into the stage; None is no term."""
        return None


def trainable(module: nn.Module, tag: str) -> dict[float, list[nn.Parameter]]:
    """The parameters of all slots with this tag, by their `learning_rate_scale`, in definition order."""
    found: dict[float, list[nn.Parameter]] = {}
    for slot in module.modules():
        if isinstance(slot, Slot) and slot.tag == tag:
            found.setdefault(slot.learning_rate_scale, []).extend(slot.parameters(recurse=False))
    return {scale: parameters for scale, parameters in found.items() if parameters}


def penalties(module: nn.Module, tags: Sequence[str], progress: float) -> list[Tensor]:
    """The penalties of all slots with one of these tags, `progress` (0 to 1) into a stage."""
    found = (m.penalty(progress) for m in module.modules() if isinstance(m, Slot) and m.tag in tags)
    return [term for term in found if term is not None]
