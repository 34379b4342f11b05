"""What this machine has and lacks for a piece of work, and the exact commands that get what is missing.

`report` gives plain rows, so that a notebook shows them as a table: `pandas.DataFrame(doctor.report("osediff"))`.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import torch
from packaging.requirements import Requirement
from packaging.version import Version

from ..evaluation import iqa
from ..evaluation.protocols import PROTOCOLS, VIT, VIT_FILE, chosen
from ..fullsize import osediff, tags, text, weights
from ..fullsize.sd21 import sd21
from ..util import checkpoint, compat
from ..util.hashing import sha256
from ..util.machine import processor

WORKS = {
    "tiny": "the embedded model",
    "sd21": "Stable Diffusion 2.1-base at full size",
    "osediff": "OSEDiff and PassionSR at full size",
    "osediff-prompt": "OSEDiff's own row, with its prompt",
    "scores": "every metric of both protocols",
}
NEEDS = {"sd21": ("sd21",), "osediff": ("sd21", "osediff"), "osediff-prompt": ("sd21", "osediff", "tags")}
OPTIONAL = {"iqa": ("scores",), "notebooks": (), "cluster": ()}  # extra -> the works that need it
CHECKS = {"osediff": osediff.read_lora, "empty_prompt": text.read_embedding, "tags": tags.read_tags}  # ValueErrors
PYTORCH = "https://download.pytorch.org/whl/"


def report(work: str = "tiny") -> list[dict]:
    """One row for each thing looked at; nothing is downloaded or changed.

    Returns:
        Dicts of item, state ("present", "missing" or "attention"), needed (whether `work` cannot run without it),
        detail, sha256 (of files) and get (commands or places, best first).

    Raises:
        ValueError: `work` is not one of `WORKS`.

    Example:
        >>> can_run(report("tiny"))
        True
    """
    if work not in WORKS:
        raise ValueError(f"There is no work {work!r}; choose from {', '.join(WORKS)}.")
    full = work in NEEDS
    rows = [*_packages(work), _torchvision(), _cpu(), _gpu(full), _memory(full), _disk(full)]
    rows += [_weight(name, name in NEEDS.get(work, ())) for name in weights.WEIGHTS]
    return rows + _metrics(work == "scores")


def can_run(rows: list[dict]) -> bool:
    """Whether nothing that is needed is missing."""
    return not any(row["needed"] and row["state"] == "missing" for row in rows)


def as_text(rows: list[dict]) -> str:
    """The rows for a terminal: one line each, and beneath what is missing the command that gets it."""
    lines = []
    for row in rows:
        mark = " (needed)" if row["needed"] and row["state"] == "missing" else ""
        lines.append(f"{row['state']:<9} {row['item']}{mark}: {row['detail']}")
        lines += [f"{'':<9}   {'get' if i == 0 else 'or'}: {line}" for i, line in enumerate(row["get"])]
    return "\n".join(lines)


def _row(item: str, ok: bool | None, detail: str, needed=False, get: list[str] | None = None, sha256="") -> dict:
    """ok: True is present, False missing, None deserves attention."""
    state = {True: "present", False: "missing", None: "attention"}[ok]
    get = [] if ok else get or []
    return {"item": item, "state": state, "needed": needed, "detail": detail, "sha256": sha256, "get": get}


# -- software ---------------------------------------------------------------------------------------------------------


def _packages(work: str) -> Iterator[dict]:
    """Python, the library's own requirements, those of its extras, and peft, which only unmerged LoRA wants."""
    python = Requirement("Python>=3.11")
    yield _package(python, platform.python_version(), True, "conda create -n passionsr_lab python=3.11")
    try:
        wanted = [Requirement(line) for line in requires("passionsr_lab") or []]
    except PackageNotFoundError:
        yield _row("packages", None, "passionsr_lab is not installed here, so its needs are not known", get=["make"])
        wanted = []
    for extra, works in {"": tuple(WORKS), **OPTIONAL}.items():
        for one in wanted:
            if one.marker.evaluate({"extra": extra}) if one.marker else not extra:
                yield _installed(one, work in works)
    yield _installed(Requirement("peft>=0.17"), False)


def _installed(wanted: Requirement, needed: bool) -> dict:
    try:
        found = version(wanted.name)
    except PackageNotFoundError:
        found = None
    return _package(wanted, found, needed, f"pip install '{wanted.name}{wanted.specifier}'")


def _package(wanted: Requirement, found: str | None, needed: bool, get: str) -> dict:
    ok = found is not None and wanted.specifier.contains(found, prereleases=True)
    return _row(wanted.name, ok, f"{found or 'not installed'} ({wanted.specifier or 'any'})", needed, [get])


