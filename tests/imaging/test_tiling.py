"""Tiles: every size exactly x4, nothing lost or shifted, and memory that does not grow with the picture."""

import itertools
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from made import refused
from torch import nn

import passionsr_lab as lab
from passionsr_lab.imaging.pictures import to_image, upsample
from passionsr_lab.imaging.psnr import psnr_rgb
from passionsr_lab.imaging.tiling import PASSIONSR, Axis, Tiling, blended, cropped, enlarged, padded, seams, windows
from passionsr_lab.pipeline.onestep import OneStepSR
from passionsr_lab.pipeline.shared_norms import SharedNorms
from passionsr_lab.util.memory import Peak

SCHEMES = {
    "path": Tiling(8, 4),
    "no overlap": Tiling(8, 0),
    "little overlap": Tiling(8, 1),
    "much overlap": Tiling(8, 7),
    "stages": Tiling(8, 4, stages=True, pad=2),
    "hard": Tiling(8, 4, stages=True, pad=3, soft=False),
    "unlike stages": Tiling(8, 2, stages=True, encoder=5, decoder=11, pad=1),
    "no padding": Tiling(8, 4, stages=True, pad=0),
}


class Known(OneStepSR):
    """A pipeline of factor 2 whose three calls are known: what comes out is the enlarged LR image itself."""

    def encode(self, x):
        return nn.functional.pixel_unshuffle(x, 2)

    def denoise(self, z, condition=None):
        return z

    def decode(self, z):
        return nn.functional.pixel_shuffle(z, 2)


@pytest.fixture(scope="module")
def known(pipe):
    return Known(pipe.unet, pipe.vae, pipe.scheduler, pipe.prompt_embedding)


# -- one axis ---------------------------------------------------------------------------------------------------------


