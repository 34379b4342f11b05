"""Images of every kind, damaged files, degradation and pairs."""

import numpy as np
import pytest
import torch
from PIL import Image

from passionsr_lab.imaging.degradation import Degradation, jpeg
from passionsr_lab.imaging.pairs import CALIBRATION_PHOTOS, TEST_PHOTOS, bundled, crop, folder_pairs, make_pairs
from passionsr_lab.imaging.pictures import image_files, matching_files, read_image, to_image, to_tensor, upsample


def pixels(h=5, w=7, channels=3, seed=0, top=256, dtype=np.uint8):
    shape = (h, w, channels) if channels > 1 else (h, w)
    return np.random.default_rng(seed).integers(0, top, shape).astype(dtype)


def coloured(mode):
    image = Image.fromarray(pixels())
    return image.quantize(8) if mode == "P" else image.convert(mode)


def write_photos(folder, count=3, size=(60, 52), seed=0):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.fromarray(pixels(size[1], size[0], seed=seed + i)).save(folder / f"photo{i}.png")
    return folder


def one_sentence(error):
    text = str(error.value)
    return "\n" not in text and 20 < len(text) < 400


# -- pictures in ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "RGBA", "LA", "CMYK", "YCbCr", "HSV"])
def test_pil_images_of_every_mode_become_rgb(mode):
    image = coloured(mode)
    x = to_tensor(image)
    assert x.shape == (3, 5, 7) and x.dtype == torch.float32
    assert np.array_equal((x * 255).round().byte().permute(1, 2, 0).numpy(), np.asarray(image.convert("RGB")))


def test_alpha_is_dropped_and_grey_is_repeated():
    rgb = pixels()
    rgba = np.dstack([rgb, np.full(rgb.shape[:2], 3, np.uint8)])
    assert torch.equal(to_tensor(Image.fromarray(rgba, "RGBA")), to_tensor(Image.fromarray(rgb)))
    x = to_tensor(Image.fromarray(pixels(channels=1)))
    assert torch.equal(x[0], x[1]) and torch.equal(x[0], x[2])


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_16_bit_images_keep_their_depth(dtype, tmp_path):
    grey = pixels(channels=1, top=65536, dtype=dtype)
    image = Image.fromarray(grey)
    x = to_tensor(image)
    np.testing.assert_allclose(x[1].numpy(), grey / 65535, atol=1e-6)
    if dtype == np.uint16:
        image.save(tmp_path / "deep.png")
        assert torch.equal(read_image(tmp_path / "deep.png"), x)


@pytest.mark.parametrize("top", [1.0, 65535.0])
def test_float_images_are_read_in_either_unit(top):
    grey = np.random.default_rng(0).random((4, 3), np.float32)
    grey[0, 0] = 1
    np.testing.assert_allclose(to_tensor(Image.fromarray(grey * np.float32(top)))[0].numpy(), grey, atol=1e-6)


def test_tensors_pass_as_they_are():
    for shape in ((3, 1, 1), (3, 5, 8), (2, 3, 4, 4)):
        x = torch.rand(shape)
        assert torch.equal(to_tensor(x), x)
    assert to_tensor(torch.rand(3, 2, 2, dtype=torch.float64)).dtype == torch.float32
    assert to_tensor(torch.full((3, 2, 2), 1.00005)).max() == 1  # rounding of a resampler, not another range


