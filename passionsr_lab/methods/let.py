"""LET's start: the equivalent transformation as SmoothQuant begins it, nothing trained (PassionSR section 3.3.2).

`CORRECTED` (not in the paper) also takes off each layer's bias what its quantization shifts the output by in the mean.
"""

from __future__ import annotations

from ..calibration.alignment import CorrectedLET
from ..calibration.method import Method
from ..quantization.filling import LET

METHOD = Method("let", "LET", "PassionSR, section 3.3.2, Eq. 4 to 7; SmoothQuant, Eq. 4", LET())
CORRECTED = Method("let+bias", "LET, biases corrected", "as LET; Nagel et al., ICCV 2019, section 4.2", CorrectedLET())
