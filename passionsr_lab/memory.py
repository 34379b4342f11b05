"""Peak memory of a block of code."""

from __future__ import annotations

import resource
from pathlib import Path

import torch


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
    try:
        line = next(row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
