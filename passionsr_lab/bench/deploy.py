"""How fast a deployed model is over the fastest float32 route: network by network, side by side in one run.

Routes in float32 are torch as it is, in channels-last, compiled where there is a compiler, and the very graphs of the
deployed model without integers in OpenVINO and ONNX Runtime.  Every round runs every route once; medians are compared.
On one thread the clock is the process's own processor time, which other work on the machine disturbs least.
"""

from __future__ import annotations

import copy
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from ..deployment.engines import ENGINES, OpenVINO, core
from ..deployment.folder import NETWORKS, Part, read
from ..deployment.pipeline import EMIT, LARGEST, deploy, ends, engine, load_deployed, save_onnx
from ..fullsize.sd21 import sd21
from ..imaging.pairs import Pair, bundled
from ..imaging.psnr import psnr_rgb, psnr_y, sqnr
from ..methods import calibrate
from ..pipeline.onestep import OneStepSR
from ..quantization.layer import QuantLayer
from ..quantization.place import QuantizedSR, quantize
from ..quantization.recipe import recipe as recipe_named
from ..store.folder import load
from ..util.files import write_tensors
from ..util.machine import threads
from ..util.memory import Peak, available
from .calibrate import machine

Run = Callable[[Tensor], Tensor]
SIMULATED = "simulated.safetensors"
DEPLOYED, MIXED, HALF = "deployed", "deployed, slower layers in float", "openvino bfloat16"  # routes that are no base
PICTURES = 8  # of the test set, that whole pipelines are compared on
NAMES = {"encoder": "vae_encoder", "unet": "unet", "decoder": "vae_decoder"}


@dataclass(frozen=True)
class Deploying:
    """What is run.

    model: "tiny", "sd21" (random weights) or a model folder; recipe, method: of the calibration, which here has two
    pairs and no steps where the method has none.
    size: edge of the restored image in pixels; rounds: of which medians are taken; threads: of every route.
    compiled: whether torch.compile is tried; backend: of the deployed model.
    """

    model: str = "tiny"
    recipe: str = "W8A8"
    method: str = "let"
    size: int = 512
    rounds: int = 5
    threads: int = 1
    compiled: bool = True
    backend: str = "openvino"
    networks: tuple[str, ...] = NETWORKS


def deploying(options: Deploying) -> Iterator[dict]:
    """Runs the benchmark.

    Yields:
        "machine"; "deploy" (sizes, and the layers that run in float here); "pictures", how far the deployed pipeline is
        from the simulated one, in dB, and that from itself with torch's own convolutions in place of oneDNN's, which
        sum in another order, and from itself in channels-last; both also to HR (not of random weights); "memory", the
        peaks of new processes that load the model and restore a picture; per network "network" with the medians
        `seconds` of all routes, the fastest float32 one as `base`, the same `decibels` of it alone, the layers that are
        `slower` in integers on their own (seconds in integers and in float; None where that was not measured), and the
        routes that there was no room for; and "ratios": base over deployed of every network, and of the three's sum as
        `pipeline`.
    """
    with threads(options.threads):
        packages = {name: version(name) for name in ("onnx", "openvino", "onnxruntime")}
        yield machine() | packages | {"precision": "f32", "clock": "processor" if options.threads == 1 else "wall"}
        with tempfile.TemporaryDirectory() as held:
            folder = Path(held)
            report = _elsewhere(_prepared, folder, options)
            ready = load_deployed(folder / DEPLOYED)
            itself = report.pop("itself")
            yield _told(report, ready, options)
            if "pictures" in report:
                yield {"step": "pictures", "count": PICTURES} | report["pictures"]
            kinds = ("float32", DEPLOYED)
            yield {"step": "memory"} | {f"{kind}_bytes": _elsewhere(_peak, folder, options, kind) for kind in kinds}
            pipe, found = _pipe(options), []
            for name in options.networks:
                found.append(_measured(name, pipe, ready, folder, options))
                found[-1]["decibels"]["simulated to itself"] = itself[name]
                yield found[-1]
        yield {"step": "ratios", "ratios": ratios(found)}


def ratios(found: list[dict]) -> dict[str, float]:
    """The fastest float32 route over the deployed one, and over what bfloat16 is there."""
    result = {NAMES[row["network"]]: row["seconds"][row["base"]] / row["seconds"][DEPLOYED] for row in found}
    routes = set.intersection(*(set(row["seconds"]) for row in found)) - {DEPLOYED, MIXED, HALF}
    if len(found) == len(NETWORKS):
        totals = {route: sum(row["seconds"][route] for row in found) for route in (*routes, DEPLOYED)}
        result["pipeline"] = min(totals[route] for route in routes) / totals[DEPLOYED]
    if all(HALF in row["seconds"] for row in found):
        half = sum(row["seconds"][HALF] for row in found)
        result["bfloat16"] = half / sum(row["seconds"][DEPLOYED] for row in found)
    return result


