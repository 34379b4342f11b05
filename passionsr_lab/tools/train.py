"""Trains the embedded model, or a smaller one: `python -m passionsr_lab train --images PHOTOGRAPHS --out MODEL`.

Encoder, UNet and decoder learn ×4 super-resolution together, on random crops of any photographs, through Eq. 9 at
t = 999.  Training begins at the quality of linear interpolation (`start_linear`, `pass_through`), not under an error
amplified 14.6 times.  Seeded, resumable: state is written every few minutes and read back when `--out` holds it.
"""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..imaging.degradation import Degradation
from ..imaging.pairs import crop
from ..imaging.pictures import image_files, read_image, upsample
from ..imaging.psnr import luma, psnr_y
from ..pipeline.folder import load_pipeline
from ..pipeline.onestep import OneStepSR
from ..pipeline.prompt import measure_tags, new_branch, words
from ..util.compat import torchvision_importable
from ..util.files import write_checkpoint

RATIO = 4.0  # standard deviation of z_H over that of z_L at the start: how much Eq. 9 must add
CONDITION_RATE = 1.0  # learning rate of tagger, text encoder and cross-attention over the UNet's
LATENT_STD = 0.25  # of z_L at the start; an image in [-1, 1] has about 0.5


@dataclass(frozen=True)
class Phase:
    """A stretch of training: `steps` of `batch` crops of `crop` HR pixels, learning rates falling by a cosine.

    horizon: the steps over which the cosine is laid; more than `steps` stops it early.
    errors: "absolute"; "squared", with luma counted twice; or "decibels", the logarithm of each crop's squared error,
        which is what a mean PSNR-Y averages.
    prompted: the part of the crops whose tags are in the prompt.
    warm: the steps over which the rates rise first.
    """

    name: str
    steps: int
    crop: int
    batch: int
    lr_vae: float
    lr_unet: float
    horizon: int
    errors: str = "absolute"
    prompted: float = 0.5
    warm: int = 100

    def shortened(self, part: float) -> Phase:
        """The same with this part of its steps, at least one."""
        return replace(self, steps=max(1, round(part * self.steps)), horizon=max(1, round(part * self.horizon)))

    def cosine(self, position: int) -> float:
        """From 1 at the first step to 0 at the horizon."""
        return 0.5 * (1 + math.cos(math.pi * position / self.horizon))

    def warming(self, position: int) -> float:
        """Up to 1 over the first steps."""
        return min(1.0, (position + 1) / self.warm)


PHASES = (
    Phase("absolute errors", 2400, 128, 4, 5e-4, 3e-4, horizon=3000),
    Phase("squared errors", 1300, 128, 4, 3e-4, 2e-4, horizon=1300, errors="squared"),
    Phase("large crops", 150, 256, 2, 1e-4, 5e-5, horizon=150, errors="squared"),
    Phase("squared errors again", 2800, 128, 4, 3e-4, 2e-4, horizon=2800, errors="squared"),
    Phase("large crops again", 200, 256, 2, 1e-4, 5e-5, horizon=200, errors="squared"),
    Phase("sharpened and softer", 4200, 128, 4, 4e-4, 3e-4, horizon=4200, errors="decibels", prompted=0.7),
    Phase("as real pairs", 4500, 128, 4, 4e-4, 3e-4, horizon=4500, errors="decibels", prompted=0.9),
)


@dataclass(frozen=True)
class Shape:
    """Channels of a model: of the VAE's and the UNet's three levels, of its latents; attention heads of the UNet."""

    vae: tuple[int, int, int]
    latents: int
    unet: tuple[int, int, int]
    heads: tuple[int, int, int]


SHAPES = {
    "tiny": Shape((24, 48, 64), 8, (96, 128, 128), (3, 4, 4)),  # the embedded model
    "narrow": Shape((16, 32, 48), 4, (64, 96, 96), (2, 3, 3)),  # to see whether what holds for one holds for another
}


def new_model(seed: int = 0, shape: Shape = SHAPES["tiny"]) -> OneStepSR:
    """An architecture with random weights: SD2.1's block types at about a hundredth of its size."""
    torchvision_importable()
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel

    torch.manual_seed(seed)
    vae = AutoencoderKL(
        block_out_channels=shape.vae,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=shape.latents,
        norm_num_groups=4,
        sample_size=512,
        scaling_factor=0.5,
    )
    unet = UNet2DConditionModel(
        sample_size=128,
        in_channels=shape.latents,
        out_channels=shape.latents,
        block_out_channels=shape.unet,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=64,
        attention_head_dim=shape.heads,
        use_linear_projection=True,
        norm_num_groups=8,
    )
    scheduler = DDPMScheduler(
        1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
    )
    branch = new_branch(unet.config.cross_attention_dim)
    model = OneStepSR(unet, vae, scheduler, branch.embed([""]), prompt=branch, name="tiny")
    start_linear(vae)
    pass_through(model)
    return model


