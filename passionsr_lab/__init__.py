"""passionsr_lab: a workbench for quantizing one-step diffusion super-resolution (PassionSR and around it).

Example:
    >>> import passionsr_lab as lab
    >>> pipe = lab.tiny()  # or lab.load("folder or hub id")
    >>> q = lab.quantize(pipe, lab.W6A6)  # simulated: fake-quantized layers
    >>> records = lab.calibrate(q, lab.bundled("calibration", count=2, size=64), epochs=1)
    >>> image = lab.bundled("test")[0].lr
    >>> q(image).shape  # PIL image or tensor in, x4 out
    torch.Size([3, 128, 128])
"""

from .calibrate import Calibration, calibrate
from .config import METHODS, OFFICIAL, RECIPES, W4A4, W6A6, W8A8, Recipe, recipe
from .data import Pair, bundled, folder_pairs
from .metrics import score
from .model import OneStepSR, tiny
from .observe import observing
from .propagation import propagation
from .sensitivity import keep_top, sensitivity
from .surgery import layer_table, load, quantize, save, unquantize
from .sweep import grid, sweep
from .tiling import Tiling

__version__ = "0.1.0"

__all__ = [
    "METHODS",
    "OFFICIAL",
    "RECIPES",
    "W4A4",
    "W6A6",
    "W8A8",
    "Calibration",
    "OneStepSR",
    "Pair",
    "Recipe",
    "Tiling",
    "bundled",
    "calibrate",
    "folder_pairs",
    "grid",
    "keep_top",
    "layer_table",
    "load",
    "observing",
    "propagation",
    "quantize",
    "recipe",
    "save",
    "score",
    "sensitivity",
    "sweep",
    "tiny",
    "unquantize",
]
