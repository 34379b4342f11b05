"""What the smallest changes of parameters do, and that they are taken back."""

import pytest
import torch

import passionsr_lab as lab
from passionsr_lab.analysis.roughness import roughness
from passionsr_lab.calibration.state import state


@pytest.fixture(scope="module")
def calibrated():
    q = lab.quantize(lab.tiny(), lab.W6A6)
    lab.calibrate(q, lab.bundled("calibration", 2, 32), "let")
    return q


def test_larger_changes_do_more_and_all_are_taken_back(calibrated):
    images = [pair.lr for pair in lab.bundled("test", 2, 32)]
    before, out = state(calibrated), calibrated(images[0])
    frame = roughness(calibrated, images, sizes=[1e-4, 0.3], draws=3)
    assert all(torch.equal(before[name], value) for name, value in state(calibrated).items())
    assert torch.equal(calibrated(images[0]), out)
    as_it_is, little, much = (part.psnr_fp for _, part in frame.groupby("size"))
    assert len(as_it_is) == 1 and 0 < (little - as_it_is.item()).abs().max() < 1 < as_it_is.item() - much.mean()


def test_the_same_seed_gives_the_same_numbers(calibrated):
    images = [pair.lr for pair in lab.bundled("test", 1, 32)]
    once, again, other = (roughness(calibrated, images, [0.01], 1, seed).psnr_fp.tolist() for seed in (0, 0, 1))
    assert once == again and once[0] == other[0] and once[1] != other[1]


def test_what_cannot_be_measured_is_refused(calibrated):
    with pytest.raises(ValueError, match="needs a quantized pipeline"):
        roughness(lab.tiny(), [torch.rand(3, 8, 8)])
    with pytest.raises(ValueError, match="at least one image"):
        roughness(calibrated, [])
    with pytest.raises(ValueError, match="Nothing in this pipeline is calibrated"):
        roughness(lab.quantize(lab.tiny(), lab.W6A6), [torch.rand(3, 8, 8)])
