"""LET's start: the equivalent transformation as SmoothQuant begins it, nothing trained (PassionSR section 3.3.2).

`CORRECTED` (not in the paper) also takes off each layer's bias what its quantization shifts the output by in the mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..calibration.alignment import Alignment, correct
from ..calibration.method import Method
from ..quantization.filling import LET
from ..quantization.layer import Quantized, QuantLayer


@dataclass(frozen=True)
class CorrectedLET(LET):
    """LET, and biases that are corrected once, at the start."""

    def fill(self, layer: Quantized) -> None:
        super().fill(layer)
        if isinstance(layer, QuantLayer):
            weight = layer.layer.weight
            layer.alignment = Alignment(len(weight)).to(weight.device)

    def settle(self, layers: Sequence[Quantized], run: Callable[[], object]) -> None:
        correct([layer for layer in layers if isinstance(layer, QuantLayer)], run)


METHOD = Method("let", "LET", "PassionSR, section 3.3.2, Eq. 4 to 7; SmoothQuant, Eq. 4", LET())
CORRECTED = Method("let+bias", "LET, biases corrected", "as LET; Nagel et al., ICCV 2019, section 4.2", CorrectedLET())
