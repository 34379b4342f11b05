"""Records what reaches every layer while a pipeline runs: ranges, moments, histograms, outliers.

Only running sums are kept (`running.Accumulator`), O(layers x (channels + bins)), whatever the images' number and size.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from torch import Tensor, nn

from ..pipeline.onestep import OneStepSR
from ..quantization.attention import QuantAttention
from ..quantization.layer import QuantLayer
from ..util.hooks import hooks
from ..util.names import uncompiled_name
from .layers import layer_numbers
from .running import Accumulator, Histogram

LAYER = (
    "number", "module", "layer", "kind", "channels", "low", "high", "mean", "std", "kurtosis", "outlier_share", "count"
)  # fmt: skip
CHANNEL = ("number", "module", "layer", "kind", "channel", "low", "high", "mean", "std", "count")


class Site(NamedTuple):
    """A place that is watched: the pipeline's module, the layer's name, Conv2d, Linear or attention, the layer."""

    module: str
    name: str
    kind: str
    layer: nn.Module


class Stats:
    """What `observing` has seen so far, in the order of `layer_numbers`; `layer` columns are categories in that order.

    With `after=True` the same values as the quantizers see them, after LET (without a convolution's padding): of a
    quantized pipeline's quantized layers only, otherwise `ValueError`.
    """

    def __init__(self, numbers: dict[str, int]):
        self._numbers = numbers
        self._seen: dict[bool, dict[str, tuple[dict, Accumulator]]] = {False: {}, True: {}}  # of labels by name

    def layers(self, after: bool = False):
        """One row per layer, of its input: number, module, layer, kind, channels, low, high, mean, std, kurtosis, ...

        Attentions have three rows, `NAME.q`, `NAME.k` and `NAME.v`, with one number.  `kurtosis` is the fourth
        standardized moment: 3 for a normal distribution, NaN for a constant.  `outlier_share` (0 to 1) counts the
        histogram bins that lie wholly more than 6 standard deviations from the mean: exact but for one bin's width,
        which is at most 1/256 of the largest magnitude.  `count` is the number of values.
        """
        return self._ordered([labels | a.summary() for labels, a in self._select(after)], LAYER)

    def channels(self, layer: str | None = None, after: bool = False):
        """One row per input channel of one layer, or of all: number, module, layer, kind, channel, low, high, ...

        `count` is the number of values in the channel.  `ValueError` for a layer that was not seen.
        """
        import pandas as pd

        chosen = self._select(after) if layer is None else [self._one(layer, after)]
        frames = [pd.DataFrame(labels | {"channel": range(len(a.low))} | a.channels()) for labels, a in chosen]
        return self._ordered(pd.concat(frames, ignore_index=True) if frames else [], CHANNEL)

    def histogram(self, layer: str, after: bool = False) -> Histogram:
        """(edges, counts) of a layer's input, for `plt.stairs(counts, edges)`; `ValueError` for a layer not seen."""
        return self._one(layer, after)[1].histogram()

    @property
    def bytes(self) -> int:
        """Memory held, in bytes; it grows with the layers and channels seen, not with the images."""
        return sum(a.bytes for seen in self._seen.values() for _, a in seen.values())

    def _add(self, site: Site, x: Tensor, dim: int, after: bool = False) -> None:
        seen = self._seen[after]
        if site.name not in seen:
            path = site.name.rpartition(".")[0] if site.kind == "attention" else site.name
            number = self._numbers[uncompiled_name(path)]
            labels = {"number": number, "module": site.module, "layer": site.name, "kind": site.kind}
            seen[site.name] = labels, Accumulator(x.shape[dim])
        try:
            seen[site.name][1].add(x.detach(), dim)
        except FloatingPointError as error:
            raise FloatingPointError(f"{site.name} received {error}.") from None

    def _select(self, after: bool) -> list[tuple[dict, Accumulator]]:
        if after and self._seen[False] and not self._seen[True]:
            raise ValueError("Only the layers of a quantized pipeline have values after LET; use after=False.")
        return sorted(self._seen[after].values(), key=lambda entry: entry[0]["number"])

    def _one(self, layer: str, after: bool) -> tuple[dict, Accumulator]:
        self._select(after)
        if layer not in self._seen[after]:
            raise ValueError(f"No layer {layer!r} was observed; layers() lists those that were.")
        return self._seen[after][layer]

    def _ordered(self, rows, columns: tuple[str, ...]):
        import pandas as pd

        frame = pd.DataFrame(rows, columns=list(columns))
        order = [labels["layer"] for labels, _ in self._select(False)]
        frame["layer"] = pd.Categorical(frame["layer"], order, ordered=True)
        return frame


@contextmanager
def observing(pipe: OneStepSR) -> Iterator[Stats]:
    """Within the block every layer's input is recorded in a `Stats`; at its end, also after an error, no hook is left.

    Works for full-precision and for quantized pipelines, in whatever mode their layers are; the outputs do not change,
    and calls from other threads are not recorded.
    Raises `FloatingPointError` naming the first layer that receives NaN or infinity.

    Example:
        >>> import torch, passionsr_lab as lab
        >>> from passionsr_lab.analysis.observe import observing
        >>> pipe = lab.tiny()
        >>> with observing(pipe) as stats:
        ...     image = pipe(torch.rand(3, 8, 8))
        >>> stats.layers().layer.iloc[0]
        'vae.encoder.conv_in'
    """
    stats = Stats(layer_numbers(pipe))
    with hooks() as add:
        for site in sites(pipe):
            for register, hook in _watch(stats, site):
                add(register, hook)
        yield stats


def sites(pipe: OneStepSR) -> Iterator[Site]:
    """Every Linear, Conv2d and attention of encoder, UNet and decoder, quantized or not, in definition order."""
    wrapped = {m.layer for m in pipe.modules() if isinstance(m, QuantLayer)}
    for segment in pipe.segments():
        for prefix, module in segment.modules.items():
            for name, layer in module.named_modules(prefix=prefix):
                if isinstance(layer, QuantLayer):
                    yield Site(segment.name, name, type(layer.layer).__name__, layer)
                elif isinstance(layer, (nn.Linear, nn.Conv2d)) and layer not in wrapped:
                    yield Site(segment.name, name, type(layer).__name__, layer)
                elif type(layer).__name__ == "Attention":
                    yield Site(segment.name, name, "attention", layer)


def _watch(stats: Stats, site: Site) -> list[tuple]:
    """(how it is registered, hook) of everything that a site's rows need."""
    if site.kind == "attention":
        return [_watch_product(stats, site, key) for key in "qkv"]
    dim = 1 if site.kind == "Conv2d" else -1

    def hook(layer, args):
        stats._add(site, args[0], dim)
        if isinstance(layer, QuantLayer):
            transform = layer.transform
            stats._add(site, args[0] if transform is None else transform(args[0], dim), dim, after=True)

    return [(site.layer.register_forward_pre_hook, hook)]


def _watch_product(stats: Stats, site: Site, key: str) -> tuple:
    """q, k and v are what the three projections give out."""
    own = site._replace(name=f"{site.name}.{key}")

    def hook(layer, args, output):
        stats._add(own, output, -1)
        processor = site.layer.processor
        if isinstance(processor, QuantAttention):
            stats._add(own, output * processor.factor(key), -1, after=True)

    return getattr(site.layer, f"to_{key}").register_forward_hook, hook


def layer_input(pipe: OneStepSR, layer: str, image) -> Tensor:
    """What one Linear or Conv2d receives while the pipeline runs on one image: (1, C, H, W) or (1, N, C).

    Raises:
        ValueError: the pipeline has no such layer.

    Example:
        >>> import torch, passionsr_lab as lab
        >>> layer_input(lab.tiny(), "vae.decoder.conv_in", torch.rand(3, 8, 8)).ndim
        4
    """
    found = next((s.layer for s in sites(pipe) if s.name == layer and s.kind != "attention"), None)
    if found is None:
        raise ValueError(f"The pipeline has no Linear or Conv2d named {layer!r}.")
    seen = []
    with hooks() as add:
        add(found.register_forward_pre_hook, lambda _, args: seen.append(args[0].detach().clone()))
        pipe(image)
    return seen[-1]


def weight_channels(pipe: OneStepSR, layer: str, after: bool = False, dim: int = 0):
    """One row per channel of a layer's weight: channel, low, high, mean, std, count.

    Args:
        after: the weight with LET's scale in it, as its quantizers see it (quantized layers only).
        dim: 0 for output channels, which is how weights are quantized; 1 for input channels, which is how LET scales.

    Raises:
        ValueError: there is no such Linear or Conv2d, or it is not quantized and `after` is true.
    """
    import pandas as pd

    found = next((s.layer for s in sites(pipe) if s.name == layer and s.kind != "attention"), None)
    if found is None:
        raise ValueError(f"The pipeline has no Linear or Conv2d named {layer!r}.")
    if after and not isinstance(found, QuantLayer):
        raise ValueError(f"{layer} is not quantized, so its weight has no LET; use after=False.")
    weight = found.transformed_weight() if after else (found.layer if isinstance(found, QuantLayer) else found).weight
    seen = Accumulator(weight.shape[dim])
    seen.add(weight.detach().movedim(dim, 0).flatten(1)[None], 1)
    return pd.DataFrame({"channel": range(weight.shape[dim])} | seen.channels())
