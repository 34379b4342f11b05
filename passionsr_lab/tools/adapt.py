"""Retrains a one-step model at another timestep, as an adapter: `python -m passionsr_lab train --timestep 249 ...`.

QArtSR's first stage (timestep retraining, TRQ) by a short training of our own.  The prediction n of the model it starts
from says z_H = (z - s n) / sqrt(a); at the new timestep the network must predict (z - sqrt(a') z_H) / s' instead, which
at t = 1 is nearly all residual.  It begins near the old model: an adapter of rank 1 tells the time embedding the old
timestep, exactly; a group of channels of the last block, the one that counts least, carries z to conv_out; and conv_out
is the one that gives the new noise with the least squared error.
"""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ..imaging.pictures import upsample
from ..imaging.psnr import psnr_y
from ..pipeline.folder import load_pipeline
from ..pipeline.lora import LoRA, delta, merge
from ..pipeline.onestep import OneStepSR
from ..pipeline.timesteps import ADAPTER, write_adapter
from ..util.hooks import hooks
from .train import LATENT_STD, Crops, Phase

PHASE = Phase("another timestep", 100, 96, 4, 0.0, 2e-4, horizon=100, warm=20)  # the loss is `Adapting._loss`
RANK = 3
TIME = "time_embedding.linear_1"
OUT = "conv_out"
LAST = "up_blocks.2.resnets.1"  # the block before it
BASE = ".base_layer."
ABOVE = 8.0  # standard deviations of z above zero, where it passes SiLU
WHOLE = (OUT, "conv_norm_out", f"{LAST}.conv2", f"{LAST}.conv_shortcut")  # replaced instead of adapted
REPLACED = tuple(f"{layer}{BASE}{kind}" for layer in WHOLE for kind in ("weight", "bias"))


