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

ROW = 192  # numbers in a row that is walked quickly
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


class Walk(NamedTuple):
    """A way through a tensor: (planes, channels, size) with a scale per channel, or (rows, columns) with one per column
    or for several side by side; boundaries are the same everywhere, or one pair per channel or row.  Where channels lie
    last in memory rows are pixels, so many (tiles) side by side; elsewhere that is 0.

    grid: what kernels take between arrays, from scale to whether it multiplies; minus: what they take off.
    """

    planes: bool
    shape: tuple[int, ...]
    tiles: int
    grid: tuple
    minus: np.ndarray


class Seen(NamedTuple):
    """How a layer's input is quantized: scale, shift and what is taken off per channel, boundaries, and the grid."""

    scale: np.ndarray
    shift: np.ndarray
    minus: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    levels: np.floating
    integer: bool

    def tiles(self, x: Tensor, conv: bool) -> int:
        """See `tiles_of`: of a linear layer, and of halves, which have boundaries of their own, 0."""
        return tiles_of(x) if conv and self.lower.size == 1 else 0

    def walk(self, x: Tensor, conv: bool) -> Walk:
        """How kernels go through the input of a convolution, or of a linear layer."""
        tiles = self.tiles(x, conv)
        planes = conv and not tiles
        shape = (x.shape[0], x.shape[1], -1) if planes else (-1, len(self.scale) * max(1, tiles))
        few = self[:3] if tiles < 2 else [np.tile(a, tiles) for a in self[:3]]
        return Walk(planes, shape, tiles, (*few[:2], *self[3:], False), few[2])


def seen_by(channels: int, scale, shift, lower, upper, minus, grid, conv: bool) -> Seen | None:
    """As tensors have it; None where kernels are off or do not suit."""
    if not on(lower) or (lower.ndim and not conv):
        return None
    by, off, less = _per_channel(channels, scale, shift, minus, lower.dtype)
    return Seen(by, off, less, _flat(lower), _flat(upper), *_whole(grid, lower.dtype)[:2])


def walk_of(x: Tensor, scale, shift, lower, upper, grid, minus: Tensor | None = None) -> Walk | None:
    """How kernels go through x, with what these tensors have; None where they are off or do not suit."""
    if not on(x, lower) or x.dtype != lower.dtype:
        return None
    per_channel = (None, (1, x.shape[1], 1, 1)) if x.ndim == 4 and not grid.multiply else ()
    if all(getattr(t, "shape", None) in per_channel for t in (scale, shift)) and lower.shape in ((), *per_channel):
        return seen_by(x.shape[1], scale, shift, lower, upper, minus, grid, True).walk(x, True)
    columns = x.shape[-1] if x.ndim else 1
    if scale is None and lower.ndim == x.ndim > 0 and lower.numel() == len(x):
        columns = x[0].numel()
    rows, channels = x.numel() // max(1, columns), columns // grid.taps
    if lower.ndim and lower.shape != (rows,) + (1,) * (x.ndim - 1):
        return None
    if any(t is not None and not t.shape[-1] == t.numel() == channels for t in (scale, shift)):
        return None
    by, off, less = _per_channel(channels, scale, shift, minus, x.dtype)
    return Walk(False, (rows, columns), 0, (by, off, _flat(lower), _flat(upper), *_whole(grid, x.dtype)), less)


def values(x: Tensor, walk: Walk, out: Tensor | None = None) -> Tensor:
    """Q(x~) - minus, of the shape of x, in `out` or in new memory."""
    loops = _loops()
    x = as_it_lies(x, walk.tiles)
    out = torch.empty_like(x) if out is None else out
    kernel = loops.plane_values if walk.planes else loops.row_values
    kernel(walked(x, walk.shape, walk.tiles), *walk.grid, walk.minus, walked(out, walk.shape, walk.tiles))
    return out


def gradients(
    grad: Tensor, x: Tensor, walk: Walk, around: np.ndarray | None = None, wanted: bool = True,
    seen: Tensor | None = None,
) -> tuple[Tensor | None, np.ndarray, np.ndarray]:  # fmt: skip
    """Gradients, from that of Q(x~), of x (None if not `wanted`), of both boundaries (2, n), and of scale and shift
    (2, tiles, channels).

    around: per channel, all that Q(0) gets, in all places; what x gets is not Q(0)'s.
    seen: takes what `values` gives, on the way.
    """
    loops = _loops()
    grad, x = (as_it_lies(t, walk.tiles) for t in (grad, x))
    out = torch.empty_like(x) if wanted else None  # not `grad` again: a loop that writes what it reads stays scalar
    of_bounds, of_scaling = (np.empty((2, len(a)), a.dtype) for a in (walk.grid[2], walk.minus))
    arrays = (walked(t, walk.shape, walk.tiles) for t in (grad, x))
    everywhere = walk.minus[:0] if around is None else beside(around, walk.tiles)
    done = (None if t is None else walked(t, walk.shape, walk.tiles) for t in (seen, out))
    kernel = loops.plane_gradients if walk.planes else loops.row_gradients
    kernel(*arrays, *walk.grid, walk.minus, everywhere, *done, of_bounds, of_scaling)
    return out, of_bounds, of_scaling.reshape(2, max(1, walk.tiles), -1)


