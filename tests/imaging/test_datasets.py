"""Test sets in every layout, and the calibration set."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from passionsr_lab.imaging.calibration_set import bicubic, calibration_set
from passionsr_lab.imaging.datasets import LAYOUTS, PairFolder, located, read_set
from passionsr_lab.imaging.pairs import Pair, folder_pairs
from passionsr_lab.imaging.pictures import read_image

DATA = Path(os.environ.get("PASSIONSR_DATA", Path(__file__).parents[3] / "shared" / "data"))


def picture(size, seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3)).astype(np.uint8))


def write(folder, layout, names=("img_1", "img_10", "img_2"), size=16):
    """Pairs in a layout; picture i is the seed, the same for both of a pair."""
    for j, (low, high) in enumerate(zip(layout.lr, layout.hr)):
        for i, name in enumerate(names):
            for side, tail, n in ((low, layout.lr_tail, size // 4), (high, layout.hr_tail, size)):
                (folder / side).mkdir(parents=True, exist_ok=True)
                picture(n, 100 * j + i).save(folder / side / f"{name}{j}{tail}.png")
    return folder


@pytest.mark.parametrize("name, index", [(n, i) for n, layouts in LAYOUTS.items() for i in range(len(layouts))])
def test_every_layout_gives_each_lr_image_its_own_hr_image(name, index, tmp_path):
    layout = LAYOUTS[name][index]
    found = list(PairFolder(name, write(tmp_path, layout)))
    assert [p.name for p in found] == sorted(
        f"{n}{j}" for n in ("img_1", "img_10", "img_2") for j in range(len(layout.lr))
    )
    for pair in found:
        stem, j = pair.name[:-1], int(pair.name[-1])
        seed = 100 * j + ("img_1", "img_10", "img_2").index(stem)
        assert isinstance(pair, Pair)
        for tensor, size in ((pair.lr, 4), (pair.hr, 16)):
            expected = torch.from_numpy(np.array(picture(size, seed))).permute(2, 0, 1) / 255
            assert torch.equal(tensor, expected)


def test_missing_data_is_one_sentence_with_the_layouts(tmp_path):
    with pytest.raises(ValueError) as error:
        PairFolder("RealSR", tmp_path)
    text = str(error.value)
    assert "\n" not in text and "lr/*.png with hr/*.png" in text and "Canon/Test/4/*_LR4.png" in text
    with pytest.raises(ValueError, match=r"lr/\*\.png with hr/\*\.png\.$"):
        PairFolder("my own set", tmp_path)


def test_a_picture_without_its_counterpart_is_named(tmp_path):
    folder = write(tmp_path, LAYOUTS["DIV2K_val"][-1], ("0801", "0802"))
    (folder / "DIV2K_valid_HR" / "08020.png").unlink()
    with pytest.raises(ValueError, match=r"08020 \(and 0 more\) has no counterpart; expected .*X4/\*x4\.png"):
        PairFolder("DIV2K_val", folder)


def test_pairs_of_equal_size_are_refused(tmp_path):
    for side in ("lr", "hr"):
        (tmp_path / side).mkdir()
        picture(16, 0).save(tmp_path / side / "a.png")  # RealSR's versions 1 and 2 are like this
    with pytest.raises(ValueError, match="must be 4 times the size"):
        list(PairFolder("RealSR", tmp_path))


def test_a_centre_crop_keeps_the_pair_aligned(tmp_path):
    folder = write(tmp_path, LAYOUTS["RealSR"][0], ("a",), size=48)
    (whole,), (middle,) = PairFolder("RealSR", folder), PairFolder("RealSR", folder, size=16)
    assert torch.equal(middle.hr, whole.hr[:, 16:32, 16:32]) and torch.equal(middle.lr, whole.lr[:, 4:8, 4:8])
    with pytest.raises(ValueError, match="a0 is 48x48, too small"):
        list(PairFolder("RealSR", folder, size=64))
    with pytest.raises(ValueError, match="multiple of 4"):
        PairFolder("RealSR", folder, size=18)


def test_the_digest_follows_contents_names_and_crop(tmp_path):
    folder = write(tmp_path, LAYOUTS["RealSR"][0])
    marks = [PairFolder("RealSR", folder).digest(), PairFolder("RealSR", folder, 2).digest()]
    marks.append(PairFolder("RealSR", folder, size=8).digest())
    assert PairFolder("RealSR", folder).digest() == marks[0]
    picture(16, 9).save(folder / "hr" / "img_20.png")
    marks.append(PairFolder("RealSR", folder).digest())
    assert len(set(marks)) == 4


def test_a_data_set_is_found_whatever_its_case(tmp_path, monkeypatch):
    (tmp_path / "realsr").mkdir()
    assert located("RealSR", tmp_path) == tmp_path / "realsr"
    monkeypatch.setenv("PASSIONSR_DATA", str(tmp_path))
    assert located("RealSR") == tmp_path / "realsr"
    with pytest.raises(ValueError, match="no folder DIV2K_val"):
        located("DIV2K_val")
    monkeypatch.delenv("PASSIONSR_DATA")
    with pytest.raises(ValueError, match="set PASSIONSR_DATA"):
        located("RealSR")


@pytest.mark.skipif(not (DATA / "realsr" / "lr").is_dir(), reason="the RealSR test pairs are not here")
def test_the_real_pairs_are_read(monkeypatch):
    monkeypatch.setenv("PASSIONSR_DATA", str(DATA))
    found = read_set("RealSR")
    assert len(found) == 100 and found.name == "RealSR"
    first = next(iter(found))
    assert first.lr.shape == (3, 128, 128) and first.hr.shape == (3, 512, 512)
    assert len(read_set(f"RealSR={DATA / 'realsr'}", count=3)) == 3


def test_the_bundled_pairs_are_read_like_a_set():
    found = read_set("bundled", 3, 32)
    assert [p.hr.shape for p in found] == [(3, 32, 32)] * 3
    assert found.digest() == read_set("bundled", 3, 32).digest() != read_set("bundled", 2, 32).digest()


# -- calibration set --------------------------------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos").mkdir()
    for i, size in enumerate((40, 64, 48, 20)):
        picture(size, i).save(tmp_path / "photos" / f"{i}.png")
    return tmp_path / "photos"


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_set_is_made_of_crops_and_what_the_calibration_reads(photos, tmp_path):
    written = list(calibration_set(photos, tmp_path / "out", count=7, size=32))
    assert len(written) == 7 and all(p.is_file() for p in written)
    found = folder_pairs(tmp_path / "out", size=32)
    assert len(found) == 7 and {(p.lr.shape[-1], p.hr.shape[-1]) for p in found} == {(8, 32)}
    told = json.loads((tmp_path / "out" / "calibration.json").read_text())
    assert told["photographs"] == ["0.png", "1.png", "2.png"], "20 pixels are too few"
    whole = [read_image(photos / f"{i}.png").unfold(1, 32, 1).unfold(2, 32, 1) for i in range(3)]
    for pair in found:
        assert any((w == pair.hr[:, None, None]).all(-1).all(-1).all(0).any() for w in whole), "each is a crop of one"


def test_a_stopped_set_goes_on_to_the_same_files(photos, tmp_path):
    list(calibration_set(photos, tmp_path / "whole", count=6, size=16))
    begun = calibration_set(photos, tmp_path / "part", count=6, size=16)
    for _ in range(3):
        next(begun)
    (tmp_path / "part" / "hr" / "00001.png").unlink()
    list(calibration_set(photos, tmp_path / "part", count=6, size=16))
    assert contents(tmp_path / "part") == contents(tmp_path / "whole")


def test_the_seed_decides_and_another_set_is_not_mixed_in(photos, tmp_path):
    list(calibration_set(photos, tmp_path / "a", count=3, size=16))
    list(calibration_set(photos, tmp_path / "b", count=3, size=16, seed=1))
    a, b = contents(tmp_path / "a"), contents(tmp_path / "b")
    assert all(a[key] != b[key] for key in a)
    with pytest.raises(ValueError, match="made otherwise"):
        list(calibration_set(photos, tmp_path / "a", count=3, size=16, seed=1))


def test_the_degradation_is_an_option(photos, tmp_path):
    list(calibration_set(photos, tmp_path / "clean", count=2, size=32, degradation="bicubic"))
    list(calibration_set(photos, tmp_path / "camera", count=2, size=32))
    for clean, camera in zip(folder_pairs(tmp_path / "clean", size=32), folder_pairs(tmp_path / "camera", size=32)):
        assert torch.equal(clean.hr, camera.hr), "the same crops"
        assert torch.allclose(clean.lr, bicubic(clean.hr, None), atol=1e-3) and not torch.equal(clean.lr, camera.lr)


@pytest.mark.parametrize(
    "options, words",
    [(dict(size=128), "No photograph"), (dict(size=30), "multiple of 4"), (dict(count=0), "at least 1"),
     (dict(degradation="fog"), "camera, bicubic")],
)  # fmt: skip
def test_a_set_that_cannot_be_made_is_refused(photos, tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        list(calibration_set(photos, tmp_path / "out", **({"size": 16} | options)))
