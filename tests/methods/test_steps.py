"""Learned steps: LSQ's gradients, the search, samples, percentiles, and what the starts of LSQ and Percentile are."""

import pytest
import torch
from filled import filled
from made import refused
from torch import nn

from passionsr_lab.calibration.samples import Reservoir
from passionsr_lab.calibration.steps import OffsetQuantizer, StepQuantizer, percentiles, searched
from passionsr_lab.methods.lsq import LSQ
from passionsr_lab.methods.percentile import Percentile


def test_the_gradient_of_a_step_is_that_of_lsq():
    """Eq. 3: round(v/s) - v/s inside, -Q_N and Q_P outside; straight through for v inside, none outside."""
    quantizer, step = StepQuantizer(3), 0.3
    quantizer.set(torch.tensor(step), 4)
    for value in (-5.0, -1.1, -0.4, 0.07, 0.5, 0.85, 3.0):
        v = torch.tensor(value, requires_grad=True)
        quantizer.log_step.grad = None
        quantizer(v, None, None).backward()
        code = value / step
        expected = min(max(round(code), -4), 3) - (code if -4 <= round(code) <= 3 else 0)
        assert quantizer.log_step.grad.item() / step == pytest.approx(expected, abs=1e-4), value
        assert v.grad.item() == (-4.5 < code < 3.5)


def test_an_offset_moves_the_grid_and_learns():
    torch.manual_seed(0)
    quantizer, x = OffsetQuantizer(4), nn.functional.silu(3 * torch.randn(4096)) + 0.4
    quantizer.set(x.abs().max() / 7, 8)
    optimizer, errors = torch.optim.Adam(quantizer.parameters(), 0.02), []
    for _ in range(80):
        errors.append((quantizer(x, None, None) - x).square().mean())
        optimizer.zero_grad()
        errors[-1].backward()
        optimizer.step()
    assert errors[-1] < 0.4 * errors[0] and quantizer.offset.item() < -0.2


def test_the_search_is_never_worse_than_the_extremes_and_clips_outliers():
    torch.manual_seed(0)
    weight = torch.randn(4, 512)
    weight[:, 0] = torch.tensor([1.0, 4.0, 12.0, 40.0])
    for bits, symmetric in ((4, False), (4, True), (8, False)):
        quantizer = StepQuantizer(bits, (4, 1))

        def error(bounds, quantizer=quantizer):
            quantizer.set_bounds(*bounds)
            return (quantizer(weight, None, None) - weight).square().mean(1)

        found = searched(weight, quantizer, 2.0, symmetric)
        low, high = weight.aminmax(dim=1, keepdim=True)
        reach = torch.maximum(-low, high)
        low, high = (-reach, reach) if symmetric else (low, high)
        assert (error(found) <= error((low, high)) * 1.0001).all()
        assert not symmetric or torch.equal(found[0], -found[1])
        if bits == 4:
            assert found[1][1] < 4 and error(found)[1] < 0.9 * error((low, high))[1]
    whole = StepQuantizer(8)
    assert [t.shape for t in searched(weight, whole)] == [(), ()]
    assert searched(weight.abs(), whole, symmetric=True)[0] >= 0, "what is never negative has an unsigned grid"


def test_a_sample_holds_every_value_with_the_same_chance_and_each_part_apart():
    sample = Reservoir(300, (1, 2))
    for i in range(10):
        sample(torch.full((1, 3, 40 * (i + 1), 5), float(i)) * torch.tensor([1.0, -1, -1]).view(1, 3, 1, 1), 1)
    first, second = sample.values
    assert len(first) == len(second) == 300 and (first >= 0).all() and (second <= 0).all()
    expected = sum(i * (i + 1) for i in range(10)) / 55
    assert first.mean().item() == pytest.approx(expected, abs=0.5)
    few = Reservoir(300)
    few(torch.arange(7.0), 0)
    assert few.values[0].tolist() == list(range(7))


def test_lsq_begins_at_its_paper_s_step_or_at_the_searched_one():
    layer, x = filled("3x3", LSQ(begin="mean"), weight_bits=4, act_bits=4)
    LSQ(begin="mean").start(layer)
    for quantizer in (*layer.act_quantizers, *layer.weight_quantizers):
        assert quantizer.origin.unique().tolist() == [8.0] and not quantizer.learned_offset
    weight = layer.layer.weight
    expected = 2 * weight.abs().mean((1, 2, 3)) / 7**0.5
    assert torch.allclose(layer.weight_quantizers[0].step.flatten(), expected)
    assert torch.allclose(layer.act_quantizers[0].step, 2 * x.abs().mean() / 7**0.5)
    for bad in ({"begin": "nowhere"}, {"clipped": 1.0}):
        with refused("LSQ begins at one of percentile, search, mean", *bad.values()):
            LSQ(**bad)


def test_percentiles_are_those_of_the_rows_and_of_the_sample():
    rows, rowwise, whole = (
        torch.arange(1001.0)[torch.randperm(1001)].expand(2, -1),
        StepQuantizer(8, (2, 1)),
        StepQuantizer(8),
    )
    assert [t.flatten().tolist() for t in percentiles(rows, rowwise, 0.99)] == [[10, 10], [990, 990]]
    assert [t.flatten().tolist() for t in percentiles(rows, rowwise, 1.0)] == [[0, 0], [1000, 1000]]
    assert [t.item() for t in percentiles(rows[0] - 100, whole, 0.99, symmetric=True)] == [-890, 890]
    for bad in ({"activations": 1.0}, {"activations": 0.4}, {"weights": 1.1}):
        with refused("shares above 0.5", *bad.values()):
            Percentile(**bad)
    slots = Percentile(activations=0.9)
    layer, x = filled("linear of maps", slots)
    slots.start(layer)
    low, high = layer.act_quantizers[0].bounds(None, None)
    inside = ((x >= low) & (x <= high)).float().mean().item()
    assert 0.7 < inside < 0.9
    assert torch.allclose(layer.quantized_weight(), layer.layer.weight, atol=2e-3), "weights keep their extremes"
