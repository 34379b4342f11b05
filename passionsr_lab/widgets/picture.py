"""Controls above one picture: a change of any control draws the picture again, once, in the same place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import contextmanager

from ipywidgets import HTML, Button, Dropdown, FloatSlider, HBox, Image, IntSlider, Layout, VBox, Widget

from .. import plots

STYLE = {"description_width": "initial"}


def menu(label: str, options, value, tip: str, width: str | None = None) -> Dropdown:
    """A menu; `options` are names, or (name, value) pairs."""
    tip += "; the space bar opens the menu"  # JupyterLab keeps the arrow keys of a closed one (ipywidgets issue 3912)
    layout = Layout(width=width)
    return Dropdown(options=options, value=value, description=label, tooltip=tip, style=STYLE, layout=layout)


def slider(label: str, value: float, low: float, high: float, tip: str, step: float = 1, **more) -> Widget:
    """A slider that tells its value when it is let go; of whole numbers when the step is one."""
    options = {"min": low, "max": high, "step": step, "description": label, "tooltip": tip, "style": STYLE} | more
    return (IntSlider if isinstance(step, int) else FloatSlider)(value, continuous_update=False, **options)


class Explorer(VBox):
    """Controls, a line for messages and a picture of fixed height whose bytes are replaced: nothing jumps or flickers.

    Args:
        draw: called with every control's value under its name; returns a Figure.  A `ValueError` is shown in the line
            above the picture, which then stays as it is.
        controls: name -> control, in the order of the tab key.
        height: of the picture, in CSS pixels.
        name: what a page without a kernel shows in the widget's place.
        shortcuts: label -> values that a button sets, or a function of the present values that returns them.
    """

    def __init__(
        self,
        draw: Callable,
        controls: Mapping[str, Widget],
        height: int = 420,
        name: str = "explorer",
        shortcuts: Mapping[str, Callable[[dict], dict]] | None = None,
    ):
        self.draw, self.controls, self.title, self._held = draw, dict(controls), name, False
        self.note = HTML(layout=Layout(height="24px"))
        self.picture = Image(
            format="png",
            layout=Layout(height=f"{height}px", max_width="100%", object_fit="contain", object_position="left top"),
        )
        self.buttons = {label: self._button(label, values) for label, values in (shortcuts or {}).items()}
        row = HBox([*self.controls.values(), *self.buttons.values()], layout=Layout(flex_flow="row wrap"))
        super().__init__([row, self.note, self.picture])
        for control in self.controls.values():
            control.tabbable = True
            control.observe(self._changed, names="value")
        self.redraw()

    def __repr__(self) -> str:
        return f"({self.title}: needs a running kernel; the next cell shows the same picture)"

    @property
    def values(self) -> dict:
        """Every control's present value."""
        return {name: control.value for name, control in self.controls.items()}

    def set(self, **values) -> None:
        """Moves several controls and draws once."""
        with self._holding():
            for name, value in values.items():
                self.controls[name].value = value
        self.redraw()

    def redraw(self) -> None:
        """Draws the picture for the present values."""
        try:
            self.picture.value = plots.png(self.draw(**self.values))
            self.note.value = ""
        except ValueError as error:
            self.note.value = f"<span role='alert'>{error}</span>"

    def _changed(self, _) -> None:
        if not self._held:
            self.redraw()

    def _button(self, label: str, values: Callable[[dict], dict]) -> Button:
        button = Button(description=label, tooltip=f"Set the controls: {label}", tabbable=True)
        button.on_click(lambda _: self.set(**values(self.values)))
        return button

    @contextmanager
    def _holding(self):
        self._held = True
        try:
            yield
        finally:
            self._held = False
