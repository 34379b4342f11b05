"""SVDQuant: the branch is the best of its rank, its fit in turns pays, and the smoothing is the searched one."""

import pytest
import torch
from filled import LAYERS, filled, relative

from passionsr_lab.calibration.lowrank import LowRank, low_rank
from passionsr_lab.calibration.searched import output_error, refine, smooth
from passionsr_lab.methods.svdquant import SVDQuant
from passionsr_lab.quantization.layer import mode


@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (5, 5)])
def test_the_branch_is_the_nearest_matrix_of_its_rank(shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    for rank in (0, 1, 3, min(shape)):
        up, down = low_rank(weight, rank)
        assert (up.shape, down.shape) == ((shape[0], rank), (rank, shape[1]))
        assert torch.allclose((up @ down).float(), u[:, :rank] * s[:rank] @ v[:rank], atol=1e-5)


@pytest.mark.parametrize("case", [case for case in LAYERS if case != "linear of a vector"])
def test_at_16_bits_every_kind_of_layer_is_itself_with_its_branch(case):
    slots = SVDQuant()
    layer, x = filled(case, slots, weight_bits=16, act_bits=16)
    slots.start(layer)
    with torch.no_grad():
        assert relative(layer(x), layer.layer(x)) < 1e-3
    assert (layer.branch is None) == (case in ("groups", "depthwise"))


def outlying(slots, **setting):
    """A 3x3 layer whose input and weight each have a wide channel, before its start."""
    layer, x = filled("3x3 padded", slots, weight_bits=4, act_bits=4, **setting)
    x[:, 1] *= 30
    with torch.no_grad():
        layer.layer.weight[:, 2] *= 8
    with mode(layer, "observe"):
        layer(x)
    return layer, x


def test_the_smoothing_has_the_least_error_of_the_exponents_tried_and_beats_none():
    slots = SVDQuant(rounds=0)
    layer, _ = outlying(slots)
    inputs = list(layer.range.watch.kept)
    targets = [layer.operate(x, layer.layer.weight, None) for x in inputs]
    slots.start(layer)
    found, chosen = output_error(layer, inputs, targets), layer.transform.scale.clone()
    errors = [output_error(smooth(layer, i / 10), inputs, targets) for i in range(11)]
    assert found == pytest.approx(min(errors)) and found < 0.7 * errors[0]
    assert layer.range.watch is None and chosen.argmax() == 1


def test_fitting_in_turns_lowers_the_weight_s_error_and_never_raises_it():
    slots = SVDQuant(rounds=0, share=0.3)
    layer, _ = outlying(slots)
    slots.start(layer)
    before, errors = layer.quantized_weight() + layer.branch.weight(), refine(layer, 20)
    after, weight = layer.quantized_weight() + layer.branch.weight(), layer.transformed_weight()
    assert len(errors) > 2 and errors == sorted(errors, reverse=True)
    assert (after - weight).square().sum() < (before - weight).square().sum()


def test_the_rank_is_a_share_of_the_width_or_the_recipe_s():
    for setting, rank in (({}, 2), ({"rank": 4}, 4), ({"rank": 0}, 0), ({"rank": 99}, 5)):
        layer, _ = filled("3x3", SVDQuant(share=0.4), **setting)
        assert layer.branch.up.shape == (5, rank) and layer.branch.down.shape == (rank, 54)
    assert all(p.dtype == torch.float16 for p in LowRank(layer, 2).parameters())


def test_the_branch_stays_beside_the_integers():
    slots = SVDQuant(share=0.3)
    layer, x = outlying(slots)
    slots.start(layer)
    frozen = layer.frozen()
    half, seen = frozen.halves[0], layer.transformed_input(x)
    weight = (half.weight_codes + half.weight_zero) * half.weight_step
    with torch.no_grad():
        out = layer.operate(layer.quantized(seen), weight, frozen.bias) + frozen.branch(seen)
        assert relative(out, layer(x)) < 1e-5
