"""Interrupt Kernel, for work in a thread while the kernel itself is idle."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def interrupts(stop: Callable[[], None]) -> Iterator[None]:
    """Within the block, in a thread of a Jupyter kernel, an interrupt of the idle kernel calls `stop`.

    A cell that runs meanwhile is interrupted as ever.  Outside Jupyter the block does nothing.
    """
    loop, before = _kernel_loop(), []
    if loop is None:
        yield
        return
    install = lambda: before.append(signal.signal(signal.SIGINT, lambda *_: stop()))
    restore = lambda: signal.signal(signal.SIGINT, before.pop() or signal.SIG_DFL)
    loop.call_soon_threadsafe(install)  # only the main thread may; and only after the cell that began it
    try:
        yield
    finally:
        loop.call_soon_threadsafe(restore)


def _kernel_loop():
    """The event loop of the Jupyter kernel, or None outside one."""
    try:
        from IPython import get_ipython
    except ImportError:
        return None
    kernel = getattr(get_ipython(), "kernel", None)
    return None if kernel is None else kernel.io_loop.asyncio_loop
