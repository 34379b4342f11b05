"""Types of options, which check what is given before work begins, and the options that several commands have."""

import math
from contextlib import contextmanager
from pathlib import Path
from typing import Callable

import click

from .terminal import unbroken


class Parsed(click.ParamType):
    """A value that a function reads, which raises `ValueError` in one sentence; what is no string passes through."""

    def __init__(self, name: str, read: Callable[[str], object]):
        self.name, self.read = name, read

    def convert(self, value, parameter, context):
        return self.read(value) if isinstance(value, str) else value


def _recipe(text: str):
    from ..quantization.recipe import Recipe, recipe
    from ..util.files import read_json

    return Recipe.from_dict(read_json(text)) if text.endswith(".json") else recipe(text)


def _rates(text: str) -> dict[str, float]:
    try:
        rates = {name.strip(): float(rate) for name, rate in (part.split("=") for part in text.split(","))}
    except ValueError:
        rates = {"": math.nan}
    if not all(0 < rate < math.inf for rate in rates.values()):
        raise ValueError(f"Rates are like transform=0.03,bounds=0.5, each above 0, not {text!r}.")
    return rates


def _counts(text: str) -> tuple[int, ...]:
    parts = NAMES.read(text)
    if not all(part.isdecimal() and int(part) for part in parts):
        raise ValueError(f"Whole numbers from 1 on are expected, like 1,2, not {text!r}.")
    return tuple(map(int, parts))


def _device(text: str) -> str:
    with unbroken():
        import torch

    try:
        torch.empty(0, device=text)
    except (RuntimeError, AssertionError) as error:  # a build without CUDA asserts
        raise ValueError(f"There is no device {text!r} here: {str(error).splitlines()[0]}") from None
    return text


def _file(text: str) -> Path:
    with unbroken():
        from ..util.files import require_plain

    require_plain(Path(text))
    return Path(text)


NAMES = Parsed("names", lambda text: tuple(dict.fromkeys(name.strip() for name in text.split(","))))
RECIPES = Parsed("recipes", lambda text: tuple(map(_recipe, NAMES.read(text))))
RECIPE, RATES, DEVICE = Parsed("recipe", _recipe), Parsed("name=rate", _rates), Parsed("device", _device)
COUNTS = Parsed("counts", _counts)
PATH, FILE = click.Path(path_type=Path), Parsed("file", _file)
FOLDER = click.Path(file_okay=False, path_type=Path)
COUNT, SIZE, NATURAL = click.IntRange(1), click.IntRange(4), click.IntRange(0)

MODEL = click.option("--model", default="tiny", help="'tiny', a model folder or a hub id")
IMAGES = click.option("--images", default="bundled", help="photographs, a folder with lr/ and hr/, or scikit-image's")
STORE = click.option(
    "--store", "--cache", type=FOLDER, help="of models and results", show_default="$PASSIONSR_STORE or the user's cache"
)
JOBS = click.option("--jobs", default=1, type=COUNT, help="processes side by side")
TUNED = click.option(
    "--tuned", type=PATH, multiple=True, help="a table that tune wrote, with the rates of methods; once for each table"
)  # fmt: skip


@contextmanager
def workers(jobs: int):
    """An executor of so many processes, or None for one."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    if jobs == 1:
        yield None
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as executor:
        yield executor


def _read_config(context: click.Context, parameter, file: Path | None) -> None:
    if file is not None:
        from ..official.yaml import read_options

        config = read_options(file, context.info_name)
        context.default_map = config.options
        context.obj = [f"warning: {file}: {line}" for line in config.warnings]


CONFIG_FILE = click.option(
    "--config_file", type=PATH, metavar="YAML", is_eager=True, expose_value=False, callback=_read_config,
    help="a file of PassionSR's own code, for all options that are not given",
)  # fmt: skip
