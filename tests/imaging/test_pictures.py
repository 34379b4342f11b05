"""Pictures of every kind come in as they were meant or are refused in one sentence; files of a name belong together."""

import os
import struct

import numpy as np
import pytest
import torch
from made import picture, pixels, refused, saved
from PIL import Image

from passionsr_lab.imaging import decoding
from passionsr_lab.imaging.decoding import SUFFIXES, picture_size
from passionsr_lab.imaging.matching import matching_files
from passionsr_lab.imaging.pairs import bundled
from passionsr_lab.imaging.pictures import image_files, left_out, read_image, to_image, to_tensor, upsample, write_image
from passionsr_lab.imaging.psnr import psnr_rgb, psnr_y

# -- pictures in ------------------------------------------------------------------------------------------------------


def test_pil_images_of_every_mode_become_rgb():
    for mode in ("RGB", "L", "P", "1", "RGBA", "LA", "CMYK", "YCbCr", "HSV"):
        image = picture(5, 7).quantize(8) if mode == "P" else picture(5, 7).convert(mode)
        x = to_tensor(image)
        assert x.shape == (3, 5, 7) and x.dtype == torch.float32
        assert np.array_equal((x * 255).round().byte().permute(1, 2, 0), np.asarray(image.convert("RGB"))), mode
    rgba = np.dstack([pixels(), np.full((5, 7), 3, np.uint8)])
    assert torch.equal(to_tensor(Image.fromarray(rgba)), to_tensor(picture(5, 7))), "alpha is dropped"


def test_tensors_pass_as_they_are():
    for shape in ((3, 1, 1), (3, 5, 8), (2, 3, 4, 4)):
        x = torch.rand(shape)
        assert torch.equal(to_tensor(x), x)
    assert to_tensor(torch.rand(3, 2, 2, dtype=torch.float64)).dtype == torch.float32
    assert to_tensor(torch.full((3, 2, 2), 1.00005)).max() == 1  # rounding of a resampler, not another range


def test_what_is_no_picture_is_refused_in_one_sentence():
    for x, words in (
        (torch.zeros(3, 4, 4, dtype=torch.uint8), "divide by 255"), (torch.zeros(4, 4, 4), "must be (3, H, W)"),
        (torch.zeros(4, 5, 3), "must be (3, H, W)"), (torch.zeros(4, 4), "must be (3, H, W)"),
        (torch.zeros(1, 1, 3, 4, 4), "must be (3, H, W)"), (torch.zeros(3, 0, 4), "must be (3, H, W)"),
        (torch.zeros(3, 4, 4).index_fill(2, torch.tensor([1]), torch.nan), "NaN"),
        (torch.full((3, 4, 4), torch.inf), "infinite"), (torch.rand(3, 4, 4) * 255, "must lie in [0, 1]"),
        (torch.rand(3, 4, 4) - 0.5, "must lie in [0, 1]"), (np.zeros((3, 4, 4)), "PIL image or a tensor, not ndarray"),
        ("picture.png", "PIL image or a tensor, not str"), (None, "PIL image or a tensor, not NoneType"),
        (Image.fromarray(np.full((3, 4), np.nan, np.float32)), "NaN"),
    ):  # fmt: skip
        with refused(words):
            to_tensor(x)


def test_to_image_rounds_to_the_nearest_and_clamps():
    x = torch.tensor([-0.2, 0.0, 0.4999 / 255, 0.5001 / 255, 1.0, 1.7]).expand(3, 1, 6)
    assert np.asarray(to_image(x))[0, :, 0].tolist() == [0, 0, 0, 1, 255, 255]
    assert np.array_equal(np.asarray(to_image(to_tensor(picture(5, 7)))), pixels())


def test_up_sampling_is_pils_bicubic():
    image = to_image(bundled("test", 1, 64)[0].hr[:, :44, :36])
    theirs = to_tensor(image.resize((4 * 36, 4 * 44), Image.Resampling.BICUBIC))  # in 8 bits, twice rounded
    assert (upsample(to_tensor(image)[None])[0] - theirs).abs().mean() < 0.4 / 255  # 0.7 with PyTorch's own a = -0.75


