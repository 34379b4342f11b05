"""What a calibration step costs over a float step, in processor time and memory, side by side in one run.

Steps of the embedded model's modules and of blocks of SD2.1 at their real widths (random weights), one thread; every
kind in passes of torch and, where numba is, in compiled ones.  A step is forward, loss, backward and Adam.  Its base is
a float step: with trained weight bounds one that computes weight gradients too, since both need them; with the
activations' alone, the weights being kept, one without.
"""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..calibration.loop import Calibration, optimizer_of
from ..calibration.method import RATES
from ..fullsize.sd21 import sd21
from ..imaging.pairs import bundled
from ..kernels.compiled import compiled
from ..methods import DEFAULT, find
from ..pipeline.folder import tiny
from ..quantization.filling import LET
from ..quantization.layer import QuantLayer, mode
from ..quantization.place import quantize, quantized_layers, segment_modules
from ..quantization.recipe import recipe as recipe_named
from ..store.keys import versions
from ..util.machine import processor, threads
from ..util.memory import allocated_peak

if TYPE_CHECKING:
    from pandas import DataFrame

EVENTS = {"start": "targets, inputs, first losses", "step": "steps", "end": "last losses, line search"}
COMPILED = " compiled"  # of a kind's name
PAIRS = 32  # of a whole calibration, 128 HR pixels each: what `passionsr_lab calibrate` has by default
STAGES = {"let+lbq": ("transform", "bounds"), "lbq": ("bounds",), "activations": ("bounds",)}
BASE = {"let+lbq": "float with weight gradients", "lbq": "float with weight gradients", "activations": "float"}
OVER = BASE | {"forward": "float forward"}
OVER |= {name + COMPILED: base for name, base in OVER.items()}
# Blocks of SD2.1: where they are, the channels and edge of the input (UNet: 512-pixel image, decoder: 256).
BLOCKS = {
    "sd21 unet resnet": ("unet.down_blocks.1.resnets.1", 640, 32),
    "sd21 unet transformer": ("unet.down_blocks.1.attentions.0", 640, 32),
    "sd21 decoder resnet": ("vae.decoder.up_blocks.2.resnets.1", 256, 128),
}


@dataclass(frozen=True)
class Steps:
    """What is run.

    recipe: of the quantization; batch, crop: pairs per step of the embedded model and their HR pixels.
    rounds: of which medians are taken; every round runs every kind of step once.
    blocks: whether SD2.1's blocks are run too; whole: whether a whole calibration is, for the share of its steps.
    """

    recipe: str = "W6A6"
    batch: int = 4
    crop: int = 64
    rounds: int = 9
    blocks: bool = True
    whole: bool = True


@dataclass(frozen=True)
class Case:
    """A module in float and quantized, with its input and target.

    floats, quants: x -> y; scope: the modules of the quantized one; weights: of the float one.
    """

    floats: Callable[[Tensor], Tensor]
    quants: Callable[[Tensor], Tensor]
    scope: nn.Module
    weights: list[Tensor]
    x: Tensor
    target: Tensor


def calibrate(options: Steps) -> Iterator[dict]:
    """Runs the benchmark on one thread.

    Yields:
        "machine"; per module "module" with `cpu_seconds` (medians), `peak_bytes` (beyond what was held before) and the
        `ratios` and `memory_ratios` over the fair bases; "whole" with the `share` of a calibration's CPU time that its
        steps take; and "ratios", all of them.
    """
    with threads(1):
        yield machine()
        found = []
        for name, case in _cases(options):
            found.append({"step": "module", "module": name} | _measured(case, options.rounds))
            yield found[-1]
        if options.whole:
            yield _whole(options)
        yield {"step": "ratios"} | {key: {r["module"]: r[key] for r in found} for key in ("ratios", "memory_ratios")}


def machine() -> dict:
    """The processor, its cores and vector instructions, and the versions that decide the speed."""
    cpu = processor()
    return {
        "step": "machine", "cpu": cpu.name, "cores": cpu.threads, "threads": torch.get_num_threads(),
        "flags": cpu.flags, "vectors": cpu.used, "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(), **versions(),
    }  # fmt: skip


