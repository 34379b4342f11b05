"""Quick calibrations on three small pairs."""

import pytest

from passionsr_lab.calibration.loop import Calibration
from passionsr_lab.methods import find
from passionsr_lab.quantization.place import quantize
from passionsr_lab.quantization.recipe import W6A6


@pytest.fixture(scope="session")
def begin(pipe, pairs):
    """A function (method, recipe, **options) -> a calibration that has not begun."""

    def make(method="passionsr", recipe=W6A6, q=None, pairs=pairs[:3], **options):
        q = quantize(pipe, recipe) if q is None else q
        return Calibration(q, pairs, find(method), **{"epochs": 1, "batch": 2} | options)

    return make


@pytest.fixture(scope="session")
def run(begin):
    """A function (method, recipe, **options) -> (calibrated pipeline, its records); made once, to be left as it is."""
    made = {}

    def get(method="passionsr", recipe=W6A6, **options):
        key = method, recipe, repr(options)
        if key not in made:
            work = begin(method, recipe, **options)
            made[key] = work.q, list(work.run())
        return made[key]

    return get
