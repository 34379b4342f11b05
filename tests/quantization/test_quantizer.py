"""LBQ: the grid it rounds to, and gradients against finite differences of the smooth part."""

import pytest
import torch
from made import refused

from passionsr_lab.quantization.quantizer import BoundaryQuantizer, fake_quantize, grid_of

ZERO_POINTS = ("integer", "real")
# One range a row: on both sides of zero, beside it, touching it, tiny, huge, and wholly on one side.
LOW, HIGH = torch.tensor([
    (-1.0, 1.0), (-0.3, 2.1), (-5.0, 0.01), (0.0, 1.0), (-2.0, 0.0), (-1e-3, 2e-3), (-700.0, 900.0), (-0.317, 0.9),
    (0.4, 3.0), (-3.0, -0.2),
]).T[..., None]  # fmt: skip
AROUND = slice(0, 8)  # the ranges that hold zero
each_zero_point = pytest.mark.parametrize("zero_point", ZERO_POINTS)


def sample(over=0.0, n=4000):
    """(ranges, n) values over each range, and `over` of its width beyond on both sides."""
    return (
        torch.rand(n, generator=torch.Generator().manual_seed(0)) * (HIGH - LOW) * (1 + 2 * over)
        + LOW
        - over * (HIGH - LOW)
    )


# -- values -----------------------------------------------------------------------------------------------------------


@each_zero_point
def test_there_are_as_many_levels_as_bits_say_and_quantizing_twice_changes_nothing(zero_point):
    x = sample(0.2)[AROUND]
    for bits in range(2, 9):
        once = fake_quantize(x, LOW[AROUND], HIGH[AROUND], bits, zero_point)
        assert torch.equal(fake_quantize(once, LOW[AROUND], HIGH[AROUND], bits, zero_point), once)
        assert [len(row.unique()) for row in once] == [2**bits] * len(x)


@each_zero_point
def test_the_error_falls_with_every_bit_down_to_half_a_step_and_to_nothing(zero_point):
    x, low, high = sample()[AROUND], LOW[AROUND], HIGH[AROUND]
    before = torch.full((len(x),), torch.inf)
    for bits in (*range(2, 9), 16):
        error = (fake_quantize(x, low, high, bits, zero_point) - x).abs()
        step = (high - low) / (2**bits - 1)
        assert (error <= step * (1.0001 if zero_point == "integer" else 0.5001) + 1e-6 * (high - low)).all()
        assert (error.square().mean(1) < 0.5 * before).all()
        before = error.square().mean(1)
    assert (before.sqrt() < 1e-5 * (high - low).squeeze()).all()


def test_an_integer_zero_point_has_zero_exactly_on_the_grid_and_a_real_one_may_not():
    for bits in (2, 3, 4, 6, 8):
        step, base = grid_of(LOW, HIGH, bits)
        zero = -(base / step).round()
        assert ((zero >= 0) & (zero < 2**bits)).all() and torch.equal(base, -step * zero)
        assert not fake_quantize(torch.zeros_like(LOW), LOW, HIGH, bits).any()
        top = base + step * (2**bits - 1)
        assert (base <= LOW.clamp_max(0) + 0.5001 * step).all() and (top >= HIGH.clamp_min(0) - 0.5001 * step).all()
    assert fake_quantize(torch.zeros(1), LOW[7], HIGH[7], 3, "real").item() != 0


def test_a_real_zero_point_is_equation_3():
    x, low, high = sample(0.3).double(), LOW.double(), HIGH.double()
    for bits in (2, 4, 8):
        levels = 2**bits - 1
        expected = ((x.clamp(low, high) - low) / (high - low) * levels).round() / levels * (high - low) + low
        torch.testing.assert_close(fake_quantize(x, low, high, bits, "real"), expected, rtol=1e-12, atol=1e-12)


@each_zero_point
def test_constant_channels_give_no_nan_and_leave_others_alone(zero_point):
    x = torch.tensor([0.0, 0.7, -2.5, 0.0]).view(4, 1).repeat(1, 50)
    x[3] = torch.linspace(-1, 1, 50)
    low, high = (t.clone().requires_grad_() for t in (x.amin(1, True), x.amax(1, True)))
    x.requires_grad_()
    quantizer = BoundaryQuantizer(4, (4, 1), zero_point)
    out = quantizer(x, low, high)
    out.sum().backward()
    torch.testing.assert_close(out[:3], x[:3], rtol=1e-5, atol=1e-6)
    assert torch.equal(out[3], fake_quantize(x[3], low[3], high[3], 4, zero_point))
    assert all(torch.isfinite(t.grad).all() for t in (x, low, high, quantizer.trim))


