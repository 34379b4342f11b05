"""Names that several rooms agree on: the three modules of the path, and patterns of layer names."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

MODULES = ("encoder", "unet", "decoder")


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a layer's name matches one of the fnmatch patterns.

    Example:
        >>> matches("unet.conv_in", ["vae.*", "*.conv_in"])
        True
    """
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def uncompiled_name(path: str) -> str:
    """A module's name as it was before `torch.compile` wrapped what is above it.

    Example:
        >>> uncompiled_name("unet._orig_mod.conv_in")
        'unet.conv_in'
    """
    return path.replace("_orig_mod.", "")
