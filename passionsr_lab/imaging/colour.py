"""The colour fixes of StableSR and OSEDiff: a picture's colours from the enlarged LR image, its detail from the model.

Both work on streams of strips (see `tiling`), so that a large picture is corrected without being there as a whole in
full precision.  Images are (B, 3, H, W) in [0, 1].
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .tiling import Axis, blended

FIXES = ("adain", "wavelet", "nofix")
LEVELS = 5  # of the wavelet decomposition
REACH = 2**LEVELS  # pixels that it looks to each side, and one
WINDOW = 256  # pixels, edge of the windows in which a large picture is decomposed


def require_fix(name: str) -> None:
    """`ValueError` for what is none of `FIXES`."""
    if name not in FIXES:
        raise ValueError(f"colour is one of {', '.join(FIXES)}, not {name!r}.")


def adain(image: Tensor, reference: Tensor) -> Tensor:
    """Each channel's mean and standard deviation set to the reference's; clamped to [0, 1].

    Example:
        >>> x, y = torch.rand(1, 3, 64, 64) / 2 + 0.2, torch.rand(1, 3, 64, 64) / 3 + 0.3
        >>> torch.allclose(adain(x, y).mean((2, 3)), y.mean((2, 3)), atol=1e-3)
        True
    """
    return torch.cat(list(adain_strips([image], [reference])), -2)


def adain_strips(
    strips: Iterable[Tensor], references: Iterable[Tensor], keep: torch.dtype = torch.float32
) -> Iterator[Tensor]:
    """`adain` on streams.  The statistics need the whole picture first: it is held meanwhile, as `keep`."""
    own, target, held = _Moments(), _Moments(), []
    for strip in strips:
        own.add(strip)
        held.append(strip.to("cpu", keep))
    for reference in references:
        target.add(reference)
    gain = target.deviation() / own.deviation()
    offset = target.mean() - own.mean() * gain
    held.reverse()
    while held:
        yield (held.pop().float() * gain + offset).clamp(0, 1)


class _Moments:
    """Mean and standard deviation of every image and channel over a stream."""

    def __init__(self):
        self.count, self.sums = 0, 0

    def add(self, strip: Tensor) -> None:
        x = strip.detach().double().cpu() - 0.5
        self.count += x.shape[-1] * x.shape[-2]
        self.sums = self.sums + torch.stack((x.sum((2, 3), True), x.square().sum((2, 3), True)))

    def mean(self) -> Tensor:
        """(B, 3, 1, 1) float32."""
        return (self.sums[0] / self.count + 0.5).float()

    def deviation(self) -> Tensor:
        """(B, 3, 1, 1) float32; from the unbiased variance and 1e-5, as in the official code."""
        variance = (self.sums[1] - self.sums[0].square() / self.count) / max(1, self.count - 1)
        return (variance.clamp_min(0) + 1e-5).sqrt().float()


def wavelet(image: Tensor, reference: Tensor) -> Tensor:
    """The image's high frequencies on the reference's low ones; clamped to [0, 1].

    Example:
        >>> x = torch.rand(1, 3, 40, 40)
        >>> torch.allclose(wavelet(x, x), x, atol=1e-6)
        True
    """
    return (image - low_frequencies(image) + low_frequencies(reference)).clamp(0, 1)


def low_frequencies(x: Tensor) -> Tensor:
    """What five levels of the à trous wavelet leave: blurs by [1 2 1] / 4 both ways, 1, 2, 4, 8, 16 pixels apart."""
    kernel = torch.tensor([0.25, 0.5, 0.25]).to(x)
    for level in range(LEVELS):
        gap = 2**level
        for shape, pad in (((1, 1, 1, 3), (gap, gap, 0, 0)), ((1, 1, 3, 1), (0, 0, gap, gap))):
            weight = kernel.view(shape).expand(x.shape[1], *shape[1:])
            x = F.conv2d(F.pad(x, pad, mode="replicate"), weight, dilation=gap, groups=x.shape[1])
    return x


def wavelet_strips(strips: Iterable[Tensor], references: Iterable[Tensor], height: int, width: int) -> Iterator[Tensor]:
    """`wavelet` on streams of a picture (height, width): it is local, so windows that overlap give the same."""
    rows, columns = (Axis.cut(n, WINDOW, 2 * REACH, soft=False) for n in (height, width))
    both = (torch.cat(pair, 1) for pair in alongside(strips, references))
    return blended(both, rows, columns, lambda x: wavelet(x[:, :3], x[:, 3:]))


def alongside(strips: Iterable[Tensor], others: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Each strip of the first stream with the same rows of the second, on the CPU."""
    others, held = iter(others), None
    for strip in strips:
        held = next(others).cpu() if held is None else held
        while held.shape[-2] < strip.shape[-2]:
            held = torch.cat((held, next(others).cpu()), -2)
        yield strip.cpu(), held[..., : strip.shape[-2], :]
        held = held[..., strip.shape[-2] :, :].clone()


def fixed(
    strips: Iterable[Tensor], references: Iterable[Tensor], fix: str, height: int, width: int, keep=torch.float32
) -> Iterator[Tensor]:
    """The stream with one of `FIXES` applied; `ValueError` for another name."""
    require_fix(fix)
    if fix == "adain":
        return adain_strips(strips, references, keep)
    return wavelet_strips(strips, references, height, width) if fix == "wavelet" else iter(strips)
