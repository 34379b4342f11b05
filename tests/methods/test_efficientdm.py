"""EfficientDM: the LoRA starts from the rounded weight, learns at the layer's scale, and ends inside the integers."""

import pytest
import torch
from filled import filled, relative

from passionsr_lab.methods.efficientdm import EfficientDM
from passionsr_lab.quantization.quantizer import fake_quantize
from passionsr_lab.quantization.slots import trainable


def started(case="3x3 padded", **setting):
    slots = EfficientDM(rank=2)
    layer, x = filled(case, slots, **{"weight_bits": 4, "act_bits": 8} | setting)
    slots.start(layer)
    return layer, x


@pytest.mark.parametrize("setting", [{}, {"split": True}, {"rank": 0}])
def test_it_begins_at_the_rounded_weight(setting):
    layer, _ = started(**setting)
    halves = layer.weight_halves(layer.layer.weight)
    rounded = torch.cat([fake_quantize(h, *ends, 4) for h, ends in zip(halves, layer.weight_ranges(halves))], 1)
    if setting.get("rank") != 0:
        assert torch.allclose(layer.residual_weight(), rounded, atol=1e-6)
        assert layer.delta.up.abs().max() == 0 < layer.delta.down.abs().max()
    assert torch.allclose(layer.quantized_weight(), rounded, atol=1e-6)


def test_its_rates_are_in_parts_of_the_mean_step():
    layer, _ = started()
    (scale,) = trainable(layer, "lora")
    assert scale == pytest.approx(layer.weight_quantizers[0].step.mean().item())
    with torch.no_grad():
        layer.weight_quantizers[0].log_step += 1.0
    assert [*trainable(layer, "lora")] == [scale], "the rate is that of the start, also when a run goes on"
    assert [*trainable(layer, "step")] == [1 / 255] and [*trainable(layer, "weight step")] == [1 / 15]


def test_a_trained_lora_is_nothing_but_other_integers():
    layer, x = started()
    x = 0.8 * x[:, :1] + 0.2 * x  # channels that go together, so that errors of the weight can make up for each other
    target, errors = layer.layer(x).detach(), []
    groups = [{"params": p, "lr": 0.3 * s} for s, p in trainable(layer, "lora").items()]
    optimizer = torch.optim.Adam(groups)
    codes = layer.frozen().halves[0].weight_codes
    for _ in range(60):
        errors.append((layer(x) - target).square().mean())
        optimizer.zero_grad()
        errors[-1].backward()
        optimizer.step()
    assert min(errors[-10:]) < 0.8 * errors[0]
    frozen = layer.frozen()
    half = frozen.halves[0]
    assert frozen.branch is None and (half.weight_codes != codes).any()
    weight = (half.weight_codes + half.weight_zero) * half.weight_step
    with torch.no_grad():
        out = layer.operate(layer.quantized_input(x), weight, frozen.bias)
        assert relative(out, layer(x)) < 1e-5


def test_the_draw_is_the_layer_s_own_and_always_the_same():
    one, two = started()[0], started()[0]
    assert torch.equal(one.delta.down, two.delta.down)
    two.name = "unet.other"
    two.delta.start()
    assert not torch.equal(one.delta.down, two.delta.down)
