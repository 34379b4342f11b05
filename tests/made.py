"""What several tests are made of: noise as pictures, photographs in folders, refusals in one sentence."""

from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image


def pixels(h=5, w=7, channels=3, seed=0, top=256, dtype=np.uint8):
    """Noise (h, w, channels), or (h, w) of one channel."""
    shape = (h, w, channels) if channels > 1 else (h, w)
    return np.random.default_rng(seed).integers(0, top, shape).astype(dtype)


def picture(h, w=None, seed=0):
    """Noise as a PIL image; a square where one edge is given."""
    return Image.fromarray(pixels(h, w or h, seed=seed))


def saved(folder, **pictures):
    """The folder, with PIL images in it as NAME.png."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, image in pictures.items():
        image.save(folder / f"{name}.png")
    return folder


@contextmanager
def refused(*words, kind=ValueError):
    """The block raises one sentence that has these words in it."""
    with pytest.raises(kind) as error:
        yield
    text = str(error.value)
    assert "\n" not in text.strip() and 20 < len(text) < 700, text
    for word in words:
        assert str(word) in text, (word, text)
