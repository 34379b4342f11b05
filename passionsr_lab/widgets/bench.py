"""The calibration bench: choose bits and a method, watch the loss curves move, stop, go on, deploy, compare."""

from __future__ import annotations

import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ipywidgets import HTML, Button, HBox, Image, IntProgress, Layout, VBox, Widget

from .. import plots
from ..calibration import checkpoint
from ..calibration.loop import Calibration
from ..deployment.pipeline import DeployedSR, deploy, load_deployed
from ..imaging.pairs import Pair
from ..imaging.psnr import psnr_rgb
from ..methods import DEFAULT, METHODS
from ..pages.compare import Comparison, described, seconds
from ..pipeline.identity import fingerprint
from ..pipeline.onestep import OneStepSR
from ..plots.training import STAGES
from ..quantization.place import QuantizedSR, quantize
from ..quantization.recipe import Recipe
from ..quantization.recipe import recipe as recipe_named
from ..util.names import MODULES
from ..util.progress import spoken
from .interrupt import interrupts
from .picture import menu, slider

_benches: weakref.WeakSet = weakref.WeakSet()  # a new one ends what the others run
COLUMNS = ("event", "module", "stage", "step", "of", "loss")
SETTLING = 2  # pairs that give a stopped run's other layers their ranges


def planned(work: Calibration) -> list[dict]:
    """One record (event "plan", no loss) per stage to come, so that a figure has all its panels from the start."""
    batches = -(-len(work.images) // work.batch)
    rows = [(s.segment, "+".join(s.train), s.steps(work.epochs, batches)) for s, _ in work.stages]
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


class Stopped(Exception):
    """Ends a calibration within a forward pass."""


class CalibrationBench(VBox):
    """Choose bits and method, press Calibrate, watch the loss curves move, press Stop, Continue, Deploy.

    The calibration runs in a thread, so that the kernel stays free to hear the Stop button and Interrupt Kernel, which
    do the same: what was begun since the last record is thrown away, and what was not reached gets its plain ranges.
    `quantized` is then a pipeline that works, and `records` its records so far; Continue goes on as if nothing had
    been.  A bench that is made ends what another one still runs.  Arguments: see `calibration_bench`.

    Deploy makes integers of `quantized`: the pipeline is then in `deployed`, a model beside the simulated one.

    `runs` has a row for every model so far: its settings, PSNR against full precision, the difference to the first, and
    seconds for the first test picture, of deployed models only.  From the second model on a line can be moved
    between what any two of them make of the first test picture (`comparison`), or their difference be shown.
    """

    def __init__(self, pipe, pairs, tests, recipe, method, methods, every, options, records, rows):
        self.pipe, self.pairs, self.every = pipe, list(pairs), every
        self.options = {"epochs": 2, "batch": 4, "seed": 0} | options
        self.tests, self.full = [p.lr for p in tests], None
        self.records, self.quantized, self.deployed, self.error = list(records), None, None, None
        self.runs, self.outputs = [], {}
        self._stopping, self._thread = threading.Event(), None
        self._folder, self._settings = tempfile.TemporaryDirectory(prefix="bench-"), {}
        self.controls = _controls(recipe, methods, method, self.options.pop("epochs"), len(self.pairs))
        self.rows = [] if rows is None else rows.to_dict("records")
        self.row = menu("Row", [("", None), *_row_names(self.rows)], None, "Take the settings of a row of the table")
        self.row.observe(lambda change: self.choose(self.rows[change.new]) if change.new is not None else None, "value")
        self.go = Button(description="Calibrate", button_style="primary", tooltip="Start anew with these settings")
        self.halt = Button(description="Stop", disabled=True, tooltip="Stop at once; the model works")
        self.further = Button(description="Continue", disabled=True, tooltip="Go on where Stop ended it")
        self.integers = Button(description="Deploy", disabled=True, tooltip="Make integers of the model, and time them")
        self.bar = IntProgress(0, 0, 1, layout=Layout(width="240px"))
        self.status = HTML("Ready.", layout=Layout(height="24px"))
        self.picture = Image(format="png", layout=Layout(height="330px", max_width="100%", object_fit="contain"))
        self.picture.layout.object_position = "left top"
        self.picture.layout.visibility = "hidden"  # until there is one: a browser marks an empty picture as broken
        self.table, self.slider = HTML(), HTML()
        buttons = [self.go, self.halt, self.further, self.integers]
        controls = [*[self.row] * bool(self.rows), *self.controls.values(), *buttons]
        for control in (self.row, *controls):
            control.tabbable = True
        self.go.on_click(lambda _: self.start())
        self.halt.on_click(lambda _: self.stop())
        self.further.on_click(lambda _: self.resume())
        self.integers.on_click(lambda _: self.deploy())
        row = HBox(controls, layout=Layout(flex_flow="row wrap"))
        super().__init__([row, HBox([self.bar, self.status]), self.picture, self.table, self.slider])
        if self.records:
            self._draw()
        for other in [*_benches]:
            other.stop()
        _benches.add(self)

    def __repr__(self) -> str:
        return "(calibration bench: needs a running kernel; calibration_figure draws the same picture)"

    @property
    def settings(self) -> dict:
        """What a run would have now: the controls' recipe, method, epochs and pairs, and batch and seed."""
        values = {name: control.value for name, control in self.controls.items()}
        widths = f"W{values.pop('weights')}A{values.pop('activations')}"
        rest = {name: self.options[name] for name in ("batch", "seed")}
        return {"recipe": recipe_named(widths, modules=values.pop("modules")), **values, **rest}

    def choose(self, row: Mapping) -> None:
        """Takes a row of `lab.grid`: recipe, method, and epochs, pairs, batch and seed where it has them."""
        recipe = row["recipe"] if isinstance(row["recipe"], Recipe) else recipe_named(row["recipe"])
        given = {"weights": recipe.weight_bits, "activations": recipe.act_bits, "modules": recipe.modules}
        for name, value in (given | {k: row[k] for k in ("method", "epochs", "pairs") if k in row}).items():
            self.controls[name].value = value
        self.options |= {name: int(row[name]) for name in ("batch", "seed") if name in row}

    @property
    def running(self) -> bool:
        """Whether a calibration is in progress."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """What the Calibrate button does; nothing while a calibration runs."""
        if not self.running:
            self._kept.unlink(missing_ok=True)
            self._settings = self.settings
            self.records = []
            self._launch(self._calibrating)

    def resume(self) -> None:
        """What the Continue button does: a run that was stopped goes on, with the settings that it had."""
        if not self.running and self._kept.exists():
            self.choose(self._settings)
            self._launch(self._calibrating)

    def deploy(self) -> None:
        """What the Deploy button does; nothing while something runs, or before there is a model."""
        if not self.running and self.quantized is not None:
            self._launch(self._deploying)

    def stop(self) -> None:
        """What the Stop button does, and Interrupt Kernel; nothing where nothing runs."""
        if self.running:
            self._stopping.set()
            self.halt.disabled = True
            self._say("Stopping: what was not reached gets its plain ranges.")

    def wait(self, timeout: float | None = None) -> QuantizedSR | None:
        """Waits (seconds) for the run to end; the calibrated pipeline, or None when it is not ready or failed."""
        try:
            if self._thread is not None:
                self._thread.join(timeout)
        except KeyboardInterrupt:
            self.stop()
            raise
        return None if self.running else self.quantized

    @property
    def _kept(self) -> Path:
        """Where the state after the last record is."""
        return Path(self._folder.name) / "state.pt"

    @property
    def comparison(self) -> Comparison | None:
        """A line to move between what the models so far make of the first test picture; None before there are two."""
        return Comparison(self.outputs, width=440, quality=90) if len(self.outputs) > 1 else None

    def _launch(self, work: Callable[[], None]) -> None:
        self._stopping.clear()
        self.error = None
        self._busy(True)
        self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self._thread.start()

    # -- the thread -----------------------------------------------------------------------------------------------

    def _run(self, work: Callable[[], None]) -> None:
        with interrupts(self.stop):
            try:
                work()
            except Exception as error:  # a thread's error would be lost; the widget tells it
                self.error = error
                self._say(f"<span role='alert'>{type(error).__name__}: {error}</span>")
            finally:
                self._busy(False)

    def _calibrating(self) -> None:
        self.quantized, self.deployed = None, None
        self._say("Preparing the full-precision targets.")
        self._calibrate(self._begun()) or self._settle()

    def _deploying(self) -> None:
        self.halt.disabled = True  # it takes seconds
        self._say("Folding, packing, compiling.")
        with tempfile.TemporaryDirectory(prefix="deployed-") as folder:
            deploy(self.quantized, folder)
            self.deployed = load_deployed(folder)
        self._say("Deployed; " + self._reached(self.deployed))

    def _begun(self) -> Calibration:
        asked, q = self._settings, quantize(self.pipe, self._settings["recipe"])
        pairs, method = self.pairs[: asked["pairs"]], METHODS[asked["method"]]
        work = Calibration(q, pairs, method, epochs=asked["epochs"], **self.options)
        work.identity = fingerprint(self.pipe)
        if self._kept.exists():
            checkpoint.resume(work, self._kept)
        return work

    def _calibrate(self, work: Calibration) -> bool:
        """Runs to the end, and says so; False where it was stopped before."""
        plan, start, before = planned(work), time.monotonic(), None
        self.bar.max = work.total
        hooks = [layer.register_forward_pre_hook(_ending(self._stopping)) for layer in work.q.layers.values()]
        try:
            for record in work.run():
                checkpoint.save(work, self._kept)
                count = len(work.records)
                if before is None:
                    before, start = count - 1, time.monotonic()
                self.records, self.bar.value = plan + work.records, count
                if self._due(record):
                    self._say(_progress(record, time.monotonic() - start, count - before, work.total - before))
                    self._draw()
        except Stopped:
            return False
        for hook in hooks:
            hook.remove()
        self._kept.unlink()
        self.quantized = work.q
        self._draw()
        self._say("Done; " + self._reached(work.q))
        return True

    def _due(self, record: dict) -> bool:
        """Whether the picture is drawn anew after this record."""
        return record["event"] != "step" or record["step"] % self.every == 0

    def _settle(self) -> None:
        """A pipeline that works, out of the state after the last record."""
        if not self._kept.exists():
            return self._say("Stopped before the first record; there is no model yet.")
        work = self._begun()
        work.finish(SETTLING)
        self.quantized = work.q
        if not self._due(self.records[-1]):
            self._draw()
        self._say(f"Stopped after {len(work.records)} of {work.total} records; the model is in `quantized`.")

    def _reached(self, model: QuantizedSR | DeployedSR) -> str:
        """Adds the model to the table and to the pictures; what it reached."""
        asked, name = self._settings, "quantized" if isinstance(model, QuantizedSR) else "deployed"
        row = asked | {"recipe": asked["recipe"].name, "modules": ", ".join(asked["recipe"].modules)}
        self.runs.append(row | {"label": model.label})
        if self.tests:
            self._measure(model, self.runs[-1])
        self.table.value = _run_table(self.runs)
        if not self.tests:
            return f"the model is in `{name}`."
        return f"{self.runs[-1]['dB']:.2f} dB against full precision on {len(self.tests)} test pictures."

    def _measure(self, model: QuantizedSR | DeployedSR, row: dict) -> None:
        first = self.tests[0]
        if self.full is None:
            self.full = [self.pipe(x) for x in self.tests]
            took = seconds(self.pipe, first)
            self.outputs[described("full precision", self.pipe, took)] = self.full[0]
        took, images = seconds(model, first), [model(x) for x in self.tests]
        row["dB"] = sum(map(psnr_rgb, images, self.full)) / len(images)
        row["to the first (dB)"] = row["dB"] - self.runs[0]["dB"]
        row |= {} if took is None else {"seconds": took}
        name = f"{len(self.runs)}: {row['recipe']} {METHODS[row['method']].label}"
        self.outputs[described(name, model, took)] = images[0]
        self.slider.value = self.comparison._repr_html_()

    def _draw(self) -> None:
        asked = self._settings or self.settings
        label = METHODS[asked["method"]].label
        caption = {"model": self.pipe.name, "modules": ", ".join(asked["recipe"].modules)}
        caption |= {k: asked[k] for k in ("pairs", "epochs", "batch", "seed")} | {"one": "run"}
        self.picture.value = plots.png(calibration_figure(self.records, asked["recipe"].name, label, caption=caption))
        self.picture.layout.visibility = "visible"

    def _say(self, text: str) -> None:
        self.status.value = f"<span role='status'>{text}</span>"

    def _busy(self, busy: bool) -> None:
        for control in (self.row, *self.controls.values(), self.go):
            control.disabled = busy
        self.halt.disabled = not busy
        self.further.disabled = busy or not self._kept.exists()
        self.integers.disabled = busy or self.quantized is None


def _controls(recipe: str, methods: Sequence[str], method: str, epochs: int, pairs: int) -> dict[str, Widget]:
    first = recipe_named(recipe)
    widths = list(range(2, 9))
    named = [(METHODS[name].label, name) for name in methods]
    modules = [("all", MODULES), *((name, (name,)) for name in MODULES), ("VAE", ("encoder", "decoder"))]
    tip = "Passes over the pairs, times the share of a stage; joint methods and DQC make as many updates in sum"
    return {
        "weights": menu("Weights", widths, first.weight_bits, "Bits of weights", "110px"),
        "activations": menu("Activations", widths, first.act_bits, "Bits of activations", "130px"),
        "modules": menu("Modules", modules, first.modules, "What is quantized; unet alone is PassionSR-U", "150px"),
        "method": menu("Method", named, method, "What fills the layers' slots, and what is trained when"),
        "epochs": slider("Epochs", epochs, 1, 16, tip),
        "pairs": slider("Pairs", pairs, 1, max(pairs, 2), "How many of the pairs are calibrated on"),
    }


def _row_names(rows: Sequence[Mapping]) -> list[tuple[str, int]]:
    told = ("recipe", "method", "seed", "epochs")
    return [(", ".join(f"{k} {row[k]}" for k in told if k in row), i) for i, row in enumerate(rows)]


def _run_table(runs: Sequence[Mapping]) -> str:
    import pandas as pd

    frame = pd.DataFrame(runs, index=range(1, len(runs) + 1))
    digits = {"seconds": "{:.2g}".format}
    return frame.to_html(
        border=0, float_format=lambda value: f"{value:.2f}", na_rep="", formatters=digits, justify="left"
    )


def _ending(stopping: threading.Event) -> Callable:
    """A hook that ends a forward pass when the event is set; a function, which copies of a layer can share."""

    def hook(*_) -> None:
        if stopping.is_set():
            raise Stopped

    return hook


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
    methods: Sequence[str] | None = None,
    every: int = 2,
    records=None,
    rows=None,
    **options,
) -> CalibrationBench:
    """Choose bits and method, press Calibrate, watch the loss curves move, stop, go on; `calibration_figure` draws it.

    Args:
        pipe: a full-precision pipeline, which stays as it is; each run quantizes it anew.
        pairs: to calibrate on.
        tests: pairs of other pictures; their PSNR against full precision is told at the end.
        recipe, method: the first choice.
        methods: names to choose from; by default all that are registered by now.
        every: steps between two pictures.
        records: of an earlier run, shown until the first one here.
        rows: of `lab.grid`; a menu then takes the settings of one of them, to run it again.
        options: epochs, batch, seed, rates of `Calibration`.

    Example:
        >>> import passionsr_lab as lab
        >>> bench = calibration_bench(lab.tiny(), lab.bundled("calibration", 2, 64), method="let", epochs=1)
        >>> bench.start()
        >>> bench.wait().label
        'simulated'
    """
    before = [] if records is None else records.to_dict("records")
    methods = list(METHODS) if methods is None else methods
    return CalibrationBench(pipe, pairs, tests, recipe, method, methods, every, options, before, rows)
