"""Networks out of files, strictly: every weight is there, none is left over, all are finite numbers."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import nn

from .configs import refuse_non_finite

STEM = "diffusion_pytorch_model"  # of diffusers' weight files


def network(kind: type, folder: Path) -> nn.Module:
    """A diffusers model in float32; a weight that is missing would be random, one too many lost: both are errors."""
    found, report = kind.from_pretrained(
        folder, torch_dtype=torch.float32, variant=variant(folder, STEM), output_loading_info=True
    )
    if report["missing_keys"]:
        raise ValueError(f"{folder} has no weights for {min(report['missing_keys'])}.")
    if report["unexpected_keys"]:
        raise ValueError(
            f"{folder} has weights {min(report['unexpected_keys'])}, which its config.json does not ask for."
        )
    files = weight_files(folder, STEM)
    refuse_non_finite(found, files[0][1] if len(files) == 1 else folder)
    return found


def weight_files(folder: Path, stem: str) -> list[tuple[str | None, Path]]:
    """(variant, file) of the weights in a folder: ("fp16", `stem.fp16.safetensors`), or None and `stem.safetensors`."""
    pattern = re.compile(rf"{stem}(?:\.(\w+))?(?:-\d+-of-\d+)?\.(?:safetensors|bin)")
    found = [(pattern.fullmatch(file.name), file) for file in sorted(folder.iterdir())]
    return [(match[1], file) for match, file in found if match]


def variant(folder: Path, stem: str) -> str | None:
    """The only variant of the weights in a folder; None where plain ones are there, which go first.

    Raises `ValueError` where there are several and no plain one.
    """
    found = {name for name, _ in weight_files(folder, stem)}
    if None not in found and len(found) > 1:
        raise ValueError(f"{folder} holds its weights as {' and '.join(sorted(found))}; keep one of them.")
    return None if None in found or not found else found.pop()


def owned(model: nn.Module) -> nn.Module:
    """Copies the weights out of the files they are mapped from: where they lay there would change the last bits."""
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()
    return model
