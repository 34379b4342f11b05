"""LBQ and LET together, all modules at once, on the image: calibration without DQC (PassionSR Table 4).

`ALIGNED` trains biases as well, from LET's start with corrected ones (not in the paper).
"""

from dataclasses import replace

from ..calibration.alignment import RATE, CorrectedLET
from ..calibration.method import STEADY, Method, Stage
from ..quantization.filling import LET

METHOD = Method(
    "lbq+let", "LBQ + LET", "PassionSR, section 3.3; Table 4", LET(), (Stage("all", ("transform", "bounds"), 2.0),),
    rates=STEADY, average=0.5,
)  # fmt: skip
ALIGNED = replace(
    METHOD, name="lbq+let+bias", label="LBQ + LET, biases too", slots=CorrectedLET(), rates=STEADY | RATE,
    stages=(Stage("all", ("transform", "bounds", "alignment"), 2.0),),
)  # fmt: skip