def test_psnr_compares_images_of_one_size():
    x, y = torch.zeros(3, 4, 4), torch.full((3, 4, 4), 0.1)
    assert psnr_rgb(x, y) == pytest.approx(20) and psnr_y(x, y) == pytest.approx(20 + 20 * np.log10(255 / 219))
    for psnr in (psnr_y, psnr_rgb):
        with refused("one size", "(3, 4, 4) and (3, 1, 4)"):
            psnr(x, y[:, :1])


# -- metadata: orientation and ranges ---------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".jfif"])
def test_pictures_are_read_upright_from_files_and_as_pil_images(tmp_path, suffix):
    plain = to_image(bundled("test", 1, 64)[0].hr[:, :48])
    for number in range(1, 9):
        tag = Image.Exif()
        tag[decoding.ORIENTATION] = number
        plain.save(tmp_path / f"turned{suffix}", exif=tag)
        with Image.open(tmp_path / f"turned{suffix}") as image:
            given = to_tensor(image)
        found = read_image(tmp_path / f"turned{suffix}")
        expected = to_tensor(plain)  # as the tag says that its rows and columns run
        expected = expected.mT if number >= 5 else expected
        flips = [axis for axis, numbers in ((1, (3, 4, 7, 8)), (2, (2, 3, 6, 7))) if number in numbers]
        assert torch.equal(found, given) and found.shape[1:] == picture_size(tmp_path / f"turned{suffix}")
        assert (found - expected.flip(flips)).abs().mean() < 0.04, number


def test_damaged_or_senseless_metadata_of_a_sound_picture_turns_nothing(tmp_path):
    tag = Image.Exif()
    tag[decoding.ORIENTATION] = 77
    for i, exif in enumerate((tag, b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\0\xff\xff\xff")):
        picture(5, 7).save(tmp_path / f"{i}.png", exif=exif)
        assert torch.equal(read_image(tmp_path / f"{i}.png"), to_tensor(picture(5, 7)))


def write_tiff(path, samples, bits, kind=1, white_is_zero=False, highest=None):
    """A grey TIFF of 5 x 7 samples as bytes; `kind` is 1 for unsigned, 2 for signed, 3 for floating point."""
    tags = {256: 7, 257: 5, 258: bits, 259: 1, 262: int(not white_is_zero), 273: 8, 277: 1, 278: 5, 279: len(samples)}
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in (tags | {339: kind}).items()]
    entries += [] if highest is None else [struct.pack("<HHIf", 341, 11, 1, highest)]
    head = b"II*\0" + struct.pack("<I", 8 + len(samples)) + samples
    path.write_bytes(head + struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4))
    return path


def test_deep_pictures_are_read_over_the_range_that_they_state(tmp_path):
    deep, path = pixels(channels=1, top=65536, dtype=np.uint16), tmp_path / "deep.tif"
    expected = torch.from_numpy(deep / 65535).float()
    for suffix in ("png", "tif", "jp2"):
        Image.fromarray(deep).save(tmp_path / f"deep.{suffix}")
        torch.testing.assert_close(read_image(tmp_path / f"deep.{suffix}"), expected.expand(3, -1, -1))
    for image in (Image.fromarray(deep.astype(np.int32)), Image.fromarray((deep / 65535).astype(np.float32))):
        torch.testing.assert_close(to_tensor(image)[1], expected)
    unit = (deep / 65535).astype(np.float32)
    for given in (
        write_tiff(path, unit.tobytes(), 32, 3),
        write_tiff(path, (unit * 255).tobytes(), 32, 3, highest=255),
        write_tiff(path, deep.astype(np.uint32).tobytes(), 32, highest=65535),
        write_tiff(path, (65535 - deep).tobytes(), 16, white_is_zero=True),
    ):
        torch.testing.assert_close(read_image(given)[2], expected)
    twelve = write_tiff(path, b"\xff\xf8\x00" * 20, 12)  # 4095 and 2048 in turn
    assert read_image(twelve)[0, 0, :2].tolist() == pytest.approx([1, 2048 / 4095])


