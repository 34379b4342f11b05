"""LET's start with corrected biases: no layer errs in the mean, and constant errors no longer decide the picture."""

import numpy as np
import pytest
import torch
from filled import LAYERS, filled

import passionsr_lab as lab
from passionsr_lab.calibration.alignment import correct
from passionsr_lab.imaging.psnr import psnr_rgb
from passionsr_lab.methods.let import CorrectedLET


def mean_error(layer, x):
    """(Co,) what the layer's output has more than in float, in the mean."""
    error = (layer(x) - layer.layer(x)).transpose(0, layer.dim)
    return error.reshape(len(error), -1).mean(1)


@pytest.mark.parametrize("case", [case for case in LAYERS if case != "linear of a vector"])
@torch.no_grad()
def test_a_corrected_layer_has_no_error_in_the_mean_whatever_it_was_corrected_by_before(case):
    slots = CorrectedLET()
    layer, x = filled(case, slots, weight_bits=4, act_bits=4)
    slots.start(layer)
    before = mean_error(layer, x)
    for _ in range(2):
        correct([layer], lambda: layer(x))
        assert mean_error(layer, x).abs().max() < 1e-5 < before.abs().max()
        layer.alignment.offset.add_(1.0)
    correct([layer], lambda: [layer(part) for part in (x, 2 * x)])
    assert torch.allclose(mean_error(layer, x), -mean_error(layer, 2 * x), atol=1e-5), "each picture counts alike"


def test_where_constant_channels_meet_large_weights_the_correction_wins_decibels():
    """At t = 249, whose last layer takes eight nearly constant channels: on other pictures, of another size."""
    full, found = lab.tiny(timestep=249), {}
    pairs, lrs = lab.bundled("calibration", 8, 48), [pair.lr for pair in lab.bundled("tuning", 2, 80)]
    for name in ("let", "let+bias"):
        q = lab.quantize(full, lab.W8A8)
        lab.calibrate(q, pairs, name)
        found[name] = np.mean([psnr_rgb(q(lr), full(lr)) for lr in lrs])
    assert found["let+bias"] > found["let"] + 1, found
