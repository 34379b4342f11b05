"""A calibration method as data: how it fills the slots, and the stages that train them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace

from torch import Tensor

from ..quantization.filling import Slots
from ..util.names import MODULES

DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "squares": lambda x, y: (x - y).square().mean(),
    "absolute": lambda x, y: (x - y).abs().mean(),
    "root": lambda x, y: ((x - y).square().mean() + 1e-12).sqrt(),
}
REQUIRED: dict[str, Callable[[], object]] = {}  # by distance: `ValueError` where what it needs is not there
# Steps of the log scale and of the shift in half ranges; of boundaries in steps of their grid.
RATES = {"transform": 3e-2, "bounds": 0.5}
STEADY = {tag: rate / 2 for tag, rate in RATES.items()}  # of both together: other pairs then change less


@dataclass(frozen=True)
class Loss:
    """A term of a stage's loss: `weight` times the `distance` (a name out of `DISTANCES`) to full precision.

    at: "output", of the stage's own segment or block, or "image", behind everything that follows.
    """

    distance: str = "squares"
    at: str = "output"
    weight: float = 1.0

    def __post_init__(self):
        if self.distance not in DISTANCES or self.at not in ("output", "image"):
            raise ValueError(f"A loss has a distance of {', '.join(DISTANCES)} at 'output' or 'image', not {self}.")


@dataclass(frozen=True)
class Stage:
    """One stretch of calibration: what is trained, where, on which inputs and losses, for how long.

    Args:
        segment: "encoder", "unet" or "decoder" (losses of Eq. 8 and 10), or "all" (joint, loss on the image).
        train: tags of the slots that are trained, for example "transform" (LET) and "bounds" (LBQ).
        epochs: passes over the pairs, in units of the calibration's `epochs`; the last one may be a part of a pass.
        blocks: a pattern of block names below the segment ("*" for all): one stage for each block, in their order.
        order: of the blocks, "forward" or "reversed".
        upstream: whether the inputs come through "quantized" or "float" modules.
        downstream: the same of what follows, where a loss is at the image.  With such a loss a stage on blocks runs the
            whole path: blocks before as `upstream` says, blocks behind as `downstream`.
        losses: terms of the loss.
        rate: times the method's learning rates.
    """

    segment: str
    train: tuple[str, ...]
    epochs: float = 1.0
    blocks: str | None = None
    upstream: str = "quantized"
    downstream: str = "quantized"
    losses: tuple[Loss, ...] = (Loss(),)
    rate: float = 1.0
    order: str = "forward"

    def __post_init__(self):
        if not self.rate > 0:
            raise ValueError(f"A stage's rate is above 0, not {self.rate!r}.")
        if self.segment not in (*MODULES, "all"):
            raise ValueError(f"A stage's segment is one of {', '.join(MODULES)} or 'all', not {self.segment!r}.")
        if not self.train or isinstance(self.train, str):
            raise ValueError(f"A stage trains a tuple of tags such as ('bounds',), not {self.train!r}.")
        if {self.upstream, self.downstream} - {"quantized", "float"}:
            raise ValueError("upstream and downstream are 'quantized' or 'float'.")
        if self.order not in ("forward", "reversed"):
            raise ValueError(f"A stage's order of blocks is 'forward' or 'reversed', not {self.order!r}.")
        if self.blocks is not None and self.segment == "all":
            raise ValueError("A stage on blocks names their segment.")

    def steps(self, epochs: int, each: int) -> int:
        """Steps in a calibration of so many epochs, in which a pass over the pairs has `each`: at least one."""
        return max(1, round(epochs * self.epochs * each))


@dataclass(frozen=True)
class Method:
    """How to calibrate: a row of a table of methods.

    Args:
        name, label: for commands and for figures.
        source: the paper, its section and equations.
        slots: how layers are filled and started; its fields are the method's options.
        stages: in order; none for a method that only looks at ranges.
        observe: whether ranges are those behind "float" modules, taken at once, or behind the "quantized" modules
            before, taken when a segment's turn comes.
        rates: learning rates of Adam by tag; they fall by a cosine to 5 %.
        backtrack: whether a stage that would end above its start goes back along its way.
        average: a stage ends in the mean of the states after its last steps, this part of them; at 0 in its last state.
    """

    name: str
    label: str
    source: str
    slots: Slots = field(default_factory=Slots)
    stages: tuple[Stage, ...] = ()
    observe: str = "float"
    rates: Mapping[str, float] = field(default_factory=lambda: RATES, hash=False)
    backtrack: bool = True
    average: float = 0.0

    def __post_init__(self):
        if self.observe not in ("float", "quantized"):
            raise ValueError(f"Ranges are observed behind 'float' or 'quantized' modules, not {self.observe!r}.")
        if not 0 <= self.average <= 1:
            raise ValueError(f"A method averages a part of a stage's steps, from 0 to 1, not {self.average!r}.")
        missing = {tag for stage in self.stages for tag in stage.train} - self.rates.keys()
        if missing:
            raise ValueError(f"The method {self.name!r} trains {min(missing)!r} and gives no learning rate for it.")

    def with_options(self, **options) -> Method:
        """The same method with other options of its slots; `ValueError` names one that it does not have."""
        try:
            return replace(self, slots=replace(self.slots, **options))
        except TypeError:
            unknown = sorted(options.keys() - asdict(self.slots).keys())
            raise ValueError(f"The method {self.name!r} has no option {', '.join(unknown)}.") from None

    def faster(self, factor: float) -> Method:
        """The same method with `factor` times its learning rates."""
        return replace(self, rates={tag: rate * factor for tag, rate in self.rates.items()})

    def describe(self) -> dict:
        """Name, slots with their options, stages, rates: what decides the numbers, as plain values."""
        slots = {"kind": type(self.slots).__name__} | asdict(self.slots)
        return {
            "name": self.name, "slots": slots, "stages": [asdict(stage) for stage in self.stages],
            "observe": self.observe, "rates": dict(self.rates), "backtrack": self.backtrack,
            "average": self.average,
        }  # fmt: skip
