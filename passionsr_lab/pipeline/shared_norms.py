"""GroupNorms that agree between tiles: their statistics come from one small version of the whole picture.

A GroupNorm measures mean and variance of what it sees.  In tiles each would measure its own, and dark or flat ones
would change their tone.  The official code runs all tiles of the VAE side by side, layer by layer, and averages; here a
thumbnail is run first, and its statistics hold for every tile.  That costs one more tile, and no memory that grows with
the picture.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar

import torch
from torch import Tensor, nn

from ..util.hooks import registering

_active: ContextVar[SharedNorms | None] = ContextVar("shared_norms", default=None)


class SharedNorms:
    """Within the block, statistics of the GroupNorms in some networks: `measure` takes them, `using` uses them.

    They belong to one call: other threads that run the same networks meanwhile do not see them.

    Raises:
        ValueError: a network is compiled in place or below its top, where compiled code passes by the norms.

    Example:
        >>> norm, x = nn.GroupNorm(2, 4), torch.randn(1, 4, 8, 8)
        >>> with SharedNorms(norm) as shared:
        ...     out = shared.measure(norm)(x)
        ...     tile = shared.using(norm)(x[..., :3])
        >>> torch.allclose(tile, out[..., :3], atol=1e-5)
        True
    """

    def __init__(self, *networks: nn.Module):
        modules = [m for network in networks for m in network.modules()]
        if any(m._compiled_call_impl is not None or "_orig_mod" in m._modules for m in modules):
            raise ValueError(
                "Tiles that share their norms do not run in modules compiled in place; compile pipe.unet or pipe.vae as"
                " a whole (pipe.unet = torch.compile(pipe.unet)), or take a Tiling with shared=False."
            )
        self.layers = [m for m in modules if isinstance(m, nn.GroupNorm)]
        self.statistics: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        self.measuring = False

    def __enter__(self) -> SharedNorms:
        with registering:
            self.handles = [layer.register_forward_hook(self._hook) for layer in self.layers]
        return self

    def __exit__(self, *_) -> None:
        with registering:
            for handle in self.handles:
                handle.remove()

    def measure(self, function: Callable) -> Callable:
        """The function, whose norms' statistics are noted while it runs."""
        return lambda *args: self._run(True, function, *args)

    def using(self, function: Callable) -> Callable:
        """The function, with the noted statistics while it runs."""
        return lambda *args: self._run(False, function, *args)

    def _run(self, measuring: bool, function: Callable, *args):
        self.measuring, token = measuring, _active.set(self)
        try:
            return function(*args)
        finally:
            _active.reset(token)

    def _hook(self, layer: nn.GroupNorm, args: tuple, out: Tensor) -> Tensor | None:
        if _active.get() is not self:
            return None
        if self.measuring:
            self.statistics[layer] = _scale_and_offset(layer, args[0].float())
            return None
        scale, offset = (t.view(*t.shape, *[1] * (out.ndim - 2)) for t in self.statistics[layer])
        return torch.addcmul(offset, args[0].float(), scale).to(out.dtype)


def _scale_and_offset(layer: nn.GroupNorm, x: Tensor) -> tuple[Tensor, Tensor]:
    """What a GroupNorm does to each channel of x (B, C, ...) as a scale and an offset (B, C)."""
    groups = x.reshape(len(x), layer.num_groups, -1)  # (B, groups, values)
    variance, mean = torch.var_mean(groups, -1, correction=0)
    scale, per_channel = (variance + layer.eps).rsqrt(), x.shape[1] // layer.num_groups
    scale, mean = (t.repeat_interleave(per_channel, 1) for t in (scale, mean))
    weight, bias = (1, 0) if layer.weight is None else (layer.weight, layer.bias)
    return scale * weight, bias - mean * scale * weight