def words(t: Tensor) -> np.ndarray | None:
    """The memory of a tensor as whole numbers of 32 bits; None of one that kernels do not suit."""
    suits = t.is_cpu and t.dtype in KINDS and t.is_contiguous()
    return array(t).reshape(-1).view(np.uint32) if suits else None


def marks(words: np.ndarray) -> tuple[int, int]:
    """Two sums over the bits, one of them weighted by place."""
    loops = _loops()
    return loops.marks(words)


def on(*tensors: Tensor) -> bool:
    """Whether kernels are to be used, and suit what all these are."""
    return _on.get() and all(t.is_cpu and t.dtype in KINDS for t in tensors)


def bounds(low: Tensor, high: Tensor, trim: Tensor, integer: bool) -> tuple[Tensor, Tensor, np.ndarray]:
    """What `fused.Bounds` gives, and which elements cross or are held at zero."""
    loops = _loops()
    out, flags = low.new_empty(2, low.numel()), np.empty(low.numel(), np.uint8)
    loops.bounds(_flat(low), _flat(high), array(trim, (2, -1)), integer, array(out), flags)
    return out[0].view(low.shape), out[1].view(low.shape), flags


def bounds_gradients(of_lower, of_upper, low, high, trim, flags: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of low, high and trim."""
    loops = _loops()
    of_trim, of_range = torch.empty_like(trim), low.new_empty(2, low.numel())
    loops.bounds_gradients(
        _flat(of_lower), _flat(of_upper), _flat(low), _flat(high), array(trim, (2, -1)), flags,
        array(of_trim, (2, -1)), array(of_range),
    )  # fmt: skip
    return of_range[0].view(low.shape), of_range[1].view(low.shape), of_trim


@lru_cache
def _loops():
    """The kernels, imported once they are needed: importing numba takes a second."""
    from . import loops

    return loops


# -- from tensors to arrays -------------------------------------------------------------------------------------------


def array(t: Tensor, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """The memory of a tensor on the CPU as an array."""
    found = (t.detach() if t.requires_grad else t).numpy()
    return found if shape is None else found.reshape(shape)


def tiles_of(x: Tensor) -> int:
    """Of a tensor whose channels lie last in memory, how many pixels side by side make a row that is long enough to be
    walked quickly; 0 of another."""
    if x.ndim != 4 or x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last):
        return 0
    tiles, pixels = 1, x.numel() // x.shape[1]
    while tiles * x.shape[1] < ROW and pixels % (2 * tiles) == 0:
        tiles *= 2
    return tiles


def walked(x: Tensor, shape: tuple[int, ...], tiles: int) -> np.ndarray:
    """The memory of a tensor, which lies as `tiles` says, in this shape."""
    return array(x.permute(0, 2, 3, 1) if tiles else x, shape)


def as_it_lies(x: Tensor, tiles: int) -> Tensor:
    """The same with its channels last in memory, or first."""
    return x.contiguous(memory_format=torch.channels_last if tiles else torch.contiguous_format)


def beside(few: np.ndarray, tiles: int) -> np.ndarray:
    """What all pixels of a channel share: it is the first tile's."""
    return np.concatenate((few, np.zeros(len(few) * (tiles - 1), few.dtype))) if tiles > 1 else few


def _flat(t: Tensor) -> np.ndarray:
    return t.detach().contiguous().numpy().reshape(-1)


def _per_channel(count: int, scale, shift, minus, dtype: torch.dtype) -> list[np.ndarray]:
    given = ((scale, 1), (shift, 0), (minus, 0))
    return [_constant(value, count, dtype) if t is None else _flat(t) for t, value in given]


def _whole(grid, dtype) -> tuple:
    return KINDS[dtype](2**grid.bits - 1), grid.zero_point == "integer", grid.multiply


@lru_cache(maxsize=256)
def _constant(value: float, count: int, dtype: torch.dtype) -> np.ndarray:
    return np.full(count, value, KINDS[dtype])
