"""Scores: what each number is, each image against its own reference, and metrics whose weights cannot be had."""

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
from made import refused, saved
from PIL import Image

from passionsr_lab.evaluation import iqa
from passionsr_lab.evaluation.protocols import DEFAULT, PROTOCOLS, VIT_FILE
from passionsr_lab.evaluation.scores import measure, score, summary, versions
from passionsr_lab.imaging.pairs import bundled
from passionsr_lab.imaging.pictures import to_image
from passionsr_lab.imaging.psnr import luma, psnr_y
from passionsr_lab.util.compat import clip_importable, torchvision_importable
from passionsr_lab.util.network import unreachable

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("PASSIONSR_DATA", ROOT.parent / "shared" / "data"))


def noisy(count=2, size=32, sigma=0.05):
    """`count` originals (3, size, size) of smooth colour and their noisy versions, all in [0, 1]."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    originals = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")
    return list((originals + sigma * torch.randn(originals.shape, generator=generator)).clamp(0, 1)), list(originals)


# -- numbers ----------------------------------------------------------------------------------------------------------


def test_psnr_is_of_the_luma_and_agrees_with_pyiqa():
    torchvision_importable()
    import pyiqa

    grey = torch.full((3, 16, 16), 0.25)
    assert score([grey + 0.1], [grey], ["psnr_y"]).value[0] == pytest.approx(
        -20 * math.log10(0.1 * 219 / 255), abs=1e-4
    )
    red, green, blue = (psnr_y(grey + 0.1 * torch.eye(3)[channel][:, None, None], grey) for channel in range(3))
    assert green < red < blue and red - green == pytest.approx(20 * math.log10(128.553 / 65.481), abs=1e-3)
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
    assert min(expected) > 0.1 and max(expected) < 0.99
    np.testing.assert_allclose(score(images, originals, ["ssim_y"]).value, expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "realsr" / "osediff").is_dir(), reason="the RealSR test pairs are not here")
def test_osediff_on_realsr_gives_the_published_numbers():
    table = summary(measure(DATA / "realsr" / "osediff", DATA / "realsr" / "hr")).set_index("metric")
    assert table.n.tolist() == [100, 100]
    assert table["mean"].round(4).to_dict() == {"psnr_y": 25.1511, "ssim_y": 0.7341}


# -- the table --------------------------------------------------------------------------------------------------------


def test_one_row_per_image_and_metric_of_each_image_against_its_own_reference():
    images, originals = noisy(2)
    frame = score([to_image(x) for x in images], originals, names=["a", "b"])
    assert list(frame.columns) == ["name", "metric", "value", "better", "protocol", "note"]
    assert list(zip(frame.name, frame.metric)) == [(n, m) for n in "ab" for m in DEFAULT]
    assert frame.value.notna().all() and not frame.note.any()
    assert set(frame.better) == {"higher"} and set(frame.protocol) == {"none"}
    right, wrong = (score(images, references, ["psnr_y"]).value for references in (originals, originals[::-1]))
    assert right.min() > wrong.max() + 5


def test_misuse_is_one_clear_sentence():
    images, originals = noisy(2)
    for arguments, words in (
        (dict(references=originals[:1]), "2 images, 1 references"),
        (dict(references=originals, names=["a"]), "1 names"),
        (dict(references=noisy(2, 16)[1], names=["a", "b"]), "a is 32x32 but its reference is 16x16"),
        (dict(references=[originals[0], originals[1] * math.nan]), "1: The image holds NaN"),
        (dict(references=[x[None] for x in originals]), "0 is a batch"),
        (dict(), "psnr_y, ssim_y compare with the originals"),
        (dict(metrics=["vmaf"]), "vmaf is not a metric of any protocol"),
        (dict(metrics=["maniqa_koniq"], protocol="osediff"), "not a metric of protocol osediff"),
        (dict(protocol="mine"), "no protocol mine"),
    ):
        with refused(words):
            score(images, **arguments)


def test_an_image_too_small_for_ssim_does_not_hide_the_others():
    small, large = noisy(1, 8), noisy(1, 32)
    frame = score(small[0] + large[0], small[1] + large[1]).set_index(["name", "metric"])
    assert frame.value.isna().tolist() == [False, True, False, False]
    assert frame.note["0", "ssim_y"].startswith("ssim_y cannot be computed for this") and not frame.note["1", "ssim_y"]


def test_folders_are_paired_by_exact_name_and_checked_before_any_metric(tmp_path, monkeypatch):
    images, originals = noisy(3)
    names = ("img_10", "img_1", "NA")  # a prefix of another, and what tables take for a missing value
    left = saved(tmp_path / "left", **dict(zip(names, map(to_image, images))))
    right = saved(tmp_path / "right", **dict(zip(names[::-1], map(to_image, originals[::-1]))))
    (left / "._img_1.png").touch()
    found = measure(left, right, ["psnr_y"]).set_index("name").value
    for name, x, y in zip(names, images, originals):
        on_grid = ((z * 255).round() / 255 for z in (x, y))
        assert found[f"{name}.png"] == pytest.approx(psnr_y(*on_grid), abs=1e-3)
    monkeypatch.setattr("passionsr_lab.evaluation.scores.psnr_y", lambda *pair: pytest.fail("computed"))
    saved(right, img_10=to_image(torch.zeros(3, 8, 12)))
    with refused("img_10.png is 32x32 but its reference is 12x8"):
        measure(left, right, ["psnr_y"])
    (right / "img_10.png").unlink()
    with refused(f"{right} has no counterpart of img_10.png"):
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
    unreachable.cache_clear()
    yield lookups
    iqa.network.cache_clear()
    unreachable.cache_clear()


def test_missing_weights_are_asked_for_once_and_cost_nothing_else(nothing_cached, capfd):
    started = time.monotonic()
    frame = score(*noisy(2), protocol="osediff").set_index(["metric", "name"])
    assert time.monotonic() - started < 30  # huggingface_hub's own retries alone take 47 s
    assert frame.value[list(DEFAULT)].notna().all() and frame.loc["fid"].index.tolist() == ["all"]
    for name, metric in PROTOCOLS["osediff"].items():
        if metric.weights:
            assert frame.value[name].isna().all()
            (note,) = set(frame.note[name])
            assert note.startswith(f"{name} is not available: ") and Path(metric.weights[0]).name in note
    score(*noisy(3), protocol="osediff")
    assert 1 <= len(nothing_cached) == len(set(nothing_cached)) <= 3, "each server once"
    assert capfd.readouterr().out == ""


def test_the_offline_protocol_has_every_number_without_a_file_or_a_server(nothing_cached):
    clean = bundled("test", 1, 192)[0].hr
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    images = [(clean + level * noise).clamp(0, 1) for level in (0.02, 0.1)]
    frame = score(images, [clean] * 2, protocol="offline")
    assert nothing_cached == [] and frame.value.notna().all() and set(frame.metric) == set(PROTOCOLS["offline"])
    for _, rows in frame.groupby("metric"):
        little, much = rows.value
        assert (little > much) == (rows.better.iloc[0] == "higher"), "more noise is worse by every metric"


def test_offline_mode_asks_nobody_and_finds_what_is_cached(nothing_cached, tmp_path, monkeypatch):
    from huggingface_hub import constants, hf_hub_download

    repository = tmp_path / "hub" / "models--timm--vit_base_patch8_224.augreg2_in21k_ft_in1k"
    file = repository / "snapshots" / ("a" * 40) / "model.safetensors"
    for path, content in ((file, b"weights"), (repository / "refs" / "main", b"a" * 40)):
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
    iqa.obtain(PROTOCOLS["osediff"]["maniqa_pipal"].weights[0])
    with iqa.hub_offline():
        assert Path(hf_hub_download(*VIT_FILE)) == file
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    frame = score(noisy(1)[0], metrics=["musiq", "niqe"])
    assert nothing_cached == [] and frame.note.str.contains("HF_HUB_OFFLINE").all()
    assert constants.HF_HUB_OFFLINE is True


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
    } | dict.fromkeys(PROTOCOLS["offline"], ())
    assert maniqa == {"maniqa": "koniq", "maniqa-pipal": "pipal"}
    metrics = {n: m for table in PROTOCOLS.values() for n, m in table.items()}
    assert {n: m.weights for n, m in metrics.items()} == expected
    for metric in metrics.values():
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
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TORCH_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    value, digest, other = done.stdout.split()
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


def test_the_protocols_differ_where_the_papers_do():
    ours, theirs = PROTOCOLS["osediff"], PROTOCOLS["passionsr"]
    assert set(ours) ^ set(theirs) == {"maniqa_pipal", "maniqa_koniq", "fid"}
    assert all(ours[name] == theirs[name] for name in set(ours) & set(theirs))
    assert versions("osediff")["digest"] != versions("passionsr")["digest"]
    with pytest.raises(TypeError):
        PROTOCOLS["osediff"]["niqe"] = ours["musiq"]


# -- summary ----------------------------------------------------------------------------------------------------------


def frame_of(values, **columns):
    fixed = {"metric": "psnr_y", "better": "higher", "protocol": "none", "note": ""}
    return pd.DataFrame({"name": [str(i) for i in range(len(values))], "value": values, **fixed, **columns})


def test_the_interval_is_that_of_a_mean_and_depends_on_the_seed_alone():
    values = np.random.default_rng(1).normal(25, 3, 200)
    row = summary(frame_of(values)).iloc[0]
    half = 1.96 * values.std() / math.sqrt(200)
    assert (row["mean"], row.n) == (pytest.approx(values.mean()), 200)
    assert row["mean"] - row.low == pytest.approx(half, abs=0.1) == row.high - row["mean"]
    frame = frame_of(np.arange(20.0))
    assert summary(frame, seed=1).equals(summary(frame, seed=1)) and not summary(frame, seed=1).equals(summary(frame))


def test_nan_is_left_out_and_explained_and_one_value_has_no_interval():
    row = summary(frame_of([1.0, math.nan, 3.0], note=["", "why", ""])).iloc[0]
    assert (row["mean"], row.n, row.note) == (2.0, 2, "why")
    one, none = summary(frame_of([4.0])).iloc[0], summary(frame_of([math.nan])).iloc[0]
    assert one["mean"] == 4.0 and math.isnan(one.low) and math.isnan(one.high)
    assert none.n == 0 and math.isnan(none["mean"])
    table = summary(frame_of([1.0, 1.0, 5.0, 5.0], recipe=["W8A8", "W8A8", "W6A6", "W6A6"]))
    assert dict(zip(table.recipe, table["mean"])) == {"W8A8": 1.0, "W6A6": 5.0}, "a column of one's own makes groups"
