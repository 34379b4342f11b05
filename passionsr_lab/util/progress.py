"""Progress of a long step: one line that is replaced, in a notebook or on a terminal; nothing where neither is."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


LONG = 120  # seconds from which a step says beforehand how long it will take


def follow(
    items: Iterable[T],
    total: int,
    label: str,
    every: float = 0.5,
    costs: Sequence[float] | None = None,
    knobs: str = "",
    quiet: bool = False,
) -> Iterator[T]:
    """Passes `items` on and shows how many have come and how long the rest may take.

    In Jupyter the line is a display without widget and carriage returns; else it is on standard error if that is a
    terminal, and goes at the end.  Piped, and with `quiet`, nothing is shown.

    What would take more than two minutes says so as soon as the first items have been timed, and how to have it
    shorter.  When all have come the line holds the label and the count only, so that an executed notebook is the same
    each time.

    Args:
        total: how many are expected.
        label: what is going on.
        every: seconds between two changes of the line.
        costs: of every item, in any unit, where some take much longer than others.
        knobs: the names of those that make it shorter.
        quiet: show nothing.

    Example:
        >>> list(follow("ab", 2, "letters"))
        ['a', 'b']
    """
    costs = [1.0] * total if costs is None else list(costs)
    line = None if quiet else _line(f"{label}: 0 of {total}, the first tells how long")
    start, shown, count = time.monotonic(), 0.0, 0
    for count, item in enumerate(items, 1):
        yield item
        seconds = time.monotonic() - start
        if seconds - shown >= every:
            shown = seconds
            left = seconds / sum(costs[:count]) * sum(costs[count:])
            _update(line, f"{label}: {count} of {total}, " + remaining(seconds, left, knobs))
    _update(line, f"{label}: {count} of {total}, done")


def remaining(seconds: float, left: float, knobs: str = "") -> str:
    """What is said of a step after so many seconds and with so many left, a warning included when it is a long one.

    Example:
        >>> remaining(3, 20)
        '3 s, about 20 s left'
        >>> remaining(2, 400, "EPOCHS and PAIRS")
        '2 s, about 7 min left. More than two minutes: interrupt the kernel to stop, lower EPOCHS and PAIRS for less'
    """
    text = f"{spoken(seconds)}, about {spoken(left)} left"
    if seconds + left <= LONG:
        return text
    return f"{text}. More than two minutes: interrupt the kernel to stop" + f", lower {knobs} for less" * bool(knobs)


def spoken(seconds: float) -> str:
    """A duration in seconds, or in minutes from 100 s on."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def _line(text: str):
    """A display that can be replaced, a line of a terminal, or None where there is neither."""
    if "IPython" in sys.modules:
        from IPython import get_ipython
        from IPython.display import display

        if getattr(get_ipython(), "kernel", None) is not None:
            return display(_html(text), raw=True, display_id=True)
    return _Terminal(text) if sys.stderr is not None and sys.stderr.isatty() else None


class _Terminal:
    """The line at the cursor of standard error, with a display's `update`; what is done is wiped away."""

    def __init__(self, text: str):
        self.update({"text/plain": text})

    def update(self, content: dict[str, str], raw: bool = True) -> None:
        text = content["text/plain"]
        shown = "" if text.endswith(", done") else text[: shutil.get_terminal_size().columns - 1]
        with suppress(OSError):
            sys.stderr.write(f"\r\x1b[K{shown}")
            sys.stderr.flush()


def _update(line, text: str) -> None:
    if line is not None:
        line.update(_html(text), raw=True)


def _html(text: str) -> dict[str, str]:
    return {"text/plain": text, "text/html": f"<code>{text}</code>"}
