"""The path of a picture through the model, as data: encoder, UNet and decoder, one after the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from .onestep import OneStepSR


@dataclass(frozen=True)
class Segment:
    """A stretch of the path.

    name: "encoder", "unet" or "decoder".
    modules: what it is made of, by the prefix of their layers' names.
    run: its input -> its output, which is the next segment's input.
    """

    name: str
    modules: dict[str, nn.Module]
    run: Callable[[Tensor], Tensor]


def segments(pipe: OneStepSR) -> tuple[Segment, ...]:
    """Image in [-1, 1] -> z_L -> z_H (after Eq. 9) -> image; the VAE's quant convolutions go with their neighbours."""
    vae = getattr(pipe.vae, "_orig_mod", pipe.vae)  # looks through torch.compile
    rows = (
        ("encoder", {"vae.encoder": vae.encoder, "vae.quant_conv": vae.quant_conv}, pipe.encode),
        ("unet", {"unet": pipe.unet}, pipe.denoise),
        ("decoder", {"vae.post_quant_conv": vae.post_quant_conv, "vae.decoder": vae.decoder}, pipe.decode),
    )
    return tuple(Segment(name, {k: m for k, m in found.items() if m is not None}, run) for name, found, run in rows)
