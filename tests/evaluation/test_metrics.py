"""The claims of `metrics.py` and `compat.py`."""

from __future__ import annotations

import hashlib
import math
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from passionsr_lab.evaluation import iqa
from passionsr_lab.evaluation.protocols import DEFAULT, PROTOCOLS, VIT_FILE
from passionsr_lab.evaluation.scores import measure, score, summary, versions
from passionsr_lab.imaging.pictures import to_image
from passionsr_lab.imaging.psnr import luma, psnr_y
from passionsr_lab.util.compat import clip_importable, torchvision_importable

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("PASSIONSR_DATA", ROOT.parent / "shared" / "data"))


def noisy(count: int = 2, size: int = 32, sigma: float = 0.05, seed: int = 0):
    """`count` originals (3, size, size) of smooth colour and their noisy versions, all in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    originals = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")
    images = (originals + sigma * torch.randn(originals.shape, generator=generator)).clamp(0, 1)
    return list(images), list(originals)


def python(code: str, **environment: str) -> str:
    """What a fresh interpreter prints; fails with its traceback."""
    path = os.pathsep.join(filter(None, [environment.pop("PYTHONPATH", ""), str(ROOT)]))
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# -- numbers ----------------------------------------------------------------------------------------------------------


def test_psnr_of_a_known_error():
    grey = torch.full((3, 16, 16), 0.25)
    frame = score([grey + 0.1], [grey], ["psnr_y"])
    assert frame.value[0] == pytest.approx(-20 * math.log10(0.1 * 219 / 255), abs=1e-4)


def test_psnr_counts_green_most_and_blue_least():
    base = torch.full((3, 8, 8), 0.5)
    errors = [base + 0.1 * torch.eye(3)[channel][:, None, None] for channel in range(3)]
    red, green, blue = (psnr_y(x, base) for x in errors)
    assert green < red < blue
    assert red - green == pytest.approx(20 * math.log10(128.553 / 65.481), abs=1e-3)


def test_psnr_agrees_with_pyiqa():
    torchvision_importable()
    import pyiqa

    theirs = pyiqa.create_metric("psnr", **dict(PROTOCOLS["osediff"]["psnr_y"].options))
    for sigma in (0.01, 0.05, 0.2):
        for x, y in zip(*noisy(sigma=sigma)):
            assert psnr_y(x, y) == pytest.approx(theirs(x[None], y[None]).item(), abs=2e-3)


def test_ssim_agrees_with_scikit_image():
    from skimage.metrics import structural_similarity

    images, originals = noisy(3, 48)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    expected = [
        structural_similarity(*(np.round(luma(z).double().numpy() * 255) for z in pair), **options)
        for pair in zip(images, originals)
    ]
    found = score(images, originals, ["ssim_y"]).value
    assert min(expected) > 0.1 and max(expected) < 0.99
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "realsr" / "osediff").is_dir(), reason="the RealSR test pairs are not here")
def test_osediff_on_realsr_gives_the_published_numbers():
    table = summary(measure(DATA / "realsr" / "osediff", DATA / "realsr" / "hr")).set_index("metric")
    assert table.n.tolist() == [100, 100]
    assert round(table.loc["psnr_y", "mean"], 4) == 25.1511
    assert round(table.loc["ssim_y", "mean"], 4) == 0.7341


# -- the table --------------------------------------------------------------------------------------------------------


def test_one_row_per_image_and_metric():
    images, originals = noisy(2)
    frame = score([to_image(x) for x in images], originals, names=["a", "b"])
    assert list(frame.columns) == ["name", "metric", "value", "better", "protocol", "note"]
    assert list(zip(frame.name, frame.metric)) == [(n, m) for n in "ab" for m in DEFAULT]
    assert frame.value.notna().all() and not frame.note.any()
    assert set(frame.better) == {"higher"} and set(frame.protocol) == {"none"}


def test_each_image_meets_its_own_reference():
    images, originals = noisy(2)
    right = score(images, originals, ["psnr_y"]).value
    wrong = score(images, originals[::-1], ["psnr_y"]).value
    assert right.min() > wrong.max() + 5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(references=noisy(1)[1]), "2 images, 1 references"),
        (dict(references=noisy(2)[1], names=["a"]), "1 names"),
        (dict(references=noisy(2, 16)[1], names=["a", "b"]), "a is 32x32 but its reference is 16x16"),
        (dict(), "psnr_y, ssim_y compare with the originals"),
        (dict(metrics=["vmaf"]), "vmaf is not a metric of any protocol"),
        (dict(metrics=["maniqa_koniq"], protocol="osediff"), "not a metric of protocol osediff"),
        (dict(protocol="mine"), "no protocol mine"),
    ],
)
def test_misuse_is_one_clear_sentence(arguments, words):
    with pytest.raises(ValueError, match=words):
        score(noisy(2)[0], **arguments)


def test_an_image_too_small_for_ssim_does_not_hide_the_others():
    small, large = noisy(1, 8), noisy(1, 32)
    frame = score(small[0] + large[0], small[1] + large[1]).set_index(["name", "metric"])
    assert frame.value.isna().tolist() == [False, True, False, False]
    assert frame.note["0", "ssim_y"].startswith("ssim_y cannot be computed for this") and not frame.note["1", "ssim_y"]


# -- folders ----------------------------------------------------------------------------------------------------------


def fill(folder: Path, images: dict) -> Path:
    folder.mkdir()
    for name, image in images.items():
        to_image(image).save(folder / name)
    return folder


def test_folders_are_paired_by_exact_name(tmp_path):
    # img_1 is a prefix of img_10, which pairing by prefixes or by listing order gets wrong
    images, originals = noisy(3)
    names = ["img_10.png", "img_1.png", "img_2.png"]
    left = fill(tmp_path / "left", dict(zip(names, images)))
    right = fill(tmp_path / "right", dict(reversed(list(zip(names, originals)))))
    found = measure(left, right, ["psnr_y"]).set_index("name").value
    for name, x, y in zip(names, images, originals):
        assert found[name] == pytest.approx(psnr_y((x * 255).round() / 255, (y * 255).round() / 255), abs=1e-3)


def test_files_without_a_counterpart_are_named_with_their_side(tmp_path):
    x = torch.zeros(3, 8, 8)
    left = fill(tmp_path / "left", {"a.png": x, "b.png": x})
    right = fill(tmp_path / "right", {"b.png": x, "c.png": x})
    with pytest.raises(ValueError, match=r"right lacks 1 \(a.png\); .*left lacks 1 \(c.png\)"):
        measure(left, right)


def test_sizes_in_folders_must_match(tmp_path):
    left = fill(tmp_path / "left", {"a.png": torch.zeros(3, 8, 8)})
    right = fill(tmp_path / "right", {"a.png": torch.zeros(3, 8, 12)})
    with pytest.raises(ValueError, match=r"a\.png is 8x8 but its reference is 12x8"):
        measure(left, right, ["psnr_y"])


# -- weights that cannot be had ---------------------------------------------------------------------------------------


@pytest.fixture
def nothing_cached(tmp_path, monkeypatch):
    """Empty caches, no name lookup; yields the list of the lookups that were tried."""
    from huggingface_hub import constants

    lookups = []

    def refuse(host, *_, **__):
        lookups.append(host)
        raise socket.gaierror(-2, "Name or service not known")

    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    iqa.network.cache_clear()
    iqa.unreachable.cache_clear()
    yield lookups
    iqa.network.cache_clear()
    iqa.unreachable.cache_clear()


def test_missing_weights_cost_nothing_else(nothing_cached, capfd):
    started = time.monotonic()
    frame = score(*noisy(2), protocol="osediff").set_index(["metric", "name"])
    assert time.monotonic() - started < 30  # huggingface_hub's own retries alone take 47 s
    assert frame.value[list(DEFAULT)].notna().all()
    for name, metric in PROTOCOLS["osediff"].items():
        if metric.weights:
            notes = set(frame.note[name])
            assert frame.value[name].isna().all() and len(notes) == 1
            note = notes.pop()
            assert note.startswith(f"{name} is not available: ") and Path(metric.weights[0]).name in note
    assert frame.loc["fid"].index.tolist() == ["all"]
    assert capfd.readouterr().out == ""


def test_a_failure_is_asked_for_once(nothing_cached):
    score(*noisy(1), protocol="osediff")
    assert 1 <= len(nothing_cached) == len(set(nothing_cached)) <= 3  # each server once
    score(*noisy(3), protocol="osediff")
    assert len(nothing_cached) == len(set(nothing_cached))


def test_offline_mode_asks_nobody(nothing_cached, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    frame = score(noisy(1)[0], metrics=["musiq", "niqe"])
    assert nothing_cached == [] and frame.note.str.contains("HF_HUB_OFFLINE").all()
    assert constants.HF_HUB_OFFLINE is True


def test_a_cached_file_of_the_hub_is_found_without_the_network(nothing_cached, tmp_path):
    from huggingface_hub import hf_hub_download

    repository = tmp_path / "hub" / "models--timm--vit_base_patch8_224.augreg2_in21k_ft_in1k"
    file = repository / "snapshots" / ("a" * 40) / "model.safetensors"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"weights")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    iqa.obtain(PROTOCOLS["osediff"]["maniqa_pipal"].weights[0])
    with iqa.hub_offline():
        assert Path(hf_hub_download(*VIT_FILE)) == file
    assert nothing_cached == []


def test_the_weights_we_look_for_are_those_pyiqa_and_its_libraries_load():
    torchvision_importable(), clip_importable()
    import timm
    from pyiqa.archs import clip_model, dists_arch, inception, lpips_arch, maniqa_arch, musiq_arch, niqe_arch
    from pyiqa.default_model_configs import DEFAULT_CONFIGS
    from torchvision.models import AlexNet_Weights, VGG16_Weights

    vit = timm.get_pretrained_cfg("vit_base_patch8_224")
    vit = f"https://huggingface.co/{vit.hf_hub_id}/resolve/main/model.safetensors"
    maniqa = {name: DEFAULT_CONFIGS[name]["metric_opts"]["train_dataset"] for name in ("maniqa", "maniqa-pipal")}
    expected = {
        "psnr_y": (),
        "ssim_y": (),
        "lpips": (AlexNet_Weights.IMAGENET1K_V1.url, lpips_arch.default_model_urls["0.1_alex"]),
        "dists": (VGG16_Weights.IMAGENET1K_V1.url, dists_arch.default_model_urls["url"]),
        "niqe": (niqe_arch.default_model_urls["niqe"],),
        "musiq": (musiq_arch.default_model_urls[DEFAULT_CONFIGS["musiq"]["metric_opts"]["pretrained"]],),
        "clipiqa": (clip_model._MODELS["RN50"],),
        "maniqa_koniq": (vit, maniqa_arch.default_model_urls[maniqa["maniqa"]]),
        "maniqa_pipal": (vit, maniqa_arch.default_model_urls[maniqa["maniqa-pipal"]]),
        "fid": (inception.FID_WEIGHTS_URL,),
    }
    assert maniqa == {"maniqa": "koniq", "maniqa-pipal": "pipal"}
    assert {n: m.weights for table in PROTOCOLS.values() for n, m in table.items()} == expected
    for table in PROTOCOLS.values():
        for metric in table.values():
            assert (metric.better == "lower") == DEFAULT_CONFIGS[metric.pyiqa].get("lower_better", False)


def test_weights_in_the_cache_are_used_and_their_hash_reported(tmp_path):
    from scipy.io import savemat

    file = tmp_path / "hub" / "pyiqa" / "niqe_modelparameters.mat"
    file.parent.mkdir(parents=True)
    savemat(file, {"mu_prisparam": np.ones((1, 36)), "cov_prisparam": np.eye(36)})
    code = """
