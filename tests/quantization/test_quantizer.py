"""LBQ: the grid it rounds to, and gradients against finite differences of the smooth part."""

from itertools import pairwise

import pytest
import torch

from passionsr_lab.quantization.quantizer import BoundaryQuantizer, fake_quantize, grid_of

ZERO_POINTS = ("integer", "real")
RANGES = [(-1.0, 1.0), (-0.3, 2.1), (-5.0, 0.01), (0.0, 1.0), (-2.0, 0.0), (-1e-3, 2e-3), (-700.0, 900.0)]


def sample(low, high, n=4000, over=0.0, seed=0):
    """n float32 values over [low, high], and `over` of its width beyond on both sides."""
    width = high - low
    g = torch.Generator().manual_seed(seed)
    return torch.rand(n, generator=g) * width * (1 + 2 * over) + low - over * width


def quantized(x, low, high, bits, zero_point="integer"):
    return fake_quantize(x, torch.tensor(low), torch.tensor(high), bits, zero_point)


# -- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zero_point", ZERO_POINTS)
@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize(("low", "high"), RANGES)
def test_quantizing_twice_changes_nothing(low, high, bits, zero_point):
    once = quantized(sample(low, high, over=0.2), low, high, bits, zero_point)
    assert torch.equal(quantized(once, low, high, bits, zero_point), once)
    assert len(once.unique()) == 2**bits


@pytest.mark.parametrize("zero_point", ZERO_POINTS)
@pytest.mark.parametrize(("low", "high"), RANGES)
def test_the_error_falls_with_every_bit_down_to_half_a_step(low, high, zero_point):
    x, errors = sample(low, high), []
    for bits in range(2, 9):
        error = (quantized(x, low, high, bits, zero_point) - x).abs()
        step = (high - low) / (2**bits - 1)
        assert error.max() <= step * (1.0001 if zero_point == "integer" else 0.5001)  # 0's place costs half a step
        errors.append(error.square().mean().item())
    assert all(b < 0.5 * a for a, b in pairwise(errors))


@pytest.mark.parametrize("zero_point", ZERO_POINTS)
def test_many_bits_approach_identity(zero_point):
    x = sample(-3, 5)
    assert (quantized(x, -3.0, 5.0, 16, zero_point) - x).abs().max() < 8 / 2**15


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize(("low", "high"), [*RANGES, (0.4, 3.0), (-3.0, -0.2), (-0.317, 0.9), (-1.0, 1e-4)])
def test_an_integer_zero_point_has_zero_exactly_on_the_grid(low, high, bits):
    step, base = grid_of(torch.tensor(low), torch.tensor(high), bits)
    zero = -round((base / step).item())
    assert 0 <= zero <= 2**bits - 1 and base == -step * zero
    assert quantized(torch.zeros(1), low, high, bits).item() == 0
    points = base + step * torch.arange(2**bits)
    assert points[zero] == 0
    assert points[0] <= min(low, 0) + 0.5001 * step and points[-1] >= max(high, 0) - 0.5001 * step


def test_a_real_zero_point_may_miss_zero():
    assert quantized(torch.zeros(1), -0.317, 0.9, 3, "real").item() != 0


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(("low", "high"), [*RANGES, (0.4, 3.0), (-3.0, -0.2)])
def test_a_real_zero_point_is_equation_3(low, high, bits):
    x = sample(low, high, over=0.3).double()
    levels = 2**bits - 1
    clipped = x.clamp(low, high)
    expected = ((clipped - low) / (high - low) * levels).round() / levels * (high - low) + low
    ours = fake_quantize(x, *(torch.tensor(b, dtype=torch.float64) for b in (low, high)), bits, "real")
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    assert ours.min().item() == pytest.approx(low) and ours.max().item() == pytest.approx(high)


