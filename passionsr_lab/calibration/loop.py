"""The one loop of calibration: DQC (PassionSR section 3.4), joint training, block reconstruction are stages in it.

Progress leaves as records, one per step; nothing is printed.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..imaging.pairs import Pair
from ..kernels import compiled as passes
from ..quantization.layer import mode
from ..quantization.place import QuantizedSR, quantized_layers, segment_modules
from ..quantization.ranges import Range
from ..quantization.slots import penalties, trainable
from ..util.cost import Meter
from ..util.names import MODULES
from . import checkpoint
from .activations import Activations, batches
from .checks import checked
from .method import Method, Stage
from .state import slot_tensors
from .task import Task, expanded, task

STEP_LENGTHS = (1.0, 0.5, 0.25, 0.125)  # of the backtracking line search at a stage's end, longest first
JUDGES = 16  # pairs at most whose loss says how a stage began and ended; of all of them it would cost as much as steps
SETTLING = 16  # pairs at most that go through a segment to settle its start
SAVE_EVERY = 60  # seconds between two states that a run keeps


class Calibration:
    """A calibration in progress: iterate over `run()`; stop between any two records and go on later.

    A run starts anew: the method empties and fills every slot of the pipeline, whatever was calibrated before.

    Args:
        q: what `quantize` returned; it is calibrated in place.
        pairs: `Pair`s or (lr, hr) tuples; only the LR images are used, the targets are the full-precision model's.
        method: what to do.
        epochs: passes over the pairs in a stage of `Stage.epochs` 1.
        batch: pairs per step; images of different sizes are never mixed.
        seed: of the order of the pairs.
        rates: learning rates by tag, in place of some of the method's.
        lean: saves memory for full-size models (see `Activations`); the numbers are the same.
        compiled: whether the CPU's passes are compiled by numba, which is quicker; sums are done in another order then.
            By default as `$PASSIONSR_COMPILED` says, else where numba is.

    Raises:
        ValueError: no pairs, an image alone or swapped with its original, a pipeline that is not quantized or in
            float64, or numbers that make no sense.
    """

    def __init__(
        self,
        q: QuantizedSR,
        pairs: Sequence[Pair | tuple],
        method: Method,
        epochs: int = 4,
        batch: int = 4,
        seed: int = 0,
        rates: dict[str, float] | None = None,
        lean: bool = False,
        compiled: bool | None = None,
    ):
        pairs = checked(q, pairs, method, epochs, batch, seed, rates)
        self.q, self.method, self.rates = q, method, {**method.rates, **(rates or {})}
        self.epochs, self.batch, self.seed, self.compiled = epochs, batch, seed, passes.wanted(compiled)
        self.images = [pair.lr[None] for pair in pairs]
        judges = sorted(np.random.default_rng(seed).permutation(len(pairs))[:JUDGES].tolist())
        self.data = Activations(q, self.images, batch, lean, judges)
        self.stages = expanded(method.stages, self.data, q.recipe.modules)
        self.stage, self.step, self.first = 0, 0, math.nan
        self.ends: list[dict] = []  # the "end" record of every stage that is done
        self.records: list[dict] = []  # of the whole run, what came before an interruption included
        self.cost = {"seconds": 0.0, "cpu_seconds": 0.0, "peak_bytes": 0}
        self.begun, self.identity = False, None
        self.optimizer_state: dict | None = None
        self.before: dict = {}  # what the stage at work trains, by name, as it was at the start
        self.mean: dict = {}  # the same in the mean of the states after its last steps

    @property
    def total(self) -> int:
        """How many records a whole run yields."""
        sizes = Counter(tuple(-(-n * self.q.upscale // self.q.multiple) for n in x.shape[-2:]) for x in self.images)
        steps = sum(math.ceil(count / self.batch) for count in sizes.values())
        return sum(stage.steps(self.epochs, steps) + 2 for stage, _ in self.stages) or 1

    # -- the loop -------------------------------------------------------------------------------------------------

    def run(self, keep: str | Path | None = None) -> Iterator[dict]:
        """Records: event, module, block, stage, step, of, first, loss, lr, step_length, and what they cost: seconds,
        cpu_seconds, peak_bytes.

        Events are "start", "step" and "end"; "start" and "end" carry the loss over all pairs, or over 16 drawn from
        more, before and after the stage; `first` is the one before.  A stage that would end above its start goes back
        along its way by a backtracking line search: `step_length` is the part of the way that is left, 0 if it was
        undone wholly.
        The costs of all records together are those of the whole calibration: targets, upstream passes, losses and line
        searches are in the "start" and "end" records.

        Args:
            keep: a file to go on from if it is there, and to save the state in about every minute and after a stage.
        """
        meter, saved = Meter(self.data.device), time.monotonic()
        if keep is not None and Path(keep).exists() and not self.begun:
            checkpoint.resume(self, keep)
        with self.data.placed():
            for record in self._in_turn(self._run()):
                spent = meter.lap()
                self.cost = {k: max(v, spent[k]) if k == "peak_bytes" else v + spent[k] for k, v in self.cost.items()}
                self.records.append(record | spent)
                if keep is not None and (record["event"] == "end" or time.monotonic() - saved > SAVE_EVERY):
                    checkpoint.save(self, keep)
                    saved = time.monotonic()
                yield self.records[-1]
                meter.restart()
        self._finish_history()

    def _in_turn(self, records: Iterator[dict]) -> Iterator[dict]:
        """Between two records other threads may call the pipeline, while one is made they wait."""
        while True:
            with self.q.turns.changing(), passes.compiled(self.compiled):
                record = next(records, None)
            if record is None:
                return
            yield record

    def _begin(self) -> None:
        if not self.begun:
            self.method.slots.install(self.q)
            self.q.method, self.q.history, self.begun = self.method, {}, True
            for layer in self.q.layers.values():
                layer.requires_grad_(False)

    def _run(self) -> Iterator[dict]:
        self._begin()
        self.data.targets()
        if self.method.observe == "float" or not self.stages:
            self.observe()
        if not self.stages and not self.ends:
            found = task(Stage("all", ("ranges",)), None, self.data)
            self.first = self._judged(found)
            self.ends = [self._record(found.stage, None, "end", self.first, 0)]
            yield self.ends[0]
        while self.stage < len(self.stages):
            yield from self._run_stage(*self.stages[self.stage])

    def _run_stage(self, stage: Stage, block: str | None) -> Iterator[dict]:
        reaches = stage.downstream == "quantized" and any(loss.at == "image" for loss in stage.losses)
        self.observe(until="all" if reaches else stage.segment)
        work = task(stage, block, self.data)
        optimizer, steps = self._optimizer(work), self._steps(work)
        trained = self._trained(optimizer)
        if self.optimizer_state is not None:
            if any(saved.keys() != trained.keys() for saved in (self.before, self.mean or self.before)):
                raise ValueError("The saved state is not of what this stage trains; delete it to start anew.")
            optimizer.load_state_dict(self.optimizer_state)
        else:
            self.first = self._last_of_same(stage, block)
            self.first = self._judged(work) if self.first is None else self.first
            self.before = _copied(trained)
            self.optimizer_state = optimizer.state_dict()
            yield self._record(stage, block, "start", self.first, len(steps))
        while self.step < len(steps):
            loss, rate = self._descend(work, steps[self.step], optimizer, self.step / len(steps))
            self.data.changed(stage.segment)
            self.step += 1
            self.optimizer_state = optimizer.state_dict()
            self._average(trained, self.step - round((1 - self.method.average) * len(steps)))
            yield self._record(stage, block, "step", loss, len(steps), lr=rate)
        if self.mean:
            self._put(work, trained, self.mean)
            self.mean = {}
        last, length = self._backtrack(work, trained) if self.method.backtrack else (self._judged(work), 1.0)
        self.ends.append(self._record(stage, block, "end", last, len(steps), step_length=length))
        self.stage, self.step, self.optimizer_state = self.stage + 1, 0, None
        if self.stage == len(self.stages):
            self.observe()
        yield self.ends[-1]

    def _last_of_same(self, stage: Stage, block: str | None) -> float | None:
        """The loss at which the stage before ended, if it is this stage's too."""
        if not self.stage:
            return None
        before, at = self.stages[self.stage - 1]
        same = replace(before, train=stage.train, epochs=stage.epochs) == stage and at == block
        return self.ends[-1]["loss"] if same else None

    def _judged(self, work: Task) -> float:
        return work.mean_loss(self.batch, self.data.judges)

    def _trained(self, optimizer: torch.optim.Adam) -> dict[str, torch.Tensor]:
        """What the optimizer moves, by its name in the pipeline's state."""
        names = {tensor.data_ptr(): name for name, tensor in slot_tensors(self.q).items()}
        return {names[p.data_ptr()]: p for group in optimizer.param_groups for p in group["params"]}

    def _average(self, trained: dict[str, torch.Tensor], count: int) -> None:
        """Takes what is trained into the mean of a stage's last steps, of which this is the first, second, ..."""
        if count == 1:
            self.mean = _copied(trained)
        elif count > 1:
            self.mean = {name: _between(self.mean[name], p.detach(), 1 / count) for name, p in trained.items()}

    def _backtrack(self, work: Task, trained: dict[str, torch.Tensor]) -> tuple[float, float]:
        """Goes back along the stage's way until the loss is below the stage's first: that loss, the step length.

        At 4 bits the loss is a sawtooth in the boundaries, and steps that each follow the gradient can climb; a part
        of their way nearly always descends.
        """
        after = _copied(trained)
        for length in STEP_LENGTHS:
            self._put(work, trained, {k: _between(self.before[k], after[k], length) for k in after})
            loss = self._judged(work)
            if loss < self.first:
                return loss, length
        self._put(work, trained, self.before)
        return self.first, 0.0

    @torch.no_grad()
    def _put(self, work: Task, trained: dict[str, torch.Tensor], values: Mapping[str, torch.Tensor]) -> None:
        """Gives what a stage trains these values."""
        for name, tensor in trained.items():
            tensor.copy_(values[name])
        self.data.changed(work.stage.segment)

    def probe(self) -> Iterator[dict]:
        """One step of each segment, all tags that the method trains together, to see what steps take: a record each.

        The pipeline works afterwards, but it is not calibrated.
        """
        tags = tuple(dict.fromkeys(tag for stage, _ in self.stages for tag in stage.train))
        with self.data.placed():
            self._begin()
            self.data.targets()
            for segment in (m for m in MODULES if m in self.q.recipe.modules):
                self._observe(segment, self.data.entering(segment))
                work, meter = task(Stage(segment, tags), None, self.data), Meter(self.data.device)
                rows = list(range(min(self.batch, len(self.images))))
                loss, rate = self._descend(work, rows, self._optimizer(work), 0.0)
                yield self._record(work.stage, None, "step", loss, 1, lr=rate) | meter.lap()

    def _optimizer(self, work: Task) -> torch.optim.Adam:
        """Adam over what the stage trains, with the segment in its place; every step sets its own rate."""
        self.data.place(work.stage.segment)
        rates = {tag: rate * work.stage.rate for tag, rate in self.rates.items()}
        optimizer = optimizer_of(work.scope, work.stage.train, rates)
        if optimizer is None:
            raise ValueError(
                f"{self.method.label} fills no slot tagged {', '.join(work.stage.train)} that it could train."
            )
        return optimizer

    def _descend(
        self, work: Task, rows: list[int], optimizer: torch.optim.Adam, progress: float
    ) -> tuple[float, float]:
        """One step on these pairs, `progress` (0 to 1) into the stage: its loss and its learning rate."""
        decay = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress))
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * decay
            for p in group["params"]:
                p.requires_grad_(True)
        with torch.enable_grad():
            loss = work.loss(rows)
            whole = sum(penalties(work.scope, work.stage.train, progress), loss)
        optimizer.zero_grad()
        whole.backward()
        value = loss.item()  # the only wait for a GPU
        if not math.isfinite(value):
            raise FloatingPointError(f"The calibration loss of {work.stage.segment} became {value}; lower its rates.")
        optimizer.step()
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.requires_grad_(False)
        return value, optimizer.param_groups[0]["lr"]

    def _record(self, stage: Stage, block: str | None, event: str, loss: float, of: int, **more) -> dict:
        return {
            "event": event, "module": stage.segment, "block": block or "", "stage": "+".join(stage.train),
            "step": self.step, "of": of, "first": self.first, "loss": loss, "lr": 0.0, "step_length": 1.0,
        } | more  # fmt: skip

    def _steps(self, work: Task) -> list[list[int]]:
        """The rows of every step of a stage: shuffled each epoch, of one image size each; of the last a drawn part."""
        shapes = work.shapes()
        each = len(list(batches(range(len(shapes)), shapes, self.batch)))
        steps, count = [], work.stage.steps(self.epochs, each)
        for epoch in range(math.ceil(count / each)):
            draw = np.random.default_rng([self.seed, self.stage, epoch])
            found = list(batches(draw.permutation(len(shapes)).tolist(), shapes, self.batch))
            rest = min(each, count - len(steps))
            steps += found if rest == each else [found[i] for i in sorted(draw.permutation(each)[:rest])]
        return steps

    # -- ranges ---------------------------------------------------------------------------------------------------

    def observe(self, until: str = "all") -> None:
        """Observes the segments up to this one that have no ranges yet, as the method wants them observed."""
        last = MODULES[-1] if until == "all" else until
        for segment in MODULES[: MODULES.index(last) + 1]:
            if segment in self.q.recipe.modules and not self._observed(segment):
                self._observe(segment, self.data.entering(segment, self.method.observe))

    def _observed(self, segment: str) -> bool:
        layers = quantized_layers(segment_modules(self.q, segment)).values()
        return all(m.known for layer in layers for m in layer.modules() if isinstance(m, Range))

    @torch.no_grad()
    def _observe(self, segment: str, inputs: Sequence) -> None:
        """Ranges of the segment's float activations on these inputs, then the method's start from them."""
        modules = segment_modules(self.q, segment)
        with mode(modules, "observe"):
            self.data.map(segment, inputs)
        layers, some = list(quantized_layers(modules).values()), range(min(SETTLING, len(inputs)))
        self.method.slots.start_all(layers)
        self.method.slots.settle(layers, lambda: self.data.map(segment, [inputs[i] for i in some]))
        self.data.changed(segment)

    def module_losses(self) -> dict[str, float]:
        """The loss of each quantized segment now, each fed by the quantized ones before it; for any method."""
        modules = [m for m in MODULES if m in self.q.recipe.modules]
        return {m: task(Stage(m, ("none",)), None, self.data).mean_loss(self.batch) for m in modules}

    def finish(self, pairs: int | None = None) -> None:
        """Gives the segments that a stopped run never reached their ranges and start: the pipeline then works.

        From the first `pairs` alone it is quicker; this calibration cannot go on then, but one from a saved state can.
        """
        if pairs is not None:
            self.data.keep(pairs)
        self.observe()

    def _finish_history(self) -> None:
        self.q.history = {
            "method": self.method.describe(), "pairs": len(self.images), "epochs": self.epochs, "batch": self.batch,
            "seed": self.seed, "rates": dict(self.rates), "cost": self.cost, "threads": torch.get_num_threads(),
            "compiled": self.compiled,
            "tile": max(max(x.shape[-2:]) for x in self.data.inputs) // self.q.factor, "stages": self.ends,
        }  # fmt: skip
        self.q.pipe.tile = self.q.history["tile"]

    def summary(self) -> list[str]:
        """One sentence per stage that is done: what it gained, what the line search undid and why."""
        return [_sentence(end) for end in self.ends]


