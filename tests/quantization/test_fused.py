"""Fused functions against the plain formula under autograd, and what is kept against what it is made of."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from filled import disturb, filled, relative

from passionsr_lab.kernels.fused import Convolution, FakeQuantize, Grid, QuantizedOperation, extremes, grid_of
from passionsr_lab.quantization.filling import LET
from passionsr_lab.quantization.layer import QuantLayer, mode
from passionsr_lab.quantization.quantizer import fake_quantize


def plain(x, lower, upper, bits, zero_point):
    """`fake_quantize` with rounding straight through, by autograd."""
    step, base = grid_of(lower, upper, bits, zero_point)
    if zero_point == "integer":
        step = (upper.clamp_min(0) - lower.clamp_max(0)) / (2**bits - 1)
        lowest = lower.clamp_max(0) / step
        base = step * (lowest + (lowest.round() - lowest).detach())
    code = (x - base) / step
    rounded = code + (code.round() - code).detach()
    return rounded.clamp(0, 2**bits - 1) * step + base


def leaves(*shapes):
    torch.manual_seed(0)
    return [torch.randn(shape, dtype=torch.float64).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("zero_point", ["integer", "real"])
def test_every_argument_of_a_quantized_convolution_has_the_gradient_of_the_plain_formula(zero_point):
    """Values beyond both boundaries and exactly at them, padding, groups."""
    x, weight, bias, shift = leaves((2, 6, 9, 7), (4, 3, 3, 3), (4,), (1, 6, 1, 1))
    scale = (torch.rand(1, 6, 1, 1, dtype=torch.float64) + 0.5).requires_grad_()
    lower, upper = (torch.tensor(b, dtype=torch.float64, requires_grad=True) for b in (-1.2, 1.7))
    with torch.no_grad():
        for i, bound in enumerate((lower, upper)):
            x[0, 0, i] = bound * scale[0, 0] + shift[0, 0]
    seen = (F.pad(x, (2, 2, 1, 1)) - shift) / scale
    assert ((seen < lower).any() and (seen > upper).any()) and shift.abs().min() > 0
    expected = F.conv2d(plain(seen, lower, upper, 4, zero_point), weight, bias, (2, 1), 0, 1, 2)
    conv = Convolution((2, 1), (1, 2), (1, 1), 2)
    ours = QuantizedOperation.apply(x, weight, bias, scale, shift, lower, upper, Grid(4, zero_point), conv)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    inputs, grad = (x, weight, bias, scale, shift, lower, upper), torch.randn_like(ours)
    found, wanted = (torch.autograd.grad(y, inputs, grad, retain_graph=True) for y in (ours, expected))
    for a, b in zip(found, wanted):
        assert b.abs().max() > 1e-2 and relative(a, b) < 1e-10


@pytest.mark.parametrize("zero_point", ["integer", "real"])
def test_every_argument_of_a_weights_quantization_has_the_gradient_of_the_plain_formula(zero_point):
    weight, scale = leaves((5, 12), (1, 12))
    lower = (-torch.rand(5, 1, dtype=torch.float64) - 0.1).requires_grad_()
    upper = (torch.rand(5, 1, dtype=torch.float64) + 0.1).requires_grad_()
    ours = FakeQuantize.apply(weight, scale, None, lower, upper, Grid(3, zero_point, multiply=True))
    expected = plain(weight * scale, lower, upper, 3, zero_point)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    inputs, grad = (weight, scale, lower, upper), torch.randn_like(ours)
    found, wanted = (torch.autograd.grad(y, inputs, grad) for y in (ours, expected))
    assert all(relative(a, b) < 1e-10 for a, b in zip(found, wanted))


# -- what is kept -----------------------------------------------------------------------------------------------------


def anew(layer, x):
    """The output of a copy, which keeps nothing."""
    return copy.deepcopy(layer)(x)


def past_the_version_counter(weight):
    """Writes through `.data`: scaled, negated, one value, and the order of rows and columns turned round."""
    data, rows = weight.data, weight.data.flatten(1)
    return [
        lambda: data.mul_(1.01), lambda: data.neg_(), lambda: rows[0, :1].add_(1.0),
        lambda: rows.copy_(rows.flip(0)), lambda: rows.copy_(rows.flip(1)),
    ]  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("case", ["linear", "3x3 padded", "groups"])
def test_a_kept_weight_is_never_stale(case):
    layer, x = filled(case, weight_bits=4, act_bits=6)
    trim = layer.weight_quantizers[0].trim

    def replaced():
        trim.data = torch.full_like(trim, 0.3)

    def requantized():
        layer.weight_quantizers[0].bits = 2

    changes = [
        lambda: trim.add_(0.2), lambda: trim.data.view(-1)[0].add_(0.2), replaced, requantized,
        lambda: layer.transform.log_scale.data.mul_(0.5), lambda: layer.transform.reach.mul_(2.0),
        lambda: layer.act_quantizers[0].trim.data.add_(0.2),
        lambda: layer.range.set(layer.range.low * 2, layer.range.high),
        lambda: layer.layer.weight.mul_(1.5), lambda: layer.layer.bias.add_(1.0), lambda: disturb(layer.transform, 5),
        lambda: setattr(layer, "setting", replace(layer.setting, act_bits=3)),
        *past_the_version_counter(layer.layer.weight),
    ]  # fmt: skip
    for change in changes:
        before = layer(x)
        assert torch.equal(layer(x), before)
        change()
        assert torch.equal(layer(x), anew(layer, x)) and not torch.equal(layer(x), before)
    double = layer.double()(x.double())
    assert double.dtype == torch.float64 and torch.equal(double, anew(layer, x.double()))


@torch.no_grad()
def test_a_weight_that_is_turned_round_in_its_memory_is_another_one():
    layer, x = filled("linear")
    square = QuantLayer(torch.nn.Linear(x.shape[-1], x.shape[-1]), "square", layer.setting)
    LET().fill(square)
    with mode(square, "observe"):
        square(x)
    before, weight = square(x), square.layer.weight
    weight.data = weight.data.t()
    assert torch.equal(square(x), anew(square, x)) and not torch.equal(square(x), before)


def test_a_weight_is_kept_where_nothing_of_it_is_trained_and_not_otherwise():
    layer, x = filled("3x3 padded")
    layer.requires_grad_(False)
    layer.act_quantizers.requires_grad_(True)
    first = layer._weight_and_bias()
    layer(x).sum().backward()
    assert layer._weight_and_bias() is first and layer.act_quantizers[0].trim.grad.any()
    layer.weight_quantizers.requires_grad_(True)
    layer(x).sum().backward()
    assert layer.weight_quantizers[0].trim.grad.any()


def test_half_precision_of_a_region_reaches_operation_and_gradients():
    for case in ("linear", "3x3 padded"):
        layer, x = filled(case)
        layer.layer.requires_grad_(False)
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(x)
            y.sum().backward()
        assert relative(y, layer(x)) < 0.02
        assert all(torch.isfinite(p.grad).all() for n, p in layer.named_parameters() if not n.startswith("layer."))


def test_many_pairs_of_bounds_on_one_tensor_are_each_of_them_alone_gradients_too():
    x = torch.linspace(-2, 3, 41, dtype=torch.float64).requires_grad_()
    lower = torch.tensor([[-1.0], [-1.5]], dtype=torch.float64).requires_grad_()
    upper = torch.tensor([[2.0], [1.0]], dtype=torch.float64).requires_grad_()
    both = fake_quantize(x, lower, upper, 3)
    alone = torch.stack([fake_quantize(x, lower[i, 0], upper[i, 0], 3) for i in (0, 1)])
    assert torch.equal(both, alone)
    weights = torch.rand_like(both)
    ours, theirs = (torch.autograd.grad((y * weights).sum(), (x, lower, upper)) for y in (both, alone))
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("shape", "dim"), [
    ((2, 3, 4, 6), 1), ((1, 96, 8, 8), 1), ((3, 5, 7, 3), 1), ((2, 3, 4, 6), -1), ((2, 3, 4, 6), 0), ((4, 9, 5), -1),
    ((7, 5), 1), ((5,), -1),
])  # fmt: skip
def test_extremes_are_those_of_all_values_of_a_channel_however_they_lie_in_memory(shape, dim):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    channels = x.movedim(dim, 0).flatten(1) if x.ndim > 1 else x[:, None]
    last = [x.contiguous(memory_format=torch.channels_last)] if x.ndim == 4 else []
    for same in (x, *last):
        low, high = extremes(same, dim)
        assert torch.equal(low, channels.amin(1)) and torch.equal(high, channels.amax(1))