def test_pictures_whose_range_is_not_stated_are_refused_with_their_name(tmp_path):
    grey = pixels(channels=1)
    Image.fromarray(grey.astype(np.float32)).save(tmp_path / "float_0_255.tiff")
    Image.fromarray(np.where(grey > 9, grey / 255, np.nan).astype(np.float32)).save(tmp_path / "nan.tiff")
    Image.fromarray(grey.astype(np.float32) / 255 - 0.5).save(tmp_path / "negative.tiff")
    write_tiff(tmp_path / "long.tiff", grey.astype(np.uint32).tobytes(), 32)
    write_tiff(tmp_path / "signed.tiff", grey.astype(np.int16).tobytes(), 16, 2)
    write_tiff(tmp_path / "stated.tiff", grey.astype(np.float32).tobytes(), 32, 3, highest=100)
    found = {"float_0_255": "[0, 1]", "nan": "NaN", "negative": "[0, 1]", "stated": "[0, 1]"}
    for name, words in (found | {"long": "range", "signed": "range"}).items():
        with refused(tmp_path / f"{name}.tiff", words):
            read_image(tmp_path / f"{name}.tiff")
    with refused("range"):
        to_tensor(Image.fromarray(grey.astype(np.int32)))


# -- files ------------------------------------------------------------------------------------------------------------


def test_every_suffix_that_is_listed_is_written_read_and_found_in_folders(tmp_path):
    for suffix in SUFFIXES:
        write_image(picture(5, 7), tmp_path / f"x{suffix}")
        assert read_image(tmp_path / f"x{suffix}").shape == (3, 5, 7)
    assert {p.suffix for p in image_files(tmp_path)} == set(SUFFIXES) and not left_out(tmp_path)