@pytest.mark.parametrize("zero_point", ZERO_POINTS)
@pytest.mark.parametrize("value", [0.0, 0.7, -2.5])
def test_a_constant_channel_gives_no_nan(value, zero_point):
    x = torch.full((3, 4), value, requires_grad=True)
    low, high = (torch.full((3, 1), value, requires_grad=True) for _ in range(2))
    quantizer = BoundaryQuantizer(4, (3, 1), zero_point)
    out = quantizer(x, low, high)
    out.sum().backward()
    torch.testing.assert_close(out, x, rtol=1e-5, atol=1e-6)
    for t in (x, low, high, quantizer.trim):
        assert torch.isfinite(t.grad).all()


def test_a_constant_channel_beside_others_leaves_them_as_they_are():
    x = torch.stack([torch.zeros(50), torch.linspace(-1, 1, 50)])
    low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
    out = fake_quantize(x, low, high, 4)
    assert torch.equal(out[0], x[0])
    assert torch.equal(out[1], fake_quantize(x[1], low[1], high[1], 4))


def test_bounds_per_channel_are_quantizers_of_their_own():
    weight = torch.randn(5, 3, 2, 2) * torch.tensor([0.01, 1, 3, 10, 100]).view(5, 1, 1, 1)
    low, high = weight.amin((1, 2, 3), True), weight.amax((1, 2, 3), True)
    whole = BoundaryQuantizer(4, (5, 1, 1, 1))(weight, low, high)
    for i in range(5):
        assert torch.equal(whole[i], fake_quantize(weight[i], low[i], high[i], 4))


def test_the_input_and_its_type_are_kept():
    x = sample(-1, 1).double()
    before = x.clone()
    out = fake_quantize(x, torch.tensor(-1.0).double(), torch.tensor(1.0).double(), 4)
    assert torch.equal(x, before) and out.dtype == torch.float64 and out.shape == x.shape


# -- boundaries -------------------------------------------------------------------------------------------------------


def test_boundaries_start_at_minimum_and_maximum_and_move_with_the_range():
    quantizer = BoundaryQuantizer(4)
    assert [b.item() for b in quantizer.bounds(torch.tensor(-2.0), torch.tensor(6.0))] == [-2, 6]
    quantizer.trim.data = torch.tensor([0.25, 0.5])
    assert [b.item() for b in quantizer.bounds(torch.tensor(-2.0), torch.tensor(6.0))] == [0, 2]
    assert [b.item() for b in quantizer.bounds(torch.tensor(-20.0), torch.tensor(60.0))] == [0, 20]


def test_boundaries_never_cross():
    quantizer = BoundaryQuantizer(4, zero_point="real")
    quantizer.trim.data = torch.tensor([0.9, 0.9])
    lower, upper = quantizer.bounds(torch.tensor(-1.0), torch.tensor(1.0))
    assert upper > lower
    assert torch.isfinite(quantizer(sample(-1, 1), torch.tensor(-1.0), torch.tensor(1.0))).all()


@pytest.mark.parametrize("bits", [0, 1, 17, -3])
def test_impossible_widths_are_refused(bits):
    with pytest.raises(ValueError, match=f"2 to 16 bits, not {bits}"):
        BoundaryQuantizer(bits)


def test_unknown_zero_points_are_refused():
    with pytest.raises(ValueError, match="'middle'"):
        BoundaryQuantizer(4, zero_point="middle")


# -- gradients --------------------------------------------------------------------------------------------------------


def straight_through(x):
    return x + (x.round() - x).detach()


def composed(x, lower, upper, bits, zero_point):
    """The quantizer from PyTorch's own differentiable pieces, rounding as the identity."""
    if zero_point == "integer":
        lower, upper = lower.clamp_max(0), upper.clamp_min(0)
    levels = 2**bits - 1
    step = (upper - lower) / levels
    base = step * straight_through(lower / step) if zero_point == "integer" else lower
    return base + step * straight_through((x - base) / step).clamp(0, levels)


