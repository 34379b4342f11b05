"""A picture's way through a pipeline as a stream of strips: whole or in tiles, and never with a NaN unsaid."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import reduce
from typing import TYPE_CHECKING

from torch import Tensor

from ..imaging.tiling import Tiling, enlarged, in_tiles, padded, thumbnail
from .shared_norms import SharedNorms

if TYPE_CHECKING:
    from .onestep import OneStepSR

Step = Callable[[Tensor], Tensor]


def decoded(pipe: OneStepSR, lr: Tensor, tiling: Tiling | None) -> Iterator[Tensor]:
    """LR (B, 3, h, w) in [0, 1] -> strips (B, 3, *, W) nominally in [-1, 1], with the border that the networks need.

    Raises:
        FloatingPointError: a strip has NaN or infinite values; a second run then finds the part of the model that gave
            them, and the message names it.
    """
    condition = pipe.prompt(lr.to(pipe.prompt_embedding.device)) if pipe.prompt is not None else None
    for strip in _strips(pipe, lr, tiling, condition):
        if not strip.isfinite().all():
            if condition is not None:
                _require_finite(pipe, "prompt branch", condition)
            for _ in _strips(pipe, lr, tiling, condition, watched=True):
                pass
            _require_finite(pipe, "blending of tiles", strip)
        yield strip


def _strips(
    pipe: OneStepSR, lr: Tensor, tiling: Tiling | None, condition: Tensor | None, watched: bool = False
) -> Iterator[Tensor]:
    """`decoded` without a look at the values, or with one after each of the three steps."""
    device = pipe.prompt_embedding.device
    if tiling is None:
        yield _run(_steps(pipe, condition, watched), pipe.prepare(lr.to(device)))
        return
    pipe = uncompiled(pipe) if tiling.shared else pipe
    steps = _steps(pipe, condition, watched)
    whole = [n * pipe.upscale + -n * pipe.upscale % pipe.multiple for n in lr.shape[-2:]]
    x = (strip.to(device) * 2 - 1 for strip in padded(enlarged(lr, pipe.upscale), *whole))
    with ExitStack() as stack:
        if tiling.shared:
            norms = stack.enter_context(SharedNorms(pipe.unet, pipe.vae))
            small = pipe.prepare(thumbnail(lr, tiling.tile * pipe.factor // pipe.upscale).to(device))
            norms.measure(_run)(steps, small)
            steps = [norms.using(step) for step in steps]
        yield from in_tiles(x, *whole, tiling, *steps, pipe.factor, pipe.multiple // pipe.factor)


def _steps(pipe: OneStepSR, condition: Tensor | None, watched: bool) -> list[Step]:
    steps = {"encoder": pipe.encode, "unet": lambda z: pipe.denoise(z, condition), "decoder": pipe.decode}
    if not watched:
        return list(steps.values())
    return [lambda x, name=name, step=step: _require_finite(pipe, name, step(x)) for name, step in steps.items()]


def _run(steps: Sequence[Step], x: Tensor) -> Tensor:
    return reduce(lambda y, step: step(y), steps, x)


def _require_finite(pipe: OneStepSR, part: str, x: Tensor) -> Tensor:
    if not x.isfinite().all():
        kind = str(next(pipe.parameters()).dtype).removeprefix("torch.")
        name = pipe.name or "the model"
        raise FloatingPointError(f"The {part} of {name} gave NaN or infinite values (its weights are {kind}).")
    return x


def uncompiled(pipe: OneStepSR) -> OneStepSR:
    """The pipeline with its networks as they were before `torch.compile`: compiled ones would pass by the norms."""
    plain = copy.copy(pipe)
    plain._modules = {name: getattr(m, "_orig_mod", m) for name, m in pipe._modules.items()}
    return plain