def _torchvision() -> dict:
    """Whether torchvision belongs to torch: since 2.0 with 0.15 the minor numbers go in step."""
    major, minor = Version(torch.__version__).release[:2]
    wanted = f"0.{minor + 15}" if major == 2 else ""
    index = "cu" + torch.version.cuda.replace(".", "") if torch.version.cuda else "cpu"
    fix = [f"pip install --force-reinstall --no-deps 'torchvision=={wanted}.*' --index-url {PYTORCH}{index}"]
    try:
        if not compat.torchvision_importable():
            return _row("torchvision", False, "not installed; needed by pyiqa", get=fix)
        import torchvision
    except Exception as error:  # a build for another torch breaks in as many ways as there are builds
        return _row("torchvision", False, f"does not import: {(str(error).splitlines() or [''])[0]}", True, fix)

    found = torchvision.__version__
    if wanted and not found.startswith(f"{wanted}."):
        return _row("torchvision", None, f"{found}, but torch {torch.__version__} goes with {wanted}", get=fix)
    if not _has_operators():
        detail = f"{found}, built for another torch; worked around, all but its own operators"
        return _row("torchvision", None, detail, get=fix)
    return _row("torchvision", True, f"{found}, matches torch {torch.__version__}")


def _has_operators() -> bool:
    """Whether torchvision's compiled part is there; where it is not, `compat` has only declared its names."""
    try:
        torch.ops.torchvision.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    except (NotImplementedError, AttributeError, RuntimeError):
        return False
    return True


# -- machine ----------------------------------------------------------------------------------------------------------


def _cpu() -> dict:
    cpu = processor()
    if cpu.flags is None:
        return _row("CPU", True, f"{cpu.name}; torch uses {cpu.used}")
    fast = any("VNNI" in name or "AMX int8" in name for name in cpu.flags)
    detail = f"{cpu.name}, {cpu.threads} threads; {', '.join(cpu.flags) or 'no AVX2'}"
    return _row("CPU", fast or None, detail + ("" if fast else "; without VNNI int8 is not fast"))


def _gpu(full: bool) -> dict:
    build = f"torch for CUDA {torch.version.cuda}" if torch.version.cuda else "torch without CUDA"
    if torch.cuda.is_available():
        cards = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        return _row("GPU", True, "; ".join([*(f"{card.name}, {_gb(card.total_memory)}" for card in cards), build]))
    if torch.backends.mps.is_available():
        return _row("GPU", True, "Apple GPU (mps)")
    need = "full size runs on the CPU, slowly" if full else "not needed"
    return _row("GPU", None if full else True, f"none ({build}); {need}")


def _memory(full: bool) -> dict:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return _row("memory", None, "not known on this system")
    if not full:
        return _row("memory", True, _gb(total))
    least = _model_bytes()
    return _row("memory", total > least, f"{_gb(total)}; the weights alone take {_gb(least)} in float32", True)


def _disk(full: bool) -> dict:
    """Room where the weights go, against what a missing SD2.1 takes in float32."""
    place = next(place for place in (weights.folder(), *weights.folder().absolute().parents) if place.exists())
    free = shutil.disk_usage(place).free
    least = _model_bytes() if full and weights.find("sd21") is None else 0
    detail = f"{_gb(free)} free at {weights.folder()}" + (f"; SD2.1-base takes {_gb(least)} and more" if least else "")
    return _row("disk", free > least or None, detail, get=[f"export {weights.VARIABLE}=/a/larger/disk"])


def _model_bytes() -> int:
    """UNet and VAE of SD2.1 in float32."""
    return 4 * sum(p.numel() for p in sd21().parameters())


def _gb(number: int) -> str:
    return f"{number / 1e9:.1f} GB"


# -- files ------------------------------------------------------------------------------------------------------------


def _weight(name: str, needed: bool) -> dict:
    what, found = weights.WEIGHTS[name].what, weights.find(name)
    problem = what if found is None else _problem(name, found)
    if problem:
        return _row(name, False, problem, needed, weights.commands(name))
    hashes = ", ".join(f"{file} {digest}" for file, digest in weights.hashes(found).items())
    return _row(name, True, f"{what}: {found}", needed, sha256=hashes)


def _problem(name: str, found: Path) -> str:
    """What is wrong with a file that is there, or ""; quick, so of SD2.1 only what its files say of themselves."""
    try:
        if name == "sd21":
            checkpoint.inspect(weights.files(found))
            if found.is_dir() and not (found / "text_encoder").is_dir() and weights.find("empty_prompt") is None:
                return f"{found} has no text_encoder/, and there is no embedding of the empty prompt in its place"
        elif name in CHECKS:
            CHECKS[name](found)
    except ValueError as error:
        return str(error)
    return ""


def _metrics(needed: bool) -> list[dict]:
    """Every weight file of every protocol, once."""
    every = {name: metric for protocol in PROTOCOLS for name, metric in chosen(None, protocol).items()}
    return [_metric_file(url, [n for n, m in every.items() if url in m.weights], needed) for url in iqa.files(every)]


def _metric_file(url: str, users: list[str], needed: bool) -> dict:
    path = iqa.location(url)
    get = f"hf download {' '.join(VIT_FILE)}" if url == VIT else f"curl -L --create-dirs -o {path} {url}"
    here = path.exists()
    detail = f"for {', '.join(users)}: {path}"
    return _row(iqa.label(url), here, detail, needed, [get], sha256(path) if here else "")
