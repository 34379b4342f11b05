"""A deployed model as a folder: graphs, whole numbers packed to their bits, and a description with their digests."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..util.checkpoint import read_checkpoint
from ..util.extras import required
from ..util.files import read_json, replacing, write_json, write_tensors
from ..util.hashing import sha256
from .emitter import Emitter, whole_of
from .graph import with_constants
from .packing import pack, packed_bytes, unpack

if TYPE_CHECKING:
    import onnx

DESCRIPTION, FORMAT = "deployed.json", 2
NETWORKS = ("encoder", "unet", "decoder")
INLINE = 16  # numbers of a constant that is left in the graph


@dataclass(frozen=True)
class Part:
    """A network of a deployed model.

    model: its graph without large constants; codes: name -> (bytes, bits, shape, move); constants: the other arrays;
    risky: grids whose whole numbers could overflow without VNNI.
    """

    model: onnx.ModelProto
    codes: dict[str, tuple[torch.Tensor, int, tuple[int, ...], torch.Tensor]]
    constants: dict[str, torch.Tensor]
    risky: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, e: Emitter, model: onnx.ModelProto) -> Part:
        """What an emitter has made; small constants stay in the graph."""
        small = {k: v for k, v in e.graph.constants.items() if v.size <= INLINE}
        large = {k: torch.from_numpy(v) for k, v in e.graph.constants.items() if k not in small}
        codes = {k: (pack(c.codes, c.bits), c.bits, tuple(c.codes.shape), c.move) for k, c in e.codes.items()}
        return cls(with_constants(model, small), codes, large, sorted(e.risky))

    def whole(self) -> onnx.ModelProto:
        """A new model with all its initializers, weights as 8-bit whole numbers."""
        model = type(self.model)()
        model.CopyFrom(self.model)
        helper = required("onnx").numpy_helper
        model.graph.initializer.extend(helper.from_array(v.numpy(), k) for k, v in self.constants.items())
        for name, (data, bits, shape, move) in self.codes.items():
            array = whole_of(unpack(data, bits, shape), move).numpy()
            model.graph.initializer.append(helper.from_array(array, name))
        return model

    def bytes(self) -> dict[str, int]:
        """What the whole numbers and the constants take."""
        return {
            "codes": sum(c[0].numel() for c in self.codes.values()),
            "constants": sum(t.numel() * t.element_size() for t in self.constants.values())
            + sum(2 * c[3].numel() for c in self.codes.values()),
        }


def write(folder: Path, parts: dict[str, Part], description: dict) -> dict:
    """Writes all of it, the description last; the description with sizes, files and digests."""
    files = {}
    for name, part in parts.items():
        tensors = {f"codes/{k}": c[0] for k, c in part.codes.items()} | {
            f"move/{k}": c[3] for k, c in part.codes.items()
        }
        write_tensors(folder / f"{name}.safetensors", tensors | {f"constant/{k}": v for k, v in part.constants.items()})
        with replacing(folder / f"{name}.onnx") as temporary:
            temporary.write_bytes(part.model.SerializeToString(deterministic=True))
        files |= {f: sha256(folder / f) for f in (f"{name}.safetensors", f"{name}.onnx")}
    networks = {
        name: {
            "codes": {k: {"bits": c[1], "shape": list(c[2])} for k, c in part.codes.items()}, "risky": part.risky,
            "bytes": part.bytes(),
        }
        for name, part in parts.items()
    }  # fmt: skip
    sizes = {file: (folder / file).stat().st_size for file in files}
    description = {"format": FORMAT, **description, "networks": networks, "files": files, "sizes": sizes}
    write_json(folder / DESCRIPTION, description | {"digest": _digest(description)})
    return description | {"sizes": sizes | {DESCRIPTION: (folder / DESCRIPTION).stat().st_size}}


def read(folder: Path) -> tuple[dict, dict[str, Part]]:
    """(description, parts) as `write` has them; `ValueError` in one sentence for what is missing or altered."""
    if not (folder / DESCRIPTION).is_file():
        raise ValueError(f"{folder} is no deployed model: there is no {DESCRIPTION}; `deploy` writes such a folder.")
    description = read_json(folder / DESCRIPTION)
    if description.get("format") != FORMAT:
        raise ValueError(f"{folder} is of format {description.get('format')!r}, not {FORMAT}; deploy the model again.")
    if description.pop("digest", None) != _digest(description):
        raise ValueError(f"{folder / DESCRIPTION} is not what was written; copy the folder again.")
    for file, digest in description["files"].items():
        if not (folder / file).is_file():
            raise ValueError(f"{folder} is not complete: there is no {file}; copy the folder again.")
        if sha256(folder / file) != digest:
            raise ValueError(f"{folder / file} is damaged or another model's; copy the folder again.")
    return description, {name: _part(folder, name, description["networks"][name]) for name in NETWORKS}


def _part(folder: Path, name: str, saved: dict) -> Part:
    tensors = read_checkpoint(folder / f"{name}.safetensors")
    model = required("onnx").load_model_from_string((folder / f"{name}.onnx").read_bytes())
    codes = {}
    for key, entry in saved["codes"].items():
        shape = tuple(entry["shape"])
        if tensors[f"codes/{key}"].numel() != packed_bytes(shape, entry["bits"]):
            raise ValueError(f"{folder / name}.safetensors does not hold {key} in {entry['bits']} bits; copy it again.")
        codes[key] = tensors[f"codes/{key}"], entry["bits"], shape, tensors[f"move/{key}"]
    constants = {k.removeprefix("constant/"): t for k, t in tensors.items() if k.startswith("constant/")}
    return Part(model, codes, constants, saved["risky"])


def _digest(description: dict) -> str:
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()