def _elsewhere(work: Callable, folder: Path, options: Deploying, *more):
    """The result of a function in a new process, which gives its memory back."""
    with ProcessPoolExecutor(1, get_context("spawn"), torch.set_num_threads, (options.threads,)) as pool:
        return pool.submit(work, folder, options, *more).result()


def _pipe(options: Deploying) -> OneStepSR:
    if options.model != "sd21":
        return load(options.model)
    torch.manual_seed(0)
    return sd21("cpu")


def _prepared(folder: Path, options: Deploying) -> dict:
    """Calibrates and deploys; what the simulated networks make of the inputs is kept in the folder.

    Random weights are calibrated on noise: they show time and size, not quality.
    """
    pipe, pairs = _pipe(options), bundled("calibration", 2, 64)
    if options.model == "sd21":
        pairs = [Pair("noise", torch.rand(3, 32, 32), torch.rand(3, 128, 128))]
    q = quantize(pipe, recipe_named(options.recipe))
    calibrate(q, pairs, options.method, quiet=True)
    report = deploy(q, folder / DEPLOYED, options.backend)
    outputs, itself = {}, {}
    with torch.no_grad():
        for name in options.networks:
            x, run = _input(name, pipe, options), torch_route(name, q)
            outputs[name] = run(x)
            itself[name] = sqnr(_summed_otherwise(run, x), outputs[name])
    write_tensors(folder / SIMULATED, outputs)
    pictures = {} if options.model == "sd21" else {"pictures": _pictures(q, folder, options)}
    return report | {"itself": itself} | pictures


