"""The smallest pipeline that has every kind of layer, and every method's calibration of it."""

import pytest

import passionsr_lab as lab


@pytest.fixture(scope="session")
def toy(make_pipe):
    """One level of 4 channels in the VAE and of 8 in the UNet, attention in both middles."""
    return make_pipe(vae=(4,), unet=(8,), width=4, name="toy")


@pytest.fixture(scope="session")
def few():
    """Two pairs of 4 and 16 pixels."""
    return lab.bundled("calibration", 2, 16, seed=2)


@pytest.fixture(scope="session")
def ran(toy, few):
    """A function (method, recipe) -> (calibrated toy, records), made once; tests leave it as it is."""
    made = {}

    def get(name, recipe):
        if (name, recipe) not in made:
            q = lab.quantize(toy, recipe)
            made[name, recipe] = q, lab.calibrate(q, few, name, epochs=1, batch=2)
        return made[name, recipe]

    return get
