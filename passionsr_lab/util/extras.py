"""Packages that an extra brings: imported when they are needed, missed in one sentence."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

OF = {"onnx": "deploy", "openvino": "deploy", "onnxruntime": "deploy"}


def required(name: str) -> ModuleType:
    """The module of this name; `ValueError` says which extra brings it."""
    try:
        return import_module(name)
    except ImportError:
        raise ValueError(
            f'This needs the package {name}, which is not installed: pip install "passionsr_lab[{OF[name]}]"'
        ) from None
