"""The transfer from HR to LR: a known blur is found again, noise lowers the coherence, the right filter gains most."""

import numpy as np
import pytest

from passionsr_lab.imaging.degradation import Degradation
from passionsr_lab.imaging.pairs import TEST_PHOTOS, make_pairs, photograph
from passionsr_lab.tools.transfer import filter_gain, transfer

QUIET = {"noise": (0, 0), "clean": 1.0, "sharpened": 0.0}


def pairs(blur, **more):
    photographs = [(name, lambda name=name: photograph(name)) for name in TEST_PHOTOS]
    return make_pairs(photographs, 4, 128, degradation=Degradation(blur=(blur, blur), **QUIET | more))


@pytest.fixture(scope="module")
def blurred():
    return {blur: pairs(blur) for blur in (1.5, 3.0)}


def test_a_gaussian_comes_out_as_one(blurred):
    tables = {blur: transfer(found) for blur, found in blurred.items()}
    for table in tables.values():
        assert table.coherence[:6].min() > 0.95 and table.gain[0] == pytest.approx(1, abs=0.02)
    ratio = tables[3.0].gain / tables[1.5].gain  # what down- and up-sampling do cancels
    expected = np.exp(-2 * np.pi**2 * (3.0**2 - 1.5**2) * ratio.index.map(tables[3.0].frequency.get) ** 2)
    assert np.abs(ratio - expected)[:8].max() < 0.06


def test_sharpening_raises_and_noise_decoheres(blurred):
    plain = transfer(blurred[3.0])
    sharp = transfer(pairs(3.0, sharpening=(0.8, 0.8), sharpened=1.0))
    assert (sharp.gain > plain.gain + 0.1)[3:7].all()
    noisy = transfer(pairs(3.0, noise=(0.1, 0.1), clean=0.0, jpeg=(100, 100)))
    assert (noisy.coherence < plain.coherence)[3:].all()


def test_the_filter_of_the_right_degradation_gains_most(blurred):
    soft, hard = blurred[1.5], blurred[3.0]
    assert filter_gain(hard, hard) > filter_gain(hard, soft) > 0
    assert filter_gain(soft, soft) > filter_gain(soft, hard)
