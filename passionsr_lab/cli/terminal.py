"""Signals and standard streams: what a Ctrl-C, a full disk and a closed pipe do."""

import os
import signal
import sys
import threading
from contextlib import contextmanager, suppress
from typing import Callable, Iterator


def complain(sentence: str) -> None:
    """A line on standard error, if there is one that takes it."""
    if sys.stderr is not None:
        with suppress(OSError):
            print(sentence, file=sys.stderr)
        _settle(sys.stderr)


@contextmanager
def settling() -> Iterator[None]:
    """At the end, what a full disk or a closed pipe did not take of the output is dropped."""
    try:
        yield
    finally:
        _settle(sys.stdout)


def _settle(stream) -> None:
    try:
        if stream is not None:
            stream.flush()
    except OSError:  # Python would fail on the rest once more when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextmanager
def _handling(number: int, handler: Callable) -> Iterator[None]:
    """Within the block the handler gets the signal; only the main thread can ask for that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


@contextmanager
def terminating_as_interrupting() -> Iterator[None]:
    """Within the block SIGTERM does what Ctrl-C does there."""

    def hand_on(number, frame):
        handler = signal.getsignal(signal.SIGINT)
        if not callable(handler):  # a shell's background jobs ignore SIGINT
            raise KeyboardInterrupt
        handler(number, frame)

    with _handling(signal.SIGTERM, hand_on):
        yield


@contextmanager
def stopping() -> Iterator[Callable[[], bool]]:
    """Ctrl-C only turns the yielded function true, so that a run stops between steps; a second one stops at once."""
    pressed = []

    def note(number, frame):
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    with _handling(signal.SIGINT, note):
        yield lambda: bool(pressed)


@contextmanager
def unbroken() -> Iterator[None]:
    """Ctrl-C waits for the end of the block: an import of torch that is broken off may abort the whole process."""
    with stopping() as stopped:
        yield
    if stopped():
        raise KeyboardInterrupt
