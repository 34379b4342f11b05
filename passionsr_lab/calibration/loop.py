"""DQC: distributed quantization calibration (PassionSR section 3.4), and the joint calibrations it is compared with.

One loop for all: a method is a list of stages (config.METHODS), a stage says which module is trained, what in it, and
for how long.  Progress leaves as records, one per step; nothing is printed.
"""

from __future__ import annotations

import hashlib
import math
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ..imaging.pairs import Pair
from ..imaging.pictures import to_tensor
from ..quantization.layer import Range
from ..quantization.recipe import METHODS, Stage
from ..quantization.surgery import (
    QuantizedSR,
    fingerprint,
    load_state,
    mode,
    parameters,
    pieces,
    quantized_layers,
    state,
)
from ..util.files import write_checkpoint
from ..util.memory import Peak, Remade, checkpointing
from ..util.names import MODULES

RATES = {"transform": 3e-2, "bounds": 0.5}  # steps of log scale, and of boundaries in steps of their grid
KEPT = (1.0, 0.5, 0.25, 0.125)  # the shares of a stage's way that are tried at its end, longest first
SAVE_EVERY = 60  # seconds between two states that a run keeps


class Calibration:
    """A calibration in progress: iterate over `run()`; stop between any two records and go on later.

    Args:
        pipe: what `quantize` returned; it is calibrated in place.
        pairs: `Pair`s or (lr, hr) tuples; only the LR images are used, the targets are the full-precision model's.
        method: "maxmin", "let", "lbq", "lbq+let", "passionsr" or "passionsr-strict" (config.METHODS).
        epochs: passes over the pairs in a stage of share 1 (`config.METHODS`).  The joint methods pass twice as often;
            DQC passes once over the encoder, twice over the UNet and three times over the decoder: as many updates.
        batch: pairs per step; images of different sizes are never mixed.
        seed: of the order of the pairs.
        rates: learning rates of Adam for "transform" (of the log scale, and of the shift in half ranges) and "bounds"
            (in steps of the quantizer's grid, so one rate suits every width); they fall by a cosine to 5 %.
        lean: for full-size models: gradient checkpointing, only the module at work on the device, and of every pair
            only the LR image and the latents are kept; what has the image's size is made again when it is needed.
            The numbers are the same.

    Raises:
        ValueError: unknown method, no pairs.
    """

    def __init__(
        self,
        pipe: QuantizedSR,
        pairs: Sequence[Pair | tuple],
        method: str = "passionsr",
        epochs: int = 4,
        batch: int = 4,
        seed: int = 0,
        rates: dict[str, float] = RATES,
        lean: bool = False,
    ):
        if method not in METHODS:
            raise ValueError(f"method is one of {', '.join(METHODS)}, not {method!r}.")
        if not pairs:
            raise ValueError("Calibration needs at least one pair of images.")
        if epochs < 1 or batch < 1:
            raise ValueError(f"epochs and batch are at least 1, not {epochs} and {batch}.")
        if pipe.recipe.numerics == "official":
            raise ValueError(
                'Recipes with numerics="official" run released files; calibrate one with numerics="paper".'
            )
        self.pipe, self.method, self.rates = pipe, METHODS[method], rates
        self.epochs, self.batch, self.seed = epochs, batch, seed
        self.stages = [s for s in self.method.stages if s.module == "all" or s.module in pipe.recipe.modules]
        self.device = pipe.prompt_embedding.device
        self.lean, self.resident = lean, "all"
        images = [to_tensor(pair[-2])[None] for pair in pairs]
        self.inputs = self._kept(lambda i: pipe.prepare(images[i].to(self.device)), len(images))
        self.stage, self.step, self.first = 0, 0, math.nan
        self.ends: list[dict] = []  # the "end" record of every stage that is done
        self._optimizer_state: dict | None = None
        self._before: dict = {}

    @property
    def total(self) -> int:
        """How many records a whole run yields."""
        steps = [s.epochs(self.epochs) * math.ceil(len(self.inputs) / self.batch) for s in self.stages]
        return sum(steps) + 2 * len(steps) or 1

    # -- the loop -------------------------------------------------------------------------------------------------

    def run(self, keep: str | Path | None = None) -> Iterator[dict]:
        """Records: event, module, stage, step, of, first, loss, lr, seconds, peak_bytes, kept.

        Events are "start", "step" and "end"; "start" and "end" carry the loss over all pairs before and after the
        stage, `first` is the one before.  A stage that would end above its start goes back along its way: `kept` is the
        share of the way that is left, 0 if it was taken back wholly.

        Args:
            keep: a file to go on from if it is there, and to save the state in about every minute and after a stage.
        """
        if keep is not None and Path(keep).exists():
            self.resume(keep)
        saved = time.monotonic()
        with self._placed():
            for record in self._run():
                if keep is not None and (record["event"] == "end" or time.monotonic() - saved > SAVE_EVERY):
                    self.save(keep)
                    saved = time.monotonic()
                yield record

    @contextmanager
    def _placed(self) -> Iterator[None]:
        """With `lean`, what saves memory is on; at the end every module is back on the device."""
        if not self.lean:
            yield
            return
        with checkpointing(self.pipe.unet, self.pipe.vae):
            try:
                yield
            finally:
                self._place("all")

    def _run(self) -> Iterator[dict]:
        self._targets()
        if not self.method.distributed and self.stage == 0 and self.step == 0:
            self._observe_all()
        if not self.stages:
            yield self._measured("all", "ranges")
        while self.stage < len(self.stages):
            yield from self._run_stage(self.stages[self.stage])
            self.stage, self.step, self._optimizer_state = self.stage + 1, 0, None
        self.pipe.history = {
            "method": self.method.name, "pairs": len(self.inputs), "epochs": self.epochs, "batch": self.batch,
            "seed": self.seed, "rates": dict(self.rates),
            "tile": max(max(x.shape[-2:]) for x in self.inputs) // self.pipe.factor,
        }  # fmt: skip

    def _run_stage(self, stage: Stage) -> Iterator[dict]:
        inputs, targets = self._chain(stage.module)
        if self.step == 0 and self.method.distributed and stage is self._first_of(stage.module):
            self._observe(stage.module, inputs)
        optimizer = self._optimizer(stage)
        steps = self._steps(stage, inputs)
        if self._optimizer_state is not None:
            optimizer.load_state_dict(self._optimizer_state)
        else:
            self.first = self._mean_loss(stage.module, inputs, targets)
            self._before = state(self.pipe)
            yield self._record(stage, "start", self.first, len(steps))
        while self.step < len(steps):
            loss, spent = self._train_step(stage, steps[self.step], inputs, targets, optimizer, len(steps))
            self.step += 1
            self._optimizer_state = optimizer.state_dict()
            yield self._record(stage, "step", loss, len(steps), **spent)
        last, kept = self._settle(stage.module, inputs, targets)
        end = self._record(stage, "end", last, len(steps), kept=kept)
        self.ends = [*self.ends[: self.stage], end]
        yield end

    def _settle(self, module: str, inputs: list[Tensor], targets: list[Tensor]) -> tuple[float, float]:
        """Goes back along the stage's way until the loss is below the stage's first: that loss, the share kept.

        At 4 bits the loss is a sawtooth in the boundaries, and steps that each follow the gradient can climb; a part
        of their way nearly always descends.
        """
        after = state(self.pipe)
        for kept in KEPT:
            load_state(self.pipe, {k: _between(self._before[k], after[k], kept) for k in after})
            loss = self._mean_loss(module, inputs, targets)
            if loss < self.first:
                return loss, kept
        load_state(self.pipe, self._before)
        return self.first, 0.0

    def probe(self) -> Iterator[dict]:
        """One step of each module's LET and LBQ together and no more, to see what steps take: a "step" record each.

        The pipeline works afterwards, but it is not calibrated.
        """
        with self._placed():
            self._targets()
            x, batch = self.inputs, list(range(min(self.batch, len(self.inputs))))
            for module in (m for m in MODULES if m in self.pipe.recipe.modules):
                self._observe(module, x)
                stage = Stage(module, ("transform", "bounds"))
                loss, spent = self._train_step(stage, batch, x, self.full[module], self._optimizer(stage), 1)
                yield self._record(stage, "step", loss, 1, **spent)
                x = self._map(module, x)

    def _optimizer(self, stage: Stage) -> torch.optim.Adam:
        """Adam over what the stage trains, with the module in its place; every step sets its own rate."""
        self._place(stage.module)
        scope = pieces(self.pipe, stage.module)
        groups = [(self.rates[kind] * unit, p) for kind in stage.train for unit, p in parameters(scope, kind).items()]
        return torch.optim.Adam([{"params": p, "rate": rate} for rate, p in groups], lr=0.0)

    def _train_step(self, stage: Stage, rows, inputs, targets, optimizer, total: int) -> tuple[float, dict]:
        """The loss of a step, and its learning rate, seconds and peak memory."""
        with Peak(self.device) as peak:
            start = time.perf_counter()
            loss = self._descend(stage.module, rows, inputs, targets, optimizer, total)
            seconds = time.perf_counter() - start
        return loss, {"lr": optimizer.param_groups[0]["lr"], "seconds": seconds, "peak_bytes": peak.bytes}

    def _descend(self, module: str, rows, inputs, targets, optimizer, total: int) -> float:
        decay = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * self.step / total))
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * decay
            for p in group["params"]:
                p.requires_grad_(True)
        x, y = (torch.cat([cache[i] for i in rows]) for cache in (inputs, targets))
        loss = (self._forward(module, x) - y).square().mean()
        if not torch.isfinite(loss):
            raise FloatingPointError(f"The calibration loss of {module} became {loss.item()}; lower its rates.")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.requires_grad_(False)
        return loss.item()

    def _record(self, stage: Stage, event: str, loss: float, of: int, **more) -> dict:
        return {
            "event": event, "module": stage.module, "stage": "+".join(stage.train), "step": self.step, "of": of,
            "first": self.first, "loss": loss, "lr": 0.0, "seconds": 0.0, "peak_bytes": 0, "kept": 1.0,
        } | more  # fmt: skip

    def _measured(self, module: str, stage: str) -> dict:
        inputs, targets = self._chain(module)
        self.first = self._mean_loss(module, inputs, targets)
        self.ends = [self._record(Stage(module, (stage,)), "end", self.first, 0)]
        return self.ends[0]

    # -- data -----------------------------------------------------------------------------------------------------

    def _steps(self, stage: Stage, inputs: list[Tensor]) -> list[list[int]]:
        """The rows of every step of a stage: shuffled each epoch, of one image size each."""
        steps = []
        for epoch in range(stage.epochs(self.epochs)):
            order = np.random.default_rng([self.seed, self.stage, epoch]).permutation(len(inputs))
            for shape in sorted({x.shape for x in inputs}):
                rows = [int(i) for i in order if inputs[i].shape == shape]
                steps += [rows[i : i + self.batch] for i in range(0, len(rows), self.batch)]
        return steps

    def _forward(self, module: str, x: Tensor) -> Tensor:
        """What the loss compares: z_L (Eq. 8), z_H after Eq. 9 (Eq. 10), or the image."""
        self._place(module)
        forward = {"encoder": self.pipe.encode, "unet": self.pipe.denoise, "decoder": self.pipe.decode}
        return forward.get(module, self.pipe.restore)(x)

    @torch.no_grad()
    def _map(self, module: str, inputs: list[Tensor]) -> list[Tensor]:
        return [self._forward(module, x) for x in inputs]

    def _targets(self) -> None:
        """The full-precision model's latents and images, for every pair."""
        self.full = {}
        with mode(self.pipe, "float"):
            x = self.inputs
            for module in MODULES[:-1]:
                x = self.full[module] = self._map(module, x)
            self.full["decoder"] = self.full["all"] = self._kept(lambda i: self._full_image(x[i]), len(x))

    @torch.no_grad()
    def _full_image(self, latent: Tensor) -> Tensor:
        """What the full-precision decoder makes of z_H (1, C, h, w)."""
        with mode(self.pipe, "float"):
            return self._forward("decoder", latent)

    def _kept(self, make: Callable[[int], Tensor], count: int) -> Sequence[Tensor]:
        """`make(0)`, `make(1)`, ...: made now and kept, or with `lean` made each time."""
        return Remade(make, count) if self.lean else [make(i) for i in range(count)]

    def _place(self, module: str) -> None:
        """With `lean`, moves the module that is at work to the device, and the others off it."""
        if self.lean and module != self.resident:
            for name in MODULES:
                pieces(self.pipe, name).to(self.device if module in (name, "all") else "cpu")
            self.resident = module

    def _chain(self, module: str) -> tuple[list[Tensor], list[Tensor]]:
        """Inputs of a module from the quantized modules before it, and its full-precision targets."""
        x = self.inputs
        for before in MODULES[: MODULES.index(module)] if module in MODULES else ():
            x = self._map(before, x)
        return x, self.full[module]

    def _first_of(self, module: str) -> Stage:
        return next(s for s in self.stages if s.module == module)

    @torch.no_grad()
    def _observe(self, module: str, inputs: list[Tensor]) -> None:
        """Ranges of the module's float activations on these inputs, then LET's start from them."""
        layers = quantized_layers(pieces(self.pipe, module)).values()
        with mode(pieces(self.pipe, module), "observe"):
            self._map(module, inputs)
        if self.method.transform:
            for layer in layers:
                layer.start_transform(self.pipe.recipe)

    def _observe_all(self) -> None:
        x = self.inputs
        for module in MODULES:
            if module in self.pipe.recipe.modules:
                self._observe(module, x)
            x = self.full[module]

    def _mean_loss(self, module: str, inputs: list[Tensor], targets: list[Tensor]) -> float:
        losses = [(self._map(module, [x])[0] - y).square().mean().item() for x, y in zip(inputs, targets)]
        return float(np.mean(losses))

    def module_losses(self) -> dict[str, float]:
        """The loss of each quantized module now, each fed by the quantized ones before it; for any method."""
        return {m: self._mean_loss(m, *self._chain(m)) for m in MODULES if m in self.pipe.recipe.modules}

    # -- interruption ---------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Gives the modules that a stopped run never reached their ranges and LET's start: the pipeline then works."""
        x = self.inputs
        for module in MODULES:
            layers = quantized_layers(pieces(self.pipe, module)).values()
            ranges = [m for layer in layers for m in layer.modules() if isinstance(m, Range)]
            if not all(torch.isfinite(r.low[0]) for r in ranges):
                self._observe(module, x)
            x = self._map(module, x)

    def save(self, path: str | Path) -> None:
        """Writes the state between two steps, atomically."""
        content = {
            "stage": self.stage, "step": self.step, "first": self.first, "optimizer": self._optimizer_state,
            "tensors": state(self.pipe), "before": self._before, "ends": self.ends, "settings": self._settings(),
        }  # fmt: skip
        write_checkpoint(path, content)

    def resume(self, path: str | Path) -> None:
        """Goes on where `save` was called; `ValueError` if the file belongs to another calibration."""
        try:
            content = torch.load(path, weights_only=True, map_location=self.device)
        except Exception as error:
            raise ValueError(f"{path} is not a calibration state that can be read; delete it to start anew.") from error
        if content.get("settings") != self._settings():
            raise ValueError(f"{path} belongs to a calibration with other settings; delete it to start anew.")
        self.stage, self.step, self.first = content["stage"], content["step"], content["first"]
        self._optimizer_state, self._before, self.ends = content["optimizer"], content["before"], content["ends"]
        load_state(self.pipe, content["tensors"])

    def _settings(self) -> dict:
        digest = hashlib.sha256()
        for x in self.inputs:
            digest.update(x.cpu().numpy().tobytes())
        return {
            "recipe": self.pipe.recipe.to_dict(), "method": self.method.name, "pairs": digest.hexdigest(),
            "epochs": self.epochs, "batch": self.batch, "seed": self.seed, "rates": dict(self.rates),
            "model": fingerprint(self.pipe),
        }  # fmt: skip


def _between(start: Tensor, end: Tensor, share: float) -> Tensor:
    """From `start` by a share of the way to `end`; what did not move (an infinite range among it) stays."""
    return end if share == 1 else torch.where(start == end, end, start + share * (end - start))


def calibrate(
    pipe: QuantizedSR,
    pairs: Sequence[Pair | tuple],
    method: str = "passionsr",
    callback: Callable[[dict], None] | None = None,
    **options,
):
    """Calibrates a quantized pipeline in place; the records of the run as a DataFrame.

    Args:
        pipe, pairs, method: as for `Calibration`, which also names the options (epochs, batch, seed, rates).
        callback: called with every record as it comes.

    Example:
        >>> import passionsr_lab as lab
        >>> q = lab.quantize(lab.tiny(), lab.W6A6)
        >>> records = lab.calibrate(q, lab.bundled("calibration", count=2, size=64), epochs=1)
        >>> records[records.event == "end"].module.tolist()
        ['encoder', 'encoder', 'unet', 'unet', 'decoder', 'decoder']
    """
    import pandas as pd

    records = []
    for record in Calibration(pipe, pairs, method, **options).run():
        records.append(record)
        if callback is not None:
            callback(record)
    return pd.DataFrame(records)
