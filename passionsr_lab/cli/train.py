"""`train`: the embedded model, anew or further, or a smaller one."""

import time
from pathlib import Path

import click
from click.core import ParameterSource

from .common import Told, command, progress
from .options import COUNT, FOLDER, NATURAL, PATH

SAVE_EVERY = 180  # seconds between two states that a run keeps


@command(
    "train --images PHOTOGRAPHS --out my_model", "train --images PHOTOGRAPHS --out further --start tiny --skip 5",
    "train --images PHOTOGRAPHS --out my_model --start my_model --timestep 249",
    "train --images PHOTOGRAPHS --out narrow --shape narrow --part 0.1",
)  # fmt: skip
@click.option("--images", type=PATH, required=True, help="a folder of photographs of at least 256 x 256 pixels")
@click.option("--out", type=FOLDER, required=True, help="folder for the model and the training state")
@click.option("--seed", default=0, type=NATURAL)
@click.option("--start", help="a model to go on from, with its prompt branch", show_default="a new one")
@click.option("--skip", default=0, type=NATURAL, help="leave out phases that --start has been through")
@click.option("--part", default=1.0, type=click.FloatRange(0, 1, min_open=True), help="of every phase's steps")
@click.option("--shape", default="tiny", help="of a new model: tiny, or narrow, which has fewer channels and latents")
@click.option("--new-prompt", is_flag=True, help="begin the prompt branch of --start anew")
@click.option("--timestep", type=COUNT, help="an adapter of --start for this timestep instead, in OUT/timesteps")
@click.option("--minutes", type=click.FloatRange(0), help="stop after this long, to go on later")
def train(images, out, seed, start, skip, part, shape, new_prompt, timestep, minutes) -> Told:
    """The state is saved every three minutes."""
    if timestep is not None:
        given = click.get_current_context().get_parameter_source
        others = "skip", "part", "shape", "new_prompt", "minutes"
        if any(given(name) is not ParameterSource.DEFAULT for name in others):
            raise click.UsageError("--timestep fits an adapter in one go; of the others only --start and --seed apply.")
        return _adapt(images, out, seed, start or "tiny", timestep)
    from ..tools.train import PHASES, SHAPES, Training
    from ..util.files import claimed

    if shape not in SHAPES:
        raise click.UsageError(f"A shape is one of {', '.join(SHAPES)}, not {shape!r}.")
    phases = tuple(phase.shortened(part) for phase in PHASES[skip:])
    work, state = Training(images, seed, phases, start, new_prompt, SHAPES[shape]), out / "training.pt"
    with claimed(out):
        _train(work, state, minutes)
        work.averaged().half().save(out)  # float16 on disk; it is loaded as float32
    return Told({"step": work.step, "of": work.total, "seed": seed, "out": str(out)} | work.validate())


def _train(work, state: Path, minutes: float | None) -> None:
    """Trains to the end, or until so many minutes are over, and keeps the state."""
    began = saved = time.monotonic()
    if state.exists():
        work.resume(state)
    for record in progress(work.run(), work.total - work.step, "steps"):
        now = time.monotonic()
        over = minutes is not None and now - began > minutes * 60
        if now - saved > SAVE_EVERY or over or record["step"] == record["of"]:
            work.save(state)
            saved = time.monotonic()
        if over:
            break


def _adapt(images, out, seed: int, start: str, timestep: int) -> Told:
    from ..pipeline.timesteps import adapter_file
    from ..tools.adapt import Adapting

    work = Adapting(images, timestep, seed, start)
    file = work.save(adapter_file(out, timestep))
    return Told({"timestep": timestep, "seed": seed, "out": str(file)} | work.validate())
