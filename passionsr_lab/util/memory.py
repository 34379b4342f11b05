"""Memory: the peak of a block of code, and two ways to need less."""

from __future__ import annotations

import itertools
import json
import os
import resource
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint


class Peak:
    """`with Peak(device) as peak: ...` and then `peak.bytes`: the most memory held during the block.

    On a GPU the allocator's peak; on Linux the process's resident peak, reset at the start; elsewhere the peak since
    the process began.
    """

    def __init__(self, device: torch.device | str = "cpu"):
        self.cuda = torch.device(device).type == "cuda"
        self.bytes = 0

    def __enter__(self) -> Peak:
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            try:
                Path("/proc/self/clear_refs").write_text("5")
            except OSError:
                pass
        return self

    def __exit__(self, *_) -> None:
        self.bytes = torch.cuda.max_memory_allocated() if self.cuda else _resident_peak()


def _resident_peak() -> int:
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def allocated_peak(run: Callable[[], object]) -> int:
    """Bytes of tensors on the CPU that are held at most while this runs, beyond those that were there before; the same
    every time, since what libraries and the allocator keep beside them does not count.

    Example:
        >>> allocated_peak(lambda: torch.ones(256).exp().sum())
        2048
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it would tell on stderr when it begins and ends
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        run()
    with TemporaryDirectory() as folder:
        found.export_chrome_trace(str(Path(folder) / "trace.json"))
        events = json.loads((Path(folder) / "trace.json").read_text())["traceEvents"]
    told = sorted((event for event in events if event["name"] == "[memory]"), key=lambda event: event["ts"])
    sizes = (event["args"]["Bytes"] for event in told)
    return max(itertools.accumulate(sizes), default=0)


def available() -> int:
    """Bytes that the machine has left for new work; 2**63 where the system does not say."""
    return _status("MemAvailable", "/proc/meminfo") or 2**63


def _status(key: str, file: str = "/proc/self/status") -> int:
    try:
        line = next(row for row in Path(file).read_text().splitlines() if row.startswith(key))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration):
        return 0


class Recomputed(Sequence):
    """A sequence of `count` tensors that keeps none of them: `make(i)` makes the i-th whenever it is asked for.

    Example:
        >>> [int(x) for x in Recomputed(lambda i: torch.tensor(i * i), 3)]
        [0, 1, 4]
    """

    def __init__(self, make: Callable[[int], Tensor], count: int):
        self.make, self.count = make, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> Tensor:
        if not 0 <= i < self.count:
            raise IndexError(i)
        return self.make(i)


@contextmanager
def checkpointing(*models) -> Iterator[None]:
    """Within the block these diffusers models keep only the inputs of their blocks for the backward pass.

    The rest is computed a second time: about a third more work for several times less memory; the same gradients.
    """
    for model in models:
        model.enable_gradient_checkpointing(_checkpoint)
    try:
        yield
    finally:
        for model in models:
            model.disable_gradient_checkpointing()


def _checkpoint(block: Callable, *args):
    """The block's output; the second time it runs in the context variables (such as modes) of the first, whatever the
    thread and the moment."""
    return checkpoint(lambda *inputs, context=copy_context(): context.run(block, *inputs), *args, use_reentrant=False)
