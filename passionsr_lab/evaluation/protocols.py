"""Which metrics a paper reports and exactly how, as data: the named protocols, and the weight files they need."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from types import MappingProxyType
from typing import Mapping, Sequence

DEFAULT = ("psnr_y", "ssim_y")
SHORT = {"psnr": "psnr_y", "ssim": "ssim_y"}  # what people type

HUB = "https://huggingface.co/"
IQA = HUB + "chaofengc/IQA-PyTorch-Weights/resolve/main/"
VIT_FILE = ("timm/vit_base_patch8_224.augreg2_in21k_ft_in1k", "model.safetensors")
VIT = HUB + "/resolve/main/".join(VIT_FILE)
VISION = "https://download.pytorch.org/models/"
CLIP = "https://openaipublic.azureedge.net/clip/models/"
FOLDERS = {IQA: "pyiqa", VISION: "checkpoints", CLIP: "clip"}  # below torch.hub's folder
_ALEXNET, _VGG = VISION + "alexnet-owt-7be5be79.pth", VISION + "vgg16-397923af.pth"
_RN50 = CLIP + "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762/RN50.pt"
_LPIPS = IQA + "LPIPS_v0.1_alex-df73285e.pth"


@dataclass(frozen=True)
class Metric:
    """One metric, exactly.

    pyiqa, options: its name and settings in pyiqa.
    better: "higher" or "lower".
    reference: whether it compares with the original.
    weights: URLs of the files it loads, all of them.
    whole_set: one number for all the images together.
    """

    pyiqa: str
    better: str = "higher"
    reference: bool = False
    options: tuple[tuple[str, object], ...] = ()
    weights: tuple[str, ...] = ()
    whole_set: bool = False


_ON_Y = (("test_y_channel", True), ("color_space", "ycbcr"))
_SHARED = {
    "psnr_y": Metric("psnr", reference=True, options=_ON_Y),
    "ssim_y": Metric("ssim", reference=True, options=_ON_Y),
    "lpips": Metric("lpips", "lower", True, (("net", "alex"), ("version", "0.1")), (_ALEXNET, _LPIPS)),
    "dists": Metric("dists", "lower", True, weights=(_VGG, IQA + "DISTS_weights-f5e65c96.pth")),
    "niqe": Metric("niqe", "lower", weights=(IQA + "niqe_modelparameters.mat",)),
    "musiq": Metric("musiq", weights=(IQA + "musiq_koniq_ckpt-e95806b9.pth",)),
    "clipiqa": Metric("clipiqa", weights=(_RN50,)),
}
_OFFLINE = {name: _SHARED[name] for name in ("psnr_y", "ssim_y")} | {
    "ms_ssim": Metric("ms_ssim", reference=True),
    "fsim": Metric("fsim", reference=True),
    "vif": Metric("vif", reference=True),
    "gmsd": Metric("gmsd", "lower", True),
    "nlpd": Metric("nlpd", "lower", True),
}
_MANIQA_PIPAL = Metric("maniqa-pipal", weights=(VIT, IQA + "MANIQA_PIPAL-ae6d356b.pth"))
_MANIQA_KONIQ = Metric("maniqa", weights=(VIT, IQA + "ckpt_koniq10k.pt"))
_FID = Metric("fid", "lower", True, weights=(IQA + "pt_inception-2015-12-05-6726825d.pth",), whole_set=True)

# A name never means two things: MANIQA carries its training set, because its numbers are not comparable across them.
PROTOCOLS: Mapping[str, Mapping[str, Metric]] = MappingProxyType(
    {
        "osediff": MappingProxyType({**_SHARED, "maniqa_pipal": _MANIQA_PIPAL, "fid": _FID}),
        "passionsr": MappingProxyType({**_SHARED, "maniqa_koniq": _MANIQA_KONIQ}),
        "offline": MappingProxyType(_OFFLINE),  # what needs no weights; MS-SSIM only from 176 pixels on
    }
)


def chosen(metrics: Sequence[str] | None, protocol: str | None = None, references: bool = True) -> dict[str, Metric]:
    """The metrics that are meant, by name; "psnr" and "ssim" are those on Y.

    Args:
        metrics: names; None is psnr_y and ssim_y, or all that `protocol` has.
        protocol: a name out of `PROTOCOLS` that every metric must belong to.
        references: whether there are originals to compare with.

    Raises:
        ValueError: an unknown name, or a metric that needs references where there are none.

    Example:
        >>> list(chosen(["psnr", "niqe"]))
        ['psnr_y', 'niqe']
    """
    if protocol is not None and protocol not in PROTOCOLS:
        raise ValueError(f"There is no protocol {protocol}; choose from {', '.join(PROTOCOLS)}.")
    known = {n: m for key, table in PROTOCOLS.items() if protocol in (None, key) for n, m in table.items()}
    if metrics is None:
        metrics = DEFAULT if protocol is None else known
    metrics = [SHORT.get(name, name) for name in metrics]
    unknown = [name for name in metrics if name not in known]
    if unknown:
        where = "any protocol" if protocol is None else f"protocol {protocol}"
        raise ValueError(f"{', '.join(unknown)} is not a metric of {where}; choose from {', '.join(known)}.")
    found = {name: known[name] for name in metrics}
    needy = [name for name, metric in found.items() if metric.reference and not references]
    if needy:
        raise ValueError(f"{', '.join(needy)} compare with the originals; give references.")
    return found


def digest(metrics: Mapping[str, Metric]) -> str:
    """A short hash of the metrics' definitions: equal where numbers mean the same."""
    return hashlib.sha256(repr(sorted(metrics.items())).encode()).hexdigest()[:12]
