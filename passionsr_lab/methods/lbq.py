"""LBQ alone: learned boundaries, all modules together, on the image (PassionSR section 3.3.1, Table 4)."""

from ..calibration.method import Method, Stage

METHOD = Method(
    "lbq", "LBQ", "PassionSR, section 3.3.1, Eq. 3; Table 4", stages=(Stage("all", ("bounds",), 2.0),), average=0.5
)
