"""One stage at work: its inputs, its targets, and the loss of some rows of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from ..quantization.layer import mode
from ..quantization.place import segment_modules
from ..util.names import MODULES
from .activations import Activations, batches
from .blocks import batched, blocks, captured, in_order
from .method import DISTANCES, Stage


@dataclass(frozen=True)
class Task:
    """A stage with its data.

    scope: the modules whose slots are trained.
    inputs: one per pair: a tensor of batch 1, or for a block its (arguments, keywords).
    targets: for "output" and "image", one tensor per pair.
    outputs: inputs of some rows -> {"output": ..., "image": ...}.
    leaving: where "output" is all that is compared, and what a next module begins with: some rows -> their outputs.
    """

    stage: Stage
    scope: nn.Module
    inputs: Sequence
    targets: dict[str, Sequence[Tensor]]
    outputs: Callable[[list], dict[str, Tensor]]
    leaving: Callable[[Sequence[int]], list[Tensor]] | None = None

    def loss(self, rows: Sequence[int]) -> Tensor:
        """The stage's loss of these pairs together."""
        targets = {term.at: torch.cat([self.targets[term.at][i] for i in rows]) for term in self.stage.losses}
        return self._loss(self.outputs([self.inputs[i] for i in rows]), targets)

    def _loss(self, outputs: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
        losses = self.stage.losses
        terms = [DISTANCES[loss.distance](outputs[loss.at], targets[loss.at]) * loss.weight for loss in losses]
        return sum(terms[1:], terms[0])

    @torch.no_grad()
    def mean_loss(self, batch: int, rows: Sequence[int] | None = None) -> float:
        """The mean of the losses of these pairs, or of all, `batch` of them at a time going through the model."""
        found, rows = [], range(len(self.inputs)) if rows is None else rows
        for chunk in batches(rows, self.shapes(), batch):
            if self.leaving is None:
                outputs = {at: y.split(1) for at, y in self.outputs([self.inputs[i] for i in chunk]).items()}
            else:
                outputs = {"output": self.leaving(chunk)}
            for n, i in enumerate(chunk):
                targets = {at: self.targets[at][i] for at in outputs}
                found.append(self._loss({at: ys[n] for at, ys in outputs.items()}, targets))
        return torch.stack(found).double().mean().item()

    def shapes(self) -> list[tuple]:
        """One per pair; pairs of different shapes are never in one step."""
        return [x.shape if isinstance(x, Tensor) else tuple(t.shape for t in _tensors(x)) for x in self.inputs]


def _tensors(call: tuple[tuple, dict]) -> list[Tensor]:
    return [t for t in (*call[0], *call[1].values()) if isinstance(t, Tensor)]


def task(stage: Stage, block: str | None, data: Activations) -> Task:
    """The stage's task with the pipeline as it is now; `block` names one of its blocks."""
    if block is not None:
        whole = any(term.at == "image" for term in stage.losses)
        return (_block_in_path if whole else _block_task)(stage, block, data)
    followers = MODULES[MODULES.index(stage.segment) + 1 :] if stage.segment in MODULES else ()
    places = {term.at for term in stage.losses}

    def outputs(rows: list[Tensor]) -> dict[str, Tensor]:
        y = {"output": data.forward(stage.segment, torch.cat(rows))}
        if "image" in places:
            with ExitStack() as stack:
                image = y["output"]
                for name in followers:
                    stack.enter_context(mode(segment_modules(data.q, name), stage.downstream))
                    image = data.forward(name, image)
            y["image"] = image
        return y

    targets = {"output": data.full[stage.segment], "image": data.full["all"]}
    scope = segment_modules(data.q, stage.segment)
    leaving = partial(data.leaving, stage.segment)
    kept = leaving if followers and stage.upstream == "quantized" and places == {"output"} else None
    return Task(stage, scope, data.entering(stage.segment, stage.upstream), targets, outputs, kept)


def _block_task(stage: Stage, name: str, data: Activations) -> Task:
    segment = next(s for s in data.q.segments() if s.name == stage.segment)
    block = blocks(segment.modules, name)[name]
    entering = data.entering(stage.segment, stage.upstream)
    data.place(stage.segment)

    def outputs(rows: list) -> dict[str, Tensor]:
        args, kwargs = batched(rows)
        return {"output": block(*args, **kwargs)}

    with mode(data.q.pipe, "float"), torch.no_grad():
        full = captured(block, segment.run, data.entering(stage.segment, "float"), data.batches)
        targets = [block(*args, **kwargs) for args, kwargs in full]
    inputs = full if stage.upstream == "float" else captured(block, segment.run, entering, data.batches)
    return Task(stage, block, inputs, {"output": targets}, outputs)


def _block_in_path(stage: Stage, name: str, data: Activations) -> Task:
    """A block whose loss is at the image, too: every run goes through its whole segment and all that follows."""
    segment = next(s for s in data.q.segments() if s.name == stage.segment)
    found, followers = blocks(segment.modules), MODULES[MODULES.index(stage.segment) + 1 :]
    order = _blocks_in_order(replace(stage, blocks="*", order="forward"), data)
    at, entering = order.index(name), data.entering(stage.segment, stage.upstream)
    before = nn.ModuleList(found[n] for n in order[:at])
    behind = nn.ModuleList([found[n] for n in order[at + 1 :]] + [segment_modules(data.q, m) for m in followers])
    data.place(stage.segment)

    def outputs(rows: list[Tensor]) -> dict[str, Tensor]:
        with _leaving(found[name]) as left, mode(before, stage.upstream), mode(behind, stage.downstream):
            image = data.forward(stage.segment, torch.cat(rows))
            for follower in followers:
                image = data.forward(follower, image)
        return {"output": left[0], "image": image}

    with mode(data.q.pipe, "float"), _leaving(found[name]) as targets, torch.no_grad():
        for x in data.entering(stage.segment, "float"):
            segment.run(x)
    return Task(stage, found[name], entering, {"output": targets, "image": data.full["all"]}, outputs)


@contextmanager
def _leaving(block: nn.Module) -> Iterator[list[Tensor]]:
    """What leaves the block, run by run, within the `with` block."""
    found: list[Tensor] = []
    hook = block.register_forward_hook(lambda _, args, out: found.append(out))
    try:
        yield found
    finally:
        hook.remove()


def expanded(stages: Sequence[Stage], data: Activations, modules: Sequence[str]) -> list[tuple[Stage, str | None]]:
    """The stages of the quantized modules, those on blocks once for each block: (stage, block)."""
    found: list[tuple[Stage, str | None]] = []
    for stage in stages:
        if stage.segment != "all" and stage.segment not in modules:
            continue
        names = [None] if stage.blocks is None else _blocks_in_order(stage, data)
        found += [(replace(stage, blocks=None), name) for name in names]
    return found


def _blocks_in_order(stage: Stage, data: Activations) -> list[str]:
    """The blocks as a run reaches them, or in reversed order."""
    with mode(data.q.pipe, "float"), data.placed(), torch.no_grad():
        x = data.inputs[0]
        for segment in data.q.segments():
            data.place(segment.name)
            if segment.name == stage.segment:
                found = in_order(blocks(segment.modules, stage.blocks), segment.run, x)
                return found if stage.order == "forward" else found[::-1]
            x = segment.run(x)
