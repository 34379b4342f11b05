"""A small model with SD2.1's names, and released files for it."""

import pytest
import torch
from released import release, small_sd21

from passionsr_lab.official.released import load_released


@pytest.fixture(scope="package")
def small():
    return small_sd21()


@pytest.fixture(scope="package")
def files(small, tmp_path_factory):
    """Paths of a UNet file with split quantizers and a VAE file without."""
    folder = tmp_path_factory.mktemp("released")
    paths = [folder / f"{part}_ckpt_merge_saw_sep.pth" for part in ("unet", "vae")]
    for path, part in zip(paths, ("unet", "vae")):
        torch.save(release(small, part, split=part == "unet"), path)
    return paths


@pytest.fixture(scope="package")
def model(small, tmp_path_factory):
    """The small model's folder."""
    return small.save(tmp_path_factory.mktemp("models") / "small-sd21")


@pytest.fixture(scope="package")
def released(small, files):
    """Both files in the small model, in both numerics; tests leave them as they are."""
    return {n: load_released(small, files, "W8A8", numerics=n) for n in ("official", "paper")}
