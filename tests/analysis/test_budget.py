"""Bits under a budget: the best choice, checked against all choices."""

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import passionsr_lab as lab
from passionsr_lab.analysis.budget import as_python, budget_range, pareto, width_errors, within_budget
from passionsr_lab.analysis.cost import count
from passionsr_lab.imaging.psnr import psnr_rgb

LAYERS = ("unet.conv_in", "unet.conv_out", "vae.encoder.conv_in", "vae.decoder.conv_in", "vae.decoder.conv_out")
WIDTHS = (3, 4, 6)


@pytest.fixture(scope="module")
def errors():
    rng = np.random.default_rng(0)
    rows = [(n, b, w * 4.0**-b) for n, w in zip(LAYERS, rng.uniform(0.1, 10, len(LAYERS))) for b in WIDTHS]
    return pd.DataFrame(rows, columns=["layer", "bits", "error"]).assign(module="unet")


@pytest.mark.parametrize(("of", "share"), [("weight_bits", 0.3), ("megabytes", 0.6), ("bit_operations", 0.5)])
def test_no_choice_within_the_budget_is_better(pipe, errors, of, share):
    frame = count(pipe, 64).set_index("layer").loc[list(LAYERS)]
    known = errors.set_index(["layer", "bits"]).error
    unit = {
        "weight_bits": lambda b: b * frame.weights / frame.weights.sum(),
        "megabytes": lambda b: b * frame.weights / 8e6,
        "bit_operations": lambda b: b * b * frame.macs,
    }[of]
    cost = {b: unit(b) for b in WIDTHS}
    low, high = budget_range(pipe, errors, of, 64)
    assert (low, high) == pytest.approx((cost[WIDTHS[0]].sum(), cost[WIDTHS[-1]].sum()))
    budget = low + share * (high - low)
    best = min(
        sum(known[pair] for pair in zip(LAYERS, bits))
        for bits in itertools.product(WIDTHS, repeat=len(LAYERS))
        if sum(cost[b][n] for n, b in zip(LAYERS, bits)) <= budget
    )
    mixed = within_budget(pipe, errors, budget, of, 64)
    chosen = {name: mixed.bits(name)[0] for name in LAYERS}
    assert sum(cost[b][n] for n, b in chosen.items()) <= budget * (1 + 1e-9)
    assert sum(known[n, b] for n, b in chosen.items()) == pytest.approx(best, rel=1e-6)


def test_the_curve_rises_and_what_cannot_be_had_is_refused(pipe, errors):
    frame = pareto(pipe, errors, (3, 3.5, 4, 5, 6), size=64)
    assert frame.predicted_db.is_monotonic_increasing and frame.bytes.is_monotonic_increasing
    for budget, of, words in ((2.9, "weight_bits", "least that these widths allow"), (4, "bits", "not 'bits'")):
        with pytest.raises(ValueError, match=words):
            within_budget(pipe, errors, budget, of, 64)
    with pytest.raises(ValueError, match="no layer 'a'"):
        within_budget(pipe, errors.assign(layer="a"), 4)


def test_measured_errors_make_a_recipe_that_beats_a_uniform_one_of_its_size(make_pipe):
    """One layer is planted that alone needs bits; the recipe comes back from Python and from JSON."""
    pipe, pairs = make_pipe(seed=3), lab.bundled("calibration", 2, 32)
    found = width_errors(pipe, pairs, (3, 4, 8), "maxmin")
    assert len(found) == 3 * found.layer.nunique() and (found.error >= 0).all()
    mixed = within_budget(pipe, found, 4.0)
    uniform = lab.recipe("W4A4", at_least=())
    assert count(pipe, 64).pipe(lambda f: _bits(f, mixed) <= _bits(f, uniform) + 1e-9)

    def fidelity(recipe):
        q = lab.quantize(pipe, recipe)
        lab.calibrate(q, pairs, "maxmin")
        return np.mean([psnr_rgb(q(pair.lr), pipe(pair.lr)) for pair in pairs])

    assert fidelity(mixed) > fidelity(uniform) + 0.3
    assert eval(as_python(mixed), {"lab": lab}) == lab.Recipe.from_dict(mixed.to_dict()) == replace(mixed)


def _bits(frame, recipe):
    own = frame[frame.weights > 0]
    return float(np.average([recipe.bits(name)[0] for name in own.layer], weights=own.weights))
