"""One colour per module and one per method, whatever a figure shows of them; marks and strokes say it again."""

from __future__ import annotations

from collections.abc import Iterable

from ..util.names import MODULES

# Okabe and Ito's without yellow, which white paper swallows, and more, as many as methods; black is full precision.
PALETTE = [
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#117733", "#AA4499", "#8C564B", "#7F7F7F",
    "#4363D8", "#7AB800", "#009999", "#7B3FC4", "#F28E6B", "#5B4B00", "#9E9AC8", "#004D5C", "#E01FC8", "#00BB55",
    "#C0395B", "#6B4C7A", "#7FA58A", "#F062A6",
]  # fmt: skip
MARKERS, LINES = "os^Dv<P>X", ("-", "--", "-.", ":")
MODULE_COLOURS = dict(zip(MODULES, ("#332288", "#999933", "#882255")))
INK, GREY, PALE, ACCENT = "#000000", "#6e6e6e", "#f0f0f0", "#B2182B"
FULL = {"full precision": INK, "PassionSR-FP": INK, "FP": GREY}  # the last one still has its prompt branch

ROWS = {  # what figures call a method by its row in the paper's ablation
    "DQC": "passionsr", "LBQ + LET + DQC": "passionsr", "LBQ + LET + strict DQC": "passionsr-strict",
    "joint": "lbq+let", "LET's start": "let", "RPQ + ET": "qartsr",
}  # fmt: skip
_labels: list[str] = []  # of methods in the order of registration; other labels join when they are first drawn


def module_colour(name: str) -> str:
    """The colour of "encoder", "unet" or "decoder" in every figure; of anything else the palette's first."""
    return MODULE_COLOURS.get(name, PALETTE[0])


def method_colour(label: str) -> str:
    """The colour of a method, by name or label, in every figure: by order of registration, whatever else is drawn.

    What begins with a method's label and a comma ("LBQ, real zero point") has its colour, the longest label's; other
    labels that no method has take, in the order in which they are first drawn, the colours that are left.

    Example:
        >>> method_colour("maxmin") == method_colour("MaxMin") != method_colour("LBQ")
        True
    """
    return method_look(label)["color"]


def method_look(label: str) -> dict:
    """Colour, marker and line style of a method."""
    if label in FULL:
        return look(len(MARKERS) - 1) | {"color": FULL[label]}
    from .. import METHODS

    labels = {m.name: m.label for m in METHODS.values()}
    label = ROWS.get(label, label)
    own = labels.get(label, label)
    _labels.extend(each for each in dict.fromkeys([*labels.values(), own]) if each not in _labels)
    place, left = _labels.index(own), len(PALETTE) - len(labels)
    base = max((known for known in labels.values() if own.startswith(f"{known},")), key=len, default=None)
    if own not in labels.values() and base is not None:
        return look(place) | {"color": look(_labels.index(base))["color"]}
    return look(place) | ({"color": PALETTE[len(labels) + place % left]} if place >= len(PALETTE) and left > 0 else {})


def look(i: int) -> dict:
    """Colour, marker and line style of the i-th thing compared."""
    return {"color": PALETTE[i % len(PALETTE)], "marker": MARKERS[i % len(MARKERS)], "linestyle": LINES[i % len(LINES)]}


def looks(column: str | None, values: Iterable) -> list[dict]:
    """The look of every value of a column: a method's or module's own, or else one after the other."""
    if column in ("method", "run"):
        return [method_look(str(value)) for value in values]
    return [look(i) | {"color": MODULE_COLOURS.get(v, look(i)["color"])} for i, v in enumerate(values)]
