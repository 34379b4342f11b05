"""SD2.1 at small widths in every layout, and a folder of weights that tests put them into."""

import shutil
import sys

import pytest
import torch
from safetensors.torch import save_file
from synthetic import osediff_file, shrink, single_file

from passionsr_lab.fullsize import sd21, text, weights

SINGLE = "v2-1_512-ema-pruned"
WIDTHS = {"UNET": dict(sd21.UNET), "VAE": dict(sd21.VAE)}


@pytest.fixture
def real(monkeypatch):
    """SD2.1 at its real widths on the meta device, whether or not other tests have it small."""
    for name, values in WIDTHS.items():
        monkeypatch.setattr(sd21, name, values)
    return sd21.sd21()


@pytest.fixture(scope="package")
def small():
    """Every name stays, widths and the text encoder's depth do not."""
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        yield


@pytest.fixture(scope="package")
def base(small):
    """SD2.1 with random weights that half precision holds."""
    torch.manual_seed(0)
    pipe = sd21.sd21("cpu")
    for tensor in pipe.parameters():
        tensor.copy_(tensor.half())
    return pipe


@pytest.fixture(scope="package")
def shelf(base, tmp_path_factory):
    """A folder of weights: sd21/ in diffusers' layout, the two single files, osediff.pkl."""
    folder = tmp_path_factory.mktemp("weights")
    state = single_file(base.unet, base.vae)
    save_file(state, folder / f"{SINGLE}.safetensors")
    half = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    with trainers_class() as bookkeeping:
        torch.save({"state_dict": half, "epoch": 3, "callbacks": {bookkeeping: {"best": 1}}}, folder / f"{SINGLE}.ckpt")
    for name in ("unet", "vae", "scheduler"):
        getattr(base, name).save_pretrained(folder / "sd21" / name)
    text.text_encoder(text.from_open_clip(state)).save_pretrained(folder / "sd21" / "text_encoder")
    torch.save(osediff_file(base), folder / "osediff.pkl")
    return folder


class trainers_class:
    """`with` this a class pickles as Lightning's, which exists only meanwhile."""

    name = "pytorch_lightning.callbacks.model_checkpoint"

    def __enter__(self):
        made = type("ModelCheckpoint", (), {"__module__": self.name})
        for end in range(1, 4):
            module = ".".join(self.name.split(".")[:end])
            sys.modules[module] = type(sys)(module)
        sys.modules[self.name].ModelCheckpoint = made
        return made

    def __exit__(self, *_):
        for name in [name for name in sys.modules if name.startswith("pytorch_lightning")]:
            del sys.modules[name]


@pytest.fixture
def here(shelf, tmp_path, monkeypatch):
    """A function that puts things from the shelf into the (empty) folder of weights; the hub's cache is empty too."""
    from huggingface_hub import constants

    monkeypatch.setenv(weights.VARIABLE, str(tmp_path / "weights"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def put(*names, into=tmp_path / "weights"):
        into.mkdir(exist_ok=True, parents=True)
        for name in names:
            copy = shutil.copytree if (shelf / name).is_dir() else shutil.copy
            copy(shelf / name, into / name)
        return into

    return put