def optimizer_of(scope: nn.Module, train: Sequence[str], rates: Mapping[str, float]) -> torch.optim.Adam | None:
    """Adam over what the slots below `scope` have with these tags, or None; every group's "rate" is its highest."""
    groups = [
        {"params": found, "lr": rates[tag] * scale, "rate": rates[tag] * scale}
        for tag in train
        for scale, found in trainable(scope, tag).items()
    ]
    return torch.optim.Adam(groups, fused=passes.on() or None) if groups else None


def _sentence(end: dict) -> str:
    where = f"{end['module']}{' ' + end['block'] if end['block'] else ''}, {end['stage']}"
    if end["of"] == 0:
        return f"{where}: loss {end['loss']:.3g}; nothing is trained."
    gain = 100 * (1 - end["loss"] / end["first"]) if end["first"] else 0.0
    undone = {1.0: "", 0.0: "; undone, since no part of its way ended below its start"}.get(
        end["step_length"], f"; only {end['step_length']:g} of its way is left, since the whole ended above its start"
    )
    return f"{where}: loss {end['first']:.3g} to {end['loss']:.3g} ({gain:.0f} % less){undone}."


def _copied(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: t.detach().clone() for name, t in tensors.items()}


def _between(start: torch.Tensor, end: torch.Tensor, length: float) -> torch.Tensor:
    """From `start` by a part of the way to `end`."""
    return end if length == 1 else start + length * (end - start)