def test_the_tiles_of_an_axis_lie_inside_it_and_their_shares_sum_to_one():
    axis = Axis.cut(52, 14, 5, multiple=4)
    assert axis.size == 16 and all(start % 4 == 0 for start in axis.starts) and axis.starts[-1] == 36
    cuts = [(1, 8, 4), (7, 8, 4), (8, 8, 4), (9, 8, 4), (64, 8, 0), (65, 8, 7), (61, 16, 5), (200, 64, 32)]
    for (length, size, overlap), scale, soft in itertools.product(cuts, (1, 4), (True, False)):
        axis = Axis.cut(length, size, overlap, soft=soft)
        total = torch.zeros(length * scale)
        for start, share in zip(axis.starts, axis.weights(scale)):
            assert start >= 0 and start + axis.size <= length and (share >= 0).all()
            total[start * scale : (start + axis.size) * scale] += share
        torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-6)
        assert axis.starts[0] == 0 and axis.starts[-1] + axis.size == length
        assert all(a + axis.size - b >= overlap for a, b in zip(axis.starts, axis.starts[1:]))
        fewest = 1 if length <= size else -(-(length - size) // (size - overlap)) + 1
        assert len(axis.starts) == fewest, "no tile too many"


def test_soft_shares_are_the_gaussians_of_the_sheet():
    size, step = 64, 32
    axis = Axis.cut(size + step, size, size - step)
    x = torch.arange(size + step).double()
    raw = [torch.exp(-((x - start - (size - 1) / 2) ** 2) / (size**2 * 0.02)) for start in axis.starts]
    expected = (raw[0] / (raw[0] + raw[1]))[step:size]
    torch.testing.assert_close(axis.weights()[0, step:].double(), expected, rtol=1e-5, atol=1e-7)
    assert torch.equal(axis.weights()[0, :step], torch.ones(step))


def test_a_tiling_that_cannot_be_is_refused_in_one_sentence():
    wrong = [{"tile": 0}, {"tile": -3}, {"tile": 2.5}, {"tile": 8, "overlap": 8}, {"overlap": -1}, {"pad": -1}]
    for options in (*wrong, {"decoder": 0}):
        with refused():
            Tiling(**options)


# -- streams ----------------------------------------------------------------------------------------------------------


def strips_of(x, heights):
    found, top = [], 0
    while top < x.shape[-2]:
        height = heights[len(found) % len(heights)]
        found.append(x[..., top : top + height, :])
        top += height
    return found


def test_windows_and_blends_do_not_depend_on_how_the_stream_is_cut():
    x = torch.rand(2, 3, 29, 17)
    for heights in ((1,), (3, 7), (100,)):
        for start, window in zip((0, 2, 9, 9, 15), windows(strips_of(x, heights), (0, 2, 9, 9, 15), 8)):
            assert torch.equal(window, x[..., start : start + 8, :])
        out = torch.cat(list(blended(strips_of(x, heights), Axis.cut(29, 8, 3), Axis.cut(17, 8, 5), torch.exp)), -2)
        torch.testing.assert_close(out, x.exp(), rtol=1e-6, atol=1e-6)


def test_enlarging_in_strips_is_enlarging():
    for size, height in itertools.product([(1, 1), (1, 40), (37, 1), (33, 20), (64, 9), (65, 5)], (1, 5, 32)):
        lr = torch.rand(2, 3, *size)
        torch.testing.assert_close(torch.cat(list(enlarged(lr, 4, height)), -2), upsample(lr), rtol=0, atol=1e-6)


def test_padding_in_strips_repeats_the_border_and_cropping_takes_it_off():
    x = torch.rand(1, 3, 11, 6)
    whole = nn.functional.pad(x, (0, 10, 0, 5), mode="replicate")
    for heights in ((1,), (4, 3), (20,)):
        strips = list(padded(strips_of(x, heights), 16, 16))
        assert torch.equal(torch.cat(strips, -2), whole)
        assert torch.equal(torch.cat(list(cropped(strips, 11, 6)), -2), x)


def test_blending_the_noise_and_blending_after_eq_9_are_the_same(pipe):
    z = torch.randn(1, 4, 24, 24)
    axis = Axis.cut(24, 16, 8)
    with torch.no_grad():
        noise = torch.cat(list(blended([z], axis, axis, pipe.noise)), -2)
        clean = torch.cat(list(blended([z], axis, axis, pipe.denoise)), -2)
    torch.testing.assert_close(pipe.clean(z, noise), clean, rtol=1e-4, atol=1e-4)


# -- the pipeline in tiles --------------------------------------------------------------------------------------------

# LR sizes about a tile of 8 latents, which is 16 output and 4 LR pixels in these pipelines of factor 2
SIZES = [(1, 1), (1, 23), (17, 1), (7, 5), (4, 4), (5, 5), (4, 5), (3, 9), (13, 30)]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_nothing_is_lost_shifted_or_counted_twice(known, scheme):
    for size in SIZES:
        lr = torch.rand(2, 3, *size)
        torch.testing.assert_close(known(lr, SCHEMES[scheme]), upsample(lr), rtol=0, atol=2e-6)


@pytest.mark.parametrize("scheme", ["path", "stages"])
@pytest.mark.parametrize("colour", ["adain", "wavelet", "nofix"])
def test_every_size_comes_out_exactly_four_times_as_large(pipe, scheme, colour):
    for size in SIZES:
        lr = torch.rand(3, *size)
        out = pipe(lr, SCHEMES[scheme], colour)
        assert out.shape == (3, 4 * size[0], 4 * size[1]) and out.min() >= 0 and out.max() <= 1
        assert pipe(to_image(lr), SCHEMES[scheme], colour).size == (4 * size[1], 4 * size[0])


@pytest.mark.parametrize("tiling", [Tiling(32), Tiling(32, stages=True), Tiling(32, shared=True), PASSIONSR])
def test_a_picture_within_one_tile_is_the_one_without_tiles(pipe, pairs, tiling):
    torch.testing.assert_close(pipe(pairs[0].lr, tiling), pipe(pairs[0].lr, None), rtol=1e-4, atol=1e-4)


def test_a_quantized_pipeline_runs_in_the_tiles_it_was_calibrated_on(calibrated, tmp_path, pipe):
    q = calibrated("W8A8", "let")
    assert q.tiling.tile == 16, "crops of 32 output pixels, factor 2"
    assert lab.load(lab.save(q, tmp_path), pipe).tiling == q.tiling
    lr = torch.rand(3, 30, 21)
    assert torch.equal(q(lr, q.tiling), q(lr, Tiling(16)))
    assert q(lr, q.tiling).shape == (3, 120, 84)


def test_auto_takes_tiles_only_where_the_memory_asks_for_them(pipe, monkeypatch):
    lr = torch.rand(3, 40, 36)
    assert pipe.fits_whole(40, 36) and torch.equal(pipe(lr), pipe(lr, None))
    monkeypatch.setattr("passionsr_lab.pipeline.onestep.UNTILED_BYTES", 10**6)
    assert not pipe.fits_whole(40, 36) and torch.equal(pipe(lr), pipe(lr, pipe.tiling))
    assert not torch.equal(pipe(lr), pipe(lr, None))
    assert pipe.fits_whole(32, 32), "one tile is never cut"
    monkeypatch.setattr(pipe, "tile", 16)
    assert not pipe.fits_whole(32, 32) and torch.equal(pipe(lr), pipe(lr, Tiling(16)))


def test_the_prompt_is_one_for_all_tiles(make_pipe):
    small = make_pipe()
    seen = []
    small.prompt = lambda lr: seen.append(lr.shape) or torch.zeros(1, 5, 12)
    small(torch.rand(3, 12, 12), Tiling(8, 4))
    assert seen == [(1, 3, 12, 12)]


def test_what_is_no_tiling_is_refused(pipe):
    for wrong in ("whole", 64, (64, 32)):
        with refused("a Tiling"):
            pipe(torch.rand(3, 4, 4), wrong)


def test_seams_are_where_the_output_changes_its_tile(known):
    class Numbered(Known):
        def denoise(self, z, condition=None):
            self.calls = getattr(self, "calls", -1) + 1
            return torch.full_like(z, -1 + self.calls / 8)

    for tiling in (Tiling(8, 0), Tiling(8, 4)):
        numbered = Numbered(known.unet, known.vae, known.scheduler, known.prompt_embedding)
        out = numbered(torch.rand(3, 4, 21), tiling)
        rows, columns = seams(16, 84, tiling, known.factor, known.multiple // known.factor)
        steps = (out[0, 0] * 16).round().diff().nonzero().flatten() + 1
        assert rows == [] and steps.tolist() == columns


def test_shared_norms_give_tiles_the_statistics_of_the_whole():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8), nn.Conv2d(8, 8, 1), nn.GroupNorm(4, 8, affine=False))
    x = torch.rand(2, 3, 16, 16) * torch.linspace(0, 1, 16)
    with torch.no_grad():
        whole = net(x)
        with SharedNorms(net) as shared:
            shared.measure(net)(x)
            in_tiles = torch.cat([shared.using(net)(tile) for tile in x.split(4, -1)], -1)
            assert torch.equal(net(x), whole), "outside of `using` the norms are as before"
        alone = torch.cat([net(tile) for tile in x.split(4, -1)], -1)
        torch.testing.assert_close(in_tiles, whole, rtol=1e-4, atol=1e-4)
        assert (alone - whole).abs().max() > 0.5, "without it they differ"


