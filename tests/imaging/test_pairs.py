"""Degradation, pairs, test sets in every layout, and the calibration set."""

import json

import numpy as np
import pytest
import torch
from made import picture, refused, saved
from PIL import Image

from passionsr_lab.imaging import pairs as module
from passionsr_lab.imaging.calibration_set import bicubic, calibration_set
from passionsr_lab.imaging.datasets import LAYOUTS, PairFolder, PairList, located, read_set
from passionsr_lab.imaging.degradation import Degradation, jpeg
from passionsr_lab.imaging.pairs import (
    Pair,
    bundled,
    checked_pairs,
    crop,
    folder_pairs,
    named,
)
from passionsr_lab.imaging.pictures import read_image, to_image, upsample


@pytest.fixture
def photos(tmp_path):
    return saved(tmp_path / "photos", **{f"{i}": picture(n, seed=i) for i, n in enumerate((40, 64, 48, 20))})


def pair_folder(root, layout=LAYOUTS["RealSR"][0], names=("a", "b", "c"), h=10, w=12):
    """A data set in a layout; HR is noise, LR its average."""
    for j, (low, high) in enumerate(zip(layout.lr, layout.hr)):
        for i, name in enumerate(names):
            hr = picture(4 * h, 4 * w, seed=10 * j + i)
            for side, tail, image in ((low, layout.lr_tail, hr.reduce(4)), (high, layout.hr_tail, hr)):
                saved(root / side, **{f"{name}{j}{tail}": image})
    return root


def aligned(pair):
    return (torch.nn.functional.avg_pool2d(pair.hr[None], 4)[0] - pair.lr).abs().max() < 1 / 255


def same(a, b):
    return len(a) == len(b) and all(x.name == y.name and x.lr.equal(y.lr) and x.hr.equal(y.hr) for x, y in zip(a, b))


# -- degradation ------------------------------------------------------------------------------------------------------


def test_degraded_images_are_quarter_size_on_the_8_bit_grid():
    hr = torch.rand(3, 32, 48)
    for seed in range(12):
        lr = Degradation()(hr, np.random.default_rng(seed))
        assert lr.shape == (3, 8, 12) and lr.dtype == torch.float32 and lr.min() >= 0 and lr.max() <= 1
        torch.testing.assert_close(lr * 255, (lr * 255).round(), atol=1e-4, rtol=0)


def test_each_part_of_the_degradation_does_its_work():
    hr = bundled("test", 1, 128)[0].hr
    quiet = {"blur": (0.2, 0.2), "noise": (0.0, 0.0), "clean": 1.0}

    def degraded(**changed):
        return Degradation(**quiet | changed)(hr, np.random.default_rng(0))

    assert (degraded() - torch.nn.functional.avg_pool2d(hr[None], 4)[0]).abs().mean() < 0.03
    sharp, soft = (degraded(blur=(s, s)).diff(dim=2).abs().mean() for s in (0.2, 3))
    assert soft < 0.8 * sharp
    assert 0.05 < (degraded(noise=(0.1, 0.1), clean=0.0, jpeg=(100, 100)) - degraded()).std() < 0.15
    errors = [(jpeg(hr, quality) - hr).abs().mean().item() for quality in (95, 50, 10)]
    assert errors == sorted(errors) and errors[0] > 0


def test_crops_stay_inside_and_small_images_are_refused():
    image = torch.arange(48.0).view(1, 6, 8).expand(3, -1, -1)
    for seed in range(20):
        assert crop(image, 5, np.random.default_rng(seed)).shape == (3, 5, 5)
    assert torch.equal(crop(image[:, :, :6], 6, np.random.default_rng(0)), image[:, :, :6])
    with refused("8x6, too small for 7-pixel crops"):
        crop(image, 7, np.random.default_rng(0))


# -- pairs ------------------------------------------------------------------------------------------------------------


def test_photographs_to_calibrate_on_to_tune_on_and_to_test_on_are_never_the_same():
    names = [
        {p.name.rpartition("_")[0] for p in bundled(split, size=16)} for split in ("calibration", "tuning", "test")
    ]
    assert all(names) and len(set.union(*names)) == sum(len(found) for found in names)


def test_pairs_are_times_four_show_the_same_and_repeat_with_their_seed():
    first, again, other = (bundled("calibration", 8, 32, seed) for seed in (0, 0, 1))
    assert len(first) == 8 == len({p.name for p in first}) and same(first, again)
    assert not any(torch.equal(a.hr, b.hr) for a, b in zip(first, other))
    for pair in bundled("test", 4, 128):
        assert pair.lr.shape == (3, 32, 32) and (upsample(pair.lr[None])[0] - pair.hr).abs().mean() < 0.15


