"""Figures for paper and notebook: arrays and DataFrames in, a matplotlib Figure out; nothing is shown or kept open.

    from passionsr_lab import plots

    fig = plots.loss_curves(records, caption={"model": "tiny", "method": "PassionSR", "pairs": 16, "seed": 0})
    plots.save(fig, "figure5")                 # figures/figure5.pdf and .png, the same bytes on every run

Every function takes a title (`heading`), most a width in inches (CVPR's `COLUMN` and `PAGE`), and all a `caption`: a
small line below, from a text or from names and values.  A frame that lacks a column or has no rows is a `ValueError`.
Modules and methods have one colour each in all figures (`colours`); the style is `plots/paper.mplstyle`.
"""

from .base import COLUMN, PAGE, png, save
from .colours import method_colour, module_colour
from .curves import curves, maps
from .histograms import histogram, histograms
from .panels import boundary_panels, layer_panels, scale_panels
from .pictures import Box, comparison, split
from .points import ablation, intervals
from .quantizers import error_grid, error_surface, quantizer_curve
from .ranges import activations, channel_ranges, layer_curves, layer_ranges, scales
from .results import propagation, sensitivity, shares, widths
from .training import loss_curves, quality_over_time

__all__ = [
    "COLUMN", "PAGE", "Box", "ablation", "activations", "boundary_panels", "channel_ranges", "comparison", "curves",
    "error_grid", "error_surface", "histogram", "histograms", "intervals", "layer_curves", "layer_panels",
    "layer_ranges", "loss_curves", "maps", "method_colour", "module_colour", "png", "propagation", "quality_over_time",
    "quantizer_curve", "save", "scale_panels", "scales", "sensitivity", "shares", "split", "widths",
]  # fmt: skip
