"""Q-Diffusion: AdaRound begins at the nearest point, is hard in the end and helps; shortcuts are split."""

import pytest
import torch
from filled import filled, relative

import passionsr_lab as lab
from passionsr_lab.methods import METHODS
from passionsr_lab.methods.qdiffusion import AdaRound, QDiffusion
from passionsr_lab.quantization.layer import QuantLayer
from passionsr_lab.quantization.slots import penalties


def started(case="3x3 padded", regulariser=0.01, **setting):
    slots = QDiffusion(regulariser=regulariser)
    layer, x = filled(case, slots, **{"weight_bits": 3, "act_bits": 8} | setting)
    slots.start(layer)
    return layer, x


@pytest.mark.parametrize("setting", [{}, {"split": True}])
def test_it_begins_at_the_nearest_point_and_softly_at_the_weight_itself(setting):
    layer, _ = started(**setting)
    weight, inside = layer.layer.weight, []
    nearest = [q(w, None, None) for q, w in zip(layer.weight_quantizers, layer.weight_halves(weight))]
    assert torch.allclose(layer.quantized_weight(), torch.cat(nearest, 1), atol=1e-6)
    for rounding, quantizer, half in zip(layer.rounding, layer.weight_quantizers, layer.weight_halves(weight)):
        rounding.requires_grad_(True)
        lower, upper = quantizer.bounds(None, None)
        inside.append((half > lower) & (half < upper))
    soft = layer.quantized_weight()
    inside = torch.cat(inside, 1)
    assert torch.allclose(soft[inside], weight[inside], atol=1e-5) and inside.float().mean() > 0.8


def test_the_penalty_waits_for_a_fifth_of_the_stage_and_is_zero_for_what_is_decided():
    rounding = AdaRound(torch.Size([4]), 0.5)
    assert rounding.penalty(0.1) is None
    early, late = rounding.penalty(0.2), rounding.penalty(1.0)
    assert early.item() == late.item() == pytest.approx(0.5 * 4), "undecided"
    with torch.no_grad():
        rounding.logits.copy_(torch.tensor([-9.0, 9.0, 9.0, -9.0]))
    assert rounding.penalty(0.9).item() == 0
    with torch.no_grad():
        rounding.logits.fill_(1.0)
    assert rounding.penalty(0.3) > rounding.penalty(0.9) > 0, "first only what is nearly decided is driven"


def test_learned_roundings_lower_the_error_of_the_output_and_are_integers():
    layer, x = started(regulariser=1e-3)
    target, weight = layer.layer(x).detach(), layer.layer.weight
    optimizer = torch.optim.Adam([layer.rounding[0].logits], 0.05)
    with torch.no_grad():
        first = (layer(x) - target).square().mean()
    layer.rounding.requires_grad_(True)
    for i in range(100):
        loss = sum(penalties(layer, ("rounding",), i / 100), (layer(x) - target).square().mean())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    layer.rounding.requires_grad_(False)
    with torch.no_grad():
        last, half = (layer(x) - target).square().mean(), layer.frozen().halves[0]
        assert last < 0.8 * first
        steps = (layer.quantized_weight() - weight).abs() / half.weight_step
        lower, upper = layer.weight_quantizers[0].bounds(None, None)
        assert (steps[(weight > lower) & (weight < upper)] < 1 + 1e-4).all(), "down or up, not further"
        again = (half.weight_codes + half.weight_zero) * half.weight_step
        assert relative(again, layer.quantized_weight()) < 1e-5


def test_shortcuts_split_at_the_concatenation_and_only_for_this_method(pipe, pairs):
    q, seen = lab.quantize(pipe, lab.W6A6), {}
    resnets = [r for block in q.unet.up_blocks for r in block.resnets if isinstance(r.conv_shortcut, QuantLayer)]
    original = torch.cat

    def joined(tensors, dim=0, **more):
        out = original(tensors, dim, **more)
        if len(tensors) == 2 and dim == 1 and tensors[0].ndim == 4:
            seen[out.shape[1], len(seen)] = [t.shape[1] for t in tensors]
        return out

    QDiffusion().install(q)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "cat", joined)
        with torch.no_grad():
            pipe(pairs[0].lr)
    assert [r.conv_shortcut.sizes for r in resnets] == list(seen.values())
    assert any(a != b for a, b in seen.values()), "no concatenation here is uneven"
    assert all(len(r.conv_shortcut.act_quantizers) == len(r.conv_shortcut.rounding) == 2 for r in resnets)
    assert all(
        len(layer.sizes) == 1 for n, layer in q.layers.items() if isinstance(layer, QuantLayer) and "shortcut" not in n
    )
    METHODS["maxmin"].slots.install(q)
    assert all(len(r.conv_shortcut.sizes) == 1 for r in resnets)
