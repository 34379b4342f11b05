"""The embedded model's variants: each restores as well as its card says."""

import re
from importlib import resources

import pytest

import passionsr_lab as lab
from passionsr_lab.imaging.psnr import psnr_y

CARD = (resources.files("passionsr_lab") / "tiny" / "README.md").read_text()
DOCUMENTED = {int(t): float(psnr) for t, psnr in re.findall(r"^\| (\d+) \| .* \| ([\d.]+) \|$", CARD, re.MULTILINE)}


def test_the_card_has_the_variants_that_there_are():
    there = {int(f.name.partition(".")[0]) for f in (resources.files("passionsr_lab") / "tiny/timesteps").iterdir()}
    assert DOCUMENTED.keys() == there | {999}


@pytest.mark.parametrize("timestep", DOCUMENTED)
def test_a_variant_restores_as_its_card_says(timestep):
    pipe, pairs = lab.tiny(timestep=timestep), lab.bundled("test")
    assert pipe.timestep == timestep
    measured = sum(psnr_y(pipe(p.lr), p.hr) for p in pairs) / len(pairs)
    assert abs(measured - DOCUMENTED[timestep]) < 0.006
    assert abs(measured - DOCUMENTED[999]) < 0.15
