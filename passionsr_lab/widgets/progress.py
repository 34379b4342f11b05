"""Progress of a long step in a notebook: one line of text that is replaced, no widget and no carriage returns."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
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
) -> Iterator[T]:
    """Passes `items` on and shows how many have come and how long the rest may take; outside Jupyter it shows nothing.

    What would take more than two minutes says so as soon as the first items have been timed, and how to have it
    shorter.  When all have come the line holds the label and the count only, so that an executed notebook is the same
    each time.

    Args:
        total: how many are expected.
        label: what is going on.
        every: seconds between two changes of the line.
        costs: of every item, in any unit, where some take much longer than others.
        knobs: the names of those that make it shorter.

    Example:
        >>> list(follow("ab", 2, "letters"))
        ['a', 'b']
    """
    costs = [1.0] * total if costs is None else list(costs)
    line, start, shown, count = _line(f"{label}: 0 of {total}, the first tells how long"), time.monotonic(), 0.0, 0
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
    """A display that can be replaced, or None outside Jupyter."""
    try:
        from IPython import get_ipython
        from IPython.display import display
    except ImportError:
        return None
    kernel = getattr(get_ipython(), "kernel", None)
    return None if kernel is None else display(_html(text), raw=True, display_id=True)


def _update(line, text: str) -> None:
    if line is not None:
        line.update(_html(text), raw=True)


def _html(text: str) -> dict[str, str]:
    return {"text/plain": text, "text/html": f"<code>{text}</code>"}
