"""Training the embedded model: where it begins, that it learns, and that a stopped run goes on exactly."""

import pytest
import torch
from torch import nn

from passionsr_lab.imaging.pairs import bundled
from passionsr_lab.imaging.pictures import upsample
from passionsr_lab.imaging.psnr import psnr_y
from passionsr_lab.tools.train import RATIO, SHAPES, Carriers, Phase, Training, new_model

SHORT = (Phase("short", 3, 32, 2, 1e-4, 1e-4, horizon=3), Phase("shorter", 1, 64, 1, 1e-4, 1e-4, 1, errors="squared"))


@pytest.fixture(scope="module", params=SHAPES)
def start(request):
    return new_model(0, SHAPES[request.param])


@torch.no_grad()
def test_eq_9_begins_by_passing_the_latent_on(start):
    z = 0.25 * torch.randn(2, start.vae.config.latent_channels, 16, 16, generator=torch.Generator().manual_seed(0))
    out = start.denoise(z)
    assert (out - RATIO * z).std() < 0.15 * (RATIO * z).std()


@torch.no_grad()
def test_training_begins_near_interpolation(start):
    for pair in bundled("test", 2, 128):
        bicubic = psnr_y(upsample(pair.lr[None])[0], pair.hr)
        assert psnr_y(start(pair.lr), pair.hr) > bicubic - 3


def test_a_part_of_a_phase_has_that_part_of_its_steps():
    parts = [Phase("a", steps, 32, 2, 1e-4, 1e-4, horizon=2 * steps).shortened(0.1) for steps in (300, 2)]
    assert [(phase.steps, phase.horizon) for phase in parts] == [(30, 60), (1, 1)]


@torch.no_grad()
def test_carriers_take_signals_through_norm_and_silu():
    carriers, z = Carriers(32, 4, 6, std=0.25), 0.25 * torch.randn(1, 6, 12, 12)
    enter, norm, leave = nn.Conv2d(6, 32, 1), nn.GroupNorm(4, 32), nn.Conv2d(32, 6, 3, padding=1)
    for p in leave.parameters():
        nn.init.zeros_(p)
    carriers.enter(enter)
    carriers.leave(norm, leave, gain=2.0)
    out = leave(nn.functional.silu(norm(enter(z))))
    assert (out - 2 * z).abs().max() < 0.05 * z.abs().max()


def test_too_many_signals_are_refused():
    with pytest.raises(ValueError, match="cannot carry 40"):
        Carriers(32, 4, 40, 0.25)


def told(records):
    return [{k: v for k, v in r.items() if k != "seconds"} for r in records]


def test_a_stopped_run_goes_on_exactly_and_the_seed_decides(photographs, tmp_path):
    whole = Training(photographs, 0, SHORT)
    records = told(whole.run())
    assert [r["phase"] for r in records] == ["short"] * 3 + ["shorter"]
    first = Training(photographs, 0, SHORT)
    stream = first.run()
    begun = told(next(stream) for _ in range(2))
    first.save(tmp_path / "training.pt")
    second = Training(photographs, 0, SHORT)
    second.resume(tmp_path / "training.pt")
    assert begun + told(second.run()) == records
    assert all(torch.equal(second.average[k], v) for k, v in whole.average.items())
    assert told(Training(photographs, 1, SHORT).run()) != records


@pytest.mark.slow
def test_steps_on_one_batch_lower_its_loss(photographs):
    work = Training(photographs, 0, (Phase("one", 40, 32, 2, 5e-4, 3e-4, horizon=400),))
    batch = work.crops.batch(32, 2, work.rng)
    work.crops.batch = lambda *asked: batch
    losses = [r["loss"] for r in work.run()]
    assert sum(losses[-5:]) / 5 < 0.97 * losses[0]  # the rates are still warming up


def test_what_is_written_begins_where_it_ended(photographs, tmp_path):
    work = Training(photographs, 0, SHORT)
    list(work.run())
    work.averaged().save(tmp_path / "model")
    again = Training(photographs, 0, SHORT, start=str(tmp_path / "model"))
    assert all(torch.equal(again.model.state_dict()[k], v) for k, v in work.average.items() if k != "prompt_embedding")
