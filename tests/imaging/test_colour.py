"""The colour fixes and the two numbers for what tiles and bits do to a picture."""

import itertools

import pytest
import torch
from made import refused

from passionsr_lab.imaging.artefacts import colour_shift, seam_score
from passionsr_lab.imaging.colour import REACH, adain, adain_strips, fixed, low_frequencies, wavelet, wavelet_strips
from passionsr_lab.imaging.pairs import photograph
from passionsr_lab.imaging.pictures import upsample

SIZES = [(1, 1), (1, 70), (40, 3), (64, 48), (300, 281)]


def strips(x, height):
    return list(x.split(height, -2))


@pytest.fixture(scope="module")
def photo():
    return photograph("chelsea.png")[None, :, :288, :448]


# -- adain ------------------------------------------------------------------------------------------------------------


def test_adain_gives_each_channel_the_references_mean_and_deviation(photo):
    changed = (photo * torch.tensor([0.8, 0.9, 0.7]).view(3, 1, 1) + 0.05).clamp(0, 1)
    back = adain(changed, photo)
    torch.testing.assert_close(back.mean((2, 3)), photo.mean((2, 3)), rtol=0, atol=2e-3)
    torch.testing.assert_close(back.std((2, 3)), photo.std((2, 3)), rtol=0, atol=2e-3)
    assert (back - photo).abs().mean() < 2e-3, "an affine change of each channel is undone"


def test_adain_in_strips_is_its_formula():
    for size, height in itertools.product(SIZES, (1, 7, 1000)):
        x, y = torch.rand(2, 2, 3, *size) / 2 + 0.25
        own, target = (t.flatten(2).double() for t in (x, y))
        unbiased = int(size[0] * size[1] > 1)
        gain = ((target.var(2, correction=unbiased) + 1e-5) / (own.var(2, correction=unbiased) + 1e-5)).sqrt()
        expected = (own - own.mean(2)[..., None]) * gain[..., None] + target.mean(2)[..., None]
        out = torch.cat(list(adain_strips(strips(x, height), strips(y, 5))), -2)
        torch.testing.assert_close(out.flatten(2).double(), expected.clamp(0, 1), rtol=0, atol=1e-4)


def test_holding_half_precision_meanwhile_costs_less_than_half_a_level(photo):
    changed = photo * 0.9 + 0.02
    half = torch.cat(list(adain_strips(strips(changed, 32), [photo], torch.float16)), -2)
    assert (half - adain(changed, photo)).abs().max() < 0.5 / 255


# -- wavelet ----------------------------------------------------------------------------------------------------------


def test_wavelet_takes_the_references_colours_and_keeps_the_detail(photo):
    plain = photo * 0.8
    tinted = plain + torch.tensor([0.1, 0.02, 0.15]).view(3, 1, 1)
    torch.testing.assert_close(wavelet(tinted, plain), plain, rtol=0, atol=1e-5)
    soft = low_frequencies(photo)
    expected = tinted - low_frequencies(tinted) + low_frequencies(soft)
    torch.testing.assert_close(wavelet(tinted, soft), expected.clamp(0, 1), rtol=0, atol=1e-5)


def test_low_frequencies_are_the_a_trous_blurs_of_the_sheet():
    x = torch.zeros(1, 1, 129, 129)
    x[..., 64, 64] = 1
    kernel = torch.ones(1, dtype=torch.float64)
    for level in range(5):
        spread = torch.zeros(2 * 2**level + 1, dtype=torch.float64)
        spread[[0, 2**level, 2 * 2**level]] = torch.tensor([0.25, 0.5, 0.25], dtype=torch.float64)
        kernel = torch.nn.functional.conv1d(
            kernel.view(1, 1, -1), spread.view(1, 1, -1), padding=len(spread) - 1
        ).flatten()
    out = low_frequencies(x)[0, 0].double()
    torch.testing.assert_close(out[33:96, 33:96], torch.outer(kernel, kernel), rtol=0, atol=1e-7)
    assert out[:33].abs().max() == 0 and len(kernel) == 63 <= 2 * REACH
    assert torch.allclose(low_frequencies(torch.full((1, 3, 5, 6), 0.4)), torch.tensor(0.4)), "also at the border"


def test_wavelet_in_windows_is_wavelet():
    for size, height in itertools.product([*SIZES, (600, 20)], (3, 100, 1000)):
        x, y = torch.rand(2, 2, 3, *size)
        out = torch.cat(list(wavelet_strips(strips(x, height), strips(y, 7), *size)), -2)
        torch.testing.assert_close(out, wavelet(x, y), rtol=0, atol=2e-6)


def test_an_unknown_fix_is_refused(pipe):
    for call in (lambda: fixed([], [], "sepia", 1, 1), lambda: pipe(torch.rand(3, 4, 4), None, "sepia")):
        with refused("colour is one of adain, wavelet, nofix, not 'sepia'"):
            call()


@pytest.mark.parametrize("fix", ["adain", "wavelet"])
def test_a_pipeline_fixes_its_colours_against_the_enlarged_picture(pipe, pairs, fix):
    lr = pairs[1].lr
    plain, reference = pipe(lr), upsample(lr[None])
    expected = {"adain": adain, "wavelet": wavelet}[fix](plain[None], reference)[0]
    torch.testing.assert_close(pipe(lr, colour=fix), expected, rtol=0, atol=1e-5)
    assert (
        colour_shift(expected, reference[0])["mean"].abs().max() < colour_shift(plain, reference[0])["mean"].abs().max()
    )


# -- seams and shifts -------------------------------------------------------------------------------------------------


def test_the_seam_score_finds_steps_where_they_are_and_only_there(photo):
    x = photo[0].clone()
    plain = seam_score(x, [64, 128], [96, 200])
    x[:, 64:] += 0.04
    x[..., 200:] -= 0.04
    assert 0.5 < plain < 1.5
    assert seam_score(x, [64, 128], [96, 200]) > 1.3 * plain
    assert seam_score(x, [128], [96]) == pytest.approx(seam_score(photo[0], [128], [96]), rel=0.05)
    assert seam_score(torch.full((3, 64, 64), 0.5), [32], [16]) == pytest.approx(1), "a flat picture"
    for lines in (([], []), ([500], []), ([0], [0])):
        with refused("seam"):
            seam_score(torch.rand(3, 64, 64), *lines)


def test_the_colour_shift_is_in_levels_of_each_channel(photo):
    x = photo[0] * 0.5
    shift = colour_shift(x + torch.tensor([0, 3, -2]).view(3, 1, 1) / 255, x)
    assert shift.index.tolist() == ["R", "G", "B"]
    for column in ("mean", "p1", "p99"):
        assert shift[column].tolist() == pytest.approx([0, 3, -2], abs=1e-3)
    with refused("one size"):
        colour_shift(x, x[..., 1:])
