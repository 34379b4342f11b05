"""The one-step pipeline: Eq. 9, exactly x4 for every picture, in every type of weights, from several threads."""

import copy
import threading
import types
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from made import picture, refused
from PIL import Image

import passionsr_lab as lab
from passionsr_lab.imaging.tiling import Tiling
from passionsr_lab.pipeline import onestep
from passionsr_lab.pipeline.identity import fingerprint
from passionsr_lab.pipeline.onestep import OneStepSR

SHARED, TILED = Tiling(8, 2, shared=True), Tiling(8, 2)
SCHEMES = (None, TILED, SHARED, Tiling(8, 2, stages=True, pad=2, shared=True))


# -- the three steps --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("timestep", "amplified"), [(999, 14.6), (499, 1.61)])
def test_eq_9_recovers_the_latent_and_amplifies_errors(make_pipe, timestep, amplified):
    pipe = make_pipe(timestep=timestep)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    a = torch.cumprod(1 - betas, 0)[timestep].item()
    z, noise = torch.randn(2, 1, 4, 6, 6)
    noisy = a**0.5 * z + (1 - a) ** 0.5 * noise
    torch.testing.assert_close(pipe.clean(noisy, noise), z, rtol=1e-4, atol=1e-4)
    error = 1e-3 * torch.randn_like(noise)
    grown = (pipe.clean(noisy, noise + error) - pipe.clean(noisy, noise)).std() / error.std()
    assert grown.item() == pytest.approx((1 - a) ** 0.5 / a**0.5, rel=1e-3)
    assert grown.item() == pytest.approx(amplified, rel=0.05)


def test_the_path_is_encode_denoise_decode(pipe, pairs):
    assert not pipe.training and not any(p.requires_grad for p in pipe.parameters())
    x = pipe.prepare(pairs[0].lr[None])
    with torch.no_grad():
        z = pipe.encode(x)
        assert z.shape == (1, 4, 16, 16)
        assert torch.equal(z, pipe.vae.encode(x).latent_dist.mean * 0.5), "the posterior's mode, scaled"
        noise = pipe.unet(z, 999, pipe.prompt_embedding).sample
        assert torch.equal(pipe.denoise(z), pipe.clean(z, noise))
        assert not torch.equal(pipe.noise(z), pipe.noise(z, torch.randn(1, 5, 12))), "the prompt conditions the UNet"
        torch.testing.assert_close(pipe.noise(z.expand(3, -1, -1, -1))[2:], noise, rtol=1e-4, atol=1e-5)
        image = pipe.decode(pipe.clean(z, noise))
        assert torch.equal(pipe.restore(x), image)
    torch.testing.assert_close(pipe(pairs[0].lr), (image[0] / 2 + 0.5).clamp(0, 1), rtol=1e-4, atol=1e-5)


def test_a_step_that_makes_no_sense_is_refused(pipe):
    parts = pipe.unet, pipe.vae, pipe.scheduler, pipe.prompt_embedding
    for timestep in (-1, 1000, 999.7, True, "999", 10**400):
        with refused("timestep is a whole number from 0 to 999"):
            OneStepSR(*parts, timestep)
    for upscale in (0, 1_000_000, 4.0, False):
        with refused("upscale is a whole number from 1 to 16"):
            OneStepSR(*parts, 999, upscale)
    for level in (0.0, torch.nan, 1.5):
        schedule = copy.deepcopy(pipe.scheduler)
        schedule.alphas_cumprod = torch.full((1000,), level)
        with refused("alphas_cumprod", "Eq. 9"):
            OneStepSR(*parts[:2], schedule, parts[3])


