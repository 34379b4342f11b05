"""What enters and leaves the segments: full-precision targets, and inputs through quantized modules, each made once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from ..quantization.layer import mode
from ..quantization.place import QuantizedSR, segment_modules
from ..util.memory import Recomputed, checkpointing
from ..util.names import MODULES


def batches(rows: Sequence[int], shapes: Sequence, size: int) -> Iterator[list[int]]:
    """The rows, at most `size` of one shape together, in their order within each shape."""
    for shape in sorted(set(shapes)):
        same = [i for i in rows if shapes[i] == shape]
        yield from (same[i : i + size] for i in range(0, len(same), size))


class Activations:
    """The pairs' way through the model.

    Args:
        q: the quantized pipeline.
        images: LR pictures (1, 3, h, w) in [0, 1].
        batch: how many pictures of one size go through a segment together, as each of `batches`.
        lean: for full-size models: gradient checkpointing, only the segment at work on the device, and of every picture
            only the LR image and the latents are kept; what has the image's size is made again when it is needed.
        judges: the pictures whose losses are asked for.
    """

    def __init__(
        self, q: QuantizedSR, images: Sequence[Tensor], batch: int = 1, lean: bool = False, judges: Sequence[int] = ()
    ):
        self.q, self.batch, self.lean, self.judges, self.resident = q, batch, lean, judges, "all"
        self.batches = list(batches(range(len(images)), [x.shape for x in images], batch))
        self.device = q.prompt_embedding.device
        self.runs = {segment.name: segment.run for segment in q.segments()} | {"all": q.restore}
        self.inputs = self._held(lambda i: q.prepare(images[i].to(self.device)), len(images))
        self.full: dict[str, Sequence[Tensor]] = {}
        self._leaving: dict[str, dict[int, Tensor]] = {}

    def forward(self, segment: str, x: Tensor) -> Tensor:
        """What leaves a segment, or with "all" the whole path, when x enters it: z_L, z_H after Eq. 9, or the image."""
        self.place(segment)
        return self.runs[segment](x)

    @torch.no_grad()
    def map(self, segment: str, inputs: Sequence[Tensor]) -> list[Tensor]:
        """`forward` of every input, without gradients."""
        found: dict[int, Tensor] = {}
        for rows in batches(range(len(inputs)), [x.shape for x in inputs], self.batch):
            found |= zip(rows, self.forward(segment, torch.cat([inputs[i] for i in rows])).split(1))
        return [found[i] for i in range(len(inputs))]

    def targets(self) -> None:
        """Fills `full`: what leaves every segment in full precision; "all" is the image."""
        with mode(self.q.pipe, "float"):
            x = self.inputs
            for segment in MODULES[:-1]:
                x = self.full[segment] = self.map(segment, x)
            self.full["decoder"] = self.full["all"] = self._held(lambda i: self._full_image(x[i]), len(x))

    @torch.no_grad()
    def _full_image(self, latent: Tensor) -> Tensor:
        with mode(self.q.pipe, "float"):
            return self.forward("decoder", latent)

    def entering(self, segment: str, upstream: str = "quantized") -> Sequence[Tensor]:
        """The inputs of a segment through the modules before it, "float" or "quantized" as they are now."""
        if segment in ("all", MODULES[0]):
            return self.inputs
        before = MODULES[MODULES.index(segment) - 1]
        if upstream == "float":
            return self.full[before]
        self.leaving(before, self.judges)  # apart, as for their loss: rounding depends on how many go together
        return self.leaving(before, range(len(self.inputs)))

    def leaving(self, segment: str, rows: Sequence[int]) -> list[Tensor]:
        """What leaves a segment through quantized modules as they are now, of these pictures; kept until `changed`."""
        kept, inputs = self._leaving.setdefault(segment, {}), self.entering(segment)
        missing = [i for i in rows if i not in kept]
        kept |= zip(missing, self.map(segment, [inputs[i] for i in missing]))
        return [kept[i] for i in rows]

    def keep(self, count: int) -> None:
        """Forgets all pictures but the first so many."""
        first = lambda held: [held[i] for i in range(min(count, len(held)))]
        self.batches = [kept for rows in self.batches if (kept := [i for i in rows if i < count])]
        self.judges = [i for i in self.judges if i < count]
        self.inputs, self.full = first(self.inputs), {name: first(held) for name, held in self.full.items()}
        self._leaving.clear()

    def changed(self, segment: str) -> None:
        """Tells that a segment's quantizers have changed: what was computed with it no longer holds."""
        for name in MODULES if segment == "all" else MODULES[MODULES.index(segment) :]:
            self._leaving.pop(name, None)

    # -- memory ---------------------------------------------------------------------------------------------------

    def _held(self, make: Callable[[int], Tensor], count: int) -> Sequence[Tensor]:
        """`make(0)`, `make(1)`, ...: made now and kept, or with `lean` made each time."""
        return Recomputed(make, count) if self.lean else [make(i) for i in range(count)]

    def place(self, segment: str) -> None:
        """With `lean`, moves the segment that is at work to the device, and the others off it."""
        if self.lean and segment != self.resident:
            for name in MODULES:
                segment_modules(self.q, name).to(self.device if segment in (name, "all") else "cpu")
            self.resident = segment

    @contextmanager
    def placed(self) -> Iterator[None]:
        """Within the block, with `lean`, what saves memory is on; at the end every module is back on the device."""
        if not self.lean:
            yield
            return
        with checkpointing(self.q.unet, self.q.vae):
            try:
                yield
            finally:
                self.place("all")
