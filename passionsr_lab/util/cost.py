"""What a stretch of work cost: wall seconds, processor seconds of all threads, and the most memory held."""

from __future__ import annotations

import time

import torch

from .memory import Peak


class Meter:
    """Measures laps: `lap()` gives what was spent since the last `restart()` or `lap()`."""

    def __init__(self, device: torch.device | str = "cpu"):
        self.device = device
        self.restart()

    def restart(self) -> None:
        """Begins a lap here; what came before is not counted."""
        self._peak = Peak(self.device).__enter__()
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def lap(self) -> dict:
        """seconds, cpu_seconds and peak_bytes of the lap that ends here; the next one begins."""
        spent = {"seconds": time.perf_counter() - self._wall, "cpu_seconds": time.process_time() - self._cpu}
        self._peak.__exit__()
        found = spent | {"peak_bytes": self._peak.bytes}
        self.restart()
        return found
