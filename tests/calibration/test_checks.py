"""What a calibration refuses before it begins; and weights in 16 bits, which it does not refuse."""

import math

import numpy as np
import pytest
import torch
from made import refused

import passionsr_lab as lab
from passionsr_lab.calibration.loop import Calibration
from passionsr_lab.imaging.pictures import to_image
from passionsr_lab.imaging.psnr import psnr_rgb
from passionsr_lab.quantization.attention import QuantAttention
from passionsr_lab.quantization.place import quantize
from passionsr_lab.quantization.recipe import W8A8
from passionsr_lab.util.names import MODULES


def wrong_pairs(pair):
    """What is told -> what people give in the place of pairs."""
    name, lr, hr = pair
    yield "swapped", [(hr, lr)]
    yield "swapped", [(lr, hr), (name, hr, lr)]
    yield "swapped", [(to_image(hr), to_image(lr))]
    yield "an image alone", [lr]
    yield "an image alone", [lr[None]]
    yield "an image alone", [to_image(lr)]
    yield "a list of", pair
    yield "a list of", 3
    yield "must be 4 times the size", [(lr, lr)]
    yield "must be 4 times the size", [(lr, hr[:, 1:])]
    yield "holds a batch", [(lr[None], hr[None])]
    yield "three pictures", [(lr, hr, hr)]
    yield "NaN", [(lr * math.nan, hr)]
    yield "[0, 1]", [(lr * 255, hr)]
    yield "There are no pairs", []


def test_what_is_no_pair_is_refused_by_every_way_to_calibrate(pipe, pairs, tmp_path):
    q = quantize(pipe, W8A8)
    for message, given in wrong_pairs(pairs[0]):
        for calibrate in (
            lambda x: lab.calibrate(q, x, "maxmin"), lambda x: lab.calibrated(pipe, W8A8, "maxmin", x, store=tmp_path)
        ):  # fmt: skip
            with refused(message):
                calibrate(given)
    assert q.method is None and not list(tmp_path.iterdir())


def test_pictures_and_generators_are_pairs_too(pipe, pairs):
    made = []
    for given in (pairs[:2], [(to_image(p.lr), to_image(p.hr)) for p in pairs[:2]], (p for p in pairs[:2])):
        made.append(quantize(pipe, W8A8))
        lab.calibrate(made[-1], given, "maxmin")
    assert all(torch.equal(q(pairs[0].lr), made[0](pairs[0].lr)) for q in made)


def test_numbers_that_make_no_sense_are_refused(pipe, pairs):
    for name, values in {"epochs": (0, 1.5, True, "2"), "batch": (0, 2.5), "seed": (-1, 0.5, None)}.items():
        for value in values:
            with refused(f"{name} is a whole number"):
                lab.calibrate(quantize(pipe, W8A8), pairs, "lbq", **{name: value})
    for rates in ({"bounds": math.nan}, {"bounds": 0}, {"bounds": "fast"}, {"speed": 1.0}):
        with refused(next(iter(rates))):
            lab.calibrate(quantize(pipe, W8A8), pairs, "lbq", rates=rates)
    Calibration(quantize(pipe, W8A8), pairs, lab.METHODS["lbq"], np.int64(2), np.int64(1), np.int64(3))


def test_a_model_that_cannot_be_calibrated_is_refused(pipe, make_pipe, pairs):
    with torch.inference_mode(), refused("inference_mode"):
        lab.calibrate(quantize(pipe, W8A8), pairs)
    for wrong, message in (
        (quantize(make_pipe().double(), W8A8), "float64"), (pipe, "lab.quantize"),
        (quantize(make_pipe().to("meta"), W8A8), "no weights"),
    ):  # fmt: skip
        with refused(message):
            lab.calibrate(wrong, pairs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_in_16_bits_are_calibrated_in_every_module_and_stay_as_they_are(make_pipe, pairs, dtype):
    source = make_pipe(cross=True).to(dtype)
    before, x = {k: v.clone() for k, v in source.state_dict().items()}, pairs[0].lr
    full = source(x)
    for modules in (*((m,) for m in MODULES), MODULES):
        q = quantize(source, W8A8, modules)
        lab.calibrate(q, pairs[:1], "passionsr", epochs=1)
        assert psnr_rgb(q(x), full) > 25
        for layer in q.layers.values():
            kept = [t for name, t in layer.state_dict().items() if not name.startswith(("layer.", "original."))]
            assert all(t.dtype == torch.float32 for t in kept), "ranges, boundaries and LET are not rounded to 16 bits"
    assert sum(isinstance(layer, QuantAttention) for layer in q.layers.values()) > 2
    after = source.state_dict()
    assert all(after[k].dtype == v.dtype and torch.equal(after[k], v) for k, v in before.items())
    assert torch.equal(source(x), full)


def test_eq_9_is_as_exact_in_16_bits_as_in_32(make_pipe):
    z, noise = torch.randn(2, 1, 4, 6, 6)
    expected = make_pipe().clean(z, noise)
    for dtype in (torch.float16, torch.bfloat16):
        assert torch.equal(make_pipe().to(dtype).clean(z, noise), expected)
