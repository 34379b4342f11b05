"""GroupNorms that agree between tiles: their statistics come from one small version of the whole picture.

A GroupNorm measures mean and variance of what it sees.  In tiles each would measure its own part, and dark or flat
parts would change their tone.  The official code runs all tiles of the VAE side by side, layer by layer, and averages;
here a thumbnail is run first, and its statistics hold for every tile.  That costs one more tile, and no memory that
grows with the picture.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class SharedNorms:
    """Statistics of the GroupNorms in a module, taken once and used from then on by functions that `using` wraps.

    Example:
        >>> norm, x = nn.GroupNorm(2, 4), torch.randn(1, 4, 8, 8)
        >>> shared = SharedNorms(norm, lambda: norm(x))
        >>> torch.allclose(shared.using(norm)(x[..., :3]), norm(x)[..., :3], atol=1e-5)
        True
    """

    def __init__(self, module: nn.Module, run: Callable[[], object]):
        self.layers = [m for m in module.modules() if isinstance(m, nn.GroupNorm)]
        self.statistics: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        self._hooked(self._note, run)

    def using(self, function: Callable) -> Callable:
        """The function, with these statistics while it runs."""
        return lambda *args: self._hooked(self._normalize, function, *args)

    def _hooked(self, hook: Callable, function: Callable, *args):
        handles = [layer.register_forward_hook(hook) for layer in self.layers]
        try:
            return function(*args)
        finally:
            for handle in handles:
                handle.remove()

    def _note(self, layer: nn.GroupNorm, args: tuple, out: Tensor) -> None:
        groups = args[0].reshape(len(args[0]), layer.num_groups, -1)  # (B, groups, values)
        variance, mean = torch.var_mean(groups, -1, correction=0)
        scale = (variance + layer.eps).rsqrt()
        per_channel = args[0].shape[1] // layer.num_groups
        scale, mean = (t.repeat_interleave(per_channel, 1) for t in (scale, mean))  # (B, C)
        weight, bias = (1, 0) if layer.weight is None else (layer.weight, layer.bias)
        self.statistics[layer] = scale * weight, bias - mean * scale * weight

    def _normalize(self, layer: nn.GroupNorm, args: tuple, out: Tensor) -> Tensor:
        scale, offset = (t.view(*t.shape, *[1] * (out.ndim - 2)) for t in self.statistics[layer])
        return torch.addcmul(offset, args[0], scale)