@pytest.fixture
def problem():
    """x (4, 3, 5) in float64, partly beyond bounds of shape (4, 1, 1), and weights that make a scalar of the output."""
    g = torch.Generator().manual_seed(3)
    x = torch.randn(4, 3, 5, generator=g, dtype=torch.float64) * 1.5
    lower = -torch.rand(4, 1, 1, generator=g, dtype=torch.float64) - 0.3
    upper = torch.rand(4, 1, 1, generator=g, dtype=torch.float64) + 0.3
    weights = torch.randn(4, 3, 5, generator=g, dtype=torch.float64)
    assert ((x < lower) | (x > upper)).double().mean() > 0.2
    return x, lower, upper, weights


@pytest.mark.parametrize("zero_point", ZERO_POINTS)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_gradients_are_those_of_the_composition_with_straight_through_rounding(problem, bits, zero_point):
    *tensors, weights = problem
    gradients = []
    for function in (fake_quantize, composed):
        inputs = [t.clone().requires_grad_() for t in tensors]
        out = function(*inputs, bits, zero_point)
        gradients.append((out, *torch.autograd.grad((out * weights).sum(), inputs)))
    for ours, expected in zip(*gradients):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("zero_point", ZERO_POINTS)
def test_one_bound_for_the_whole_tensor_sums_its_gradient(problem, zero_point):
    x, _, _, weights = problem
    gradients = []
    for function in (fake_quantize, composed):
        bounds = [torch.tensor(b, dtype=torch.float64, requires_grad=True) for b in (-0.8, 0.7)]
        gradients.append(torch.autograd.grad((function(x, *bounds, 4, zero_point) * weights).sum(), bounds))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-10, atol=1e-12)


def test_beyond_the_bounds_eq_3_is_smooth_and_its_finite_differences_agree(problem, slopes):
    x, lower, upper, weights = problem
    outside = (x < lower - 0.5) | (x > upper + 0.5)
    weights = weights * outside
    bounds = [lower.clone().requires_grad_(), upper.clone().requires_grad_()]

    def value():
        return (fake_quantize(x, *bounds, 3, "real") * weights).sum()

    value().backward()
    for bound in bounds:
        indices, expected = slopes(value, bound)
        assert expected.abs().max() > 0.1
        torch.testing.assert_close(bound.grad.flatten()[indices], expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("zero_point", ZERO_POINTS)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_trims_and_ranges_have_the_gradient_of_the_smooth_part(problem, frozen, slopes, bits, zero_point):
    x, low, high, weights = problem
    holder = torch.nn.ModuleList([BoundaryQuantizer(bits, (4, 1, 1), zero_point).double()])
    holder[0].trim.data = 0.1 * torch.rand(2, 4, 1, 1, dtype=torch.float64)
    smooth = frozen(holder)
    low, high = low.clone().requires_grad_(), high.clone().requires_grad_()
    out = holder[0](x, low, high)
    torch.testing.assert_close(smooth[0](x, low, high), out, rtol=1e-12, atol=1e-12)
    (out * weights).sum().backward()

    def value():
        return (smooth[0](x, low, high) * weights).sum()

    for ours, theirs in ((low, low), (high, high), (holder[0].trim, smooth[0].quantizer.trim)):
        indices, expected = slopes(value, theirs)
        assert expected.abs().max() > 1e-2
        torch.testing.assert_close(ours.grad.flatten()[indices], expected, rtol=1e-6, atol=1e-7)


def test_a_bound_that_is_held_at_zero_gets_no_gradient():
    """With an integer zero point a lower bound above 0 is held at 0."""
    lower = torch.tensor(0.2, requires_grad=True)
    upper = torch.tensor(1.0, requires_grad=True)
    fake_quantize(torch.tensor([-1.0, 0.5, 3.0]), lower, upper, 2).sum().backward()
    assert lower.grad == 0 and upper.grad > 0


def test_the_gradient_passes_inside_and_stops_outside():
    x = torch.tensor([-2.0, -0.9, 0.3, 0.9, 2.0], requires_grad=True)
    fake_quantize(x, torch.tensor(-1.0), torch.tensor(1.0), 3).sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 1, 0]
