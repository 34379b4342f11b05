"""The interactive bench: ipywidgets around plain functions that return a Figure.

Every widget has a static twin, the plain function itself, so that a page without a kernel shows the same picture.
"""

from ..pages.compare import Comparison
from ..util.progress import follow
from .bench import calibration_bench, calibration_figure, fidelity
from .boundaries import boundary_explorer, boundary_figure
from .budget import budget_explorer, budget_figure
from .layers import layer_explorer, layer_figure
from .let import let_explorer, let_figure

__all__ = [
    "Comparison", "boundary_explorer", "boundary_figure", "budget_explorer", "budget_figure", "calibration_bench",
    "calibration_figure", "fidelity", "follow", "layer_explorer", "layer_figure", "let_explorer", "let_figure",
]  # fmt: skip