class Adapting:
    """The training of one adapter: a LoRA in the UNet's layers, and the last ones anew; the VAE stays as it is.

    Args:
        images: a folder of photographs.
        timestep: the new one.
        seed: of adapters, crops and degradation.
        start: the model to adapt.
        phase: how long, on what; `lr_unet` is the rate of the adapters.
    """

    def __init__(self, images: str | Path, timestep: int, seed: int = 0, start: str = "tiny", phase: Phase = PHASE):
        self.phase, self.seed, self.timestep = phase, seed, timestep
        self.base, self.pipe = load_pipeline(start), load_pipeline(start)
        self.pipe.timestep = timestep
        self.crops, self.rng = Crops(images, seed), np.random.default_rng(seed)
        self.tensors = self._start(torch.Generator().manual_seed(seed))

    def run(self) -> Iterator[dict]:
        """One record a step."""
        optimizer = torch.optim.AdamW(self._groups(), betas=(0.9, 0.99), weight_decay=0.0)
        rates = [group["lr"] for group in optimizer.param_groups]
        for step in range(self.phase.steps):
            begun = time.perf_counter()
            for group, rate in zip(optimizer.param_groups, rates):
                group["lr"] = rate * (self.phase.cosine(step) * self.phase.warming(step))
            loss = self._loss()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.tensors.values(), 1.0)
            optimizer.step()
            record = {"step": step + 1, "of": self.phase.steps, "phase": self.phase.name, "loss": loss.item()}
            yield record | {"seconds": time.perf_counter() - begun}

    def save(self, file: Path) -> Path:
        """Writes the adapter."""
        return write_adapter(file, self.base, self.tensors)

    @torch.no_grad()
    def validate(self) -> dict:
        """Mean PSNR-Y (dB) of the variant, of the model it comes from and of bicubic on the photographs held out."""
        merged, pairs = self.merged(), self.crops.validation()
        found = {
            "psnr_y": [psnr_y(merged(lr), hr) for lr, hr in pairs],
            "start": [psnr_y(self.base(lr), hr) for lr, hr in pairs],
            "bicubic": [psnr_y(upsample(lr[None])[0], hr) for lr, hr in pairs],
        }
        return {name: float(np.mean(values)) for name, values in found.items()}

    def merged(self) -> OneStepSR:
        """The variant as it stands."""
        pipe = copy.deepcopy(self.pipe)
        tensors = {name: tensor.detach() for name, tensor in self.tensors.items()}
        merge(pipe.unet, LoRA(RANK, {ADAPTER: tuple(self.layers)}, tensors))
        return pipe

    # -- the adapted UNet -----------------------------------------------------------------------------------------

    def _weights(self) -> dict[str, Tensor]:
        """The UNet's weights with the adapters merged."""
        own = dict(self.pipe.unet.named_parameters())
        found = {name.replace(BASE, "."): self.tensors[name] for name in REPLACED}
        for layer in self.layers:
            a, b = (self.tensors[f"{layer}.lora_{side}.{ADAPTER}.weight"] for side in "AB")
            found[f"{layer}.weight"] = own[f"{layer}.weight"] + delta(a, b)
        return found

    def _loss(self) -> Tensor:
        """The squared error of z_H, with the adapters, against that of the model it starts from."""
        z = self._latents()
        with torch.no_grad():
            wanted = self.base.denoise(z)
        return F.mse_loss(self.pipe.clean(z, self._noise(z)), wanted)

    @torch.no_grad()
    def _latents(self) -> Tensor:
        """z_L of the next crops."""
        return self.pipe.encode(self.pipe.prepare(self.crops.batch(self.phase, self.rng)[0]))

    def _noise(self, z: Tensor) -> Tensor:
        """The UNet's prediction with the adapters."""
        condition = self.pipe.prompt_embedding.expand(len(z), -1, -1)
        return functional_call(self.pipe.unet, self._weights(), (z, self.timestep, condition)).sample

    def _groups(self) -> list[dict]:
        """Rates: the new conv_out is many times larger than the old one, and so are its steps."""
        out, block, lora = [], [], []
        for name, tensor in self.tensors.items():
            (lora if BASE not in name else out if name.startswith(OUT) else block).append(tensor)
        growth = float(out[0].detach().std() / self.base.unet.conv_out.weight.std())
        rate = self.phase.lr_unet
        return [{"params": p, "lr": r * rate} for p, r in ((lora, 1.0), (block, 0.15), (out, 0.1 * growth))]

    # -- where it begins ------------------------------------------------------------------------------------------

    def _start(self, draw: torch.Generator) -> dict[str, Tensor]:
        """A is drawn, B is zero: nothing changes but what the time embedding and conv_out need."""
        unet, tensors = self.pipe.unet, {}
        self.layers = [
            name for name, m in unet.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d)) and name not in WHOLE
        ]
        for layer in self.layers:
            weight = unet.get_parameter(f"{layer}.weight")
            bound = 1 / math.sqrt(weight[0].numel())
            a = torch.empty(RANK, *weight.shape[1:]).uniform_(-bound, bound, generator=draw)
            tensors[f"{layer}.lora_A.{ADAPTER}.weight"] = a
            tensors[f"{layer}.lora_B.{ADAPTER}.weight"] = torch.zeros(len(weight), RANK, *[1] * (weight.ndim - 2))
        self._tell_old_time(tensors)
        self.tensors = tensors | {name: unet.get_parameter(name.replace(BASE, ".")).clone() for name in REPLACED}
        self._carry()
        self._fit_out()
        return {name: t.detach().clone().requires_grad_(True) for name, t in self.tensors.items()}

    @torch.no_grad()
    def _carry(self) -> None:
        """Gives z_L itself to conv_out: channels of the last block carry it, in the groups that count least.

        In a group each signal rides on a channel, and the negative of their sum on another: GroupNorm's mean is zero.
        Two constants pin its scale; far above zero SiLU changes nothing.
        """
        unet, norm, tensors = self.pipe.unet, self.pipe.unet.conv_norm_out, self.tensors
        latents, size = unet.config.in_channels, norm.num_channels // norm.num_groups
        each = min(size - 3, latents)
        if each < 1 or math.ceil(latents / each) > norm.num_groups:
            raise ValueError(
                f"{norm.num_channels} channels in {norm.num_groups} groups cannot carry {latents} latents."
            )
        into = unet.conv_in.weight.double().flatten(1)  # (96, 72): the patch comes back out of it, its centre is z
        z = torch.linalg.pinv(into).view(latents, 9, -1)[:, 4].float()  # (8, 96)
        weight, bias = (tensors[f"{LAST}.conv_shortcut{BASE}{kind}"] for kind in ("weight", "bias"))
        added = -z @ unet.conv_in.bias
        z = F.pad(z, (weight.shape[1] - z.shape[1], 0))  # the skip connection is the last part of the input
        anchor = 30 * LATENT_STD
        for group, signals in zip(self._least_needed(math.ceil(latents / each)), torch.arange(latents).split(each)):
            rows = range(group * size, (group + 1) * size)
            ride, rest = rows[: len(signals)], rows[len(signals)]
            for kind in ("weight", "bias"):
                tensors[f"{LAST}.conv2{BASE}{kind}"][rows] = 0
                tensors[f"conv_norm_out{BASE}{kind}"][rows] = 0
            weight[rows] = bias[rows] = 0
            weight[ride], bias[ride] = z[signals, :, None, None], added[signals]
            weight[rest], bias[rest] = -z[signals].sum(0)[:, None, None], -added[signals].sum()
            bias[rows[-2]], bias[rows[-1]] = anchor, -anchor
            tensors[f"conv_norm_out{BASE}weight"][ride] = anchor * math.sqrt(2 / size) / LATENT_STD
            tensors[f"conv_norm_out{BASE}bias"][ride] = ABOVE

    def _least_needed(self, count: int, batches: int = 8) -> tuple[int, ...]:
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
    def _tell_old_time(self, tensors: dict[str, Tensor]) -> None:
        """W + w (e - e')^T / |e'|^2 ... W e' becomes W e: the change is (W (e - e')) e'^T / |e'|^2, of rank 1."""
        unet = self.pipe.unet
        old, new = (unet.get_time_embed(torch.zeros(1, 1), t)[0].double() for t in (self.base.timestep, self.timestep))
        a, b = (f"{TIME}.lora_{side}.{ADAPTER}.weight" for side in "AB")
        weight = unet.get_parameter(f"{TIME}.weight").double()
        scale = float(delta(torch.ones(RANK, 1), torch.eye(1, RANK)))  # what an adapter's first product counts
        tensors[a][0] = (new / new.norm()).float()
        tensors[b][:, 0] = (weight @ (old - new) / new.norm() / scale).float()

    @torch.no_grad()
    def _fit_out(self, batches: int = 24) -> None:
        """conv_out by least squares: from its inputs (865 with the bias) to the noise that gives the old z_H."""
        conv, levels = self.pipe.unet.conv_out, self.pipe.scheduler.alphas_cumprod.double()
        a = levels[self.timestep]
        products = targets = 0.0
        for _ in range(batches):
            z = self._latents()
            wanted = (z.double() - a.sqrt() * self.base.denoise(z).double()) / (1 - a).sqrt()
            x = self._columns(self._entering(z))
            products, targets = products + x.T @ x, targets + x.T @ _rows(wanted)
        found = _solved(products, targets).T
        self.tensors[f"{OUT}{BASE}weight"] = found[:, :-1].reshape(conv.weight.shape).float()
        self.tensors[f"{OUT}{BASE}bias"] = found[:, -1].float()

    def _columns(self, x: Tensor, *more: Tensor) -> Tensor:
        """What a 3x3 convolution of x multiplies, one row per pixel, with further maps and ones beside it."""
        patches = F.unfold(x, 3, padding=1).unflatten(2, x.shape[2:])
        return _rows(torch.cat([patches, *more, torch.ones_like(x[:, :1])], 1).double())

    def _entering(self, z: Tensor) -> Tensor:
        """What conv_out is given at the new timestep: (B, C, h, w)."""
        kept = []
        with hooks() as add:
            add(self.pipe.unet.conv_out.register_forward_pre_hook, lambda module, given: kept.append(given[0]))
            self._noise(z)
        return kept[0]


def _rows(x: Tensor) -> Tensor:
    """(B, C, h, w) -> (B h w, C) in double precision."""
    return x.double().movedim(1, -1).flatten(0, -2)


def _solved(products: Tensor, targets: Tensor) -> Tensor:
    """The least squares' solution, a little regularized."""
    return torch.linalg.solve(products + 1e-9 * products.diagonal().mean() * torch.eye(len(products)), targets)