def _summed_otherwise(run: Run, x: Tensor) -> Tensor:
    """The same with torch's own convolutions instead of oneDNN's."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "TF32")  # of Intel's GPUs, which this turns off besides
        with torch.backends.mkldnn.flags(enabled=False):
            return run(x)


@contextmanager
def _channels_last_layers(q: QuantizedSR) -> Iterator[None]:
    """Every convolution's output is in channels-last within the block, and what follows sums in that order."""
    last = lambda layer, x, y: y.contiguous(memory_format=torch.channels_last) if y.ndim == 4 else y
    hooks = [layer.register_forward_hook(last) for layer in q.modules() if isinstance(layer, QuantLayer)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _pictures(q: QuantizedSR, folder: Path, options: Deploying) -> dict[str, float]:
    """Means over test pictures: dB between what the models make of them, and PSNR-Y against HR."""
    ready, rows = load_deployed(folder / DEPLOYED), []
    for pair in bundled("test", PICTURES, options.size // 2):
        plain, ours = q(pair.lr), ready(pair.lr)
        with _channels_last_layers(q):
            last = q(pair.lr)
        rows.append({
            "deployed to simulated": psnr_rgb(ours, plain),
            "simulated to itself": psnr_rgb(_summed_otherwise(q, pair.lr), plain),
            "simulated to itself in channels-last": psnr_rgb(last, plain),
            "deployed to HR": psnr_y(ours, pair.hr), "simulated to HR": psnr_y(plain, pair.hr),
        })  # fmt: skip
    return {key: statistics.mean(row[key] for row in rows) for key in rows[0]}


def _peak(folder: Path, options: Deploying, kind: str) -> int:
    """The most memory that is held while a model is loaded and restores a picture."""
    with Peak() as peak:
        pipe = load_deployed(folder / DEPLOYED) if kind == DEPLOYED else _pipe(options)
        pipe(torch.rand(3, *[options.size // pipe.upscale] * 2))
    return peak.bytes


def _told(report: dict, ready: OneStepSR, options: Deploying) -> dict:
    here = ready.report["here"]["in_float"]
    return {
        "step": "deploy", "model": options.model, "recipe": options.recipe, "method": options.method,
        "backend": options.backend, "size": options.size, "rounds": options.rounds, "runs": report["runs"],
        "float32_bytes": report["float32_bytes"], "bytes": sum(report["sizes"].values()),
        "in_float_here": len(here),
        "why": "no VNNI: products of 8-bit factors would saturate in 16 bits" if here else "",
    }  # fmt: skip


@torch.no_grad()
def _measured(name: str, pipe: OneStepSR, ready: OneStepSR, folder: Path, options: Deploying) -> dict:
    x = _input(name, pipe, options)
    routes, skipped = _routes(name, pipe, ready, folder, options)
    floats = [route for route in routes if route not in (DEPLOYED, HALF)]
    slower = None
    if options.backend == "openvino" and not skipped:
        slower = _slower(routes[DEPLOYED], routes["openvino"], x, options.rounds)
    if slower:
        grids = {f"{layer}.act" for layer in slower}
        routes[MIXED] = engine(read(folder / DEPLOYED)[1][name], options.backend, grids)
    for run in routes.values():
        if isinstance(run, OpenVINO):
            run.keeps = name == LARGEST
    outputs = {route: run(x) for route, run in routes.items()}
    clock = time.process_time if options.threads == 1 else time.perf_counter
    times: dict[str, list[float]] = {route: [] for route in routes}
    for _ in range(options.rounds):
        for route, run in routes.items():
            start = clock()
            run(x)
            times[route].append(clock() - start)
    seconds = {route: statistics.median(found) for route, found in times.items()}
    simulated, plain = load_file(folder / SIMULATED)[name], outputs["torch"]
    close = {route: sqnr(outputs[route], plain) for route in routes if route in (*floats, HALF) and route != "torch"}
    return {
        "step": "network", "network": name, "input": list(x.shape), "seconds": seconds, "times": times,
        "base": min(floats, key=seconds.__getitem__),
        "decibels": {"deployed to simulated": sqnr(outputs[DEPLOYED], simulated)},
        "decibels_to_torch": close, "slower": slower, "no_room_for": skipped,
    }  # fmt: skip


def _slower(integers: OpenVINO, floats: OpenVINO, x: Tensor, rounds: int) -> dict[str, list[float]]:
    """The layers whose convolution or product takes longer in integers, with its seconds there and in float."""
    ours, theirs = (route.layer_seconds(x, rounds) for route in (integers, floats))
    return {name: [ours[name], theirs[name]] for name in ours.keys() & theirs.keys() if ours[name] > theirs[name]}


def _input(name: str, pipe: OneStepSR, options: Deploying) -> Tensor:
    """What the network sees of a smooth picture; with random weights, which make nothing of one, noise."""
    generator = torch.Generator().manual_seed(0)
    if options.model == "sd21":
        edge = options.size if name == "encoder" else options.size // pipe.factor
        return torch.randn(1, ends(pipe, name)[1], edge, edge, generator=generator)
    lr = torch.rand(1, 3, 8, 8, generator=generator)
    x = pipe.prepare(F.interpolate(lr, size=[options.size // pipe.upscale] * 2, mode="bicubic").clamp(0, 1))
    if name == "encoder":
        return x
    z = pipe.encode(x)
    return z if name == "unet" else pipe.denoise(z) / pipe.vae.config.scaling_factor


def _routes(
    name: str, pipe: OneStepSR, ready: OneStepSR, folder: Path, options: Deploying
) -> tuple[dict[str, Run], list[str]]:
    """Every way to run one network, all from the input of the deployed graph to its output; and those that are left out
    for want of memory: each holds the weights once more, and on its way three times."""
    emitted = EMIT[name](pipe)
    part, file = Part.of(emitted, emitted.graph.model(*ends(pipe, name))), folder / f"float_{name}.onnx"
    save_onnx(part, file)
    ways: dict[str, Callable[[], Run]] = {"openvino": lambda: ENGINES["openvino"](str(file))}
    if "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        ways[HALF] = lambda: OpenVINO(str(file), "bf16")
    ways["torch channels-last"] = lambda: _channels_last(name, pipe)
    ways["onnxruntime"] = lambda: ENGINES["onnxruntime"](str(file))
    if options.compiled and shutil.which("g++"):
        ways["torch compiled"] = lambda: torch.compile(torch_route(name, pipe))
    routes, skipped = {"torch": torch_route(name, pipe), DEPLOYED: ready.engines[name]}, []
    x, room = _input(name, pipe, options), 3 * part.bytes()["constants"]
    del emitted, part
    for route, make in ways.items():
        if available() < room:
            skipped.append(route)
            continue
        routes[route] = make()
        routes[route](x)  # compiled, warm
    return routes, skipped


def _channels_last(name: str, pipe: OneStepSR) -> Run:
    twin = copy.copy(pipe)
    part = "unet" if name == "unet" else "vae"
    twin._modules = dict(pipe._modules) | {part: copy.deepcopy(getattr(pipe, part))}
    for layer in twin._modules[part].modules():
        if isinstance(layer, nn.Conv2d):
            layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last)
    run = torch_route(name, twin)
    return lambda x: run(x.contiguous(memory_format=torch.channels_last))


def torch_route(name: str, pipe: OneStepSR | QuantizedSR) -> Run:
    """A network in torch, from the input of its graph to the output."""
    factor = pipe.vae.config.scaling_factor
    if name == "unet":
        return pipe.noise
    return (lambda x: pipe.encode(x) / factor) if name == "encoder" else (lambda z: pipe.decode(z * factor))
