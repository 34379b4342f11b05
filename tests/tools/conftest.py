"""Photographs to train on."""

import pytest

from passionsr_lab.imaging.pairs import photograph
from passionsr_lab.imaging.pictures import to_image


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """A folder of four small photographs."""
    folder = tmp_path_factory.mktemp("photographs")
    for i, name in enumerate(("astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg")):
        to_image(photograph(name)[:, 40:168, 60:200]).save(folder / f"{i}.png")
    return folder