def _cases(options: Steps) -> Iterator[tuple[str, Case]]:
    pipe, pairs = tiny(), bundled("calibration", options.batch, options.crop)
    q = quantize(pipe, recipe_named(options.recipe))
    work = Calibration(q, pairs, find(DEFAULT), batch=options.batch)
    for _ in work.probe():
        pass
    for ours in q.segments():
        floats = next(s for s in pipe.segments() if s.name == ours.name)
        x, target = (torch.cat(list(t)) for t in (work.data.entering(ours.name, "float"), work.data.full[ours.name]))
        weights = [p for module in floats.modules.values() for p in module.parameters()]
        yield ours.name, Case(floats.run, ours.run, segment_modules(q, ours.name), weights, x, target)
    for name, (path, channels, edge) in BLOCKS.items() if options.blocks else ():
        yield name, _block(path, channels, edge, options)


def _block(path: str, channels: int, edge: int, options: Steps) -> Case:
    """A block of SD2.1 with random weights, in float and quantized with LET's start."""
    generator = torch.Generator().manual_seed(0)
    pipe = sd21("meta")
    pipe.set_submodule(path, _random(pipe.get_submodule(path), generator))
    q = quantize(pipe, recipe_named(options.recipe))
    floats, quants = pipe.get_submodule(path), q.get_submodule(path)
    x = torch.randn(1, channels, edge, edge, generator=generator)
    more = {"temb": torch.randn(1, 1280, generator=generator)} if "resnets" in path else {}
    if "attentions" in path:
        more = {"encoder_hidden_states": torch.randn(1, 77, 1024, generator=generator), "return_dict": False}
    elif path.startswith("vae"):
        more = {"temb": None}

    def run(block: nn.Module, x: Tensor) -> Tensor:
        y = block(x, **more)
        return y[0] if isinstance(y, tuple) else y

    slots = LET()
    with torch.no_grad():
        for layer in quantized_layers(quants).values():
            slots.fill(layer)
        with mode(quants, "observe"):
            target = run(quants, x)
        for layer in quantized_layers(quants).values():
            slots.start(layer)
    return Case(lambda x: run(floats, x), lambda x: run(quants, x), quants, list(floats.parameters()), x, target)


@torch.no_grad()
def _random(block: nn.Module, generator: torch.Generator) -> nn.Module:
    """The block of a "meta" pipeline on the CPU: weights of a spread that keeps signals near 1."""
    block.to_empty(device="cpu").requires_grad_(False)
    for module in block.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.weight.normal_(0, module.weight[0].numel() ** -0.5, generator=generator)
        elif getattr(module, "weight", None) is not None:
            module.weight.fill_(1)
        if getattr(module, "bias", None) is not None:
            module.bias.zero_()
    return block


# -- measuring --------------------------------------------------------------------------------------------------------


def _measured(case: Case, rounds: int) -> dict:
    kinds = _kinds(case)
    times: dict[str, list[float]] = {name: [] for name in kinds}
    for i in range(rounds + 1):
        for name, kind in kinds.items():
            with kind as step:
                step()  # what a step allocates is at hand
                kind.forget()
                start = time.process_time()
                step()
                times[name] += [time.process_time() - start] if i else []
    seconds = {name: statistics.median(found) for name, found in times.items()}
    peaks = {name: _peak(kind, case.scope) for name, kind in kinds.items()}
    over = {name: base for name, base in OVER.items() if name in kinds}
    return {
        "cpu_seconds": seconds, "peak_bytes": peaks,
        "ratios": {name: seconds[name] / seconds[base] for name, base in over.items()},
        "memory_ratios": {
            name: peaks[name] / max(1, peaks[base]) for name, base in over.items() if base != "float forward"
        },
    }  # fmt: skip


def _peak(kind, scope: nn.Module) -> int:
    """Bytes of tensors that a step holds at most beyond those before it, weights that are kept for the next one among
    them."""
    with kind as step:
        step()
        kind.forget()
        for layer in (m for m in scope.modules() if isinstance(m, QuantLayer)):
            layer.forget()
        return allocated_peak(step)


