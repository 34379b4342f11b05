"""The official procedure: PassionSR's stages with the released configuration's settings, as an opponent.

LET starts at amax|x|^0.3 / amax|w|^0.3 without a shift to begin with, Adam's rate is 1e-5 throughout, two epochs per
stage, no line search.  Rates are relative here (of a channel's scale and half range, of the range between boundaries),
absolute in the released code; its other deviations from the paper are listed in `official.corrections`.
"""

from dataclasses import dataclass, replace

from ..calibration.method import Method, Stage
from ..quantization.filling import LET
from ..quantization.quantizer import BoundaryQuantizer


@dataclass(frozen=True)
class Official(LET):
    """LET's slots, whose boundaries learn in parts of their range instead of steps of the grid."""

    alpha: float = 0.3
    beta: float = 0.3

    def fill(self, layer) -> None:
        super().fill(layer)
        for quantizer in (m for m in layer.modules() if isinstance(m, BoundaryQuantizer)):
            quantizer.learning_rate_scale = 1.0


STAGES = tuple(
    Stage(module, (tag,), 0.5) for module in ("encoder", "unet", "decoder") for tag in ("transform", "bounds")
)
METHOD = replace(
    Method("official", "PassionSR, official procedure", "PassionSR's released configuration"),
    slots=Official(), stages=STAGES, observe="quantized", rates={"transform": 1e-5, "bounds": 1e-5}, backtrack=False,
)  # fmt: skip
