"""Turns between threads that use an object and one that changes it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager


class Turns:
    """Many use it at once, or one changes it; whoever changes it may use it.  A copy has turns of its own.

    Example:
        >>> turns = Turns()
        >>> with turns.changing(), turns.using():
        ...     pass
    """

    def __init__(self):
        self._free, self._users, self._waiting = threading.Condition(), Counter(), 0
        self._owner, self._depth = None, 0

    @contextmanager
    def using(self) -> Iterator[None]:
        """Waits until no other thread changes it, or has waited for that before."""
        me = threading.get_ident()
        with self._free:
            self._free.wait_for(lambda: me in (*self._users, self._owner) or not (self._owner or self._waiting))
            self._users[me] += 1
        try:
            yield
        finally:
            with self._free:
                self._users[me] -= 1
                self._users = +self._users
                self._free.notify_all()

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Waits until no other thread uses or changes it."""
        me = threading.get_ident()
        with self._free:
            self._waiting += 1
            try:
                self._free.wait_for(lambda: self._owner in (None, me) and not set(self._users) - {me})
            finally:
                self._waiting -= 1
            self._owner, self._depth = me, self._depth + 1
        try:
            yield
        finally:
            with self._free:
                self._depth -= 1
                self._owner = me if self._depth else None
                self._free.notify_all()

    def __deepcopy__(self, memo) -> Turns:
        return Turns()

    def __reduce__(self):
        return Turns, ()
