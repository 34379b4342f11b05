"""Variants at other timesteps: where their training begins, what is written, and what loading refuses."""

import shutil
from dataclasses import replace

import pytest
import torch

from passionsr_lab.pipeline.folder import load_pipeline
from passionsr_lab.pipeline.identity import fingerprint
from passionsr_lab.tools.adapt import PHASE, Adapting
from passionsr_lab.tools.train import new_model

SHORT = replace(PHASE, steps=2, horizon=2, crop=48, batch=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return new_model(0).half().save(tmp_path_factory.mktemp("models") / "model")


@pytest.fixture(scope="module")
def begun(folder, photographs):
    return Adapting(photographs, 249, 0, str(folder), SHORT)


@pytest.fixture(scope="module")
def adapted(begun, folder):
    list(begun.run())
    begun.save(folder / "timesteps" / "249.safetensors")
    return folder


@torch.no_grad()
def test_a_variant_begins_with_the_features_of_the_old_timestep_and_near_its_latent(folder, photographs):
    begun = Adapting(photographs, 249, 0, str(folder), SHORT)
    z = begun.pipe.encode(torch.rand(1, 3, 64, 64) * 2 - 1)
    features = begun._entering(z)
    begun.timestep, begun.tensors = 999, {n: t * ("_B." not in n) for n, t in begun.tensors.items()}  # no adapters
    torch.testing.assert_close(features, begun._entering(z), rtol=1e-4, atol=1e-4)
    variant = Adapting(photographs, 249, 0, str(folder), SHORT).merged()
    old, new = begun.base.denoise(z), variant.denoise(z)
    assert (new - old).std() < 0.2 * old.std()


def test_training_changes_adapters_only_and_the_seed_decides(adapted, begun, photographs):
    again, other = (Adapting(photographs, 249, seed, str(adapted), SHORT) for seed in (0, 1))
    for work in (again, other):
        list(work.run())
    assert all(torch.equal(again.tensors[name], t) for name, t in begun.tensors.items())
    assert not all(torch.equal(other.tensors[name], t) for name, t in begun.tensors.items())
    assert fingerprint(begun.base) == fingerprint(load_pipeline(adapted))


@torch.no_grad()
def test_what_is_written_is_merged_on_loading_and_is_another_model(adapted, begun):
    variant, plain = load_pipeline(f"{adapted}@249"), load_pipeline(adapted)
    assert (variant.timestep, variant.name, plain.timestep) == (249, "model@249", 999)
    assert fingerprint(variant) != fingerprint(plain) == fingerprint(load_pipeline(f"{adapted}@999"))
    z = 0.3 * torch.randn(1, 8, 12, 12)
    torch.testing.assert_close(variant.denoise(z), begun.merged().denoise(z), rtol=0, atol=0.05)  # float16
    again = load_pipeline(variant.save(adapted.parent / "saved"))
    assert torch.equal(again.denoise(z), variant.denoise(z)) and fingerprint(again) == fingerprint(variant)


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