def test_counts_and_crops_that_cannot_be_are_refused_before_anything_is_read(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "read_image", lambda path: pytest.fail("read"))
    ready, out = pair_folder(tmp_path / "ready"), tmp_path / "out"
    for count in (0, -1, 2.5, True, "3"):
        for call in (
            lambda n: bundled("test", n), lambda n: folder_pairs(photos, n, 16), lambda n: folder_pairs(ready, n, 16),
            lambda n: read_set("bundled", n), lambda n: PairFolder("mine", ready, n),
            lambda n: list(calibration_set(photos, out, n, 16)),
        ):  # fmt: skip
            with refused(f"a whole number from 1 on, not {count!r}"):
                call(count)
    for size in (4, 30, 0, -8, 16.5):
        for call in (
            lambda n: bundled("test", 1, n), lambda n: folder_pairs(photos, 1, n),
            lambda n: list(calibration_set(photos, out, 1, n)),
        ):  # fmt: skip
            with refused("multiple of 4", f"not {size}"):
                call(size)


def test_photographs_in_a_folder_become_pairs_one_photograph_at_a_time(photos, monkeypatch):
    held, most = [0], [0]

    class Counted(torch.Tensor):
        def __del__(self):
            held[0] -= 1

    def read(path):
        held[0] += 1
        most[0] = max(most[0], held[0])
        return read_image(path).as_subclass(Counted)

    (photos / "3.png").unlink()
    plain = folder_pairs(photos, 7, 16)
    assert len(plain) == 7 == len({p.name for p in plain}) and all(p.hr.shape == (3, 16, 16) for p in plain)
    monkeypatch.setattr(module, "read_image", read)
    assert same(folder_pairs(photos, 7, 16), plain) and most[0] <= 2
    assert len(folder_pairs(photos, None, 16)) == 3


def test_photographs_that_do_not_serve_are_named_before_any_is_read(photos, monkeypatch):
    monkeypatch.setattr(module, "read_image", lambda path: pytest.fail("read"))
    with refused(photos / "3.png", "20x20, too small for 32-pixel crops"):
        folder_pairs(photos, size=32)
    picture(64).save(photos / "0.jpg")
    with refused("0.png", "0.jpg"):
        folder_pairs(photos, size=16)


def test_ready_pairs_are_cropped_at_the_same_place_or_taken_whole(tmp_path):
    folder = pair_folder(tmp_path)
    for size, shape in ((24, (3, 24, 24)), (128, (3, 40, 48))):
        found = folder_pairs(folder, 2, size)
        assert len(found) == 2 and all(p.hr.shape == shape and aligned(p) for p in found)


def test_ready_pairs_that_are_not_pairs_are_refused_before_any_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "read_image", lambda path: pytest.fail("read"))
    folder = pair_folder(tmp_path)
    picture(20, 24).save(folder / "hr" / "b0.png")
    for read in (folder_pairs, lambda folder: PairFolder("mine", folder)):
        with refused(folder / "hr" / "b0.png", "24x20, must be 4 times the size of 12x10"):
            read(folder)
    (folder / "hr" / "b0.png").unlink()
    for read in (folder_pairs, lambda folder: PairFolder("mine", folder)):
        with refused(folder / "hr", "no counterpart of b0.png (and 0 more)"):
            read(folder)
    (folder / "hr").rename(tmp_path / "elsewhere")
    with refused("hr is not a folder"):
        folder_pairs(folder)
    (folder / "lr").rename(tmp_path / "hr")
    (tmp_path / "elsewhere").rename(folder / "lr")
    picture(40, 48).save(folder / "lr" / "b0.png")
    with refused("swapped"):
        folder_pairs(folder)


def test_a_turned_pair_stays_aligned(tmp_path):
    folder, tag = pair_folder(tmp_path, h=12, w=12), Image.Exif()
    tag[274] = 6
    for name in ("a0", "b0"):
        image = Image.open(folder / "hr" / f"{name}.png").transpose(Image.Transpose.ROTATE_90)
        image.save(folder / "hr" / f"{name}.png", exif=tag)
    assert all(aligned(p) for p in (*folder_pairs(folder, size=24), *PairFolder("mine", folder, size=24)))


