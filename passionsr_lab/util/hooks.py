"""Hooks on modules that several threads share: each sees the calls of its own thread or task only."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor, nn

ON_CALLS = ("_forward_hooks", "_forward_pre_hooks")  # how the names of torch's dictionaries of them begin
registering = threading.Lock()  # torch numbers hooks without one
_open: ContextVar[frozenset] = ContextVar("hooks", default=frozenset())


@contextmanager
def hooks() -> Iterator[Callable[[Callable, Callable], None]]:
    """Within the block, `add(register, hook)` adds a hook by a method such as `module.register_forward_hook`.

    The hook acts on calls from where the block was entered; other threads that run the module pass by it.  At the end,
    also after an error, none is left.

    Example:
        >>> import torch
        >>> seen, layer = [], torch.nn.Linear(2, 2)
        >>> with hooks() as add:
        ...     add(layer.register_forward_hook, lambda *call: seen.append(call))
        ...     out = layer(torch.ones(2))
        >>> len(seen), len(layer._forward_hooks)
        (1, 0)
    """
    key, handles = object(), []
    token = _open.set(_open.get() | {key})

    def add(register: Callable, hook: Callable) -> None:
        with registering:
            handles.append(register(lambda *call: hook(*call) if key in _open.get() else None))

    try:
        yield add
    finally:
        _open.reset(token)
        with registering:
            for handle in handles:
                handle.remove()


def copy_without_hooks(module: nn.Module, tensors: dict[Tensor, object]) -> nn.Module:
    """A deep copy with these tensors replaced; hooks on calls stay behind, as other threads may be adding theirs."""
    memo = {id(old): new for old, new in tensors.items()}
    for m in module.modules():
        memo |= {id(found): type(found)() for name, found in vars(m).items() if name.startswith(ON_CALLS)}
    return copy.deepcopy(module, memo)