# -- pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quantized", [False, True])
def test_every_picture_comes_out_exactly_four_times_as_large(pipe, calibrated, quantized):
    model = calibrated("W8A8") if quantized else pipe
    modes = ("RGB", "L", "RGBA", "P", "1", "I;16")
    deep = Image.fromarray(np.asarray(picture(9, 13))[..., 0].astype(np.uint16) * 257)
    images = [deep if mode == "I;16" else picture(9, 13).convert(mode) for mode in modes]
    for image in images + [picture(*size) for size in ((1, 1), (1, 30), (23, 1), (7, 5), (3, 61))]:
        out = model(image)
        assert isinstance(out, Image.Image) and out.mode == "RGB" and out.size == (4 * image.width, 4 * image.height)
        assert np.asarray(out).std() > 0 or image.size == (1, 1)
    for bad in (torch.full((3, 4, 4), torch.nan), torch.rand(1, 4, 4), torch.rand(3, 4, 4) + 3, np.zeros((4, 4, 3))):
        with refused("image"):
            model(bad)


def test_tensors_come_out_as_they_went_in(pipe):
    for shape in ((3, 1, 1), (3, 6, 11), (1, 3, 4, 4), (3, 3, 5, 2)):
        x = torch.rand(shape)
        out = pipe(x)
        assert out.shape == (*shape[:-2], 4 * shape[-2], 4 * shape[-1])
        assert out.dtype == torch.float32 and out.min() >= 0 and out.max() <= 1
        if len(shape) == 4:
            torch.testing.assert_close(out[-1], pipe(x[-1]), rtol=1e-3, atol=1e-4)


def test_a_picture_and_its_tensor_give_the_same_and_its_profile_stays(pipe):
    image = picture(8, 6)
    image.info["icc_profile"] = b"a profile"
    out, tensor = pipe(image), pipe(torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255)
    assert np.abs(np.asarray(out).transpose(2, 0, 1) / 255 - tensor.numpy()).max() <= 0.5 / 255 + 1e-6
    assert out.info["icc_profile"] == b"a profile"