def _kinds(case: Case) -> dict:
    """Steps by name, as reusable contexts: within one, what it trains has gradients."""
    kinds = {
        "float forward": _Kind(lambda: _forward(case.floats, case.x)),
        "float": _Kind(lambda: _descend(case.floats, case.x.requires_grad_(), case.target)),
        "float with weight gradients": _Kind(lambda: _descend(case.floats, case.x, case.target), case.weights),
    }
    weights = {p for m in case.scope.modules() if isinstance(m, QuantLayer) for p in m.weight_quantizers.parameters()}
    for own, passes in (("", False), (COMPILED, True)) if find_spec("numba") else (("", False),):
        kinds["forward" + own] = _Kind(lambda: _forward(case.quants, case.x), passes=passes)
        for name, tags in STAGES.items():
            with compiled(passes):
                optimizer = optimizer_of(case.scope, tags, RATES)
            if name == "activations":
                for group in optimizer.param_groups:
                    group["params"] = [p for p in group["params"] if p not in weights]
            trained = [p for group in optimizer.param_groups for p in group["params"]]
            step = lambda o=optimizer: _descend(case.quants, case.x, case.target, o)
            kinds[name + own] = _Kind(step, trained, passes)
    return kinds


@dataclass
class _Kind:
    """`with kind as step: step()`."""

    step: Callable[[], None]
    trained: list[Tensor] | tuple = ()
    passes: bool = False

    def __enter__(self) -> Callable[[], None]:
        for p in self.trained:
            p.requires_grad_(True)
        self.within = compiled(self.passes)
        self.within.__enter__()
        return self.step

    def __exit__(self, *_) -> None:
        self.within.__exit__(None, None, None)
        self.forget()
        for p in self.trained:
            p.requires_grad_(False)

    def forget(self) -> None:
        """Drops the gradients."""
        for p in self.trained:
            p.grad = None


@torch.no_grad()
def _forward(run: Callable[[Tensor], Tensor], x: Tensor) -> None:
    run(x)


def _descend(run: Callable[[Tensor], Tensor], x: Tensor, target: Tensor, optimizer=None) -> None:
    loss = (run(x) - target).square().mean()
    loss.backward()
    if optimizer is not None:
        optimizer.step()
    x.grad = None
    x.requires_grad_(False)


def whole_runs(*reports: str) -> DataFrame:
    """CPU seconds of the whole calibrations in committed reports, by what they went into; a row per report and kind of
    passes.

    Example:
        >>> round(whole_runs("2026-11-25_calibrate").steps["2026-11-25_calibrate, torch"])
        33
    """
    import pandas as pd

    rows = {}
    for name in reports:
        records = _report(name)["records"]
        spent = next(record["cpu_seconds"] for record in records if record["step"] == "whole")
        for own, passes in (("", "torch"), (COMPILED, "compiled")):
            if "step" + own in spent:
                rows[f"{name}, {passes}"] = {what: spent[event + own] for event, what in EVENTS.items()}
    return pd.DataFrame(rows).T.rename_axis("run")


def step_ratios(report: str) -> DataFrame:
    """What steps cost over their fair base in a committed report: a row per module, a column per kind of step."""
    import pandas as pd

    return pd.DataFrame(_report(report)["ratios"]).T.rename_axis("module")


def _report(name: str) -> dict:
    return json.loads((Path(__file__).parent / "reports" / f"{name}.json").read_text())


def _whole(options: Steps) -> dict:
    """The default method at the standard budget, that of `passionsr_lab calibrate`."""
    found = {"step": "whole", "cpu_seconds": {}, "share": {}}
    for name, passes in (("", False), (COMPILED, True)) if find_spec("numba") else (("", False),):
        q = quantize(tiny(), recipe_named(options.recipe))
        work = Calibration(q, bundled("calibration", PAIRS), find(DEFAULT), compiled=passes)
        records = list(work.run())
        spent = {event: sum(r["cpu_seconds"] for r in records if r["event"] == event) for event in EVENTS}
        found["cpu_seconds"] |= {event + name: seconds for event, seconds in spent.items()}
        found["share"][f"steps{name}"] = spent["step"] / sum(spent.values())
    return found