# -- on the embedded model --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tiling", "least"), [(Tiling(32, 8), 40), (Tiling(48, 16, stages=True, shared=True), 35)], ids=["paths", "stages"]
)
def test_tiles_of_the_embedded_model_are_near_the_picture_without_them(tiling, least):
    """A tile sees only itself: attention and GroupNorm differ.  Measured: 41.9 and 35.6 dB."""
    embedded, lr = lab.tiny(), lab.bundled("test", size=256)[0].lr  # 64 x 64
    whole = embedded(lr, None)
    found = psnr_rgb(embedded(lr, tiling), whole)
    assert found > least
    assert found > psnr_rgb(upsample(lr[None])[0], whole) + 6, "much nearer than the enlarged LR image is"


# -- memory -----------------------------------------------------------------------------------------------------------


def peak(pipe, lr, tiling):
    """Bytes that the process holds at most while the output goes by, strip by strip."""
    with Peak() as found:
        for strip in pipe.strips(lr, tiling, "wavelet"):
            del strip
    return found.bytes


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak can be reset on Linux only")
@pytest.mark.slow
def test_a_taller_picture_takes_no_more_memory_on_the_embedded_model():
    embedded, lr = lab.tiny(), torch.rand(1, 3, 512, 64)
    peak(embedded, lr[..., :128, :], Tiling())
    low, high = peak(embedded, lr[..., :128, :], Tiling()), peak(embedded, lr, Tiling())
    assert high - low < 20e6


@pytest.mark.slow
def test_4096_x_4096_comes_out_as_16384_x_16384_in_the_memory_of_its_output(known):
    small = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    lr = small.repeat(1, 64, 64)  # 4096 x 4096
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    image = known.picture(lr, Tiling(128, 16))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    assert image.size == (16384, 16384)
    assert grown < 4 * 16384**2 + 700e6, "Pillow's four bytes a pixel, and strips 16384 pixels wide"
    box = (4000, 12000, 4256, 12256)
    expected = to_image(upsample(lr[None, :, 2990:3074, 990:1074])[0]).crop((40, 40, 296, 296))
    difference = np.asarray(image.crop(box)).astype(int) - np.asarray(expected)
    assert np.abs(difference).max() <= 1