def test_bounds_per_channel_are_quantizers_of_their_own_and_the_input_and_its_type_are_kept():
    weight = (torch.randn(5, 3, 2, 2) * torch.tensor([0.01, 1, 3, 10, 100]).view(5, 1, 1, 1)).double()
    low, high, before = weight.amin((1, 2, 3), True), weight.amax((1, 2, 3), True), weight.clone()
    whole = BoundaryQuantizer(4, (5, 1, 1, 1)).double()(weight, low, high)
    assert whole.dtype == torch.float64 and torch.equal(weight, before)
    for i in range(5):
        assert torch.equal(whole[i], fake_quantize(weight[i], low[i], high[i], 4))


# -- boundaries -------------------------------------------------------------------------------------------------------


def test_boundaries_start_at_minimum_and_maximum_move_with_the_range_and_never_cross():
    quantizer, low, high = BoundaryQuantizer(4, zero_point="real"), torch.tensor([-2.0, -20.0]), torch.tensor([6.0, 60])
    assert [b.tolist() for b in quantizer.bounds(low, high)] == [[-2, -20], [6, 60]]
    quantizer.trim.data = torch.tensor([0.25, 0.5])
    assert [b.tolist() for b in quantizer.bounds(low, high)] == [[0, 0], [2, 20]]
    quantizer.trim.data = torch.tensor([0.9, 0.9])
    lower, upper = quantizer.bounds(low, high)
    assert (upper > lower).all() and torch.isfinite(quantizer(torch.randn(5, 2), low, high)).all()


def test_impossible_widths_and_zero_points_are_refused():
    for bits in (0, 1, 17, -3):
        with refused("2 to 16 bits", bits):
            BoundaryQuantizer(bits)
    with refused("'middle'"):
        BoundaryQuantizer(4, zero_point="middle")


# -- gradients --------------------------------------------------------------------------------------------------------


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


@each_zero_point
def test_both_boundaries_and_the_range_have_the_gradient_of_the_smooth_part(problem, frozen, slopes, zero_point):
    x, low, high, weights = problem
    for bits in (2, 4, 8):
        holder = torch.nn.ModuleList([BoundaryQuantizer(bits, (4, 1, 1), zero_point).double()])
        holder[0].trim.data = 0.1 * torch.rand(2, 4, 1, 1, dtype=torch.float64)
        smooth = frozen(holder)
        low, high = low.detach().clone().requires_grad_(), high.detach().clone().requires_grad_()
        out = holder[0](x, low, high)
        torch.testing.assert_close(smooth[0](x, low, high), out, rtol=1e-12, atol=1e-12)
        (out * weights).sum().backward()
        for ours, theirs in ((low, low), (high, high), (holder[0].trim, smooth[0].quantizer.trim)):
            indices, expected = slopes(lambda: (smooth[0](x, low, high) * weights).sum(), theirs)  # noqa: B023
            assert expected.abs().max() > 1e-2
            torch.testing.assert_close(ours.grad.flatten()[indices], expected, rtol=1e-6, atol=1e-7)


def test_the_gradient_passes_inside_and_stops_outside():
    x = torch.tensor([-2.0, -0.9, 0.3, 0.9, 2.0], requires_grad=True)
    fake_quantize(x, torch.tensor(-1.0), torch.tensor(1.0), 3).sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 1, 0]


def test_a_boundary_that_is_held_at_zero_is_drawn_back_and_never_pushed_further():
    x, low, high = torch.tensor([-1.0, 0.5, 3.0]), torch.tensor(-1.0), torch.tensor(3.0)
    for side, trim in ((0, [0.3, 0.0]), (1, [0.0, 0.8])):  # the lower boundary above zero, then the upper one below
        quantizer = BoundaryQuantizer(2)
        quantizer.trim.data = torch.tensor(trim)
        assert quantizer.bounds(low, high)[side] == 0
        found = []
        for pull in (1, -1):
            quantizer.trim.grad = None
            (pull * quantizer(x, low, high)).sum().backward()
            found.append(quantizer.trim.grad[side].item())
        assert min(found) == 0 < max(found), "descent moves it back only"


def test_a_boundary_that_training_pushed_over_zero_comes_back():
    x, quantizer = torch.linspace(-1, 1, 201), BoundaryQuantizer(4)
    quantizer.trim.data = torch.tensor([0.7, 0.0])  # the lower boundary at 0.4
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        (quantizer(x, x.min(), x.max()) - x).square().mean().backward()
        optimizer.step()
    assert quantizer.bounds(x.min(), x.max())[0] < -0.8
