"""The passes of `fused`, compiled by numba: one walk over memory each, and no small tensors in between.

Values are equal to the last bit to those of the passes in torch; gradients add up in another order.  Kernels take
float32 and float64 on the CPU and run in one thread; what does not suit them is left to torch.
"""

from __future__ import annotations

import os
import warnings
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from importlib.util import find_spec
from typing import Iterator, NamedTuple

import numpy as np
import torch
from torch import Tensor

KINDS = {torch.float32: np.float32, torch.float64: np.float64}
_on: ContextVar[bool] = ContextVar("compiled", default=False)  # of this thread or task only
MISSING = "The compiled passes need numba (pip install numba); this calibration runs in torch's, which are slower."


def wanted(asked: bool | None = None) -> bool:
    """Whether to compile: as asked, else as `$PASSIONSR_COMPILED` says, else where numba is; warns if it is missed."""
    there = find_spec("numba") is not None
    asked = os.environ.get("PASSIONSR_COMPILED", str(int(there))) not in ("", "0") if asked is None else asked
    if asked and not there:
        warnings.warn(MISSING, stacklevel=3)
        return False
    return asked


@contextmanager
def compiled(on: bool = True) -> Iterator[None]:
    """Within the block, and in its thread only, passes are compiled ones; numba is needed."""
    token = _on.set(on)
    try:
        yield
    finally:
        _on.reset(token)


class Layout(NamedTuple):
    """How a tensor is walked: (planes, channels, size), a scale per channel, or (rows, columns), one for so many
    columns (taps) side by side; boundaries are the same everywhere, or one pair per channel or row."""

    shape: tuple[int, ...]
    channels: int
    taps: int


def layout_of(x: Tensor, scale: Tensor | None, shift: Tensor | None, lower: Tensor, grid) -> Layout | None:
    """How kernels walk x; None where they are off or do not suit."""
    if not _on.get() or not x.is_cpu or x.dtype not in KINDS or lower.dtype != x.dtype:
        return None
    per_channel = (None, (1, x.shape[1], 1, 1)) if x.ndim == 4 and not grid.multiply else ()
    if all(getattr(t, "shape", None) in per_channel for t in (scale, shift)) and lower.shape in ((), *per_channel):
        return Layout((x.shape[0], x.shape[1], x.shape[2] * x.shape[3]), x.shape[1], 1)
    columns = x.shape[-1] if x.ndim else 1
    if scale is None and lower.ndim == x.ndim > 0 and lower.numel() == len(x):
        columns = x[0].numel()
    rows = x.numel() // max(1, columns)
    if lower.ndim and lower.shape != (rows,) + (1,) * (x.ndim - 1):
        return None
    if any(t is not None and not t.shape[-1] == t.numel() == columns // grid.taps for t in (scale, shift)):
        return None
    return Layout((rows, columns), columns, grid.taps)


def values(x, scale, shift, lower, upper, grid, layout: Layout, minus=None, out: Tensor | None = None) -> Tensor:
    """Q(x~) - minus, of the shape of x; `minus` (1, C, 1, 1) or None."""
    from . import loops

    x = x.contiguous()
    out = torch.empty_like(x) if out is None else out
    kernel = loops.plane_values if len(layout.shape) == 3 else loops.row_values
    minus = _constant(0, layout.channels, x.dtype) if minus is None else _flat(minus)
    bounds = _flat(lower), _flat(upper), *_whole(grid, x.dtype)
    scaling = _scaling(scale, shift, layout, x.dtype)
    kernel(array(x, layout.shape), *scaling, *bounds, minus, array(out, layout.shape))
    return out


def gradients(grad, x, scale, shift, lower, upper, grid, layout: Layout, around=None, wanted=True) -> tuple:
    """Gradients of x (None if not `wanted`), scale, shift, lower and upper, from that of Q(x~).

    around: (1, C, 1, 1) or None: all that Q(0) of a channel gets, in all places; what x gets is not Q(0)'s.
    """
    from . import loops

    grad, x = grad.contiguous(), x.contiguous()
    out = torch.empty_like(x) if wanted else None  # not `grad` again: a loop that writes what it reads stays scalar
    of_bounds, of_scaling = (x.new_empty(2, n) for n in (lower.numel(), layout.channels // layout.taps))
    arrays = array(grad, layout.shape), array(x, layout.shape), *_scaling(scale, shift, layout, x.dtype)
    bounds = _flat(lower), _flat(upper), *_whole(grid, x.dtype)
    found = array(out, layout.shape) if wanted else None, array(of_bounds), array(of_scaling)
    if len(layout.shape) == 3:
        everywhere = _flat(around) if around is not None else _constant(0, 0, x.dtype)
        loops.plane_gradients(*arrays, *bounds, everywhere, *found)
    else:
        loops.row_gradients(*arrays, *bounds, *found)
    return (
        out,
        None if scale is None else of_scaling[0].view(scale.shape),
        None if shift is None else of_scaling[1].view(shift.shape),
        of_bounds[0].view(lower.shape), of_bounds[1].view(lower.shape),
    )  # fmt: skip


def on(*tensors: Tensor) -> bool:
    """Whether kernels are to be used, and suit what all these are."""
    return _on.get() and all(t.is_cpu and t.dtype in KINDS for t in tensors)


def bounds(low: Tensor, high: Tensor, trim: Tensor, integer: bool) -> tuple[Tensor, Tensor, np.ndarray]:
    """What `fused.Bounds` gives, and which elements cross or are held at zero."""
    from . import loops

    out, flags = low.new_empty(2, low.numel()), np.empty(low.numel(), np.uint8)
    loops.bounds(_flat(low), _flat(high), array(trim, (2, -1)), integer, array(out), flags)
    return out[0].view(low.shape), out[1].view(low.shape), flags


def bounds_gradients(of_lower, of_upper, low, high, trim, flags: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of low, high and trim."""
    from . import loops

    of_trim, of_range = torch.empty_like(trim), low.new_empty(2, low.numel())
    loops.bounds_gradients(
        _flat(of_lower), _flat(of_upper), _flat(low), _flat(high), array(trim, (2, -1)), flags,
        array(of_trim, (2, -1)), array(of_range),
    )  # fmt: skip
    return of_range[0].view(low.shape), of_range[1].view(low.shape), of_trim


# -- from tensors to arrays -------------------------------------------------------------------------------------------


def array(t: Tensor, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """The memory of a tensor on the CPU as an array."""
    found = t.detach().numpy()
    return found if shape is None else found.reshape(shape)


def _flat(t: Tensor) -> np.ndarray:
    return t.detach().contiguous().numpy().reshape(-1)


def _scaling(scale, shift, layout: Layout, dtype: torch.dtype) -> tuple:
    count = layout.channels // layout.taps
    return (
        _constant(1, count, dtype) if scale is None else _flat(scale),
        _constant(0, count, dtype) if shift is None else _flat(shift),
    )


def _whole(grid, dtype) -> tuple:
    return KINDS[dtype](2**grid.bits - 1), grid.zero_point == "integer", grid.multiply


@lru_cache(maxsize=256)
def _constant(value: float, count: int, dtype: torch.dtype) -> np.ndarray:
    return np.full(count, value, KINDS[dtype])