def test_pairs_in_every_form_are_checked_into_pairs():
    given = bundled("test", 2, 32)
    assert checked_pairs(given) is not given and same(checked_pairs(iter(given)), given)
    for form in (lambda p: (p.lr, p.hr), lambda p: [to_image(p.lr), to_image(p.hr)]):
        found = checked_pairs([form(p) for p in given])
        assert [p.name for p in found] == ["0", "1"] and isinstance(found[0], Pair)
        assert all((a.lr - b.lr).abs().max() < 1 / 255 for a, b in zip(found, given))
    assert checked_pairs([(given[0].lr, torch.rand(3, 16, 16))], 2)[0].hr.shape == (3, 16, 16)


def test_what_are_no_pairs_is_refused_with_the_pair_named():
    lr, hr = torch.rand(3, 4, 6), torch.rand(3, 16, 24)
    nan = lr.clone()
    nan[0, 0, 0] = torch.nan
    for wrong, words in (
        ([hr], "Pair 0 is an image alone"), ([(lr, hr), to_image(lr)], "Pair 1 is an image alone"),
        ([(hr, lr)], "swapped"), ([Pair("x", hr, lr)], "Pair x: the original, 6x4, must be 4 times"),
        ([(lr, hr[:, :12])], "must be 4 times the size of 6x4"), ([(lr, lr)], "must be 4 times"), ([(nan, hr)], "NaN"),
        ([("y", lr, hr * 255)], "Pair y: Image values must lie in [0, 1]"), ([(lr, hr - 1)], "[0, 1]"),
        ([(lr[None], hr[None])], "a batch"), ([(lr, hr, hr)], "three pictures"), ([(lr,)], "not (lr, hr)"),
        (["ab"], "a str"), ([None], "a NoneType"), ([(lr, None)], "not NoneType"), ([], "no pairs"),
        (Pair("z", lr, hr), "as one Pair"), (5, "as one int"),
    ):  # fmt: skip
        with refused(words):
            checked_pairs(wrong)


# -- test sets --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, layout", [(name, layout) for name, layouts in LAYOUTS.items() for layout in layouts])
def test_every_layout_gives_each_lr_image_its_own_hr_image(name, layout, tmp_path):
    found = PairFolder(name, pair_folder(tmp_path, layout, ("img_1", "img_10", "img_2")))
    sides = range(len(layout.lr))
    assert [p.name for p in found] == sorted(f"{n}{j}" for n in ("img_1", "img_10", "img_2") for j in sides)
    assert all(aligned(p) for p in found)


def test_missing_data_is_one_sentence_with_the_layouts(tmp_path):
    with refused("lr/*.png with hr/*.png", "Canon/Test/4/*_LR4.png"):
        PairFolder("RealSR", tmp_path)
    layout = LAYOUTS["DIV2K_val"][-1]
    folder = pair_folder(tmp_path, layout, ("0801", "0802"))
    (folder / layout.hr[0] / "08020.png").unlink()
    with refused("no counterpart of 08020x4.png (and 0 more)", f"Expected: {layout}"):
        PairFolder("DIV2K_val", folder)


def test_pictures_are_known_by_more_than_their_stems(tmp_path):
    folder = pair_folder(tmp_path / "twins")
    for side in ("lr", "hr"):
        Image.open(folder / side / "a0.png").save(folder / side / "a0.jpg")
    for read in (folder_pairs, lambda folder: read_set(f"twins={folder}")):
        with refused("a0.jpg", "a0.png"):
            read(folder)
    cameras = pair_folder(tmp_path / "cameras", LAYOUTS["RealSR"][-1])
    for tail in ("LR4", "HR"):
        (cameras / f"Nikon/Test/4/a1_{tail}.png").rename(cameras / f"Nikon/Test/4/a0_{tail}.png")
    with refused("Canon/Test/4/a0_LR4.png", "Nikon/Test/4/a0_LR4.png", "same name"):
        PairFolder("RealSR", cameras)


def test_a_centre_crop_keeps_the_pair_aligned(tmp_path):
    folder = pair_folder(tmp_path, names=("a",), h=12, w=12)
    (whole,), (middle,) = PairFolder("RealSR", folder), PairFolder("RealSR", folder, size=16)
    assert torch.equal(middle.hr, whole.hr[:, 16:32, 16:32]) and torch.equal(middle.lr, whole.lr[:, 4:8, 4:8])
    with refused("a0.png is 48x48, too small"):
        PairFolder("RealSR", folder, size=64)
    with refused("multiple of 4"):
        PairFolder("RealSR", folder, size=18)


