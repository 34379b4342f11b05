"""Quantized layers with filled slots for tests: every kind of layer, at any scale and shift; and calibrations."""

import torch
from torch import nn

from passionsr_lab.calibration.state import state
from passionsr_lab.quantization.filling import LET
from passionsr_lab.quantization.layer import QuantLayer, mode
from passionsr_lab.quantization.place import QuantizedSR
from passionsr_lab.quantization.recipe import LayerRecipe
from passionsr_lab.quantization.transform import EquivalentTransform

# Layer and input shape: strides, paddings, dilations, groups, kernels, padding modes, odd sizes.
LAYERS = {
    "linear": (lambda: nn.Linear(7, 5), (2, 9, 7)),
    "linear without bias": (lambda: nn.Linear(7, 5, bias=False), (2, 9, 7)),
    "linear of a matrix": (lambda: nn.Linear(6, 4), (3, 6)),
    "linear of a vector": (lambda: nn.Linear(6, 4), (6,)),
    "linear of maps": (lambda: nn.Linear(6, 4), (2, 3, 5, 6)),
    "1x1": (lambda: nn.Conv2d(6, 5, 1), (2, 6, 9, 7)),
    "1x1 padded": (lambda: nn.Conv2d(6, 5, 1, padding=1), (2, 6, 9, 7)),
    "3x3": (lambda: nn.Conv2d(6, 5, 3), (2, 6, 9, 7)),
    "3x3 padded": (lambda: nn.Conv2d(6, 5, 3, padding=1), (2, 6, 9, 7)),
    "3x3 without bias": (lambda: nn.Conv2d(6, 5, 3, padding=1, bias=False), (2, 6, 9, 7)),
    "3x3 of one pixel": (lambda: nn.Conv2d(6, 5, 3, padding=1), (1, 6, 1, 1)),
    "down-sampling": (lambda: nn.Conv2d(6, 5, 3, stride=2, padding=1), (2, 6, 9, 7)),
    "down-sampling, padded outside": (lambda: nn.Conv2d(6, 5, 3, stride=2), (2, 6, 9, 7)),
    "wide padding": (lambda: nn.Conv2d(6, 5, 3, padding=4), (1, 6, 5, 4)),
    "uneven": (lambda: nn.Conv2d(6, 5, (3, 5), stride=(2, 1), padding=(0, 2)), (2, 6, 9, 7)),
    "dilated": (lambda: nn.Conv2d(6, 5, 3, padding=2, dilation=2), (2, 6, 9, 7)),
    "same": (lambda: nn.Conv2d(6, 5, (3, 5), padding="same"), (2, 6, 9, 7)),
    "valid": (lambda: nn.Conv2d(6, 5, 3, padding="valid"), (2, 6, 9, 7)),
    "groups": (lambda: nn.Conv2d(6, 4, 3, padding=1, groups=2), (2, 6, 9, 7)),
    "depthwise": (lambda: nn.Conv2d(6, 12, 3, stride=2, padding=1, groups=6), (2, 6, 9, 7)),
    "one channel": (lambda: nn.Conv2d(1, 3, 3, padding=1), (2, 1, 9, 7)),
    "reflect": (lambda: nn.Conv2d(6, 5, 3, padding=1, padding_mode="reflect"), (2, 6, 9, 7)),
    "replicate": (lambda: nn.Conv2d(6, 5, 3, padding=2, padding_mode="replicate"), (2, 6, 9, 7)),
    "circular": (lambda: nn.Conv2d(6, 5, 3, padding=1, padding_mode="circular"), (2, 6, 9, 7)),
}
WHOLE = ("groups", "depthwise", "one channel")  # what has no two halves


def disturb(transform, seed=0, spread=1.0):
    """Any scale and, where it is learned, any shift."""
    g = torch.Generator().manual_seed(seed)
    transform.log_scale.data = spread * torch.randn(transform.log_scale.shape, generator=g).to(transform.log_scale)
    transform.reach.copy_(torch.rand(transform.reach.shape, generator=g) + 0.5)
    if isinstance(transform.offset, nn.Parameter):
        transform.offset.data = spread * torch.randn(transform.offset.shape, generator=g).to(transform.offset)


def filled(case, slots=None, seed=0, dtype=torch.float32, **setting):
    """A layer that has seen its input, with the slots (LET by default) at a random scale and shift; and the input."""
    torch.manual_seed(seed)
    make, shape = LAYERS[case]
    setting = LayerRecipe(**{"weight_bits": 8, "act_bits": 8} | setting)
    layer, x = QuantLayer(make(), "unet.layer", setting).to(dtype), torch.randn(shape, dtype=dtype) + 0.5
    (slots or LET()).fill(layer)
    layer.to(dtype)
    with mode(layer, "observe"):
        layer(x)
    if isinstance(layer.transform, EquivalentTransform):
        disturb(layer.transform, seed)
    return layer, x


def relative(ours, expected):
    """The largest error, as a part of the largest value."""
    assert ours.shape == expected.shape
    return ((ours - expected).abs().max() / expected.abs().max()).item()


def same(a, b):
    """Whether two states or pipelines agree in every bit."""
    a, b = (state(t) if isinstance(t, QuantizedSR) else t for t in (a, b))
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def told(records):
    """Records without what a clock or the memory says."""
    return [{k: v for k, v in r.items() if k not in ("seconds", "cpu_seconds", "peak_bytes")} for r in records]
