"""LBQ and LET together, all modules at once, on the image: calibration without DQC (PassionSR Table 4)."""

from ..calibration.method import STEADY, Method, Stage
from ..quantization.filling import LET

METHOD = Method(
    "lbq+let", "LBQ + LET", "PassionSR, section 3.3; Table 4", LET(), (Stage("all", ("transform", "bounds"), 2.0),),
    rates=STEADY, average=0.5,
)  # fmt: skip
