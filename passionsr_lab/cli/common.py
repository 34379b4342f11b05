"""What the commands share: how they are loaded, and what they print where."""

import json
import sys
from functools import wraps
from importlib import import_module
from typing import Callable, Iterable, Iterator, NamedTuple

import click

from . import COMMANDS
from .options import COUNTS, NAMES, RECIPES
from .terminal import complain, unbroken

SETTINGS = {"help_option_names": ["-h", "--help"], "show_default": True}


class Told(NamedTuple):
    """What a command ends with: a result that --json prints, an exit code, and a text in the result's place."""

    result: dict
    code: int = 0
    text: str | None = None


class Commands(click.Group):
    """All commands; the file of one is imported when it is called, and none for the list of them."""

    def __init__(self, **attributes):
        super().__init__(no_args_is_help=False, context_settings=SETTINGS, **attributes)

    def list_commands(self, context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        with unbroken():
            return getattr(import_module(f".{name}", __package__), name)

    def format_commands(self, context, formatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


class Command(click.Command):
    """A command whose lists of names are separated by commas or by spaces: `--recipes W6A6,W4A8` or `W6A6 W4A8`."""

    def parse_args(self, context, arguments: list[str]) -> list[str]:
        lists = {option for p in self.params if p.type in (NAMES, RECIPES, COUNTS) for option in p.opts}
        return super().parse_args(context, list(_joined(arguments, lists))[:-1])


def _joined(arguments: list[str], lists: set[str]) -> Iterator[str]:
    """The arguments, with the words that follow one of the options `lists` as one word."""
    names = None  # of the list that is being read
    for word in (*arguments, "-"):
        if names is not None and not word.startswith("-"):
            names.append(word)
            continue
        if names:
            yield ",".join(name.strip(",") for name in names) if len(names) > 1 else names[0]
        names = [] if word in lists else None
        yield word


def command(*examples: str) -> Callable[[Callable[..., Told]], click.Command]:
    """Makes a command of a function (**options) -> `Told`; its help is its summary, its docstring and the examples."""

    def decorate(function):
        @click.option("--json", "as_json", is_flag=True, help="print one JSON object and nothing else")
        @click.option("--quiet", is_flag=True, help="nothing but errors on standard error")
        @click.pass_context
        @wraps(function)
        def run(context, as_json: bool, quiet: bool, **options) -> int:
            for line in context.obj or ():
                note(line)
            with unbroken():
                import torch  # noqa: F401
            told = function(**options)
            text = json.dumps(told.result) if as_json else lines(told.result) if told.text is None else told.text
            if text:
                click.echo(text)
            return told.code

        shown = "\n".join(f"  python -m passionsr_lab {example}" for example in examples)
        text = f"{COMMANDS[function.__name__]}\n\n{function.__doc__}\n\n\b\nexamples:\n{shown}"
        return click.command(function.__name__, Command, help=text, context_settings=SETTINGS)(run)

    return decorate


def lines(result: dict) -> str:
    """A result for a reader: a line per key, and per row of a list."""
    return "\n".join(f"{key}: {_plain(value)}" for key, value in result.items())


def _plain(value) -> str:
    if isinstance(value, list):
        return "".join(f"\n  {_plain(row)}" for row in value)
    if isinstance(value, dict):
        return ", ".join(f"{k} {_plain(v)}" for k, v in value.items())
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def table(rows) -> str:
    """A DataFrame's rows for a reader, aligned; what is missing is left empty."""
    return rows.to_string(na_rep="", float_format="{:.6g}".format)


def note(line: str) -> None:
    """A line on standard error, unless --quiet."""
    if not _given("quiet"):
        complain(line)


def live(line: str) -> None:
    """A line of the result as it comes; with --json only a note."""
    note(line) if _given("as_json") else click.echo(line)


def progress(items: Iterable, total: int | None = None, what: str = "") -> Iterator:
    """The items, with a bar on standard error if that is a terminal, unless --quiet."""
    from tqdm import tqdm

    return tqdm(items, total=total, desc=what, file=sys.stderr, disable=_hidden(), leave=False)


def counting(what: str) -> Callable[[int, int], None]:
    """A function of (done, of) that moves such a bar below the others; it goes when all is done."""
    from tqdm import tqdm

    bar = tqdm(desc=what, file=sys.stderr, disable=_hidden(), leave=False)

    def show(done: int, of: int) -> None:
        bar.total = of
        bar.update(done - bar.n)
        if done >= of:
            bar.close()

    return show


def _hidden() -> bool:
    """Whether no progress is shown: with --quiet, or where standard error is no terminal."""
    return _given("quiet") or sys.stderr is None or not sys.stderr.isatty()


def _given(flag: str) -> bool:
    return click.get_current_context().params[flag]
