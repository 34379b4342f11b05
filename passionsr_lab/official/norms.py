"""The norms of a UNet or VAE, by which a calibration file shows which model it was made for."""

from __future__ import annotations

from torch import Tensor, nn


def norms(network: nn.Module) -> dict[str, Tensor]:
    """Weight and bias of every norm in a UNet or VAE."""
    kinds = (nn.GroupNorm, nn.LayerNorm)
    found = {name: m for name, m in network.named_modules() if isinstance(m, kinds)}
    return {f"{name}.{key}": p for name, m in found.items() for key, p in m.named_parameters(recurse=False)}


def differing_norms(own: dict[str, Tensor], given: dict[str, Tensor]) -> tuple[float | None, list[str]]:
    """The largest difference between two sets of norms (None without weights), the names beyond float16's rounding."""
    if any(p.is_meta for p in own.values()):
        return None, []
    apart = {k: (own[k].detach().float().cpu() - v.float().cpu()).abs() for k, v in given.items()}
    beyond = {k for k, d in apart.items() if (d > 2**-10 * given[k].float().cpu().abs().clamp_min(1)).any()}
    return max((d.max().item() for d in apart.values()), default=0.0), sorted(beyond)
