"""Two cures for installed packages that break each other; each acts only when the plain import has failed.

1. The registry's torchvision is built for CUDA.  Beside a CPU build of torch its compiled part does not load, and
   `import torchvision` stops at "operator torchvision::nms does not exist".  pyiqa, transformers and diffusers import
   torchvision, so they stop too.  Declaring the two operators is enough: nothing here calls them.
2. openai-clip (pyiqa's CLIP-IQA) takes `packaging` from `pkg_resources`, which setuptools has dropped.
"""

from __future__ import annotations

import importlib
import sys
from importlib.util import find_spec
from types import ModuleType

import torch

_MISSING = ("nms", "qnms")
_declared: list[torch.library.Library] = []  # torch withdraws a declaration when its Library is collected


def torchvision_importable() -> bool:
    """Makes `import torchvision` work; call it before importing diffusers, transformers or pyiqa.  Idempotent.

    Returns False where torchvision is not installed; any other failure of its import is raised as it is.
    After the cure the compiled operators (nms, roi_align) are still missing and raise when called.

    Example:
        >>> torchvision_importable()
        True
        >>> import torchvision
    """
    if find_spec("torchvision") is None:
        return False
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
        _forget("torchvision")
        _declare_operators()
        importlib.import_module("torchvision")
    return True


def clip_importable() -> bool:
    """Makes `import clip` (openai-clip) work without `pkg_resources`.  Idempotent.

    Returns False where clip is not installed; any other failure of its import is raised as it is.

    Example:
        >>> clip_importable()
        True
        >>> import clip
    """
    if find_spec("clip") is None:
        return False
    torchvision_importable()
    try:
        importlib.import_module("clip")
    except ModuleNotFoundError as error:
        if error.name != "pkg_resources":
            raise
        _forget("clip")
        _import_clip_with_packaging()
    return True


def _declare_operators() -> None:
    library = torch.library.Library("torchvision", "DEF")
    for name in _MISSING:
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(library)


def _import_clip_with_packaging() -> None:
    """Imports clip while a `pkg_resources` that holds the one name clip takes from it stands in."""
    importlib.import_module("packaging.version")
    stand_in = ModuleType("pkg_resources")
    stand_in.packaging = sys.modules["packaging"]
    sys.modules["pkg_resources"] = stand_in
    try:
        importlib.import_module("clip")
    finally:
        del sys.modules["pkg_resources"]


def _forget(package: str) -> None:
    """Removes what a failed import has left behind."""
    for name in [n for n in sys.modules if n == package or n.startswith(f"{package}.")]:
        del sys.modules[name]
