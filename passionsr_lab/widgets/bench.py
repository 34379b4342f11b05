"""The calibration bench: choose bits and a method, watch the loss curves move, stop."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence

from ipywidgets import HTML, Button, HBox, Image, IntProgress, Layout, VBox

from .. import plots
from ..calibration.loop import Calibration
from ..imaging.pairs import Pair
from ..imaging.psnr import psnr_rgb
from ..methods import DEFAULT, METHODS
from ..pipeline.onestep import OneStepSR
from ..plots.training import STAGES
from ..quantization.place import QuantizedSR, quantize
from ..quantization.recipe import RECIPES
from .picture import menu, png, slider
from .progress import spoken

COLUMNS = ("event", "module", "stage", "step", "of", "loss")


def planned(work: Calibration) -> list[dict]:
    """One record (event "plan", no loss) per stage to come, so that a figure has all its panels from the start."""
    batches = -(-len(work.images) // work.batch)
    rows = [(s.segment, "+".join(s.train), s.passes(work.epochs) * batches) for s, _ in work.stages]
    return [dict(zip(COLUMNS, ("plan", module, stage, 0, steps, float("nan")))) for module, stage, steps in rows]


def calibration_figure(records, recipe: str, method: str, result: str = "", caption: str | Mapping = ""):
    """The loss curves of one calibration, finished or in progress: what the bench shows while it runs.

    Args:
        records: a list of a `Calibration`'s records, or the DataFrame that `calibrate` returns.
        recipe, method: their names, for the title.
        result: what the title ends with, e.g. the PSNR that was reached.
        caption: the small line below.
    """
    import pandas as pd

    frame = pd.DataFrame(records)
    return plots.loss_curves(frame, f"Calibration loss of each module: {method} at {recipe}{result}", caption=caption)


def fidelity(q: QuantizedSR, images: Sequence, full: Sequence) -> float:
    """Mean PSNR (dB) of the pipeline's outputs for LR images (3, h, w) against the full-precision outputs."""
    return sum(psnr_rgb(q(x), y) for x, y in zip(images, full)) / len(full)


