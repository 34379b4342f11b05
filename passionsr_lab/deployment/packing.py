"""Whole numbers of few bits as a stream of bits, without a gap: what a file holds of a weight."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

ROWS = 2**22  # codes that are taken apart at once: their bits take eight times their memory


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes from 0 to 2**bits - 1 of any shape -> bytes (ceil(n bits / 8),), lowest bit first; bits from 2 to 8.

    Example:
        >>> pack(torch.tensor([1, 2, 3]), 2)
        tensor([57], dtype=torch.uint8)
    """
    flat = codes.flatten()
    if not 2 <= bits <= 8:
        raise ValueError(f"Codes of 2 to 8 bits are packed, not of {bits!r}.")
    if len(flat) and not 0 <= int(flat.min()) <= int(flat.max()) < 2**bits:
        raise ValueError(f"A code is outside 0 to {2**bits - 1}, so {bits} bits do not hold it.")
    parts = [_packed(part.to(torch.uint8).numpy(), bits) for part in flat.split(ROWS)]
    return torch.from_numpy(np.concatenate(parts))


def unpack(data: Tensor, bits: int, shape: tuple[int, ...]) -> Tensor:
    """The inverse of `pack`: uint8 codes of this shape; `ValueError` where the bytes are not that many.

    Example:
        >>> unpack(torch.tensor([57], dtype=torch.uint8), 2, (3,))
        tensor([1, 2, 3], dtype=torch.uint8)
    """
    count, size = int(np.prod(shape)), packed_bytes(shape, bits)
    if data.dtype != torch.uint8 or data.numel() != size:
        raise ValueError(f"{count} codes of {bits} bits take {size} bytes, not {data.numel()} of {data.dtype}.")
    step = ROWS * bits // 8
    parts = [_unpacked(part.numpy(), bits) for part in data.split(step)]
    return torch.from_numpy(np.concatenate(parts)[:count]).view(shape)


def packed_bytes(shape: tuple[int, ...], bits: int) -> int:
    """How many bytes `pack` makes of codes of this shape."""
    return -(-int(np.prod(shape)) * bits // 8)


def _packed(codes: np.ndarray, bits: int) -> np.ndarray:
    if bits == 8:
        return codes
    return np.packbits(np.unpackbits(codes[:, None], axis=1, count=bits, bitorder="little"), bitorder="little")


def _unpacked(data: np.ndarray, bits: int) -> np.ndarray:
    if bits == 8:
        return data
    stream = np.unpackbits(data, bitorder="little")
    stream = stream[: len(stream) // bits * bits].reshape(-1, bits)
    return np.packbits(stream, axis=1, bitorder="little").ravel()
