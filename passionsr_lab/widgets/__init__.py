"""The interactive bench: ipywidgets around plain functions that return a Figure.

Every widget has a static twin, the plain function itself, so that a page without a kernel shows the same picture.
"""

from .bench import calibration_bench, calibration_figure, fidelity, image_slider, method_slider
from .explore import boundary_explorer, boundary_figure, layer_explorer, layer_figure, let_explorer, let_figure
from .progress import follow

__all__ = [
    "boundary_explorer",
    "boundary_figure",
    "calibration_bench",
    "calibration_figure",
    "fidelity",
    "follow",
    "image_slider",
    "layer_explorer",
    "layer_figure",
    "let_explorer",
    "let_figure",
    "method_slider",
]