def test_the_digest_follows_contents_names_shapes_and_crop(tmp_path):
    folder = pair_folder(tmp_path)
    marks = [PairFolder("RealSR", folder, *more).digest() for more in ((), (2,), (None, 8))]
    assert PairFolder("RealSR", folder).digest() == marks[0]
    picture(40, 48, seed=9).save(folder / "hr" / "b0.png")
    marks.append(PairFolder("RealSR", folder).digest())
    lr, hr = torch.rand(3, 4, 6), torch.rand(3, 16, 24)
    marks += [PairList("x", [Pair("a", lr.reshape(s), hr)]).digest() for s in ((3, 4, 6), (3, 6, 4))]
    assert len(set(marks)) == 6
    found = read_set("bundled", 3, 32)
    assert [p.hr.shape for p in found] == [(3, 32, 32)] * 3
    assert found.digest() == read_set("bundled", 3, 32).digest() != read_set("bundled", 2, 32).digest()


def test_a_data_set_is_found_whatever_its_case(tmp_path, monkeypatch):
    (tmp_path / "realsr").mkdir()
    assert located("RealSR", tmp_path) == tmp_path / "realsr"
    monkeypatch.setenv("PASSIONSR_DATA", str(tmp_path))
    assert located("RealSR") == tmp_path / "realsr"
    with refused("DIV2K_val", "none"):
        located("DIV2K_val")
    (tmp_path / "REALSR").mkdir()
    with refused("REALSR and realsr; keep one"):
        located("RealSR")
    monkeypatch.delenv("PASSIONSR_DATA")
    with refused("set PASSIONSR_DATA"):
        located("RealSR")


def test_a_data_set_has_a_name_that_files_can_carry(tmp_path):
    assert read_set(f"x#y={pair_folder(tmp_path)}").name == "x#y"
    for name in ("../../x", "a/b", "a\\b", ".hidden", "", "."):
        with refused("plain name"):
            read_set(f"{name}={tmp_path}")


# -- calibration set --------------------------------------------------------------------------------------------------


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_set_is_made_of_crops_and_what_the_calibration_reads(photos, tmp_path):
    written = list(calibration_set(photos, tmp_path / "out", count=7, size=32))
    found = folder_pairs(tmp_path / "out", size=32)
    assert len(written) == len(found) == 7 and {(p.lr.shape[-1], p.hr.shape[-1]) for p in found} == {(8, 32)}
    told = json.loads((tmp_path / "out" / "calibration.json").read_text())
    assert list(told["photographs"]) == ["0.png", "1.png", "2.png"], "20 pixels are too few"
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


def test_another_seed_makes_another_set_and_another_set_is_not_mixed_in(photos, tmp_path):
    list(calibration_set(photos, tmp_path / "a", count=3, size=16))
    list(calibration_set(photos, tmp_path / "b", count=3, size=16, seed=1))
    a, b = contents(tmp_path / "a"), contents(tmp_path / "b")
    assert all(a[key] != b[key] for key in a)
    with refused("made otherwise"):
        list(calibration_set(photos, tmp_path / "a", count=3, size=16, seed=1))
    picture(64, seed=77).save(photos / "1.png")
    with refused("made otherwise"):
        list(calibration_set(photos, tmp_path / "a", count=6, size=16))
    (tmp_path / "a" / "calibration.json").write_text("")
    with refused(tmp_path / "a" / "calibration.json"):
        list(calibration_set(photos, tmp_path / "a", count=6, size=16))


def test_the_degradation_is_an_option(photos, tmp_path):
    list(calibration_set(photos, tmp_path / "clean", count=2, size=32, degradation="bicubic"))
    list(calibration_set(photos, tmp_path / "camera", count=2, size=32))
    for clean, camera in zip(folder_pairs(tmp_path / "clean", size=32), folder_pairs(tmp_path / "camera", size=32)):
        assert torch.equal(clean.hr, camera.hr), "the same crops"
        assert torch.allclose(clean.lr, bicubic(clean.hr, None), atol=1e-3) and not torch.equal(clean.lr, camera.lr)
    for options, words in ((dict(size=128), "No photograph"), (dict(degradation="fog"), "camera, bicubic")):
        with refused(words):
            list(calibration_set(photos, tmp_path / "out", **({"size": 16} | options)))


def test_pairs_are_found_by_name_and_a_wrong_name_is_told_before_any_work():
    pairs = bundled("test", 4, 32)
    found = named(pairs, {"grass_0": (0, 0), "chelsea_0": (1, 1)})
    assert list(found) == ["chelsea_0", "grass_0"] and found["chelsea_0"] is pairs[1]
    with refused("'chelsea_1'", "astronaut_0, chelsea_0"):
        named(pairs, ["chelsea_1"])
