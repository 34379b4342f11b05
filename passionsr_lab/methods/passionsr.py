"""PassionSR: DQC, module by module, LET and then LBQ (PassionSR section 3.4, Eq. 8 to 10).

Each module is fed by the quantized modules before it and compared with full precision where it ends: z_L, z_H after
Eq. 9, the image.  Boundaries are fractions of a range that LET moves, so stage 1 re-initializes them at every step;
here the fractions learn there too, which stage 1 then has to reckon with.  In `STRICT` they rest until stage 2, as the
paper has it.  `FINISHED` adds a short stage on all modules together, with the image as its target (not in the paper).
Nor has the paper the mean of a stage's last states in which each stage ends: it steadies where a run ends.
"""

from dataclasses import replace

from ..calibration.method import STEADY, Method, Stage
from ..quantization.filling import LET

# Epochs of the two stages: 6 in sum, which is as many updates of modules as joint training's 2 for all three.
EPOCHS = {"encoder": (0.75, 0.25), "unet": (1.5, 0.5), "decoder": (2.5, 0.5)}


def stages(first: tuple[str, ...]) -> tuple[Stage, ...]:
    """DQC's six stages; `first` is what stage 1 trains, stage 2 trains boundaries."""
    return tuple(
        Stage(module, train, epochs)
        for module, both in EPOCHS.items()
        for train, epochs in zip((first, ("bounds",)), both)
    )


METHOD = Method(
    "passionsr", "PassionSR", "PassionSR, section 3.4, Eq. 8 to 10", LET(), stages(("transform", "bounds")),
    "quantized", STEADY, average=0.5,
)  # fmt: skip
STRICT = replace(METHOD, name="passionsr-strict", label="PassionSR, strict stages", stages=stages(("transform",)))
FINISHED = replace(
    METHOD, name="passionsr+e2e", label="PassionSR, then end to end",
    stages=(*METHOD.stages, Stage("all", ("transform", "bounds"), 0.5, rate=0.1)),
)  # fmt: skip
