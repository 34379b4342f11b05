"""A one-step model at another timestep, as an adapter: `python -m passionsr_lab train --timestep 249 ...`.

QArtSR's first stage (timestep retraining, TRQ), by least squares.  The prediction n of the model it starts from says
z_H = (z - s n) / sqrt(a); at the new timestep the network must predict (z - sqrt(a') z_H) / s' instead, which at t = 1
is nearly all residual.  An adapter of rank 1 tells the time embedding the old timestep, exactly; a group of channels of
the last block, the one that counts least, carries z to conv_out; and conv_out is the one that gives the new noise with
the least squared error, on crops of several sizes: fitted to one size, it loses tenths of a dB at others.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..imaging.pictures import upsample
from ..imaging.psnr import psnr_y
from ..pipeline.folder import load_pipeline
from ..pipeline.lora import delta
from ..pipeline.timesteps import ADAPTER, write_adapter
from ..util.hooks import hooks
from .train import LATENT_STD, Crops

CROPS = (64, 8), (128, 4), (256, 1)  # HR pixels, and how many are one batch
TIME = "time_embedding.linear_1"
OUT, NORM = "conv_out", "conv_norm_out"
ABOVE = 8.0  # standard deviations of z above zero, where it passes SiLU
RIDGE = 1e-3  # of least squares, in mean squares of what is multiplied: less quantizes worse, more restores worse


class Adapting:
    """The making of one adapter: of the time embedding a LoRA, the last layers anew; the VAE stays as it is.

    Args:
        images: a folder of photographs.
        timestep: the new one.
        seed: of crops and degradation.
        start: the model to adapt.
        crops: HR pixels and number of the crops of each batch, in turn.

    Raises:
        ValueError: the UNet has no room for the latent in its last block, or attention behind it.
    """

    def __init__(self, images: str | Path, timestep: int, seed: int = 0, start: str = "tiny", crops=CROPS):
        self.base, self.pipe = load_pipeline(start), load_pipeline(start)  # what it was, and the variant
        self.pipe.timestep = timestep
        self.last = _last_block(self.pipe.unet)
        self.whole = OUT, NORM, f"{self.last}.conv2", f"{self.last}.conv_shortcut"  # replaced instead of adapted
        self.photographs = Crops(images, seed)
        rng, turns = np.random.default_rng(seed), itertools.cycle(crops)
        self.batches = (self.photographs.batch(*turn, rng)[0] for turn in turns)
        self.lora = self._tell_old_time()
        self._carry()
        self._fit_out()

    def save(self, file: Path) -> Path:
        """Writes the adapter."""
        layers = {layer: self.pipe.unet.get_submodule(layer) for layer in self.whole}
        whole = {f"{name}.base_layer.{kind}": p for name, m in layers.items() for kind, p in m.named_parameters()}
        return write_adapter(file, self.base, self.lora | whole)

    @torch.no_grad()
    def validate(self) -> dict:
        """Mean PSNR-Y (dB) of the variant, of the model it comes from and of bicubic on the photographs held out."""
        pairs = self.photographs.validation()
        found = {
            "psnr_y": [psnr_y(self.pipe(lr), hr) for lr, hr in pairs],
            "start": [psnr_y(self.base(lr), hr) for lr, hr in pairs],
            "bicubic": [psnr_y(upsample(lr[None])[0], hr) for lr, hr in pairs],
        }
        return {name: float(np.mean(values)) for name, values in found.items()}

    @torch.no_grad()
    def _latents(self) -> Tensor:
        """z_L of the next crops."""
        return self.pipe.encode(self.pipe.prepare(next(self.batches)))

    @torch.no_grad()
    def _tell_old_time(self) -> dict[str, Tensor]:
        """W + w (e - e')^T / |e'|^2 ... W e' becomes W e: the change is (W (e - e')) e'^T / |e'|^2, of rank 1."""
        unet = self.pipe.unet
        times = self.base.timestep, self.pipe.timestep
        old, new = (unet.get_time_embed(torch.zeros(1, 1), t)[0].double() for t in times)
        weight = unet.get_parameter(f"{TIME}.weight")
        scale = float(delta(torch.ones(1, 1), torch.ones(1, 1)))  # what an adapter's product counts
        a = (new / new.norm()).float()[None]
        b = (weight.double() @ (old - new) / new.norm() / scale).float()[:, None]
        weight += delta(a, b)
        return {f"{TIME}.lora_{side}.{ADAPTER}.weight": t for side, t in zip("AB", (a, b))}

    @torch.no_grad()
    def _carry(self) -> None:
        """Gives z_L itself to conv_out: channels of the last block carry it, in the groups that count least.

        In a group each signal rides on a channel, and the negative of their sum on another: GroupNorm's mean is zero.
        Two constants pin its scale; far above zero SiLU changes nothing.
        """
        unet, norm = self.pipe.unet, self.pipe.unet.conv_norm_out
        block = unet.get_submodule(self.last)
        latents, size = unet.config.in_channels, norm.num_channels // norm.num_groups
        each = min(size - 3, latents)
        if each < 1 or math.ceil(latents / each) > norm.num_groups:
            raise ValueError(
                f"{norm.num_channels} channels in {norm.num_groups} groups cannot carry {latents} latents."
            )
        into = unet.conv_in.weight.double().flatten(1)  # (96, 72): the patch comes back out of it, its centre is z
        z = torch.linalg.pinv(into).view(latents, 9, -1)[:, 4].float()  # (8, 96)
        weight, bias = block.conv_shortcut.weight, block.conv_shortcut.bias
        added = -z @ unet.conv_in.bias
        z = F.pad(z, (weight.shape[1] - z.shape[1], 0))  # the skip connection is the last part of the input
        anchor = 30 * LATENT_STD
        for group, signals in zip(self._least_needed(math.ceil(latents / each)), torch.arange(latents).split(each)):
            rows = range(group * size, (group + 1) * size)
            ride, rest = rows[: len(signals)], rows[len(signals)]
            for layer in (block.conv2, block.conv_shortcut, norm):
                layer.weight[rows] = layer.bias[rows] = 0
            weight[ride], bias[ride] = z[signals, :, None, None], added[signals]
            weight[rest], bias[rest] = -z[signals].sum(0)[:, None, None], -added[signals].sum()
            bias[rows[-2]], bias[rows[-1]] = anchor, -anchor
            norm.weight[ride] = anchor * math.sqrt(2 / size) / LATENT_STD
            norm.bias[ride] = ABOVE

    def _least_needed(self, count: int, batches: int = 9) -> tuple[int, ...]:
        """The groups without which conv_out's other inputs, and z, still give its output with the least error."""
        groups = self.pipe.unet.conv_norm_out.num_groups
        products = targets = total = 0.0
        for _ in range(batches):
            z = self._latents()
            x, y = self._columns(self._entering(z), z), _rows(self.base.noise(z))
            products, targets, total = products + x.T @ x, targets + x.T @ y, total + y.square().sum()
        size = 9 * self.pipe.unet.conv_norm_out.num_channels // groups  # columns of a group
        errors = {}
        for left in itertools.combinations(range(groups), count):
            kept = torch.tensor([i for i in range(len(products)) if i // size not in left])
            found = _solved(products[kept][:, kept], targets[kept])
            errors[left] = float(total - (found * targets[kept]).sum())
        return min(errors, key=errors.__getitem__)

    @torch.no_grad()
    def _fit_out(self, batches: int = 24) -> None:
        """conv_out by least squares: from its inputs (865 with the bias) to the noise that gives the old z_H."""
        conv, a = self.pipe.unet.conv_out, self.pipe.scheduler.alphas_cumprod[self.pipe.timestep].double()
        products = targets = 0.0
        for _ in range(batches):
            z = self._latents()
            wanted = (z.double() - a.sqrt() * self.base.denoise(z).double()) / (1 - a).sqrt()
            x = self._columns(self._entering(z))
            products, targets = products + x.T @ x, targets + x.T @ _rows(wanted)
        found = _solved(products, targets).T
        conv.weight.copy_(found[:, :-1].reshape(conv.weight.shape))
        conv.bias.copy_(found[:, -1])

    def _columns(self, x: Tensor, *more: Tensor) -> Tensor:
        """What a 3x3 convolution of x multiplies, one row per pixel, with further maps and ones beside it."""
        patches = F.unfold(x, 3, padding=1).unflatten(2, x.shape[2:])
        return _rows(torch.cat([patches, *more, torch.ones_like(x[:, :1])], 1).double())

    def _entering(self, z: Tensor) -> Tensor:
        """What conv_out is given at the new timestep: (B, C, h, w)."""
        kept = []
        with hooks() as add:
            add(self.pipe.unet.conv_out.register_forward_pre_hook, lambda module, given: kept.append(given[0]))
            self.pipe.noise(z)
        return kept[0]


def _last_block(unet) -> str:
    """The name of the ResNet block before conv_norm_out."""
    number, block = len(unet.up_blocks) - 1, unet.up_blocks[-1]
    if getattr(block, "attentions", None):
        raise ValueError("This UNet ends in attention, behind which its last ResNet block cannot carry the latent.")
    return f"up_blocks.{number}.resnets.{len(block.resnets) - 1}"


def _rows(x: Tensor) -> Tensor:
    """(B, C, h, w) -> (B h w, C) in double precision."""
    return x.double().movedim(1, -1).flatten(0, -2)


def _solved(products: Tensor, targets: Tensor) -> Tensor:
    """The least squares' solution of small weights, which multiply what quantization adds the least."""
    return torch.linalg.solve(products + RIDGE * products.diagonal().mean() * torch.eye(len(products)), targets)
