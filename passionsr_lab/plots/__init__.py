"""Figures for paper and notebook: arrays and DataFrames in, a matplotlib Figure out; nothing is shown or kept open.

    from passionsr_lab import plots

    fig = plots.loss_curves(records)
    plots.save(fig, "figure5")                 # figures/figure5.pdf and .png, the same bytes on every run

Widths are CVPR's (`COLUMN`, `PAGE`, in inches); the style is `passionsr_lab/plots/paper.mplstyle`.
"""

from .base import COLUMN, PAGE, save
from .curves import curves, maps
from .panels import boundary_panels, layer_panels, scale_panels
from .pictures import Box, comparison
from .quantizers import error_grid, error_surface, histogram, histograms, quantizer_curve
from .ranges import activations, channel_ranges, layer_ranges, scales
from .results import ablation, propagation, sensitivity
from .scores import intervals, shares
from .split import split
from .training import loss_curves, quality_over_time

__all__ = [
    "COLUMN",
    "PAGE",
    "Box",
    "ablation",
    "activations",
    "boundary_panels",
    "channel_ranges",
    "comparison",
    "curves",
    "error_grid",
    "error_surface",
    "histogram",
    "histograms",
    "intervals",
    "layer_panels",
    "layer_ranges",
    "loss_curves",
    "maps",
    "propagation",
    "quality_over_time",
    "quantizer_curve",
    "save",
    "scale_panels",
    "scales",
    "sensitivity",
    "shares",
    "split",
]
