"""A small model, photographs, and commands that tell one JSON object."""

import json

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def picture():
    """A function (width, height, seed) -> a picture of noise."""

    def make(width, height, seed=0):
        return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8))

    return make


@pytest.fixture(scope="session")
def model(pipe, tmp_path_factory):
    return pipe.save(tmp_path_factory.mktemp("models") / "small")


@pytest.fixture(scope="session")
def photos(picture, tmp_path_factory):
    """A folder of three photographs of 80 x 72 pixels."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(3):
        picture(40 + i, 36, i).resize((80, 72)).save(folder / f"photo{i}.png")
    return folder


@pytest.fixture
def told(cli, monkeypatch, tmp_path):
    """A function (*arguments) -> (exit code, the one object on standard output in strict JSON, standard error)."""
    monkeypatch.setenv("PASSIONSR_STORE", str(tmp_path / "store"))

    def run(*arguments):
        code, out, err = cli(*arguments, "--json")
        assert out.count("\n") == 1 and out.endswith("\n"), err
        return code, json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON")), err

    return run