class CalibrationBench(VBox):
    """Choose bits and method, press Calibrate, watch the loss curves move, press Stop.

    The calibration runs in a thread, so that the kernel stays free to hear the Stop button; it stops between two
    steps, and what was not reached gets its plain ranges.  `quantized` is then a pipeline that works, and `records`
    its records so far.  Arguments: see `calibration_bench`.
    """

    def __init__(self, pipe, pairs, tests, recipe, method, recipes, methods, every, options, records):
        self.pipe, self.pairs, self.every, self.options = pipe, list(pairs), every, options
        self.tests, self.full = [p.lr for p in tests], None
        self.records, self.quantized, self.error = list(records), None, None
        self._stopping, self._thread = threading.Event(), None
        self.recipe = menu("Bits", list(recipes), recipe, "Bits of weights and activations")
        named = [(METHODS[name].label, name) for name in methods]
        self.method = menu("Method", named, method, "What fills the layers' slots, and what is trained when")
        tip = "Passes over the pairs, times the share of a stage; joint methods and DQC make as many updates in sum"
        self.epochs = slider("Epochs", options.pop("epochs", 2), 1, 16, tip)
        self.go = Button(description="Calibrate", button_style="primary", tooltip="Start anew with these settings")
        self.halt = Button(description="Stop", disabled=True, tooltip="Stop after the present step; the model works")
        self.bar = IntProgress(0, 0, 1, layout=Layout(width="240px"))
        self.status = HTML("Ready.", layout=Layout(height="24px"))
        self.picture = Image(format="png", layout=Layout(height="330px", max_width="100%", object_fit="contain"))
        self.picture.layout.object_position = "left top"
        controls = [self.recipe, self.method, self.epochs, self.go, self.halt]
        for control in controls:
            control.tabbable = True
        self.go.on_click(lambda _: self.start())
        self.halt.on_click(lambda _: self.stop())
        row = HBox(controls, layout=Layout(flex_flow="row wrap"))
        super().__init__([row, HBox([self.bar, self.status]), self.picture])
        if self.records:
            self._draw()

    def __repr__(self) -> str:
        return "(calibration bench: needs a running kernel; calibration_figure draws the same picture)"

    @property
    def running(self) -> bool:
        """Whether a calibration is in progress."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """What the Calibrate button does; nothing while a calibration runs."""
        if self.running:
            return
        self._stopping.clear()
        self.records, self.quantized, self.error = [], None, None
        self._busy(True)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """What the Stop button does: the run ends after the present step."""
        self._stopping.set()
        self.halt.disabled = True
        self._say("Stopping: what was not reached gets its plain ranges.")

    def wait(self, timeout: float | None = None) -> QuantizedSR | None:
        """Waits (seconds) for the run to end; the calibrated pipeline, or None when it is not ready or failed."""
        if self._thread is not None:
            self._thread.join(timeout)
        return None if self.running else self.quantized

    # -- the thread -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._say("Preparing the full-precision targets.")
            q, method = quantize(self.pipe, self.recipe.value), METHODS[self.method.value]
            work = Calibration(q, self.pairs, method, epochs=self.epochs.value, **self.options)
            self._calibrate(work)
            work.finish()
            self.quantized = q
            self._say(("Stopped; " if self._stopping.is_set() else "Done; ") + self._reached(q))
        except Exception as error:  # a thread's error would be lost; the widget tells it
            self.error = error
            self._say(f"<span role='alert'>{type(error).__name__}: {error}</span>")
        finally:
            self._busy(False)

    def _calibrate(self, work: Calibration) -> None:
        plan, start = planned(work), time.monotonic()
        self.bar.max, self.bar.value = work.total, 0
        for count, record in enumerate(work.run(), 1):
            if count == 1:
                self.records, start = plan, time.monotonic()
            self.records.append(record)
            self.bar.value = count
            if self._stopping.is_set():
                break
            if record["event"] != "step" or record["step"] % self.every == 0:
                self._say(_progress(record, time.monotonic() - start, count, work.total))
                self._draw()
        self._draw()

    def _reached(self, q: QuantizedSR) -> str:
        if not self.tests:
            return "the model is in `quantized`."
        self.full = self.full or [self.pipe(x) for x in self.tests]
        return f"{fidelity(q, self.tests, self.full):.2f} dB against full precision on {len(self.tests)} test pictures."

    def _draw(self) -> None:
        self.picture.value = png(calibration_figure(self.records, self.recipe.value, self.method.label))

    def _say(self, text: str) -> None:
        self.status.value = f"<span role='status'>{text}</span>"

    def _busy(self, busy: bool) -> None:
        for control in (self.recipe, self.method, self.epochs, self.go):
            control.disabled = busy
        self.halt.disabled = not busy


def _progress(record: dict, seconds: float, count: int, total: int) -> str:
    left = seconds / count * (total - count)
    stage = STAGES.get(record["stage"], record["stage"])
    where = f"{record['block'] or record['module']}, {stage}, step {record['step']} of {record['of']}"
    return f"{where}: loss {record['loss']:.3g}; {spoken(seconds)}, about {spoken(left)} left."


def calibration_bench(
    pipe: OneStepSR,
    pairs: Sequence[Pair],
    tests: Sequence[Pair] = (),
    recipe: str = "W6A6",
    method: str = DEFAULT,
    recipes: Sequence[str] = tuple(RECIPES),
    methods: Sequence[str] | None = None,
    every: int = 2,
    records=None,
    **options,
) -> CalibrationBench:
    """Choose bits and method, press Calibrate, watch the loss curves move, stop; `calibration_figure` is its picture.

    Args:
        pipe: a full-precision pipeline, which stays as it is; each run quantizes it anew.
        pairs: to calibrate on.
        tests: pairs of other pictures; their PSNR against full precision is told at the end.
        recipe, method: the first choice, out of `recipes` and `methods`.
        methods: names; by default all that are registered by now.
        every: steps between two pictures.
        records: of an earlier run, shown until the first one here.
        options: epochs, batch, seed, rates of `Calibration`.

    Example:
        >>> import passionsr_lab as lab
        >>> bench = calibration_bench(lab.tiny(), lab.bundled("calibration", 2, 64), method="let", epochs=1)
        >>> bench.start()
        >>> bench.wait().label
        'simulated'
    """
    rows = [] if records is None else records.to_dict("records")
    methods = list(METHODS) if methods is None else methods
    return CalibrationBench(pipe, pairs, tests, recipe, method, recipes, methods, every, options, rows)
