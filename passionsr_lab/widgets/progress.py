"""Progress of a long step in a notebook: one line of text that is replaced, no widget and no carriage returns."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def follow(items: Iterable[T], total: int, label: str, every: float = 0.5) -> Iterator[T]:
    """Passes `items` on and shows how many have come and how long the rest may take; outside Jupyter it shows nothing.

    When all have come the line holds the label and the count only, so that an executed notebook is the same each time.

    Args:
        total: how many are expected.
        label: what is going on.
        every: seconds between two changes of the line.

    Example:
        >>> list(follow("ab", 2, "letters"))
        ['a', 'b']
    """
    line, start, shown, count = _line(f"{label}: starting"), time.monotonic(), 0.0, 0
    for count, item in enumerate(items, 1):
        yield item
        seconds = time.monotonic() - start
        if seconds - shown >= every:
            shown = seconds
            left = seconds / count * max(total - count, 0)
            _update(line, f"{label}: {count} of {total}, {seconds:.0f} s, about {left:.0f} s left")
    _update(line, f"{label}: {count} of {total}, done")


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
