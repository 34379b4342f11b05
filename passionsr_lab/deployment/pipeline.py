"""From a calibrated pipeline to a folder of integers, and from the folder to a pipeline that runs them."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from ..pipeline.identity import fingerprint
from ..pipeline.onestep import DECIDING, OneStepSR
from ..quantization.place import QuantizedSR, unquantize
from ..store.keys import versions
from ..util.extras import required
from ..util.files import claimed
from .emitter import Emitter
from .engines import ENGINES, require_engine
from .folder import NETWORKS, Part, read, write
from .networks import emit_decoder, emit_encoder, emit_unet
from .safe import in_float, saturating

MESSAGE = 2**28  # bytes of weights beyond which an engine is given a file: a message is copied, and ends at 2**31
EMIT = {"encoder": emit_encoder, "unet": emit_unet, "decoder": emit_decoder}
LARGEST = "decoder"  # in activations
ENDS = {"encoder": ("image", "latent"), "unet": ("latent", "noise"), "decoder": ("latent", "image")}


class DeployedSR(OneStepSR):
    """A one-step pipeline whose three networks an engine runs in integers; its call is that of every pipeline.

    Of diffusers' networks only the configurations are here, and of the schedule its one noise level: weights are whole
    numbers in the engine's graphs, and diffusers itself, which takes more memory than they do, is never imported.

    Attributes:
        engines: by network, functions x -> y; report: what `deploy` wrote beside the weights, with a row per layer.
    """

    label = "deployed"

    def __init__(self, *parts, engines: dict, report: dict, **settings):
        super().__init__(*parts, **settings)
        self.engines, self.report = engines, report

    def __setattr__(self, name: str, value) -> None:
        """What decides the output is part of the graphs, and cannot be set later."""
        if name not in DECIDING:
            super().__setattr__(name, value)
        elif name in vars(self):
            raise ValueError(f"The {name} of a deployed model is folded into it; deploy another model for this.")
        else:
            nn.Module.__setattr__(self, name, value)

    def _require_supported(self) -> None:
        """`deploy` did."""

    def encode(self, x: Tensor) -> Tensor:
        """As `OneStepSR.encode`."""
        self._require_multiple(x, self.multiple)
        return self.engines["encoder"](x).to(x.dtype) * self.vae.config.scaling_factor

    def noise(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """As `OneStepSR.noise`; the prompt embedding is a constant of the graph."""
        if condition is not None and not torch.equal(condition, self.prompt_embedding):
            raise ValueError(
                "A deployed model has one prompt embedding, folded into its UNet; deploy another for this."
            )
        self._require_multiple(z, self.multiple // self.factor)
        return self.engines["unet"](z).to(z.dtype)

    def decode(self, z: Tensor) -> Tensor:
        """As `OneStepSR.decode`."""
        return self.engines["decoder"](z / self.vae.config.scaling_factor).to(z.dtype)

    def _tiling(self, tiling, height: int, width: int):
        found = super()._tiling(tiling, height, width)
        if found is not None and found.shared:
            raise ValueError("Tiles that share their norms do not run in integers; take a Tiling with shared=False.")
        return found

    def _require_multiple(self, x: Tensor, multiple: int) -> None:
        if any(n % multiple for n in x.shape[-2:]):
            raise ValueError(f"Height and width must be multiples of {multiple} here, not {tuple(x.shape[-2:])}.")

    def to(self, device) -> DeployedSR:
        """Refused off the CPU, where the engines are."""
        if torch.device(device).type != "cpu":
            raise ValueError(f"A deployed model runs on the CPU, not on {device}.")
        return self

    def prune(self) -> OneStepSR:
        """Refused: there are no float weights."""
        raise ValueError("A deployed model has no float weights; quantize or change the full-precision one.")

    def save(self, folder: str | Path) -> Path:
        """Refused: `deploy` has written it."""
        raise ValueError("A deployed model is the folder that lab.deploy wrote; copy that.")


def deploy(q: QuantizedSR, folder: str | Path, backend: str = "openvino", onnx: bool = False) -> dict:
    """Writes a calibrated pipeline as integers: graphs, weights packed to their bits, and a description.

    What is constant in one step is folded first (timestep, prompt, LET where it is exact); the report says of every
    layer whether it runs in integers, is constant, or stays in float and why.

    Args:
        q: a calibrated pipeline; float modules of a recipe such as PassionSR-U stay in float.
        folder: written to; `load_deployed` reads it.
        backend: the engine that `load_deployed` takes, "openvino", "onnxruntime" or, on a GPU, "tensorrt".
        onnx: also write `onnx/NETWORK.onnx`, whole QDQ graphs for other engines, with weights in 8 bits.

    Returns:
        what is in `deployed.json`: rows of layers, sizes in bytes, the recipe, the method.

    Raises:
        ValueError: not calibrated, a zero point that is no whole number, or a part that has no integer form; the
            message names it.  Nothing is written then.
    """
    if not isinstance(q, QuantizedSR) or q.method is None:
        raise ValueError("lab.deploy takes a pipeline that is quantized and calibrated (lab.quantize, lab.calibrate).")
    if q.prompt_embedding.device.type != "cpu":
        raise ValueError(
            f"Integers are made on the CPU, but the pipeline is on {q.prompt_embedding.device}: q.to('cpu')."
        )
    require_engine(backend)
    emitters = {name: EMIT[name](q.pipe) for name in NETWORKS}
    parts = {name: Part.of(e, e.graph.model(*ends(q, name))) for name, e in emitters.items()}
    with claimed(folder) as place:
        description = write(place, parts, _described(q, emitters, backend))
        for name in NETWORKS if onnx else ():
            save_onnx(parts[name], place / "onnx" / f"{name}.onnx")
    return description


def ends(pipe, name: str) -> tuple[str, int, str, int]:
    """Input and output of a network with their channels."""
    latent, (source, target) = pipe.vae.config.latent_channels, ENDS[name]
    channels = {"latent": latent, "noise": latent, "image": 3}
    return source, channels[source], target, channels[target]


def _described(q: QuantizedSR, emitters: dict[str, Emitter], backend: str) -> dict:
    plain = unquantize(q)
    rows = [{"module": name} | row.to_dict() for name, e in emitters.items() for row in e.rows]
    weights = [p for part in (plain.unet, plain.vae) for p in part.parameters()]
    return {
        "label": DeployedSR.label, "model": q.name, "fingerprint": fingerprint(plain), "recipe": q.recipe.to_dict(),
        "method": q.method.describe(), "timestep": q.timestep, "upscale": q.upscale, "tile": q.tile,
        "backend": backend, "bits": _weights_by_bits(emitters), "rows": rows,
        "runs": dict(Counter(row["runs"] for row in rows)),
        "float32_bytes": 4 * sum(p.numel() for p in weights), "versions": versions(),
        "configs": {name: _config(getattr(q, name)) for name in ("unet", "vae")},
        "noise_level": float(q.scheduler.alphas_cumprod[q.timestep]),
        "prompt": list(q.prompt_embedding.shape),
    }  # fmt: skip


def _config(network: nn.Module) -> dict:
    return {key: value for key, value in network.config.items() if not key.startswith("_")}


def _weights_by_bits(emitters: dict[str, Emitter]) -> dict[str, int]:
    """How many weights are stored in so many bits."""
    found: Counter = Counter()
    for codes in (c for e in emitters.values() for c in e.codes.values()):
        found[str(codes.bits)] += codes.codes.numel()
    return dict(sorted(found.items()))


def save_onnx(part: Part, path: Path) -> None:
    """A whole graph as a file, its weights beside it where they are large."""
    _write_onnx(part.whole(), path)


def _write_onnx(model, path: Path) -> Path:
    onnx = required("onnx")
    path.parent.mkdir(parents=True, exist_ok=True)
    data = path.with_suffix(".data")
    data.unlink(missing_ok=True)  # onnx appends
    onnx.save_model(
        model, path, save_as_external_data=True, location=data.name, size_threshold=1024, all_tensors_to_one_file=True
    )
    return path


def load_deployed(folder: str | Path, backend: str | None = None) -> DeployedSR:
    """The pipeline in a folder that `deploy` wrote.

    On a processor whose 8-bit products add up in 16 bits (no VNNI), layers that this could hurt run in float; the
    pipeline's `report["here"]` names them.

    Args:
        backend: another engine than the one the folder names.

    Raises:
        ValueError: something is missing, truncated or altered, or the engine is not installed.
    """
    description, parts = read(Path(folder))
    backend = backend or description["backend"]
    require_engine(backend)
    engines = {name: engine(parts.pop(name), backend) for name in NETWORKS}
    engines[LARGEST].keeps = True
    description["here"] = {"backend": backend, "in_float": _risky_rows(description) if saturating(backend) else []}
    return _pipeline(description, engines)


def engine(part: Part, backend: str, floats: Collection[str] = ()):
    """The function x -> y of a network, with nothing in integers that would lose bits on this processor.

    floats: further grids that are computed in float.
    """
    model = in_float(part.whole(), {*floats, *(part.risky if saturating(backend) else ())})
    if sum(len(c.raw_data) for c in model.graph.initializer) < MESSAGE:
        return ENGINES[backend](model.SerializeToString())
    held = tempfile.TemporaryDirectory()
    path = _write_onnx(model, Path(held.name) / "network.onnx")
    del model
    found = ENGINES[backend](str(path))
    found.held = held  # an engine may read it later
    return found


def _risky_rows(description: dict) -> list[str]:
    return [row["layer"] for row in description["rows"] if row["overflow"]]


def _pipeline(description: dict, engines: dict) -> DeployedSR:
    networks = [SimpleNamespace(config=SimpleNamespace(**description["configs"][name])) for name in ("unet", "vae")]
    timestep = description["timestep"]
    schedule = SimpleNamespace(alphas_cumprod={timestep: torch.tensor(description["noise_level"])})
    pipe = DeployedSR(
        *networks, schedule, torch.zeros(description["prompt"]), timestep, description["upscale"], None,
        description["model"], engines=engines, report=description,
    )  # fmt: skip
    pipe.tile = description["tile"]
    return pipe
