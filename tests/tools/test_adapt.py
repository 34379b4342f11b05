"""Variants at other timesteps: what their adapters are made of, what is written, and what loading refuses."""

import shutil

import numpy as np
import pytest
import torch

from passionsr_lab.pipeline.folder import load_pipeline
from passionsr_lab.pipeline.identity import fingerprint
from passionsr_lab.tools.adapt import OUT, TIME, Adapting
from passionsr_lab.tools.train import new_model
from passionsr_lab.util.hooks import hooks

SMALL = (32, 4), (48, 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return new_model(0).half().save(tmp_path_factory.mktemp("models") / "model")


@pytest.fixture(scope="module")
def made(folder, photographs):
    return Adapting(photographs, 249, 0, str(folder), SMALL)


@pytest.fixture(scope="module")
def adapted(made, folder):
    made.save(folder / "timesteps" / "249.safetensors")
    return folder


def latents(work, size):
    """z_L of crops that it was not fitted on."""
    return work.base.encode(work.base.prepare(work.photographs.batch(size, 4, np.random.default_rng(7))[0]))


@torch.no_grad()
def test_a_variant_has_the_features_of_the_old_timestep_and_nearly_its_latent(made):
    z = latents(made, 64)
    seen = []  # what leaves the block before the one that is made anew
    with hooks() as add:
        for pipe in (made.pipe, made.base):
            add(pipe.unet.up_blocks[2].resnets[0].register_forward_hook, lambda *call: seen.append(call[2]))
        after, before = made.pipe.denoise(z), made.base.denoise(z)
    torch.testing.assert_close(*seen, rtol=1e-4, atol=1e-4)
    assert (after - before).std() < 0.1 * before.std()


@torch.no_grad()
def test_crops_of_every_size_are_fitted(folder, photographs, made):
    small = Adapting(photographs, 249, 0, str(folder), SMALL[:1])
    z = latents(made, 48)
    errors = [(work.pipe.denoise(z) - work.base.denoise(z)).square().mean() for work in (made, small)]
    assert errors[0] < errors[1]


def test_only_the_adapted_layers_change_and_the_seed_decides(adapted, made, photographs):
    again, other = (Adapting(photographs, 249, seed, str(adapted), SMALL) for seed in (0, 1))
    weights = dict(made.pipe.unet.named_parameters())
    assert all(torch.equal(p, weights[name]) for name, p in again.pipe.unet.named_parameters())
    assert not torch.equal(other.pipe.unet.conv_out.weight, made.pipe.unet.conv_out.weight)
    changed = {n.rpartition(".")[0] for n, p in made.base.unet.named_parameters() if not torch.equal(p, weights[n])}
    assert {TIME, OUT} < changed <= {TIME, *made.whole}
    assert fingerprint(made.base) == fingerprint(load_pipeline(adapted))


@torch.no_grad()
def test_what_is_written_is_merged_on_loading_and_is_another_model(adapted, made):
    variant, plain = load_pipeline(f"{adapted}@249"), load_pipeline(adapted)
    assert (variant.timestep, variant.name, plain.timestep) == (249, "model@249", 999)
    assert fingerprint(variant) != fingerprint(plain) == fingerprint(load_pipeline(f"{adapted}@999"))
    z = 0.3 * torch.randn(1, 8, 12, 12)
    torch.testing.assert_close(variant.denoise(z), made.pipe.denoise(z), rtol=0, atol=0.05)  # float16
    again = load_pipeline(variant.save(adapted.parent / "saved"))
    assert torch.equal(again.denoise(z), variant.denoise(z)) and fingerprint(again) == fingerprint(variant)


@torch.no_grad()
def test_a_model_of_other_depth_is_adapted_and_one_that_ends_in_attention_refused(make_pipe, photographs, tmp_path):
    deep, cross = make_pipe(unet=(16, 24, 32, 32)).save(tmp_path / "deep"), make_pipe(cross=True).save(tmp_path / "c")
    work = Adapting(photographs, 249, 0, str(deep), SMALL)
    z = latents(work, 48)
    assert (work.pipe.denoise(z) - work.base.denoise(z)).std() < 0.5 * work.base.denoise(z).std()
    with pytest.raises(ValueError, match="ends in attention"):
        Adapting(photographs, 249, 0, str(cross), SMALL)


@pytest.mark.parametrize(
    "harm, reason",
    [
        (lambda copy: None, "no adapter for t = 7; it has t = 999, 249"),
        (
            lambda copy: shutil.copy(copy / "timesteps/249.safetensors", copy / "timesteps/7.safetensors"),
            "other weights",
        ),
        (lambda copy: (copy / "timesteps/7.safetensors").write_bytes(b"{}"), "damaged or no checkpoint"),
    ],
)
def test_an_adapter_that_is_missing_damaged_or_of_other_weights_is_refused(adapted, tmp_path, harm, reason):
    copy = shutil.copytree(adapted, tmp_path / "copy")
    pipe = load_pipeline(copy)
    pipe.unet.conv_in.weight.mul_(1.01)
    pipe.save(copy)
    harm(copy)
    with pytest.raises(ValueError, match=reason):
        load_pipeline(f"{copy}@7")
