"""Pictures of any size in bounded memory: overlapping tiles, streamed from top to bottom.

A picture travels as a stream of strips, tensors (B, C, rows, W) one below the other.  `blended` turns one stream into
another, tile by tile, and holds one row of tiles at a time.  Encoder, UNet and decoder are three such streams, one
behind the other; so neither the latents of a large picture nor its image in floating point are ever there as a whole.

Latent tiles are blended with Gaussian weights, as in OSEDiff's and PassionSR's code.  Those weights are a product of
one factor per axis, and so is their sum: each axis is normalized on its own, and no map of weights is needed.  Blending
the predicted noise and then applying Eq. 9 is the same as blending z_H: Eq. 9 is affine in the noise, and the weights
sum to one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .pictures import to_image, upsample

VARIANCE = 0.01  # of the Gaussian weights, in tile edges squared
MARGIN = 3  # LR pixels around a strip that its bicubic enlargement looks at


@dataclass(frozen=True)
class Tiling:
    """How a large picture is cut, in latent pixels (one is `pipe.factor` output pixels).

    Args:
        tile: edge of a tile; PassionSR's configuration has 64, OSEDiff's 96.
        overlap: what neighbouring tiles share, 32 in both; by default a quarter of the tile.
        stages: False runs encoder, UNet and decoder on one tile after the other; True cuts each of the three on its
            own, as the official code does: the UNet by `tile` and `overlap`, the VAE by what follows.
        encoder, decoder: edges of the VAE's tiles without their padding, by default `tile`.
        pad: what a VAE tile sees beyond each of its sides; the official code has 4 (32 image pixels) and 11.
        soft: VAE tiles fade into each other within the padding; otherwise they are cut hard, as in the official code.
        shared: whether all tiles normalize with the statistics of a thumbnail (`norms.SharedNorms`).

    Raises:
        ValueError: a tile without area, a negative padding, or an overlap that leaves no step.

    Example:
        >>> Tiling(96).overlap, PASSIONSR.overlap
        (24, 32)
    """

    tile: int = 64
    overlap: int | None = None
    stages: bool = False
    encoder: int | None = None
    decoder: int | None = None
    pad: int = 11
    soft: bool = True
    shared: bool = False

    def __post_init__(self):
        for name in ("tile", "encoder", "decoder"):
            edge = getattr(self, name)
            if edge is None and name != "tile":
                object.__setattr__(self, name, self.tile)
            elif not (isinstance(edge, int) and edge >= 1):
                raise ValueError(f"A tile's edge is a whole number of latent pixels from 1 on; {name} is {edge}.")
        if self.overlap is None:
            object.__setattr__(self, "overlap", self.tile // 4)
        if not 0 <= self.overlap < self.tile:
            raise ValueError(f"Tiles of {self.tile} latent pixels can share 0 to {self.tile - 1}, not {self.overlap}.")
        if self.pad < 0:
            raise ValueError(f"The padding is 0 or more latent pixels, not {self.pad}.")


# The configurations of the two papers' code: with SD2.1 their decoder tiles alone take over 20 GB in float32.
PASSIONSR = Tiling(64, 32, stages=True, encoder=128, decoder=224, soft=False, shared=True)
OSEDIFF = Tiling(96, 32, stages=True, encoder=128, decoder=224, soft=False, shared=True)


# -- one axis ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Axis:
    """Tiles along one axis of `length` cells, all of one size; each cell is 1 x 1 values or `scale` x `scale`."""

    length: int
    size: int
    starts: tuple[int, ...]
    soft: bool = True

    @classmethod
    def cut(cls, length: int, size: int, overlap: int, multiple: int = 1, soft: bool = True) -> Axis:
        """Tiles that begin at multiples of `multiple` and share at least `overlap`; the last one ends at the border.

        `size` is rounded up to a multiple, and cut to a `length` that is a smaller one.

        Example:
            >>> Axis.cut(11, 4, 2).starts, Axis.cut(3, 4, 2).starts
            ((0, 2, 4, 6, 7), (0,))
        """
        size = min(length, -(-size // multiple) * multiple)
        step = max(multiple, (size - overlap) // multiple * multiple)
        return cls(length, size, (*range(0, length - size, step), length - size), soft)

    @property
    def seams(self) -> tuple[int, ...]:
        """The cells where one tile takes over from the one before: the middle of what the two share."""
        return tuple((a + self.size + b) // 2 for a, b in zip(self.starts, self.starts[1:]))

    def weights(self, scale: int = 1) -> Tensor:
        """(tiles, size * scale): each tile's share in the values it covers; the shares of a value sum to 1.

        Soft shares are Gaussians of the distance from the tile's middle, variance 0.01 tile edges squared; hard ones
        are 1 between the tile's two seams and 0 beyond.
        """
        size = self.size * scale
        place = torch.arange(size, dtype=torch.float64)
        if self.soft:
            own = torch.exp(-(((place + 0.5) / size - 0.5) ** 2) / (2 * VARIANCE)).expand(len(self.starts), -1)
        else:
            edges = [s * scale for s in (0, *self.seams, self.length)]
            at = [place + start * scale for start in self.starts]
            own = torch.stack([((a <= x) & (x < b)).double() for x, a, b in zip(at, edges, edges[1:])])
        total = torch.zeros(self.length * scale, dtype=torch.float64)
        sums = [total[start * scale :][:size] for start in self.starts]  # views
        for covered, share in zip(sums, own):
            covered += share
        return torch.stack([share / covered for covered, share in zip(sums, own)]).float()


# -- streams ----------------------------------------------------------------------------------------------------------


def windows(strips: Iterable[Tensor], starts: Iterable[int], size: int) -> Iterator[Tensor]:
    """Rows [start, start + size) of a stream for each of the rising `starts`; rows above are let go."""
    strips, top = iter(strips), 0
    held = next(strips)
    for start in starts:
        if start > top:
            held, top = held[..., start - top :, :].clone(), start
        while held.shape[-2] < size:
            held = torch.cat((held, next(strips)), -2)
        yield held[..., :size, :]


def blended(
    strips: Iterable[Tensor], rows: Axis, columns: Axis, function: Callable[[Tensor], Tensor], enter=1, leave=1
) -> Iterator[Tensor]:
    """A function of tiles as a function of the whole stream, overlaps blended by the axes' weights.

    Args:
        strips: of a picture (B, C, rows.length * enter, columns.length * enter).
        function: tile (B, C, size * enter, size * enter) -> (B, C', size * leave, size * leave).
        enter, leave: values per cell along an axis, before and after.

    Yields:
        strips (B, C', *, columns.length * leave), `rows.length * leave` rows in all.

    Example:
        >>> x, axis = torch.rand(1, 3, 9, 9), Axis.cut(9, 4, 2)
        >>> torch.allclose(torch.cat(list(blended([x], axis, axis, torch.sqrt)), -2), x.sqrt())
        True
    """
    down, carry = rows.weights(leave), None
    steps = [b - a for a, b in zip(rows.starts, (*rows.starts[1:], rows.length))]
    for window, weight, step in zip(windows(strips, [s * enter for s in rows.starts], rows.size * enter), down, steps):
        band = _row(window, columns, function, enter, leave)
        band *= weight.to(band)[:, None]
        if carry is not None:
            band[..., : carry.shape[-2], :] += carry
        carry = band[..., step * leave :, :].clone()
        yield band[..., : step * leave, :]


def _row(window: Tensor, columns: Axis, function: Callable, enter: int, leave: int) -> Tensor:
    """One row of tiles, blended along x: (B, C', size * leave, W')."""
    band = None
    for start, weight in zip(columns.starts, columns.weights(leave)):
        out = function(window[..., start * enter : (start + columns.size) * enter])
        if band is None:
            band = out.new_zeros(*out.shape[:-1], columns.length * leave)
        band[..., start * leave : (start + columns.size) * leave] += out * weight.to(out)
    return band


def enlarged(lr: Tensor, scale: int, height: int = 32) -> Iterator[Tensor]:
    """The bicubic enlargement of LR (B, 3, h, w) in [0, 1] in strips: (B, 3, scale * height, scale * w) and a last one.

    Each strip is enlarged from its own rows and the few around them, which gives what enlarging the whole would.
    """
    for top in range(0, lr.shape[-2], height):
        above = max(0, top - MARGIN)
        strip = upsample(lr[..., above : top + height + MARGIN, :], scale)
        yield strip[..., (top - above) * scale :, :][..., : height * scale, :]


def padded(strips: Iterable[Tensor], height: int, width: int) -> Iterator[Tensor]:
    """The stream with its last row and column repeated up to (height, width)."""
    done, last = 0, None
    for strip in strips:
        last = F.pad(strip, (0, width - strip.shape[-1], 0, 0), mode="replicate")
        done += last.shape[-2]
        yield last
    if done < height:
        yield last[..., -1:, :].expand(*last.shape[:-2], height - done, width)


def cropped(strips: Iterable[Tensor], height: int, width: int) -> Iterator[Tensor]:
    """The first `height` rows and `width` columns of a stream."""
    for strip in strips:
        if height > 0:
            yield strip[..., :height, :width]
        height -= strip.shape[-2]


def axes(height: int, width: int, tiling: Tiling, multiple: int) -> list[tuple[Axis, Axis]]:
    """The tiles of encoder, UNet and decoder on latents (height, width), each along y and along x."""
    cuts = [
        (tiling.encoder + 2 * tiling.pad, 2 * tiling.pad, 1, tiling.soft),
        (tiling.tile, tiling.overlap, multiple, True),
        (tiling.decoder + 2 * tiling.pad, 2 * tiling.pad, 1, tiling.soft),
    ]
    return [(Axis.cut(height, *cut), Axis.cut(width, *cut)) for cut in cuts]


def seams(height: int, width: int, tiling: Tiling, factor: int, multiple: int) -> tuple[list[int], ...]:
    """The rows and columns of the output (height, width) where one tile takes over from another, for `seam_score`."""
    sizes = (-(-n // (factor * multiple)) * multiple for n in (height, width))
    encoder, unet, decoder = axes(*sizes, tiling, multiple)
    used = (encoder, unet, decoder) if tiling.stages else (unet,)
    return tuple(sorted({seam * factor for cut in used for seam in cut[i].seams}) for i in (0, 1))


def in_tiles(
    strips: Iterable[Tensor], height: int, width: int, tiling: Tiling, encode: Callable, denoise: Callable,
    decode: Callable, factor: int, multiple: int,
) -> Iterator[Tensor]:  # fmt: skip
    """Encoder, UNet step and decoder in tiles, one row of tiles at a time.

    Args:
        strips: the enlarged LR image (B, 3, height, width), in [-1, 1], both sizes multiples of factor * multiple.
        encode, denoise, decode: the three calls, on tiles.
        factor: image values per latent value along an axis.
        multiple: latent sizes and places that the UNet divides without remainder.

    Yields:
        strips of the decoded image (B, 3, height, width).
    """
    encoder, unet, decoder = axes(height // factor, width // factor, tiling, multiple)
    if not tiling.stages:
        return blended(strips, *unet, lambda x: decode(denoise(encode(x))), factor, factor)
    latents = blended(blended(strips, *encoder, encode, enter=factor), *unet, denoise)
    return blended(latents, *decoder, decode, leave=factor)


def thumbnail(lr: Tensor, edge: int) -> Tensor:
    """LR (B, 3, h, w) reduced, with its proportions, to an area of at most edge x edge."""
    scale = min(1.0, edge / (lr.shape[-2] * lr.shape[-1]) ** 0.5)
    size = [max(1, int(n * scale)) for n in lr.shape[-2:]]
    return F.interpolate(lr, size, mode="bicubic", antialias=True).clamp(0, 1)


def tensor_of(strips: Iterable[Tensor], shape: tuple[int, ...]) -> Tensor:
    """A stream as one float32 tensor of this shape, on the CPU."""
    out, top = torch.empty(shape), 0
    for strip in strips:
        out[..., top : top + strip.shape[-2], :] = strip
        top += strip.shape[-2]
    return out


def image_of(strips: Iterable[Tensor], height: int, width: int) -> Image.Image:
    """A stream (1, 3, height, width) in [0, 1] as an 8-bit picture, which is all of it that is held."""
    image, top = Image.new("RGB", (width, height)), 0
    for strip in strips:
        image.paste(to_image(strip[0]), (0, top))
        top += strip.shape[-2]
    return image