class Carriers:
    """Where `count` signals ride through GroupNorm and SiLU unharmed: as channel pairs (+z, -z).

    silu(z) - silu(-z) = z, and two constant channels +-anchor in the same group pin GroupNorm's scale.  The
    first groups carry.
    """

    def __init__(self, width: int, groups: int, count: int, std: float):
        size = width // groups
        per_group = (size - 2) // 2
        used = math.ceil(count / per_group) if per_group else groups + 1
        if used > groups:
            raise ValueError(f"{width} channels in {groups} groups cannot carry {count} signals.")
        starts = [size * (i // per_group) for i in range(count)]
        self.plus = [start + i % per_group for i, start in enumerate(starts)]
        self.minus = [start + per_group + i % per_group for i, start in enumerate(starts)]
        self.anchors = [size * (g + 1) - k for g in range(used) for k in (2, 1)]
        self.rows = [*range(size * used)]
        self.anchor = 30 * std
        self.norm = math.sqrt(2 * self.anchor**2 / size + 2 * per_group * std**2 / size)

    def enter(self, shortcut: nn.Conv2d, offset: int = 0) -> None:
        """The 1x1 convolution writes its inputs offset, offset + 1, ... as pairs, and the anchors."""
        signals = torch.eye(shortcut.in_channels)[offset : offset + len(self.plus)]
        weight, bias = shortcut.weight, shortcut.bias
        weight[self.rows] = bias[self.rows] = 0
        weight[self.plus], weight[self.minus] = signals[..., None, None], -signals[..., None, None]
        bias[self.anchors] = self.anchor * torch.tensor([1.0, -1.0]).repeat(len(self.anchors) // 2)

    def leave(self, norm: nn.GroupNorm, conv: nn.Conv2d, gain: float = 1.0) -> None:
        """Norm, SiLU and convolution give the signals back, times `gain`, as the first output channels."""
        norm.weight[self.rows] = 0
        norm.weight[self.plus + self.minus] = self.norm
        conv.weight[:, self.rows] = 0
        for i, (plus, minus) in enumerate(zip(self.plus, self.minus)):
            conv.weight[i, plus, 1, 1] = gain
            conv.weight[i, minus, 1, 1] = -gain


@torch.no_grad()
def start_linear(vae) -> None:
    """Encoder: three latents are the image at a quarter of its size.  Decoder: linear interpolation of them."""
    for layer in vae.modules():
        if type(layer).__name__ == "ResnetBlock2D":
            nn.init.zeros_(layer.conv2.weight)
            nn.init.zeros_(layer.conv2.bias)
        elif type(layer).__name__ == "Attention":
            nn.init.zeros_(layer.to_out[0].weight)
            nn.init.zeros_(layer.to_out[0].bias)
    encoder, decoder, latents = vae.encoder, vae.decoder, vae.config.latent_channels
    centre = torch.zeros(3, 3)
    centre[1, 1] = 1
    corner, middle = torch.zeros(3, 3), torch.zeros(3, 3)
    corner[0, 0], middle[1:, 1:] = 1, 0.25  # together: the mean of the middle four of sixteen pixels
    tent = torch.tensor([1.0, 2.0, 1.0])
    tent = tent[:, None] * tent / 16  # after nearest x2: linear interpolation
    _carry(encoder.conv_in, centre)
    _carry(encoder.down_blocks[0].downsamplers[0].conv, middle)
    _carry(encoder.down_blocks[1].resnets[0].conv_shortcut, torch.ones(1, 1))
    _carry(encoder.down_blocks[1].downsamplers[0].conv, corner)
    _carry(decoder.conv_in, centre / RATIO)
    _carry(decoder.up_blocks[0].upsamplers[0].conv, tent)
    _carry(decoder.up_blocks[1].resnets[0].conv_shortcut, torch.ones(1, 1))
    _carry(decoder.up_blocks[1].upsamplers[0].conv, tent)
    for part, shortcut in ((encoder, encoder.down_blocks[2]), (decoder, decoder.up_blocks[2])):
        part.conv_out.weight[:3] *= 0.02
        part.conv_out.bias.zero_()
        carriers = Carriers(part.conv_norm_out.num_channels, part.conv_norm_out.num_groups, 3, 0.5)
        carriers.enter(shortcut.resnets[0].conv_shortcut)
        carriers.leave(part.conv_norm_out, part.conv_out)
    encoder.conv_out.weight[3:] *= 0.5
    encoder.conv_out.weight[latents:] *= 0.02
    encoder.conv_out.bias[latents:] = -8  # the posterior's log variance
    for conv in (vae.quant_conv, vae.post_quant_conv):
        nn.init.dirac_(conv.weight)
        nn.init.zeros_(conv.bias)


def _carry(conv: nn.Conv2d, kernel: Tensor) -> None:
    """The first three outputs are the first three inputs, filtered."""
    conv.weight[:3] = 0
    conv.bias[:3] = 0
    for i in range(3):
        conv.weight[i, i] = kernel


@torch.no_grad()
def pass_through(model: OneStepSR) -> None:
    """Sets the UNet so that Eq. 9 gives z_H = RATIO * z_L: z rides on the outermost skip connection."""
    unet, c = model.unet, model.unet.config.in_channels
    a = float(model.scheduler.alphas_cumprod[model.timestep])
    resnet, width = unet.up_blocks[-1].resnets[-1], unet.conv_norm_out.num_channels
    carriers = Carriers(width, unet.conv_norm_out.num_groups, c, LATENT_STD)
    nn.init.zeros_(unet.conv_in.weight[:c])
    nn.init.zeros_(unet.conv_in.bias[:c])
    unet.conv_in.weight[range(c), range(c), 1, 1] = 1
    unet.conv_out.weight.mul_(0.02)
    unet.conv_out.bias.zero_()
    carriers.enter(resnet.conv_shortcut, offset=resnet.conv_shortcut.in_channels - width)
    carriers.leave(unet.conv_norm_out, unet.conv_out, (1 - RATIO * a**0.5) / (1 - a) ** 0.5)
    resnet.conv2.weight[carriers.rows] = 0
    resnet.conv2.bias[carriers.rows] = 0


class Crops:
    """Random crops of the photographs in a folder, flipped and turned, with their degraded versions."""

    def __init__(self, folder: str | Path, seed: int, held_out: int = 20):
        files = [image_files(folder)[i] for i in np.random.default_rng(seed).permutation(len(image_files(folder)))]
        held_out = min(held_out, len(files) // 4)
        self.images = [(read_image(f) * 255).byte() for f in files]
        self.train, self.test = self.images[held_out:], self.images[:held_out]
        self.degrade = Degradation()

    def batch(self, size: int, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """(count, 3, size/4, size/4) LR and (count, 3, size, size) HR in [0, 1]."""
        pairs = [self._pair(self.train[rng.integers(len(self.train))], size, rng) for _ in range(count)]
        return torch.stack([p[0] for p in pairs]), torch.stack([p[1] for p in pairs])

    def _pair(self, image: Tensor, size: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        hr = crop(image, size, rng).float() / 255
        hr = torch.rot90(hr, int(rng.integers(4)), (1, 2))
        hr = hr.flip(2) if rng.random() < 0.5 else hr
        return self.degrade(hr, rng), hr

    def validation(self, size: int = 256) -> list[tuple[Tensor, Tensor]]:
        """One fixed pair from each photograph held out."""
        rng = np.random.default_rng(0)
        hrs = [crop(image, size, rng).float() / 255 for image in self.test]
        return [(self.degrade(hr, rng), hr) for hr in hrs]


def reconstruction_loss(y: Tensor, x: Tensor, phase: Phase) -> Tensor:
    """Of images in [-1, 1]: errors of pixels, and of Fourier coefficients so that sharpness is not traded away."""
    error = y.float() - x
    brightness = luma(error).sub(16 / 255).square()
    if phase.errors == "decibels":
        return (brightness.mean((1, 2)) + 0.2 * error.square().mean((1, 2, 3)) + 1e-4).log().mean()
    spectrum = torch.fft.rfft2(error, norm="ortho").abs().mean()
    if phase.errors == "squared":
        return error.square().mean() + brightness.mean() + 0.01 * spectrum
    return error.abs().mean() + 0.1 * spectrum


class Training:
    """The state of a training run: model, optimiser, moving average, random generators, step.

    Args:
        images: a folder of photographs.
        seed: of weights, crops and degradation.
        phases: what to do, in order.
        start: a model with a prompt branch to go on from; None begins with `new_model`.
        new_prompt: begin the prompt branch anew.
        shape: of a new model.
    """

    def __init__(
        self,
        images: str | Path,
        seed: int = 0,
        phases: tuple[Phase, ...] = PHASES,
        start: str | None = None,
        new_prompt: bool = False,
        shape: Shape = SHAPES["tiny"],
    ):
        self.phases, self.seed, self.step = phases, seed, 0
        torch.manual_seed(seed)
        self.model = load_pipeline(start, prompt=not new_prompt) if start else new_model(seed, shape)
        if new_prompt:
            self.model.prompt = new_branch(self.model.unet.config.cross_attention_dim)
        self.model.requires_grad_(True)
        self.average = {k: v.clone() for k, v in self.model.state_dict().items()}
        self.crops = Crops(images, seed)
        self.rng = np.random.default_rng(seed)
        self.bfloat16 = torch.cpu.get_capabilities().get("avx512_bf16", False)  # without, it is slower than float32
        condition = [p for name, p in self.model.unet.named_parameters() if ".attn2." in name]
        rest = [p for name, p in self.model.unet.named_parameters() if ".attn2." not in name]
        parts = list(self.model.vae.parameters()), rest, [*condition, *self.model.prompt.parameters()]
        groups = [{"params": part} for part in parts]
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.99), weight_decay=0.0, fused=True)

    @property
    def total(self) -> int:
        """Steps of all phases together."""
        return sum(phase.steps for phase in self.phases)

    def run(self) -> Iterator[dict]:
        """One record a step until all phases are done."""
        while self.step < self.total:
            phase, position = self._phase()
            start = time.perf_counter()
            loss = self._train_step(phase, position)
            self.step += 1
            seconds = time.perf_counter() - start
            yield {"step": self.step, "of": self.total, "phase": phase.name, "loss": loss, "seconds": seconds}

    def _phase(self) -> tuple[Phase, int]:
        position = self.step
        for phase in self.phases:
            if position < phase.steps:
                return phase, position
            position -= phase.steps
        raise StopIteration

    def _train_step(self, phase: Phase, position: int) -> float:
        decay, warm = phase.cosine(position) * 0.95 + 0.05, phase.warming(position)
        rates = phase.lr_vae, phase.lr_unet, CONDITION_RATE * phase.lr_unet
        for group, rate in zip(self.optimizer.param_groups, rates):
            group["lr"] = rate * decay * warm
        lr, hr = self.crops.batch(phase.crop, phase.batch, self.rng)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16):
            loss = self._loss(lr, hr, phase)
        self.optimizer.zero_grad()
        loss.backward()
        for group in self.optimizer.param_groups:
            nn.utils.clip_grad_norm_(group["params"], 1.0)
        self.optimizer.step()
        keep = min(0.998, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(self.average.values()), list(self.model.state_dict().values()), 1 - keep)
        return loss.item()

    def _loss(self, lr: Tensor, hr: Tensor, phase: Phase) -> Tensor:
        branch, tags = self.model.prompt, measure_tags(hr, lr)
        prompts = [words(row) if self.rng.random() < phase.prompted else "" for row in tags]
        y = self.model.restore(self.model.prepare(lr), branch.embed(prompts))
        tagging = F.binary_cross_entropy_with_logits(branch.tagger(lr), tags)
        return reconstruction_loss(y, hr * 2 - 1, phase) + 0.01 * tagging

    @torch.no_grad()
    def validate(self) -> dict:
        """Mean PSNR-Y (dB) of the averaged model and of bicubic on the photographs held out."""
        model = self.averaged().prune()
        pairs = self.crops.validation()
        ours = [psnr_y(model(lr), hr) for lr, hr in pairs]
        bicubic = [psnr_y(upsample(lr[None])[0], hr) for lr, hr in pairs]
        return {"psnr_y": float(np.mean(ours)), "bicubic": float(np.mean(bicubic))}

    @torch.no_grad()
    def averaged(self) -> OneStepSR:
        """The model with averaged weights, its empty-prompt embedding brought up to date."""
        model = copy.deepcopy(self.model).requires_grad_(False)
        model.load_state_dict(self.average)
        model.prompt_embedding.copy_(model.prompt.embed([""]))
        return model

    def save(self, path: str | Path) -> None:
        """Writes everything that `resume` needs, atomically."""
        state = {
            "step": self.step,
            "seed": self.seed,
            "model": self.model.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "torch_rng": torch.get_rng_state(),
            "numpy_rng": str(self.rng.bit_generator.state),
        }
        write_checkpoint(path, state)

    def resume(self, path: str | Path) -> None:
        """Goes on from a state that `save` wrote."""
        import ast

        state = torch.load(path, weights_only=True)
        self.step, self.average = state["step"], state["average"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["torch_rng"])
        self.rng.bit_generator.state = ast.literal_eval(state["numpy_rng"])
