"""Two of several pictures on each other, cut by a line that follows the pointer: HTML that needs no kernel.

Drag moves the line, shift and drag moves both pictures, the wheel zooms both, a menu shows their difference instead.
"""

from __future__ import annotations

import io
import json
import statistics
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from ..deployment.pipeline import DeployedSR
from ..pipeline.onestep import OneStepSR
from ..plots.pictures import as_picture
from ..quantization.place import QuantizedSR
from .page import Page, asset, data_uri

GAINS = (1, 4, 10, 30)  # of a difference that is shown
BODY = """<div class="compare">
<div class="bar">
<label>left <select data-part="left" title="The picture left of the line"></select></label>
<label>right <select data-part="right" title="The picture right of the line"></select></label>
<label>show <select data-part="show" title="The two pictures, or how far apart they are">
<option value="pictures">both</option><option value="difference">their difference</option></select></label>
<label>times <select data-part="gain" title="What the difference is multiplied by">{gains}</select></label>
<span data-part="state" role="status"></span>
</div>
<canvas data-part="canvas" tabindex="0" role="slider" aria-label="Line between the pictures" aria-valuemin="0"
 aria-valuemax="100" style="max-width:{width}px"></canvas>
<div class="names" style="max-width:{width}px"><b data-part="leftname"></b><b data-part="rightname"></b></div>
<div class="hint">Drag: line. Shift + drag: move. Wheel: zoom. Two clicks: back. Keys: arrows, + and -, 0.</div>
</div>"""


class Comparison:
    """Pictures of one size to compare in a browser; a notebook shows it by itself, `save` writes it as a page.

    Args:
        images: name -> picture in [0, 1]: tensor (3, H, W), array, or PIL image.  A smaller one (LR) whose size is a
            whole fraction of the largest is enlarged by repeating its pixels.
        left, right: names of the two that are shown first; by default the first and the last.
        at: where the line is first, 0 to 1.
        width: of the picture on the page, in CSS pixels.
        quality: 1 to 100, of a lossy coding that takes a tenth of the bytes; None keeps every value of 8 bits.

    Raises:
        ValueError: fewer than two pictures, sizes that do not fit, or an unknown name.

    Example:
        >>> import numpy as np
        >>> Comparison({"black": np.zeros((8, 8, 3)), "white": np.ones((8, 8, 3))}).right
        'white'
    """

    def __init__(
        self,
        images: Mapping[str, object],
        left: str | None = None,
        right: str | None = None,
        at: float = 0.5,
        width: int = 640,
        quality: int | None = None,
    ):
        if len(images) < 2:
            raise ValueError(f"There must be two pictures or more to compare, not {len(images)}.")
        if not 0 <= at <= 1:
            raise ValueError(f"The line is between 0 and 1, not at {at}.")
        pictures = {str(name): as_picture(image) for name, image in images.items()}
        tall, across = max(picture.shape[:2] for picture in pictures.values())
        self.pictures = {name: _enlarged(name, picture, tall, across) for name, picture in pictures.items()}
        self.left, self.right = left or next(iter(pictures)), right or [*pictures][-1]
        unknown = {self.left, self.right} - pictures.keys()
        if unknown:
            raise ValueError(f"There is no picture called {min(unknown)!r}; there are {', '.join(pictures)}.")
        self.at, self.width, self.size, self.quality = at, width, (across, tall), quality

    @classmethod
    def of(
        cls, models: Mapping[str, OneStepSR | QuantizedSR], lr: Tensor, hr: Tensor | None = None, **options
    ) -> Comparison:
        """One picture (3, h, w) as several pipelines restore it, and the original where it is given.

        A name says whether its pipeline is simulated or deployed, and how many `seconds` it took where that says
        something: full precision as diffusers runs it (`bench deploy` has the fastest float32), and integers.

        Args:
            models: name -> pipeline.
            options: as for the class, but for `left` and `right`, which are the first and the last pipeline.

        Example:
            >>> import torch, passionsr_lab as lab
            >>> pipe = lab.tiny()
            >>> q = lab.calibrated(pipe, "W6A6", "maxmin", lab.bundled("calibration", 2, 32))
            >>> Comparison.of({"full precision": pipe, "W6A6": q}, torch.rand(3, 8, 8)).right
            'W6A6, simulated'
        """
        images = {described(name, model, seconds(model, lr)): model(lr) for name, model in models.items()}
        left, *_, right = [*images, *images]
        return cls(images | ({} if hr is None else {"HR": hr}), left, right, **options)

    def __repr__(self) -> str:
        return f"(comparison of {', '.join(self.pictures)}: drag the line in a browser)"

    def fragment(self) -> str:
        """HTML to put into a page with the style sheet compare.css."""
        across, tall = self.size
        pictures = [{"name": name, "source": coded(picture, self.quality)} for name, picture in self.pictures.items()]
        data = {"width": across, "height": tall, "left": self.left, "right": self.right, "at": self.at}
        data = json.dumps(data | {"pictures": pictures}).replace("</", "<\\/")
        gains = "".join(f"<option{' selected' if gain == GAINS[1] else ''}>{gain}</option>" for gain in GAINS)
        script = f"{asset('compare.js')}(document.currentScript.previousElementSibling, {data})"
        return f"{BODY.format(gains=gains, width=self.width)}<script>{script}</script>"

    def page(self) -> Page:
        """It alone on a page."""
        return Page(", ".join(self.pictures), self.fragment(), ("compare.css",))

    def save(self, path: str | Path) -> Path:
        """Writes `page()`."""
        return self.page().save(path)

    def _repr_html_(self) -> str:
        across, tall = self.size
        bars = 100  # the menus above and the lines below
        return self.page().frame(self.width + 16, round(self.width * tall / across) + bars)


def seconds(model: OneStepSR | QuantizedSR, lr: Tensor, rounds: int = 3) -> float | None:
    """The median of some calls after a first one; None of a simulated pipeline, whose time says nothing of low bits."""
    if isinstance(model, QuantizedSR):
        return None
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        model(lr)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def described(name: str, model: OneStepSR | QuantizedSR, took: float | None) -> str:
    """The name with the model's label, simulated or deployed, and its seconds."""
    label = [model.label] if isinstance(model, (QuantizedSR, DeployedSR)) else []
    return ", ".join([name, *label, *([] if took is None else [f"{took:.2g} s"])])


def coded(picture: np.ndarray, quality: int | None = None) -> str:
    """(H, W, 3) in [0, 1] as a picture in an address, lossless without a quality."""
    buffer, options = io.BytesIO(), {"lossless": True, "quality": 80} if quality is None else {"quality": quality}
    Image.fromarray((picture * 255).round().astype(np.uint8)).save(buffer, "WEBP", **options, method=4)
    return data_uri("webp", buffer.getvalue())


def _enlarged(name: str, picture: np.ndarray, tall: int, across: int) -> np.ndarray:
    h, w = picture.shape[:2]
    times = tall // h
    if (h * times, w * times) != (tall, across):
        raise ValueError(f"{name!r} has {w}x{h} pixels, which is no whole fraction of {across}x{tall}.")
    return picture.repeat(times, 0).repeat(times, 1)
