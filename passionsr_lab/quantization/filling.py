"""How slots are filled and started: what a method says of a layer, shared by the methods that need no more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .attention import QuantAttention
from .layer import QuantLayer
from .quantizer import QUANTIZERS
from .transform import EquivalentTransform

if TYPE_CHECKING:
    from .place import QuantizedSR


@dataclass(frozen=True)
class Slots:
    """Quantizers between minimum and maximum, which "bounds" stages may move; nothing else.

    A method's own class inherits from this one; its fields are the method's options and are saved with the model.

    Args:
        quantizer: a name out of `QUANTIZERS`.
    """

    quantizer: str = "boundaries"

    def install(self, q: QuantizedSR) -> None:
        """Empties and fills the slots of every quantized layer: nothing of an earlier calibration stays."""
        for layer in q.layers.values():
            if type(layer) not in (QuantLayer, QuantAttention):
                raise ValueError(f"{layer.name} runs a released file; unquantize the pipeline and quantize it anew.")
            layer.empty()
            self.fill(layer)

    def fill(self, layer: QuantLayer | QuantAttention) -> None:
        """Fills the slots of one layer whose `setting` says bits, splitting and rank."""
        layer.fill_quantizers(QUANTIZERS[self.quantizer])

    def start_all(self, layers: Sequence[QuantLayer | QuantAttention]) -> None:
        """Initializes the slots of a segment's layers, after their inputs were observed."""
        for layer in layers:
            self.start(layer)

    def start(self, layer: QuantLayer | QuantAttention) -> None:
        """Initializes the slots of one layer."""

    def settle(self, layers: Sequence[QuantLayer | QuantAttention], run: Callable[[], object]) -> None:
        """The start's last part, when every layer of a segment works; `run` sends some pictures through the segment."""


@dataclass(frozen=True)
class LET(Slots):
    """Also a scale and a shift per channel, from SmoothQuant's start amax|x|^alpha / amax|w|^beta.

    Args:
        alpha, beta: SmoothQuant's are (a, 1 - a); the official PassionSR configuration has 0.3 and 0.3.
        shift: whether a shift is learned too; `centre` starts it at the middle of each channel's range.
    """

    alpha: float = 0.5
    beta: float = 0.5
    shift: bool = True
    centre: bool = False

    def fill(self, layer: QuantLayer | QuantAttention) -> None:
        super().fill(layer)
        if isinstance(layer, QuantLayer):
            channels = len(layer.range.low)
            layer.transform = EquivalentTransform(channels, self.shift).to(layer.layer.weight.device)
        else:
            sizes = layer.channels
            layer.transform_qk = EquivalentTransform(sizes["q"], shift=False).to(layer.place)
            layer.transform_v = EquivalentTransform(sizes["v"], shift=False).to(layer.place)

    @torch.no_grad()
    def start(self, layer: QuantLayer | QuantAttention) -> None:
        """Of an attention s = amax|q|^alpha / amax|k|^beta, and s_v = amax|v|: undoing it costs no precision."""
        if isinstance(layer, QuantLayer):
            low, high = layer.range.require(layer.name)
            centre = self.centre and self.shift
            layer.transform.start(low, high, layer.channel_amax(), self.alpha, self.beta, centre)
            return
        (q_low, q_high), (v_low, v_high) = (layer.ranges[key].require(layer.name) for key in "qv")
        layer.transform_qk.start(q_low, q_high, layer.ranges["k"].amax, self.alpha, self.beta, False)
        layer.transform_v.start(v_low, v_high, torch.ones_like(v_low), 1.0, 0.0, False)
