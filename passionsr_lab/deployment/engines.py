"""Engines that run an ONNX graph: OpenVINO and ONNX Runtime on the processor, TensorRT on an NVIDIA GPU."""

from __future__ import annotations

import statistics
from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from functools import cache
from threading import Lock

import numpy as np
import torch
from torch import Tensor

from ..util.extras import required

KEPT = 4  # compiled shapes of one network


@cache
def core():
    """OpenVINO's core, one for the whole process and as long as it lives.

    Its plugin gives the thread that asks first a stack for signals.  Of two cores, the one that ends last gives it back
    that of the other, which is freed: the next signal, such as an interrupt of a notebook, then ends the process.
    """
    return required("openvino").Core()


class OpenVINO:
    """A graph compiled for one shape at a time, in float32 where it is not in integers, on torch's threads.

    Args:
        source: an ONNX file's bytes or its path.
        precision: of what is not in integers, "f32" or "bf16"; never what the engine would choose unasked.

    Attributes:
        keeps: whether the memory of activations is held from call to call of one shape, which is faster; three networks
            that run one after the other do better to give it back, but for the largest.
    """

    keeps = False

    def __init__(self, source: bytes | str, precision: str = "f32"):
        self.core = core()
        self.model, self.precision = self.core.read_model(source), precision
        self.compiled: OrderedDict = OrderedDict()  # by shape and threads, the last used one last
        self._lock = Lock()

    def __call__(self, x: Tensor) -> Tensor:
        """The network's output, float32, for x (B, C, H, W)."""
        with self._lock:
            compiled = self._compiled(tuple(x.shape), torch.get_num_threads())
            found = np.array(compiled([x.detach().float().contiguous().numpy()])[0])
            if not self.keeps:
                compiled.release_memory()
            return torch.from_numpy(found)

    def layer_seconds(self, x: Tensor, rounds: int) -> dict[str, float]:
        """Median seconds of every convolution and product with weights, by the layer's name."""
        self.model.reshape(list(x.shape))
        compiled = self.core.compile_model(self.model, "CPU", self._settings() | {"PERF_COUNT": True})
        request = compiled.create_infer_request()
        found = defaultdict(list)
        for _ in range(rounds):
            request.infer([x.float().contiguous().numpy()])
            for node in request.profiling_info:
                if node.node_type in ("Convolution", "FullyConnected", "MatMul"):
                    found[node.node_name.partition("/")[0]].append(node.real_time.total_seconds())
        return {name: statistics.median(seconds) for name, seconds in found.items()}

    def _compiled(self, *key):
        last = next(reversed(self.compiled), key)
        if last != key:
            self.compiled[last].release_memory()
        if key not in self.compiled:
            self.model.reshape(list(key[0]))
            self.compiled[key] = self.core.compile_model(self.model, "CPU", self._settings())
            if len(self.compiled) > KEPT:
                self.compiled.popitem(last=False)
        self.compiled.move_to_end(key)
        return self.compiled[key]

    def _settings(self) -> dict:
        return {
            "INFERENCE_PRECISION_HINT": self.precision, "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False,
        }  # fmt: skip


class OnnxRuntime:
    """The same with ONNX Runtime, for any shape; its floats are float32."""

    providers: Sequence = ("CPUExecutionProvider",)

    def __init__(self, source: bytes | str):
        runtime = required("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
        self.session = runtime.InferenceSession(source, options, providers=list(self.providers))
        self.name = self.session.get_inputs()[0].name

    def __call__(self, x: Tensor) -> Tensor:
        return torch.from_numpy(self.session.run(None, {self.name: x.detach().float().contiguous().numpy()})[0])


class TensorRT(OnnxRuntime):
    """The same on an NVIDIA GPU, in ONNX Runtime's TensorRT provider; floats are float16 there.

    **Not verified**: written to the documented interface, on a machine without a GPU.  TensorRT's integers have no zero
    point; layers whose activations have one it leaves to the CUDA provider, which computes them in float.
    """

    providers = (
        ("TensorrtExecutionProvider", {"trt_int8_enable": True, "trt_fp16_enable": True}),
        "CUDAExecutionProvider",
        "CPUExecutionProvider",
    )


ENGINES = {"openvino": OpenVINO, "onnxruntime": OnnxRuntime, "tensorrt": TensorRT}


def require_engine(name: str) -> None:
    """`ValueError` for an engine that does not exist or is not installed."""
    if name not in ENGINES:
        raise ValueError(f"backend is one of {', '.join(ENGINES)}, not {name!r}.")
    if name != "tensorrt":
        required(name)
    elif TensorRT.providers[0][0] not in required("onnxruntime").get_available_providers():
        raise ValueError(
            "backend='tensorrt' needs an NVIDIA GPU with TensorRT, and onnxruntime-gpu in the place of onnxruntime."
        )
