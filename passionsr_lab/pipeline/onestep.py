"""One-step diffusion super-resolution: encode, denoise once, decode (OSEDiff; PassionSR section 3.1).

The pipeline is built from the diffusers classes as they are and knows nothing of quantization.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from numbers import Integral
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ..imaging.colour import fixed, require_fix
from ..imaging.pictures import to_tensor, upsample
from ..imaging.tiling import Tiling, cropped, enlarged, image_of, tensor_of
from ..util.files import write_json, write_tensors
from .configs import refuse_unsupported
from .path import Segment, segments
from .reading import write_network
from .streaming import decoded

DECIDING = ("unet", "vae", "scheduler", "timestep", "upscale")  # with the prompt's embedding: all but the weights
CONFIG = "passionsr.json"
EMBEDDING = "prompt_embedding.safetensors"
FORMAT = 1  # of the folder that `save` writes
UNTILED_BYTES = 2**30  # beside the weights: what a small laptop stands
MAX_OUTPUT = 2**29  # pixels of a picture that is held: 2 GB in 8 bits
MAX_UPSCALE = 16


class OneStepSR(nn.Module):
    """A one-step ×4 super-resolution pipeline: VAE encoder, one UNet step at `timestep`, VAE decoder.

    Args:
        unet: diffusers `UNet2DConditionModel` that predicts the noise.
        vae: diffusers `AutoencoderKL`.
        scheduler: any diffusers scheduler with DDPM's noise levels; only `alphas_cumprod` is read.
        prompt_embedding: (1, T, D), the text condition used when no prompt branch is present (PassionSR-FP).
        timestep: the one step, 999 in OSEDiff.
        upscale: the factor between the input and the output image.
        prompt: the branch that PassionSR cuts away (tagger and text encoder), or None.

    The networks compute in the type of their weights, whatever that is; what goes in and out keeps its own, and Eq. 9
    is computed in float64.

    Attributes:
        tile: edge of the tiles that "auto" takes, in latent pixels; a quantized pipeline has what it is calibrated on.

    Raises:
        ValueError: `timestep` or `upscale` is none, the schedule has no noise level in (0, 1] at `timestep`, or the
            parts' configurations say what the pipeline does not do (`configs.refuse_unknown`); also when one of these
            is set later, and before a picture is restored.

    Example:
        >>> import torch, passionsr_lab as lab
        >>> pipe = lab.tiny()
        >>> pipe(torch.rand(3, 20, 17)).shape
        torch.Size([3, 80, 68])
    """

    def __init__(self, unet, vae, scheduler, prompt_embedding: Tensor, timestep=999, upscale=4, prompt=None, name=""):
        super().__init__()
        self.name, self.prompt = name, prompt
        self.unet, self.vae, self.scheduler, self.timestep, self.upscale = unet, vae, scheduler, timestep, upscale
        self.tile = 64
        self.sources: dict[str, str] = {}  # SHA-256 of the files it was made of, where they are not its own
        self.register_buffer("prompt_embedding", prompt_embedding.float())
        self.eval().requires_grad_(False)

    def __setattr__(self, name: str, value) -> None:
        """What decides the output is refused or honoured whenever it is set."""
        if name in DECIDING:
            there = vars(self) | self._modules | {name: value}
            if all(key in there for key in DECIDING):
                _require_supported(self.name, **{key: there[key] for key in DECIDING})
        super().__setattr__(name, value)

    def _require_supported(self) -> None:
        """A configuration may have been changed in its place."""
        _require_supported(self.name, **{key: getattr(self, key) for key in DECIDING})

    # -- the three steps ------------------------------------------------------------------------------------------

    def encode(self, x: Tensor) -> Tensor:
        """Image (B, 3, H, W) in [-1, 1] -> scaled latent z_L (B, C, H/f, W/f), the mode of the posterior."""
        z = self.vae.encode(x.to(_dtype(self.vae))).latent_dist.mode()
        return z.to(x.dtype) * self.vae.config.scaling_factor

    def denoise(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """z_L -> z_H (B, C, h, w): one UNet step, then Eq. 9."""
        return self.clean(z, self.noise(z, condition))

    def decode(self, z: Tensor) -> Tensor:
        """z_H (B, C, h, w) -> image (B, 3, H, W), nominally in [-1, 1], not clamped."""
        return self.vae.decode((z / self.vae.config.scaling_factor).to(_dtype(self.vae))).sample.to(z.dtype)

    def noise(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """The noise that the UNet predicts in z (B, C, h, w) under `condition` (1 or B, T, D)."""
        condition, dtype = self.prompt_embedding if condition is None else condition, _dtype(self.unet)
        return self.unet(z.to(dtype), self.timestep, condition.to(dtype).expand(len(z), -1, -1)).sample.to(z.dtype)

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

        Returns:
            A tensor is float32 in [0, 1]; a PIL image has the colour profile of the given one.

        Raises:
            ValueError: for what `pictures.to_tensor` refuses, another `tiling` or `colour`, and an output of over
                `MAX_OUTPUT` pixels.
            FloatingPointError: encoder, UNet or decoder gave NaN or infinite values; the message says which.
        """
        lr = to_tensor(image)
        if isinstance(image, Image.Image):
            out = self.picture(lr, tiling, colour)
            if image.mode == "RGB" and "icc_profile" in image.info:
                out.info["icc_profile"] = image.info["icc_profile"]
            return out
        batch = lr if lr.ndim == 4 else lr[None]
        out = tensor_of(self.strips(batch, tiling, colour), (len(batch), 3, *self._output_size(batch)))
        return (out if lr.ndim == 4 else out[0]).to(image.device)

    def picture(
        self, lr: Tensor, tiling: Tiling | str | None = "auto", colour: str = "nofix",
        callback: Callable[[int, int], None] | None = None,
    ) -> Image.Image:  # fmt: skip
        """LR (3, H, W) in [0, 1] -> an 8-bit PIL image; arguments and errors as for a call.

        `callback` is called after every strip with the rows that are done and their number in all.
        """
        height, width = self._output_size(lr[None])

        def counted(done: int = 0) -> Iterator[Tensor]:
            for strip in self.strips(lr[None], tiling, colour, torch.float16):
                yield strip
                done += strip.shape[-2]
                if callback is not None:
                    callback(done, height)

        return image_of(counted(), height, width)

    @torch.no_grad()
    def strips(self, lr: Tensor, tiling="auto", colour="nofix", keep=torch.float32) -> Iterator[Tensor]:
        """The output for LR (B, 3, h, w) in [0, 1] as strips (B, 3, *, 4w) in [0, 1], from top to bottom, as they come.

        `keep` is how "adain", which must see the whole picture before it changes any of it, holds it meanwhile.
        """
        require_fix(colour)
        self._require_supported()
        tiling = self._tiling(tiling, len(lr) * lr.shape[-2], lr.shape[-1])
        size = [n * self.upscale for n in lr.shape[-2:]]
        strips = ((strip.float() / 2 + 0.5).clamp(0, 1) for strip in cropped(decoded(self, lr, tiling), *size))
        yield from fixed(strips, enlarged(lr, self.upscale), colour, *size, keep)

    def _output_size(self, lr: Tensor) -> list[int]:
        """Height and width of the output for LR (B, 3, h, w)."""
        size = [n * self.upscale for n in lr.shape[-2:]]
        if (pixels := len(lr) * size[0] * size[1]) > MAX_OUTPUT:
            raise ValueError(
                f"The output would be {size[1]}x{size[0]}, in all {pixels:,} pixels, more than {MAX_OUTPUT:,};"
                " cut the picture, or take `strips` one by one."
            )
        return size

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
        """Whether an LR picture of this size needs no tiles: it is within one, or takes less than `UNTILED_BYTES`.

        The most is held where the decoder has the image's size and not yet its fewest channels: measured on the
        embedded model, eight such tensors at once.
        """
        pixels = height * width * self.upscale**2
        channels = self.vae.config.block_out_channels[:2][-1]
        return pixels <= (self.tiling.tile * self.factor) ** 2 or 8 * 4 * channels * pixels <= UNTILED_BYTES

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
        pruned.sources, pruned.tile = dict(self.sources), self.tile
        return pruned

    def save(self, folder: str | Path) -> Path:
        """Writes the folder that `load` reads: diffusers layout, prompt embedding, `passionsr.json`."""
        folder = Path(folder)
        for name in ("unet", "vae", "scheduler"):
            saved = getattr(self, name)
            saved.register_to_config(_name_or_path="")  # not the folder that it was loaded from
            saved.save_config(folder / name)
        for name in ("unet", "vae"):
            write_network(getattr(self, name), folder / name)
        write_tensors(folder / EMBEDDING, {"prompt_embedding": self.prompt_embedding})
        if self.prompt is not None:
            self.prompt.save(folder)
        write_json(folder / CONFIG, {"format": FORMAT, "timestep": self.timestep, "upscale": self.upscale})
        return folder


def _require_supported(name: str, unet, vae, scheduler, timestep, upscale) -> None:
    """`ValueError` for what the parts' configurations or the settings say and the pipeline does not do."""
    refuse_unsupported(scheduler, vae, unet, name or "the model")
    require_settings(timestep, upscale, scheduler.alphas_cumprod)


def require_settings(timestep: int, upscale: int, alphas_cumprod: Tensor, where: str = "") -> None:
    """`ValueError` unless both are whole numbers that make sense and the noise level at `timestep` is in (0, 1].

    `where` is what the message begins with.
    """
    steps = len(alphas_cumprod)
    for name, value, low, high in (("timestep", timestep, 0, steps - 1), ("upscale", upscale, 1, MAX_UPSCALE)):
        if isinstance(value, bool) or not isinstance(value, Integral) or not low <= value <= high:
            raise ValueError(f"{where}{name} is a whole number from {low} to {high}, not {value!r}.")
    level = float(alphas_cumprod[timestep])
    if not 0 < level <= 1:
        raise ValueError(f"{where}alphas_cumprod is {level} at timestep {timestep}, but Eq. 9 divides by its root.")


def _dtype(network: nn.Module) -> torch.dtype:
    return next(network.parameters()).dtype
