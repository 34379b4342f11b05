"""What the way from HR to LR pictures does to each spatial frequency: real pairs beside degraded photographs.

    python -m passionsr_lab.tools.transfer FOLDER_WITH_lr_AND_hr PHOTOGRAPHS

Every second pair is looked at, so that the others can test what is made after them, such as the embedded model.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ..imaging.degradation import Degradation
from ..imaging.pairs import Pair, folder_pairs, make_pairs
from ..imaging.pictures import UPSCALE, image_files, read_image, upsample
from ..imaging.psnr import luma, psnr_y
from ..pipeline.folder import tiny

if TYPE_CHECKING:
    from pandas import DataFrame

WHOLE = 2**16  # HR pixels of a crop: no picture is cut
WIDTH = 0.01  # of a band, in cycles per HR pixel; LR pictures end at 1/8


def transfer(pairs: Sequence[Pair]) -> DataFrame:
    """Per band of frequency, of luma: `gain` from HR to bicubically enlarged LR, and `coherence`, the part of the
    latter's power that is a filtered HR picture, from 0 to 1.

    Pairs: square ones of one size.
    """
    import pandas as pd

    spectra = [_spectra(pair) for pair in pairs]
    low, high = (np.stack([s[i] for s in spectra]) for i in (0, 1))
    band = (_frequency(low.shape[-1]) / WIDTH).astype(int)
    keep = band < 1 / (2 * UPSCALE) / WIDTH

    def total(values):
        return np.bincount(band[keep], values.sum(0)[keep])

    product = low * high.conj()
    cross = np.hypot(total(product.real), total(product.imag))
    powers = [total(np.abs(x) ** 2) for x in (low, high)]
    middle = (np.arange(len(cross)) + 0.5) * WIDTH
    return pd.DataFrame({"frequency": middle, "gain": cross / powers[1], "coherence": cross**2 / np.prod(powers, 0)})


def filter_gain(pairs: Sequence[Pair], fitted_on: Sequence[Pair]) -> float:
    """Mean dB that bicubically enlarged luma gains by one isotropic linear filter, the best for the other pairs."""
    spectra = [_spectra(pair) for pair in fitted_on]
    frequency = _frequency(spectra[0][0].shape[-1])
    band = np.minimum((frequency / (WIDTH / 2)).astype(int), int(1 / WIDTH))
    top, bottom = np.zeros(band.max() + 1), np.zeros(band.max() + 1)
    for low, high in spectra:
        weight = 1 / (np.abs(low - high) ** 2).sum()  # a mean of dB weighs every picture alike
        top += weight * np.bincount(band.ravel(), (low.conj() * high).real.ravel())
        bottom += weight * np.bincount(band.ravel(), (np.abs(low) ** 2).ravel())
    response = (top / bottom)[band]
    errors = [[(np.abs(f * low - high) ** 2).sum() for f in (1, response)] for low, high in map(_spectra, pairs)]
    return float(np.mean([10 * np.log10(before / after) for before, after in errors]))


def _spectra(pair: Pair) -> tuple[np.ndarray, np.ndarray]:
    """Of enlarged LR and of HR luma, without their means, under a Hann window."""
    images = [luma(x).numpy().astype(float).squeeze() for x in (upsample(pair.lr[None])[0], pair.hr)]
    window = np.outer(*[np.hanning(images[0].shape[-1])] * 2)
    return tuple(np.fft.fft2((x - x.mean()) * window) for x in images)


def _frequency(size: int) -> np.ndarray:
    return np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size))


def main(arguments: list[str] | None = None) -> int:
    """Prints both for the pairs, for photographs under the library's degradation, and without its sharpening; and what
    the embedded model gains over bicubic on the pairs that were not looked at."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs")
    parser.add_argument("photographs")
    parser.add_argument("--size", type=int, default=256, help="HR pixels of a crop")
    asked = parser.parse_args(arguments)
    real, others = folder_pairs(asked.pairs, None, asked.size)[::2], folder_pairs(asked.pairs, None, WHOLE)[1::2]
    photographs = [(file.stem, lambda file=file: read_image(file)) for file in image_files(asked.photographs)]
    ours = Degradation()
    for name, pairs in {
        "these pairs": real,
        "degraded": make_pairs(photographs, 60, asked.size, degradation=ours),
        "degraded, never sharpened": make_pairs(photographs, 60, asked.size, degradation=replace(ours, sharpened=0)),
    }.items():
        print(f"{name}: the filter made for them gains {filter_gain(real, pairs):.2f} dB on these pairs")
        print(transfer(pairs).T.to_string(header=False, float_format=lambda v: f"{v:.3f}"))
    model = tiny()
    gains = [psnr_y(model(p.lr), p.hr) - psnr_y(upsample(p.lr[None])[0], p.hr) for p in others]
    print(f"the embedded model gains {np.mean(gains):.2f} dB of PSNR-Y over bicubic on the {len(others)} other pairs")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
