"""Shared fixtures: very small pipelines with random weights, a few pairs, calibrated copies; and no network."""

import copy
import os
import socket

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported, and for every child process
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import pytest
import torch

from passionsr_lab.cli.main import main
from passionsr_lab.imaging.pairs import bundled
from passionsr_lab.methods import calibrate
from passionsr_lab.pipeline.onestep import OneStepSR
from passionsr_lab.quantization.place import quantize
from passionsr_lab.quantization.quantizer import BoundaryQuantizer
from passionsr_lab.quantization.recipe import recipe
from passionsr_lab.util.compat import torchvision_importable

collect_ignore = ["browser"]  # `make browser`


@pytest.fixture(scope="session", autouse=True)
def no_network():
    """A connection to anything but this machine fails the test that tries."""
    original = socket.socket.connect

    def connect(self, address):
        local = self.family == socket.AF_UNIX or str(address[0]).startswith(("127.", "localhost", "::1"))
        if not local:
            raise AssertionError(f"A test tried to reach {address}.")
        return original(self, address)

    patch = pytest.MonkeyPatch()
    patch.setattr(socket.socket, "connect", connect)
    yield
    patch.undo()


@pytest.fixture(scope="session", autouse=True)
def no_store(tmp_path_factory):
    """The store is a new one, also for child processes."""
    patch = pytest.MonkeyPatch()
    patch.setenv("PASSIONSR_STORE", str(tmp_path_factory.mktemp("store")))
    yield
    patch.undo()


def build(
    vae=(8, 16),
    unet=(16, 32),
    latent=4,
    width=12,
    timestep=999,
    seed=0,
    cross=False,
    name="small",
    linear=True,
    quant_conv=True,
) -> OneStepSR:
    """A pipeline of any widths with random weights, scaled so that latents and images stay near 1.

    The UNet's middle block has self- and cross-attention; with `cross` its outermost blocks have too.  `linear` and
    `quant_conv` are diffusers' use_linear_projection and use_(post_)quant_conv.
    """
    torchvision_importable()
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel

    torch.manual_seed(seed)
    levels = len(vae)
    autoencoder = AutoencoderKL(
        block_out_channels=vae, down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels, layers_per_block=1, latent_channels=latent,
        norm_num_groups=4, scaling_factor=0.5, use_quant_conv=quant_conv, use_post_quant_conv=quant_conv,
    )  # fmt: skip
    denoiser = UNet2DConditionModel(
        in_channels=latent, out_channels=latent, block_out_channels=unet,
        down_block_types=("CrossAttnDownBlock2D" if cross else "DownBlock2D",) + ("DownBlock2D",) * (len(unet) - 1),
        up_block_types=("UpBlock2D",) * (len(unet) - 1) + ("CrossAttnUpBlock2D" if cross else "UpBlock2D",),
        layers_per_block=1,
        cross_attention_dim=width, attention_head_dim=2, use_linear_projection=linear, norm_num_groups=4,
    )  # fmt: skip
    scheduler = DDPMScheduler(1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    with torch.no_grad():
        for norm in (m for m in [*autoencoder.modules(), *denoiser.modules()] if isinstance(m, torch.nn.GroupNorm)):
            norm.weight.copy_(torch.randn_like(norm.weight).exp())  # channels differ, as in a trained model
        denoiser.conv_out.weight.mul_(0.05)
        autoencoder.decoder.conv_out.weight.mul_(0.2)
    return OneStepSR(denoiser, autoencoder, scheduler, torch.randn(1, 5, width), timestep, 4, None, name)


@pytest.fixture(scope="session")
def make_pipe():
    """`build`, for tests that need another architecture."""
    return build


@pytest.fixture(scope="session")
def pipe():
    """The usual small pipeline; tests leave it as it is."""
    return build()


@pytest.fixture(scope="session")
def pairs():
    """Six pairs of 8 and 32 pixels."""
    return bundled("calibration", count=6, size=32)


@pytest.fixture(scope="session")
def calibrated(pipe, pairs):
    """A function (recipe, method) -> calibrated pipeline, made once; tests leave it as it is."""
    made = {}

    def get(recipe_or_name="W6A6", method="let", **options):
        wanted = recipe(recipe_or_name) if isinstance(recipe_or_name, str) else recipe_or_name
        key = wanted, method, tuple(sorted(options.items()))
        if key not in made:
            made[key] = quantize(pipe, wanted)
            calibrate(made[key], pairs, method, **options)
        return made[key]

    return get


@pytest.fixture
def cli(capsys):
    """A function (*arguments) -> (exit code, standard output, standard error)."""

    def run(*arguments):
        try:
            code = main([str(a) for a in arguments])
        except SystemExit as stop:  # argparse
            code = stop.code
        return code, *capsys.readouterr()

    return run


class PassThrough(torch.nn.Module):
    """In a quantizer's place: rounds nothing."""

    def forward(self, x, low, high):
        return x


class Frozen(torch.nn.Module):
    """In a quantizer's place: its smooth part, with the rounding errors of the first call kept as constants.

    A finite difference of what this gives is what the quantizer's gradient must be.
    """

    def __init__(self, quantizer):
        super().__init__()
        self.quantizer, self.kept = quantizer, None

    def forward(self, x, low, high):
        lower, upper = self.quantizer.bounds(low, high)
        integer, levels = self.quantizer.zero_point == "integer", 2**self.quantizer.bits - 1
        if integer:
            lower, upper = lower.clamp_max(0), upper.clamp_min(0)
        step = (upper - lower) / levels
        if self.kept is None:
            zero = (lower / step).round() - lower / step if integer else torch.zeros_like(lower)
            code = (x - lower) / step - zero
            rounding = code.round().clamp(0, levels) - code
            self.kept = zero, rounding, code.round() < 0, code.round() > levels
        zero, rounding, below, above = self.kept
        base = lower + zero * step
        return torch.where(below, base, torch.where(above, base + levels * step, x + rounding * step))


def replace_quantizers(module, make):
    """Puts `make(quantizer)` in the place of every boundary quantizer below `module`."""
    for name, child in list(module.named_modules()):
        if isinstance(child, BoundaryQuantizer):
            module.set_submodule(name, make(child))
    return module


@pytest.fixture(scope="session")
def without_rounding():
    """A function: a copy of a quantized module in which nothing is rounded, so that only LET is left."""
    return lambda module: replace_quantizers(copy.deepcopy(module), lambda quantizer: PassThrough())


@pytest.fixture(scope="session")
def frozen():
    """A function: a copy of a quantized module with `Frozen` quantizers."""
    return lambda module: replace_quantizers(copy.deepcopy(module), Frozen)


@pytest.fixture(scope="session")
def slopes():
    """A function (f, x, count) -> (indices, central differences of the scalar f() in some entries of x, float64)."""

    @torch.no_grad()
    def differences(f, x, count=6, width=1e-6):
        flat = x.data.view(-1)
        indices = torch.linspace(0, len(flat) - 1, min(count, len(flat))).round().long()
        found = []
        for i in indices:
            old = flat[i].clone()
            flat[i] = old + width
            up = f()
            flat[i] = old - width
            found.append((up - f()) / (2 * width))
            flat[i] = old
        return indices, torch.stack(found)

    return differences
