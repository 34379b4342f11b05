"""Networks out of files, strictly: every weight is there, none is left over, all are finite numbers; and into files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import RLock

import torch
from torch import nn

from ..util.checkpoint import require_intact
from ..util.files import write_tensors
from .configs import refuse_non_finite

STEM = "diffusion_pytorch_model"  # of diffusers' weight files
ENDS = (".safetensors", "-*-of-*.safetensors", ".bin", "-*-of-*.bin")  # of one network's, whole and in shards
_loading = RLock()


def network(kind: type, folder: Path) -> nn.Module:
    """A diffusers model in float32; a weight that is missing would be random, one too many lost: both are errors."""
    options = {"torch_dtype": torch.float32, "variant": variant(folder), "output_loading_info": True}
    files = weight_files(folder)
    with silent():
        found, report = kind.from_pretrained(folder, **options)
    refuse_unmatched(report, folder)
    refuse_non_finite(found, files[0] if len(files) == 1 else folder)
    for file in files:
        require_undamaged(file)
    return found


def refuse_unmatched(report: Mapping, folder: Path) -> None:
    """`ValueError` for weights that a library's loading report says are missing, or are not asked for."""
    if report["missing_keys"]:
        raise ValueError(f"{folder} has no weights for {min(report['missing_keys'])}.")
    if report["unexpected_keys"]:
        raise ValueError(
            f"{folder} has weights {min(report['unexpected_keys'])}, which its config.json does not ask for."
        )


def write_network(network: nn.Module, folder: Path) -> None:
    """Writes the weights of a diffusers model, compiled or not, as one file; what an older model left is removed."""
    write_tensors(folder / f"{STEM}.safetensors", getattr(network, "_orig_mod", network).state_dict())
    for stale in (*folder.glob(f"{STEM}*-of-*"), *folder.glob(f"{STEM}*.index*.json")):
        stale.unlink()


def require_undamaged(file: Path) -> None:
    """`checkpoint.require_intact`, whose error names the file."""
    try:
        require_intact(file)
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}.") from None


@contextmanager
def silent() -> Iterator[None]:
    """Within the block diffusers logs errors only: what it warns of at length is refused here in one sentence.

    One thread at a time: besides, while diffusers loads a model, it changes how torch makes modules.
    """
    from diffusers.utils import logging

    with _loading:
        before = logging.get_verbosity()
        logging.set_verbosity_error()
        try:
            yield
        finally:
            logging.set_verbosity(before)


def first_sentence(error: Exception) -> str:
    """What a library's error says, without the advice that follows."""
    return (str(error).splitlines() or [type(error).__name__])[0].partition(". ")[0].rstrip(".")[:300]


def weight_files(folder: Path, stem: str = STEM) -> list[Path]:
    """The files with one network's weights: plain ones before a `variant`, safetensors before others; [] without any.

    Raises `ValueError` as `variant` does, and where they are there whole and in shards.
    """
    kind = variant(folder, stem) if folder.is_dir() else None
    base = stem if kind is None else f"{stem}.{kind}"
    found = [sorted(folder.glob(base + end)) for end in ENDS]
    for whole, shards in (found[:2], found[2:]):
        if whole and shards:
            raise ValueError(f"{folder} holds its weights whole and in shards; keep {whole[0].name} or the others.")
    return next(filter(None, found), [])


def variant(folder: Path, stem: str = STEM) -> str | None:
    """The only variant of the weights in a folder, like "fp16"; None where plain ones are there, which go first.

    Raises `ValueError` where there are several and no plain one.
    """
    pattern = re.compile(rf"{stem}(?:\.(\w+))?(?:-\d+-of-\d+)?\.(?:safetensors|bin)")
    found = {match[1] for file in folder.iterdir() if (match := pattern.fullmatch(file.name))}
    if None not in found and len(found) > 1:
        raise ValueError(f"{folder} holds its weights as {' and '.join(sorted(found))}; keep one of them.")
    return None if None in found or not found else found.pop()


def owned(model: nn.Module) -> nn.Module:
    """Copies the weights out of the files they are mapped from: where they lay there would change the last bits."""
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()
    return model