def test_padding_reaches_no_farther_than_it_must(make_pipe):
    pipe = make_pipe(vae=(8, 16, 16), unet=(16, 32))
    assert (pipe.factor, pipe.multiple) == (4, 8)
    for h, w in ((1, 1), (2, 2), (3, 5), (4, 6)):
        ready = pipe.prepare(torch.rand(1, 3, h, w))
        assert ready.shape[2:] == (-(-4 * h // 8) * 8, -(-4 * w // 8) * 8)
        assert ready.min() >= -1 and ready.max() <= 1
        inside = ready[..., : 4 * h, : 4 * w]
        assert torch.equal(ready[..., : 4 * h, 4 * w :], inside[..., -1:].expand(-1, -1, -1, ready.shape[3] - 4 * w))


def test_an_output_that_cannot_be_held_is_refused_before_the_work(pipe, monkeypatch):
    monkeypatch.setattr(onestep, "MAX_OUTPUT", 1000)
    monkeypatch.setattr(type(pipe.vae), "encode", lambda *args: pytest.fail("worked"))
    for call in (lambda: pipe(torch.rand(3, 8, 9)), lambda: pipe(torch.rand(9, 3, 2, 4)), lambda: pipe(picture(8, 9))):
        with refused("1,152 pixels, more than 1,000"):
            call()


# -- what is set in code is honoured or refused, as in a folder --------------------------------------------------------


def parts(pipe, **others):
    """The pieces of a pipeline, some replaced, as its constructor takes them."""
    own = {key: getattr(pipe, key) for key in ("unet", "vae", "scheduler", "prompt_embedding", "timestep", "upscale")}
    return own | others


def other_schedulers():
    import diffusers

    ddpm = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    yield diffusers.DDPMScheduler(**ddpm, prediction_type="v_prediction"), "prediction_type"
    yield diffusers.DDIMScheduler(**ddpm, prediction_type="sample"), "prediction_type"
    yield diffusers.DDPMScheduler(**ddpm, rescale_betas_zero_snr=True), "rescale_betas_zero_snr"
    yield diffusers.FlowMatchEulerDiscreteScheduler(), "FlowMatchEulerDiscreteScheduler"
    yield types.SimpleNamespace(alphas_cumprod=torch.linspace(0.9, 0.1, 1000)), "SimpleNamespace"


@pytest.mark.parametrize("scheduler, message", list(other_schedulers()), ids=lambda x: x if isinstance(x, str) else "")
def test_a_scheduler_that_means_something_else_is_refused_however_it_comes(make_pipe, pipe, scheduler, message):
    with refused(message):
        OneStepSR(**parts(pipe, scheduler=scheduler))
    own, x = make_pipe(), torch.rand(3, 5, 6)
    before, expected = fingerprint(own), own(x)
    with refused(message):
        own.scheduler = scheduler
    assert fingerprint(own) == before and torch.equal(own(x), expected), "what was there stays"


def test_a_part_whose_configuration_is_changed_in_place_is_refused_when_a_picture_comes(make_pipe):
    for part, field, value in (
        ("vae", "shift_factor", 0.1), ("scheduler", "prediction_type", "v_prediction"),
        ("unet", "class_embed_type", "timestep"),
    ):  # fmt: skip
        pipe = make_pipe()
        getattr(pipe, part).register_to_config(**{field: value})
        with refused(f"small, {part} configuration: {field}"):
            pipe(torch.rand(3, 5, 6))
        with refused(f"{part} configuration: {field}"):
            OneStepSR(**parts(pipe))


def test_what_is_set_later_is_honoured_in_output_and_fingerprint_or_refused(make_pipe):
    from diffusers import DDIMScheduler

    x, other = torch.rand(3, 5, 6), DDIMScheduler(beta_start=0.001, beta_end=0.02, beta_schedule="linear")
    seen = {fingerprint(make_pipe()): make_pipe()(x)}
    for name, value in (("timestep", 500), ("scheduler", other), ("upscale", 2), ("vae", make_pipe(seed=1).vae)):
        pipe = make_pipe()
        setattr(pipe, name, value)
        fresh = OneStepSR(**parts(make_pipe(), **{name: value}))
        out = pipe(x)
        assert torch.equal(out, fresh(x)) and fingerprint(pipe) == fingerprint(fresh)
        assert not any(out.shape == y.shape and torch.equal(out, y) for y in seen.values())
        assert fingerprint(pipe) not in seen
        seen[fingerprint(pipe)] = out
    for name, value in (
        ("timestep", 1000),
        ("timestep", 999.7),
        ("timestep", True),
        ("timestep", None),
        ("upscale", 0),
    ):
        with refused(name):
            setattr(pipe, name, value)


# -- types of weights, NaN, threads, compilers ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype, error", [(torch.float16, 0.004), (torch.bfloat16, 0.03), (torch.float64, 1e-5)])
def test_weights_of_every_type_run_and_give_what_float32_gives(make_pipe, dtype, error):
    x, pipe = torch.rand(3, 12, 10, generator=torch.Generator().manual_seed(0)), make_pipe()
    expected = [pipe(x, scheme) for scheme in SCHEMES]
    mixed = make_pipe()
    mixed.unet.to(dtype)  # a VAE in float32 beside a UNet in half is how people keep it from overflowing
    for other in (make_pipe().to(dtype), mixed):
        for scheme, full in zip(SCHEMES, expected):
            out = other(x, scheme)
            assert out.dtype == torch.float32 and (out - full).abs().mean() < error
        z = torch.rand(1, 4, 8, 8)
        assert other.encode(x[None]).dtype == other.denoise(z).dtype == other.decode(z).dtype == torch.float32
    assert make_pipe().to(dtype).to(torch.float32)(x).shape == (3, 48, 40)


def test_a_prompt_branch_of_every_type_runs():
    full = lab.tiny(prompt=True)
    x = lab.bundled("test", 1, 64)[0].lr
    condition = full.prompt(x[None])
    for dtype in (torch.bfloat16, torch.float64):
        assert (lab.tiny(prompt=True).prompt.to(dtype)(x[None]) - condition).abs().max() < 0.3


@pytest.mark.parametrize("scheme", SCHEMES)
def test_values_that_are_not_finite_are_told_with_the_part_that_made_them(make_pipe, scheme):
    x = torch.rand(3, 12, 10)
    for part, bias, value in (
        ("encoder", "vae.encoder.conv_in.bias", torch.nan), ("unet", "unet.conv_out.bias", torch.inf),
        ("decoder", "vae.decoder.conv_out.bias", -torch.inf),
    ):  # fmt: skip
        pipe = make_pipe()
        pipe.get_parameter(bias)[0] = value
        with refused(f"The {part} of small gave NaN or infinite values", "float32", kind=FloatingPointError):
            pipe(x, scheme, "adain")
    pipe = make_pipe()
    pipe.prompt = lambda lr: torch.full((1, 5, 12), torch.nan)
    with refused("The prompt branch of small", kind=FloatingPointError):
        pipe(x, scheme)


def test_threads_that_share_a_pipeline_get_what_they_get_alone(make_pipe, calibrated):
    xs = [torch.rand(3, 9, 7, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    for model in (make_pipe(), calibrated("W8A8")):
        alone = [[model(x, scheme) for scheme in SCHEMES] for x in xs]
        together = threading.Barrier(4)

        def work(i, model=model, together=together, alone=alone):
            together.wait()
            order = [(i + k) % len(SCHEMES) for k in range(len(SCHEMES))]
            return [torch.equal(model(xs[i], SCHEMES[j]), alone[i][j]) for j in order]

        with ThreadPoolExecutor(4) as pool:
            assert all(all(row) for row in pool.map(work, range(4)))
        assert not any(m._forward_hooks for m in model.modules() if isinstance(m, torch.nn.GroupNorm))


def test_norms_are_shared_within_a_call_only(make_pipe):
    pipe, x = make_pipe(), torch.rand(3, 12, 7)
    alone, tiled = pipe(x, None), pipe(x, SHARED)
    strips = pipe.strips(x[None], SHARED)
    first = next(strips)
    assert torch.equal(pipe(x, None), alone), "also between two strips of another call"
    assert torch.equal(torch.cat([first, *strips], -2)[0], tiled)
    assert not torch.equal(tiled, pipe(x, TILED))


def test_compiled_networks_give_what_plain_ones_give(make_pipe):
    pipe, compiled, x = make_pipe(), make_pipe(), torch.rand(3, 9, 7)
    compiled.unet = torch.compile(compiled.unet, backend="eager")
    compiled.vae = torch.compile(compiled.vae, backend="eager")
    for scheme in (SHARED, None):
        assert torch.equal(compiled(x, scheme), pipe(x, scheme))
    pipe.unet.compile(backend="eager")
    with refused("compiled in place", "shared=False"):
        pipe(x, SHARED)


# -- the embedded model -----------------------------------------------------------------------------------------------


def test_the_embedded_model_restores(pairs):
    pipe = lab.tiny()
    assert pipe.prompt is None and (pipe.timestep, pipe.upscale, pipe.name, pipe.tile) == (999, 4, "tiny", 64)
    assert (pipe(pairs[0].lr) - pairs[0].hr).abs().mean() < 0.1


def test_pruning_cuts_the_branch_and_leaves_the_constant_embedding(pairs):
    full = lab.tiny(prompt=True)
    full.tile = 32
    pruned = full.prune()
    assert full.prompt is not None and pruned.prompt is None and type(pruned) is OneStepSR and pruned.tile == 32
    assert torch.equal(pruned(pairs[0].lr), lab.tiny()(pairs[0].lr))
    assert not torch.equal(full(pairs[0].lr), pruned(pairs[0].lr)), "the branch says nothing about this picture"
    torch.testing.assert_close(full.prompt.embed([""]), pruned.prompt_embedding, rtol=1e-2, atol=1e-2)  # in 16 bits
