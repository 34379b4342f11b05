"""QuantVSR: rotations are exact, ranks follow complexity under a budget, the bounds follow the residual."""

import pytest
import torch
from filled import LAYERS, filled, relative, same
from made import refused

import passionsr_lab as lab
from passionsr_lab.analysis.layers import branch_ranks
from passionsr_lab.calibration.loop import Calibration
from passionsr_lab.calibration.rotation import Rotation, hadamard
from passionsr_lab.methods.quantvsr import METHOD, Complexity, DynamicQuantizer, QuantVSR, by_energy, by_vote
from passionsr_lab.quantization.layer import QuantLayer


def test_hadamard_matrices_are_orthogonal_and_of_one_magnitude():
    found = [n for n in range(1, 65) if hadamard(n) is not None]
    assert {1, 2, 4, 8, 12, 16, 20, 24, 32, 40, 44, 48, 60, 64} <= {*found} and not {3, 5, 6, 10, 14, 36} & {*found}
    for n in (*found, 80, 96, 240, 320):
        h = hadamard(n)
        assert torch.allclose(h @ h.T, torch.eye(n), atol=1e-5) and torch.allclose(h.abs(), torch.tensor(n**-0.5)), n


def test_a_rotation_changes_no_product_and_spreads_an_outlier():
    layer, x = filled("3x3 padded", QuantVSR())
    rotation = Rotation(layer, (4, 2))
    seen, weight = rotation(x, 1), rotation.of_weight(layer.layer.weight)
    expected = torch.nn.functional.conv2d(x, layer.layer.weight, padding=1)
    assert relative(torch.nn.functional.conv2d(seen, weight, padding=1), expected) < 1e-5
    assert torch.equal(Rotation(layer, (4, 2)).matrices[0], rotation.matrices[0]), "its signs are the layer's own"
    outlier = torch.zeros(1, 6, 2, 2)
    outlier[:, 1] = 8.0
    spread = rotation(outlier, 1)
    assert torch.allclose(spread[:, :4].abs(), torch.tensor(4.0)) and not spread[:, 4:].any(), "within its half"


@pytest.mark.parametrize("case", [case for case in LAYERS if case != "linear of a vector"])
def test_at_16_bits_every_kind_of_layer_is_itself(case):
    for options in ({}, {"static": False, "rotate": False, "rule": "vote"}):
        slots = QuantVSR(**options)
        layer, x = filled(case, slots, weight_bits=16, act_bits=16)
        slots.start_all([layer])
        with torch.no_grad():
            assert relative(layer(x), layer.layer(x)) < 2e-3


def test_complexity_is_the_deviation_over_positions_of_maps_and_tokens():
    maps, tokens = Complexity(None), Complexity(None)
    x = torch.randn(3, 5, 8, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 2, 4]).view(3, 1, 1, 1)
    maps(x, 1)
    tokens(x.flatten(2).transpose(1, 2), 2)
    assert maps.values == pytest.approx(tokens.values) and maps.values == sorted(maps.values)
    assert maps.values[2] == pytest.approx(4, rel=0.2)
    tokens(torch.ones(3, 7), -1)
    assert len(tokens.values) == 3, "a vector has no positions"


def test_the_literal_vote_begins_at_the_least_rank_and_saturates_with_many_samples():
    few = {"smooth": [0.1] * 16, "middle": [0.5] * 32, "rough": [0.9] * 16}
    assert by_vote(few, True) == {"smooth": 16, "middle": 16, "rough": 32}
    many = {name: values * 8 for name, values in few.items()}
    assert by_vote(many, True) == {"smooth": 16, "middle": 16, "rough": 64} == by_vote(few, False)
    mixed = {"a": [0.9, 0.9, 0.5, 0.5], "b": [0.1, 0.2, 0.3, 0.4]}
    assert by_vote(mixed, False)["a"] == 40, "half of its samples vote for half of the way"


def test_the_budget_is_kept_and_buys_what_has_most_energy_per_number():
    generator = torch.Generator().manual_seed(0)
    flat = torch.randn(20, 30, generator=generator)
    peaked = torch.randn(20, 1, generator=generator) @ torch.randn(1, 30, generator=generator) * 5 + 0.1 * flat
    weights, same_values = {"flat": flat, "peaked": peaked}, {"flat": [1.0], "peaked": [1.0]}
    for budget in (0.05, 0.2, 0.5):
        ranks = by_energy(weights, same_values, budget)
        assert 0 <= budget * 1200 - 50 * sum(ranks.values()) < 50 and ranks["peaked"] == 1
    assert by_energy(weights, {"flat": [1e-6], "peaked": [1.0]}, 0.2) == {"flat": 0, "peaked": 4}
    assert by_energy(weights, {"flat": [], "peaked": [1.0]}, 0.2) == by_energy(weights, same_values, 0.2)


@pytest.fixture
def calibrated(toy):
    """On pictures with which no stage is undone."""
    q = lab.quantize(toy, lab.W4A4.override("unet.conv_in", rank=3))
    lab.calibrate(q, lab.bundled("calibration", 2, 16), METHOD, epochs=1, batch=2)
    return q


def test_ranks_that_data_decided_are_saved_loaded_and_counted(calibrated, toy, few, tmp_path):
    ranks = branch_ranks(calibrated)
    assert ranks["unet.conv_in"] == 3 and sum(r > 0 for r in ranks.values()) > 0
    for module, prefixes in (("unet", ("unet.",)), ("decoder", ("vae.decoder", "vae.post"))):
        layers = [x for n, x in calibrated.layers.items() if n.startswith(prefixes) and isinstance(x, QuantLayer)]
        numbers = sum(x.branch.up.numel() + x.branch.down.numel() for x in layers if x.name != "unet.conv_in")
        assert 0 < numbers <= METHOD.slots.budget * sum(x.layer.weight.numel() for x in layers), module
    back = lab.load(lab.save(calibrated, tmp_path), toy)
    assert branch_ranks(back) == ranks and same(calibrated, back)
    assert torch.equal(calibrated(few[0].lr), back(few[0].lr))
    layer = back.layers["unet.conv_in"]
    assert layer.alignment.offset.any() and not any(q.trim.any() for q in layer.weight_quantizers)
    low, high = layer.weight_quantizers[0].bounds(*layer.weight_ranges()[0])
    half = layer.weight_halves(layer.residual_weight())[0]
    frozen = layer.frozen()
    assert frozen.transform is layer.transform and frozen.scale is frozen.shift is None, "integers must ask for it"
    assert torch.equal(high.flatten(), half.flatten(1).amax(1)) and torch.equal(low.flatten(), half.flatten(1).amin(1))


def test_dynamic_boundaries_are_each_input_s_own(toy, few):
    quantizer = DynamicQuantizer(4)
    x = torch.randn(2, 3, 5)
    assert torch.allclose(quantizer(10 * x, *torch.tensor([-1.0, 1.0])) / 10, quantizer(x, None, None), atol=1e-5)
    q, few = lab.quantize(toy, lab.recipe("W4A4", modules=("unet",))), few[:1]
    work = Calibration(q, few, METHOD.with_options(static=False), epochs=1, batch=1)
    ends = [r for r in work.run() if r["event"] == "end"]
    assert all(end["loss"] <= end["first"] for end in ends)
    with refused("Each input has a grid of its own", "static=True"):
        q.layers["unet.conv_in"].frozen()
    for options in ({"rule": "all"}, {"budget": 0.0}):
        with refused("rule is one of vote, share, budget", *options.values()):
            QuantVSR(**options)
