"""The interactive bench: ipywidgets around plain functions that return a Figure.

Every widget has a static twin, the plain function itself, so that a page without a kernel shows the same picture.
"""

from .bench import calibration_bench, calibration_figure, fidelity
from .boundaries import boundary_explorer, boundary_figure
from .layers import layer_explorer, layer_figure
from .let import let_explorer, let_figure
from .progress import follow
from .sliders import image_slider, method_slider

__all__ = [
    "boundary_explorer", "boundary_figure", "calibration_bench", "calibration_figure", "fidelity", "follow",
    "image_slider", "layer_explorer", "layer_figure", "let_explorer", "let_figure", "method_slider",
]  # fmt: skip
