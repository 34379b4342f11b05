"""passionsr_lab: a workbench for quantizing one-step diffusion super-resolution (PassionSR and around it).

Example:
    >>> import passionsr_lab as lab
    >>> pipe = lab.tiny()  # or lab.load("folder or hub id")
    >>> q = lab.quantize(pipe, lab.W6A6)  # simulated: fake-quantized layers
    >>> records = lab.calibrate(q, lab.bundled("calibration", count=2, size=64), epochs=1)
    >>> image = lab.bundled("test")[0].lr
    >>> q(image).shape  # PIL image or tensor in, x4 out
    torch.Size([3, 128, 128])
"""

from importlib import import_module

__version__ = "0.2.0"

# The table of contents: every public name and the room it is in.  Rooms are opened when they are first asked for.
CONTENTS = {
    "imaging.pairs": ("bundled", "folder_pairs"),
    "imaging.tiling": ("Tiling",),
    "pipeline.folder": ("tiny",),
    "quantization.recipe": ("W4A4", "W6A6", "W8A8", "Recipe", "recipe"),
    "quantization.place": ("quantize", "unquantize"),
    "calibration.method": ("Loss", "Method", "Stage"),
    "calibration.loop": ("Calibration",),
    "methods.table": ("METHODS", "calibrate", "register"),
    "store.folder": ("load", "save"),
    "store.models": ("calibrated", "records"),
    "analysis.layers": ("layer_table",),
    "analysis.observe": ("observing",),
    "analysis.propagation": ("propagation",),
    "analysis.sensitivity": ("keep_top", "sensitivity"),
    "evaluation.scores": ("score",),
    "evaluation.sweep": ("grid", "sweep"),
    "deployment.pipeline": ("deploy", "load_deployed"),
    "pages.report": ("report",),
}
_ROOM = {name: room for room, names in CONTENTS.items() for name in names}
__all__ = sorted(_ROOM)


def __getattr__(name: str):
    if name not in _ROOM:
        raise AttributeError(f"module 'passionsr_lab' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_ROOM[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
