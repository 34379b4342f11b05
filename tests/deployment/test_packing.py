"""Codes of every width, to a stream of bits and back."""

import pytest
import torch
from made import refused

from passionsr_lab.deployment import packing
from passionsr_lab.deployment.packing import pack, packed_bytes, unpack


@pytest.mark.parametrize("bits", range(2, 9))
def test_every_width_comes_back_bit_by_bit_and_takes_its_bits(bits, monkeypatch):
    monkeypatch.setattr(packing, "ROWS", 16)  # several parts
    for shape in ((5, 3, 3, 3), (7, 11), (1,), (0,)):
        codes = torch.randint(2**bits, shape, generator=torch.Generator().manual_seed(bits))
        codes.view(-1)[:2] = torch.tensor([0, 2**bits - 1])[: codes.numel()]
        data = pack(codes, bits)
        assert data.numel() == packed_bytes(shape, bits) == -(-codes.numel() * bits // 8)
        assert torch.equal(unpack(data, bits, shape), codes.to(torch.uint8))
        # the bits are those of the numbers, lowest first
        stream = [(int(byte) >> i) & 1 for byte in data for i in range(8)]
        assert stream[: codes.numel() * bits] == [(int(c) >> i) & 1 for c in codes.flatten() for i in range(bits)]


def test_what_does_not_fit_is_refused():
    with refused("outside 0 to 3"):
        pack(torch.tensor([4]), 2)
    with refused("2 to 8 bits", "9"):
        pack(torch.tensor([4]), 9)
    with refused("take 3 bytes, not 2"):
        unpack(torch.zeros(2, dtype=torch.uint8), 6, (4,))
