"""LET's start: the equivalent transformation as SmoothQuant begins it, nothing trained (PassionSR section 3.3.2)."""

from ..calibration.method import Method
from ..quantization.filling import LET

METHOD = Method("let", "LET", "PassionSR, section 3.3.2, Eq. 4 to 7; SmoothQuant, Eq. 4", LET())