BAD = {
    "integers": (torch.zeros(3, 4, 4, dtype=torch.uint8), "divide by 255"),
    "four channels": (torch.zeros(4, 4, 4), r"must be \(3, H, W\)"),
    "one channel": (torch.zeros(1, 4, 4), r"must be \(3, H, W\)"),
    "channels last": (torch.zeros(4, 5, 3), r"must be \(3, H, W\)"),
    "two dimensions": (torch.zeros(4, 4), r"must be \(3, H, W\)"),
    "five dimensions": (torch.zeros(1, 1, 3, 4, 4), r"must be \(3, H, W\)"),
    "no pixels": (torch.zeros(3, 0, 4), r"must be \(3, H, W\)"),
    "nan": (torch.full((3, 4, 4), torch.nan), "NaN"),
    "one nan": (torch.zeros(3, 4, 4).index_fill(2, torch.tensor([1]), torch.nan), "NaN"),
    "infinity": (torch.full((3, 4, 4), torch.inf), "infinite"),
    "255": (torch.rand(3, 4, 4) * 255, r"must lie in \[0, 1\]"),
    "negative": (torch.rand(3, 4, 4) - 0.5, r"must lie in \[0, 1\]"),
    "numpy": (np.zeros((3, 4, 4), np.float32), "PIL image or a tensor, not ndarray"),
    "a path": ("picture.png", "PIL image or a tensor, not str"),
    "nothing": (None, "PIL image or a tensor, not NoneType"),
    "nan in a float image": (Image.fromarray(np.full((3, 4), np.nan, np.float32)), "NaN"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_no_picture_is_refused_in_one_sentence(what):
    image, message = BAD[what]
    with pytest.raises(ValueError, match=message) as error:
        to_tensor(image)
    assert one_sentence(error)


def test_to_image_rounds_to_the_nearest_and_clamps():
    x = torch.tensor([-0.2, 0.0, 0.4999 / 255, 0.5001 / 255, 1.0, 1.7]).expand(3, 1, 6)
    assert np.asarray(to_image(x))[0, :, 0].tolist() == [0, 0, 0, 1, 255, 255]
    image = Image.fromarray(pixels())
    assert np.array_equal(np.asarray(to_image(to_tensor(image))), np.asarray(image))


# -- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif", ".webp"])
def test_every_suffix_that_is_listed_is_read(tmp_path, suffix):
    Image.fromarray(pixels()).save(tmp_path / f"x{suffix}")
    assert image_files(tmp_path)[0].suffix == suffix
    assert read_image(tmp_path / f"x{suffix}").shape == (3, 5, 7)


DAMAGED = {
    "missing": None,
    "empty": b"",
    "text": b"this is no picture",
    "truncated": "half",
    "header only": "start",
    "corrupt": "corrupt",
}


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
@pytest.mark.parametrize("what", DAMAGED)
def test_damaged_and_missing_files_are_refused_in_one_sentence(tmp_path, what, suffix):
    path, content = tmp_path / f"x.{suffix}", DAMAGED[what]
    if isinstance(content, str):
        Image.fromarray(pixels(80, 90)).save(path)
        whole = path.read_bytes()
        noise = bytes(np.random.default_rng(0).integers(0, 256, 400, np.uint8))
        content = {"half": whole[: len(whole) // 2], "start": whole[:30], "corrupt": whole[:8] + noise}[content]
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=f"no image at {path}" if content is None else f"{path} cannot be read") as e:
        read_image(path)
    assert one_sentence(e)


def test_a_folder_in_an_images_place_is_refused_in_one_sentence(tmp_path):
    with pytest.raises(ValueError, match="cannot be read as an image") as error:
        read_image(tmp_path)
    assert one_sentence(error)


def test_a_picture_that_is_too_large_to_unpack_is_refused_in_one_sentence(tmp_path, monkeypatch):
    Image.fromarray(pixels(40, 40)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"bomb\.png cannot be read as an image") as error:
        read_image(tmp_path / "bomb.png")
    assert one_sentence(error)


def test_image_files_are_sorted_and_nothing_else_is_taken(tmp_path):
    for name in ("b.png", "a.JPG", "c.txt", "d.npy"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "e.png").write_bytes(b"")
    assert [p.name for p in image_files(tmp_path)] == ["a.JPG", "b.png"]


@pytest.mark.parametrize("made", [False, True])
def test_a_folder_without_pictures_is_refused(tmp_path, made):
    folder = tmp_path / "folder"
    if made:
        folder.mkdir()
    with pytest.raises(ValueError, match="holds no images" if made else "is not a folder"):
        image_files(folder)


# -- degradation ------------------------------------------------------------------------------------------------------


def test_up_sampling_is_pils_bicubic():
    image = to_image(bundled("test", 1, 64)[0].hr[:, :44, :36])
    ours = upsample(to_tensor(image)[None])[0]
    theirs = to_tensor(image.resize((4 * 36, 4 * 44), Image.Resampling.BICUBIC))  # in 8 bits, twice rounded
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().mean() < 0.4 / 255  # 0.7 with PyTorch's own a = -0.75


def test_degraded_images_are_quarter_size_on_the_8_bit_grid():
    hr = torch.rand(3, 32, 48)
    for seed in range(12):
        lr = Degradation()(hr, np.random.default_rng(seed))
        assert lr.shape == (3, 8, 12) and lr.dtype == torch.float32
        assert lr.min() >= 0 and lr.max() <= 1
        torch.testing.assert_close(lr * 255, (lr * 255).round(), atol=1e-4, rtol=0)


def test_each_part_of_the_degradation_does_its_work():
    hr = bundled("test", 1, 128)[0].hr
    quiet = {"blur": (0.2, 0.2), "noise": (0.0, 0.0), "clean": 1.0}
    plain = Degradation(**quiet)(hr, np.random.default_rng(0))
    assert (plain - torch.nn.functional.avg_pool2d(hr[None], 4)[0]).abs().mean() < 0.03
    sharpness = [
        Degradation(**quiet | {"blur": (s, s)})(hr, np.random.default_rng(0)).diff(dim=2).abs().mean() for s in (0.2, 3)
    ]
    assert sharpness[1] < 0.8 * sharpness[0]
    noisy = Degradation(**quiet | {"noise": (0.1, 0.1), "clean": 0.0, "jpeg": (100, 100)})(hr, np.random.default_rng(0))
    assert 0.05 < (noisy - plain).std() < 0.15


def test_jpeg_loses_more_at_lower_quality():
    x = bundled("test", 1, 64)[0].hr
    errors = [(jpeg(x, quality) - x).abs().mean().item() for quality in (95, 50, 10)]
    assert errors == sorted(errors) and errors[0] > 0


def test_crops_stay_inside_and_small_images_are_refused():
    image = torch.arange(48.0).view(1, 6, 8).expand(3, -1, -1)
    for seed in range(20):
        assert crop(image, 5, np.random.default_rng(seed)).shape == (3, 5, 5)
    assert torch.equal(crop(image[:, :, :6], 6, np.random.default_rng(0)), image[:, :, :6])
    with pytest.raises(ValueError, match="A 8x6 image is too small for 7-pixel crops"):
        crop(image, 7, np.random.default_rng(0))


# -- pairs ------------------------------------------------------------------------------------------------------------


def test_photographs_to_calibrate_on_and_to_test_on_are_never_the_same():
    assert not set(CALIBRATION_PHOTOS) & set(TEST_PHOTOS)
    names = [{p.name.rpartition("_")[0] for p in bundled(split, size=16)} for split in ("calibration", "test")]
    assert not names[0] & names[1] and all(names)


def test_pairs_are_times_four_and_repeat_with_their_seed():
    first, again, other = (bundled("calibration", 8, 32, seed) for seed in (0, 0, 1))
    assert len(first) == 8 and len({p.name for p in first}) == 8
    for a, b in zip(first, again):
        assert a.lr.shape == (3, 8, 8) and a.hr.shape == (3, 32, 32)
        assert torch.equal(a.lr, b.lr) and torch.equal(a.hr, b.hr)
    assert not any(torch.equal(a.hr, b.hr) for a, b in zip(first, other))


def test_pairs_show_the_same_thing():
    for pair in bundled("test", 4, 128):
        assert (upsample(pair.lr[None])[0] - pair.hr).abs().mean() < 0.15


@pytest.mark.parametrize(("call", "message"), [
    (lambda: bundled("train"), "'calibration' or 'test'"),
    (lambda: bundled("test", size=30), "multiple of 4, not 30"),
    (lambda: make_pairs([("a", torch.rand(3, 8, 8))], 1, 16), "too small"),
])  # fmt: skip
def test_impossible_pairs_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_photographs_in_a_folder_become_pairs(tmp_path):
    folder = write_photos(tmp_path / "photos")
    pairs = folder_pairs(folder, 5, 16)
    assert len(pairs) == 5 and all(p.lr.shape == (3, 4, 4) and p.hr.shape == (3, 16, 16) for p in pairs)
    assert len({p.name for p in pairs}) == 5
    assert len(folder_pairs(folder, None, 16)) == 3
    again = folder_pairs(folder, 5, 16)
    assert all(torch.equal(a.lr, b.lr) and a.name == b.name for a, b in zip(pairs, again))


def ready_pairs(root, names=("a", "b", "c"), size=(12, 10)):
    for name in names:
        hr = Image.fromarray(pixels(4 * size[1], 4 * size[0], seed=sum(map(ord, name))))
        for part, image in (("hr", hr), ("lr", hr.resize(size, Image.Resampling.BOX))):
            (root / part).mkdir(parents=True, exist_ok=True)
            image.save(root / part / f"{name}.png")
    return root


def test_ready_pairs_are_cropped_at_the_same_place(tmp_path):
    for pair in folder_pairs(ready_pairs(tmp_path), size=24):
        assert pair.lr.shape == (3, 6, 6) and pair.hr.shape == (3, 24, 24)
        box = torch.nn.functional.avg_pool2d(pair.hr[None], 4)[0]
        assert (box - pair.lr).abs().max() < 1 / 255


def test_ready_pairs_smaller_than_a_crop_are_taken_whole(tmp_path):
    assert folder_pairs(ready_pairs(tmp_path), 2, size=128)[1].hr.shape == (3, 40, 48)


def test_folders_that_do_not_match_name_what_is_missing(tmp_path):
    root = ready_pairs(tmp_path)
    (root / "hr" / "b.png").unlink()
    with pytest.raises(ValueError, match=r"only one has b\.png \(and 0 more\)") as error:
        folder_pairs(root)
    assert one_sentence(error)
    assert len(matching_files(root / "lr", root / "lr")) == 3


def test_pairs_that_are_not_times_four_are_refused(tmp_path):
    root = ready_pairs(tmp_path)
    Image.fromarray(pixels(20, 24)).save(root / "hr" / "a.png")
    with pytest.raises(ValueError, match=r"a\.png must be 4 times the size of") as error:
        folder_pairs(root)
    assert one_sentence(error)


def test_a_folder_with_lr_but_no_hr_is_refused(tmp_path):
    root = ready_pairs(tmp_path)
    for file in (root / "hr").iterdir():
        file.unlink()
    (root / "hr").rmdir()
    with pytest.raises(ValueError, match="hr is not a folder"):
        folder_pairs(root)
