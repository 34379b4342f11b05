"""One-step diffusion super-resolution: encode, denoise once, decode (OSEDiff; PassionSR section 3.1).

The pipeline is built from the diffusers classes as they are and knows nothing of quantization.
"""

from __future__ import annotations

from pathlib import Path
from typing import Iterator

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ..imaging.colour import fixed, require_fix
from ..imaging.pictures import to_tensor, upsample
from ..imaging.tiling import Tiling, cropped, enlarged, image_of, in_tiles, padded, tensor_of, thumbnail
from ..util.files import write_json, write_tensors
from .path import Segment, segments
from .shared_norms import SharedNorms

CONFIG = "passionsr.json"
EMBEDDING = "prompt_embedding.safetensors"
WHOLE = 2**30  # bytes beside the weights: what a small laptop stands


class OneStepSR(nn.Module):
    """A one-step ×4 super-resolution pipeline: VAE encoder, one UNet step at `timestep`, VAE decoder.

    Args:
        unet: diffusers `UNet2DConditionModel` that predicts the noise.
        vae: diffusers `AutoencoderKL`.
        scheduler: any diffusers scheduler; only `alphas_cumprod` is read.
        prompt_embedding: (1, T, D), the text condition used when no prompt branch is present (PassionSR-FP).
        timestep: the one step, 999 in OSEDiff.
        upscale: the factor between the input and the output image.
        prompt: the branch that PassionSR cuts away (tagger and text encoder), or None.

    Example:
        >>> import torch, passionsr_lab as lab
        >>> pipe = lab.tiny()
        >>> pipe(torch.rand(3, 20, 17)).shape
        torch.Size([3, 80, 68])
    """

    def __init__(self, unet, vae, scheduler, prompt_embedding: Tensor, timestep=999, upscale=4, prompt=None, name=""):
        super().__init__()
        self.unet, self.vae, self.scheduler, self.prompt = unet, vae, scheduler, prompt
        self.timestep, self.upscale, self.name = timestep, upscale, name
        self.tile = 64
        self.sources: dict[str, str] = {}  # SHA-256 of the files it was made of, where they are not its own
        self.register_buffer("prompt_embedding", prompt_embedding.float())
        self.eval().requires_grad_(False)

    # -- the three steps ------------------------------------------------------------------------------------------

    def encode(self, x: Tensor) -> Tensor:
        """Image (B, 3, H, W) in [-1, 1] -> scaled latent z_L (B, C, H/f, W/f), the mode of the posterior."""
        return self.vae.encode(x).latent_dist.mode() * self.vae.config.scaling_factor

    def denoise(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """z_L -> z_H (B, C, h, w): one UNet step, then Eq. 9."""
        return self.clean(z, self.noise(z, condition))

    def decode(self, z: Tensor) -> Tensor:
        """z_H (B, C, h, w) -> image (B, 3, H, W), nominally in [-1, 1], not clamped."""
        return self.vae.decode(z / self.vae.config.scaling_factor).sample

    def noise(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """The noise that the UNet predicts in z (B, C, h, w) under `condition` (1 or B, T, D)."""
        condition = self.prompt_embedding if condition is None else condition
        return self.unet(z, self.timestep, condition.expand(len(z), -1, -1)).sample

    def clean(self, z: Tensor, noise: Tensor) -> Tensor:
        """Eq. 9, I(z) = (z - sqrt(1 - a) noise) / sqrt(a), in float64: at t = 999 it multiplies errors by 14.6."""
        a = self.scheduler.alphas_cumprod[self.timestep].double()
        return ((z.double() - (1 - a).sqrt() * noise.double()) / a.sqrt()).to(z.dtype)

    def restore(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """The whole path, differentiable: up-sampled LR (B, 3, H, W) in [-1, 1] -> image, not clamped."""
        return self.decode(self.denoise(self.encode(x), condition))

    def segments(self) -> tuple[Segment, ...]:
        """The path as data: encoder, UNet and decoder, each with its modules and how it runs."""
        return segments(self)

    # -- pictures in, pictures out --------------------------------------------------------------------------------

    @torch.no_grad()
    def forward(
        self, image: Image.Image | Tensor, tiling: Tiling | str | None = "auto", colour: str = "nofix"
    ) -> Image.Image | Tensor:
        """Super-resolves a PIL image, or a tensor (3, H, W) or (B, 3, H, W) in [0, 1]; the same kind comes out, ×4.

        Any size from 1x1 works: the border is repeated up to what the network divides by, then cut off again.

        Args:
            image: the LR picture.
            tiling: how a large picture is cut, None for never, or "auto": `self.tiling` for what `self.fits_whole`
                says no to.  In tiles, only the output grows with the picture's height; what a PIL image takes beside
                its 8-bit output is one row of tiles.
            colour: "adain" (OSEDiff's default), "wavelet" or "nofix", against the enlarged LR picture.

        Raises:
            ValueError: for what `data.to_tensor` refuses, and another `tiling` or `colour`.
        """
        lr = to_tensor(image)
        if isinstance(image, Image.Image):
            return self.picture(lr, tiling, colour)
        batch = lr if lr.ndim == 4 else lr[None]
        size = [n * self.upscale for n in batch.shape[-2:]]
        out = tensor_of(self.strips(batch, tiling, colour), (len(batch), 3, *size))
        return (out if lr.ndim == 4 else out[0]).to(image.device)

    def picture(self, lr: Tensor, tiling: Tiling | str | None = "auto", colour: str = "nofix") -> Image.Image:
        """LR (3, H, W) in [0, 1] -> an 8-bit PIL image; arguments and errors as for a call."""
        strips = self.strips(lr[None], tiling, colour, torch.float16)
        return image_of(strips, *(n * self.upscale for n in lr.shape[-2:]))

    @torch.no_grad()
    def strips(self, lr: Tensor, tiling="auto", colour="nofix", keep=torch.float32) -> Iterator[Tensor]:
        """The output for LR (B, 3, h, w) in [0, 1] as strips (B, 3, *, 4w) in [0, 1], from top to bottom, as they come.

        `keep` is how "adain", which must see the whole picture before it changes any of it, holds it meanwhile.
        """
        require_fix(colour)
        tiling = self._tiling(tiling, len(lr) * lr.shape[-2], lr.shape[-1])
        size, device = [n * self.upscale for n in lr.shape[-2:]], self.prompt_embedding.device
        condition = self.prompt(lr.to(device)) if self.prompt is not None else None
        if tiling is None:
            strips = [self.restore(self.prepare(lr.to(device)), condition)]
        else:
            whole = [n + -n % self.multiple for n in size]
            x = (strip.to(device) * 2 - 1 for strip in padded(enlarged(lr, self.upscale), *whole))
            steps = self.encode, lambda z: self.denoise(z, condition), self.decode
            if tiling.shared:
                small = self.prepare(thumbnail(lr, tiling.tile * self.factor // self.upscale).to(device))
                norms = SharedNorms(self, lambda: self.restore(small, condition))
                steps = map(norms.using, steps)
            strips = in_tiles(x, *whole, tiling, *steps, self.factor, self.multiple // self.factor)
        strips = ((strip / 2 + 0.5).clamp(0, 1) for strip in cropped(strips, *size))
        yield from fixed(strips, enlarged(lr, self.upscale), colour, *size, keep)

    def _tiling(self, tiling: Tiling | str | None, height: int, width: int) -> Tiling | None:
        if tiling == "auto":
            return None if self.fits_whole(height, width) else self.tiling
        if tiling is not None and not isinstance(tiling, Tiling):
            raise ValueError(f"tiling is 'auto', None or a Tiling, not {tiling!r}.")
        return tiling

    @property
    def tiling(self) -> Tiling:
        """The tiles that "auto" takes."""
        return Tiling(self.tile)

    def fits_whole(self, height: int, width: int) -> bool:
        """Whether an LR picture of this size needs no tiles: it is within one, or takes less than `WHOLE` bytes.

        The most is held where the decoder has the image's size and not yet its fewest channels: measured on the
        embedded model, eight such tensors at once.
        """
        pixels = height * width * self.upscale**2
        channels = self.vae.config.block_out_channels[:2][-1]
        return pixels <= (self.tiling.tile * self.factor) ** 2 or 8 * 4 * channels * pixels <= WHOLE

    def prepare(self, lr: Tensor) -> Tensor:
        """LR (B, 3, h, w) in [0, 1] -> bicubic ×4 in [-1, 1], its border repeated to a multiple of `self.multiple`."""
        x = upsample(lr, self.upscale) * 2 - 1
        h, w = x.shape[-2:]
        return F.pad(x, (0, -w % self.multiple, 0, -h % self.multiple), mode="replicate")

    @property
    def factor(self) -> int:
        """Image pixels per latent pixel along one axis (8 for SD2.1)."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def multiple(self) -> int:
        """Image sizes that VAE and UNet divide without remainder."""
        return self.factor * 2 ** (len(self.unet.config.block_out_channels) - 1)

    # -- PassionSR-FP, folders ------------------------------------------------------------------------------------

    def prune(self) -> OneStepSR:
        """PassionSR-FP: the same pipeline without its prompt branch; weights are shared, not copied."""
        pruned = OneStepSR(
            self.unet, self.vae, self.scheduler, self.prompt_embedding, self.timestep, self.upscale, None, self.name
        )
        pruned.sources = dict(self.sources)
        return pruned

    def save(self, folder: str | Path) -> Path:
        """Writes the folder that `load` reads: diffusers layout, prompt embedding, `passionsr.json`."""
        folder = Path(folder)
        for part in ("unet", "vae", "scheduler"):
            getattr(self, part).register_to_config(_name_or_path="")  # not the folder that it was loaded from
            getattr(self, part).save_pretrained(folder / part)
        write_tensors(folder / EMBEDDING, {"prompt_embedding": self.prompt_embedding})
        if self.prompt is not None:
            self.prompt.save(folder)
        write_json(folder / CONFIG, {"timestep": self.timestep, "upscale": self.upscale})
        return folder