def test_what_no_picture_can_be_written_to_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "fifo.png")
    (tmp_path / "folder.png").mkdir()
    for name, words in (
        ("x", "extension"),
        ("x.txt", "extension"),
        ("fifo.png", "no plain file"),
        ("folder.png", "a folder"),
    ):
        with refused(tmp_path / name, words):
            write_image(picture(5), tmp_path / name)
    with refused("20000x1", "write a .png"):
        write_image(Image.new("1", (20000, 1)), tmp_path / "wide.webp")


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp", "gif"])
def test_damaged_and_missing_files_are_refused_in_one_sentence(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    with refused(f"no image at {path}"):
        read_image(path)
    picture(80, 90).save(path)
    whole, noise = path.read_bytes(), pixels(1, 400, 1).tobytes()
    for content in (b"", b"this is no picture", whole[: len(whole) // 2], whole[:30], whole[:8] + noise):
        path.write_bytes(content)
        with refused(path):
            read_image(path)


def test_what_is_no_regular_file_of_one_picture_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "fifo.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    for name in ("moving.gif", "moving.webp", "moving.png", "pages.tif"):
        picture(5).save(tmp_path / name, save_all=True, append_images=[picture(5, seed=1)])
    (tmp_path / "vector.png").write_text(
        "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"
    )  # Pillow would run a program
    told = {"fifo.png": "regular", "gone.png": "no image", "vector.png": "cannot be read", "pages.tif": "2 pictures"}
    told |= {f"moving.{suffix}": "2 pictures" for suffix in ("gif", "webp", "png")}
    for path, words in {".": "regular", "/dev/zero": "regular", "x" * 300 + ".png": "cannot be read", **told}.items():
        with refused(tmp_path / path, words):
            read_image(tmp_path / path)
    picture(5).save(tmp_path / "phone.jpg", "MPO", save_all=True, append_images=[picture(5, seed=1)])
    assert read_image(tmp_path / "phone.jpg").shape == (3, 5, 5), "a phone's second view is no second picture"


@pytest.mark.parametrize("name", ["bits.png", "grey.png", "palette.gif", "zeros.tif", "plain.webp"])
def test_pictures_of_too_many_pixels_are_refused_before_they_are_decoded(tmp_path, name, monkeypatch):
    mode = {"bits": "1", "palette": "P", "plain": "RGB"}.get(name.partition(".")[0], "L")
    edge = 9000 if mode == "1" else 100
    monkeypatch.setattr(decoding, "MAX_PIXELS", decoding.MAX_PIXELS if mode == "1" else 99**2)
    Image.new(mode, (edge, edge)).save(tmp_path / name)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    words = (f"{edge}x{edge} = {edge * edge:,} pixels", f"more than {decoding.MAX_PIXELS:,}")
    for read in (read_image, picture_size):
        with refused(tmp_path / name, *words):
            read(tmp_path / name)
    with Image.open(tmp_path / name) as image, refused(*words):
        to_tensor(image)


def test_folders_are_searched_for_visible_regular_pictures_and_the_rest_is_told(tmp_path):
    for name in ("b.png", "a.JPG", "._b.png", ".1-x1y2.png", "notes.txt", "raw.heic"):
        (tmp_path / name).write_bytes(b"")
    os.mkfifo(tmp_path / "fifo.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    assert [p.name for p in image_files(tmp_path)] == ["a.JPG", "b.png"]
    assert left_out(tmp_path) == ["fifo.png", "folder.png", "gone.png", "notes.txt", "raw.heic"]
    for name in ("a.JPG", "b.png"):
        (tmp_path / name).unlink()
    with refused(tmp_path, "holds no images", "fifo.png"):
        image_files(tmp_path)
    with refused("is not a folder"):
        image_files(tmp_path / "nowhere")


# -- files of one name ------------------------------------------------------------------------------------------------


def test_files_are_paired_by_their_exact_names(tmp_path):
    left, right = saved(tmp_path / "l", img_10=picture(4), img_1=picture(4)), tmp_path / "r"
    saved(right, img_1=picture(4), img_10=picture(4))
    (right / "._img_1.png").touch()
    assert matching_files(left, right) == [(n, left / f"{n}.png", right / f"{n}.png") for n in ("img_1", "img_10")]
    saved(right, img_2=picture(4))
    with refused(left, right, f"{left} has no counterpart of img_2.png (and 0 more)"):
        matching_files(left, right)


def test_files_that_differ_in_their_suffix_only_are_refused_by_name(tmp_path):
    left, right = saved(tmp_path / "l", a=picture(4)), saved(tmp_path / "r", a=picture(4))
    (left / "a.png").rename(left / "a.jpg")
    with refused("no counterpart of a.jpg", "it has a.png"):
        matching_files(left, right)
    for folder in (left, right):  # twins whose order in a folder is nobody's choice
        saved(folder, a=picture(4), a_x4=picture(4))
        (folder / "a.jpg").write_bytes((folder / "a.png").read_bytes())
        (folder / "a_x4.jpg").write_bytes((folder / "a.png").read_bytes())
    with refused("a.jpg", "a.png", "rename or remove"):
        matching_files(left, right)
    with refused("a_x4.jpg", "a_x4.png"):
        matching_files(left, right, "_x4", "_x4")
    with refused("end in _x2"):
        matching_files(left, right, "_x2", "_x2")


def test_the_colour_profile_of_a_picture_is_kept_by_every_format_that_has_one(tmp_path):
    from PIL import ImageCms

    from passionsr_lab.imaging.pictures import colour_profile

    profile, image = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes(), picture(4)
    for name in ("a.png", "a.jpg", "a.webp", "a.tif"):
        image.save(tmp_path / name, icc_profile=profile)
        assert colour_profile(tmp_path / name) == profile
        restored = picture(8)
        restored.info["icc_profile"] = colour_profile(tmp_path / name)
        write_image(restored, tmp_path / f"x4{name}")
        assert colour_profile(tmp_path / f"x4{name}") == profile, name
    write_image(picture(8), tmp_path / "none.png")
    assert colour_profile(tmp_path / "none.png") is None
    image.convert("CMYK").save(tmp_path / "cmyk.jpg", icc_profile=profile)
    assert colour_profile(tmp_path / "cmyk.jpg") is None, "its numbers are converted"