import torch
from passionsr_lab.evaluation.scores import score, versions
frame = score([torch.rand(3, 200, 200, generator=torch.Generator().manual_seed(0))], metrics=["niqe"])
print(frame.value[0], versions()["weights"]["niqe_modelparameters.mat"], versions()["weights"]["RN50.pt"])
"""
    value, digest, other = python(code, TORCH_HOME=str(tmp_path)).split()
    assert float(value) > 0
    assert digest == hashlib.sha256(file.read_bytes()).hexdigest() and other == "absent"


def test_fid_sees_exactly_the_images_that_were_scored(monkeypatch):
    seen = []

    def network(images, references, **_):
        sides = [sorted(Path(side).iterdir()) for side in (images, references)]
        seen.extend([np.array(Image.open(file)) for file in side] for side in sides)
        return 7.0

    monkeypatch.setattr(iqa, "network", lambda metric: (network, ""))
    pair = noisy(11)
    frame = score(*pair, metrics=["fid"])
    assert frame[["name", "metric", "value"]].values.tolist() == [["all", "fid", 7.0]]
    for side, tensors in zip(seen, pair):
        np.testing.assert_array_equal(side, [np.array(to_image(x)) for x in tensors])


# -- protocols, versions ----------------------------------------------------------------------------------------------


def test_the_protocols_differ_where_the_papers_do():
    ours, theirs = PROTOCOLS["osediff"], PROTOCOLS["passionsr"]
    assert set(ours) ^ set(theirs) == {"maniqa_pipal", "maniqa_koniq", "fid"}
    assert all(ours[name] == theirs[name] for name in set(ours) & set(theirs))
    assert versions("osediff")["digest"] != versions("passionsr")["digest"]
    with pytest.raises(TypeError):
        PROTOCOLS["osediff"]["niqe"] = ours["musiq"]


# -- summary ----------------------------------------------------------------------------------------------------------


def frame_of(values, **columns) -> pd.DataFrame:
    fixed = {"metric": "psnr_y", "better": "higher", "protocol": "none", "note": ""}
    return pd.DataFrame({"name": [str(i) for i in range(len(values))], "value": values, **fixed, **columns})


def test_the_interval_is_that_of_a_mean():
    values = np.random.default_rng(1).normal(25, 3, 200)
    row = summary(frame_of(values)).iloc[0]
    half = 1.96 * values.std() / math.sqrt(200)
    assert (row["mean"], row.n) == (pytest.approx(values.mean()), 200)
    assert (row.low, row.high) == (
        pytest.approx(row["mean"] - half, abs=0.1),
        pytest.approx(row["mean"] + half, abs=0.1),
    )
    assert row.low < row["mean"] < row.high


def test_the_interval_depends_on_the_seed_alone():
    frame = frame_of(np.arange(20.0))
    assert summary(frame, seed=1).equals(summary(frame, seed=1))
    assert not summary(frame, seed=1).equals(summary(frame, seed=2))


def test_nan_is_left_out_and_explained():
    row = summary(frame_of([1.0, math.nan, 3.0], note=["", "why", ""])).iloc[0]
    assert (row["mean"], row.n, row.note) == (2.0, 2, "why")


def test_one_value_has_no_interval_and_none_has_no_mean():
    one, none = summary(frame_of([4.0])).iloc[0], summary(frame_of([math.nan])).iloc[0]
    assert one["mean"] == 4.0 and math.isnan(one.low) and math.isnan(one.high)
    assert none.n == 0 and math.isnan(none["mean"])


def test_a_column_of_ones_own_makes_its_own_groups():
    table = summary(frame_of([1.0, 1.0, 5.0, 5.0], recipe=["W8A8", "W8A8", "W6A6", "W6A6"]))
    assert dict(zip(table.recipe, table["mean"])) == {"W8A8": 1.0, "W6A6": 5.0}


# -- imports ----------------------------------------------------------------------------------------------------------


def test_importing_metrics_is_light():
    code = "import sys, passionsr_lab.evaluation.scores; print(*sys.modules)"
    heavy = {"pandas", "pyiqa", "torchvision", "timm", "transformers", "diffusers", "huggingface_hub", "matplotlib"}
    assert not heavy & set(python(code).split())


def test_torchvision_imports_after_the_cure():
    code = """
