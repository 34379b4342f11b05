"""The processor that this runs on."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

CPUINFO = Path("/proc/cpuinfo")
FLAGS = {
    "AVX2": "avx2", "AVX-512": "avx512f", "AVX-512 VNNI": "avx512_vnni", "AVX VNNI": "avx_vnni",
    "AMX int8": "amx_int8", "AMX bf16": "amx_bf16",
}  # fmt: skip


class Processor(NamedTuple):
    """Its name, the threads it has, the vector instructions of `FLAGS` (None where they are not known), torch's."""

    name: str
    threads: int
    flags: list[str] | None
    used: str


def processor() -> Processor:
    """What the system says of it."""
    used = torch.backends.cpu.get_cpu_capability()
    try:
        text = CPUINFO.read_text()
    except OSError:
        return Processor(platform.processor(), os.cpu_count(), None, used)
    model = re.search(r"model name\s*: (.*)", text)
    flags = [name for name, flag in FLAGS.items() if re.search(rf"\b{flag}\b", text)]
    return Processor(model[1] if model else platform.machine(), os.cpu_count(), flags, used)


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Within the block torch has so many threads, or as many as before for None."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
