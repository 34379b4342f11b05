"""A line to move over a picture, one version on its left and another on its right."""

from __future__ import annotations

from collections.abc import Mapping

from .. import plots
from .picture import Explorer, menu, slider


def image_slider(before, after, names: tuple[str, str] = ("before", "after"), at: float = 0.5) -> Explorer:
    """A line to move over a picture, `before` on its left and `after` on its right; `plots.split` is its picture.

    Args:
        before, after: pictures of one size in [0, 1]: tensors (3, H, W), arrays, or PIL images.
        names: of the two.
        at: where the line is first, 0 to 1.
    """
    draw = lambda percent: plots.split(before, after, percent / 100, names)
    draw(round(100 * at))  # a wrong pair fails here, not in the widget
    return Explorer(draw, {"percent": _line(at)}, 540, "picture slider")


def method_slider(images: Mapping[str, object], before: str, after: str, at: float = 0.5) -> Explorer:
    """`image_slider` with two menus: any two of several pictures of one size, `images`: name -> picture."""
    controls = {
        "left": menu("Left", list(images), before, "The picture left of the line", "240px"),
        "right": menu("Right", list(images), after, "The picture right of the line", "240px"),
        "percent": _line(at),
    }
    draw = lambda left, right, percent: plots.split(images[left], images[right], percent / 100, (left, right))
    return Explorer(draw, controls, 540, "picture slider")


def _line(at: float):
    tip = "Where the line is, in percent of the width; the arrow keys move it"
    return slider("Line (%)", round(100 * at), 0, 100, tip)
