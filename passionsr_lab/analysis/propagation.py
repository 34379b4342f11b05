"""How quantization error arises and travels: signal-to-quantization-noise ratio (SQNR) along the network."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..imaging.pictures import to_tensor
from ..quantization.attention import QuantAttention
from ..quantization.layer import Quantized, QuantLayer, mode
from ..quantization.place import QuantizedSR, quantized_layers, segment_modules
from ..util.hooks import hooks
from ..util.names import MODULES
from .layers import layer_numbers


@torch.no_grad()
def propagation(q: QuantizedSR, images: Sequence[Image.Image | Tensor]):
    """SQNR in dB at the output of every quantized layer, in the order of `layer_numbers`, that of execution.

    Columns: number, module, layer (an ordered category), local_db, accumulated_db.  SQNR is
    10 log10(sum y^2 / sum (y - y')^2) over all values of all images, with y the layer's output in the full-precision
    network.  For `local_db` y' comes from this layer alone quantized, on the full-precision input; for `accumulated_db`
    everything before it is quantized too.  An attention's output is softmax(q k) v, before its output projection.
    Infinite where nothing is lost.

    Both networks run as one: each image goes through as a batch of two, the first half in full precision and the second
    quantized, which a hook on every layer keeps apart.  So nothing but three sums per layer outlives the layer; the
    memory is that of a batch of two.  Cost per image: about two full-precision and two quantized passes.

    Args:
        q: a calibrated pipeline.
        images: LR pictures, PIL or (3, h, w) in [0, 1], of any sizes.

    Raises:
        ValueError: the pipeline is not quantized, or there are no images.
        RuntimeError: it is not calibrated.

    Example:
        >>> import passionsr_lab as lab
        >>> from passionsr_lab.analysis.propagation import propagation
        >>> pairs = lab.bundled("calibration", count=2, size=64)
        >>> q = lab.quantize(lab.tiny(), lab.W8A8)
        >>> records = lab.calibrate(q, pairs, "let")
        >>> bool((propagation(q, [pair.lr for pair in pairs]).local_db > 0).all())
        True
    """
    if not isinstance(q, QuantizedSR):
        raise ValueError("Error propagation needs a quantized pipeline (lab.quantize), not a full-precision one.")
    if len(images) == 0:
        raise ValueError("Error propagation needs at least one image.")
    sums: dict[str, np.ndarray] = {}  # in order of the first call: energies of signal, local and accumulated noise
    with mode(q, "float"), hooks() as add:
        for register, hook in _hooks(q, sums):
            add(register, hook)
        for image in images:
            x = q.prepare(to_tensor(image)[None].to(q.prompt_embedding.device))
            q.restore(torch.cat([x, x]))
    return _frame(q, sums)


def _hooks(q: QuantizedSR, sums: dict[str, np.ndarray]) -> Iterator[tuple]:
    """(how it is registered, hook), in the order in which they are to act."""
    for layer in quantized_layers(q).values():
        if isinstance(layer, QuantLayer):
            yield layer.register_forward_hook, _layer_hook(sums)
    for name, layer in quantized_layers(q).items():  # after the layers' own hooks, to see what those return
        if isinstance(layer, QuantAttention):
            yield from _attention_hooks(q.get_submodule(name), sums)


def _layer_hook(sums: dict[str, np.ndarray]):
    def hook(layer, args, output):
        return _split(layer, output, _quantized(layer, layer.forward, args[0]), sums)

    return hook


def _attention_hooks(attention: nn.Module, sums: dict[str, np.ndarray]) -> Iterator:
    """q, k and v are taken where they leave their projections; the product is replaced where it enters `to_out`."""
    processor, caught = attention.processor, {}

    def catch(key):
        return lambda layer, args, output: caught.update({key: output})

    def hook(layer, args):
        q, k, v = (caught.pop(key) for key in "qkv")
        quantized = _quantized(processor, processor.product, q, k, v, attention.heads, attention.scale)
        return _split(processor, args[0], quantized, sums), *args[1:]

    for key in "qkv":
        yield getattr(attention, f"to_{key}").register_forward_hook, catch(key)
    yield attention.to_out[0].register_forward_pre_hook, hook


def _quantized(layer: Quantized, function, *args) -> Tensor:
    with mode(layer, "quantized"):
        return function(*args)


def _split(layer: Quantized, full: Tensor, quantized: Tensor, sums: dict[str, np.ndarray]) -> Tensor:
    """Adds to the layer's sums; the full-precision output of the first half with the quantized one of the second."""
    half = len(full) // 2
    y, local, accumulated = full[:half], quantized[:half], quantized[half:]
    energies = [t.square().sum(dtype=torch.float64).item() for t in (y, local - y, accumulated - y)]
    sums[layer.name] = sums.get(layer.name, 0) + np.array(energies)
    return torch.cat([y, accumulated])


def _frame(q: QuantizedSR, sums: dict[str, np.ndarray]):
    import pandas as pd

    module_of = {name: module for module in MODULES for name in quantized_layers(segment_modules(q, module))}
    numbers = layer_numbers(q)
    rows = [
        (numbers[name], module_of[name], name, *(_decibels(s, noise) for noise in n)) for name, (s, *n) in sums.items()
    ]
    frame = pd.DataFrame(rows, columns=["number", "module", "layer", "local_db", "accumulated_db"])
    frame["layer"] = pd.Categorical(frame["layer"], list(sums), ordered=True)
    return frame


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def collapse(frame, threshold_db: float = 10.0) -> str | None:
    """The first layer in network order whose accumulated SQNR is below the threshold (dB), or None.

    Args:
        frame: what `propagation` returned.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"layer": ["a", "b", "c"], "accumulated_db": [30.0, 8.0, 12.0]})
        >>> collapse(frame), collapse(frame, 5.0)
        ('b', None)
    """
    low = frame.sort_values("layer")
    low = low[low["accumulated_db"] < threshold_db]
    return None if low.empty else str(low["layer"].iloc[0])