from passionsr_lab.util.compat import torchvision_importable
assert torchvision_importable() and torchvision_importable()
import torch, torchvision
from torchvision.models import alexnet
from torchvision.transforms.functional import resize
assert alexnet(weights=None)(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)
assert resize(torch.zeros(3, 8, 8), 4).shape == (3, 4, 4)
"""
    python(code)


def test_diffusers_and_transformers_import_after_a_failed_attempt_and_the_cure():
    code = """
try:
    from transformers import CLIPTextModel
except ImportError:
    pass
from passionsr_lab.util.compat import torchvision_importable
torchvision_importable()
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel
"""
    python(code)


def test_a_healthy_torchvision_is_left_alone(tmp_path):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("healthy = True\n")
    code = """
import torch
from passionsr_lab.util.compat import torchvision_importable
assert torchvision_importable()
import torchvision
assert torchvision.healthy
try:
    torch.ops.torchvision.nms
except AttributeError:
    print("nothing declared")
"""
    assert python(code, PYTHONPATH=str(tmp_path)).strip() == "nothing declared"


def test_a_torchvision_broken_otherwise_says_so(tmp_path):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("raise RuntimeError('another fault')\n")
    code = """
from passionsr_lab.util.compat import torchvision_importable
try:
    torchvision_importable()
except RuntimeError as error:
    print(error)
"""
    assert python(code, PYTHONPATH=str(tmp_path)).strip() == "another fault"


def test_clip_imports_without_pkg_resources_and_leaves_no_stand_in():
    code = """
import sys
from importlib.util import find_spec
before = find_spec("pkg_resources") is not None
from passionsr_lab.util.compat import clip_importable
assert clip_importable() and clip_importable()
import pyiqa.archs.clipiqa_arch, clip
assert clip.tokenize("a good image").shape == (1, 77)
assert (find_spec("pkg_resources") is not None) == before
"""
    python(code)
